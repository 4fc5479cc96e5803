"""The two-call implementation against the reference in fp64: outputs and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from veca_kernels import core_periphery_attention, core_periphery_attention_qkvpacked, sdpa
from veca_kernels.masks import pad_rotation, rotate_pairs, rotate_tokens

from tests.kernels.cases import (
    GRADS,
    LAYOUTS,
    OPTIONS,
    SIZES,
    Case,
    assert_close,
    drawn_cases,
    forward_backward,
    make_options,
    make_qkv,
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


@pytest.mark.parametrize("tables", ["shared", "per_image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("D", [64, 32, 20, 6])
def test_q_and_k_are_rotated_together_to_the_same_bits(D, dtype, tables):
    case = Case(B=2, H=3, P=111, D=D, dtype=dtype, layout="packed", rope=tables)
    (q, k, _), (qkv,) = make_qkv(case)
    cos, sin = pad_rotation(*make_options(case)["patch_rope"], case.C)
    turned = rotate_tokens(qkv[:, :, :2], cos, sin).unbind(2)
    for got, x in zip(turned, (q, k), strict=True):
        assert torch.equal(got.transpose(1, 2), rotate_pairs(x, cos, sin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"patch_self": True}, {"active": (3, 8), "lengths": (70, 111)}], ids=str)
def test_packed_and_separate_calls_agree_to_the_bit(options, dtype):
    """Outputs and gradients, with the rotation of both in one pass or in two."""
    case = Case(P=111, D=64, dtype=dtype, layout="packed", rope="shared", **options)
    (q, k, v), (qkv,) = make_qkv(case)
    separate = core_periphery_attention(q, k, v, case.C, impl="sdpa", **make_options(case)).transpose(1, 2)
    packed = core_periphery_attention_qkvpacked(qkv, case.C, impl="sdpa", **make_options(case))
    assert torch.equal(packed, separate)
    grad = torch.randn_like(packed)
    for a, b in zip(*(torch.autograd.grad(out, qkv, grad) for out in (packed, separate)), strict=True):
        assert torch.equal(a, b)
