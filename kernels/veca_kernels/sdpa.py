"""The op as two calls of torch's scaled_dot_product_attention: the CPU path, the fallback and a strong baseline.

Its cost is linear in the number of patches, like that of the fused kernels. It moves more data: one concatenation, a
rotation pass, stacked gradients. On a GPU the write is folded, which means that pieces of the patches move into the
batch. Every stock attention backward is parallel over keys, and C keys are a single tile.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import (
    attention_scores,
    masked_logsumexp,
    masked_softmax,
    pad_rotation,
    prefix_mask,
    rotate_pairs,
    rotate_tokens,
    weighted_values,
)
from .options import Options

_MIN_PIECE = 256  # patches in a piece of the fold, two query tiles of a stock kernel
_is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage]  # documented, but not in its __all__
_CPU_HAS_AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def core_periphery_attention(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """`api.core_periphery_attention` with checked options. q, k, v and the result are (B, H, T, D)."""
    num_cores, active_cores, patch_lengths, patch_rope, scale, core_self, patch_self = options
    num_patches = q.shape[2] - num_cores
    sizes = (num_cores, num_patches)
    if patch_rope is not None:
        rope = pad_rotation(*patch_rope, num_cores)  # (T, D/2) or (B, T, D/2)
        q, k = rotate_pairs(q, *rope), rotate_pairs(k, *rope)
    # (B, H, C, D) and (B, H, P, D)
    (q_core, q_patch), (k_core, k_patch), (v_core, v_patch) = (x.split(sizes, dim=2) for x in (q, k, v))

    truncated = isinstance(active_cores, Tensor) or active_cores != num_cores
    active = prefix_mask(active_cores, num_cores, q.device) if truncated else None  # (1 or B, C)
    filled = None if patch_lengths is None else prefix_mask(patch_lengths, num_patches, q.device)  # (B, P)

    if core_self:
        out_core = _attend(q_core, k, v, _join_masks(active, filled, sizes, q.device), scale)
    else:
        out_core = _attend(q_core, k_patch, v_patch, filled, scale)
    if patch_self:
        out_patch = _write_with_own_key(q_patch, k_core, v_core, k_patch, v_patch, active, scale)
    else:
        out_patch = _write(q_patch, k_core, v_core, active_cores, scale)

    if active is not None:
        out_core = out_core.masked_fill(~active[:, None, :, None], 0.0)
    if filled is not None:
        out_patch = out_patch.masked_fill(~filled[:, None, :, None], 0.0)
    return torch.cat((out_core.transpose(1, 2), out_patch.transpose(1, 2)), 1).transpose(1, 2)  # (B, H, T, D)


def core_periphery_attention_qkvpacked(qkv: Tensor, options: Options) -> Tensor:
    """`core_periphery_attention` of qkv (B, T, 3, H, D), with the same bits: one pass rotates q and k."""
    if options.patch_rope is None or torch.compiler.is_compiling():
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # (B, H, T, D)
        return core_periphery_attention(q, k, v, options)
    qk, v = qkv.split((2, 1), dim=2)  # no slices, because the gradient of each would be a buffer as large as qkv
    qk = rotate_tokens(qk, *pad_rotation(*options.patch_rope, options.num_cores))  # (B, T, 2, H, D)
    q, k, v = (x.transpose(1, 2) for x in (*qk.unbind(2), v.squeeze(2)))  # (B, H, T, D)
    return core_periphery_attention(q, k, v, options._replace(patch_rope=None))


def patch_to_core_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, key_lengths: Tensor | None, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """The read. q and the output are (B, H, C, D), k and v (B, H, N, D), the log-sum-exp (B, H, C).

    SDPA returns no log-sum-exp. With `return_lse` the scores (B, H, C, N) are computed one operator at a time. Without
    gradients on a CPU, the operator below SDPA returns both, for 16-bit inputs in fp32.
    """
    keys = k.shape[2]
    mask = None if key_lengths is None else prefix_mask(key_lengths, keys, q.device)
    if not return_lse:
        return _attend(q, k, v, mask, scale), None
    if mask is None and _takes_cpu_flash(q, k, v):
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*wide, scale=scale)
        return out.to(v.dtype), lse
    scores = attention_scores(q, k, scale)  # (B, H, C, N)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    peak = scores.detach().amax(-1, keepdim=True) if keys else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    weights = (scores - peak.masked_fill(peak == -torch.inf, 0.0)).exp_()
    total = weights.sum(-1, keepdim=True)
    total = total.masked_fill(total == 0, 1.0)
    lse = (peak + total.log()).squeeze(-1)  # -inf for a core without keys
    return weighted_values(weights / total, v), lse


def _takes_cpu_flash(*qkv: Tensor) -> bool:
    """Whether the operator below SDPA takes the call: on a CPU, without gradients, a compiler or a transform.

    The operator checks nothing. It needs tokens, and numbers of a head side by side in memory.
    """
    if qkv[0].device.type != "cpu" or torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or _is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return all(x.numel() > 0 and x.stride(-1) == 1 for x in qkv)


def core_to_patch_attention(q: Tensor, k: Tensor, v: Tensor, active_cores: int | Tensor, scale: float) -> Tensor:
    """The write. q and the output are (B, H, N, D), k and v (B, H, C, D)."""
    return _write(q, k, v, active_cores, scale)


def _write(q: Tensor, k: Tensor, v: Tensor, active_cores: int | Tensor, scale: float) -> Tensor:
    """Patches attend to the active cores. One count takes a slice, one count per image a mask."""
    if isinstance(active_cores, Tensor):
        return _attend(q, k, v, prefix_mask(active_cores, k.shape[2], q.device), scale)
    k, v = k[:, :, :active_cores], v[:, :, :active_cores]
    if q.is_cuda and not torch.compiler.is_compiling():
        num_sms = torch.cuda.get_device_properties(q.device).multi_processor_count
        pieces = fold_pieces(q.shape[0], q.shape[1], q.shape[2], k.shape[2], num_sms)
        if pieces > 1:
            return folded_attention(q, k, v, scale, pieces)
    return _attend(q, k, v, None, scale)


def _write_with_own_key(
    q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, active: Tensor | None, scale: float
) -> Tensor:
    """Patches attend to the cores and to their own key. The two partial softmaxes are merged in closed form."""
    if active is None:
        active = prefix_mask(k.shape[2], k.shape[2], q.device)
    mask = active[:, None, None]  # (1 or B, 1, 1, C)
    scores = attention_scores(q, k, scale)  # (B, H, P, C)
    lse = masked_logsumexp(scores, mask)  # (B, H, P)
    own = (q.to(lse.dtype) * k_own.to(lse.dtype)).sum(-1) * scale  # (B, H, P)
    weight = torch.sigmoid(own - lse)[..., None]  # (B, H, P, 1); 1 where no core is active
    out = (1 - weight) * (masked_softmax(scores, mask) @ v.to(lse.dtype)) + weight * v_own.to(lse.dtype)
    return out.to(v.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float) -> Tensor:
    """Attention with an optional key mask (1 or B, keys). Queries without a key give zeros."""
    if k.shape[2] == 0:
        return weighted_values(attention_scores(q, k, scale).softmax(-1), v)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not _CPU_HAS_AMX:
        # Such CPUs have no fast products in bf16. One thread of an AMD EPYC with AVX2, both halves of 4,096 patches and
        # 64 cores, torch 2.15, 2026-11-29: in fp32 1.5 times SDPA's time in bf16, with the backward pass 0.45 times.
        return _attend(q.float(), k.float(), v.float(), key_mask, scale).to(v.dtype)
    mask = None if key_mask is None else key_mask[:, None, None]  # (1 or B, 1, 1, keys)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _join_masks(
    active: Tensor | None, filled: Tensor | None, sizes: tuple[int, int], device: torch.device
) -> Tensor | None:
    """The key mask of a core that reads cores and patches, (1 or B, T), or None where every key is present."""
    if active is None and filled is None:
        return None
    active = prefix_mask(sizes[0], sizes[0], device) if active is None else active
    filled = prefix_mask(sizes[1], sizes[1], device) if filled is None else filled
    batch = max(active.shape[0], filled.shape[0])
    return torch.cat((active.expand(batch, -1), filled.expand(batch, -1)), 1)


def fold_pieces(batch: int, heads: int, patches: int, cores: int, num_sms: int) -> int:
    """How many pieces the patches should be cut into, so that a key-parallel backward fills the device.

    Pieces have at least 256 patches, and their number divides `patches`. It is the smallest number that yields two
    thread blocks per multiprocessor, else the largest one. It is 1 where the device is full anyway, and for batches
    above 4 images, where folding would copy q.
    """
    blocks = batch * heads * math.ceil(cores / 128)
    if batch > 4 or blocks == 0 or blocks >= 2 * num_sms:
        return 1
    wanted = math.ceil(2 * num_sms / blocks)
    divisors = [s for s in range(1, patches // _MIN_PIECE + 1) if patches % s == 0]
    enough = [s for s in divisors if s >= wanted]
    return enough[0] if enough else max(divisors, default=1)


def folded_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, pieces: int) -> Tensor:
    """SDPA with the patches cut into `pieces` that join the batch. k and v are expanded with stride 0.

    Only for one image is the folded patch slice of a joint tensor a view. So images are taken one by one.
    """

    def one_image(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.unflatten(1, (pieces, -1)).transpose(0, 1)  # (pieces, H, P / pieces, D)
        k, v = k.expand(pieces, -1, -1, -1), v.expand(pieces, -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1).flatten(1, 2)

    if q.shape[0] == 1:
        return one_image(q[0], k[0], v[0])[None]
    return torch.stack([one_image(*image) for image in zip(q, k, v, strict=True)])  # (B, H, P, D)
