"""Similarity of measured and predicted responses: correlation, R2, explained variance and errors of voxels and images.

    voxel_r(measured, predicted)          # (voxels,) correlation over images
    r2(measured, predicted, axis=0)       # (voxels,)
    summarize(voxel_r(measured, predicted), mask)  # median, mean, quartiles over the voxels of the mask

Both arrays are (images, voxels), with rows of the same images. The argument `axis` names the axis that is reduced: 0
gives one value for each voxel, over images; 1 gives one value for each image, over voxels. Sums run in fp64 and in
batches, so memory-mapped fp32 arrays are never copied whole.

A voxel whose measured value never varies has no correlation. Its value is NaN, and every summary counts it. A
prediction that never varies has correlation 0. So a hard voxel is not removed from the mean by predicting a constant
for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AxisError, BrainDataError
from .record import Metric
from .registry import register

__all__ = [
    "NormalizedR2",
    "Summary",
    "across_subjects",
    "algonauts_score",
    "cosine",
    "ev",
    "linear_cka",
    "mse",
    "nr2",
    "pearson",
    "r2",
    "roi_summary",
    "sample_r",
    "summarize",
    "usable_voxels",
    "voxel_r",
]

_BATCH_NUMBERS = 2**21  # numbers of one array in a batch, 16 MiB in fp64


def voxel_r(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation over images.

    Args:
        measured, predicted: (images, voxels) Responses.

    Returns:
        (voxels,) fp64; NaN for a voxel whose measured value never varies.
    """
    return pearson(measured, predicted, axis=0)


