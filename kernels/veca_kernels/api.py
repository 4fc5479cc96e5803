"""The public functions: they check a call and choose the implementation. Only the merge is computed here.

Shapes: B images, H heads, C cores, P patches, T = C + P tokens, D head dim. The layout is that of torch's
scaled_dot_product_attention, (B, H, tokens, D) with any strides. Results are token-major in memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, overload

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

Op = TypeVar("Op", bound=Callable[..., Any])


def _takes_autocast(function: Op) -> Op:
    """Under autocast, cast all floating tensors but fp64, as torch's own attention does, and run without autocast.

    Autocast would round the products in fp32 that the implementations ask for.
    """

    @functools.wraps(function)
    def run(*given: Any, **options: Any) -> Any:
        device = next((x.device.type for x in (*given, *options.values()) if isinstance(x, Tensor)), "meta")
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(*given, **options)
        dtype = torch.get_autocast_dtype(device)

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x

        with torch.autocast(device, enabled=False):
            return function(*map(cast, given), **{name: cast(x) for name, x in options.items()})

    wrapped: Any = run
    return wrapped


@_takes_autocast
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

    Both halves read the same projected tensors, in parallel (VECA, arXiv 2605.12491, section 3).
    The cost of both together is O(B H C T D).

    Args:
        q, k, v: Projected tokens, (B, H, T, D), of one dtype on one device. The first `num_cores` tokens are the cores.
        num_cores: Number of cores C, 0 <= C <= T.
        active_cores: Number of leading cores that take part, which can change from call to call without a copy. An int
            for the batch, or an int32 tensor (B,) with one number per image, clamped to [0, C] and never read by the
            host. No token attends to inactive cores. Their outputs and gradients are zeros. Default: all.
        patch_lengths: Number of valid patches per image, int32 (B,), clamped to [0, P]. Valid patches come first. No
            token attends to the others. Their outputs and gradients are zeros. Default: all.
        patch_rope: Rotation of q and k of the patches, (cos, sin), each (P, D/2) or (B, P, D/2). Interleaved channel
            pairs are rotated in fp32. The tables are fp32. With 16-bit q they may be fp16, which halves what the
            kernels read for them and rounds an eighth as much as bf16. The caller rotates the cores. The tables get no
            gradient.
        scale: Factor of the scores. Default: D ** -0.5.
        core_self: Whether cores attend to cores. With False they attend to patches only.
        patch_self: Whether a patch also attends to its own key.
        impl: "triton" (fused kernels), "sdpa" (two torch attention calls), "reference" (dense, quadratic,
            differentiable to any order), or "auto": triton on a GPU that supports the call, else sdpa.

    Returns:
        The attended tokens, (B, H, T, D), token-major in memory (B, T, H, D). A token without keys gets zeros.

    Raises:
        ValueError: A shape, device or number is wrong, or an explicit `impl` cannot take the call. It never falls back.
        TypeError: An argument has the wrong type or dtype.
    """
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


@_takes_autocast
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

    Models should call this one. Stacking dq, dk and dv after the three-tensor form would move six patch-sized tensors.

    Args:
        qkv: Projected tokens, (B, T, 3, H, D). The first `num_cores` tokens are the cores.
        num_cores, active_cores, patch_lengths, patch_rope, scale, core_self, patch_self, impl: As in
            `core_periphery_attention`.

    Returns:
        The attended tokens, (B, T, H, D), contiguous.

    Raises:
        ValueError, TypeError: As in `core_periphery_attention`.
    """
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


@overload
def patch_to_core_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    return_lse: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...


@overload
def patch_to_core_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    return_lse: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...


@_takes_autocast
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
        q: Queries of the cores, (B, H, C, D).
        k, v: Keys and values of the patches, (B, H, N, D).
        scale: Factor of the scores. Default: D ** -0.5.
        key_lengths: Number of valid patches per image, int32 (B,), clamped to [0, N]. Valid patches come first.
        return_lse: Whether to return the log-sum-exp of the scaled scores too. It is differentiable, and with it
            `merge_attention_states` joins reads of shards.
        impl: As in `core_periphery_attention`.

    Returns:
        What the cores read, (B, H, C, D). With `return_lse` also the log-sum-exp (B, H, C): natural logarithm, fp32
        (fp64 for fp64 inputs), -inf for a core without keys.

    Raises:
        ValueError, TypeError: As in `core_periphery_attention`.
    """
    check_halves(q, k, v)
    if key_lengths is not None:
        check_counts("key_lengths", key_lengths, q.shape[0], q.device)
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
    return out if lse is None or not return_lse else (out, lse)


@_takes_autocast
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
        q: Queries of the patches, (B, H, N, D).
        k, v: Keys and values of the cores, (B, H, C, D).
        active_cores: Number of leading cores that take part, an int or int32 (B,). Default: all.
        scale: Factor of the scores. Default: D ** -0.5.
        impl: As in `core_periphery_attention`.

    Returns:
        What the patches receive, (B, H, N, D). It is zero where no core is active.

    Raises:
        ValueError, TypeError: As in `core_periphery_attention`.
    """
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
    """Join attention over disjoint sets of keys. The result is exactly the softmax over their union.

        lse = log sum_s exp(lse_s),    out = sum_s exp(lse_s - lse) out_s

    Args:
        outputs: One output (B, H, C, D) for each part.
        lses: One log-sum-exp (B, H, C) for each part, natural logarithm, -inf where the part has no key.

    Returns:
        (output, lse) of the union: zeros and -inf where every part is empty. Plain torch, differentiable.

    Raises:
        TypeError: A part is not floating.
        ValueError: There is no part, or shapes and numbers of outputs and lses differ.
    """
    if len(outputs) != len(lses) or not outputs:
        raise ValueError(f"expected as many outputs as lses, at least one, got {len(outputs)} and {len(lses)}")
    for out, lse in zip(outputs, lses, strict=True):
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"expected outputs (B, H, C, D) of one shape and lses (B, H, C), got {shapes_of(*outputs)} and "
                f"{shapes_of(*lses)}"
            )
        if not (out.is_floating_point() and lse.is_floating_point()):
            raise TypeError(f"expected floating outputs and lses, got {out.dtype} and {lse.dtype}")
    lse_parts = torch.stack(tuple(lses))  # (parts, B, H, C)
    peak = lse_parts.detach().amax(0)  # (B, H, C)
    peak = peak.masked_fill(peak == float("-inf"), 0.0)
    weights = (lse_parts - peak).exp()
    total = weights.sum(0)
    empty = total == 0
    lse = peak + total.masked_fill(empty, 1.0).log()
    out_parts = torch.stack(tuple(outputs)).to(weights.dtype)  # (parts, B, H, C, D)
    merged = (weights[..., None] * out_parts).sum(0) / total.masked_fill(empty, 1.0)[..., None]
    return merged.to(outputs[0].dtype), lse.masked_fill(empty, float("-inf"))


def _choose(impl: str, tensors: tuple[Tensor, ...], num_cores: int) -> str:
    """The implementation that will run. An explicit one is taken or refused, never replaced."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"expected impl to be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl in ("reference", "sdpa") or (impl == "auto" and not tensors[0].is_cuda):
        return "sdpa" if impl == "auto" else impl
    supported, reason = triton_support(tensors, num_cores)
    if impl == "triton" and not supported:
        raise ValueError(f"impl='triton' cannot take this call: {reason}")
    return "triton" if supported else "sdpa"


def _token_major(x: Tensor) -> Tensor:
    """The same (B, H, N, D) values in (B, N, H, D) memory, so the output projection needs no copy."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
