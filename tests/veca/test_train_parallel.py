"""Two processes on one machine, started as torchrun starts them, against one process with the same batches."""

import dataclasses
import socket

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from tests.processes import start
from veca import VECA
from veca.train import Recipe, SupervisedTask, train
from veca.train.parallel import join_world


class Noise:
    def __len__(self):
        return 16

    def batch(self, indices, step):
        generators = [torch.Generator().manual_seed(int(index)) for index in indices]
        labels = torch.tensor([index % 3 for index in indices])
        return {"image": torch.stack([torch.randn(3, 32, 32, generator=g) for g in generators]), "label": labels}


def run(out, name, seed, **options):
    torch.manual_seed(seed)
    task = SupervisedTask(VECA(embed_dim=16, depth=2, num_heads=1, num_cores=24), {"label": 3})
    recipe = Recipe(steps=6, batch_size=8, warmup_steps=0, lr_max=1e-2, weight_decay=0.1, clip_norm=0.5, ema_decay=0.9)
    recipe = dataclasses.replace(recipe, save_every=3, log_every=1, **options)
    train(task, Noise(), recipe, f"{out}/{name}", "cpu", stop_at=3)
    torch.manual_seed(seed)
    task = SupervisedTask(VECA(embed_dim=16, depth=2, num_heads=1, num_cores=24), {"label": 3})
    train(task, Noise(), recipe, f"{out}/{name}", "cpu")  # from the checkpoint
    rank = dist.get_rank() if dist.is_initialized() else 0
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in task.named_parameters()}
    save_file({n: p.contiguous() for n, p in whole.items()}, f"{out}/{name}-{rank}.safetensors")
    sharded = sum(isinstance(p, DTensor) for p in task.parameters())
    return f"{name} {sharded}"


def run_all(out):
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        # one process draws the weights that all start with
        seed = 0 if world.rank == 0 else 77
        print(run(out, "plain", seed))
        print(run(out, "checkpointing", seed, grad_checkpointing=True, accumulate=2))
        if world.size > 1:
            print(run(out, "fsdp", seed, parallel="fsdp", grad_checkpointing=True, accumulate=2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of what one process and two processes wrote."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for size, rank in ((1, 0), (2, 0), (2, 1)):
        out = folder / str(size)
        out.mkdir(exist_ok=True)
        world = {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = folder / f"log-{size}-{rank}"
        started.append((start(run_all, out, log=log, **world), log))
    for process, log in started:
        process.join(300)
        output = log.read_text()
        assert process.exitcode == 0, output
        assert "unused parameters" not in output
        assert ("fsdp 0" not in output) and ("plain 0" in output)
    return folder


def weights(runs, size, name, rank):
    return load_file(runs / str(size) / f"{name}-{rank}.safetensors")


@pytest.mark.parametrize("name", ["plain", "checkpointing", "fsdp"])
def test_two_processes_end_with_equal_weights(runs, name):
    first, second = weights(runs, 2, name, 0), weights(runs, 2, name, 1)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["plain", "checkpointing", "fsdp"])
def test_two_processes_do_what_one_does(runs, name):
    """Budgets, clipping, the skipped rows of the bank, checkpoint and resume included."""
    together = weights(runs, 2, name, 0)
    alone = weights(runs, 1, "plain" if name == "fsdp" else name, 0)
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["plain", "fsdp"])
def test_checkpoints_do_not_tell_how_many_processes_wrote_them(runs, name):
    paths = [runs / str(size) / which / "checkpoints/step-00000006" for size, which in ((1, "plain"), (2, name))]
    for file in ("weights", "optimizer", "ema"):
        one, two = (load_file(path / f"{file}.safetensors") for path in paths)
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=2e-2, atol=5e-4)
