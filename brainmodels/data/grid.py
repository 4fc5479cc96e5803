"""Features of pictures that need no weights and no GPU: edges and colours on a coarse grid.

    grid_features(images)  # (B, 108) fp32

Simulated voxels respond to these features, and `check_alignment` decodes them.
"""

import numpy as np
from PIL import Image

from ..errors import AxisError

__all__ = ["GRID", "GRID_PIXELS", "grid_features"]

GRID = 6  # cells a side
GRID_PIXELS = 48  # side of the pictures that are looked at


def grid_features(images: np.ndarray) -> np.ndarray:
    """Mean gradient magnitude and colour opponents in the cells of a 6 x 6 grid.

    Args:
        images: Pictures (B, H, W, 3), uint8. Other sizes than 48 pixels are resized with antialiasing.

    Returns:
        fp32 (B, 108), for pictures in [0, 1], cells row by row. The first 36 columns are the mean gradient magnitude of
        the brightness, the next 36 are red minus green, the last 36 are blue minus yellow.

    Raises:
        AxisError: Images are not (B, H, W, 3) uint8.
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
