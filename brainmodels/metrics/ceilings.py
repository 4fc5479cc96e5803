"""What noise allows: reliability of responses from repeats of the same image.

Two measures, not to be mixed: a noise ceiling NC is a share of *variance* and bounds r^2 and R2; the largest
correlation is its square root. Values are (trials, voxels), scaled within sessions: drift between sessions counts as
noise. `rows` are the trials of each image, as `Responses.rows_of(ids)` gives them.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import AxisError, BrainDataError
from .encoding import voxel_r
from .record import Metric
from .registry import register

__all__ = [
    "ceiling_mask",
    "explainable_variance",
    "mask_in_words",
    "max_r",
    "ncsnr",
    "noise_ceiling",
    "spearman_brown",
    "split_half",
]

_BATCH_NUMBERS = 2**21


def ncsnr(values: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Signal by noise standard deviation of a single presentation, (voxels,) (Allen et al., 2022, Methods).

    Noise variance is the mean over images of the variance over repeats (ddof 1); signal variance is that of all single
    trials less that of the noise, at least 0.

    Args:
        values: (trials, voxels), standardised within sessions; perhaps memory-mapped.
        rows: trials of each image; images with one trial count for the total variance alone.

    Returns:
        fp64; NaN where a voxel is constant or not finite, infinite where repeats are equal.

    Raises:
        BrainDataError: no image has two trials.
    """
    trials, groups = np.concatenate(rows) if len(rows) else np.empty(0, int), _groups(rows, 2)
    out = np.empty(values.shape[1])
    for part, block in _blocks(values):
        noise = np.zeros(block.shape[1])
        for group in groups.values():  # (images, repeats)
            noise += block[group].var(axis=1, ddof=1).sum(0)
        noise /= sum(len(group) for group in groups.values())
        shown = block[trials]
        signal = np.maximum(shown.var(axis=0, ddof=1) - noise, 0)
        constant = (shown == shown[:1]).all(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[part] = np.where(constant, np.nan, np.sqrt(signal / noise))
    return out


def noise_ceiling(ncsnr: np.ndarray, repeats_at_test: int | Sequence[int]) -> np.ndarray:
    """Largest share of variance that a perfect model explains in the mean of k repeats, ncsnr^2 / (ncsnr^2 + 1 / k).

    Args:
        ncsnr: (voxels,).
        repeats_at_test: k of every test image, or one k an image: 1 / k is then the mean over images.
    """
    repeats = np.atleast_1d(np.asarray(repeats_at_test))
    if not len(repeats) or not np.issubdtype(repeats.dtype, np.integer) or repeats.min() < 1:
        raise BrainDataError(f"expected repeats of 1 or more, got {repeats_at_test}")
    signal = np.square(np.asarray(ncsnr, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(signal), 1.0, signal / (signal + np.mean(1 / repeats)))


def max_r(ceiling: np.ndarray) -> np.ndarray:
    """Correlation of a perfect model with noisy responses, the square root of the noise ceiling."""
    return np.sqrt(ceiling)


def ceiling_mask(ceiling: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    """Mask (voxels,) of those whose noise ceiling reaches a threshold that was fixed beforehand; NaN does not."""
    with np.errstate(invalid="ignore"):
        return np.asarray(ceiling) >= threshold


def mask_in_words(mask: np.ndarray, undefined: int = 0, threshold: float | None = None) -> str:
    """What a score says of its voxels: the rule, how many were kept, how many have no value."""
    rule = "" if threshold is None else f"NC >= {threshold:g}: "
    return f"{rule}{int(mask.sum())} of {len(mask)} voxels" + (f", {undefined} undefined" if undefined else "")


def split_half(
    values: np.ndarray, rows: Sequence[np.ndarray], splits: int = 10, seed: int = 0
) -> tuple[np.ndarray, int]:
    """Correlation over images between the means of two disjoint halves of the repeats, averaged over random splits.

    Args:
        values: (trials, voxels).
        rows: trials of each image, two or more.
        splits: random splits to average.
        seed: of the splits.

    Returns:
        rho (voxels,), and the number of repeats in a half: half of the smallest number of repeats, rounded down. The
        reliability of a mean of k repeats is `spearman_brown(rho, k / half)`.
    """
    counts = [len(group) for group in rows]
    if not counts or min(counts) < 2:
        raise BrainDataError(f"expected images with two or more trials, got one with {min(counts, default=0)}")
    half = min(counts) // 2
    rng = np.random.default_rng(seed)
    total = np.zeros(values.shape[1])
    for _ in range(splits):
        order = [rng.permutation(group)[: 2 * half] for group in rows]
        first, second = (np.stack([group[start : start + half] for group in order]) for start in (0, half))
        for part, block in _blocks(values):
            total[part] += voxel_r(block[first].mean(1), block[second].mean(1))
    return total / splits, half


def spearman_brown(rho: np.ndarray, factor: float = 2.0) -> np.ndarray:
    """Reliability of a mean of `factor` times as many repeats, f rho / (1 + (f - 1) rho).

    With 2, the reliability of all repeats from that of halves, 2 rho / (1 + rho). A correlation with those responses
    is normalised by its square root, r / sqrt(reliability), and r^2 by the reliability itself.
    """
    rho = np.asarray(rho, dtype=np.float64)
    return factor * rho / (1 + (factor - 1) * rho)


def explainable_variance(values: np.ndarray, rows: Sequence[np.ndarray], corrected: bool = True) -> np.ndarray:
    """Variance over images of the mean over repeats, by the mean over repeats of the variance; (voxels,).

    Corrected for the noise that is left in a mean of k repeats: EV - (1 - EV) / (k - 1) (Hsu et al., 2004).

    Args:
        values: (trials, voxels).
        rows: trials of each image, equally many and two or more for all.
        corrected: subtract the bias.
    """
    groups = _groups(rows, 2)
    if len(groups) != 1 or sum(map(len, groups.values())) != len(rows):
        counts = sorted({len(group) for group in rows})
        raise BrainDataError(f"expected equally many repeats of every image, two or more, got {counts}")
    (repeats, group), out = next(iter(groups.items())), np.empty(values.shape[1])
    for part, block in _blocks(values):
        shown = block[group]  # (images, repeats, voxels)
        whole = shown.var(axis=0).mean(0)
        out[part] = shown.mean(1).var(axis=0) / np.where(whole > 0, whole, np.nan)
    return out - (1 - out) / (repeats - 1) if corrected else out


def _groups(rows: Sequence[np.ndarray], least: int) -> dict[int, np.ndarray]:
    """Trials (images, repeats) of images with the same number of repeats, by that number."""
    counts = np.array([len(group) for group in rows], dtype=np.int64)
    found = {int(k): np.stack([rows[i] for i in np.flatnonzero(counts == k)]) for k in np.unique(counts) if k >= least}
    if not found:
        raise BrainDataError(f"expected images with {least} or more trials, got {counts.max(initial=0)} at most")
    return found


def _blocks(values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """fp64 columns of values, a batch at a time."""
    if values.ndim != 2:
        raise AxisError(f"expected values (trials, voxels), got {values.shape}")
    step = max(1, _BATCH_NUMBERS // max(1, len(values)))
    for start in range(0, values.shape[1], step):
        part = slice(start, start + step)
        yield part, np.asarray(values[:, part], dtype=np.float64)


for _definition in (
    Metric("ncsnr", "voxel", "none", None, None, "sqrt(max(0, total - noise variance) / noise variance), one trial"),
    Metric("noise_ceiling", "voxel", "none", None, None, "ncsnr^2 / (ncsnr^2 + mean 1/k); of r^2 and R2, not of r"),
    Metric("split_half", "voxel", "none", None, None, "correlation of half means, corrected by Spearman-Brown"),
    Metric("explainable_variance", "voxel", "none", None, None, "var of the mean by mean var, corrected for k repeats"),
):
    register(_definition)
