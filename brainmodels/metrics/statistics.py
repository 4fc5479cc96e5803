"""Intervals and chance: images drawn again, or clusters of images; pairs permuted.

Every bootstrap here is a matrix of weights (resamples, n), how often each image was drawn, so that a mean over images
is one matrix product and two metrics of the same images share their resamples. Percentile intervals (Efron, 1979).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AxisError, BrainDataError
from .record import Interval, Metric, Score

__all__ = [
    "Chance",
    "Difference",
    "Interval",
    "bootstrap",
    "bootstrap_mean",
    "bootstrap_weights",
    "paired_difference",
    "pairing_chance",
    "percentile_interval",
    "permutation_chance",
    "score_images",
]

RESAMPLES = 1000


@dataclass(frozen=True)
class Chance:
    """A statistic where pairs are permuted: its mean, its central interval, and how often it reached the real one.

    Attributes:
        mean, sd: over permutations.
        interval: central.
        p_up: (1 + number of permutations at or above the real value) / (1 + permutations); None without a real value.
    """

    mean: float
    sd: float
    interval: Interval
    p_up: float | None = None


@dataclass(frozen=True)
class Difference:
    """Mean over images of one score minus another, `interval` from the same resamples for both."""

    value: float
    interval: Interval
    n: int

    @property
    def distinct(self) -> bool:
        """Whether the interval leaves out zero."""
        return 0.0 not in self.interval


def bootstrap_weights(
    n: int, resamples: int = RESAMPLES, seed: int = 0, clusters: Sequence | np.ndarray | None = None
) -> np.ndarray:
    """How often each of n images occurs in each resample, fp64 (resamples, n).

    Args:
        n: number of images.
        resamples: number of bootstrap samples.
        seed: the same seed, n and clusters give the same resamples.
        clusters: (n,) labels of what is drawn as one, such as the object that several samples show; None draws images.

    Raises:
        BrainDataError: fewer than two images, or two clusters.
    """
    if clusters is None:
        members = np.arange(n)
    else:
        if len(clusters) != n:
            raise AxisError(f"expected a cluster for each of {n} images, got {len(clusters)}")
        members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    units = int(members.max()) + 1 if n else 0
    if units < 2:
        kind = "images" if clusters is None else "clusters"
        raise BrainDataError(f"expected two or more {kind} to resample, got {units}")
    drawn = np.random.default_rng(seed).integers(units, size=(resamples, units))
    drawn += units * np.arange(resamples)[:, None]  # one range of counters for each resample
    counts = np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)
    return counts[:, members].astype(np.float64)


def percentile_interval(values: np.ndarray, level: float = 0.95, method: str = "bootstrap over images") -> Interval:
    """The central share `level` of values (resamples,)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, method)


def bootstrap_mean(
    values: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of values (n,), one an image.

    For identification and retrieval the values are the scores of single images against the full gallery: a gallery
    that is resampled itself would hold duplicates of the true image as distractors.
    """
    values = _one_per_image(values)
    weights = bootstrap_weights(len(values), resamples, seed, clusters)
    return percentile_interval(weights @ values / weights.sum(1), level, _method(clusters))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    level: float = 0.95,
) -> Interval:
    """Interval of any statistic of images.

    Args:
        statistic: called with the indices of drawn images, with repetition; sorted.
        n: number of images.
        resamples, seed, clusters: as for `bootstrap_weights`, with the same draws.
        level: of confidence.
    """
    weights = bootstrap_weights(n, resamples, seed, clusters).astype(np.int64)
    values = [float(statistic(np.repeat(np.arange(n), row))) for row in weights]
    return percentile_interval(np.array(values), level, _method(clusters))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    level: float = 0.95,
) -> Difference:
    """Mean of first - second, both (n,) scores of the same images in the same order."""
    first, second = _one_per_image(first), _one_per_image(second)
    if len(first) != len(second):
        raise AxisError(f"expected scores of the same images, got {len(first)} and {len(second)}")
    interval = bootstrap_mean(first - second, resamples, seed, clusters, level)
    return Difference(float(np.mean(first - second)), interval, len(first))


def permutation_chance(
    statistic: Callable[[np.ndarray], float],
    n: int,
    permutations: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    observed: float | None = None,
) -> Chance:
    """The distribution of a statistic when pairs are permuted.

    Args:
        statistic: called with a permutation of 0 .. n - 1: image i is paired with prediction permutation[i].
        n: number of pairs.
        permutations, seed: how many, and from where.
        level: of the interval.
        observed: the real value, for `p_up`.
    """
    rng = np.random.default_rng(seed)
    values = np.array([float(statistic(rng.permutation(n))) for _ in range(permutations)])
    reached = None if observed is None else float((1 + np.sum(values >= observed)) / (1 + permutations))
    interval = percentile_interval(values, level, f"{permutations} permutations of the pairs")
    return Chance(float(values.mean()), float(values.std(ddof=1)), interval, reached)


def pairing_chance(scores: np.ndarray, permutations: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> Chance:
    """Chance of a metric that is a mean over pairs, from its value for every possible pair.

    Args:
        scores: (n, n), the score of image i paired with prediction j; the metric is the mean of the diagonal.
        permutations, seed, level: as for `permutation_chance`.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise AxisError(f"expected scores (n, n) of all pairs, got {scores.shape}")
    rows = np.arange(len(scores))
    observed = float(np.mean(scores[rows, rows]))
    return permutation_chance(lambda order: scores[rows, order].mean(), len(rows), permutations, seed, level, observed)


def score_images(
    metric: Metric,
    values: np.ndarray,
    all_pairs: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> Score:
    """The score of a metric that is a mean over images.

    Args:
        metric: its definition.
        values: (n,) one an image, finite.
        all_pairs: (n, n) the value of image i with prediction j, for the chance interval; None leaves it out.
        resamples, seed, clusters: of the bootstrap over images.
        conditions: further fields of `Score`.
    """
    values = _one_per_image(values)
    interval = bootstrap_mean(values, resamples, seed, clusters) if len(values) > 1 else None
    found = {"interval": interval, "seed": seed}
    if all_pairs is not None:
        chance = pairing_chance(all_pairs, resamples, seed)
        found["chance_interval"] = chance.interval
        found["chance"] = chance.mean if metric.chance is None else metric.chance
    return Score(metric, float(values.mean()), len(values), **(found | conditions))


def _one_per_image(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise AxisError(f"expected one value for each image, (n,), got shape {values.shape}")
    undefined = int(np.sum(~np.isfinite(values)))
    if undefined:
        raise BrainDataError(f"expected finite values of {len(values)} images, got {undefined} that are not")
    return values


def _method(clusters: Sequence | np.ndarray | None) -> str:
    return "bootstrap over images" if clusters is None else "bootstrap over clusters of images"
