"""The base of all baselines: checks of the input, folds that keep each image together, and one score for each voxel."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ..data.responses import positions
from ..errors import AxisError, BrainDataError, LeakageError, need

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise need("scikit-learn", "brainmodels.baselines") from error

__all__ = ["Baseline", "LinearBaseline", "Samples", "folds_of", "matrix"]

_BLOCK = 2**22  # count of numbers that are checked at a time
_COLUMNS = {"features": "feature", "responses": "voxel"}

Samples = np.ndarray | torch.Tensor | Sequence


class Baseline(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """A scikit-learn regressor whose `score` is one value for each voxel.

    scikit-learn's searches need a single number: pass `scoring="r2"` to `GridSearchCV` and `cross_val_score`.
    """

    _inputs, _outputs = "features", "responses"  # swapped in a decoder

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = False  # a single voxel is a column too
        return tags

    predict: Callable[[Samples], np.ndarray]

    def score(self, X: Samples, Y: Samples) -> np.ndarray:
        """R^2 of each voxel over the samples: 1 - sum (y - p)^2 / sum (y - mean y)^2.

        The mean is that of these samples. A voxel that is constant or not finite here gets NaN, never 0.

        Args:
            X: (n, p) Features.
            Y: (n, V) Responses.

        Returns:
            fp64 (V,).

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: Features that are not finite.
        """
        from ..metrics.encoding import r2

        return r2(matrix(self._outputs, Y, finite=False), self.predict(X), axis=0)

    def _pairs(
        self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Checked input of `fit`. It also sets the number of features, and the names of the columns of a DataFrame."""
        names = _names_of(X)
        X, Y = matrix(self._inputs, X), matrix(self._outputs, Y)
        labels = _same_rows(X, Y, groups)
        self.n_features_in_ = X.shape[1]
        vars(self).pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = names
        return X, Y, labels

    def _samples(self, X: Samples) -> np.ndarray:
        """Features fp32 (n, p) to predict from, checked to be as wide as in `fit`."""
        check_is_fitted(self)
        names, known = _names_of(X), getattr(self, "feature_names_in_", None)
        X = matrix(self._inputs, X)
        if X.shape[1] != self.n_features_in_:
            name, count = type(self).__name__, self.n_features_in_
            raise AxisError(f"expected {count} {_COLUMNS[self._inputs]}s, as {name} was fitted on, got {X.shape[1]}")
        if names is not None and known is not None and (names != known).any():
            place = int(np.flatnonzero(names != known)[0])
            raise AxisError(
                f"expected the columns of fit in their order, got {names[place]!r} as column {place}, which was "
                f"{known[place]!r}; select X[model.feature_names_in_]"
            )
        return X.astype(np.float32, copy=False)


