"""Mean and variance of rows that do not fit into memory together."""

from collections.abc import Callable, Iterable

import numpy as np

__all__ = ["Moments"]

Products = Callable[[np.ndarray], np.ndarray]


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
        self.count, self.mean, self.total = 0, 0.0, 0.0

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
