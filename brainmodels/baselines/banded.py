"""Ridge regression over several feature spaces, each with a penalty of its own, by himalaya."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..errors import AxisError, BrainDataError, need
from ._base import LinearBaseline, Samples, folds_of
from ._solver import default_device
from .ridge import ALPHAS, checked_alphas

__all__ = ["BandedRidge"]

_SMALLEST_SHARE = 1e-12  # draws of a concentrated Dirichlet underflow to 0, by which himalaya would divide


class BandedRidge(LinearBaseline):
    """Banded ridge regression: every voxel weighs the feature spaces in its own way.

    argmin_w |Y - b - sum_k X_k w_k|^2 + sum_k exp(-delta_k) |w_k|^2 for spaces k, where exp(delta_k) = gamma_k / alpha
    and the shares gamma sum to 1 (Dupré la Tour et al., 2022). Shares are drawn at random, the first draw giving all
    spaces the same, which is ordinary ridge; each voxel takes the shares and the alpha of the least held-out squared
    error. himalaya's GroupRidgeCV computes it, or MultipleKernelRidgeCV where there are more features than samples.

    The time is that of `n_iter` ridge regressions. himalaya's backend is a global switch, which is set during `fit` and
    put back: do not fit in several threads of one process.

    Args:
        spaces: columns of each feature space by its name, slices or index arrays; every column in exactly one.
        alphas: penalties to choose from, above 0.
        n_iter: draws of shares.
        concentration: of the Dirichlet distributions, used in turn; small ones favour one space.
        cv: as for `Ridge`.
        random_state: seed of the draws.
        n_targets_batch: voxels that are computed at a time.
        device: "cuda" or "cpu"; None is a GPU where there is one.

    Attributes:
        deltas_: (spaces, V) in the order of `spaces`.
        alphas_: (V,) the chosen alphas, 1 / sum_k exp(delta_k).
        cv_scores_: (V,) minus the held-out mean squared error at the choice, averaged over folds.
        coef_, intercept_: (p, V) and (V,), for features as they are.
        dual_coef_, X_fit_: (n, V) and (n, p), centred; None where p <= n.
        X_mean_, Y_mean_: (p,) and (V,) of the train rows.
        n_features_in_: p.

    Example:
        >>> model = BandedRidge({"early": slice(0, 64), "late": slice(64, 832)})
        >>> shares = np.exp(model.fit(X, Y).deltas_) * model.alphas_  # doctest: +SKIP
    """

    def __init__(
        self,
        spaces: Mapping[str, slice | Sequence[int]],
        alphas: Sequence[float] = ALPHAS,
        n_iter: int = 20,
        concentration: Sequence[float] = (0.1, 1.0),
        cv: Any = 5,
        random_state: int = 0,
        n_targets_batch: int = 1024,
        device: str | None = None,
    ):
        self.spaces = spaces
        self.alphas = alphas
        self.n_iter = n_iter
        self.concentration = concentration
        self.cv = cv
        self.random_state = random_state
        self.n_targets_batch = n_targets_batch
        self.device = device

    def fit(self, X: Samples, Y: Samples, groups: Sequence | None = None) -> "BandedRidge":
        """Choose shares and penalties, and fit.

        Args:
            X: features (n, p).
            Y: responses (n, V).
            groups: (n,) such as image ids; the samples of one group stay in one fold.

        Raises:
            AxisError: shapes do not match, or a column is in no space or in two.
            BrainDataError: NaN, or penalties that are not above 0.
            LeakageError: `cv` is a splitter that tears a group apart.
        """
        X, Y, groups = self._pairs(X, Y, groups)
        self._columns = _columns_of(self.spaces, X.shape[1])
        self.X_mean_, self.Y_mean_ = (array.mean(0, dtype=np.float64).astype(np.float32) for array in (X, Y))
        features = X.astype(np.float32, copy=False) - self.X_mean_
        responses = Y.astype(np.float32, copy=False) - self.Y_mean_
        dual = X.shape[1] > len(X)
        model = self._himalaya(dual, folds_of(self.cv, len(X), groups))
        bands = [features[:, columns] for columns in self._columns]
        self.X_fit_, self.dual_coef_, self._coef = None, None, None
        with _backend(default_device(self.device)):
            model.fit(np.stack([band @ band.T for band in bands]) if dual else bands, responses)
        self.deltas_ = _array(model.deltas_)
        self.alphas_ = 1 / np.exp(self.deltas_).sum(0)
        self.cv_scores_ = _array(model.cv_scores_).max(0)
        if dual:
            self.X_fit_, self.dual_coef_ = features, _array(model.dual_coef_)
        else:
            self._coef = np.empty((X.shape[1], Y.shape[1]), np.float32)
            self._coef[np.concatenate(self._columns)] = _array(model.coef_)
        return self

    def predict_spaces(self, X: Samples) -> dict[str, np.ndarray]:
        """What each space adds to the predictions, fp32 (n, V) by name; with `Y_mean_` they add up to `predict`."""
        X, coef = self._samples(X) - self.X_mean_, self.coef_
        return {name: X[:, columns] @ coef[columns] for name, columns in zip(self.spaces, self._columns, strict=True)}

    def _bands(self) -> list[tuple[Any, np.ndarray | None]]:
        return list(zip(self._columns, np.exp(self.deltas_), strict=True))

    def _himalaya(self, dual: bool, folds: list[tuple[np.ndarray, np.ndarray]]) -> Any:
        """himalaya's estimator for either form; folds centre on their own train rows."""
        try:
            from himalaya.kernel_ridge import MultipleKernelRidgeCV
            from himalaya.ridge import GroupRidgeCV
        except ImportError as error:
            raise need("himalaya", "BandedRidge") from error
        params = {
            "n_iter": _shares(len(self._columns), self.n_iter, self.concentration, self.random_state),
            "alphas": checked_alphas(self.alphas).astype(np.float32),
            "n_targets_batch": self.n_targets_batch,
            "progress_bar": False,
        }
        if dual:
            return MultipleKernelRidgeCV("precomputed", solver_params=params, fit_intercept=True, cv=folds)
        return GroupRidgeCV("input", solver_params=params | {"warn": False}, fit_intercept=True, cv=folds)


