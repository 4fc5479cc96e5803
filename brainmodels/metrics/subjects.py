"""Summaries of one score over several subjects: mean and t interval, random effects, bootstrap of subjects and images.

    t_summary([0.41, 0.36, 0.44])             # mean, 95 % interval of Student's t, and p of a mean of 0
    random_effects(values, variances)         # weighted mean; subjects with more noise weigh less
    bootstrap_subjects(draws, crossed=True)   # Interval of the mean, subjects and images resampled

The t interval treats subjects as the sample and asks nothing of the images. Random effects also use how certain each
subject's score is. With few subjects, all of these are wide or rough, and the number of subjects is part of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AxisError, BrainDataError
from .record import Interval
from .statistics import percentile_interval

__all__ = ["SubjectSummary", "bootstrap_subjects", "random_effects", "t_summary"]


@dataclass(frozen=True)
class SubjectSummary:
    """Mean of a score over subjects.

    Attributes:
        mean: The mean, or the weighted mean of random effects.
        interval: Confidence interval.
        p: Two-sided p value of a mean of 0.
        sd: Standard deviation between subjects. For random effects that of the true scores, without the noise of each.
        n: Number of subjects.
    """

    mean: float
    interval: Interval
    p: float
    sd: float
    n: int


def t_summary(values: Sequence[float] | np.ndarray, level: float = 0.95) -> SubjectSummary:
    """Mean over subjects with the interval and the p value of Student's t.

    Args:
        values: (subjects,) Score of each subject.
        level: Confidence level, a share.

    Raises:
        BrainDataError: Fewer than two subjects, or values that are not finite.
    """
    from scipy import stats

    values = _per_subject(values)
    sem, mean = float(values.std(ddof=1) / np.sqrt(len(values))), float(values.mean())
    if sem == 0:
        low, high, p = mean, mean, float(mean == 0)
    else:
        low, high = stats.t.interval(level, len(values) - 1, mean, sem)
        p = float(2 * stats.t.sf(abs(mean) / sem, len(values) - 1))
    words = f"t over {len(values)} subjects"
    return SubjectSummary(
        mean, Interval(float(low), float(high), level, words), p, sem * len(values) ** 0.5, len(values)
    )


def random_effects(
    values: Sequence[float] | np.ndarray, variances: Sequence[float] | np.ndarray, level: float = 0.95
) -> SubjectSummary:
    """Weighted mean over subjects whose true scores differ (DerSimonian and Laird, Controlled Clinical Trials 7, 1986).

    A subject weighs 1 / (v + t^2). Here v is the variance of its score over resampled images, and t^2 is the variance
    of the true scores, estimated by the method of moments. Interval and p follow Student's t, with the variance of
    Hartung and Knapp (Statistics in Medicine 20, 2001) where that is larger, because few subjects do not tell t well.

    Args:
        values: (subjects,) Score of each subject.
        variances: (subjects,) Variance of each score, above 0.
        level: Confidence level, a share.

    Raises:
        AxisError: There is not one variance for each subject.
        BrainDataError: Fewer than two subjects, values that are not finite, or variances that are not above 0.
    """
    from scipy import stats

    values, noise = _per_subject(values), np.asarray(variances, np.float64)
    if noise.shape != values.shape:
        raise AxisError(f"expected a variance for each of {len(values)} subjects, got shape {noise.shape}")
    if not np.isfinite(noise).all() or noise.min() <= 0:
        raise BrainDataError(f"expected variances above 0, got {noise.tolist()}")
    fixed = 1 / noise
    spread = (fixed * np.square(values - (fixed * values).sum() / fixed.sum())).sum()
    scale = fixed.sum() - np.square(fixed).sum() / fixed.sum()
    between = max(0.0, (spread - (len(values) - 1)) / scale)
    weights = 1 / (noise + between)
    mean, freedom = float((weights * values).sum() / weights.sum()), len(values) - 1
    scatter = (weights * np.square(values - mean)).sum() / freedom
    error = float(np.sqrt(max(1.0, scatter) / weights.sum()))
    low, high = stats.t.interval(level, freedom, mean, error)
    words = f"random effects over {len(values)} subjects"
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return SubjectSummary(mean, Interval(float(low), float(high), level, words), p, between**0.5, len(values))


def bootstrap_subjects(draws: np.ndarray, crossed: bool, seed: int = 0, level: float = 0.95) -> Interval:
    """Interval of the mean over subjects, from resampled subjects and, within each, resampled images.

    Args:
        draws: (subjects, resamples) Score of each subject in resamples of its images.
        crossed: Whether all subjects saw the same images and have the same resamples, which then stay together.
        seed: Seed of the draws of subjects.
        level: Confidence level, a share.

    Raises:
        AxisError: `draws` has other axes.
        BrainDataError: Fewer than two subjects, or values that are not finite.
    """
    if np.ndim(draws) != 2:
        raise AxisError(f"expected draws (subjects, resamples), got shape {np.shape(draws)}")
    _per_subject(draws[:, 0])
    subjects, resamples = draws.shape
    rng = np.random.default_rng(seed)
    chosen = rng.integers(subjects, size=(resamples, subjects))
    row = np.arange(resamples)[:, None] if crossed else rng.integers(resamples, size=(resamples, subjects))
    images = "the same" if crossed else "their own"
    words = f"bootstrap over {subjects} subjects and {images} images"
    return percentile_interval(draws[chosen, row].mean(1), level, words)


def _per_subject(values: Sequence[float] | np.ndarray) -> np.ndarray:
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or len(given) < 2 or not np.isfinite(given).all():
        raise BrainDataError(f"expected finite values of two or more subjects, got {given.tolist()}")
    return given
