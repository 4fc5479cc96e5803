"""Strides as kernels take them: in units of ALIGN elements and as odd numbers. tiles.py says why."""

from typing import Any

from torch import Tensor


def alignment(*tensors: Tensor) -> int:
    """8 if every stride but the last is a multiple of 8 elements, else 1."""
    return 8 if all(s % 8 == 0 for x in tensors for s in x.stride()[:-1]) else 1


def encode_stride(stride: int) -> int:
    """An odd number, which Triton does not specialise on."""
    return 2 * stride + 3


def kernel_rows(x: Tensor | None, align: int) -> tuple[Any, ...] | None:
    """(pointer, strides of all but the last dimension)."""
    return None if x is None else (x, *(encode_stride(s // align) for s in x.stride()[:-1]))
