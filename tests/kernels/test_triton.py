"""The kernels themselves, run by Triton's interpreter: logic and reductions, fp32 and fp16 exactly, bf16 upcast.

Needs TRITON_INTERPRET=1 before the kernels are decorated, hence a pytest process of its own: `make test-interpreter`.
"""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from veca_kernels import (
    core_periphery_attention,
    core_to_patch_attention,
    merge_attention_states,
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
    drawn_cases,
    forward_backward,
    make_options,
    make_qkv,
)

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="set TRITON_INTERPRET=1"),
]
triton = pytest.importorskip("triton")
if tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip(
        "the interpreter of Triton 3.6 cannot loop with numpy >= 2.4 (triton-lang/triton#9171)", allow_module_level=True
    )


def slowly(cases):
    """Further cases, of the slow tests: each runs the same code as one that is not among them."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


SIZES = [
    Case(P=P, C=C, D=D, B=1)
    for P, C, D in [
        (0, 1, 32), (0, 8, 64), (1, 7, 32), (1, 64, 64), (63, 7, 80), (64, 8, 96), (65, 17, 128), (65, 65, 8),
        (196, 63, 64), (197, 64, 64), (197, 128, 32), (1025, 16, 64), (33, 8, 72), (65, 1, 40), (5, 0, 32),
    ]
]  # fmt: skip


@pytest.mark.parametrize("case", SIZES + OPTIONS + LAYOUTS + GRADS, ids=str)
def test_fp32(case):
    assert_close(forward_backward("triton", case), case)


@pytest.mark.parametrize("case", [Case(), Case(P=0), Case(active=(3, 0), lengths=(65, 9), patch_self=True)], ids=str)
def test_packed_form(case):
    assert_close(forward_backward("packed_triton", case), case)


FP16 = [*HALF_TABLES, Case(P=197, C=64, D=64, B=1), Case(P=65, C=17, D=80, rope="shared"), *OPTIONS[::4]]


@pytest.mark.parametrize("case", [*FP16, *slowly(x for x in OPTIONS if x not in FP16)], ids=str)
def test_fp16(case):
    case = case.at(dtype=torch.float16)
    assert_close(forward_backward("triton", case), case)


@pytest.mark.parametrize(("patches", "size", "gain", "bound"), [(4096, 1e-3, 1.0, 0.005), (200, 100.0, 4.0, 0.05)])
def test_fp16_gradients_neither_vanish_nor_overflow(patches, size, gain, bound):
    """Score gradients of 4,096 patches are about 1e-7 here, below fp16's normal numbers. A fixed power of two that
    lifts them would overflow in sharp attention under large gradients; there the output's own rounding is the bound.
    """
    case = Case(P=patches, C=16, D=16, B=1, H=1, dtype=torch.float16)
    (q, k, v), _ = make_qkv(case)
    values = [(factor * x).detach() for factor, x in zip((gain, gain, 1.0), (q, k, v), strict=True)]
    grad = (size * torch.randn(q.shape, generator=torch.Generator().manual_seed(1))).to(torch.float16)
    results = []
    for impl, dtype in (("triton", torch.float16), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in values]
        out = core_periphery_attention(*leaves, 16, scale=SCALE, impl=impl)
        results.append(torch.autograd.grad(out, leaves, grad.to(dtype)))
    for name, x, ref in zip(("dq", "dk", "dv"), *results, strict=True):
        x, ref = x[:, :, :16].double(), ref[:, :, :16]  # rows of cores: sums over all patches
        assert (x - ref).norm() <= bound * ref.norm(), name


@pytest.mark.parametrize(
    "case",
    [
        Case(rope="shared"),
        *slowly([Case(P=450, C=17, D=32, B=1, active=11), Case(patch_self=True), Case(core_self=False)]),
    ],
    ids=str,
)
def test_one_launch_of_both_halves_equals_two(case, monkeypatch):
    from veca_kernels.triton import launch

    together = forward_backward("triton", case)
    monkeypatch.setattr(launch, "JOINT", False)
    assert all(torch.equal(a, b) for a, b in zip(together, forward_backward("triton", case), strict=True))


@pytest.mark.parametrize("case", [Case(), Case(P=197, C=64, D=64, B=1, rope="shared"), Case(patch_self=True)], ids=str)
def test_bf16_with_upcast_operands(case):
    """The interpreter truncates fp32 to bf16 where the hardware rounds: twice the tolerance."""
    case = case.at(dtype=torch.bfloat16)
    assert_close(forward_backward("triton", case), case, slack=2.0)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(drawn_cases(dtype=st.just(torch.float32)))
def test_drawn_cases(case):
    assert_close(forward_backward("triton", case), case, slack=4.0)


@pytest.mark.parametrize(
    ("num_sms", "core_self"), [(1, True), (40, False), *slowly([(1, False), (3, True), (3, False), (40, True)])]
)
def test_any_number_of_splits_gives_the_same_result(num_sms, core_self, monkeypatch):
    """From one split, written directly, to many partials that are combined and summed."""
    from veca_kernels.triton import launch

    monkeypatch.setattr(launch, "device_facts", lambda device: (num_sms, 99 << 10))
    case = Case(P=450, C=17, D=32, B=1, core_self=core_self, active=11, lengths=(390,), patch_self=True)
    assert_close(forward_backward("triton", case), case)


@pytest.mark.slow
def test_repeated_runs_give_the_same_bits():
    case = Case(P=450, C=16, D=32, B=1)
    first, second = (forward_backward("triton", case) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shared", [227 << 10, 163 << 10, 99 << 10, 64 << 10])
def test_every_shared_memory_class(shared, monkeypatch):
    from veca_kernels.triton import launch

    monkeypatch.setattr(launch, "device_facts", lambda device: (2, shared))
    case = Case(P=130, C=64, D=96, B=1, rope="shared")
    assert_close(forward_backward("triton", case), case)


def assert_half_is_right(half, loss, values, **options):
    """Outputs and gradients in fp32 against the reference in fp64; two fp32 results differ by the rounding of both."""
    results = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in values]
        out = half(*leaves, impl=impl, **options)
        results.append((out, torch.autograd.grad(loss(out), leaves)))
    (out, grads), (true_out, true_grads) = results
    torch.testing.assert_close(out, true_out, rtol=1e-5, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(grads, true_grads, rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("lengths", [None, (300, 0)])
def test_read_half_with_lse(lengths):
    """Output, lse and the gradient through both; many patches, so that splits are combined."""

    def loss(result):
        out, lse = result
        return out.square().sum() + lse.masked_fill(lse == float("-inf"), 0).cos().sum()

    values = [torch.randn(2, 2, n, 32) for n in (9, 600, 600)]
    lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    assert_half_is_right(patch_to_core_attention, loss, values, scale=SCALE, return_lse=True, key_lengths=lengths)


def test_reads_of_shards_merge():
    q, k, v = (torch.randn(1, 2, n, 32) for n in (9, 300, 300))
    parts = [
        patch_to_core_attention(q, k[:, :, s], v[:, :, s], return_lse=True, impl="triton")
        for s in (slice(0, 100), slice(100, 100), slice(100, 300))
    ]
    out, lse = merge_attention_states(*zip(*parts, strict=True))
    expected = patch_to_core_attention(q, k, v, return_lse=True, impl="reference")
    torch.testing.assert_close((out, lse), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("active", [None, 5, 0, (3, 9)])
def test_write_half(active):
    values = [torch.randn(2, 2, n, 40) for n in (600, 9, 9)]
    active = torch.tensor(active, dtype=torch.int32) if isinstance(active, tuple) else active
    assert_half_is_right(core_to_patch_attention, lambda out: out.square().sum(), values, active_cores=active)


def test_counts_and_statistics_of_any_stride():
    """Sliced, expanded and vmapped counts: kernels address them without strides."""
    case = Case(P=40, C=8, B=2)
    q, k, v = (x.detach() for x in make_qkv(case)[0])
    expanded = torch.tensor([3], dtype=torch.int32).expand(2)
    sliced = torch.tensor([[30, 9], [7, 9]], dtype=torch.int32)[:, 0]
    options = dict(active_cores=expanded, patch_lengths=sliced)
    results = [core_periphery_attention(q, k, v, 8, impl=i, **options) for i in ("triton", "reference")]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    jacobians = [
        torch.func.jacrev(lambda x, i=i: core_periphery_attention(x, k[:1], v[:1], 8, impl=i)[..., :2, :2].sum(1))(
            q[:1]
        )
        for i in ("triton", "reference")
    ]
    torch.testing.assert_close(*jacobians, rtol=1e-4, atol=1e-6)


def test_padding_may_hold_anything():
    """NaN in padded patches and in inactive cores is never touched."""
    case = Case(P=100, C=8, lengths=(60, 0), active=5, rope="shared")
    (q, k, v), _ = make_qkv(case)
    clean = core_periphery_attention(q, k, v, 8, impl="triton", **make_options(case))
    dirty = []
    for x in (q, k, v):
        x = x.detach().clone()
        x[:, :, 5:8] = float("nan")
        x[0, :, 8 + 60 :] = float("nan")
        x[1, :, 8:] = float("inf")
        dirty.append(x)
    out = core_periphery_attention(*dirty, 8, impl="triton", **make_options(case))
    assert torch.equal(out, clean)


def test_huge_stride_of_a_dimension_of_one():
    """Offsets are 64 bits wide and a stride beyond 32 bits on a single image is multiplied by zero."""
    case = Case(P=65, C=8, B=1)
    views, _ = make_qkv(case)
    huge = [x.detach().as_strided(x.shape, (2**40, *x.stride()[1:])) for x in views]
    expected = core_periphery_attention(*views, 8, impl="triton")
    assert torch.equal(core_periphery_attention(*huge, 8, impl="triton"), expected)


def test_empty_batch_launches_nothing():
    x = torch.randn(0, 2, 1100, 32, requires_grad=True)
    out = core_periphery_attention(x, x, x, 8, impl="triton")
    assert out.shape == x.shape
    out.sum().backward()


def test_auto_on_a_cpu_stays_with_sdpa(monkeypatch):
    from veca_kernels import registration

    monkeypatch.setattr(registration, "core_periphery_attention", None)
    core_periphery_attention(*make_qkv(Case())[0], 8)
