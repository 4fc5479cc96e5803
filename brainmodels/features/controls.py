"""Extractors without trained weights, as controls: the features of a model should beat these.

| name | features of a picture | pooled |
|---|---|---|
| `pixels` | colours of a coarse raster | all of them |
| `grid` | edges and colour opponents on a 6 x 6 grid, see `grid_features` | all 108 |
| `gabor` | energy of Gabor filters, as of complex cells in V1 | all of it |
| `random_conv` | three layers of random convolutions | mean over places |

    extractor("gabor").encode(images)  # FeatureOutput(tokens (B, 64, 24), pooled (B, 1536))

A model's features say something about the brain only if they predict it better than these controls do.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.grid import GRID, GRID_PIXELS, grid_features
from ..errors import BrainDataError, need
from .base import Extractor

__all__ = ["Gabor", "Grid", "Pixels", "RandomConv"]

BRIGHTNESS = (0.2125, 0.7154, 0.0721)  # weights of red, green and blue: ITU-R BT.709, as in scikit-image


class Pixels(Extractor):
    """Colours in [0, 1]: tokens (B, size * size, 3), pooled (B, size * size * 3).

    Args:
        size: Side of the raster in pixels.
    """

    def __init__(self, size: int = 16):
        super().__init__("pixels", size)

    def settings(self) -> dict[str, Any]:
        return {}

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = images.flatten(2).transpose(1, 2)
        return tokens, tokens.flatten(1)


class Grid(Extractor):
    """Features of `grid_features`: pooled (B, 108) as that function gives them, tokens (B, 36, 3), one row a cell."""

    libraries = ("numpy", "pillow")

    def __init__(self):
        super().__init__("grid", GRID_PIXELS)

    def settings(self) -> dict[str, Any]:
        return {"grid": GRID}

    def _prepare(self, images: Tensor) -> Tensor:
        return images  # `grid_features` resizes 8-bit images itself

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        pooled = torch.from_numpy(grid_features(pixels).astype(np.float32)).to(images.device)
        return pooled.unflatten(1, (3, GRID * GRID)).transpose(1, 2), pooled


class Gabor(Extractor):
    """Energy of Gabor filters on a grid, a model of complex cells in primary visual cortex.

        energy = |brightness * filter|,  tokens = mean of the energy over each cell of the grid

    Here `*` is a convolution over the picture, which is continued by reflection. A filter is scikit-image's complex
    `gabor_kernel`, with one octave of bandwidth, cut at three deviations. Its mean is subtracted, so uniform areas give
    0. A grating of amplitude 1 at the filter's wavelength and orientation gives about 1/2, at every scale.

    Tokens are (B, grid * grid, scales * orientations), scale by scale. Pooled features are (B, grid * grid * scales *
    orientations).

    Args:
        scales: Number of wavelengths: 4, 8, 16, ... pixels, in a picture of `size` pixels.
        orientations: Number of angles, equally spaced over 180 degrees. The first gratings vary from left to right.
        grid: Number of cells a side.
        size: Side of the picture in pixels, a multiple of `grid`.

    Raises:
        BrainDataError: A filter of the largest scale is wider than the reflected picture, or `size` is no multiple of
            `grid`.
        ImportError: scikit-image is not installed.
    """

    libraries = ("scikit-image",)

    brightness: Tensor

    def __init__(self, scales: int = 3, orientations: int = 8, grid: int = 8, size: int = 64):
        super().__init__("gabor", size)
        try:
            from skimage.filters import gabor_kernel
        except ImportError as error:
            raise need("scikit-image", "the extractor 'gabor'") from error
        if size % grid:
            raise BrainDataError(f"expected a size that is a multiple of grid={grid}, got {size}")
        self.scales, self.orientations, self.grid = scales, orientations, grid
        self.register_buffer("brightness", torch.tensor(BRIGHTNESS)[:, None, None], persistent=False)
        self._radii = []
        for scale in range(scales):
            angles: list[Any] = [math.pi * k / orientations for k in range(orientations)]  # scikit-image says int
            kernels = [gabor_kernel(0.25 / 2**scale, angle) for angle in angles]
            radius = max(max(kernel.shape) // 2 for kernel in kernels)
            if radius >= size:
                raise BrainDataError(
                    f"expected filters within {size} pixels, got a radius of {radius} at scale {scale}; "
                    "choose fewer scales or a larger size"
                )
            square = np.zeros((orientations, 2 * radius + 1, 2 * radius + 1), np.complex128)
            for into, kernel in zip(square, kernels, strict=True):
                rows, cols = (radius - side // 2 for side in kernel.shape)
                into[rows : rows + kernel.shape[0], cols : cols + kernel.shape[1]] = kernel - kernel.mean()
            spectrum = np.fft.fft2(square, (size + 2 * radius,) * 2).astype(np.complex64)
            self._radii.append(radius)
            self.register_buffer(f"spectrum{scale}", torch.from_numpy(spectrum), persistent=False)

    def settings(self) -> dict[str, Any]:
        return {"scales": self.scales, "orientations": self.orientations, "grid": self.grid}

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        brightness = (images * self.brightness).sum(1, keepdim=True)  # (B, 1, size, size)
        cell = self.input_size // self.grid
        maps = []
        for scale, radius in enumerate(self._radii):
            padded = F.pad(brightness, (radius,) * 4, mode="reflect")
            filtered = torch.fft.ifft2(torch.fft.fft2(padded) * getattr(self, f"spectrum{scale}"))
            maps.append(F.avg_pool2d(filtered[..., 2 * radius :, 2 * radius :].abs(), cell))
        tokens = torch.cat(maps, 1).flatten(2).transpose(1, 2)
        return tokens, tokens.flatten(1)


class RandomConv(Extractor):
    """Three random convolutions of stride 2 with ReLU: tokens (B, (size / 8)**2, 128), pooled their mean (B, 128).

    Args:
        seed: Seed of the weights. They are normal with variance 2 / inputs (He et al. 2015), without bias.
        size: Side of the picture in pixels, a multiple of 8.

    Raises:
        BrainDataError: `size` is no multiple of 8.
    """

    CHANNELS = (3, 32, 64, 128)
    KERNELS = (5, 3, 3)

    def __init__(self, seed: int = 0, size: int = 64):
        super().__init__("random_conv", size, mean=(0.5,) * 3, std=(0.25,) * 3)
        if size % 8:
            raise BrainDataError(f"expected a size that is a multiple of 8, got {size}")
        self.seed = seed
        self.note = f"random weights (seed {seed}): not comparable with published numbers"
        generator = torch.Generator().manual_seed(seed)
        layers = []
        for inputs, outputs, kernel in zip(self.CHANNELS, self.CHANNELS[1:], self.KERNELS, strict=False):
            conv: Any = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, 2, kernel // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            layers += [conv, nn.ReLU()]
        self.layers = nn.Sequential(*layers).eval().requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        return {"weights": f"random:{self.seed}", "channels": self.CHANNELS, "kernels": self.KERNELS}

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.layers(images).flatten(2).transpose(1, 2)
        return tokens, tokens.mean(1)
