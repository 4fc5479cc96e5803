"""Patch-parallel forward and backward against one process, in fp64, with gloo processes on a CPU."""

import datetime

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from tests.models import small_veca
from tests.processes import server
from veca.large.distributed import Traffic, forward_features, patch_row_slice, reduce_gradients

OUTPUTS = ("global_token", "cores", "core_xy")  # the same on all ranks


def small_model(**options):
    return small_veca(core_step_norm=True, **options)


def random_like(x, seed):
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))


def objective(features, patch_probe, share=1.0):
    """A number that depends on every output; `share` of the replicated ones."""
    replicated = sum((getattr(features, name) * random_like(getattr(features, name), 3)).sum() for name in OUTPUTS)
    return (features.patches * patch_probe).sum() + share * replicated


def close(got, wanted, name):
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10, msg=lambda text: f"{name}: {text}")


def compare(rank, bounds, height, shares, options, num_cores=8, seed=None):
    """One case: rows of pixels `bounds[rank]` to `bounds[rank + 1]` on each rank, `shares` of the replicated terms."""
    training = seed is not None
    torch.manual_seed(1)
    images = torch.randn(2, 3, height, 19, dtype=torch.float64)
    whole = small_model(**options).train(training)
    whole_images = images.clone().requires_grad_()
    if training:
        torch.manual_seed(seed)
        torch.manual_seed(torch.randint(2**31, ()).item())
    wanted = whole.forward_features(whole_images, num_cores)
    probe = random_like(wanted.patches, 2)
    objective(wanted, probe).backward()

    model = small_model(**options).train(training)
    model.set_grad_checkpointing(options.get("global_from") == "patch_mean")
    strip = images[:, :, bounds[rank] : bounds[rank + 1]].clone().requires_grad_()
    torch.manual_seed(seed if training and rank == 0 else 99)
    features = forward_features(model, strip, num_cores)
    cols = wanted.grid_size[1]
    mine = slice(-(-bounds[rank] // 4) * cols, -(-bounds[rank + 1] // 4) * cols)
    close(features.patches, wanted.patches[:, mine], "patches")
    assert features.grid_size[0] * cols == mine.stop - mine.start and features.num_cores == num_cores
    for name in OUTPUTS:
        close(getattr(features, name), getattr(wanted, name), name)
        every = [torch.empty_like(getattr(features, name)) for _ in bounds[1:]]
        dist.all_gather(every, getattr(features, name).detach())
        assert all(torch.equal(every[0], x) for x in every), name

    objective(features, probe[:, mine], shares[rank]).backward()
    reduce_gradients(model)
    close(strip.grad, whole_images.grad[:, :, bounds[rank] : bounds[rank + 1]], "image")
    for (name, got), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert (got.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            assert expected.grad[:num_cores].abs().max() > 1e-9, name
            close(got.grad, expected.grad, name)


def compare_all(rank, ranks):
    even = [0, 12, 20, 32, 36][: ranks + 1]
    first_empty = [0, 0, 4, 16, 16][: ranks + 1]
    last_empty = [*[0, 8, 20, 22, 22][:ranks], 22]
    on_one = [1.0] + [0.0] * (ranks - 1)
    on_all = [1 / ranks] * ranks
    compare(rank, even, even[-1], on_one, {})
    compare(rank, first_empty, first_empty[-1], on_all, {"core_self": False, "global_from": "patch_mean"}, 5)
    options = {"patch_self": True, "global_from": "core0+patch_mean", "output_dim": 20, "core_logit_log_scale": 7}
    compare(rank, last_empty, 22, on_all, options)
    compare(rank, even, even[-1], on_all, {"rope_shift": 0.08, "rope_scale": 2.0, "num_classes": 3}, seed=5)


def one_term_on_one_rank(rank, ranks):
    """Ranks without a term pass through the same exchanges: no deadlock, and the gradient is that of the term."""
    images = torch.randn(1, 3, 4 * ranks, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = small_model()
    whole.forward_features(images).patches[:, -2:].square().sum().backward()  # of the last rank
    model = small_model()
    features = forward_features(model, images[:, :, patch_row_slice(model, 4 * ranks)])
    term = features.patches.square().sum() if rank == ranks - 1 else 0 * features.global_token.sum()
    term.backward()
    reduce_gradients(model)
    for (name, got), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        close(got.grad, torch.zeros_like(got) if expected.grad is None else expected.grad, name)


def traffic_does_not_grow_with_the_image(rank, ranks):
    model = small_model()
    heads, head_dim, cores, depth = 2, 16, 8, 3
    part = heads * cores * (head_dim + 1) * 8
    for height, width in ((4 * ranks, 8), (16 * ranks, 64)):
        traffic = Traffic()
        strip = torch.randn(1, 3, height, width, dtype=torch.float64)[:, :, patch_row_slice(model, height)]
        forward_features(model, strip, traffic=traffic).patches.sum().backward()
        assert (traffic.forward, traffic.backward, traffic.setup) == (depth * part, depth * ranks * part, 5 * 8)


def inference_and_row_shares(rank, ranks):
    for on_odd, height in (("pad", 27), ("crop", 27), ("pad", 8)):  # the last has two rows of patches
        model = small_model(on_odd=on_odd)
        images = torch.randn(1, 3, height, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        rows = patch_row_slice(model, height)
        with torch.no_grad():
            features = forward_features(model, images[:, :, rows])
            wanted = model.forward_features(images)
        close(features.global_token, wanted.global_token, "global token")
        bounds = [None] * ranks
        dist.all_gather_object(bounds, (rows.start, rows.stop, features.patches))
        assert [a for a, _, _ in bounds[1:]] == [b for _, b, _ in bounds[:-1]] and bounds[0][0] == 0
        close(torch.cat([patches for *_, patches in bounds], 1), wanted.patches, "patches")
        shares = [patches.shape[1] // 3 for *_, patches in bounds]
        assert max(shares) - min(shares) <= 1 and shares == sorted(shares, reverse=True)


def gradients_that_some_ranks_lack(rank, ranks):
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(2)) for name in ("all", "one", "none")})
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    model["frozen"] = frozen
    model["all"].grad = torch.full((2,), float(rank + 1))
    if rank == ranks - 1:
        model["one"].grad = torch.tensor([3.0, 4.0])
    reduce_gradients(model)
    assert model["all"].grad.tolist() == [ranks * (ranks + 1) / 2] * 2
    assert model["one"].grad.tolist() == [3, 4]
    assert model["none"].grad is None and frozen.grad is None


def mistakes_are_named_on_every_rank(rank, ranks):
    model = small_model()
    ones = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    for strip, message in (
        (ones[..., : 4 if rank else 8], "one batch and width, got"),
        (ones[:, :, :0], "empty strips on all ranks"),
        (ones[:, :, :6], "whole rows of patches on all ranks but the last, got a part on rank 0"),
    ):
        with pytest.raises(ValueError, match=message):
            forward_features(model, strip)
    with pytest.raises(
        ValueError, match=r"drop path and dropout of 0 in training, got a rate of 0\.1.* in blocks\.1\.drop_path1"
    ):
        forward_features(small_model(drop_path_rate=0.2).train(), ones)
    with pytest.raises(ValueError, match="update='parallel', got 'sequential'"):
        forward_features(small_model(update="sequential"), ones)


CHECKS = (
    compare_all,
    one_term_on_one_rank,
    traffic_does_not_grow_with_the_image,
    inference_and_row_shares,
    gradients_that_some_ranks_lack,
    mistakes_are_named_on_every_rank,
)


def run_checks(rank, ranks, meeting_point):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=ranks, timeout=timeout)
    try:
        for check in CHECKS:
            check(rank, ranks)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 4))])
def test_equals_one_process(ranks, tmp_path):
    server()
    start_processes(run_checks, (ranks, (tmp_path / "meeting").as_uri()), nprocs=ranks, start_method="forkserver")


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="torchrun"):
        forward_features(small_model(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_kernels_and_nccl(tmp_path):
    dist.init_process_group("nccl", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1)
    try:
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).cuda()
        models = [small_model(impl=impl).float().cuda() for impl in ("sdpa", "triton")]
        outputs = [models[0].forward_features(images), forward_features(models[1], images)]
        for features in outputs:
            features.patches.square().sum().backward()
        reduce_gradients(models[1])
        torch.testing.assert_close(outputs[1].patches, outputs[0].patches, rtol=1e-3, atol=1e-3)
        for a, b in zip(models[1].parameters(), models[0].parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or (a.grad - b.grad).norm() <= 1e-3 * b.grad.norm() + 1e-5
    finally:
        dist.destroy_process_group()
