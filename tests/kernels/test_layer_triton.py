"""The row kernels themselves, run by Triton's interpreter; see test_triton.py."""

import os

import numpy as np
import pytest
import torch
from veca_kernels import residual_norm_linear, swiglu

from tests.kernels.rows import (
    EDGES,
    EPS,
    MIXED,
    PARTS,
    WIDTHS,
    Rows,
    assert_close,
    define_gate,
    define_norm,
    forward_backward,
    make_gate,
    make_norm,
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


def norm(x, branch, scale, norm_weight, norm_bias, weight, bias):
    return residual_norm_linear(x, branch, norm_weight, norm_bias, weight, bias, scale=scale, eps=EPS, impl="triton")


def gate(*leaves):
    return (swiglu(*leaves, impl="triton"),)


@pytest.mark.parametrize("case", WIDTHS + PARTS + EDGES, ids=str)
def test_fp32(case):
    assert_close(norm, define_norm, make_norm(case))
    assert_close(gate, define_gate, make_gate(case))


@pytest.mark.parametrize("case", [*PARTS, Rows(width=100)], ids=str)
def test_fp16(case):
    case = case.at(dtype=torch.float16)
    assert_close(norm, define_norm, make_norm(case))
    assert_close(gate, define_gate, make_gate(case))


@pytest.mark.parametrize("case", [*MIXED, Rows(dtype=torch.bfloat16)], ids=str)
def test_bf16_and_a_stream_in_fp32(case):
    """The interpreter truncates fp32 to bf16 where the hardware rounds: twice the tolerance."""
    assert_close(norm, define_norm, make_norm(case), slack=2.0)
    assert_close(gate, define_gate, make_gate(case), slack=2.0)


@pytest.mark.parametrize("num_sms", [1, 2, 40])
def test_any_number_of_programs_gives_the_same_sums(num_sms, monkeypatch):
    from veca_kernels.triton import layer

    case = Rows(shape=(5, 29), width=100)  # 8 rows a tile: 19 tiles on at most 8, 16 and 320 programs
    monkeypatch.setattr(layer, "device_facts", lambda device: (num_sms, 99 << 10))
    assert_close(norm, define_norm, make_norm(case))


def test_two_runs_give_the_same_bits():
    leaves = make_norm(Rows(shape=(130,), width=100))
    for a, b in zip(forward_backward(norm, leaves), forward_backward(norm, leaves), strict=True):
        assert torch.equal(a, b)


def test_views_are_taken():
    """Rows of a transposed batch, and a gradient that is expanded."""
    leaves = make_norm(Rows(shape=(3, 4), dtype=torch.float32))
    views = [leaves[0].transpose(0, 1), leaves[1].transpose(0, 1), *leaves[2:]]
    got, expected = norm(*views), define_norm(*views)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    grads = [torch.autograd.grad(out[0].sum() + out[1].sum(), leaves, retain_graph=True) for out in (got, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_parameters_of_any_stride():
    """Columns of a matrix as scale, norm weight and norm bias: the kernels address parameters without strides."""
    x, branch, scale, *norm_parameters, weight, bias = make_norm(Rows())
    strided = [torch.stack((p, p + 1), 1)[:, 0] for p in (scale, *norm_parameters)]
    got, expected = norm(x, branch, *strided, weight, bias), define_norm(x, branch, *strided, weight, bias)
    leaves = (x, scale, *norm_parameters)
    grads = [torch.autograd.grad(out[0].sum() + out[1].square().sum(), leaves) for out in (got, expected)]
    torch.testing.assert_close((*got, *grads[0]), (*expected, *grads[1]), rtol=1e-4, atol=1e-4)
