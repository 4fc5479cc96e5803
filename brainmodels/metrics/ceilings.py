"""What noise allows: reliability of responses from repeats of the same image.

Two measures, not to be mixed: a noise ceiling NC is a share of *variance* and bounds r^2 and R2; the largest
correlation is its square root. Values are (trials, voxels), scaled within sessions: drift between sessions counts as
noise. `rows` are the trials of each image, as `Responses.rows_of(ids)` gives them.
"""

from collections.abc import Sequence

import numpy as np

from ..data.reliability import column_blocks, trial_groups
from ..errors import BrainDataError
from .encoding import voxel_r
from .record import Metric
from .registry import register

__all__ = [
    "ceiling_mask",
    "explainable_variance",
    "mask_in_words",
    "max_r",
    "spearman_brown",
    "split_half",
]


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
        for part, block in column_blocks(values):
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
    Metric("ncsnr", "voxel", "none", None, None, "sqrt(max(0, total - noise variance) / noise variance), one trial"),
    Metric("noise_ceiling", "voxel", "none", None, None, "ncsnr^2 / (ncsnr^2 + mean 1/k); of r^2 and R2, not of r"),
    Metric("split_half", "voxel", "none", None, None, "correlation of half means, corrected by Spearman-Brown"),
    Metric("explainable_variance", "voxel", "none", None, None, "var of the mean by mean var, corrected for k repeats"),
):
    register(_definition)
