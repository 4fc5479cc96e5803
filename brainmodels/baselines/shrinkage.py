"""Ridge whose voxels learn from each other: of reduced rank, and with a prior over the weights of all voxels.

    encoder = ReducedRankRidge().fit(X_train, Y_train, groups=train.image_ids)
    encoder.rank_   # number of response patterns that it predicts

Deep models predict all voxels through one latent, and gain from that alone. These two have the same gain without any
network, so a model that beats ridge and not them has found shrinkage, not structure.

`PriorRidge` can also take the prior from the voxels of other subjects. `ReleasedRidge` learns from nothing else. It is
the baseline of published tables.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ..errors import AxisError, BrainDataError, LeakageError
from ._base import LinearBaseline, Samples, folds_of
from ._solver import default_device, fit_ridge
from .ridge import ALPHAS, Ridge, checked_alphas
from .voxels import VoxelModel, WeightPrior, ridge_of, rowwise_residuals, shrunk_variance

__all__ = ["PriorRidge", "ReducedRankRidge", "ReleasedRidge"]

_LEAST_SIZE = 1e-6  # ratio to the largest singular value below which a direction holds only rounding errors
RELEASED_ALPHAS = (0.01, 1.0, 10.0, 100.0)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ReducedRankRidge(Ridge):
    """Ridge regression whose predictions are confined to a few patterns over voxels (Mukherjee & Zhu, 2011).

    The patterns are the leading right singular vectors of the fitted values of `Ridge`. Their number is the rank with
    the least squared error on held-out rows, summed over voxels. Each voxel keeps its penalty from the fit on all rows.

    Args:
        alphas, cv, n_targets_batch, device: As in `Ridge`.
        ranks: Ranks to choose from. Those that the data cannot have are left out; the largest possible one is always
            tried, and equals ridge.

    Attributes:
        rank_: The chosen rank.
        rank_scores_: Minus the held-out squared error, summed over voxels and averaged over rows, by rank.
        patterns_: (rank_, V) Orthonormal patterns over voxels.
        alphas_, cv_scores_: As in `Ridge`, before the rank is reduced.
        coef_, intercept_, X_mean_, Y_mean_, n_features_in_: As in `Ridge`.
    """

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        cv: Any = 5,
        n_targets_batch: int = 2048,
        device: str | None = None,
        ranks: Sequence[int] = RANKS,
    ):
        super().__init__(alphas, cv, n_targets_batch, device)
        self.ranks = ranks

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "ReducedRankRidge":
        """Choose penalties and the rank, and fit; arguments and errors are those of `Ridge.fit`."""
        ranks = np.unique(np.asarray(self.ranks))
        if not ranks.size or ranks.dtype.kind != "i" or ranks[0] < 1:
            raise BrainDataError(f"expected ranks of 1 or more, got {self.ranks}")
        X, Y, labels = self._pairs(X, Y, groups)
        self._solve(X, Y, labels)
        folds = folds_of(self.cv, len(X), labels)
        most = min(X.shape[1], Y.shape[1], min(len(train) for train, _ in folds) - 1)
        ranks = [*ranks[ranks < most].tolist(), most]
        errors = np.zeros(len(ranks))
        for train, test in folds:
            errors += self._heldout(X[train], Y[train], X[test], Y[test], ranks)
        self.rank_scores_ = dict(zip(ranks, (-errors / sum(len(test) for _, test in folds)).tolist(), strict=True))
        self.rank_ = max(ranks, key=self.rank_scores_.__getitem__)
        slopes = self.coef_
        self.patterns_ = _patterns((X - self.X_mean_) @ slopes)[: self.rank_]
        self._coef = (slopes @ self.patterns_.T) @ self.patterns_
        self.dual_coef_ = self.X_fit_ = None
        return self

    def _heldout(
        self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray, Y_test: np.ndarray, ranks: Sequence[int]
    ) -> np.ndarray:
        """Squared error of the test rows of a fold, summed over rows and voxels, for each rank."""
        mean, Y_mean = X.mean(0, dtype=np.float64).astype(np.float32), Y.mean(0, dtype=np.float64).astype(np.float32)
        centred = X.astype(np.float32) - mean
        slopes = fit_ridge(centred, Y, self.alphas_, default_device(self.device), self.n_targets_batch)
        patterns = _patterns(centred @ slopes)
        truth, scores = Y_test - Y_mean, ((X_test - mean) @ slopes) @ patterns.T
        along = truth @ patterns.T  # patterns are orthonormal: |t - P's|^2 = |t|^2 - 2 s.Pt + |s|^2
        gained = np.cumsum((2 * scores * along - scores**2).sum(0, dtype=np.float64))
        total = float((truth.astype(np.float64) ** 2).sum())
        return total - gained[np.minimum(ranks, len(gained)) - 1]


class PriorRidge(Ridge):
    """Ridge regression whose weights are expected to vary as those of other voxels do.

    Without a prior, the other voxels are those of the same subject:

        w of a voxel ~ N(0, S),    argmin_w |Y - b - X w|^2 + alpha w' S^-1 w

    S is the second moment over voxels of the weights that `Ridge` finds on the same rows. So directions that
    other voxels use are shrunk less. Each voxel takes its alpha, which is its noise variance under this prior, by
    cross-validation. Outside the span of those weights all weights are 0.

    With a prior, they are the voxels of other subjects. Weights and intercept are the posterior mean under its mean and
    covariance. The noise variance of a voxel is the error of `Ridge` on held-out rows, see `heldout_variance`. This
    helps most where there are few images.

    Args:
        alphas: Penalties to choose from, in units of the mean variance of a voxel. Not used with a prior.
        cv, n_targets_batch, device: As in `Ridge`.
        prior: Distribution of the weights and intercepts of other subjects' voxels. None learns from these voxels.

    Attributes:
        prior_root_: (p, r) Root of the second moment: S = root @ root.T. Only without a prior.
        alphas_, cv_scores_: As in `Ridge`; the penalties are in units of the mean variance of a voxel. Only without a
            prior.
        noise_: (V,) Noise variances. Only with a prior.
        coef_, intercept_, X_mean_, n_features_in_: As in `Ridge`.
        Y_mean_: (V,) Mean train response. With a prior, the prediction at `X_mean_`.
    """

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        cv: Any = 5,
        n_targets_batch: int = 2048,
        device: str | None = None,
        prior: WeightPrior | None = None,
    ):
        super().__init__(alphas, cv, n_targets_batch, device)
        self.prior = prior

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "PriorRidge":
        """Find the prior or use the given one, choose penalties and fit; arguments and errors are those of `Ridge.fit`.

        With a prior of another number of features, an `AxisError` names both. Responses that are all constant have no
        noise variance, which is a `BrainDataError`.
        """
        X, Y, labels = self._pairs(X, Y, groups)
        for name in ("prior_root_", "alphas_", "cv_scores_", "noise_"):  # of an earlier fit with another prior
            vars(self).pop(name, None)
        self.dual_coef_ = self.X_fit_ = None
        if self.prior is not None:
            return self._posterior(self.prior, X, Y, labels)
        options = {"cv": self.cv, "n_targets_batch": self.n_targets_batch, "device": self.device}
        first = Ridge(**options).fit(X, Y, labels)
        self.X_mean_, self.Y_mean_ = first.X_mean_, first.Y_mean_
        self.prior_root_ = _root(first.coef_)
        unit = np.float32(np.sqrt(Y.var(0, dtype=np.float64).mean()) or 1.0)
        root = self.prior_root_ / unit
        inner = Ridge(self.alphas, **options).fit((X.astype(np.float32) - self.X_mean_) @ root, Y, labels)
        self.alphas_, self.cv_scores_ = inner.alphas_, inner.cv_scores_
        self._coef = root @ inner.coef_
        return self

    def _posterior(self, prior: WeightPrior, X: np.ndarray, Y: np.ndarray, labels: np.ndarray | None) -> "PriorRidge":
        if len(prior.mean) != X.shape[1] + 1:
            raise AxisError(f"expected {len(prior.mean) - 1} features, as the prior has, got {X.shape[1]}")

        def ridge(rows: np.ndarray) -> VoxelModel:
            inside = None if labels is None else labels[rows]
            count = len(rows) if inside is None else len(np.unique(inside))
            cv = min(self.cv, count) if isinstance(self.cv, Integral) else self.cv  # folds of a fold have fewer images
            fitted = Ridge(cv=cv, n_targets_batch=self.n_targets_batch, device=self.device).fit(
                X[rows], Y[rows], inside
            )
            return VoxelModel.of(fitted, "ridge")

        residuals = rowwise_residuals(ridge, X, Y, labels, self.cv)
        self.noise_ = shrunk_variance(residuals, len(X) if labels is None else len(np.unique(labels)))
        weights = prior.posterior(X, Y, self.noise_)
        mean = X.mean(0, dtype=np.float64)
        self._coef, self.X_mean_ = weights[:-1].astype(np.float32), mean.astype(np.float32)
        self.Y_mean_ = (mean @ weights[:-1] + weights[-1]).astype(np.float32)
        return self


class ReleasedRidge(LinearBaseline):
    """Ridge regression as the code of BraInCoRL has it (arXiv 2505.15813), for comparison with its tables only.

        argmin_w |Y - Z w|^2 + alpha |w|^2,    Z = [X, 1]

    It is slightly weak, so a model that beats it may not beat `Ridge`. The differences are:

    | | `ReleasedRidge` | `Ridge` |
    |---|---|---|
    | intercept | penalised | free |
    | coefficients | mean over the folds | fitted again on all rows |
    | penalty | largest explained variance, mean over folds | least squared error |
    | folds | n // 5 rows each; the rows that are left over are in every fit | all rows are held out once |

    Args:
        alphas: Penalties to choose from, above 0. The first of equally good ones is taken.
        num_folds: Number of consecutive folds.

    Attributes:
        alphas_: (V,) Chosen penalties.
        cv_scores_: (V,) Explained variance of held-out rows at the chosen penalty, averaged over folds. NaN where a
            voxel is constant in a fold; it takes the first penalty.
        coef_, intercept_, n_features_in_: As in `Ridge`.
    """

    def __init__(self, alphas: Sequence[float] = RELEASED_ALPHAS, num_folds: int = 5):
        self.alphas = alphas
        self.num_folds = num_folds

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "ReleasedRidge":
        """Choose penalties and average the fits of the folds.

        Args:
            X: (n, p) Features.
            Y: (n, V) Responses, one row for each image.
            groups: (n,) Labels such as image ids, only to check that none repeats.

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: NaN, penalties that are not above 0, or fewer than two rows a fold.
            LeakageError: An image has several rows, which would lie in several folds.
        """
        from ..metrics.encoding import ev

        alphas = checked_alphas(self.alphas)
        X, Y, labels = self._pairs(X, Y, groups)
        if labels is not None and len(np.unique(labels)) < len(labels):
            raise LeakageError(f"expected one row for each image, got {len(labels)} of {len(np.unique(labels))} images")
        size = len(X) // self.num_folds
        if self.num_folds < 2 or size < 2:
            raise BrainDataError(
                f"expected two or more folds of two or more rows, got {self.num_folds} of {len(X)} samples"
            )
        Z = np.column_stack([X.astype(np.float64), np.ones(len(X))])
        scores, fits = np.zeros((len(alphas), Y.shape[1])), []
        for start in range(0, size * self.num_folds, size):
            test = np.arange(start, start + size)
            train = np.delete(np.arange(len(X)), test)
            fits.append((np.linalg.svd(Z[train], full_matrices=False), train))
            for row, alpha in enumerate(alphas):
                scores[row] += ev(Y[test], Z[test] @ ridge_of(fits[-1][0], Y[train], alpha), axis=0)
        best = scores.argmax(0)
        self.alphas_ = alphas[best]
        self.cv_scores_ = scores[best, np.arange(Y.shape[1])] / self.num_folds
        weights = np.mean([ridge_of(system, Y[train], self.alphas_) for system, train in fits], axis=0)
        self.X_mean_ = np.zeros(X.shape[1], np.float32)
        self._coef, self.Y_mean_ = weights[:-1].astype(np.float32), weights[-1].astype(np.float32)
        self.dual_coef_ = self.X_fit_ = None
        return self


def _patterns(fitted: np.ndarray) -> np.ndarray:
    """Right singular vectors (r, V) of fitted values (n, V), the largest first."""
    return torch.linalg.svd(torch.from_numpy(fitted).double(), full_matrices=False)[2].float().numpy()


def _root(weights: np.ndarray) -> np.ndarray:
    """Root (p, r) of the second moment of weights (p, V) over voxels, without directions that hold rounding errors."""
    left, sizes, _ = torch.linalg.svd(torch.from_numpy(weights).double(), full_matrices=False)
    kept = max(int((sizes > _LEAST_SIZE * sizes[0]).sum()), 1)
    return (left[:, :kept] * sizes[:kept] / weights.shape[1] ** 0.5).float().numpy()
