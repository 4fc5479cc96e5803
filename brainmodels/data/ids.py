"""Ids of images in one form, and the types of the columns that name images and number trials."""

from collections.abc import Sequence

import numpy as np

from veca.data.names import composed

__all__ = ["Ids", "Integers", "as_ids"]

Ids = Sequence[str] | np.ndarray  # ids of images
Integers = Sequence[int] | np.ndarray


def as_ids(ids: Ids) -> np.ndarray:
    """Ids as an array of strings in the composed Unicode form, in which "é" is one character."""
    array = np.asarray(ids, dtype=str)
    if all(map(str.isascii, array.ravel().tolist())):
        return array
    return np.array([composed(name) for name in array.ravel().tolist()], dtype=str).reshape(array.shape)
