"""Memory-mapped arrays that travel to other processes as the name of their file, not as gigabytes of their content."""

import mmap
from typing import NamedTuple

import numpy as np

__all__ = ["MappedFile", "packed", "unpacked"]


class MappedFile(NamedTuple):
    """Where a memory-mapped array lies: enough to map it again in another process of this machine."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    order: str


def packed(array: np.ndarray) -> np.ndarray | MappedFile:
    """What to pickle in place of an array: its file where it is one whole mapped file, otherwise the array."""
    whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename is not None
    if not whole or not (array.flags.c_contiguous or array.flags.f_contiguous):
        return array
    order = "C" if array.flags.c_contiguous else "F"
    return MappedFile(str(array.filename), array.dtype, array.shape, array.offset, order)


def unpacked(array: np.ndarray | MappedFile) -> np.ndarray:
    """The array again, read-only where it is mapped."""
    if not isinstance(array, MappedFile):
        return array
    return np.memmap(array.path, array.dtype, "r", array.offset, array.shape, array.order)
