"""The definition: one dense masked softmax over all T x T pairs, in the dtype of the inputs.

    out_i = sum_j softmax_j(scale <R_i q_i, R_j k_j> over the allowed j) v_j

Slow, quadratic in memory, differentiable to any order, exact in fp64. Every other implementation is tested
against it.
"""

import torch
from torch import Tensor

from .masks import allowed_pairs, masked_logsumexp, masked_softmax, prefix_mask, rotate_pairs
from .options import Options


def core_periphery_attention(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """q, k, v (B, H, T, D) -> (B, H, T, D). See `api.core_periphery_attention`; the options are checked."""
    cores, rope = options.num_cores, options.patch_rope
    if rope is not None:
        q = torch.cat((q[:, :, :cores], rotate_pairs(q[:, :, cores:], *rope)), 2)  # (B, H, T, D)
        k = torch.cat((k[:, :, :cores], rotate_pairs(k[:, :, cores:], *rope)), 2)  # (B, H, T, D)
    mask = allowed_pairs(options, q.shape[2] - cores, q.device)  # (1 or B, T, T)
    scores = (q @ k.transpose(-2, -1)) * options.scale  # (B, H, T, T)
    return masked_softmax(scores, mask[:, None]) @ v  # (B, H, T, D)


def patch_to_core_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The read. Returns the output (B, H, C, D) and the log-sum-exp (B, H, C), fp32 or fp64."""
    keys = k.shape[2]
    mask = prefix_mask(keys if key_lengths is None else key_lengths, keys, q.device)[:, None, None]
    scores = (q @ k.transpose(-2, -1)) * scale  # (B, H, C, N)
    lse = masked_logsumexp(scores.to(torch.promote_types(q.dtype, torch.float32)), mask)
    return masked_softmax(scores, mask) @ v, lse


def core_to_patch_attention(q: Tensor, k: Tensor, v: Tensor, active_cores: int | Tensor, scale: float) -> Tensor:
    """The write. Returns (B, H, N, D)."""
    mask = prefix_mask(active_cores, k.shape[2], q.device)[:, None, None]
    scores = (q @ k.transpose(-2, -1)) * scale  # (B, H, N, C)
    return masked_softmax(scores, mask) @ v
