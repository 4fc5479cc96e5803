"""Input of the first block: the patches of images of one size or of different sizes, and their positions.

Shapes: B images, P patches of the largest image, E embedding dim. Positions: (x, y).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .attention import Tables
from .features import Grid, single
from .padding import PatchEmbed, fit_to_patches
from .rope import patch_coordinates

__all__ = ["Frame", "PatchTokens", "core_read_scale", "embed_patches", "patch_positions"]


class Frame(NamedTuple):
    """Values that are the same in all blocks.

    Attributes:
        num_cores: C, the budget.
        grid_size: (rows, cols) of the patches, or one such pair for each image.
        periods: periods of the rotation, (D/4,).
        patch_rope: (cos, sin), each (P, D/2), or (B, P, D/2) for images of different sizes.
        core_scale: factor of the scores of the core read: a scalar, (B, 1, 1, 1) or None.
        active_cores: budget of each image, int32 (B,), or None.
        patch_lengths: number of patches of each image, int32 (B,), or None where all have P.
    """

    num_cores: int
    grid_size: Grid
    periods: Tensor
    patch_rope: Tables
    core_scale: Tensor | None
    active_cores: Tensor | None
    patch_lengths: Tensor | None


class PatchTokens(NamedTuple):
    """Embedded patches.

    Attributes:
        tokens: patches (B, P, E).
        grid_size: (rows, cols), or one such pair for each image.
        lengths: number of patches of each image, int32 (B,), or None where all have P.
    """

    tokens: Tensor
    grid_size: Grid
    lengths: Tensor | None


def embed_patches(images: Tensor | Sequence[Tensor], patch_embed: PatchEmbed, on_odd: str) -> PatchTokens:
    """Embed a batch of images, or a list of images of different sizes one by one.

    Args:
        images: (B, channels, height, width), or a list of B images (channels, height, width).
        patch_embed: patch embedding whose output has the channels last.
        on_odd: argument of `fit_to_patches`.

    Returns:
        The patches in row-major order. In a list, zeros follow the patches of a smaller image.

    Raises:
        ValueError: an empty list, or an image of a list that does not have three dimensions.
    """
    if not isinstance(images, list | tuple):
        patches = patch_embed(fit_to_patches(images, patch_embed, on_odd))  # (B, rows, cols, E)
        return PatchTokens(patches.flatten(1, 2), tuple(patches.shape[1:3]), None)
    if not images:
        raise ValueError("expected at least one image, got an empty list")
    maps = []
    for image in images:
        if isinstance(image, Tensor) and image.ndim != 3:
            raise ValueError(f"expected each image of a list as (channels, height, width), got {tuple(image.shape)}")
        image = image[None] if isinstance(image, Tensor) else image
        maps.append(patch_embed(fit_to_patches(image, patch_embed, on_odd))[0])  # (rows, cols, E)
    grids = tuple(tuple(x.shape[:2]) for x in maps)
    lengths = torch.tensor([rows * cols for rows, cols in grids], dtype=torch.int32, device=maps[0].device)
    return PatchTokens(pad_sequence([x.flatten(0, 1) for x in maps], batch_first=True), grids, lengths)


def patch_positions(grid_size: Grid, coord_norm: str, device: torch.device) -> Tensor:
    """Centres (x, y) of the patches, as in `rope.patch_coordinates`.

    Args:
        grid_size: (rows, cols), or one such pair for each image.
        coord_norm: "separate", "max" or "min".
        device: device of the result.

    Returns:
        (P, 2), or (B, P, 2) where each image has its own grid, with zeros after the last patch.
    """
    grids = [grid for grid in grid_size if isinstance(grid, tuple)]
    if not grids:
        return patch_coordinates(*single(grid_size), coord_norm, device)
    return pad_sequence([patch_coordinates(*grid, coord_norm, device) for grid in grids], batch_first=True)


def core_read_scale(patches: int | Tensor, reference: int | None, device: torch.device) -> Tensor | None:
    """log P / log N for a reference number N of patches, which keeps the core read as sharp at any size.

    Args:
        patches: P, or a tensor (B,) where images differ.
        reference: N; None means no scale.
        device: device of the result.

    Returns:
        A scalar or (B, 1, 1, 1), fp32, or None.
    """
    if reference is None:
        return None
    if isinstance(patches, Tensor):  # also P under a tracer
        counts = patches.float()[..., None, None, None]  # (B, 1, 1, 1) or (1, 1, 1)
    else:
        counts = torch.full((), patches, device=device, dtype=torch.float32)
    return counts.log() / math.log(reference)
