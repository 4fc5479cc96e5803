"""Scores are made in fp32 on every way through plain torch, and inputs may have any strides."""

import pytest
import torch
import torch.nn.functional as F
from veca_kernels import core_periphery_attention, core_to_patch_attention, patch_to_core_attention

C, P, D = 16, 300, 64
LENGTHS = torch.tensor([P - 100], dtype=torch.int32)


def read_op(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q[:, :, :C], k[:, :, C:], v[:, :, C:]))
    return torch.ops.veca_kernels.read_forward(q, k, v, None, D**-0.5)[0].transpose(1, 2)


def read(lse=False, **options):
    def run(q, k, v):
        out = patch_to_core_attention(q[:, :, :C], k[:, :, C:], v[:, :, C:], return_lse=lse, **options)
        return out[0] if lse else out

    return run


def write(**options):
    return lambda q, k, v: core_to_patch_attention(q[:, :, C:], k[:, :, :C], v[:, :, :C], **options)


def both(**options):
    return lambda q, k, v: core_periphery_attention(q, k, v, C, **options)


CALLS = {"registered op": read_op}
for _impl in ("sdpa", "reference"):
    _named = {
        "read": read(impl=_impl),
        "read and lse": read(impl=_impl, lse=True),
        "read of a length and lse": read(impl=_impl, lse=True, key_lengths=LENGTHS),
        "write": write(impl=_impl),
        "write of a length": write(impl=_impl, active_cores=torch.tensor([9], dtype=torch.int32)),
        "both": both(impl=_impl),
        "both, own key": both(impl=_impl, patch_self=True),
    }
    CALLS |= {f"{_impl}, {name}": call for name, call in _named.items()}


def qkv(deviation, dtype=torch.float32):
    """q, k, v (1, 2, C + P, D) whose scores have this deviation."""
    generator = torch.Generator().manual_seed(0)
    gains = (deviation**0.5, deviation**0.5, 1.0)
    return [(torch.randn(1, 2, C + P, D, generator=generator) * gain).to(dtype) for gain in gains]


def error(x, truth):
    return ((x.detach().double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad-autocast"])
@pytest.mark.parametrize(
    ("dtype", "deviations"), [(torch.bfloat16, (1, 4, 9, 25)), (torch.float16, (1, 25, 3600))], ids=["bf16", "fp16"]
)
def test_errors_are_near_those_of_torchs_own_attention(dtype, deviations, grad):
    """Scores of deviation 3,600 are products of up to 140,000, which fp16 cannot hold."""
    for deviation in deviations:
        rounded = qkv(deviation, dtype)
        q, k, v = (x.requires_grad_(grad) for x in rounded)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=grad):
            found = {name: call(q, k, v) for name, call in CALLS.items()}
            torchs = F.scaled_dot_product_attention(q[:, :, :C], k[:, :, C:], v[:, :, C:])
        exact = [x.detach().double() for x in rounded]
        usual = max(error(torchs, read(impl="reference")(*exact)), torch.finfo(dtype).eps / 10)
        for name, out in found.items():
            truth = CALLS[name.replace("registered op", "reference, read")](*exact)
            assert out.dtype == dtype and error(out, truth) <= 1.5 * usual, (name, deviation)


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
def test_any_strides_give_the_same(grad):
    def odd(x):  # the same values, with the last dimension strided
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)

    q, k, v = qkv(1)
    lse = {"lse": lambda *x: patch_to_core_attention(*x, return_lse=True, impl="sdpa")[1]}
    for name, call in (CALLS | lse).items():
        with torch.set_grad_enabled(grad):
            expected = call(q, k, v)
            for inputs in ((odd(q), odd(k), odd(v)), (q, k, odd(v)), (odd(q), k, v)):
                torch.testing.assert_close(call(*inputs), expected, rtol=0, atol=2e-6, msg=name)
