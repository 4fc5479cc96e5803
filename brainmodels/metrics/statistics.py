"""Confidence intervals from resampled images and chance levels from permuted pairs.

    bootstrap_mean(values)                   # Interval of the mean of values (n,), 95 %
    pairing_chance(scores).interval          # Interval of the mean if pairs are permuted
    score_images(metric("two_way[grid]"), values, all_pairs)  # both, in a Score

Each bootstrap is a matrix of weights (resamples, n) that says how often each image was drawn. A mean over images is
then one matrix product, and two metrics of the same images share their resamples. Intervals are percentile intervals
(Efron, 1979). Images of one cluster are drawn together.
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
    "resampled_difference",
    "score_images",
    "sign_flips",
]

RESAMPLES = 1000
_NOTHING = 1e-6  # differences below it are rounding of fp32 scores
LEAST_FLIPPED = 6  # images: the signs of fewer have too few combinations for a p below 0.05


@dataclass(frozen=True)
class Chance:
    """Distribution of a statistic when pairs are permuted.

    Attributes:
        mean, sd: Mean and standard deviation over permutations.
        interval: Central interval.
        p_up: (1 + number of permutations at or above the real value) / (1 + permutations). None without a real value.
    """

    mean: float
    sd: float
    interval: Interval
    p_up: float | None = None


@dataclass(frozen=True)
class Difference:
    """Mean over images of one score minus another.

    Attributes:
        value: The mean difference.
        interval: Confidence interval, from the same resamples for both scores.
        n: Number of images.
        p: Two-sided p value of the hypothesis that both scores are the same. None where there are too few images.
    """

    value: float
    interval: Interval
    n: int
    p: float | None = None

    @property
    def distinct(self) -> bool:
        """Whether the interval excludes zero."""
        return 0.0 not in self.interval


def bootstrap_weights(
    n: int, resamples: int = RESAMPLES, seed: int = 0, clusters: Sequence | np.ndarray | None = None
) -> np.ndarray:
    """Number of times that each of n images occurs in each resample.

    Args:
        n: Number of images.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws. The same seed, n and clusters give the same resamples.
        clusters: (n,) Labels of what is drawn together, such as the object that several samples show. None draws single
            images.

    Returns:
        fp64 (resamples, n).

    Raises:
        BrainDataError: Fewer than two images or clusters.
        AxisError: Images and cluster labels differ in number.
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
    """Interval that holds the central share `level` of values.

    Args:
        values: (resamples,) Values of a statistic.
        level: Confidence level, a share.
        method: Text that says what was drawn.
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, method)


def bootstrap_mean(
    values: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    level: float = 0.95,
) -> Interval:
    """Confidence interval of a mean over images.

    For identification and retrieval, give the scores of single images against the full gallery. A resampled gallery
    would hold duplicates of the true image as distractors.

    Args:
        values: (n,) Score of each image.
        resamples, seed, clusters: As in `bootstrap_weights`; the draws are the same.
        level: Confidence level, a share.

    Raises:
        AxisError: `values` is not (n,), or is empty.
        BrainDataError: Values that are not finite, or fewer than two images or clusters.
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
    """Confidence interval of any statistic of images.

    Args:
        statistic: Function that is called with the sorted indices of the drawn images, with repetition.
        n: Number of images.
        resamples, seed, clusters: As in `bootstrap_weights`; the draws are the same.
        level: Confidence level, a share.

    Raises:
        BrainDataError: Fewer than two images or clusters.
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
    """Mean over images of first - second, with its interval and the p value of random sign flips.

    Args:
        first, second: (n,) Scores of the same images in the same order.
        resamples, seed, clusters: As in `bootstrap_weights`; the draws are the same.
        level: Confidence level, a share.

    Raises:
        AxisError: The two have different numbers of images.
        BrainDataError: Values that are not finite, or fewer than two images or clusters.
    """
    first, second = _one_per_image(first), _one_per_image(second)
    if len(first) != len(second):
        raise AxisError(f"expected scores of the same images, got {len(first)} and {len(second)}")
    change = first - second
    interval, p = bootstrap_mean(change, resamples, seed, clusters, level), None
    if len(change if clusters is None else np.unique(clusters)) >= LEAST_FLIPPED:
        drawn = np.abs(sign_flips(len(change), resamples, seed, clusters) @ change)
        p = float((1 + np.sum(drawn >= abs(change.sum()) - 1e-9 * np.abs(change).sum())) / (1 + resamples))
    return Difference(float(np.mean(change)), interval, len(first), p)


def resampled_difference(
    first: np.ndarray, second: np.ndarray, value: float, n: int, level: float = 0.95
) -> Difference:
    """Difference of two scores that are no means over images, from values in the same resamples.

    The resampled differences are shifted to have their mean at `value`, as `protocols.centred_interval` does. The p
    value is twice the share of resamples on the other side of 0.

    Args:
        first, second: (resamples,) Both scores in the same resamples of images.
        value: The difference from all images.
        n: Number of images.
        level: Confidence level of the interval, a share.

    Raises:
        AxisError: The two have different numbers of resamples.
        BrainDataError: Values that are not finite.
    """
    first, second = _one_per_image(first), _one_per_image(second)
    if len(first) != len(second):
        raise AxisError(f"expected scores of the same resamples, got {len(first)} and {len(second)}")
    drawn = first - second
    drawn = drawn - drawn.mean() + value
    reached = np.sum(drawn <= _NOTHING), np.sum(drawn >= -_NOTHING)
    below, above = ((1 + count) / (1 + len(drawn)) for count in reached)
    interval = percentile_interval(drawn, level, "bootstrap over images, bias removed")
    return Difference(float(value), interval, n, float(min(1.0, 2 * min(below, above))))


def sign_flips(n: int, flips: int, seed: int = 0, clusters: Sequence | np.ndarray | None = None) -> np.ndarray:
    """Random signs of n images, fp32 (flips, n) of -1 and 1. Images of one cluster have the same sign.

    Raises:
        AxisError: Images and cluster labels differ in number.
        BrainDataError: There are fewer than six images or clusters.
    """
    if clusters is not None and np.shape(clusters) != (n,):
        raise AxisError(f"expected a cluster for each of {n} images, got shape {np.shape(clusters)}")
    members = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    units = int(members.max()) + 1 if n else 0
    if units < LEAST_FLIPPED:
        kind = "images" if clusters is None else "clusters"
        raise BrainDataError(f"expected six {kind} or more, without which no p can be below 0.05, got {units}")
    signs = np.random.default_rng(seed).integers(0, 2, (flips, units)) * 2 - 1
    return signs[:, members].astype(np.float32)


def permutation_chance(
    statistic: Callable[[np.ndarray], float],
    n: int,
    permutations: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    observed: float | None = None,
) -> Chance:
    """Distribution of a statistic when pairs are permuted.

    Args:
        statistic: Function that is called with a permutation of 0 .. n - 1. Image i is paired with prediction
            permutation[i].
        n: Number of pairs.
        permutations: Number of permutations.
        seed: Seed of the permutations.
        level: Confidence level of the interval, a share.
        observed: Real value of the statistic, for `Chance.p_up`.
    """
    rng = np.random.default_rng(seed)
    values = np.array([float(statistic(rng.permutation(n))) for _ in range(permutations)])
    reached = None if observed is None else float((1 + np.sum(values >= observed)) / (1 + permutations))
    interval = percentile_interval(values, level, f"{permutations} permutations of the pairs")
    return Chance(float(values.mean()), float(values.std(ddof=1)), interval, reached)


def pairing_chance(scores: np.ndarray, permutations: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> Chance:
    """Chance of a metric that is a mean over pairs, from its value for every possible pair.

    Args:
        scores: (n, n) Score of image i paired with prediction j. The metric is the mean of the diagonal.
        permutations, seed, level: As in `permutation_chance`.

    Raises:
        AxisError: `scores` is not square.
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
    """Score of a metric that is a mean over images.

    Args:
        metric: Definition of the metric.
        values: (n,) Finite value of each image.
        all_pairs: (n, n) Value of image i with prediction j, for the chance interval. None leaves the interval out.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of images that are drawn together. None draws single images.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: `values` is not (n,), or `all_pairs` is not square.
        BrainDataError: Values that are not finite.
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
