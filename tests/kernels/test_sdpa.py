"""The two-call implementation against the reference in fp64: outputs and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from veca_kernels import sdpa

from tests.kernels.cases import (
    GRADS,
    LAYOUTS,
    OPTIONS,
    SIZES,
    Case,
    assert_close,
    drawn_cases,
    forward_backward,
)


@pytest.mark.parametrize("case", SIZES + OPTIONS + LAYOUTS + GRADS, ids=str)
def test_fp32(case):
    assert_close(forward_backward("sdpa", case), case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [*OPTIONS, Case(P=197, C=64, D=64, layout="packed"), Case(P=63, C=17, D=80)], ids=str)
def test_other_dtypes(case, dtype):
    case = case.at(dtype=dtype)
    assert_close(forward_backward("sdpa", case), case)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawn_cases(dtype=st.just(torch.float64)))
def test_drawn_cases(case):
    assert_close(forward_backward("sdpa", case), case)


@pytest.mark.parametrize("batch", [1, 3])
def test_fold_equals_unfolded(batch):
    """Outputs and gradients; a fold of one image is a view even on the patch slice of a joint tensor."""
    joint = torch.randn(batch, 2, 8 + 1024, 16, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(batch, 2, 8, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = joint[:, :, 8:]
    folded = sdpa.folded_attention(q, k, v, 0.3, 4)
    plain = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(folded, plain, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(plain)
    pairs = (torch.autograd.grad(x, (joint, k, v), grad) for x in (folded, plain))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_fold_pieces():
    assert sdpa.fold_pieces(1, 12, 65536, 64, 132) == 32  # 22 wanted; the next divisor
    assert sdpa.fold_pieces(1, 12, 4096, 64, 132) == 16  # pieces of 256 at least
    assert sdpa.fold_pieces(1, 12, 4099, 64, 132) == 1  # a prime does not divide
    assert sdpa.fold_pieces(64, 12, 4096, 64, 132) == 1  # the device is full
    assert sdpa.fold_pieces(8, 1, 4096, 64, 132) == 1  # folding would copy q


def test_memory_is_token_major():
    """The output projection needs no copy: (B, T, H, D) is contiguous."""
    case = Case()
    assert forward_backward("sdpa", case)[0].transpose(1, 2).is_contiguous()
