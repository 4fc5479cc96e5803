"""The public surface: names, dispatch, errors that say what was expected and what came, the merge."""

import inspect

import pytest
import torch
import veca_kernels
from veca_kernels import (
    core_periphery_attention,
    core_periphery_attention_qkvpacked,
    core_to_patch_attention,
    merge_attention_states,
    patch_to_core_attention,
)

from tests.kernels.cases import SCALE, Case, make_options, make_qkv

JOINT = "active_cores patch_lengths patch_rope scale core_self patch_self impl".split()


def test_promised_names_and_signatures():
    assert sorted(veca_kernels.__all__) == [
        "IMPLEMENTATIONS",
        "core_periphery_attention",
        "core_periphery_attention_qkvpacked",
        "core_to_patch_attention",
        "merge_attention_states",
        "patch_to_core_attention",
        "prefix_mask",
        "residual_norm_linear",
        "rotate_pairs",
        "rotate_tokens",
        "swiglu",
    ]
    names = lambda f: list(inspect.signature(f).parameters)  # noqa: E731
    assert names(core_periphery_attention) == ["q", "k", "v", "num_cores", *JOINT]
    assert names(core_periphery_attention_qkvpacked) == ["qkv", "num_cores", *JOINT]
    assert names(patch_to_core_attention) == ["q", "k", "v", "scale", "key_lengths", "return_lse", "impl"]
    assert names(core_to_patch_attention) == ["q", "k", "v", "active_cores", "scale", "impl"]
    defaults = inspect.signature(core_periphery_attention).parameters
    assert [defaults[n].default for n in JOINT] == [None, None, None, None, True, False, "auto"]


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
def test_default_scale_packed_form_and_layout(impl):
    qkv = torch.randn(2, 30, 3, 2, 16, dtype=torch.float64, requires_grad=True)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    out = core_periphery_attention_qkvpacked(qkv, 6, impl=impl)
    expected = core_periphery_attention(q, k, v, 6, scale=16**-0.5, impl="reference")
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-10, atol=1e-10)
    assert out.is_contiguous()
    assert core_periphery_attention(q, k, v, 6, impl=impl).transpose(1, 2).is_contiguous()
    assert qkv.grad is None
    out.sum().backward()
    assert qkv.grad.abs().sum() > 0


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("lengths", [None, (9, 0)])
def test_sharded_reads_merge_exactly(impl, lengths):
    """Two shards of the patches and the cores' own keys as a third read: merged, they are the core rows."""
    case = Case(P=20, C=4, D=8, dtype=torch.float64, lengths=lengths)
    (q, k, v), leaves = make_qkv(case)
    options = make_options(case)
    expected = core_periphery_attention(q, k, v, 4, impl="reference", **options)[:, :, :4]
    parts = []
    for start, stop in ((0, 4), (4, 11), (11, 24)):
        count = None
        if lengths is not None and start >= 4:
            count = (options["patch_lengths"] - (start - 4)).clamp(0, stop - start)
        keys, values = k[:, :, start:stop], v[:, :, start:stop]
        parts.append(
            patch_to_core_attention(
                q[:, :, :4], keys, values, scale=SCALE, key_lengths=count, return_lse=True, impl=impl
            )
        )
    out, lse = merge_attention_states(*zip(*parts, strict=True))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    whole = core_periphery_attention(q, k, v, 4, impl="reference", **options)[:, :, :4]
    grads = [torch.autograd.grad(x.square().sum(), leaves) for x in (out, whole)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(lse).all()


def test_merge_of_empty_parts_is_zeros_and_minus_infinity():
    out = [torch.zeros(1, 1, 2, 4, requires_grad=True) for _ in range(2)]
    lse = [torch.full((1, 1, 2), float("-inf"), requires_grad=True) for _ in range(2)]
    merged, total = merge_attention_states(out, lse)
    assert (merged == 0).all()
    assert (total == float("-inf")).all()
    grads = torch.autograd.grad(merged.sum(), [*out, *lse], allow_unused=True)
    assert all(torch.isfinite(x).all() for x in grads if x is not None)


def qkv(tokens=12, dtype=torch.float32, dim=16):
    return [torch.randn(2, 3, tokens, dim, dtype=dtype) for _ in range(3)]


INT32 = dict(dtype=torch.int32)
ROPE = (torch.ones(8, 8), torch.zeros(8, 8))
BAD_OPTIONS = [
    (dict(num_cores=13), ValueError, "num_cores <= 12 tokens, got num_cores=13"),
    (dict(num_cores=-1), ValueError, "got num_cores=-1"),
    (dict(num_cores=4.0), TypeError, "num_cores to be an int, got float"),
    (dict(num_cores=True), TypeError, "num_cores to be an int, got bool"),
    (dict(active_cores=5), ValueError, "active_cores <= 4 cores, got active_cores=5"),
    (dict(active_cores=-1), ValueError, "got active_cores=-1"),
    (dict(active_cores=2.5), TypeError, "active_cores to be an int, got float"),
    (dict(active_cores=torch.ones(3, **INT32)), ValueError, r"active_cores of shape \(2,\).*got \(3,\)"),
    (dict(active_cores=torch.ones(2)), TypeError, "active_cores to be int32, got torch.float32"),
    (
        dict(active_cores=torch.ones(2, **INT32, device="meta")),
        ValueError,
        "active_cores on cpu like q, got meta",
    ),
    (dict(patch_lengths=8), TypeError, r"patch_lengths to be an int32 tensor of shape \(2,\), got int"),
    (
        dict(patch_lengths=torch.ones(2, dtype=torch.int64)),
        TypeError,
        "patch_lengths to be int32, got torch.int64",
    ),
    (dict(patch_rope=torch.ones(8, 8)), TypeError, r"pair of tensors \(cos, sin\), got Tensor"),
    (dict(patch_rope=(torch.ones(7, 8),) * 2), ValueError, r"\(8, 8\) or \(2, 8, 8\), got \(7, 8\)"),
    (dict(patch_rope=(torch.ones(8, 8).bfloat16(),) * 2), TypeError, "float32, or .* float16 .* got torch.bfloat16"),
    (
        dict(patch_rope=(ROPE[0].half(), ROPE[1].half())),
        TypeError,
        "16-bit type, got torch.float16 with q in torch.float32",
    ),
    (dict(patch_rope=(ROPE[0], ROPE[1].to("meta"))), ValueError, "sin on cpu like q, got meta"),
    (dict(scale="2"), TypeError, "scale to be a float or None, got str"),
    (dict(scale=float("nan")), ValueError, "scale to be finite, got nan"),
    (dict(scale=-float("inf")), ValueError, "scale to be finite, got -inf"),
    (dict(scale=10**400), ValueError, "scale to be finite, got inf"),
    (dict(core_self=1), TypeError, "core_self to be a bool, got int"),
    (dict(impl="cuda"), ValueError, "auto, reference, sdpa, triton, got 'cuda'"),
    (dict(dropout_p=0.1), TypeError, "dropout_p"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=[str(i) for i in range(len(BAD_OPTIONS))])
@pytest.mark.parametrize("packed", [False, True])
def test_bad_options(options, error, message, packed):
    options = {"num_cores": 4} | options
    with pytest.raises(error, match=message):
        if packed:
            core_periphery_attention_qkvpacked(torch.stack([x.transpose(1, 2) for x in qkv()], 2), **options)
        else:
            core_periphery_attention(*qkv(), **options)


def test_bad_tensors():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"one shape \(B, H, T, D\), got \(2, 3, 12, 16\), \(2, 3, 11, 16\)"):
        core_periphery_attention(q, k[:, :, 1:], v, 4)
    with pytest.raises(ValueError, match=r"one dtype, got torch.float32, torch.float16, torch.float32"):
        core_periphery_attention(q, k.half(), v, 4)
    with pytest.raises(ValueError, match="one device, got cpu, meta, cpu"):
        core_periphery_attention(q, k.to("meta"), v, 4)
    with pytest.raises(TypeError, match=r"floating dtype, got torch.int64"):
        core_periphery_attention(q.long(), k.long(), v.long(), 4)
    with pytest.raises(TypeError, match="to be tensors, got list"):
        core_periphery_attention(q, k, [1.0], 4)
    with pytest.raises(ValueError, match=r"\(B, H, tokens, D\), got \(3, 12, 16\)"):
        core_periphery_attention(q[0], k[0], v[0], 4)
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, D\), got \(2, 3, 12, 16\)"):
        core_periphery_attention_qkvpacked(q, 4)
    with pytest.raises(ValueError, match=r"k, v \(B, H, keys, D\), got"):
        patch_to_core_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ValueError, match=r"k, v \(B, H, keys, D\), got"):
        core_to_patch_attention(q, k[..., :8], v[..., :8])
    with pytest.raises(ValueError, match="as many outputs as lses, at least one, got 1 and 0"):
        merge_attention_states([q], [])
    with pytest.raises(ValueError, match=r"lses \(B, H, C\), got"):
        merge_attention_states([q], [q])


