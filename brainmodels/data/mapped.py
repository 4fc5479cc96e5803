"""Pickling of memory-mapped arrays: other processes get the name of the file, not gigabytes of content.

    pickle.dumps(packed(np.load("betas.npy", mmap_mode="r")))  # some hundred bytes

A part of a mapped file is pickled with its content.
"""

import mmap
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["MappedFile", "packed", "unpacked"]


class MappedFile(NamedTuple):
    """What is needed to map an array again in another process of this machine.

    Attributes:
        path: Path of the file.
        dtype: Type of the values.
        shape: Shape of the array.
        offset: Position of the first value in the file, bytes.
        order: "C" or "F", the order of the axes in the file.
    """

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    order: Literal["C", "F"]


def packed(array: np.ndarray) -> np.ndarray | MappedFile:
    """What to pickle in place of an array: a `MappedFile` for a whole mapped file, otherwise the array itself."""
    if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap) or array.filename is None:
        return array
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return array
    order = "C" if array.flags.c_contiguous else "F"
    return MappedFile(str(array.filename), array.dtype, array.shape, array.offset, order)


def unpacked(array: np.ndarray | MappedFile) -> np.ndarray:
    """The array that `packed` was given, read-only where it is memory-mapped."""
    if not isinstance(array, MappedFile):
        return array
    return np.memmap(array.path, array.dtype, "r", array.offset, array.shape, array.order)