class LinearBaseline(Baseline):
    """Base of predictions that are linear in the features.

    The intercept is free: features and responses are centred on their train means, and only slopes are penalised. With
    more features than samples, the slopes are kept as combinations of train samples, `dual_coef_` (n, V). The (p, V)
    slopes may not fit in memory, so `coef_` computes them only when you read it.
    """

    X_mean_: np.ndarray
    Y_mean_: np.ndarray
    X_fit_: Any  # (n, p) beside dual_coef_, else None
    dual_coef_: np.ndarray | None
    _coef: Any  # (p, V), None beside dual_coef_

    def predict(self, X: Samples) -> np.ndarray:
        """Predicted responses.

        Args:
            X: (n, p) Features.

        Returns:
            fp32 (n, V).

        Raises:
            AxisError: Another number of features than in `fit`.
            BrainDataError: Features that are not finite.
        """
        X = self._samples(X) - self.X_mean_
        if self.dual_coef_ is None:
            return X @ self._coef + self.Y_mean_
        out = np.tile(self.Y_mean_, (len(X), 1))
        for columns, scale in self._bands():
            out += (X[:, columns] @ self.X_fit_[:, columns].T) @ _scaled(self.dual_coef_, scale)
        return out

    @property
    def coef_(self) -> np.ndarray:
        """Slopes, fp32 (p, V)."""
        check_is_fitted(self)
        if self.dual_coef_ is None:
            return self._coef
        out = np.empty((self.n_features_in_, len(self.Y_mean_)), np.float32)
        for columns, scale in self._bands():
            out[columns] = self.X_fit_[:, columns].T @ _scaled(self.dual_coef_, scale)
        return out

    @property
    def intercept_(self) -> np.ndarray:
        """Response to features that are all 0, fp32 (V,)."""
        return self.Y_mean_ - self.X_mean_ @ self.coef_

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights fp32 (p, V) and bias (V,) with which `predict` is X @ weights + bias."""
        return self.coef_, self.intercept_

    def _bands(self) -> list[tuple[Any, np.ndarray | None]]:
        """Columns of each feature space, and the factor (V,) of its kernel for each voxel (None: 1)."""
        return [(slice(None), None)]


def matrix(name: str, values: Samples, finite: bool = True) -> np.ndarray:
    """Values as a dense array (n, columns) of real numbers. An array (n, 1, columns) is squeezed.

    Args:
        name: "features" or "responses", for messages.
        values: Array, tensor or nested sequence. Floats keep their type, and integers are allowed.
        finite: Whether to refuse NaN and infinite numbers and report where the first one is.

    Raises:
        AxisError: Another number of axes, no rows, no real numbers, or a sparse matrix.
        BrainDataError: A value is not finite.
    """
    if hasattr(values, "toarray"):
        raise AxisError(f"expected dense {name}, got a sparse {type(values).__name__}; pass {name}.toarray()")
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim == 3 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 2 or 0 in values.shape:
        hint = f". Reshape your data: {name}[:, None] is one column, {name}[None] one row" if values.ndim == 1 else ""
        raise AxisError(f"expected {name} (samples, {_COLUMNS[name]}s), got shape {values.shape}{hint}")
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise AxisError(f"expected {name} of real numbers, got {values.dtype}")
    if finite and np.issubdtype(values.dtype, np.floating):
        _check_finite(name, values)
    return values


def _names_of(values: Samples) -> np.ndarray | None:
    """Names of the columns of a DataFrame, as objects, or None where there are none or not all are text."""
    names = np.asarray(getattr(values, "columns", ()), dtype=object)
    return names if names.ndim == 1 and len(names) and all(isinstance(name, str) for name in names) else None


def _same_rows(X: np.ndarray, Y: np.ndarray, groups: Sequence | np.ndarray | None) -> np.ndarray | None:
    """Groups as an array, after a check that all inputs have the same number of rows."""
    if len(X) != len(Y):
        raise AxisError(f"expected as many rows of X as of Y, got {len(X)} and {len(Y)}")
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != (len(X),):
        raise AxisError(f"expected one group for each of {len(X)} samples, got shape {labels.shape}")
    return labels


def folds_of(cv: Any, count: int, groups: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and test rows of each fold.

    Args:
        cv: Number of folds, a scikit-learn splitter, or the folds themselves. A number makes consecutive blocks of rows
            without groups, and whole groups with them.
        count: Number of rows.
        groups: (count,) Labels; samples of one image share theirs. None makes each row its own group.

    Returns:
        Pairs (train, test) of row numbers.

    Raises:
        AxisError: A fold has rows that do not exist.
        LeakageError: A splitter puts samples of one group, or one row, on both sides.
    """
    from sklearn.model_selection import GroupKFold, check_cv

    build: Any = GroupKFold if isinstance(cv, Integral) and groups is not None else check_cv
    splitter = build(cv)
    chosen = splitter.split(np.empty((count, 1)), None, groups)
    folds = [(positions(train, count), positions(test, count)) for train, test in chosen]
    kind, labels = ("row", np.arange(count)) if groups is None else ("group", groups)
    for train, test in folds:
        common = np.intersect1d(labels[train], labels[test])
        if len(common):
            raise LeakageError(
                f"expected the samples of a {kind} in one fold, got {len(common)} {kind}s on both sides of a fold of "
                f"{splitter}, such as {common[0]}; use GroupKFold, or an integer cv"
            )
    return folds


def _check_finite(name: str, values: np.ndarray) -> None:
    step = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), step):
        bad = ~np.isfinite(values[start : start + step])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            row_name = "trial" if name == "responses" else "sample"
            remedy = "fill or leave out NaN and inf"
            if name == "responses":
                remedy = "select usable_voxels(responses) first, which leaves out NaN and inf"
            raise BrainDataError(
                f"expected finite {name}, got {values[start + row, column]} in {row_name} {start + row}, "
                f"{_COLUMNS[name]} {column}; {remedy}"
            )


def _scaled(dual: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    return dual if scale is None else dual * scale
