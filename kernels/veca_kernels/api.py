"""The public functions: what is allowed, and who computes it. Nothing is computed here but the merge.

Shapes: B images, H heads, C cores, P patches, T = C + P tokens, D head dim. One layout for ever, that of torch's
scaled_dot_product_attention: (B, H, tokens, D), any strides; results are token-major in memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference, registration, sdpa
from .checks import (
    check_active,
    check_counts,
    check_halves,
    check_options,
    check_qkv,
    check_scale,
    filled_in,
    recall,
    shapes_of,
)
from .support import triton_support

__all__ = [
    "core_periphery_attention",
    "core_periphery_attention_qkvpacked",
    "core_to_patch_attention",
    "merge_attention_states",
    "patch_to_core_attention",
]

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")


def core_periphery_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_cores: int,
    *,
    active_cores: int | Tensor | None = None,
    patch_lengths: Tensor | None = None,
    patch_rope: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    core_self: bool = True,
    patch_self: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Attention in which cores attend to every token and patches attend to the cores only.

        core i:   out_i = sum_j softmax_j(scale <q_i, k_j>) v_j    over cores and patches
        patch i:  out_i = sum_j softmax_j(scale <q_i, k_j>) v_j    over cores

    Both halves read the same projected tensors, in parallel (VECA, arXiv 2605.12491, section 3). Cost O(B H C T D).

    Args:
        q, k, v: (B, H, T, D), the first `num_cores` tokens are the cores; one dtype and one device.
        num_cores: C, 0 <= C <= T.
        active_cores: elastic truncation at run time, without a copy: only the first cores of the C take part. An int
            for the batch, or an int32 tensor (B,) with one budget per image (clamped to [0, C], never read by the
            host). Inactive cores are attended by nobody; their outputs and all their gradients are zeros.
        patch_lengths: int32 tensor (B,), valid patches per image, packed first (clamped to [0, P]). Padded patches
            are attended by nobody; their outputs and gradients are zeros.
        patch_rope: (cos, sin), each (P, D/2) or (B, P, D/2): rotates interleaved channel pairs of the patches' q and
            k in fp32. The tables are fp32. With 16-bit q they may be fp16, which halves what the kernels read for
            them and rounds an eighth as much as bf16. Cores are rotated by the caller. No gradient flows to them.
        scale: multiplies the scores; None means D ** -0.5.
        core_self: cores attend to cores too; False leaves them the patches only.
        patch_self: a patch also attends to its own key.
        impl: "triton" (fused kernels), "sdpa" (two torch attention calls), "reference" (dense, quadratic,
            differentiable to any order), or "auto": triton on a GPU that supports the call, else sdpa.

    Returns:
        (B, H, T, D), memory token-major (B, T, H, D). A token that attends to nothing gets zeros.

    Raises:
        ValueError, TypeError: naming what was expected and what came. An explicit `impl` never falls back.
    """
    q, k, v = _autocast(q, k, v)
    given = (num_cores, active_cores, patch_lengths, patch_rope, scale, core_self, patch_self)
    slot = recall(impl, (q, k, v), given)
    if slot is not None and slot.scale is not None:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D)
        return registration.core_periphery_attention(q, k, v, filled_in(given, slot.scale)).transpose(1, 2)
    check_qkv(q, k, v)
    if not q.shape == k.shape == v.shape:
        raise ValueError(f"expected q, k, v of one shape (B, H, T, D), got {shapes_of(q, k, v)}")
    options = check_options(given, q, batch=q.shape[0], tokens=q.shape[2])
    chosen = _choose(impl, (q, k, v), num_cores)
    if chosen == "triton":
        if slot is not None:
            slot.scale = options.scale
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D)
        return registration.core_periphery_attention(q, k, v, options).transpose(1, 2)
    module = reference if chosen == "reference" else sdpa
    return _token_major(module.core_periphery_attention(q, k, v, options))


def core_periphery_attention_qkvpacked(
    qkv: Tensor,
    num_cores: int,
    *,
    active_cores: int | Tensor | None = None,
    patch_lengths: Tensor | None = None,
    patch_rope: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    core_self: bool = True,
    patch_self: bool = False,
    impl: str = "auto",
) -> Tensor:
    """`core_periphery_attention` for the output of one fused projection; its gradient is written into one buffer.

    What models should call: stacking dq, dk and dv afterwards would move six patch-sized tensors.

    Args:
        qkv: (B, T, 3, H, D), the first `num_cores` tokens are the cores.
        num_cores, active_cores, patch_lengths, patch_rope, scale, core_self, patch_self, impl: as in
            `core_periphery_attention`.

    Returns:
        (B, T, H, D), contiguous.
    """
    (qkv,) = _autocast(qkv)
    given = (num_cores, active_cores, patch_lengths, patch_rope, scale, core_self, patch_self)
    slot = recall(impl, (qkv,), given)
    if slot is not None and slot.scale is not None:
        return registration.core_periphery_attention(qkv, None, None, filled_in(given, slot.scale))
    if not isinstance(qkv, Tensor):
        raise TypeError(f"expected qkv to be a tensor, got {type(qkv).__name__}")
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"expected qkv of shape (B, T, 3, H, D), got {tuple(qkv.shape)}")
    check_qkv(qkv)
    options = check_options(given, qkv, batch=qkv.shape[0], tokens=qkv.shape[1])
    chosen = _choose(impl, (qkv,), num_cores)
    if chosen == "triton":
        if slot is not None:
            slot.scale = options.scale
        return registration.core_periphery_attention(qkv, None, None, options)
    if chosen == "sdpa":
        return sdpa.core_periphery_attention_qkvpacked(qkv, options).transpose(1, 2).contiguous()
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # (B, H, T, D)
    return reference.core_periphery_attention(q, k, v, options).transpose(1, 2).contiguous()


