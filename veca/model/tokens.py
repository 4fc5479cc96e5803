"""What goes into the first block: the patches of images, of one size or of many, and where they are.

Shapes: B images, P patches of the largest of them, E embedding dim. Positions: (x, y).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers import PatchEmbed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .attention import Tables
from .features import Grid
from .padding import fit_to_patches
from .rope import patch_coordinates

__all__ = ["Frame", "PatchTokens", "core_read_scale", "embed_patches", "patch_positions"]


class Frame(NamedTuple):
    """What stays the same from block to block.

    Attributes:
        num_cores: C, the budget.
        grid_size: (rows, cols) of the patches, or one such pair an image.
        periods: (D/4,), of the rotation.
        patch_rope: (cos, sin), each (P, D/2), or (B, P, D/2) for images of different sizes.
        core_scale: of the core read; a scalar, (B, 1, 1, 1) or None.
        active_cores: int32 (B,), budgets of the images, or None.
        patch_lengths: int32 (B,), patches of each image, or None where all have P.
    """

    num_cores: int
    grid_size: Grid
    periods: Tensor
    patch_rope: Tables
    core_scale: Tensor | None
    active_cores: Tensor | None
    patch_lengths: Tensor | None


class PatchTokens(NamedTuple):
    """Embedded patches (B, P, E), their grid or grids, and how many each image has (None: P)."""

    tokens: Tensor
    grid_size: Grid
    lengths: Tensor | None


def embed_patches(images: Tensor | Sequence[Tensor], patch_embed: PatchEmbed, on_odd: str) -> PatchTokens:
    """Patches of a batch of images, or of a list of images of different sizes, each embedded on its own.

    Args:
        images: (B, channels, height, width), or a list of B images (channels, height, width).
        patch_embed: with channels last.
        on_odd: of `fit_to_patches`.

    Returns:
        The patches in row-major order; those of a list are packed first and followed by zeros.
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
        maps.append(patch_embed(fit_to_patches(image, patch_embed, on_odd))[0])
    grids = tuple(tuple(x.shape[:2]) for x in maps)
    lengths = torch.tensor([rows * cols for rows, cols in grids], dtype=torch.int32, device=maps[0].device)
    return PatchTokens(pad_sequence([x.flatten(0, 1) for x in maps], batch_first=True), grids, lengths)


def patch_positions(grid_size: Grid, coord_norm: str, device: torch.device) -> Tensor:
    """Centres of the patches, (P, 2), or (B, P, 2) where each image has its own grid; zeros after the last."""
    if not isinstance(grid_size[0], tuple):
        return patch_coordinates(*grid_size, coord_norm, device)
    return pad_sequence([patch_coordinates(*grid, coord_norm, device) for grid in grid_size], batch_first=True)


def core_read_scale(patches: int | Tensor, reference: int | None, device: torch.device) -> Tensor | None:
    """log P / log N for a reference N of patches, which keeps the core read as sharp at any size.

    Args:
        patches: P, or (B,) where images differ.
        reference: N; None is off.
        device: where the result lives.

    Returns:
        A scalar or (B, 1, 1, 1), fp32, or None.
    """
    if reference is None:
        return None
    if isinstance(patches, Tensor):
        counts = patches.float()[:, None, None, None]
    else:
        counts = torch.full((), patches, device=device, dtype=torch.float32)
    return counts.log() / math.log(reference)