def _columns_of(spaces: Mapping[str, slice | Sequence[int]], count: int) -> list[np.ndarray]:
    """Column numbers of each space, which together are all of them once."""
    every = np.arange(count)
    try:
        columns = [every[space if isinstance(space, slice) else np.asarray(space)] for space in spaces.values()]
    except IndexError as error:
        raise AxisError(f"expected spaces of {count} features, got a column beyond: {error}") from None
    for name, part in zip(spaces, columns, strict=True):
        if not len(part):
            raise AxisError(f"expected columns of space {name!r} within {count} features, got none")
    used = np.bincount(np.concatenate(columns), minlength=count) if columns else np.zeros(count, int)
    if (used != 1).any():
        column = int(np.flatnonzero(used != 1)[0])
        raise AxisError(f"expected every feature in exactly one space, got feature {column} in {used[column]}")
    return columns


def _shares(spaces: int, count: int, concentration: Sequence[float], seed: int) -> np.ndarray:
    """Points (count, spaces) of the simplex, fp32: the middle first, then draws from each Dirichlet in turn."""
    if count < 1 or not len(concentration) or min(concentration) <= 0:
        raise BrainDataError(
            f"expected one or more draws and concentrations above 0, got {count} and {tuple(concentration)}"
        )
    rng = np.random.default_rng(seed)
    draws = [rng.dirichlet([concentration[i % len(concentration)]] * spaces) for i in range(count - 1)]
    shares = np.maximum([np.full(spaces, 1 / spaces), *draws], _SMALLEST_SHARE)
    return shares.astype(np.float32)


@contextmanager
def _backend(device: torch.device) -> Iterator[None]:
    """himalaya computing with torch on a device, and as before afterwards."""
    from himalaya.backend import get_backend, set_backend

    before = get_backend()
    set_backend("torch_cuda" if device.type == "cuda" else "torch")
    try:
        yield
    finally:
        set_backend(before)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy()
