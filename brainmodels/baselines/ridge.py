"""Ridge regression from features to responses with a penalty for each voxel, and back from responses to features."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BrainDataError
from ._base import LinearBaseline, Samples, folds_of
from ._solver import Solution, default_device, solve_ridge_cv

__all__ = ["ALPHAS", "LinearDecoder", "Ridge"]

_log = logging.getLogger(__name__)
_LEAST_SPREAD = 1e-6  # of predictions by their mean or their targets' spread; below it fp32 holds only rounding errors
ALPHAS = tuple(10.0**power for power in range(-2, 8))


class Ridge(LinearBaseline):
    """Ridge regression whose penalty is chosen for each voxel by cross-validation.

    argmin_w |Y - b - X w|^2 + alpha |w|^2 with a free intercept b. Each voxel takes the alpha of the least mean squared
    error on held-out rows, averaged over folds, and is fitted again on all rows. Scale the features before where they
    are on different scales (`make_pipeline(StandardScaler(), Ridge())`): the penalty is one for all.

    Args:
        alphas: penalties to choose from, above 0. They grow with the number of samples and the variance of features.
        cv: number of folds, or a scikit-learn splitter. A number makes consecutive blocks of rows; with `groups` whole
            groups.
        n_targets_batch: voxels that are computed at a time.
        device: of the computation, such as "cuda:0"; None is a GPU where there is one.

    Attributes:
        alphas_: (V,) chosen penalties.
        cv_scores_: (V,) minus the held-out mean squared error at the chosen penalty, averaged over folds.
        coef_, intercept_: (p, V) and (V,).
        dual_coef_, X_fit_: (n, V) and (n, p), centred; None where p <= n.
        X_mean_, Y_mean_: (p,) and (V,) of the train rows.
        n_features_in_: p.

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

    def fit(self, X: Samples, Y: Samples, groups: Sequence | None = None) -> "Ridge":
        """Choose penalties and fit.

        Args:
            X: features (n, p).
            Y: responses (n, V); may be memory-mapped.
            groups: (n,) such as image ids; the samples of one group stay in one fold. None takes every row for an image
                of its own.

        Raises:
            AxisError: shapes do not match.
            BrainDataError: NaN, or penalties that are not above 0.
            LeakageError: `cv` is a splitter that tears a group apart.
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
        if len(alphas) > 1 and smallest > 0.1:
            _log.warning(
                "%.0f %% of voxels took the smallest alpha, %g: add smaller ones", 100 * smallest, alphas.min()
            )
        return solution


class LinearDecoder(Ridge):
    """Ridge regression from responses to features, each feature with a penalty of its own.

    Ridge predictions vary less than what they predict. Generators and retrieval expect features of the usual spread, so
    a calibration gives each feature the mean and standard deviation it had in training:

        "train_cv"    mean and spread of the predictions are those of held-out train rows (default)
        "test_batch"  they are those of the rows passed to `predict`: the rows influence each other, which makes the
                      decoder transductive; as Brain-Diffuser did (Ozcelik & VanRullen, 2023)
        "none"        predictions as they are; the least squared error

    Args:
        alphas, cv, n_targets_batch, device: as in `Ridge`, where a voxel is now a feature.
        calibration: one of the three.

    Attributes:
        transductive_: whether predictions depend on the other rows of their batch; to be reported with every score.
        Y_std_: (p,) of the train features.
        heldout_mean_, heldout_std_: (p,) of the predictions of held-out train rows.
        and those of `Ridge`; `coef_` and `intercept_` are of the predictions before calibration.
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

    def fit(self, X: Samples, Y: Samples, groups: Sequence | None = None) -> "LinearDecoder":
        """Choose penalties and fit.

        Args:
            X: responses (n, V).
            Y: features (n, p) of the images they answer to.
            groups: (n,) such as image ids; the samples of one group stay in one fold.
        """
        if self.calibration not in ("train_cv", "test_batch", "none"):
            raise BrainDataError(f"expected calibration 'train_cv', 'test_batch' or 'none', got {self.calibration!r}")
        X, Y, groups = self._pairs(X, Y, groups)
        solution = self._solve(X, Y, groups)
        self.transductive_ = self.calibration == "test_batch"
        self.heldout_mean_, self.heldout_std_ = solution.heldout_mean, solution.heldout_std
        self.Y_std_ = Y.std(0, dtype=np.float64)
        return self

    def predict(self, X: Samples) -> np.ndarray:
        """Features for responses (n, V): fp32 (n, p).

        Raises:
            BrainDataError: a single row under calibration "test_batch", which has no spread.
        """
        out = super().predict(X)
        if self.calibration == "none":
            return out
        if self.calibration == "train_cv":
            mean, std = self.heldout_mean_, self.heldout_std_
        elif len(out) > 1:
            mean, std = out.mean(0, dtype=np.float64), out.std(0, dtype=np.float64)
        else:
            raise BrainDataError("expected several rows to calibrate on each other, got 1; use calibration='train_cv'")
        varies = std > _LEAST_SPREAD * np.maximum(np.abs(mean), self.Y_std_)
        gain = np.divide(self.Y_std_, std, out=np.zeros_like(std), where=varies)
        return ((out - mean) * gain + self.Y_mean_).astype(np.float32)


def checked_alphas(alphas: Sequence[float]) -> np.ndarray:
    """Penalties as fp64, one or more, all above 0."""
    values = np.atleast_1d(np.asarray(alphas, np.float64))
    if values.ndim != 1 or not len(values) or not (np.isfinite(values).all() and (values > 0).all()):
        raise BrainDataError(f"expected one or more finite alphas above 0, got {alphas}")
    return values
