"""The row kernels on a GPU: true rounding, the real launcher, a block under autocast."""

import copy

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
from veca.model.block import Block
from veca.model.rope import patch_coordinates, rope_periods, rope_tables

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LARGE = [Rows(shape=(2, 4160), width=w) for w in (384, 768, 1000)]


def norm(x, branch, scale, norm_weight, norm_bias, weight, bias):
    return residual_norm_linear(x, branch, norm_weight, norm_bias, weight, bias, scale=scale, eps=EPS, impl="triton")


def gate(*leaves):
    return (swiglu(*leaves, impl="triton"),)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", WIDTHS + PARTS + EDGES + LARGE, ids=str)
def test_against_fp64(case, dtype):
    case = case.at(dtype=dtype)
    assert_close(norm, define_norm, make_norm(case, "cuda"))
    assert_close(gate, define_gate, make_gate(case, "cuda"))


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_stream_in_fp32(case):
    assert_close(norm, define_norm, make_norm(case, "cuda"))


def test_two_runs_give_the_same_bits():
    leaves = make_norm(LARGE[0], "cuda")
    for a, b in zip(forward_backward(norm, leaves), forward_backward(norm, leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("init_values", [None, 0.3])
def test_a_fused_block_is_the_plain_one_under_autocast(init_values):
    block = Block(384, 6, 1024, init_values=init_values).cuda()
    plain = copy.deepcopy(block)
    plain.fused_norm = plain.mlp.recompute = False
    x = torch.randn(2, 1088, 384, device="cuda", requires_grad=True)
    periods = rope_periods(64, device=x.device)
    tables = [rope_tables(xy, periods) for xy in (torch.rand(64, 2).cuda(), patch_coordinates(32, 32, device=x.device))]

    def step(each, enabled=True):
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            out = each(x, 64, *tables)
        return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *each.parameters()])]

    for a, b, truth in zip(step(block), step(plain), step(plain, enabled=False), strict=True):
        error, usual = (torch.linalg.vector_norm(y - truth) for y in (a, b))
        assert error <= 1.2 * usual + 1e-3 * torch.linalg.vector_norm(truth)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        out, expected = (each(x, 64, *tables) for each in (block, plain))
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
