"""The definition: one dense masked softmax over all T x T pairs, in fp32, or in fp64 for fp64.

    out_i = sum_j softmax_j(scale <R_i q_i, R_j k_j> over the allowed j) v_j

It is slow, quadratic in memory, differentiable to any order and exact in fp64. Every other implementation is tested
against it. With 16-bit inputs, the rotation and the output are each rounded once to their dtype.
"""

import torch
from torch import Tensor

from .masks import (
    allowed_pairs,
    attention_scores,
    masked_logsumexp,
    masked_softmax,
    prefix_mask,
    rotate_pairs,
    weighted_values,
)
from .options import Options


def core_periphery_attention(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """`api.core_periphery_attention` with checked options. q, k, v and the result are (B, H, T, D)."""
    cores, rope = options.num_cores, options.patch_rope
    if rope is not None:
        q = torch.cat((q[:, :, :cores], rotate_pairs(q[:, :, cores:], *rope)), 2)  # (B, H, T, D)
        k = torch.cat((k[:, :, :cores], rotate_pairs(k[:, :, cores:], *rope)), 2)  # (B, H, T, D)
    mask = allowed_pairs(options, q.shape[2] - cores, q.device)  # (1 or B, T, T)
    scores = attention_scores(q, k, options.scale)  # (B, H, T, T)
    return weighted_values(masked_softmax(scores, mask[:, None]), v)  # (B, H, T, D)


def patch_to_core_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The read. q and the output are (B, H, C, D), k and v (B, H, N, D). The log-sum-exp (B, H, C) is fp32 or fp64."""
    keys = k.shape[2]
    mask = prefix_mask(keys if key_lengths is None else key_lengths, keys, q.device)[:, None, None]  # (1 or B, 1, 1, N)
    scores = attention_scores(q, k, scale)  # (B, H, C, N)
    lse = masked_logsumexp(scores, mask)  # (B, H, C)
    return weighted_values(masked_softmax(scores, mask), v), lse


def core_to_patch_attention(q: Tensor, k: Tensor, v: Tensor, active_cores: int | Tensor, scale: float) -> Tensor:
    """The write. q and the output are (B, H, N, D), k and v (B, H, C, D)."""
    mask = prefix_mask(active_cores, k.shape[2], q.device)[:, None, None]  # (1 or B, 1, 1, C)
    scores = attention_scores(q, k, scale)  # (B, H, N, C)
    return weighted_values(masked_softmax(scores, mask), v)  # (B, H, N, D)