def sample_r(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation over voxels.

    Chance is not 0. Where voxels have different means, the map of the means alone correlates with every response.

    Args:
        measured, predicted: (images, voxels) Responses.

    Returns:
        (images,) fp64.
    """
    return pearson(measured, predicted, axis=1)


def pearson(measured: np.ndarray, predicted: np.ndarray, *, axis: int) -> np.ndarray:
    """Pearson correlation along `axis`; NaN where the measured values are constant, 0 where only the predicted are."""
    return _reduce(_pearson, measured, predicted, axis)


def r2(measured: np.ndarray, predicted: np.ndarray, *, axis: int) -> np.ndarray:
    """Coefficients of determination along `axis`: 1 - sum (y - p)^2 / sum (y - mean y)^2.

    The mean is that of the evaluated values. A constant bias lowers the result.
    """
    return _reduce(lambda y, p: 1 - _over(np.square(y - p).sum(0), _centred_squares(y)), measured, predicted, axis)


def ev(measured: np.ndarray, predicted: np.ndarray, *, axis: int) -> np.ndarray:
    """Explained variance along `axis`: 1 - var(y - p) / var(y). Unlike R2 it ignores a constant bias."""
    return _reduce(lambda y, p: 1 - _over(_centred_squares(y - p), _centred_squares(y)), measured, predicted, axis)


def mse(measured: np.ndarray, predicted: np.ndarray, *, axis: int) -> np.ndarray:
    """Mean of (y - p)^2 along `axis`, in squared units of the normaliser."""
    return _reduce(lambda y, p: np.square(y - p).mean(0), measured, predicted, axis)


def cosine(measured: np.ndarray, predicted: np.ndarray, *, axis: int) -> np.ndarray:
    """Cosine of the angle between y and p along `axis`; NaN where y is all zero, 0 where only p is."""
    return _reduce(_cosine, measured, predicted, axis)


def usable_voxels(measured: np.ndarray) -> np.ndarray:
    """Voxels that are finite for every image and not constant.

    Args:
        measured: (images, voxels) Responses.

    Returns:
        (voxels,) booleans.
    """
    _matrix("measured", measured)
    mask = np.empty(measured.shape[1], dtype=bool)
    for part in _parts(measured.shape, 0):
        block = np.asarray(measured[:, part])
        mask[part] = np.isfinite(block).all(0) & (block != block[:1]).any(0)
    return mask


@dataclass(frozen=True)
class Summary:
    """Values of voxels in a few numbers. Voxels without a value are counted, and left out of all other numbers.

    Attributes:
        n: Number of voxels with a value.
        undefined: Number of voxels without a value.
        median, mean, q25, q75: Median, mean and quartiles of the values.
        share_above: Share of the voxels whose value is above `threshold`.
        threshold: Value that `share_above` compares with.
    """

    n: int
    undefined: int
    median: float
    mean: float
    q25: float
    q75: float
    share_above: float
    threshold: float


def summarize(values: np.ndarray, mask: np.ndarray | None = None, threshold: float = 0.1) -> Summary:
    """Summary of the values of voxels.

    Args:
        values: (voxels,) Values; NaN means undefined.
        mask: (voxels,) Booleans, True for the voxels to use. None uses all.
        threshold: Value that `Summary.share_above` compares with.

    Raises:
        AxisError: Shapes do not match, or the mask is not boolean.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or (mask is not None and (mask.shape != values.shape or mask.dtype != bool)):
        got = f"{values.shape}" + ("" if mask is None else f" and a mask {mask.dtype} {mask.shape}")
        raise AxisError(f"expected values (voxels,) and as many booleans, got {got}")
    chosen = values if mask is None else values[mask]
    kept = chosen[np.isfinite(chosen)]
    undefined = len(chosen) - len(kept)
    if not len(kept):
        nan = float("nan")
        return Summary(0, undefined, nan, nan, nan, nan, nan, threshold)
    q25, median, q75 = np.quantile(kept, [0.25, 0.5, 0.75])
    share = float(np.mean(kept > threshold))
    return Summary(len(kept), undefined, float(median), float(kept.mean()), float(q25), float(q75), share, threshold)


def roi_summary(
    values: np.ndarray, rois: Mapping[str, np.ndarray], mask: np.ndarray | None = None, threshold: float = 0.1
) -> dict[str, Summary]:
    """Summary of each region of interest.

    Args:
        values: (voxels,) Values; NaN means undefined.
        rois: Masks (voxels,) of the regions by name, such as `VoxelSpace.rois`.
        mask: (voxels,) Booleans, True for the voxels to use. None uses all.
        threshold: Value that `Summary.share_above` compares with.
    """
    return {name: summarize(values, roi if mask is None else roi & mask, threshold) for name, roi in rois.items()}


def across_subjects(values: Sequence[float]) -> tuple[float, float]:
    """Mean over subjects and its standard error, s / sqrt(number of subjects).

    Give one value for each subject: the voxels of one subject are not independent samples.

    Raises:
        BrainDataError: Fewer than two subjects, or values that are not finite.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or len(given) < 2 or not np.isfinite(given).all():
        raise BrainDataError(f"expected finite values of two or more subjects, got {given}")
    return float(given.mean()), float(given.std(ddof=1) / np.sqrt(len(given)))


@dataclass(frozen=True)
class NormalizedR2:
    """Squared correlations as a share of the noise ceiling. 1 is the ceiling, and values above it are kept.

    Attributes:
        ratios: (voxels,) r |r| / NC, so a negative correlation keeps its sign. NaN outside the mask and where
            undefined.
        total: sum r |r| / sum NC over the mask.
        median: Median of the ratios.
        n: Number of voxels in the mask.
        negative: Number of these voxels that have a negative r.
        negative_share: sum r^2 / sum NC of the voxels with a negative r: what they subtract from `total`.
    """

    ratios: np.ndarray
    total: float
    median: float
    n: int
    negative: int
    negative_share: float


def nr2(r: np.ndarray, ceiling: np.ndarray, mask: np.ndarray | None = None) -> NormalizedR2:
    """Correlations relative to their noise ceiling, r^2 / NC.

    The ceiling is a share of variance. Neither r / NC nor r^2 / NC^2 is a share of anything (brain-score/vision#2169).

    Args:
        r: (voxels,) Correlations.
        ceiling: (voxels,) Noise ceilings NC of the same responses, from `noise_ceiling`; above 0 within the mask.
        mask: (voxels,) Booleans that were fixed beforehand, such as `ceilings.ceiling_mask`. None takes all voxels
            whose ceiling is above 0.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: The mask is empty, or holds a voxel whose ceiling is not above 0.
    """
    r, ceiling = np.asarray(r, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    if r.ndim != 1 or r.shape != ceiling.shape:
        raise AxisError(f"expected correlations and ceilings (voxels,), got {r.shape} and {ceiling.shape}")
    mask = (ceiling > 0 if mask is None else mask) & np.isfinite(r)
    if not mask.any() or not (ceiling[mask] > 0).all():
        raise BrainDataError(
            f"expected voxels with a noise ceiling above 0, got {int(np.sum(mask & ~(ceiling > 0)))} of "
            f"{int(mask.sum())} without one; mask them with ceiling_mask"
        )
    ratios = np.full(r.shape, np.nan)
    signed = r * np.abs(r)
    ratios[mask] = signed[mask] / ceiling[mask]
    negative = mask & (r < 0)
    total = ceiling[mask].sum()
    return NormalizedR2(
        ratios,
        float(signed[mask].sum() / total),
        float(np.median(ratios[mask])),
        int(mask.sum()),
        int(negative.sum()),
        float(np.square(r[negative]).sum() / total),
    )


def algonauts_score(r: np.ndarray, ceiling: np.ndarray) -> float:
    """Score of the Algonauts 2023 challenge: the median over vertices of max(r, 0)^2 / NC.

    As in the challenge, a ceiling of 0 counts as 1e-14 and a ratio above 1 as 1. An undefined r raises an error; the
    vertex is not left out.

    Args:
        r: (vertices,) Correlations.
        ceiling: (vertices,) Noise ceilings NC.

    Raises:
        BrainDataError: Shapes do not match, or a value is not finite.
    """
    r, ceiling = np.asarray(r, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    if r.ndim != 1 or r.shape != ceiling.shape or not (np.isfinite(r).all() and np.isfinite(ceiling).all()):
        raise BrainDataError(
            f"expected finite correlations and ceilings (vertices,), got {r.shape} and {ceiling.shape} with "
            f"{int(np.sum(~np.isfinite(r)))} and {int(np.sum(~np.isfinite(ceiling)))} that are not finite"
        )
    ratios = np.square(np.maximum(r, 0)) / np.where(ceiling == 0, 1e-14, ceiling)
    return float(np.median(np.minimum(ratios, 1)))


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations of the same images (Kornblith et al., 2019, eq. 3).

        ||X^T Y||^2 / (||X^T X|| ||Y^T Y||)

    The norms are Frobenius norms of centred X and Y, computed from the Gram matrices (images, images). With more
    features than images, unrelated representations score far above 0: compare with permuted images.

    Args:
        first: X (images, a).
        second: Y (images, b).

    Raises:
        AxisError: The two have different numbers of images.
        BrainDataError: A representation is constant or not finite.
    """
    for name, array in (("first", first), ("second", second)):
        _matrix(name, array)
    if len(first) != len(second):
        raise AxisError(f"expected representations of the same images, got {len(first)} and {len(second)}")
    one, two = _centred_gram(first), _centred_gram(second)
    norm = np.linalg.norm(one) * np.linalg.norm(two)
    if not norm > 0:
        raise BrainDataError("expected finite representations that vary over images, got a constant or undefined one")
    return float(np.sum(one * two) / norm)


def _centred_gram(features: np.ndarray) -> np.ndarray:
    gram = np.zeros((len(features),) * 2)
    for part in _parts(features.shape, 0):
        block = np.asarray(features[:, part], dtype=np.float64)
        block = block - block.mean(0)
        gram += block @ block.T
    return gram


def _pearson(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    constant_y, constant_p = (y == y[:1]).all(0), (p == p[:1]).all(0)
    y, p = y - y.mean(0), p - p.mean(0)
    y[:, constant_y], p[:, constant_p] = 0, 0  # the mean of equal numbers may differ from them in the last digit
    return _cosine(y, p)


def _cosine(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    norm_y, norm_p = np.linalg.norm(y, axis=0), np.linalg.norm(p, axis=0)
    dot = np.einsum("iv,iv->v", y / np.where(norm_y > 0, norm_y, np.nan), p / np.where(norm_p > 0, norm_p, 1))
    return dot


def _centred_squares(y: np.ndarray) -> np.ndarray:
    squares = np.square(y - y.mean(0)).sum(0)
    return np.where((y == y[:1]).all(0), 0.0, squares)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return above / np.where(below > 0, below, np.nan)


def _reduce(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    measured: np.ndarray,
    predicted: np.ndarray,
    axis: int,
) -> np.ndarray:
    """Values of `function`, which gets fp64 blocks of y and p and reduces their first axis."""
    _matrix("measured", measured)
    _matrix("predicted", predicted)
    if measured.shape != predicted.shape:
        raise AxisError(f"expected predictions of shape {measured.shape}, as measured, got {predicted.shape}")
    if axis not in (0, 1):
        raise AxisError(f"expected axis 0, over images, or 1, over voxels, got {axis}")
    if measured.shape[axis] < 2:
        raise AxisError(f"expected two or more values along axis {axis}, got {measured.shape[axis]}")
    out = np.empty(measured.shape[1 - axis])
    for part in _parts(measured.shape, axis):
        index = (slice(None), part) if axis == 0 else part
        y, p = (np.asarray(array[index], dtype=np.float64) for array in (measured, predicted))
        y, p = (y, p) if axis == 0 else (y.T, p.T)
        _check_finite(y, p, axis)
        out[part] = function(y, p)
    return out


def _parts(shape: tuple[int, int], axis: int) -> list[slice]:
    """Slices of the axis that is kept."""
    kept, step = shape[1 - axis], max(1, _BATCH_NUMBERS // max(1, shape[axis]))
    return [slice(start, start + step) for start in range(0, kept, step)]


def _matrix(name: str, array: np.ndarray) -> None:
    if np.ndim(array) != 2:
        raise AxisError(
            f"expected {name} (images, voxels), got {np.shape(array)}; flatten channels and times beforehand"
        )


def _check_finite(y: np.ndarray, p: np.ndarray, axis: int) -> None:
    """Accept a voxel that is undefined as measured, for values of voxels; refuse it in predictions and whole images."""
    known = np.isfinite(y)
    if not np.isfinite(p[known]).all():
        raise BrainDataError("expected finite predictions wherever responses are finite, got NaN or infinite ones")
    if axis == 1 and not known.all():
        count = int((~known).any(1).sum())
        raise BrainDataError(
            f"expected finite responses to compare whole images, got {count} voxels that are not; "
            "select usable_voxels(measured) first"
        )


_VOXEL = (
    ("voxel_r", "Pearson correlation over images of each voxel", 0.0),
    ("r2", "1 - sum (y - p)^2 / sum (y - mean y)^2 over the evaluated images of each voxel", None),
    ("ev", "1 - var(y - p) / var(y) over images of each voxel", None),
)
for _name, _text, _chance in _VOXEL:
    register(Metric(_name, "voxel", "up", _chance, None, f"{_text}; median over the mask"))
    register(Metric(f"{_name}_mean", "voxel", "up", _chance, None, f"{_text}; mean over the mask"))
for _definition in (
    Metric("sample_r", "voxel", "up", None, None, "Pearson correlation over voxels of each image; mean over images"),
    Metric("mse", "voxel", "down", None, None, "(y - p)^2, mean over voxels, then images; unit of the normaliser"),
    Metric("cosine", "voxel", "up", None, None, "cosine over voxels of each image; mean over images"),
    Metric("nr2", "voxel", "up", 0.0, None, "sum r |r| / sum NC over the mask; 1 is the noise ceiling"),
    Metric("nr2_median", "voxel", "up", 0.0, None, "median over the mask of r |r| / NC; 1 is the noise ceiling"),
    Metric("algonauts_score", "voxel", "up", None, None, "median over vertices of min(max(r, 0)^2 / NC, 1)"),
    Metric("linear_cka", "feature", "up", None, None, "||X'Y||^2 / (||X'X|| ||Y'Y||), X and Y centred over images"),
):
    register(_definition)
