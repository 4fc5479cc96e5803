"""Reliability of responses, from repeated presentations of the same image: the best score that noise allows.

    rho, half = split_half(values, responses.rows_of(ids))  # (voxels,), 1 with three repeats of each image
    reliability = spearman_brown(rho, 3 / half)             # of the mean of all three
    voxels = ceiling_mask(noise_ceiling(ncsnr, counts))     # (voxels,) booleans

Responses `values` are (trials, voxels), scaled within sessions, so drift between sessions counts as noise. `rows` are
the trials of each image, as `Responses.rows_of(ids)` returns them.

There are two measures, and they must not be mixed. A noise ceiling NC is a share of variance and bounds r^2 and R2. The
largest possible correlation is its square root.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.reliability import column_blocks, ncsnr, noise_ceiling, trial_groups
from ..errors import AxisError, BrainDataError
from .encoding import voxel_r
from .record import Metric
from .registry import register
from .statistics import RESAMPLES, Interval, bootstrap_weights, percentile_interval

__all__ = [
    "CeilingInterval",
    "ceiling_interval",
    "ceiling_mask",
    "explainable_variance",
    "mask_in_words",
    "max_r",
    "spearman_brown",
    "split_half",
]


def max_r(ceiling: np.ndarray) -> np.ndarray:
    """Correlation that a perfect model reaches with noisy responses: the square root of the noise ceiling.

    Args:
        ceiling: (voxels,) Noise ceilings, shares of variance from 0 to 1.

    Returns:
        (voxels,) correlations.
    """
    return np.sqrt(ceiling)


def ceiling_mask(ceiling: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    """Voxels whose noise ceiling reaches a threshold.

    The threshold must be chosen before looking at any score.

    Args:
        ceiling: (voxels,) Noise ceilings; a voxel with NaN is left out.
        threshold: Smallest noise ceiling of a voxel that is kept, a share of variance.

    Returns:
        (voxels,) booleans.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(ceiling) >= threshold


def mask_in_words(mask: np.ndarray, undefined: int = 0, threshold: float | None = None) -> str:
    """Text in which a score describes its voxels: the rule, the number kept, and the number without a value.

        mask_in_words(mask, undefined=2, threshold=0.1)  # "NC >= 0.1: 812 of 1000 voxels, 2 undefined"

    Args:
        mask: (voxels,) Booleans, True for the voxels that were scored.
        undefined: Number of voxels that have no value.
        threshold: Smallest noise ceiling that was kept. None if no ceiling was used.
    """
    rule = "" if threshold is None else f"NC >= {threshold:g}: "
    return f"{rule}{int(mask.sum())} of {len(mask)} voxels" + (f", {undefined} undefined" if undefined else "")


_COLUMNS = 512  # voxels whose resamples are held at a time


