"""Mean and variance of rows that do not fit into memory together, or only once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

__all__ = ["Moments", "column_moments", "column_parts"]

Products = Callable[[np.ndarray], np.ndarray]
_BLOCK = 2**20  # count of numbers that are converted to fp64 at a time


def column_parts(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of the columns of an array (rows, columns), of about a million numbers each."""
    step = max(1, _BLOCK // max(1, shape[0]))
    return (slice(start, start + step) for start in range(0, shape[1], step))


def column_moments(values: np.ndarray, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of columns, fp64, without an fp64 copy of the array.

    Args:
        values: (rows, columns) Array of real numbers.
        ddof: The sum of squares is divided by the number of rows minus this.
    """
    mean, std = np.empty((2, values.shape[1]))
    for part in column_parts(values.shape):
        mean[part] = values[:, part].mean(0, dtype=np.float64)
        std[part] = values[:, part].std(0, ddof=ddof, dtype=np.float64)
    return mean, std


def _squares(deviations: np.ndarray) -> np.ndarray:
    return np.square(deviations).sum(0)


class Moments:
    """Mean of rows and the sum of products of their deviations from it, in fp64, one block of rows at a time.

    Blocks are merged as in Chan, Golub and LeVeque (1983). No raw squares are summed, since a large mean would leave
    no digits for the variance.

    Args:
        products: Sum over rows of the products of deviations (rows, ...). Default: squares of each column;
            `lambda x: x.T @ x` gives covariances.

    Attributes:
        count: Number of rows so far.
        mean: Mean of the rows, 0 before the first.
        total: Sum of products of deviations, 0 before the first.
    """

    def __init__(self, products: Products = _squares):
        self.products = products
        self.count = 0
        self.mean: Any = 0.0
        self.total: Any = 0.0

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray], products: Products = _squares) -> "Moments":
        """Moments of all blocks (rows, ...), one of which is in memory at a time."""
        found = cls(products)
        for block in blocks:
            found.add(block)
        return found

    @property
    def variance(self) -> np.ndarray:
        """Mean product of deviations, over all rows (ddof 0)."""
        return self.total / self.count

    def add(self, block: np.ndarray) -> None:
        """Take in rows (one or more, ...)."""
        block = block.astype(np.float64)
        size, mean = len(block), block.mean(0)
        shift, count = mean - self.mean, self.count + size
        self.total = self.total + self.products(block - mean)
        self.total = self.total + self.products(shift[None]) * (self.count * size / count)
        self.mean = self.mean + shift * (size / count)
        self.count = count