BAD_FOR_TRITON = [
    (dict(), "expected CUDA tensors, got cpu"),
    (dict(dtype=torch.float64), "expected float16, bfloat16 or float32, got torch.float64"),
    (dict(dim=12), "multiple of 8 up to 128, got 12"),
    (dict(dim=136), "multiple of 8 up to 128, got 136"),
    (dict(tokens=200, num_cores=129), "at most 128 cores, got 129"),
    (dict(strided=True), "contiguous last dimension, got last strides"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_FOR_TRITON, ids=lambda x: str(x)[:30])
def test_forced_triton_says_why_not_and_what_to_do(change, reason, monkeypatch):
    """An explicit impl never falls back, and "auto" computes the same call elsewhere."""
    change = dict(change)
    num_cores, strided = change.pop("num_cores", 4), change.pop("strided", False)
    if change or strided:
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # lets the CPU pass the device check
    else:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = qkv(**change)
    if strided:
        tensors = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in tensors]
    with pytest.raises(ValueError, match=f"cannot take this call: .*{reason}"):
        core_periphery_attention(*tensors, num_cores, impl="triton")
    expected = core_periphery_attention(*tensors, num_cores, impl="reference")
    torch.testing.assert_close(core_periphery_attention(*tensors, num_cores), expected, rtol=1e-4, atol=1e-5)


def test_without_triton_the_reason_is_the_installation(monkeypatch):
    monkeypatch.setattr("veca_kernels.support._TRITON_INSTALLED", False)
    with pytest.raises(ValueError, match="triton is not installed"):
        core_periphery_attention(*qkv(), 4, impl="triton")
