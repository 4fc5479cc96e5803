"""Linear encoders of single voxels as plain arrays, their error on held-out images, and a prior over their weights.

    model = VoxelModel.of(Ridge().fit(X, Y), "ridge", context.image_ids)
    model.score(X_test, Y_test)                     # R^2, (V,)
    prior = WeightPrior.of([model_of_sim02, model_of_sim03])
    PriorRidge(prior=prior).fit(X_few, Y_few)       # voxels of a new subject

A method that reads few images of a subject and writes weights, with or without training, returns a `VoxelModel`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from ..data.ids import Ids, as_ids
from ..errors import AxisError, BrainDataError, LeakageError
from ._base import LinearBaseline, Samples, _same_rows, folds_of, matrix

__all__ = [
    "VoxelModel",
    "WeightPrior",
    "heldout_residuals",
    "heldout_variance",
    "ridge_of",
    "rowwise_residuals",
    "shrunk_variance",
]

_PSEUDO_IMAGES = 4  # weight, in images, of the mean over voxels in the error of one voxel
_JITTER = 1e-6  # added to the variance of every weight, so that the covariance can be inverted

Fit = Callable[[np.ndarray, np.ndarray], "VoxelModel"]


@dataclass(frozen=True)
class VoxelModel:
    """y = x coef_ + intercept_ for every voxel of one subject, and which images it was made from.

    Attributes:
        coef_: fp32 (E, V) Weights.
        intercept_: fp32 (V,) Responses to features that are all 0.
        method: Name of the method that made the weights, such as "in_context", "ridge" or "prior_ridge".
        image_ids: Ids of the context images. Empty if they are not known.
        residual_var_: fp32 (V,) Mean squared error on held-out images, see `heldout_variance`; None if it is not known.
            `dataclasses.replace(model, residual_var_=...)` adds it.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: A number is not finite, or a variance is negative.
    """

    coef_: np.ndarray
    intercept_: np.ndarray
    method: str
    image_ids: tuple[str, ...] = ()
    residual_var_: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "image_ids", tuple(dict.fromkeys(as_ids(list(self.image_ids)).tolist())))
        shape = np.shape(self.coef_)
        if len(shape) != 2 or 0 in shape:
            raise AxisError(f"expected weights (features, voxels), got shape {shape}")
        for name in ("coef_", "intercept_", "residual_var_"):
            values = getattr(self, name)
            if values is None:
                continue
            values = np.ascontiguousarray(values, np.float32)
            if name != "coef_" and values.shape != shape[1:]:
                raise AxisError(f"expected {name} of {shape[1]} voxels, got shape {values.shape}")
            if not np.isfinite(values).all() or (name == "residual_var_" and (values < 0).any()):
                raise BrainDataError(f"expected finite {name} and no negative variances, got others")
            object.__setattr__(self, name, values)

    @classmethod
    def of(cls, fitted: LinearBaseline, method: str, image_ids: Ids = ()) -> Self:
        """The weights of a fitted baseline that predicts responses.

        Args:
            fitted: Such as `Ridge` or `PriorRidge`.
            method: Name of the method.
            image_ids: Ids of the images that it was fitted to.
        """
        return cls(*fitted.affine(), method, tuple(image_ids))

    def predict(self, X: Samples) -> np.ndarray:
        """Predicted responses fp32 (m, V) to features X (m, E).

        Raises:
            AxisError: Another number of features than weights.
            BrainDataError: Features that are not finite.
        """
        X = matrix("features", X)
        if X.shape[1] != len(self.coef_):
            raise AxisError(f"expected {len(self.coef_)} features, as {self.method} has weights, got {X.shape[1]}")
        return X.astype(np.float32, copy=False) @ self.coef_ + self.intercept_

    def score(self, X: Samples, Y: Samples) -> np.ndarray:
        """R^2 of each voxel over the samples, fp64 (V,), as `Ridge.score` defines it.

        Args:
            X: (m, E) Features.
            Y: (m, V) Responses.
        """
        from ..metrics.encoding import r2

        return r2(matrix("responses", Y, finite=False), self.predict(X), axis=0)

    def select(self, mask: np.ndarray) -> "VoxelModel":
        """The model of some voxels, in their order.

        Args:
            mask: (V,) Booleans.

        Raises:
            AxisError: Another shape or type, or no voxel.
        """
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != self.intercept_.shape or not mask.any():
            raise AxisError(
                f"expected booleans of {len(self.intercept_)} voxels, not all False, got {mask.dtype} {mask.shape}"
            )
        variance = None if self.residual_var_ is None else self.residual_var_[mask]
        return VoxelModel(self.coef_[:, mask], self.intercept_[mask], self.method, self.image_ids, variance)

    def check_unseen(self, image_ids: Ids) -> None:
        """Check that none of these images is in the context.

        Raises:
            LeakageError: An image is in the context.
        """
        common = sorted(set(self.image_ids) & set(as_ids(image_ids).ravel().tolist()))
        if common:
            raise LeakageError(
                f"expected test images outside the context of {self.method}, got {len(common)} that are in it, such as "
                f"{common[0]}"
            )

    def arrays(self, name: str) -> dict[str, Tensor]:
        """The model as tensors for a file, under a name. Method and ids are the bytes of a JSON text."""
        facts = json.dumps({"method": self.method, "image_ids": self.image_ids}).encode()
        found: dict[str, Any] = {"coef": self.coef_, "intercept": self.intercept_}
        found |= {} if self.residual_var_ is None else {"residual_var": self.residual_var_}
        found["facts"] = np.frombuffer(facts, np.uint8).copy()
        return {f"{name}.{key}": torch.from_numpy(value) for key, value in found.items()}

    @classmethod
    def taken(cls, arrays: dict[str, Tensor], name: str) -> Self:
        """The model of that name, taken out of the tensors of a file; a missing one is a KeyError."""
        coef, intercept, facts = (arrays.pop(f"{name}.{key}").numpy() for key in ("coef", "intercept", "facts"))
        variance = arrays.pop(f"{name}.residual_var", None)
        known = json.loads(facts.tobytes())
        return cls(
            coef,
            intercept,
            known["method"],
            tuple(known["image_ids"]),
            None if variance is None else variance.numpy(),
        )


def heldout_residuals(
    fit: Fit, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None, cv: Any = 5
) -> np.ndarray:
    """Measured minus predicted responses, where no prediction comes from a fit that saw the image.

    Args:
        fit: Makes a `VoxelModel` from features and responses. It is called once a fold.
        X: (n, E) Features.
        Y: (n, V) Responses.
        groups: (n,) Labels such as image ids. Samples of one group stay in one fold.
        cv: Number of folds, or a scikit-learn splitter, as in `Ridge`. Every row is held out once.

    Returns:
        fp32 (n, V).

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: Values that are not finite, or folds that do not hold out every row once.
        LeakageError: `cv` is a splitter that puts one group on both sides of a fold.
    """
    X, Y = matrix("features", X), matrix("responses", Y)
    return rowwise_residuals(lambda rows: fit(X[rows], Y[rows]), X, Y, _same_rows(X, Y, groups), cv)


def rowwise_residuals(
    fit: Callable[[np.ndarray], VoxelModel], X: np.ndarray, Y: np.ndarray, labels: np.ndarray | None, cv: Any
) -> np.ndarray:
    """As `heldout_residuals`, of checked input and a fit that takes the numbers of the train rows."""
    folds = folds_of(cv, len(X), labels)
    counts = np.bincount(np.concatenate([test for _, test in folds]), minlength=len(X))
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise BrainDataError(f"expected folds that hold out every row once, got row {row} in {counts[row]}")
    residuals = np.empty(Y.shape, np.float32)
    for train, test in folds:
        residuals[test] = Y[test] - fit(train).predict(X[test])
    return residuals


def heldout_variance(
    fit: Fit, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None, cv: Any = 5
) -> np.ndarray:
    """Mean squared error of each voxel on held-out images, shrunk towards the mean over voxels.

        (n r_v + 4 mean(r)) / (n + 4),    r_v = mean over rows of the squared held-out residual

    Here n is the number of images. Never use the error on the images of the fit instead: with fewer images than
    features it is almost 0, whatever the noise.

    Args:
        fit, X, Y, groups, cv: As in `heldout_residuals`, with its errors.

    Returns:
        fp64 (V,).
    """
    residuals = heldout_residuals(fit, X, Y, groups, cv)
    return shrunk_variance(residuals, len(residuals) if groups is None else len(np.unique(np.asarray(groups))))


def shrunk_variance(residuals: np.ndarray, count: int) -> np.ndarray:
    """The variance that `heldout_variance` defines, from residuals (n, V) of `count` images."""
    squares = np.square(residuals, dtype=np.float64).mean(0)
    return (count * squares + _PSEUDO_IMAGES * squares.mean()) / (count + _PSEUDO_IMAGES)


@dataclass(frozen=True)
class WeightPrior:
    """Normal distribution of the weights and intercepts of voxels.

    Attributes:
        mean: fp64 (E+1,) Mean; the last entry is that of the intercept.
        covariance: fp64 (E+1, E+1) Covariance, positive definite.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: A covariance that is not positive definite.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self):
        size = np.shape(self.mean)
        if len(size) != 1 or np.shape(self.covariance) != size * 2 or size[0] < 2:
            raise AxisError(f"expected a mean (E+1,) and its covariance, got {size} and {np.shape(self.covariance)}")
        try:
            found = bool(np.isfinite(self.mean).all() and np.isfinite(self.root).all())
        except np.linalg.LinAlgError:
            found = False
        if not found or not np.allclose(self.covariance, np.transpose(self.covariance)):
            raise BrainDataError("expected a finite mean and a positive definite covariance, got others")

    @classmethod
    def of(cls, models: Sequence[VoxelModel]) -> Self:
        """Mean and covariance over all voxels of some subjects, where every voxel counts once.

        The covariance is shrunk towards a multiple of the identity (Ledoit & Wolf, 2004), and 1e-6 is added to its
        diagonal.

        Args:
            models: Models of other subjects in one feature space.

        Raises:
            AxisError: Models of unequal numbers of features.
            BrainDataError: No model, or fewer than two voxels.
        """
        widths = sorted({len(model.coef_) for model in models})
        if len(widths) > 1:
            raise AxisError(f"expected models of one number of features, got {', '.join(map(str, widths))}")
        if sum(len(model.intercept_) for model in models) < 2:
            raise BrainDataError(f"expected models of two or more voxels, got {len(models)} with fewer")
        rows = np.concatenate([np.vstack([model.coef_, model.intercept_]).T for model in models]).astype(np.float64)
        covariance, _ = ledoit_wolf(rows)
        return cls(rows.mean(0), covariance + _JITTER * np.eye(rows.shape[1]))

    @cached_property
    def root(self) -> np.ndarray:
        """Lower triangle L, for which the covariance is L L'."""
        return np.linalg.cholesky(np.asarray(self.covariance, np.float64))

    @overload
    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray: ...

    @overload
    def draw(self, generator: torch.Generator, count: int) -> Tensor: ...

    def draw(self, generator: np.random.Generator | torch.Generator, count: int) -> np.ndarray | Tensor:
        """Weights and intercepts of `count` voxels.

        Args:
            generator: Source of the draws, of numpy or torch.
            count: Number of voxels.

        Returns:
            fp64 (count, E+1) as an array, or fp32 as a tensor on the device of a torch generator.
        """
        if isinstance(generator, np.random.Generator):
            return self.mean + generator.standard_normal((count, len(self.mean))) @ self.root.T
        mean, root = (torch.from_numpy(x).to(generator.device, torch.float32) for x in (self.mean, self.root))
        noise = torch.randn(count, len(mean), generator=generator, device=generator.device)
        return mean + noise @ root.T

    def posterior(self, X: np.ndarray, Y: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Posterior mean of the weights and the intercept of each voxel, from one decomposition for all voxels.

            argmin_w |Y - Z w|^2 / noise + (w - mean)' covariance^-1 (w - mean),    Z = [X, 1]

        Args:
            X: (n, E) Features.
            Y: (n, V) Responses.
            noise: (V,) Variance of the noise of each voxel, above 0; infinity leaves the mean.

        Returns:
            fp64 (E+1, V).

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: A variance that is not above 0.
        """
        shape, noise = (len(Y), len(self.mean) - 1), np.asarray(noise, np.float64)
        if X.shape != shape or noise.shape != Y.shape[1:]:
            raise AxisError(
                f"expected features {shape} and one noise variance a voxel, got {X.shape} and {noise.shape} for "
                f"responses {Y.shape}"
            )
        if not (noise > 0).all():
            voxel = int(np.argmin(noise > 0))
            raise BrainDataError(f"expected noise variances above 0, got {noise[voxel]} in voxel {voxel}")
        Z = np.column_stack([X.astype(np.float64), np.ones(len(X))])
        system = np.linalg.svd(Z @ self.root, full_matrices=False)  # w = mean + root u, u ~ N(0, I)
        return self.mean[:, None] + self.root @ ridge_of(system, Y - (Z @ self.mean)[:, None], noise)


def ridge_of(system: tuple[np.ndarray, ...], Y: np.ndarray, penalty: np.ndarray | float) -> np.ndarray:
    """Ridge weights (p, V) for responses Y (n, V), from the thin singular value decomposition of features (n, p).

    Args:
        system: Left vectors (n, r), singular values (r,) and right vectors (r, p).
        Y: (n, V) Responses.
        penalty: One for all voxels, or (V,); above 0.
    """
    left, sizes, basis = system
    shrink = sizes[:, None] / (np.square(sizes)[:, None] + penalty)
    return basis.T @ (left.T @ Y * shrink)
