"""What the implementations in plain torch share: scores, which pairs may attend, and the rotation of patches."""

import torch
from torch import Tensor

from .options import Options


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved channel pairs (2k, 2k+1) counter-clockwise, in fp32, with one rounding at the end.

    (a, b) -> (a cos - b sin, a sin + b cos)

    Args:
        x: Tokens, (B, H, P, D), any floating dtype. fp64 is rotated in fp64.
        cos, sin: Tables with one value per pair, (P, D/2) or (B, P, D/2).

    Returns:
        The rotated tokens, in the shape and dtype of x.
    """
    if cos.ndim == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (B, 1, P, D/2)
    return _turn(x, cos, sin)


def rotate_tokens(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_pairs` of token-major x, with the same bits.

    One call for q and k together takes 0.6 of the time of two calls. This was measured with 1,024 tokens on two Zen 1
    cores (2026-11-28).

    Args:
        x: Tokens, (B, N, ..., H, D), any floating dtype.
        cos, sin: Tables with one value per pair, (N, D/2) or (B, N, D/2).

    Returns:
        The rotated tokens, in the shape and dtype of x.
    """
    shape = (*cos.shape[:-1], *(1,) * (x.ndim - 3), cos.shape[-1])  # (1 or B, N, 1.., D/2)
    return _turn(x, cos.view(shape), sin.view(shape))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation, for tables that broadcast against the pairs of x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(dtype), sin.to(dtype)
    pairs = x.to(dtype).unflatten(-1, (-1, 2))  # (..., D/2, 2)
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():  # they take no complex numbers
        a, b = pairs.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (..., D/2, 2)
    else:  # one pass instead of six: 4.4 against 39 ms for 16,448 x 6 x 64 fp32 (two Zen 5 cores, 2026-11-22)
        if pairs.stride(-1) != 1 or pairs.storage_offset() % 2 or any(s % 2 for s in pairs.stride()[:-1]):
            pairs = pairs.contiguous()
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)


def pad_rotation(cos: Tensor, sin: Tensor, num_cores: int) -> tuple[Tensor, Tensor]:
    """Tables for all tokens, (T, D/2) or (B, T, D/2): the identity for the cores, then the tables of the patches."""
    shape = (*cos.shape[:-2], num_cores, cos.shape[-1])
    return torch.cat((cos.new_ones(shape), cos), -2), torch.cat((sin.new_zeros(shape), sin), -2)


def prefix_mask(count: int | Tensor, size: int, device: torch.device) -> Tensor:
    """True for the first `count` of `size` items: (1, size) for an int, (B, size) for one count per image.

    The comparison clamps counts in a tensor to [0, size]. They never reach the host.

    Args:
        count: Number of leading items, an int or a tensor (B,).
        size: Number of items.
        device: Device of the mask.
    """
    index = torch.arange(size, device=device)
    return index[None] < (count[:, None] if isinstance(count, Tensor) else count)


def allowed_pairs(options: Options, num_patches: int, device: torch.device) -> Tensor:
    """Which query may attend to which key, (1 or B, T, T): rows are queries, columns are keys, cores come first."""
    num_cores, lengths = options.num_cores, options.patch_lengths
    active = prefix_mask(options.active_cores, num_cores, device)  # (1 or B, C)
    filled = prefix_mask(num_patches if lengths is None else lengths, num_patches, device)  # (1 or B, P)
    batch = max(active.shape[0], filled.shape[0])
    present = torch.cat((active.expand(batch, -1), filled.expand(batch, -1)), 1)  # (batch, T)

    is_core = torch.arange(num_cores + num_patches, device=device) < num_cores
    core_row, core_column = is_core[:, None], is_core[None, :]
    rule = core_row ^ core_column  # read and write; (T, T)
    if options.core_self:
        rule = rule | (core_row & core_column)
    if options.patch_self:
        rule = rule | torch.diag(~is_core)
    return present[:, :, None] & present[:, None, :] & rule


def attention_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale <q, k> of all pairs, (B, H, queries, keys), in fp32, or in fp64 for fp64.

    Products of 16 bits would overflow in fp16, and in bf16 they would lose what the softmax needs.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (q.to(dtype) @ k.to(dtype).transpose(-2, -1)) * scale


def weighted_values(weights: Tensor, v: Tensor) -> Tensor:
    """weights @ v, (B, H, queries, D), in the dtype of the weights, rounded once to the dtype of v."""
    return (weights @ v.to(weights.dtype)).to(v.dtype)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` is True. A row without any True is zero, and so is its gradient."""
    occupied = mask.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(~occupied, 0.0)
    return scores.softmax(dim=-1).masked_fill(~(mask & occupied), 0.0)


def masked_logsumexp(scores: Tensor, mask: Tensor) -> Tensor:
    """Natural log-sum-exp over the last dimension where `mask` is True, or -inf for a row without any True."""
    occupied = mask.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(~occupied, 0.0)
    return scores.logsumexp(dim=-1).masked_fill(~occupied.squeeze(-1), float("-inf"))
