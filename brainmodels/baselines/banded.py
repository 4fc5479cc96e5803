"""Banded ridge regression, computed by himalaya: several feature spaces, each with its own penalty for each voxel.

    model = BandedRidge({"early": slice(0, 64), "late": slice(64, 832)}).fit(X, Y, groups=train.image_ids)
    model.predict_spaces(X_test)["early"]  # (n, V), what this space adds to the predictions

Plain ridge regression, with one space, has its own faster solver: `Ridge`.
"""

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

_SMALLEST_SHARE = 1e-12  # draws with a small concentration underflow to 0, and himalaya divides by them


class BandedRidge(LinearBaseline):
    """Banded ridge regression: every voxel weighs the feature spaces differently.

        argmin_w |Y - b - sum_k X_k w_k|^2 + sum_k exp(-delta_k) |w_k|^2

    for feature spaces k, where exp(delta_k) = gamma_k / alpha and the shares gamma sum to 1 (Dupré la Tour et al.,
    2022). Shares are drawn at random. The first draw gives all spaces the same share, which is ordinary ridge
    regression. Each voxel takes the shares and the alpha with the least held-out squared error. The fit is computed by
    himalaya's GroupRidgeCV, or by its MultipleKernelRidgeCV if there are more features than samples.

    A fit takes as long as `n_iter` ridge regressions. himalaya's backend is a global switch. `fit` sets it and puts it
    back afterwards, so do not fit in several threads of one process.

    Args:
        spaces: Columns of each feature space by its name, as slices or index arrays. Every column is in exactly one
            space.
        alphas: Penalties to choose from, above 0.
        n_iter: Number of draws of shares.
        concentration: Concentrations of the Dirichlet distributions, used in turn. Small ones favour one space.
        cv: Number of folds, or a scikit-learn splitter, as in `Ridge`.
        random_state: Seed of the draws.
        n_targets_batch: Number of voxels that are computed at a time.
        device: "cuda" or "cpu". None means a GPU if there is one.

    Attributes:
        deltas_: (spaces, V) Log weights delta, in the order of `spaces`.
        alphas_: (V,) Chosen alphas, 1 / sum_k exp(delta_k).
        cv_scores_: (V,) Minus the held-out mean squared error at the choice, averaged over folds.
        coef_, intercept_: (p, V) slopes and (V,) intercepts, for features that are not centred.
        dual_coef_, X_fit_: (n, V) dual weights and (n, p) centred train features. None if p <= n.
        X_mean_, Y_mean_: (p,) and (V,) Means over the train rows.
        n_features_in_: Number p of features.
        feature_names_in_: Names of the columns, if X was a DataFrame. `predict` refuses another order.

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

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "BandedRidge":
        """Choose shares and penalties, and fit.

        Args:
            X: (n, p) Features.
            Y: (n, V) Responses.
            groups: (n,) Labels such as image ids. Samples of one group stay in one fold.

        Raises:
            AxisError: Shapes do not match, or a column is in no space or in two.
            BrainDataError: NaN, or penalties that are not above 0.
            LeakageError: `cv` is a splitter that puts one group on both sides of a fold.
            ImportError: himalaya is not installed.
        """
        X, Y, labels = self._pairs(X, Y, groups)
        self._columns = _columns_of(self.spaces, X.shape[1])
        self.X_mean_, self.Y_mean_ = (array.mean(0, dtype=np.float64).astype(np.float32) for array in (X, Y))
        features = X.astype(np.float32, copy=False) - self.X_mean_
        responses = Y.astype(np.float32, copy=False) - self.Y_mean_
        dual = X.shape[1] > len(X)
        model = self._himalaya(dual, folds_of(self.cv, len(X), labels))
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
        """Contributions of all feature spaces to the predictions. Together with `Y_mean_` their sum is `predict`.

        Args:
            X: (n, p) Features.

        Returns:
            fp32 (n, V) by name of the space.
        """
        X, coef = self._samples(X) - self.X_mean_, self.coef_
        return {name: X[:, columns] @ coef[columns] for name, columns in zip(self.spaces, self._columns, strict=True)}

    def _bands(self) -> list[tuple[Any, np.ndarray | None]]:
        return list(zip(self._columns, np.exp(self.deltas_), strict=True))

    def _himalaya(self, dual: bool, folds: list[tuple[np.ndarray, np.ndarray]]) -> Any:
        """The estimator of himalaya that has the primal or the dual form. Folds are centred on their own train rows."""
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
        options: dict[str, Any] = {"fit_intercept": True, "cv": folds}
        if dual:
            return MultipleKernelRidgeCV("precomputed", solver_params=params, **options)
        return GroupRidgeCV("input", solver_params=params | {"warn": False}, **options)


def _columns_of(spaces: Mapping[str, slice | Sequence[int]], count: int) -> list[np.ndarray]:
    """Column numbers of each space. Together they hold every column once."""
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
        raise AxisError(f"expected every feature in exactly one space, got feature {column} in {used[column]} spaces")
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
    """Let himalaya compute with torch on a device, and restore its backend afterwards."""
    from himalaya.backend import get_backend, set_backend

    before = get_backend()
    set_backend("torch_cuda" if device.type == "cuda" else "torch")
    try:
        yield
    finally:
        set_backend(before)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy()
