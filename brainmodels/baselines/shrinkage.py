"""Ridge whose voxels learn from each other: of reduced rank, and with a prior over the weights of all voxels.

    encoder = ReducedRankRidge().fit(X_train, Y_train, groups=train.image_ids)
    encoder.rank_   # number of response patterns that it predicts

Deep models predict all voxels through one latent, and gain from that alone. These two have the same gain without any
network, so a model that beats ridge and not them has found shrinkage, not structure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import BrainDataError
from ._base import Samples, folds_of
from ._solver import default_device, fit_ridge
from .ridge import ALPHAS, Ridge

__all__ = ["PriorRidge", "ReducedRankRidge"]

_LEAST_SIZE = 1e-6  # ratio to the largest singular value below which a direction holds only rounding errors
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
    """Ridge regression whose weights are expected to vary as those of all voxels do.

        w of a voxel ~ N(0, S),    argmin_w |Y - b - X w|^2 + alpha w' S^-1 w

    S is the second moment over voxels of the weights that `Ridge` finds on the same rows. So directions that
    other voxels use are shrunk less. Each voxel takes its alpha, which is its noise variance under this prior, by
    cross-validation. Outside the span of those weights all weights are 0.

    Args:
        alphas: Penalties to choose from, in units of the mean variance of a voxel.
        cv, n_targets_batch, device: As in `Ridge`.

    Attributes:
        prior_root_: (p, r) Root of the second moment: S = root @ root.T.
        alphas_, cv_scores_: As in `Ridge`; the penalties are in units of the mean variance of a voxel.
        coef_, intercept_, X_mean_, Y_mean_, n_features_in_: As in `Ridge`.
    """

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "PriorRidge":
        """Find the prior, choose penalties and fit; arguments and errors are those of `Ridge.fit`."""
        X, Y, labels = self._pairs(X, Y, groups)
        options = {"cv": self.cv, "n_targets_batch": self.n_targets_batch, "device": self.device}
        first = Ridge(**options).fit(X, Y, labels)
        self.X_mean_, self.Y_mean_ = first.X_mean_, first.Y_mean_
        self.prior_root_ = _root(first.coef_)
        unit = np.float32(np.sqrt(Y.var(0, dtype=np.float64).mean()) or 1.0)
        root = self.prior_root_ / unit
        inner = Ridge(self.alphas, **options).fit((X.astype(np.float32) - self.X_mean_) @ root, Y, labels)
        self.alphas_, self.cv_scores_ = inner.alphas_, inner.cv_scores_
        self._coef, self.dual_coef_, self.X_fit_ = root @ inner.coef_, None, None
        return self


def _patterns(fitted: np.ndarray) -> np.ndarray:
    """Right singular vectors (r, V) of fitted values (n, V), the largest first."""
    return torch.linalg.svd(torch.from_numpy(fitted).double(), full_matrices=False)[2].float().numpy()


def _root(weights: np.ndarray) -> np.ndarray:
    """Root (p, r) of the second moment of weights (p, V) over voxels, without directions that hold rounding errors."""
    left, sizes, _ = torch.linalg.svd(torch.from_numpy(weights).double(), full_matrices=False)
    kept = max(int((sizes > _LEAST_SIZE * sizes[0]).sum()), 1)
    return (left[:, :kept] * sizes[:kept] / weights.shape[1] ** 0.5).float().numpy()
