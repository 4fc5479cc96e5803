"""Edges and colours on a coarse grid: the plainest description of a picture that a visual cortex would recognise.

The simulated subjects see with it, and the alignment test listens with it: it needs no weights and no GPU.
"""

import numpy as np
from PIL import Image

from ..errors import AxisError

__all__ = ["GRID", "GRID_PIXELS", "grid_features"]

GRID = 6  # cells a side
GRID_PIXELS = 48  # to which pictures are resized


def grid_features(images: np.ndarray) -> np.ndarray:
    """Mean gradient magnitude and colour opponents in the cells of a 6 x 6 grid.

    Args:
        images: (B, H, W, 3) uint8; those of another size than 48 pixels are resized, antialiased.

    Returns:
        fp32 (B, 108), cells row by row: 36 of mean gradient magnitude of the brightness, 36 of red minus green,
        36 of blue minus yellow; brightness and opponents of pictures in [0, 1].

    Raises:
        AxisError: images are not (B, H, W, 3) uint8.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise AxisError(f"expected images (B, H, W, 3) uint8, got {images.dtype} {images.shape}")
    size = (GRID_PIXELS, GRID_PIXELS)
    if images.shape[1:3] != size:
        resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
        images = np.stack(resized) if resized else np.empty((0, *size, 3), np.uint8)
    red, green, blue = np.moveaxis(images.astype(np.float32) / 255, -1, 0)
    down, across = np.gradient((red + green + blue) / 3, axis=(1, 2))
    maps = np.stack([np.hypot(down, across), red - green, blue - (red + green) / 2], 1)  # (B, 3, 48, 48)
    cell = GRID_PIXELS // GRID
    cells = maps.reshape(len(images), 3, GRID, cell, GRID, cell).mean((3, 5))
    return cells.reshape(len(images), -1)
