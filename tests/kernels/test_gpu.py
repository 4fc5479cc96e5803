"""What only a GPU can show: true rounding, races, graphs, large offsets, the real launcher."""

import pytest
import torch
from veca_kernels import (
    core_periphery_attention,
    core_periphery_attention_qkvpacked,
    core_to_patch_attention,
    patch_to_core_attention,
)

from tests.kernels.cases import (
    GRADS,
    HALF_TABLES,
    LAYOUTS,
    OPTIONS,
    SCALE,
    Case,
    assert_close,
    forward_backward,
    make_options,
    make_qkv,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEAD_DIMS = [Case(P=197, C=64, D=D, rope="shared") for D in (8, 32, 64, 72, 80, 96, 128)]
CORES = [Case(P=1025, C=C, D=64) for C in (1, 7, 16, 17, 63, 65, 128)]
EMPTY = [Case(P=0, C=7), Case(P=1, C=1), Case(P=5, C=0), Case(P=0, C=8, core_self=False)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", [*OPTIONS, *LAYOUTS, *GRADS, *HEAD_DIMS, *CORES, *EMPTY], ids=str)
def test_against_fp64(case, dtype):
    case = case.at(dtype=dtype)
    assert_close(forward_backward("triton", case, "cuda"), case, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", HALF_TABLES, ids=str)
def test_half_tables_against_fp64(case, dtype):
    case = case.at(dtype=dtype)
    assert_close(forward_backward("triton", case, "cuda"), case, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("impl", ["sdpa", "packed_triton"])
@pytest.mark.parametrize(
    "case",
    [*OPTIONS, Case(B=1, P=4096, C=64, D=64), Case(P=192, C=64, D=64, active=(0, 64), lengths=(192, 0))],
    ids=str,
)
def test_other_entries_against_fp64(case, impl, dtype):
    """The fold of sdpa.py (4096 patches of one image) and the packed form."""
    case = case.at(dtype=dtype)
    assert_close(forward_backward(impl, case, "cuda"), case, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_halves_against_fp64(dtype):
    q, k, v = (torch.randn(2, 3, n, 64, device="cuda", dtype=dtype, requires_grad=True) for n in (33, 5000, 5000))
    options = dict(scale=SCALE, return_lse=True, key_lengths=torch.tensor([5000, 7], dtype=torch.int32, device="cuda"))
    out, lse = patch_to_core_attention(q, k, v, impl="triton", **options)
    ref, ref_lse = patch_to_core_attention(q.double(), k.double(), v.double(), impl="reference", **options)
    tolerance = dict(rtol=0.02, atol=0.01) if dtype == torch.bfloat16 else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.double(), ref, **tolerance)
    torch.testing.assert_close(lse.double(), ref_lse.double(), rtol=1e-3, atol=1e-3)
    out = core_to_patch_attention(k, q, q, scale=SCALE, active_cores=20, impl="triton")
    ref = core_to_patch_attention(k.double(), q.double(), q.double(), scale=SCALE, active_cores=20, impl="reference")
    torch.testing.assert_close(out.double(), ref, **tolerance)


def test_auto_takes_triton_where_supported_and_sdpa_elsewhere():
    q, k, v = make_qkv(Case(dtype=torch.bfloat16), "cuda")[0]
    assert torch.equal(core_periphery_attention(q, k, v, 8), core_periphery_attention(q, k, v, 8, impl="triton"))
    wide = [torch.randn(1, 2, 200, 136, device="cuda") for _ in range(3)]
    assert torch.equal(core_periphery_attention(*wide, 8), core_periphery_attention(*wide, 8, impl="sdpa"))


@pytest.mark.parametrize("case", [Case(B=1, H=12, P=4097, C=64, D=64), Case(B=8, H=3, P=1000, C=16, D=64)], ids=str)
def test_one_hundred_runs_give_the_same_bits_beside_other_work(case):
    """Forward and backward on side streams while matmuls load the device: a race would move bits."""
    case = case.at(dtype=torch.bfloat16)
    expected = forward_backward("triton", case, "cuda")
    noise = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for i in range(102):
        with torch.cuda.stream(streams[(i + 1) % 3]):
            noise @ noise
        with torch.cuda.stream(streams[i % 3]):
            results = forward_backward("triton", case, "cuda")
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), f"run {i} differs"


def test_more_than_two_to_the_31_elements():
    """Packed B=16, N=65,536: 2.4e9 elements; the first and the last image equal a run of their own."""
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GB")
    qkv = torch.randn(16, 65536 + 64, 3, 12, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert qkv.numel() > 2**31
    out = core_periphery_attention_qkvpacked(qkv, 64, impl="triton")
    grad = torch.randn_like(out)
    (dqkv,) = torch.autograd.grad(out, qkv, grad)
    for i in (0, 15):
        alone = qkv[i : i + 1].detach().requires_grad_()
        expected = core_periphery_attention_qkvpacked(alone, 64, impl="sdpa")
        (expected_grad,) = torch.autograd.grad(expected, alone, grad[i : i + 1])
        for rows in (slice(0, 64), slice(64, None)):  # cores and patches differ in size by orders of magnitude
            pairs = [(out[i, rows], expected[0, rows])]
            pairs += [(dqkv[i, rows, j], expected_grad[0, rows, j]) for j in range(3)]
            for actual, reference in pairs:
                assert (actual.float() - reference.float()).norm() <= 0.02 * reference.float().norm()


def test_cuda_graph_replay_with_new_inputs_and_budgets():
    case = Case(B=2, H=3, P=1000, C=64, D=64, dtype=torch.bfloat16, active=(64, 64), rope="shared")
    (q, k, v), leaves = make_qkv(case, "cuda")
    options = make_options(case, "cuda")
    grad = torch.randn_like(q)

    def step():
        out = core_periphery_attention(q, k, v, case.C, impl="triton", **options)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for budgets in ((7, 33), (64, 0)):
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(torch.randn_like(leaf))
            options["active_cores"].copy_(torch.tensor(budgets, dtype=torch.int32))
        graph.replay()
        replayed = [x.clone() for x in captured]
        assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


@pytest.mark.parametrize("case", [*OPTIONS, *LAYOUTS, *GRADS, Case(P=4096, C=64, D=64, B=1, rope="shared")], ids=str)
def test_launch_plans_give_the_bits_of_the_long_way(case):
    """The first two calls of a kind take the long way, later ones repeat a plan; also on another stream."""
    from veca_kernels.triton import plan

    plan.clear()
    case = case.at(dtype=torch.bfloat16)
    first, *others = (forward_backward("triton", case, "cuda") for _ in range(4))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        others.append(forward_backward("triton", case, "cuda"))
    torch.cuda.synchronize()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_sizes_budgets_and_strides_do_not_recompile():
    """The variants compiled for one size serve every other one."""
    from veca_kernels.triton import joint, read, write

    kernels = (read.read_forward, read.read_backward, read.combine_reads)
    kernels += (write.write_forward, write.write_backward, write.sum_partials)
    kernels += (joint.joint_forward, joint.joint_backward)

    def compiled() -> int:
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    case = Case(B=1, H=3, P=2000, C=33, D=64, dtype=torch.bfloat16)
    forward_backward("triton", case, "cuda")
    before = compiled()
    for change in (dict(P=2001), dict(P=3333), dict(C=64), dict(H=5), dict(active=1), dict(active=16)):
        forward_backward("triton", case.at(**change), "cuda")
    assert compiled() == before


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic):
    case = Case(B=1, P=500, C=64, D=64, dtype=torch.bfloat16, layout="packed", rope="shared")
    options = make_options(case, "cuda")
    _, (qkv,) = make_qkv(case, "cuda")
    attend = lambda x: core_periphery_attention_qkvpacked(x * 1.0, 64, impl="triton", **options)  # noqa: E731
    expected, actual = attend(qkv), torch.compile(attend, fullgraph=True, dynamic=dynamic)(qkv)
    assert torch.equal(actual, expected)
    grads = [torch.autograd.grad(x.float().square().sum(), qkv)[0] for x in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=0.02, atol=0.02)


def test_peak_memory_is_the_tensors_and_32_mb():
    """q, k, v, o and their gradients: 4 + 4 token tensors, nothing of the size of the scores."""
    qkv = torch.randn(1, 65536 + 64, 3, 12, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    core_periphery_attention_qkvpacked(qkv[:, :200].detach().requires_grad_(), 64, impl="triton").sum().backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated() - qkv.nbytes
    out = core_periphery_attention_qkvpacked(qkv, 64, impl="triton")
    out.backward(torch.randn_like(out))
    torch.cuda.synchronize()
    limit = 8 * qkv.nbytes // 3 + (32 << 20)
    assert torch.cuda.max_memory_allocated() - base <= limit
