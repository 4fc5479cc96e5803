"""Tests over many voxels: permutation p values, corrections for many tests, and paired differences of two models.

    test = voxel_test(measured, predicted, blocks=runs)  # correlations (voxels,) and their one-sided p values
    test.fdr(0.05)                                       # voxels (voxels,), false discovery rate of at most 5 %
    test.max_statistic(0.05)                             # voxels, family-wise error of at most 5 %
    voxel_difference(measured, first, second).p          # is the first model better, or worse, in a voxel?

All arrays are (images, voxels), with rows of the same images. Every permutation or sign flip is one pass over
standardised values. The same permutations hold for all voxels, so that the maximum over voxels has its right
distribution however voxels correlate (Nichols and Holmes, Human Brain Mapping 15, 2002).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import AxisError, BrainDataError
from .encoding import voxel_r
from .statistics import sign_flips

__all__ = [
    "DifferenceTest",
    "RegionTest",
    "VoxelTest",
    "fdr_adjusted",
    "num_orders",
    "permutations_within",
    "voxel_difference",
    "voxel_test",
]

PERMUTATIONS = 1000
_VOXELS = 512  # voxels that are permuted at a time, so that they stay in the cache
_TIES = 1e-6  # correlations closer than this count as equal
_LEAST_ORDERS = 20


@dataclass(frozen=True)
class RegionTest:
    """Test of the mean correlation of a region.

    Attributes:
        mean: Mean correlation of its voxels that have one.
        p: One-sided p value.
        p_max: The same, corrected for all regions by the maximum of their means.
        voxels: Number of voxels.
    """

    mean: float
    p: float
    p_max: float
    voxels: int


@dataclass(frozen=True)
class VoxelTest:
    """Test of each voxel's correlation between measured and predicted responses.

    Attributes:
        r: Correlation of each voxel (V,). NaN where measured responses are constant; such voxels are not tested.
        p: One-sided p values (V,), (1 + permutations that reach r) / (1 + permutations).
        p_max: p values (V,) corrected by the maximum over voxels of each permutation.
        permutations: Number of permutations.
        regions: Tests of the mean correlation by region.
    """

    r: np.ndarray
    p: np.ndarray
    p_max: np.ndarray
    permutations: int
    regions: Mapping[str, RegionTest] = field(default_factory=dict)

    @property
    def q(self) -> np.ndarray:
        """p values (V,) adjusted for the false discovery rate, see `fdr_adjusted`."""
        return fdr_adjusted(self.p)

    def fdr(self, level: float = 0.05) -> np.ndarray:
        """Voxels (V,) that are significant at a false discovery rate of `level`."""
        return _at_most(self.q, level)

    def max_statistic(self, level: float = 0.05) -> np.ndarray:
        """Voxels (V,) that are significant at a family-wise error of `level`."""
        return _at_most(self.p_max, level)


@dataclass(frozen=True)
class DifferenceTest:
    """Test of the difference between the correlations of two models in each voxel.

    Attributes:
        difference: Correlation of the first model minus that of the second, (V,).
        p: Two-sided p values (V,).
        p_max: p values (V,) corrected by the largest absolute difference of each sign flip.
        flips: Number of sign flips.
        mean: Mean difference over voxels.
        p_mean: Two-sided p value of the mean.
    """

    difference: np.ndarray
    p: np.ndarray
    p_max: np.ndarray
    flips: int
    mean: float
    p_mean: float

    @property
    def q(self) -> np.ndarray:
        """p values (V,) adjusted for the false discovery rate, see `fdr_adjusted`."""
        return fdr_adjusted(self.p)


def voxel_test(
    measured: np.ndarray,
    predicted: np.ndarray,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    blocks: np.ndarray | None = None,
    regions: Mapping[str, np.ndarray] | None = None,
) -> VoxelTest:
    """Test whether predictions correlate with the responses to their own images more than with those to others.

    The test is exact if images can be exchanged within blocks. Give each image the number of its run or session where
    responses of one run resemble each other.

    Args:
        measured, predicted: (images, voxels) Test responses and predictions of the same images.
        permutations: Number of permutations of the images.
        seed: Seed of the permutations.
        blocks: (images,) Labels; images are permuted only within a block. None permutes all images.
        regions: Masks (voxels,) by name, whose mean correlations are tested as well.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: Values that are not finite, or blocks that allow fewer than 20 orders of the images.
    """
    r = voxel_r(measured, predicted)
    orders = permutations_within(len(measured), permutations, seed, blocks)
    members, names = _members(regions or {}, r)
    tested = np.flatnonzero(~np.isnan(r))
    reached, largest = np.zeros(len(r), np.int64), np.full(permutations, -np.inf, np.float32)
    means = np.zeros((permutations, len(names)))
    for start in range(0, len(tested), _VOXELS):
        some = tested[start : start + _VOXELS]
        y, p = (_standard(x[:, some])[0] for x in (measured, predicted))
        drawn = np.empty((permutations, len(some)), np.float32)
        dealt = np.empty_like(p)
        for row, order in zip(drawn, orders, strict=True):
            np.take(p, order, axis=0, out=dealt, mode="clip")  # the other modes copy first
            np.einsum("iv,iv->v", dealt, y, out=row)
        reached[some] = (drawn >= r[some] - _TIES).sum(0)
        np.maximum(largest, drawn.max(1), out=largest)
        means += drawn @ members[some]
    p = np.where(np.isnan(r), np.nan, (1 + reached) / (1 + permutations))
    tests = {}
    if names:
        found = np.nan_to_num(r) @ members
        top = np.sort(means.max(1))
        for column, name in enumerate(names):
            single = (1 + int((means[:, column] >= found[column] - _TIES).sum())) / (1 + permutations)
            corrected = float(_upper(top, found[column : column + 1])[0])
            count = int((members[:, column] > 0).sum())
            tests[name] = RegionTest(float(found[column]), single, corrected, count)
    return VoxelTest(r, p, _upper(np.sort(largest), r), permutations, tests)


def voxel_difference(
    measured: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    flips: int = PERMUTATIONS,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> DifferenceTest:
    """Test whether the correlations of two models with the same responses differ, in each voxel and on average.

    The difference is a mean over images of what each image adds to it (its influence function). If both models are
    equally good, these numbers scatter around 0, so their signs are flipped at random. Images of one cluster are
    flipped together.

    Args:
        measured: (images, voxels) Test responses.
        first, second: (images, voxels) Predictions of two models.
        flips: Number of random sign flips.
        seed: Seed of the flips.
        clusters: (images,) Labels of images that belong together, such as runs. None flips single images.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: Values that are not finite, or fewer than six images or clusters.
    """
    r = [voxel_r(measured, predicted) for predicted in (first, second)]
    signs = sign_flips(len(measured), flips, seed, clusters)
    difference, tested = r[0] - r[1], np.flatnonzero(~np.isnan(r[0] - r[1]))
    reached, largest = np.zeros(len(difference), np.int64), np.zeros(flips, np.float32)
    total = np.zeros(len(measured))
    for start in range(0, len(tested), _VOXELS):
        some = tested[start : start + _VOXELS]
        added = _influence(measured[:, some], first[:, some]) - _influence(measured[:, some], second[:, some])
        drawn = np.abs(signs @ added.astype(np.float32)) / len(measured)  # (flips, voxels)
        reached[some] = (drawn >= np.abs(difference[some]) - _TIES).sum(0)
        np.maximum(largest, drawn.max(1), out=largest)
        total += added.sum(1)
    p = np.where(np.isnan(difference), np.nan, (1 + reached) / (1 + flips))
    each = total / max(1, len(tested))
    p_mean = (1 + int((np.abs(signs @ each) >= abs(each.sum()) - _TIES).sum())) / (1 + flips)
    corrected = _upper(np.sort(largest), np.abs(difference))
    return DifferenceTest(difference, p, corrected, flips, float(each.mean()), p_mean)


def fdr_adjusted(p: np.ndarray) -> np.ndarray:
    """p values adjusted for the false discovery rate of Benjamini and Hochberg (1995), by scipy.

    Voxels whose adjusted value is at most 0.05 contain on average at most 5 % of false discoveries, for independent or
    positively dependent tests.

    Args:
        p: (voxels,) p values. NaN is not tested and stays NaN.
    """
    from scipy.stats import false_discovery_control

    out = np.full(len(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        out[tested] = false_discovery_control(p[tested])
    return out


def permutations_within(n: int, permutations: int, seed: int = 0, blocks: np.ndarray | None = None) -> np.ndarray:
    """Random orders of n images that exchange images of one block only, (permutations, n).

    Raises:
        AxisError: Images and block labels differ in number.
        BrainDataError: The blocks allow fewer than 20 orders.
    """
    rng = np.random.default_rng(seed)
    if num_orders(n, blocks) < _LEAST_ORDERS:
        told = f"{n} images" if blocks is None else f"{n} images in {len(np.unique(blocks))} blocks"
        raise BrainDataError(
            f"expected {_LEAST_ORDERS} orders of the images or more, without which no p can be below 0.05, got {told}"
        )
    if blocks is None:
        return rng.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    orders = np.empty((permutations, n), np.int64)
    for label in np.unique(blocks):
        rows = np.flatnonzero(np.asarray(blocks) == label)
        orders[:, rows] = rng.permuted(np.tile(rows, (permutations, 1)), axis=1)
    return orders


def num_orders(n: int, blocks: np.ndarray | None = None) -> float:
    """Number of orders of n images that exchange images of one block only.

    Raises:
        AxisError: Images and block labels differ in number.
    """
    if blocks is None:
        return math.factorial(n) if n < 100 else math.inf
    if np.shape(blocks) != (n,):
        raise AxisError(f"expected a block for each of {n} images, got shape {np.shape(blocks)}")
    logs = sum(math.lgamma(count + 1) for count in np.unique(blocks, return_counts=True)[1])
    return round(math.exp(logs)) if logs < 300 else math.inf


def _influence(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What each image adds to the correlation of a voxel, (images, voxels), from the correlations without that image.

    The mean over images is the correlation. The rest is that of the jackknife, (n - 1) (mean - correlation without the
    image), whose variance is not too small in small samples.
    """
    n = len(measured)
    (y, _), (p, flat) = (_standard(x, np.float64) for x in (measured, predicted))
    r, factor = (y * p).sum(0), n / (n - 1)
    left = (1 - factor * np.square(y)) * (1 - factor * np.square(p))  # both variances without the image
    without = (r - factor * y * p) / np.sqrt(np.maximum(left, np.finfo(float).tiny))
    return np.where(flat, 0, r + (n - 1) * (without.mean(0) - without))


