"""What the backbone returns: named tuples, which torch.compile, export and DDP can look into.

Shapes: B images, H heads, C active cores, P patches = rows * cols in row-major order, T = C + P, E width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AttentionMaps", "Features", "Grid", "pool", "single", "zero_inactive"]

Grid = tuple[int, int] | tuple[tuple[int, int], ...]  # (rows, cols), or one such pair for each image


def single(grid: Grid) -> tuple[int, int]:
    """(rows, cols) of images of one size.

    Raises:
        ValueError: each image has its own grid.
    """
    rows, cols = grid
    if isinstance(rows, tuple) or isinstance(cols, tuple):
        raise ValueError(f"expected images of one size, got the grids {grid}")
    return rows, cols


class Features(NamedTuple):
    """The features of a batch of images, after the final norm.

    This is a record and no tensor, because its four tensors have different shapes. Code for one tensor would confuse
    them: `features[0]` is the global token here, and the first image in timm. Such code takes `tokens()`, or a model
    with `global_pool=""`, whose `forward` returns it.

    Attributes:
        global_token: one vector for each image, (B, E). It is core 0 unless the model's `global_from` is another.
        patches: dense features (B, P, E); see `maps`. In a batch of different sizes, zeros follow the patches of an
            image that has fewer than P.
        cores: core tokens (B, C, E). In the last block, training supervises only the first core. As features,
            prefer the cores of the block before: `forward_intermediates(images, [-2], return_prefix_tokens=True)`.
        core_xy: positions of the cores in the last block, (B, C, 2): (x, y) in (-1, 1), to the right and down.
        grid_size: (rows, cols) of the patches; for a list of images a tuple of such pairs.
        num_cores: C, the budget that was used.
        patch_lengths: number of patches of each image of a list, int32 (B,); None where all have P.
    """

    global_token: Tensor
    patches: Tensor
    cores: Tensor
    core_xy: Tensor
    grid_size: Grid
    num_cores: int
    patch_lengths: Tensor | None = None

    def tokens(self) -> Tensor:
        """All tokens (B, C + P, E), the cores first: what timm's `forward_features` returns for a ViT."""
        return torch.cat((self.cores, self.patches), 1)

    def maps(self) -> Tensor | list[Tensor]:
        """The patches as maps, (B, E, rows, cols); for a list of images a list of (E, rows, cols)."""
        if self.patch_lengths is None:
            return self.patches.unflatten(1, single(self.grid_size)).permute(0, 3, 1, 2)  # (B, E, rows, cols)
        grids = [grid for grid in self.grid_size if isinstance(grid, tuple)]
        return [
            patches[: rows * cols].unflatten(0, (rows, cols)).permute(2, 0, 1)  # (E, rows, cols)
            for patches, (rows, cols) in zip(self.patches, grids, strict=True)
        ]


class AttentionMaps(NamedTuple):
    """Attention weights of one block, and how strongly patches move cores.

    Attributes:
        core_read: weights (B, H, C, T) with which each core reads from cores and patches; rows sum to 1.
        patch_read: weights (B, H, P, C) with which each patch receives from the cores. Rows sum to 1. With
            `patch_self` they sum to 1 minus the weight of the patch itself.
        core_map: how strongly each patch moves each core, (B, C, P). It is the norm of the projected, weighted
            values summed over heads, normalised over the patches.
        core_xy: positions of the cores in this block, (B, C, 2).
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
    """One vector for each image.

    Args:
        cores: core tokens (B, C, E), zeros from `active_cores` on.
        patches: patch tokens (B, P, E), zeros from `patch_lengths` on.
        global_from: "core0", "core_mean", "patch_mean", or "core0+patch_mean" for the sum of the two. "" counts
            as "core0".
        active_cores: number of cores of each image that count, (B,); None counts all.
        patch_lengths: number of patches of each image that count, (B,); None counts all.

    Returns:
        (B, E).
    """
    if global_from in ("core0", ""):
        return cores[:, 0]
    if global_from == "core_mean":
        return _mean(cores, active_cores)
    patch_mean = _mean(patches, patch_lengths)
    return patch_mean if global_from == "patch_mean" else cores[:, 0] + patch_mean


def zero_inactive(tokens: Tensor, counts: Tensor | None) -> Tensor:
    """Set tokens (B, N, E) to zero from each image's count (B,) on; None keeps all."""
    if counts is None:
        return tokens
    index = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.masked_fill(index[None, :, None] >= counts[:, None, None], 0.0)


def _mean(tokens: Tensor, counts: Tensor | None) -> Tensor:
    mean = tokens.mean(1)  # (B, E); the mean, because half precision may overflow with the sum
    if counts is None:
        return mean
    return mean * (tokens.shape[1] / counts.clamp(1, tokens.shape[1])).to(mean.dtype)[:, None]
