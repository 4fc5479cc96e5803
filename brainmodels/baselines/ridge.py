"""Ridge regression with a penalty for each voxel, from features to responses and from responses to features.

    encoder = Ridge().fit(X_train, Y_train, groups=train.image_ids)
    encoder.score(X_test, Y_test)  # (V,) R^2

The solver is ours (`_solver`). It chooses the same penalties as himalaya's RidgeCV and was 5.4 times faster in
`benchmarks.ridge` (2 cores of an AMD EPYC, 2026-11-22).
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.moments import column_moments, column_parts
from ..errors import BrainDataError
from ._base import LinearBaseline, Samples, folds_of
from ._solver import Solution, default_device, solve_ridge_cv

__all__ = ["ALPHAS", "LinearDecoder", "Ridge"]

_log = logging.getLogger(__name__)
_LEAST_SPREAD = 1e-6  # ratio of spread to mean or target spread below which fp32 predictions hold only rounding errors
_ENOUGH = 50  # rows from which on a choice of the smallest penalty is no accident of few rows
ALPHAS = tuple(10.0**power for power in range(-2, 8))


class Ridge(LinearBaseline):
    """Ridge regression whose penalty is chosen for each voxel by cross-validation.

        argmin_w |Y - b - X w|^2 + alpha |w|^2

    The intercept b is free. Each voxel takes the alpha with the least mean squared error on held-out rows, averaged
    over folds, and is fitted again on all rows. Standardise features with different scales first
    (`make_pipeline(StandardScaler(), Ridge())`), because all features share one penalty.

    Args:
        alphas: Penalties to choose from, above 0. Suitable ones grow with the number of samples and the variance of the
            features.
        cv: Number of folds, or a scikit-learn splitter. A number makes consecutive blocks of rows, or whole groups if
            there are `groups`.
        n_targets_batch: Number of voxels that are computed at a time.
        device: Device of the computation, such as "cuda:0". None means a GPU if there is one.

    Attributes:
        alphas_: (V,) Chosen penalties.
        cv_scores_: (V,) Minus the held-out mean squared error at the chosen penalty, averaged over folds.
        coef_, intercept_: (p, V) slopes and (V,) intercepts.
        dual_coef_, X_fit_: (n, V) dual weights and (n, p) centred train features. None if p <= n.
        X_mean_, Y_mean_: (p,) and (V,) Means over the train rows.
        n_features_in_: Number p of features.
        feature_names_in_: Names of the columns, if X was a DataFrame. `predict` refuses another order.

    Example:
        >>> encoder = Ridge().fit(X_train, Y_train, groups=train.image_ids)  # doctest: +SKIP
        >>> encoder.score(X_test, Y_test)  # (V,)  # doctest: +SKIP
    """

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        cv: Any = 5,
        n_targets_batch: int = 2048,
        device: str | None = None,
    ):
        self.alphas = alphas
        self.cv = cv
        self.n_targets_batch = n_targets_batch
        self.device = device

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "Ridge":
        """Choose penalties and fit.

        Args:
            X: (n, p) Features.
            Y: (n, V) Responses; may be memory-mapped.
            groups: (n,) Labels such as image ids. Samples of one group stay in one fold. None treats every row as
                another image.

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: NaN, or penalties that are not above 0.
            LeakageError: `cv` is a splitter that puts one group on both sides of a fold.
        """
        self._solve(*self._pairs(X, Y, groups))
        return self

    def _solve(self, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None) -> Solution:
        alphas, device = checked_alphas(self.alphas), default_device(self.device)
        folds = folds_of(self.cv, len(X), groups)
        Y_mean = Y.mean(0, dtype=np.float64)
        self.X_mean_ = X.mean(0, dtype=np.float64).astype(np.float32)
        self.Y_mean_ = Y_mean.astype(np.float32)
        centred = X.astype(np.float32, copy=False) - self.X_mean_
        solution = solve_ridge_cv(centred, Y, Y_mean, alphas, folds, device, self.n_targets_batch)
        self.alphas_, self.cv_scores_ = solution.alphas, solution.cv_scores
        dual = X.shape[1] > len(X)
        self._coef, self.dual_coef_ = (None, solution.weights) if dual else (solution.weights, None)
        self.X_fit_ = centred if dual else None
        smallest = float(np.mean(self.alphas_ == alphas.min()))
        if len(alphas) > 1 and smallest > 0.1 and len(X) >= _ENOUGH:
            _log.warning(
                "%.0f %% of voxels took the smallest alpha, %g: add smaller ones", 100 * smallest, alphas.min()
            )
        return solution


class LinearDecoder(Ridge):
    """Ridge regression from responses to features, with a penalty for each feature.

    Ridge predictions vary less than what they predict. Generators and retrieval expect features of the usual spread. A
    calibration therefore gives each feature the mean and standard deviation that it had in training:

    | calibration | mean and spread of the predictions are measured on |
    |---|---|
    | "train_cv" (default) | predictions of held-out train rows |
    | "test_batch" | the rows passed to `predict`, as in Brain-Diffuser (Ozcelik & VanRullen, 2023) |
    | "none" | nothing; predictions stay as they are, with the least squared error |

    With "test_batch" the rows influence each other, which makes the decoder transductive.

    Args:
        alphas, cv, n_targets_batch, device: As in `Ridge`, for features instead of voxels.
        calibration: One of the three.

    Attributes:
        transductive_: Whether predictions depend on the other rows of their batch. Report this with every score.
        Y_std_: (p,) Standard deviation of the train features.
        heldout_mean_, heldout_std_: (p,) Mean and standard deviation of the predictions of held-out train rows.
        alphas_, cv_scores_, X_mean_, Y_mean_, n_features_in_: As in `Ridge`.
        coef_, intercept_, dual_coef_, X_fit_: As in `Ridge`, for predictions before calibration.
    """

    _inputs, _outputs = "responses", "features"

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        cv: Any = 5,
        n_targets_batch: int = 2048,
        device: str | None = None,
        calibration: str = "train_cv",
    ):
        super().__init__(alphas, cv, n_targets_batch, device)
        self.calibration = calibration

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "LinearDecoder":
        """Choose penalties and fit.

        Args:
            X: (n, V) Responses.
            Y: (n, p) Features of the images that caused the responses.
            groups: (n,) Labels such as image ids. Samples of one group stay in one fold.

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: NaN, penalties that are not above 0, or an unknown calibration.
            LeakageError: `cv` is a splitter that puts one group on both sides of a fold.
        """
        if self.calibration not in ("train_cv", "test_batch", "none"):
            raise BrainDataError(f"expected calibration 'train_cv', 'test_batch' or 'none', got {self.calibration!r}")
        X, Y, labels = self._pairs(X, Y, groups)
        solution = self._solve(X, Y, labels)
        self.transductive_ = self.calibration == "test_batch"
        self.heldout_mean_, self.heldout_std_ = solution.heldout_mean, solution.heldout_std
        self.Y_std_ = column_moments(Y)[1]
        return self

    def predict(self, X: Samples) -> np.ndarray:
        """Predicted features.

        Args:
            X: (n, V) Responses.

        Returns:
            fp32 (n, p).

        Raises:
            AxisError: Another number of voxels than in `fit`.
            BrainDataError: Responses that are not finite, or a single row under calibration "test_batch", which has no
                spread.
        """
        out = super().predict(X)
        if self.calibration == "none":
            return out
        if self.calibration == "train_cv":
            mean, std = self.heldout_mean_, self.heldout_std_
        elif len(out) > 1:
            mean, std = column_moments(out)
        else:
            raise BrainDataError("expected several rows to calibrate on each other, got 1; use calibration='train_cv'")
        gain = self._gain(mean, std)
        for part in column_parts(out.shape):  # in fp64, without an fp64 copy of all
            out[:, part] = (out[:, part] - mean[part]) * gain[part] + self.Y_mean_[part]
        return out

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights fp32 (V, p) and bias (p,) with which `predict` is X @ weights + bias, calibration included.

        Raises:
            BrainDataError: With calibration "test_batch", which depends on the rows.
        """
        weights, bias = super().affine()
        if self.calibration == "none":
            return weights, bias
        if self.calibration == "test_batch":
            raise BrainDataError("expected calibration 'train_cv' or 'none', got 'test_batch', which is not affine")
        gain = self._gain(self.heldout_mean_, self.heldout_std_)
        return weights * gain.astype(np.float32), ((bias - self.heldout_mean_) * gain + self.Y_mean_).astype(np.float32)

    def _gain(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Factor (p,) from the spread of predictions to that of the train features; 0 where they do not vary."""
        varies = std > _LEAST_SPREAD * np.maximum(np.abs(mean), self.Y_std_)
        return np.divide(self.Y_std_, std, out=np.zeros_like(std), where=varies)


def checked_alphas(alphas: Sequence[float]) -> np.ndarray:
    """Penalties as fp64.

    Raises:
        BrainDataError: No penalty, or one that is not above 0 and finite.
    """
    values = np.atleast_1d(np.asarray(alphas, np.float64))
    if values.ndim != 1 or not len(values) or not (np.isfinite(values).all() and (values > 0).all()):
        raise BrainDataError(f"expected one or more finite alphas above 0, got {alphas}")
    return values
