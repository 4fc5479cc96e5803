"""The reference against softmax attention written out with a mask that is spelled token by token."""

import itertools

import pytest
import torch
from veca_kernels import core_periphery_attention, core_to_patch_attention, patch_to_core_attention

from tests.kernels.cases import SCALE, Case, forward_backward, make_options, make_qkv


def explicit_attention(q, k, v, num_cores, active, lengths, core_self, patch_self):
    """Loops over images, heads and rows; a row attends to the keys that the prose of the op allows it."""
    B, H, T, _ = q.shape
    out = torch.zeros_like(q)
    for b, h, i in itertools.product(range(B), range(H), range(T)):
        keys = []
        for j in range(T):
            i_core, j_core = i < num_cores, j < num_cores
            i_on = i < active[b] if i_core else i - num_cores < lengths[b]
            j_on = j < active[b] if j_core else j - num_cores < lengths[b]
            if i_core:
                allowed = core_self if j_core else True
            else:
                allowed = j_core or (patch_self and i == j)
            if i_on and j_on and allowed:
                keys.append(j)
        if keys:
            weights = torch.softmax(torch.stack([(q[b, h, i] * k[b, h, j]).sum() * SCALE for j in keys]), 0)
            out[b, h, i] = (weights[:, None] * v[b, h, keys]).sum(0)
    return out


@pytest.mark.parametrize("core_self", [True, False])
@pytest.mark.parametrize("patch_self", [True, False])
@pytest.mark.parametrize("active", [None, 3, 0, (2, 4)])
@pytest.mark.parametrize("lengths", [None, (5, 0)])
def test_equals_the_explicit_mask(core_self, patch_self, active, lengths):
    case = Case(P=5, C=4, D=8, H=1, dtype=torch.float64, active=active, lengths=lengths)
    case = case.at(core_self=core_self, patch_self=patch_self)
    (q, k, v), _ = make_qkv(case)
    per_image = {None: (4, 4), 3: (3, 3), 0: (0, 0)}.get(active, active)
    expected = explicit_attention(q, k, v, 4, per_image, lengths or (5, 5), core_self, patch_self)
    actual = core_periphery_attention(q, k, v, 4, impl="reference", **make_options(case))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rope", ["shared", "per_image"])
def test_rotation_is_a_counter_clockwise_turn_of_channel_pairs(rope):
    """Multiplication by exp(i angle) of the complex numbers x[2k] + i x[2k+1], on patches only."""
    case = Case(P=5, C=4, D=8, dtype=torch.float64, rope=rope)
    (q, k, v), _ = make_qkv(case)
    options = make_options(case)
    cos, sin = (x.double() for x in options.pop("patch_rope"))
    turn = torch.complex(cos, sin)
    turn = turn[:, None] if rope == "per_image" else turn

    def rotate(x):
        turned = torch.view_as_complex(x[:, :, 4:].detach().unflatten(-1, (-1, 2)).contiguous()) * turn
        return torch.cat((x[:, :, :4], torch.view_as_real(turned).flatten(-2)), 2)

    expected = core_periphery_attention(rotate(q), rotate(k), v, 4, impl="reference", **options)
    actual = core_periphery_attention(q, k, v, 4, impl="reference", **make_options(case))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [Case(), Case(active=(3, 0), lengths=(2, 0), patch_self=True, rope="shared")], ids=str)
def test_gradcheck_first_and_second_order(case):
    case = case.at(P=3, C=4, D=8, H=1, dtype=torch.float64)
    views, _ = make_qkv(case)
    function = lambda q, k, v: core_periphery_attention(q, k, v, 4, impl="reference", **make_options(case))  # noqa: E731
    assert torch.autograd.gradcheck(function, views, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, views, fast_mode=True)


def test_tokens_without_keys_are_zeros_with_zero_gradients():
    out, *grads = forward_backward("reference", Case(active=0, P=6, core_self=False, dtype=torch.float64))
    assert all((x == 0).all() for x in (out, *grads))


def test_halves_are_the_two_blocks_of_the_whole():
    case = Case(P=9, C=4, D=8, dtype=torch.float64)
    (q, k, v), _ = make_qkv(case)
    whole = core_periphery_attention(q, k, v, 4, scale=SCALE, core_self=False, impl="reference")
    read = patch_to_core_attention(q[:, :, :4], k[:, :, 4:], v[:, :, 4:], scale=SCALE, impl="reference")
    write = core_to_patch_attention(q[:, :, 4:], k[:, :, :4], v[:, :, :4], scale=SCALE, impl="reference")
    torch.testing.assert_close(whole, torch.cat((read, write), 2), rtol=1e-12, atol=1e-12)


def test_lse_is_the_natural_logarithm_of_the_scaled_scores():
    q, k, v = (torch.randn(2, 1, n, 8, dtype=torch.float64) for n in (3, 7, 7))
    lengths = torch.tensor([5, 0], dtype=torch.int32)
    _, lse = patch_to_core_attention(q, k, v, scale=SCALE, key_lengths=lengths, return_lse=True, impl="reference")
    expected = torch.log(torch.exp(SCALE * q[0] @ k[0, :, :5].mT).sum(-1))
    torch.testing.assert_close(lse[0], expected, rtol=1e-12, atol=1e-12)
    assert (lse[1] == float("-inf")).all()
