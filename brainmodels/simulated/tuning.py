"""The tuning of simulated voxels: the features of a scene that each voxel responds to.

    tuning = plant_tuning(space, "linear", np.random.default_rng(0))
    tuning.signal(SceneFeatures()(ids))  # (len(ids), V)

Voxels respond to the planted features z of a scene, standardised on a pool of 1,000 other scenes:

| region | response |
|---|---|
| V1, V4 | edge energy in a Gaussian receptive field of 0.7 (V1) and 1.4 (V4) cells of the 6 x 6 grid |
| SHAPE, COLOR, PLACE | s . w + a preferred shape, colour or background |
| SEM | s . w |

Here s are 16 whitened principal axes of the factors and half the colour grid, the same in all subjects. Each voxel has
different weights w. Signals have mean 0 and variance 1 on the pool. `with_own_weights` adds tuning that
is not shared.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..data.grid import GRID
from ..data.spaces import VoxelSpace
from ..errors import BrainDataError
from .scenes import FACTORS, FEATURE_GROUPS, NUM_FEATURES, SceneFeatures, scene_id

__all__ = [
    "ROIS",
    "Conjunctions",
    "Pool",
    "Tuning",
    "plant_tuning",
    "simulated_space",
    "standardize",
    "with_own_weights",
]

# regions from back to front, with their shares of the voxels
ROIS = {"V1": 0.28, "V4": 0.2, "SHAPE": 0.13, "COLOR": 0.13, "PLACE": 0.13, "SEM": 0.13}

_FIELD_CELLS = {"V1": 0.7, "V4": 1.4}
_PREFERS = {"SHAPE": "shape", "COLOR": "color", "PLACE": "background"}
_CONJOINS = {
    "SHAPE": ("shape", "color"),
    "COLOR": ("shape", "color"),
    "PLACE": ("background", "color"),
    "SEM": ("shape", "color"),
}
_POOL_SEED, _POOL_SIZE = 20_240_517, 1000
_SHARED_AXES = 16
_MILLIMETRES = 1.8


@dataclass(frozen=True)
class Pool:
    """Scenes that no subject sees. They set the scale of features and signals.

    Attributes:
        raw: Features before standardisation, (1000, 133).
        mean: Mean of each feature, (133,).
        sd: Standard deviation of each feature, (133,).
        correlation: Correlations of the features, (133, 133).
        axes: Matrix from standardised features to s, (133, 16).
    """

    raw: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    correlation: np.ndarray
    axes: np.ndarray


@functools.cache
def pool() -> Pool:
    """The pool, which is drawn at the first call and then kept."""
    raw = SceneFeatures()([scene_id(_POOL_SEED, index) for index in range(_POOL_SIZE)]).astype(np.float64)
    mean, sd = raw.mean(0), raw.std(0)
    seen = np.ones(NUM_FEATURES)
    seen[FEATURE_GROUPS["edges"]], seen[FEATURE_GROUPS["opponents"]] = 0, 0.5
    standard = (raw - mean) / sd
    _, singular, basis = np.linalg.svd(standard * seen, full_matrices=False)
    axes = seen[:, None] * basis[:_SHARED_AXES].T * (np.sqrt(_POOL_SIZE) / singular[:_SHARED_AXES])
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(_SHARED_AXES)])  # the sign of a principal axis is arbitrary
    return Pool(raw, mean, sd, standard.T @ standard / _POOL_SIZE, axes)


def standardize(raw: np.ndarray) -> np.ndarray:
    """Standardise raw features (n, 133) with the pool's mean and standard deviation, fp32."""
    return ((raw - pool().mean) / pool().sd).astype(np.float32)


