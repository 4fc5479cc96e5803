"""Ridge at each time point by itself, the baseline of every decoder of EEG and MEG.

    decoder = TimeRidge().fit(epochs, features)   # (n, C, T) and (n, p)
    decoder.predict(test_epochs)                  # (m, T, p): what each time point says
    decoder.maps                                  # (T, C, p) slopes; any of them can be applied to any time

The penalty has the least generalised cross-validation error (Golub, Heath and Wahba, 1979), which needs one
decomposition and no folds. The decomposition does not depend on the targets, so wrong pairs are cheap to fit.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import AxisError, BrainDataError

__all__ = ["PENALTIES", "GcvRidge", "TimeRidge"]

PENALTIES = tuple(10.0**power for power in np.arange(-1, 6.5, 0.5))
"""Penalties to choose from, for standardised inputs."""

_EMPTY = 1e-10  # share of the largest squared singular value below which a direction is empty
_COLUMNS = 4096  # targets that are solved at a time


class GcvRidge:
    """Ridge from standardised inputs, with the penalty of the least generalised cross-validation error.

        n |y - y'|^2 / (n - trace H)^2

    H maps targets to fitted targets y', and counts the intercept. Inputs that do not vary get a slope of 0.

    Args:
        penalties: Penalties to choose from, above 0.
        per_target: Whether each target has its own penalty. Otherwise all share the one of the least summed error.

    Attributes:
        penalty_: Chosen penalties, (p,), or (1,) if all targets share one.
    """

    def __init__(self, penalties: Sequence[float] = PENALTIES, per_target: bool = False):
        values = np.sort(np.asarray(penalties, np.float64))
        if not len(values) or values[0] <= 0 or not np.isfinite(values).all():
            raise BrainDataError(f"expected penalties above 0, got {list(penalties)}")
        self.penalties, self.per_target = values, per_target

    def decompose(self, X: np.ndarray) -> "GcvRidge":
        """Standardise and decompose inputs (n, d), which `solve` then takes with any targets.

        Raises:
            AxisError: The inputs do not have two axes, or fewer than three rows.
        """
        if np.ndim(X) != 2 or len(X) < 3:
            raise AxisError(f"expected inputs (n, d) of three rows or more, got {np.shape(X)}")
        X = np.asarray(X, np.float64)
        self.mean_, std = X.mean(0), X.std(0)
        self.scale_ = np.divide(1, std, out=np.zeros_like(std), where=std > 1e-12 * max(std.max(), 1e-300))
        Z = (X - self.mean_) * self.scale_
        gram = Z.T @ Z if Z.shape[1] <= len(Z) else Z @ Z.T
        squares, vectors = np.linalg.eigh(gram)
        kept = squares > _EMPTY * max(squares[-1], 1e-300)
        self._squares, vectors = squares[kept], vectors[:, kept]
        roots = np.sqrt(self._squares)
        self._left = (Z @ vectors / roots if Z.shape[1] <= len(Z) else vectors).astype(np.float32)  # (n, r)
        self._right = (vectors if Z.shape[1] <= len(Z) else Z.T @ vectors / roots).astype(np.float32)  # (d, r)
        return self

    def solve(self, Y: np.ndarray) -> "GcvRidge":
        """Choose penalties and fit targets (n, p) to the decomposed inputs.

        Raises:
            AxisError: Inputs and targets differ in their number of rows.
        """
        if np.ndim(Y) != 2 or len(Y) != len(self._left):
            raise AxisError(f"expected targets ({len(self._left)}, p), one row for each input, got {np.shape(Y)}")
        Y = np.asarray(Y)
        self.offset_ = Y.mean(0, dtype=np.float64)
        projected, squares = [], []
        for start in range(0, Y.shape[1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            centred = (Y[:, part] - self.offset_[part]).astype(np.float32)
            projected.append(self._left.T @ centred)
            squares.append(np.square(centred).sum(0, dtype=np.float64))
        inner = np.concatenate(projected, 1).astype(np.float64)  # (r, p)
        best = self._errors(np.square(inner), np.concatenate(squares)).argmin(0)
        self.penalty_ = self.penalties[best]
        roots = np.sqrt(self._squares)[:, None]
        shrunk = inner * (roots / (self._squares[:, None] + self.penalty_))
        self.slopes_ = (self._right @ shrunk.astype(np.float32)) * self.scale_[:, None].astype(np.float32)  # (d, p)
        return self

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "GcvRidge":
        """`decompose` the inputs, then `solve` for the targets."""
        return self.decompose(X).solve(Y)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Targets of inputs (n, d), fp32 (n, p)."""
        centred = (np.asarray(X, np.float64) - self.mean_).astype(np.float32)
        return centred @ self.slopes_ + self.offset_.astype(np.float32)

    def _errors(self, squares: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Cross-validation errors, (penalties, p), or (penalties, 1) where the targets share a penalty.

        `squares` (r, p) are those of the projected targets, and `totals` (p,) those of the centred ones.
        """
        count = len(self._left)
        kept = self._squares / (self._squares + self.penalties[:, None])  # (A, r)
        residual = totals - (1 - np.square(1 - kept)) @ squares
        left = count - 1 - kept.sum(1)
        errors = residual / np.square(np.maximum(left, 1e-9))[:, None]
        return errors if self.per_target else errors.sum(1, keepdims=True)


class TimeRidge:
    """A `GcvRidge` from channels to targets at each time point.

    Args:
        penalties: Penalties to choose from, above 0. Each time point takes one for all its targets.

    Attributes:
        penalty_: Chosen penalty of each time point, (T,).
        maps: Slopes, fp32 (T, C, p).
        offsets: Predictions of an input of zeros, fp32 (T, p).
    """

    def __init__(self, penalties: Sequence[float] = PENALTIES):
        self.penalties = penalties

    def decompose(self, epochs: np.ndarray) -> "TimeRidge":
        """Decompose the channels of epochs (n, C, T) at each time point, for `solve`.

        Raises:
            AxisError: The epochs do not have three axes.
        """
        if np.ndim(epochs) != 3:
            raise AxisError(f"expected epochs (n, channels, times), got {np.shape(epochs)}")
        self.points_ = [GcvRidge(self.penalties).decompose(epochs[:, :, t]) for t in range(epochs.shape[2])]
        return self

    def solve(self, targets: np.ndarray) -> "TimeRidge":
        """Fit targets (n, p) at each time point.

        Raises:
            AxisError: Epochs and targets differ in number.
        """
        for point in self.points_:
            point.solve(targets)
        self.penalty_ = np.array([point.penalty_[0] for point in self.points_])
        self.maps = np.stack([point.slopes_ for point in self.points_])
        offsets = [point.offset_ - point.mean_ @ point.slopes_ for point in self.points_]
        self.offsets = np.stack(offsets).astype(np.float32)
        return self

    def fit(self, epochs: np.ndarray, targets: np.ndarray) -> "TimeRidge":
        """Fit targets (n, p) to epochs (n, C, T) at each time point."""
        return self.decompose(epochs).solve(targets)

    def predict(self, epochs: np.ndarray) -> np.ndarray:
        """Targets of epochs (m, C, T) by the fit of their own time point, fp32 (m, T, p).

        Raises:
            AxisError: The epochs have other channels or times than the fit.
        """
        times, channels, _ = self.maps.shape
        if np.ndim(epochs) != 3 or np.shape(epochs)[1:] != (channels, times):
            raise AxisError(f"expected epochs (n, {channels}, {times}) as in the fit, got {np.shape(epochs)}")
        found = [point.predict(epochs[:, :, t]) for t, point in enumerate(self.points_)]
        return np.stack(found, 1)
