"""The visible mark of pictures that a model made: the word SYNTHETIC, in a font of our own.

    marked = mark_synthetic(video)           # uint8 (T, H, W, 3), a copy

| shorter side of the picture | place of the mark | pixels of the picture |
|---|---|---|
| 128 px or more | lower right corner | those in the corner are covered |
| under 128 px | black strip below | all as they were |

Letters are white on black, and 5 x 7 px large. From 256 px on they grow with the picture, in whole pixels.
"""

import numpy as np

from ..errors import AxisError, BrainDataError

__all__ = ["CORNER", "MARK", "check_pictures", "mark_synthetic"]

MARK = "SYNTHETIC"
CORNER = 128  # px of the shorter side, from which the mark is in a corner

_GLYPHS = {  # rows from top to bottom; the highest of 5 bits is the left column
    "S": (0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110),
    "Y": (0b10001, 0b10001, 0b01010, 0b00100, 0b00100, 0b00100, 0b00100),
    "N": (0b10001, 0b11001, 0b11001, 0b10101, 0b10011, 0b10011, 0b10001),
    "T": (0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100),
    "H": (0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001),
    "E": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111),
    "I": (0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110),
    "C": (0b01110, 0b10001, 0b10000, 0b10000, 0b10000, 0b10001, 0b01110),
}
_WIDTH, _HEIGHT, _GAP = 5, 7, 1


def mark_synthetic(video: np.ndarray) -> np.ndarray:
    """The pictures with the visible word SYNTHETIC.

    Args:
        video: Pictures, uint8 (T, H, W, 3).

    Returns:
        A copy, uint8 (T, H + h, W, 3). h is 0 where the mark is in a corner, and else the height of the strip below.
        The strip has several lines where the picture is narrower than 55 px.

    Raises:
        AxisError: Another shape.
        BrainDataError: Another dtype, or pictures too narrow for a letter, under 7 px.
    """
    check_pictures(video)
    frames, height, width, _ = video.shape
    if min(height, width) >= CORNER:
        scale = min(height, width) // CORNER
        badge = _badge(len(MARK)).repeat(scale, 0).repeat(scale, 1)
        marked = video.copy()
        marked[:, height - badge.shape[0] :, width - badge.shape[1] :] = badge[..., None]
        return marked
    letters = min(len(MARK), (width - _GAP) // (_WIDTH + _GAP))
    if letters < 1:
        raise BrainDataError(f"expected pictures 7 or more px wide, which have room for the mark, got {width} px")
    badge = _badge(letters)
    marked = np.zeros((frames, height + len(badge), width, 3), np.uint8)
    marked[:, :height] = video
    left = (width - badge.shape[1]) // 2
    marked[:, height:, left : left + badge.shape[1]] = badge[..., None]
    return marked


def check_pictures(video: np.ndarray, what: str = "pictures") -> None:
    """Check that these are one or more pictures of 8 bits, (T, H, W, 3).

    Raises:
        AxisError: Another shape, or no pixel.
        BrainDataError: Another dtype than uint8.
    """
    shape, dtype = np.shape(video), getattr(video, "dtype", None)
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise AxisError(f"expected {what} of shape (T, H, W, 3), got {shape}")
    if dtype != np.uint8:
        raise BrainDataError(f"expected {what} of dtype uint8, got {dtype}")


def _badge(letters: int) -> np.ndarray:
    """The mark in lines of so many letters, uint8 (h, w), white on black with a border of one pixel."""
    lines = [MARK[start : start + letters] for start in range(0, len(MARK), letters)]
    step_y, step_x = _HEIGHT + _GAP, _WIDTH + _GAP
    badge = np.zeros((len(lines) * step_y + _GAP, letters * step_x + _GAP), np.uint8)
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            bits = (np.array(_GLYPHS[letter])[:, None] >> np.arange(_WIDTH)[::-1]) & 1  # (7, 5)
            top, left = _GAP + row * step_y, _GAP + column * step_x
            badge[top : top + _HEIGHT, left : left + _WIDTH] = 255 * bits
    return badge
