"""What the backbone returns. Named tuples, so that torch.compile, export and DDP see through them.

Shapes: B images, H heads, C active cores, P patches = rows * cols in row-major order, T = C + P, E width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AttentionMaps", "Features", "pool", "zero_inactive"]


class Features(NamedTuple):
    """The features of a batch of images, after the final norm.

    Attributes:
        global_token: (B, E), one vector an image; core 0 unless the model's `global_from` says otherwise.
        patches: (B, P, E), the dense features; as a map, `patches.unflatten(1, grid_size)`.
        cores: (B, C, E). Nothing supervises the last block's cores but the first; as features prefer those of
            the block before: `forward_intermediates(images, [-2], return_prefix_tokens=True)`.
        core_xy: (B, C, 2), where the cores were in the last block: (x, y) in (-1, 1), to the right and down.
        grid_size: (rows, cols) of the patches.
        num_cores: C, the budget that was used.
    """

    global_token: Tensor
    patches: Tensor
    cores: Tensor
    core_xy: Tensor
    grid_size: tuple[int, int]
    num_cores: int


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


def pool(cores: Tensor, patches: Tensor, global_from: str, active_cores: Tensor | None = None) -> Tensor:
    """One vector an image.

    Args:
        cores: (B, C, E), zeros from `active_cores` on.
        patches: (B, P, E).
        global_from: "core0", "core_mean", "patch_mean" or "core0+patch_mean", the sum of the two.
        active_cores: (B,), how many cores of each image count; None counts all.

    Returns:
        (B, E).
    """
    if global_from == "core0":
        return cores[:, 0]
    if global_from == "core_mean":
        count = cores.shape[1] if active_cores is None else active_cores.clamp(1, cores.shape[1])[:, None]
        return cores.sum(1) / count
    patch_mean = patches.mean(1)
    return patch_mean if global_from == "patch_mean" else cores[:, 0] + patch_mean


def zero_inactive(cores: Tensor, active_cores: Tensor | None) -> Tensor:
    """Cores (B, C, E) with zeros from each image's budget on."""
    if active_cores is None:
        return cores
    index = torch.arange(cores.shape[1], device=cores.device)
    return cores.masked_fill(index[None, :, None] >= active_cores[:, None, None], 0.0)