@dataclass(frozen=True)
class CeilingInterval:
    """How certain noise ceilings are that were estimated from repeats.

    Attributes:
        value: Noise ceiling of each voxel (V,), a share of variance.
        low, high: Ends (V,) of its interval.
        means: Mean ceiling by region, and the interval of this mean.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    means: Mapping[str, tuple[float, Interval]] = field(default_factory=dict)


def ceiling_interval(
    values: np.ndarray,
    rows: Sequence[np.ndarray],
    repeats_at_test: int | Sequence[int],
    masks: Mapping[str, np.ndarray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> CeilingInterval:
    """Bootstrap intervals of noise ceilings. Images are resampled with all their repeats.

    Args:
        values: (trials, voxels) Responses, scaled within sessions, as `ncsnr` takes them.
        rows: Trials of each image.
        repeats_at_test: Number of repeats of the test images, or one number for each.
        masks: Masks (voxels,) by name, of whose mean ceilings there are intervals as well. These are centred on the
            value, because a ceiling is never below 0 and resamples of unreliable voxels are biased.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.
        level: Confidence level, a share.

    Raises:
        AxisError: A mask has another number of voxels.
        BrainDataError: No image has two trials, or there are fewer than two images.
    """
    masks = masks or {}
    value = noise_ceiling(ncsnr(values, rows), repeats_at_test)
    for name, mask in masks.items():
        if mask.shape != value.shape:
            raise AxisError(f"expected mask {name!r} of {len(value)} voxels, got shape {mask.shape}")
    counts = np.array([len(group) for group in rows], np.float64)
    trials = np.concatenate(rows)
    weights = bootstrap_weights(len(rows), resamples, seed)
    low, high = np.full((2, len(value)), np.nan)
    sums = {name: np.zeros(resamples) for name in masks}
    for start in range(0, len(value), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        drawn = _resampled_ceilings(np.asarray(values[:, part], np.float64)[trials], counts, weights, repeats_at_test)
        low[part], high[part] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        for name, mask in masks.items():
            sums[name] += drawn[:, mask[part] & np.isfinite(value[part])].sum(1)
    means = {}
    for name, mask in masks.items():
        inside = mask & np.isfinite(value)
        if inside.any():
            mean, drawn = float(value[inside].mean()), sums[name] / inside.sum()
            shifted = drawn - drawn.mean() + mean
            means[name] = mean, percentile_interval(shifted, level, "bootstrap over images, bias removed")
    return CeilingInterval(value, low, high, means)


def _resampled_ceilings(
    shown: np.ndarray, counts: np.ndarray, weights: np.ndarray, repeats_at_test: int | Sequence[int]
) -> np.ndarray:
    """Noise ceilings (resamples, V) of resampled images, by weighted sums; those of `ncsnr` for weights of 1.

    Args:
        shown: (trials, V) fp64 responses, the trials of one image after those of the other.
        counts: Number of trials of each image, fp64.
        weights: (resamples, images) Number of times that an image was drawn.
        repeats_at_test: See `ceiling_interval`.
    """
    starts = np.concatenate(([0], np.cumsum(counts.astype(int))[:-1]))
    shown = shown - shown.mean(0)
    total = np.add.reduceat(shown, starts, axis=0)  # (images, V)
    squares = np.add.reduceat(np.square(shown), starts, axis=0)
    several = counts > 1
    within = (squares - np.square(total) / counts[:, None])[several] / (counts[several] - 1)[:, None]
    number, repeated = (weights @ counts)[:, None], weights[:, several].sum(1)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = weights[:, several] @ within / repeated
        variance = (weights @ squares - np.square(weights @ total) / number) / (number - 1)
        ratio = np.sqrt(np.maximum(variance - noise, 0) / noise)
        return noise_ceiling(ratio, repeats_at_test)


def split_half(
    values: np.ndarray, rows: Sequence[np.ndarray], splits: int = 10, seed: int = 0
) -> tuple[np.ndarray, int]:
    """Correlation over images between the means of two disjoint halves of the repeats, averaged over random splits.

    Args:
        values: (trials, voxels) Responses.
        rows: Trials of each image, at least two for each.
        splits: Number of random splits.
        seed: Seed of the splits.

    Returns:
        rho (voxels,), and the number of repeats in a half: half of the smallest number of repeats, rounded down. The
        reliability of a mean of k repeats is `spearman_brown(rho, k / half)`.

    Raises:
        BrainDataError: An image has fewer than two trials, or there are no images.
    """
    counts = [len(group) for group in rows]
    if not counts or min(counts) < 2:
        raise BrainDataError(f"expected images with two or more trials, got an image with {min(counts, default=0)}")
    half = min(counts) // 2
    rng = np.random.default_rng(seed)
    total = np.zeros(values.shape[1])
    for _ in range(splits):
        order = [rng.permutation(group)[: 2 * half] for group in rows]
        first, second = (np.stack([group[start : start + half] for group in order]) for start in (0, half))
        for part, block in column_blocks(values):
            total[part] += voxel_r(block[first].mean(1), block[second].mean(1))
    return total / splits, half


def spearman_brown(rho: np.ndarray, factor: float = 2.0) -> np.ndarray:
    """Reliability of a mean of `factor` times as many repeats (Spearman and Brown, 1910): f rho / (1 + (f - 1) rho).

    With factor 2 it turns the reliability of halves into that of all repeats, 2 rho / (1 + rho). To normalise a
    correlation with those responses, divide it by the square root of the reliability. Divide r^2 by the reliability.

    Args:
        rho: (voxels,) Reliabilities.
        factor: Ratio f of the two numbers of repeats.

    Returns:
        (voxels,) reliabilities, fp64.
    """
    rho = np.asarray(rho, dtype=np.float64)
    return factor * rho / (1 + (factor - 1) * rho)


def explainable_variance(values: np.ndarray, rows: Sequence[np.ndarray], corrected: bool = True) -> np.ndarray:
    """Variance over images of the mean response, divided by the mean over repeats of the variance over images.

    The corrected value removes the noise that is left in a mean of k repeats: EV - (1 - EV) / (k - 1) (Hsu et al.,
    2004).

    Args:
        values: (trials, voxels) Responses.
        rows: Trials of each image, at least two and equally many for all images.
        corrected: Whether to subtract the bias.

    Returns:
        (voxels,) fp64; NaN for a voxel that never varies.

    Raises:
        BrainDataError: The images have unequal numbers of repeats, or only one.
    """
    groups = trial_groups(rows, 2)
    if len(groups) != 1 or sum(map(len, groups.values())) != len(rows):
        counts = sorted({len(group) for group in rows})
        raise BrainDataError(f"expected equally many repeats of every image, two or more, got {counts}")
    (repeats, group), out = next(iter(groups.items())), np.empty(values.shape[1])
    for part, block in column_blocks(values):
        shown = block[group]  # (images, repeats, voxels)
        whole = shown.var(axis=0).mean(0)
        out[part] = shown.mean(1).var(axis=0) / np.where(whole > 0, whole, np.nan)
    return out - (1 - out) / (repeats - 1) if corrected else out


for _definition in (
    Metric(
        "ncsnr",
        "voxel",
        "none",
        None,
        None,
        "sqrt(max(0, total variance - noise variance) / noise variance), one trial",
    ),
    Metric("noise_ceiling", "voxel", "none", None, None, "ncsnr^2 / (ncsnr^2 + mean 1/k); bounds r^2 and R2, not r"),
    Metric("split_half", "voxel", "none", None, None, "correlation of two half means, corrected by Spearman-Brown"),
    Metric(
        "explainable_variance",
        "voxel",
        "none",
        None,
        None,
        "variance of the mean / mean variance, corrected for k repeats",
    ),
):
    register(_definition)
