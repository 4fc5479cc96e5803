"""Ids of images in one form."""

from collections.abc import Sequence

import numpy as np

from veca.data.names import composed

__all__ = ["as_ids"]


def as_ids(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Ids as an array of strings in the composed Unicode form, in which "é" is one character."""
    array = np.asarray(ids, dtype=str)
    if all(map(str.isascii, array.ravel().tolist())):
        return array
    return np.array([composed(name) for name in array.ravel().tolist()], dtype=str).reshape(array.shape)
