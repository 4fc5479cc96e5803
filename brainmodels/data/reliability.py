"""How reliable single trials are: signal by noise from repeats of the same image, and the noise ceiling from it.

Values are (trials, voxels), scaled within sessions: drift between sessions counts as noise. `rows` are the trials of
each image, as `Responses.rows_of(ids)` gives them.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import AxisError, BrainDataError

__all__ = ["column_blocks", "ncsnr", "noise_ceiling", "trial_groups"]

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


def trial_groups(rows: Sequence[np.ndarray], least: int) -> dict[int, np.ndarray]:
    """Trials (images, repeats) of images with the same number of repeats, by that number."""
    counts = np.array([len(group) for group in rows], dtype=np.int64)
    found = {int(k): np.stack([rows[i] for i in np.flatnonzero(counts == k)]) for k in np.unique(counts) if k >= least}
    if not found:
        raise BrainDataError(f"expected images with {least} or more trials, got {counts.max(initial=0)} at most")
    return found


def column_blocks(values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """fp64 columns of values, a batch at a time."""
    if values.ndim != 2:
        raise AxisError(f"expected values (trials, voxels), got {values.shape}")
    step = max(1, _BATCH_NUMBERS // max(1, len(values)))
    for start in range(0, values.shape[1], step):
        part = slice(start, start + step)
        yield part, np.asarray(values[:, part], dtype=np.float64)