def patch_to_core_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The read: few cores attend to many patches. On a GPU the patches are split over the multiprocessors.

    Args:
        q: cores, (B, H, C, D).
        k, v: patches, (B, H, N, D).
        scale: multiplies the scores; None means D ** -0.5.
        key_lengths: int32 tensor (B,), valid patches per image, packed first (clamped to [0, N]).
        return_lse: also return the log-sum-exp of the scaled scores: natural logarithm, fp32 (fp64 for fp64 inputs),
            -inf for a core without keys. Differentiable; with `merge_attention_states` it joins reads of shards.
        impl: as in `core_periphery_attention`.

    Returns:
        (B, H, C, D), and with `return_lse` also (B, H, C).
    """
    q, k, v = _autocast(q, k, v)
    check_halves(q, k, v)
    key_lengths = check_counts("key_lengths", key_lengths, q.shape[0], q.device)
    scale = check_scale(scale, q.shape[-1])
    chosen = _choose(impl, (q, k, v), q.shape[2])
    if chosen == "triton":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = registration.read(q, k, v, key_lengths, scale)
        out = out.transpose(1, 2)
    elif chosen == "reference":
        out, lse = reference.patch_to_core_attention(q, k, v, scale, key_lengths)
        out = _token_major(out)
    else:
        out, lse = sdpa.patch_to_core_attention(q, k, v, scale, key_lengths, return_lse)
        out = _token_major(out)
    return (out, lse) if return_lse else out


def core_to_patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    active_cores: int | Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """The write: many patches attend to few cores, whose keys and values stay on the chip.

    Args:
        q: patches, (B, H, N, D).
        k, v: cores, (B, H, C, D).
        active_cores: int, or int32 tensor (B,): the leading cores that take part.
        scale: multiplies the scores; None means D ** -0.5.
        impl: as in `core_periphery_attention`.

    Returns:
        (B, H, N, D); zeros where no core is active.
    """
    q, k, v = _autocast(q, k, v)
    check_halves(q, k, v)
    active_cores = check_active(active_cores, k.shape[2], q.shape[0], q.device)
    scale = check_scale(scale, q.shape[-1])
    chosen = _choose(impl, (q, k, v), k.shape[2])
    if chosen == "triton":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return registration.write(q, k, v, active_cores, scale).transpose(1, 2)
    module = reference if chosen == "reference" else sdpa
    return _token_major(module.core_to_patch_attention(q, k, v, active_cores, scale))


def merge_attention_states(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join attention over disjoint sets of keys: softmax over the union, exactly.

        lse = log sum_s exp(lse_s),    out = sum_s exp(lse_s - lse) out_s

    Args:
        outputs: one (B, H, C, D) tensor a part.
        lses: one (B, H, C) tensor a part, natural logarithm, -inf where the part held no key.

    Returns:
        (output, lse) of the union; zeros and -inf where every part is empty. Plain torch, differentiable.
    """
    if len(outputs) != len(lses) or not outputs:
        raise ValueError(f"expected as many outputs as lses, at least one, got {len(outputs)} and {len(lses)}")
    for out, lse in zip(outputs, lses, strict=True):
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"expected outputs (B, H, C, D) of one shape and lses (B, H, C), got {shapes_of(*outputs)} and "
                f"{shapes_of(*lses)}"
            )
    lse_parts = torch.stack(tuple(lses))  # (parts, B, H, C)
    peak = lse_parts.detach().amax(0)
    peak = peak.masked_fill(peak == float("-inf"), 0.0)
    weights = (lse_parts - peak).exp()
    total = weights.sum(0)
    empty = total == 0
    lse = peak + total.masked_fill(empty, 1.0).log()
    out_parts = torch.stack(tuple(outputs)).to(weights.dtype)
    merged = (weights[..., None] * out_parts).sum(0) / total.masked_fill(empty, 1.0)[..., None]
    return merged.to(outputs[0].dtype), lse.masked_fill(empty, float("-inf"))


def _choose(impl: str, tensors: tuple[Tensor, ...], num_cores: int) -> str:
    """The implementation that will run; an explicit one is taken or refused, never replaced."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"expected impl to be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl in ("reference", "sdpa") or (impl == "auto" and not tensors[0].is_cuda):
        return "sdpa" if impl == "auto" else impl
    supported, reason = triton_support(tensors, num_cores)
    if impl == "triton" and not supported:
        raise ValueError(f"impl='triton' cannot take this call: {reason}")
    return "triton" if supported else "sdpa"


def _autocast(*tensors: Tensor) -> Sequence[Tensor]:
    """Cast as torch's own attention does under autocast: all floating tensors but fp64."""
    first = tensors[0]
    device = first.device.type if isinstance(first, Tensor) else "meta"
    if device == "meta" or not torch.is_autocast_enabled(device) or not all(isinstance(x, Tensor) for x in tensors):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _token_major(x: Tensor) -> Tensor:
    """The same (B, H, N, D) values in (B, N, H, D) memory, so that the output projection needs no copy."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