@dataclass(frozen=True)
class Conjunctions:
    """The part of a subject's tuning that is not linear.

    Voxels with a receptive field divide the squared energy f^2 within it by the energy of the whole picture. This is
    the normalisation of Heeger (Visual Neuroscience 9, 1992):

        r = f^2 / (h^2 + mean e^2)

    In other voxels, half the variance is a product of tunings to two factors, such as shape and colour. This product is
    uncorrelated with either factor.

    Attributes:
        field: Receptive fields, (36, V), with columns of sum 1. 0 for voxels without one.
        half: Energy h of the picture at which normalisation halves the response.
        left: Tuning to the first factor, (133, V).
        right: Tuning to the second factor, (133, V).
        mean: Mean response of each voxel on the pool, before standardisation, (V,).
        sd: Standard deviation of these responses, (V,).
    """

    field: np.ndarray
    half: float
    left: np.ndarray
    right: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    def respond(self, raw: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """Responses (n, V), not standardised, from raw features (n, 133) and linear signals (n, V)."""
        standard = standardize(raw)
        energy = raw[:, FEATURE_GROUPS["edges"]]
        normalized = (energy @ self.field) ** 2 / (self.half**2 + (energy**2).mean(1, keepdims=True))
        conjoined = (linear + (standard @ self.left) * (standard @ self.right)) * np.sqrt(0.5)
        return np.where(self.field.any(0), normalized, conjoined)


@dataclass(frozen=True)
class Tuning:
    """The tuning of one subject's voxels.

    Attributes:
        weights: Weights from standardised planted features to the linear signal, (133, V).
        rf_centers: Centres x and y of receptive fields, (V, 2), in cells of the grid, 0 to 5 from the left and top. NaN
            for voxels without one.
        preferred: Name of the preferred shape, colour or background, (V,), or "".
        conjunctions: Non-linear part of the tuning. None for a linear subject.
        own: Weights from standardised planted features to what is added to a non-linear answer, (133, V), and the
            factor (V,) of that answer. None where nothing is added. A linear subject has them in `weights`.
    """

    weights: np.ndarray
    rf_centers: np.ndarray
    preferred: np.ndarray
    conjunctions: Conjunctions | None = None
    own: tuple[np.ndarray, np.ndarray] | None = None

    def signal(self, raw: np.ndarray) -> np.ndarray:
        """Signals without noise, fp32 (n, V), from raw features (n, 133)."""
        raw = np.asarray(raw, np.float32)
        linear = standardize(raw) @ self.weights
        if self.conjunctions is None:
            return linear
        answer = self.conjunctions.respond(raw, linear)
        answer = (answer - self.conjunctions.mean) / self.conjunctions.sd
        if self.own is not None:
            weights, factor = self.own
            answer = answer * factor + standardize(raw) @ weights
        return answer.astype(np.float32)


def simulated_space(num_voxels: int, box: tuple[int, int, int], ncsnr: np.ndarray) -> VoxelSpace:
    """A round set of voxels in the middle of a box, with regions in slabs from back (small y) to front."""
    grid = np.indices(box).reshape(3, -1).T
    sides = np.array(box)
    distance = (((grid + 0.5) / sides - 0.5) ** 2).sum(1)
    mask = np.zeros(box, bool)
    mask.flat[np.argsort(distance, kind="stable")[:num_voxels]] = True
    index = np.argwhere(mask)
    bounds = np.round(np.cumsum([0, *ROIS.values()]) * num_voxels).astype(int)
    order = np.argsort(index[:, 1], kind="stable")
    rois = {}
    for number, name in enumerate(ROIS):
        rois[name] = np.zeros(num_voxels, bool)
        rois[name][order[bounds[number] : bounds[number + 1]]] = True
    affine = np.diag([_MILLIMETRES] * 3 + [1.0])
    affine[:3, 3] = -_MILLIMETRES * (sides - 1) / 2
    return VoxelSpace("simulated1pt8mm", index, box, affine, rois, ncsnr)


def plant_tuning(space: VoxelSpace, kind: str, rng: np.random.Generator) -> Tuning:
    """Draw the tuning of the voxels of a space.

    Args:
        space: Space with the regions of `ROIS`.
        kind: "linear" or "nonlinear".
        rng: Random generator. Both kinds take the same numbers from it for their linear part.

    Raises:
        BrainDataError: `kind` is unknown.
    """
    if kind not in ("linear", "nonlinear"):
        raise BrainDataError(f"expected tuning 'linear' or 'nonlinear', got {kind!r}")
    num_voxels = len(space)
    own = rng.normal(size=(_SHARED_AXES, num_voxels)) / np.sqrt(_SHARED_AXES)
    jitter = rng.normal(scale=0.3, size=(num_voxels, 2))
    picks = rng.random(num_voxels)
    weights = pool().axes @ own
    field = np.zeros((GRID * GRID, num_voxels))
    centers = np.full((num_voxels, 2), np.nan)
    preferred = np.full(num_voxels, "", dtype="U16")
    for name, sigma in _FIELD_CELLS.items():
        roi = space.roi(name)
        centers[roi] = _retinotopy(space.index[roi], jitter[roi])
        field[:, roi] = _gaussian_fields(centers[roi], sigma)
        weights[:, roi] = 0
        weights[FEATURE_GROUPS["edges"], roi] = field[:, roi]
    for name, factor in _PREFERS.items():
        voxels = np.flatnonzero(space.roi(name))
        level = (picks[voxels] * len(FACTORS[factor])).astype(int)
        weights[FEATURE_GROUPS[factor].start + level, voxels] += 1
        preferred[voxels] = np.array(FACTORS[factor])[level]
    weights /= np.sqrt((weights * (pool().correlation @ weights)).sum(0))
    weights = weights.astype(np.float32)
    conjunctions = _plant_conjunctions(space.rois, field, weights, rng) if kind == "nonlinear" else None
    return Tuning(weights, centers, preferred, conjunctions)


def with_own_weights(tuning: Tuning, share: float, rng: np.random.Generator) -> Tuning:
    """The tuning with a share of its variance from weights that each voxel draws alone.

    The weights are standard normal numbers, one for each planted feature. Both parts have unit variance on the pool
    before they are added, and so has the sum.

    Args:
        tuning: Tuning that the voxels of a subject share with those of others.
        share: Share of the variance, 0 to 1.
        rng: Random generator.
    """
    own = rng.normal(size=tuning.weights.shape)
    own /= np.sqrt((own * (pool().correlation @ own)).sum(0))
    shared, added = np.sqrt(1 - share), np.sqrt(share) * own
    if tuning.conjunctions is None:
        weights = shared * tuning.weights + added
        sd = np.sqrt((weights * (pool().correlation @ weights)).sum(0))
        return replace(tuning, weights=(weights / sd).astype(np.float32))
    sd = (shared * tuning.signal(pool().raw) + standardize(pool().raw) @ added).std(0)
    return replace(tuning, own=((added / sd).astype(np.float32), (shared / sd).astype(np.float32)))


def _plant_conjunctions(
    rois: Mapping[str, np.ndarray], field: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> Conjunctions:
    raw = pool().raw.astype(np.float32)
    standard = standardize(raw)
    sides = np.zeros((2, *weights.shape), np.float32)
    for name, factors in _CONJOINS.items():
        roi = np.flatnonzero(rois[name])
        for number, factor in zip(range(len(sides)), factors, strict=True):
            columns = FEATURE_GROUPS[factor]
            draw = rng.normal(size=(len(FACTORS[factor]), len(roi)))
            sides[number][columns, roi] = draw / np.maximum((standard[:, columns] @ draw).std(0), 1e-6)
    half = float(raw[:, FEATURE_GROUPS["edges"]].mean())
    draft = Conjunctions(field.astype(np.float32), half, sides[0], sides[1], np.zeros(1), np.ones(1))
    answer = draft.respond(raw, standard @ weights).astype(np.float64)
    return Conjunctions(draft.field, half, sides[0], sides[1], answer.mean(0), answer.std(0))


def _retinotopy(index: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Centres (V, 2) that follow the position in the region: right voxels see the left, upper ones see below."""
    low, high = index.min(0), index.max(0)
    across, _, up = ((index - low) / np.maximum(high - low, 1)).T
    centers = np.stack([1 - across, up], 1) * (GRID - 1)
    return np.clip(centers + jitter, 0, GRID - 1)


def _gaussian_fields(centers: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussians over the cells of the grid, (36, V), with columns of sum 1."""
    y, x = np.divmod(np.arange(GRID * GRID), GRID)
    distance = (x[:, None] - centers[:, 0]) ** 2 + (y[:, None] - centers[:, 1]) ** 2
    field = np.exp(-distance / (2 * sigma**2))
    return field / field.sum(0)
