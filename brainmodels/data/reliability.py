"""Signal-to-noise ratio of single trials, from repeats of the same image, and the noise ceiling that follows from it.

    ratio = ncsnr(values, responses.rows_of(ids))   # (voxels,)
    noise_ceiling(ratio, repeats_at_test=3)         # (voxels,), the largest possible share of explained variance

Scale the values within sessions first. Drift between sessions counts as noise otherwise.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import AxisError, BrainDataError

__all__ = ["column_blocks", "ncsnr", "noise_ceiling", "trial_groups"]

_BATCH_NUMBERS = 2**21


def ncsnr(values: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation of the signal over that of the noise, for a single presentation (Allen et al., 2022, Methods).

    The noise variance is the mean over images of the variance over repeats (ddof 1). The signal variance is the
    variance of all single trials minus the noise variance, and at least 0.

    Args:
        values: Responses (trials, voxels), standardised within sessions. They may be memory-mapped.
        rows: Trials of each image, as `Responses.rows_of` gives them. Images with one trial count only for the total
            variance.

    Returns:
        Ratio of each voxel, fp64 (voxels,). NaN where a voxel is constant or not finite, infinite where all repeats
        are equal.

    Raises:
        BrainDataError: No image has two trials.
        AxisError: Values are not (trials, voxels).
    """
    trials, groups = np.concatenate(rows) if len(rows) else np.empty(0, int), trial_groups(rows, 2)
    out = np.empty(values.shape[1])
    for part, block in column_blocks(values):
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
    """Share of variance that a perfect model explains in the mean of k repeats, ncsnr^2 / (ncsnr^2 + 1 / k).

    Args:
        ncsnr: Signal-to-noise ratio of each voxel, (voxels,).
        repeats_at_test: Number of repeats k of every test image, or one number for each image. In that case 1 / k is
            averaged over images.

    Returns:
        Noise ceiling of each voxel, fp64 (voxels,), 0 to 1.

    Raises:
        BrainDataError: A number of repeats is below 1 or not an integer.
    """
    repeats = np.atleast_1d(np.asarray(repeats_at_test))
    if not len(repeats) or not np.issubdtype(repeats.dtype, np.integer) or repeats.min() < 1:
        raise BrainDataError(f"expected repeats of 1 or more, got {repeats_at_test}")
    signal = np.square(np.asarray(ncsnr, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(signal), 1.0, signal / (signal + np.mean(1 / repeats)))


def trial_groups(rows: Sequence[np.ndarray], least: int) -> dict[int, np.ndarray]:
    """Group images by their number of repeats, if that is `least` or more.

    Args:
        rows: Trials of each image.
        least: Smallest number of repeats.

    Returns:
        Arrays of trials (images, repeats), by the number of repeats.

    Raises:
        BrainDataError: No image has so many trials.
    """
    counts = np.array([len(group) for group in rows], dtype=np.int64)
    found = {
        int(k): np.stack([rows[i] for i in np.flatnonzero(counts == k).tolist()])
        for k in np.unique(counts)
        if k >= least
    }
    if not found:
        raise BrainDataError(f"expected images with {least} or more trials, got {counts.max(initial=0)} at most")
    return found


def column_blocks(values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Pairs of a slice of columns and their values (trials, columns) in fp64, for values (trials, voxels)."""
    if values.ndim != 2:
        raise AxisError(f"expected values (trials, voxels), got {values.shape}")
    step = max(1, _BATCH_NUMBERS // max(1, len(values)))
    for start in range(0, values.shape[1], step):
        part = slice(start, start + step)
        yield part, np.asarray(values[:, part], dtype=np.float64)