def _standard(values: np.ndarray, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Columns centred and of unit norm, and which of them are constant; those are 0."""
    values = values.astype(np.float64)
    flat = (values == values[:1]).all(0)
    values -= values.mean(0)
    norm = np.linalg.norm(values, axis=0)
    return (values / np.where(flat | (norm == 0), np.inf, norm)).astype(dtype, order="C"), flat


def _members(regions: Mapping[str, np.ndarray], r: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Weights (V, regions) of the mean over the voxels of each region that have a correlation, and their names."""
    known = ~np.isnan(r)
    for name, mask in regions.items():
        if np.shape(mask) != r.shape:
            raise AxisError(f"expected region {name!r} of {len(r)} voxels, got shape {np.shape(mask)}")
    names = [name for name, mask in regions.items() if (mask & known).any()]
    members = np.zeros((len(r), len(names)), np.float32)
    for column, name in enumerate(names):
        inside = regions[name] & known
        members[inside, column] = 1 / inside.sum()
    return members, names


def _upper(drawn: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 + number of sorted draws that reach each value) / (1 + draws); NaN for NaN."""
    reached = len(drawn) - np.searchsorted(drawn, np.nan_to_num(values) - _TIES, side="left")
    return np.where(np.isnan(values), np.nan, (1 + reached) / (1 + len(drawn)))


def _at_most(p: np.ndarray, level: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return p <= level
