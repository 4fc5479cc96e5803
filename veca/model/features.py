"""What the backbone returns. Named tuples, so that torch.compile, export and DDP see through them.

Shapes: B images, H heads, C active cores, P patches = rows * cols in row-major order, T = C + P, E width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AttentionMaps", "Features", "Grid", "pool", "zero_inactive"]

Grid = tuple[int, int] | tuple[tuple[int, int], ...]  # (rows, cols), or one such pair an image


class Features(NamedTuple):
    """The features of a batch of images, after the final norm.

    Attributes:
        global_token: (B, E), one vector an image; core 0 unless the model's `global_from` says otherwise.
        patches: (B, P, E), the dense features; see `maps`. Of images of different sizes, those of an image
            with fewer than P patches are followed by zeros.
        cores: (B, C, E). Nothing supervises the last block's cores but the first; as features prefer those of
            the block before: `forward_intermediates(images, [-2], return_prefix_tokens=True)`.
        core_xy: (B, C, 2), where the cores were in the last block: (x, y) in (-1, 1), to the right and down.
        grid_size: (rows, cols) of the patches; for a list of images a tuple of such pairs.
        num_cores: C, the budget that was used.
        patch_lengths: int32 (B,), patches of each image of a list; None where all have P.
    """

    global_token: Tensor
    patches: Tensor
    cores: Tensor
    core_xy: Tensor
    grid_size: Grid
    num_cores: int
    patch_lengths: Tensor | None = None

    def maps(self) -> Tensor | list[Tensor]:
        """The patches as maps, (B, E, rows, cols); for a list of images a list of (E, rows, cols)."""
        if self.patch_lengths is None:
            return self.patches.unflatten(1, self.grid_size).permute(0, 3, 1, 2)
        return [
            patches[: rows * cols].unflatten(0, (rows, cols)).permute(2, 0, 1)
            for patches, (rows, cols) in zip(self.patches, self.grid_size, strict=True)
        ]


class AttentionMaps(NamedTuple):
    """Who attends to whom in one block.

    Attributes:
        core_read: (B, H, C, T), what each core reads from cores and patches; rows sum to 1.
        patch_read: (B, H, P, C), what each patch reads from the cores; rows sum to 1, but for `patch_self`,
            where the rest is the weight of the patch itself.
        core_map: (B, C, P), how strongly each core is moved by each patch: the norm of the projected,
            weighted values summed over heads, normalised over the patches.
        core_xy: (B, C, 2), where the cores are in this block.
        grid_size: (rows, cols) of the patches.
    """

    core_read: Tensor
    patch_read: Tensor
    core_map: Tensor
    core_xy: Tensor
    grid_size: tuple[int, int]


def pool(
    cores: Tensor,
    patches: Tensor,
    global_from: str,
    active_cores: Tensor | None = None,
    patch_lengths: Tensor | None = None,
) -> Tensor:
    """One vector an image.

    Args:
        cores: (B, C, E), zeros from `active_cores` on.
        patches: (B, P, E), zeros from `patch_lengths` on.
        global_from: "core0", "core_mean", "patch_mean" or "core0+patch_mean", the sum of the two.
        active_cores: (B,), how many cores of each image count; None counts all.
        patch_lengths: (B,), how many patches of each image count; None counts all.

    Returns:
        (B, E).
    """
    if global_from == "core0":
        return cores[:, 0]
    if global_from == "core_mean":
        return _mean(cores, active_cores)
    patch_mean = _mean(patches, patch_lengths)
    return patch_mean if global_from == "patch_mean" else cores[:, 0] + patch_mean


def zero_inactive(tokens: Tensor, counts: Tensor | None) -> Tensor:
    """Tokens (B, N, E) with zeros from each image's count (B,) on; None keeps all."""
    if counts is None:
        return tokens
    index = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.masked_fill(index[None, :, None] >= counts[:, None, None], 0.0)


def _mean(tokens: Tensor, counts: Tensor | None) -> Tensor:
    mean = tokens.mean(1)  # not the sum, which half precision may not hold
    if counts is None:
        return mean
    return mean * (tokens.shape[1] / counts.clamp(1, tokens.shape[1])).to(mean.dtype)[:, None]
