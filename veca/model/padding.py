"""Padding, cropping or refusing images whose size is not a multiple of the patch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import patch_embed as timm
from torch import Tensor, nn

__all__ = ["PatchEmbed", "fit_to_patches"]


class PatchEmbed(timm.PatchEmbed):
    """timm's patch embedding, with the types of its attributes."""

    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    proj: nn.Conv2d


def fit_to_patches(images: Tensor | Sequence[Tensor], patch_embed: PatchEmbed, on_odd: str) -> Tensor:
    """Check images against the patch embedding and bring their size to a multiple of the patch.

    Args:
        images: floating images (B, channels, height, width), in the dtype of the weights unless under autocast.
        patch_embed: the patch embedding, which gives the number of channels, the patch size and the dtype.
        on_odd: "pad" adds zeros right and bottom up to the next multiple, so every patch holds real pixels. "crop"
            cuts right and bottom. "error" raises.

    Returns:
        (B, channels, rows * patch height, cols * patch width). It is the input itself if the size already fits.

    Raises:
        TypeError: not a floating tensor, or another dtype than the weights.
        ValueError: another shape, or a size that `on_odd` does not allow.
    """
    weight = patch_embed.proj.weight
    channels = weight.shape[1]
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected images as a normalised floating tensor, got {kind}")
    if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
        raise ValueError(f"expected images (B, {channels}, height, width), got {tuple(images.shape)}")
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(f"expected images in {weight.dtype} like the weights, got {images.dtype}")
    height, width = images.shape[2:]
    patch_h, patch_w = patch_embed.patch_size
    if height % patch_h == 0 and width % patch_w == 0:
        return images
    if on_odd == "pad":
        return F.pad(images, (0, -width % patch_w, 0, -height % patch_h))
    if on_odd == "error" or height < patch_h or width < patch_w:
        raise ValueError(
            f"expected height and width in multiples of the patch {patch_h} x {patch_w}, "
            f"got {height} x {width} with on_odd={on_odd!r}"
        )
    return images[:, :, : height // patch_h * patch_h, : width // patch_w * patch_w]
