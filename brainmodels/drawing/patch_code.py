"""Pictures as a small grid of numbers: principal components of their patches, linear both ways."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.moments import Moments

__all__ = ["PatchCode"]

BLOCK = 256


class PatchCode(nn.Module):
    """Principal components of patches, each divided by the root of its standard deviation.

    The division brings the components closer to each other, so that noise of one strength hides the fine ones first.

    Args:
        patch: Side of a patch in pixels.
        channels: Number of components that are kept of its 3 * patch^2 numbers.
    """

    mean: Tensor
    axes: Tensor
    roots: Tensor

    def __init__(self, patch: int, channels: int):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.register_buffer("mean", torch.zeros(3 * patch**2))
        self.register_buffer("axes", torch.zeros(channels, 3 * patch**2))
        self.register_buffer("roots", torch.ones(channels))

    @classmethod
    def fit(cls, images: np.ndarray, patch: int, channels: int) -> "PatchCode":
        """Learn the components from pictures (n, H, W, 3), uint8."""
        code = cls(patch, channels)
        parts = (pixels_of(images[at : at + BLOCK]) for at in range(0, len(images), BLOCK))
        found = Moments.of((code._patches(x).movedim(1, -1).flatten(0, 2).numpy() for x in parts), lambda x: x.T @ x)
        mean, (variances, axes) = torch.from_numpy(found.mean), torch.linalg.eigh(torch.from_numpy(found.variance))
        code.mean.copy_(mean)
        code.axes.copy_(axes.flip(1)[:, :channels].T)
        code.roots.copy_(variances.flip(0)[:channels].clamp(min=1e-12) ** 0.25)
        return code

    def encode(self, images: Tensor) -> Tensor:
        """Codes (n, channels, H / patch, W / patch) of pictures (n, 3, H, W) in [0, 1]."""
        rows = self._patches(images).movedim(1, -1) - self.mean
        return (rows @ self.axes.T / self.roots).movedim(-1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] of codes."""
        rows = (codes.movedim(1, -1).float() * self.roots) @ self.axes + self.mean
        return F.pixel_shuffle(rows.movedim(-1, 1), self.patch).clamp(0, 1)

    def _patches(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.patch)


def pixels_of(images: np.ndarray) -> Tensor:
    """Turn uint8 pictures (n, H, W, 3) into fp32 ones (n, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).float() / 255
