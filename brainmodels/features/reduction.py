"""Reduction of tokens: means over the cells of a coarser grid, then principal components of their features.

    reduction = TokenReduction(side=4, width=32).fit(blocks)  # blocks of train tokens (images, 256, 1024)
    small = reduction.transform(tokens)                       # (n, 16, 32)
    reduction.inverse_transform(small)                        # (n, 256, 1024), approximate

`TokenScaler` reduces tokens with it before it scales them.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from ..data.moments import Moments
from ..errors import AxisError, BrainDataError

__all__ = ["Array", "TokenReduction", "matched"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)
_NULL = 1e-12  # share of the largest variance; a component with less consists of fp32 rounding errors


class TokenReduction:
    """Linear reduction of tokens: y = (mean of x over a cell - center) components^T, for each cell of a side x side
    grid.

    The components are the directions in which the cells of all images together vary most. The inverse is approximate.
    It gives all tokens of a cell the same value, and nothing in the directions that were left out.

    Args:
        side: Number of cells a side. It must divide the side of the tokens' grid. None keeps all tokens. Tokens without
            a place, such as cores, have no cells and can only become narrower.
        width: Number of components. None keeps the width.

    Attributes:
        full_shape: Shape (m, d) of the tokens it was fitted on.
        shape: Shape (m, d) of reduced tokens.
        center_: fp32 (d,) Mean token of the train images. None if the width is kept.
        components_: fp32 (width, d) Orthonormal rows by falling variance, the largest entry of each positive. None if
            the width is kept.
        explained_: Share of the variance of the cells that the components keep; 1 if the width is kept.

    Raises:
        BrainDataError: A side or width below 1.
    """

    def __init__(self, side: int | None = None, width: int | None = None):
        for name, value in (("side", side), ("width", width)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise BrainDataError(f"expected a {name} of reduced tokens of at least 1, or None, got {value!r}")
        self.side, self.width = side, width
        self.center_: Any = None
        self.components_: Any = None
        self.explained_ = 1.0

    def fit(self, blocks: Iterable[np.ndarray]) -> "TokenReduction":
        """Learn the components from the tokens of the train images.

        Args:
            blocks: Arrays (images, m, d), one in memory at a time. Only the first is read if the width is kept.

        Raises:
            AxisError: The tokens form no square grid, `side` does not divide it, or `width` exceeds that of the tokens.
            BrainDataError: `width` exceeds the number of directions in which the tokens vary.
        """
        blocks = iter(blocks)
        first = next(blocks)
        self.full_shape = tuple(first.shape[1:])
        num_tokens, full_width = self.full_shape
        self._check_grid(num_tokens)
        self.shape = (num_tokens if self.side is None else self.side**2, self.width or full_width)
        if self.width is None:
            return self
        if self.width > full_width:
            raise AxisError(f"expected a width of at most {full_width}, that of the tokens, got {self.width}")
        rows = (self._averaged(block).reshape(-1, full_width) for block in chain([first], blocks))
        found = Moments.of(rows, lambda x: x.T @ x)
        variances, axes = np.linalg.eigh(found.variance)  # rising
        rank = int((variances > _NULL * variances[-1]).sum())
        if self.width > rank:
            raise BrainDataError(
                f"expected a width of at most {rank}, the number of directions in which these tokens vary, got "
                f"{self.width}; width=None keeps all {full_width} features"
            )
        components = axes[:, : -self.width - 1 : -1].T
        largest = np.take_along_axis(components, np.abs(components).argmax(1, keepdims=True), 1)
        self.center_ = found.mean.astype(np.float32)
        self.components_ = np.ascontiguousarray(components * np.sign(largest), np.float32)
        self.explained_ = float(variances[-self.width :].sum() / variances.sum())
        return self

    def transform(self, values: Array) -> Array:
        """Reduced tokens.

        Args:
            values: Tokens (..., *full_shape), an array or a tensor.

        Returns:
            (..., *shape) of the same kind.
        """
        _check_shape(values, self.full_shape)
        values = self._averaged(values)
        if self.width is None:
            return values
        return (values - matched(self.center_, values)) @ matched(self.components_, values).T

    def inverse_transform(self, values: Array) -> Array:
        """Approximate tokens (..., *full_shape) from reduced ones (..., *shape).

        Args:
            values: Reduced tokens (..., *shape), an array or a tensor.

        Returns:
            (..., *full_shape) of the same kind.
        """
        _check_shape(values, self.shape)
        if self.width is not None:
            values = values @ matched(self.components_, values) + matched(self.center_, values)
        return values if self.side is None else values[..., self._cell_of_token(), :]

    def state_dict(self) -> dict[str, np.ndarray]:
        """The reduction as arrays. A part that is not reduced has no entry."""
        state: dict[str, Any] = {"full_shape": np.array(self.full_shape)}
        if self.side is not None:
            state["side"] = np.asarray(self.side)
        if self.width is not None:
            explained = np.asarray(self.explained_)
            state |= {"center": self.center_, "components": self.components_, "explained": explained}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "TokenReduction":
        """The reduction that has this `state_dict`."""
        narrowed = "components" in state
        side = int(state["side"]) if "side" in state else None
        reduction = cls(side, len(state["components"]) if narrowed else None)
        num_tokens, width = reduction.full_shape = tuple(np.asarray(state["full_shape"]).tolist())
        reduction.shape = (num_tokens if side is None else side**2, reduction.width or width)
        if narrowed:
            reduction.center_, reduction.components_ = np.array(state["center"]), np.array(state["components"])
            reduction.explained_ = float(state["explained"])
        return reduction

    def _check_grid(self, num_tokens: int) -> None:
        if self.side is None:
            return
        full = round(num_tokens**0.5)
        if full * full != num_tokens:
            raise AxisError(f"expected tokens that form a square grid, got {num_tokens}; side=None keeps all tokens")
        if full % self.side:
            sides = ", ".join(str(side) for side in range(1, full + 1) if full % side == 0)
            raise AxisError(f"expected a side that divides the {full} x {full} grid ({sides}), got {self.side}")

    def _averaged(self, values: Array) -> Array:
        """(..., m, d) to (..., side^2, d), or unchanged without a side."""
        if self.side is None:
            return values
        *lead, num_tokens, width = values.shape
        cell = round(num_tokens**0.5) // self.side
        grid: Any = values.reshape(*lead, self.side, cell, self.side, cell, width)
        return grid.mean((-4, -2)).reshape(*lead, self.side**2, width)

    def _cell_of_token(self) -> np.ndarray:
        """(m,) Cell to which each token belongs, row by row."""
        side = self.side or round(self.full_shape[0] ** 0.5)
        line = np.arange(side).repeat(round(self.full_shape[0] ** 0.5) // side)
        return (line[:, None] * side + line).ravel()


def matched(array: np.ndarray, values: Array) -> Array:
    """Convert an array to the kind of `values`, which is an array or a tensor with a device and type.

    Args:
        array: Array to convert.
        values: Array or tensor that decides the kind.
    """
    same: Any = array
    if isinstance(values, torch.Tensor):
        same = torch.from_numpy(array).to(values.device, values.dtype)
    return same


def _check_shape(values: Array, shape: tuple[int, int]) -> None:
    if tuple(values.shape[-2:]) != shape:
        raise AxisError(f"expected tokens (..., {shape[0]}, {shape[1]}), got {tuple(values.shape)}")
