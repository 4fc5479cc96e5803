"""All encoding scores of a test set, with intervals and chance. Responses and predictions are matched by image id.

    test = dataset.pairs("sim01", split, "test", average="repeats", transform=normalizer)
    for score in encoding_scores(test, predicted, predicted_ids, features=fingerprint, seed=0):
        print(score)  # voxel_r ↑ 0.310 [0.280, 0.340], chance 0 [...], ceiling ..., n 60 images, ...

The module `published` repeats the comparisons of single papers. Their numbers are on other scales, so do not put them
into one column with these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..data import Pairs
from ..data.ids import Ids
from ..data.reliability import noise_ceiling
from ..errors import AxisError, BrainDataError, IdError, near_names
from .ceilings import ceiling_mask, mask_in_words, max_r
from .encoding import cosine, ev, mse, nr2, r2, sample_r, usable_voxels, voxel_r
from .record import Interval, Score
from .registry import metric
from .retrieval import correlation_matrix, similarity
from .statistics import RESAMPLES, bootstrap_weights, percentile_interval, permutation_chance, score_images

__all__ = [
    "MatchedResponses",
    "centred_interval",
    "encoding_scores",
    "image_score",
    "join",
    "resampled_scores",
    "space_ncsnr",
]

IMAGE_WISE = {"sample_r": sample_r, "mse": lambda y, p: mse(y, p, axis=1), "cosine": lambda y, p: cosine(y, p, axis=1)}
_COLUMNS = 1024  # number of voxels that the bootstrap handles at a time


def join(ids: Ids, predicted_ids: Ids, predicted: np.ndarray) -> np.ndarray:
    """Predictions in the order of `ids`, found by image id.

    Args:
        ids: Ids of the images that need a prediction.
        predicted_ids: Ids of the images, one for each row of `predicted`.
        predicted: (images, ...) Predictions.

    Returns:
        (len(ids), ...) rows of `predicted`.

    Raises:
        IdError: An image has no prediction, or two.
        AxisError: Predictions and their ids differ in number.
    """
    names = [str(name) for name in predicted_ids]
    if len(names) != len(predicted):
        raise AxisError(f"expected an id for each of {len(predicted)} predictions, got {len(names)}")
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) != len(names):
        unique, counts = np.unique(names, return_counts=True)
        raise IdError(f"expected one prediction an image, got {counts.max()} of {unique[counts.argmax()]}")
    missing = [str(name) for name in ids if str(name) not in rows]
    if missing:
        raise IdError(f"expected a prediction of {missing[0]!r}, got none{near_names(missing[0], names)}")
    return predicted[[rows[str(name)] for name in ids]]


def encoding_scores(
    test: Pairs,
    predicted: np.ndarray,
    predicted_ids: Ids,
    ncsnr: np.ndarray | None = None,
    threshold: float = 0.1,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """All encoding scores of a test set: by voxel, by image, and relative to the noise ceiling.

    Intervals resample images together with all their trials. Intervals of voxel scores are centred on the value,
    because resamples of fewer distinct images are biased. Chance permutes which image a prediction belongs to. If
    `ncsnr` is known, voxels are masked by their noise ceiling, and `nr2` is among the scores. If not, all finite voxels
    count, and each score says so.

    Args:
        test: Test responses, averaged over repeats or single trials.
        predicted: (images, voxels) Predictions in units of the responses.
        predicted_ids: (images,) Ids of the images, one for each row of `predicted`.
        ncsnr: (voxels,) Noise ceiling signal-to-noise ratios, from train images or as published. None takes those of
            the voxel space, if it has them.
        threshold: Smallest noise ceiling of a voxel that counts.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Shapes do not match.
        IdError: An image has no prediction, or two.
        BrainDataError: No voxel is left to score.
    """
    matched = MatchedResponses.of(test, predicted, predicted_ids)
    ncsnr = space_ncsnr(test) if ncsnr is None else np.asarray(ncsnr)
    usable = usable_voxels(matched.measured)
    ceiling = None
    if ncsnr is not None:
        if ncsnr.shape != usable.shape:
            raise AxisError(f"expected ncsnr of {len(usable)} voxels, got {ncsnr.shape}")
        ceiling = noise_ceiling(ncsnr, [len(rows) for rows in test.trials])
    mask = usable if ceiling is None else usable & ceiling_mask(ceiling, threshold)
    if not mask.any():
        raise BrainDataError(
            f"expected voxels to score, got none of {len(mask)}: {int((~usable).sum())} are undefined, the others are "
            f"below a noise ceiling of {threshold:g}"
        )
    words = mask_in_words(mask, int((~usable).sum()), None if ceiling is None else threshold)
    found = {"mask": words, "n_of": matched.unit, "seed": seed} | conditions
    if ceiling is None:
        found["note"] = "; ".join(filter(None, [found.get("note"), "no noise ceiling: ncsnr unknown"]))
    matched, ceiling = matched.select(mask), None if ceiling is None else ceiling[mask]
    scores = _voxel_scores(matched, ceiling, resamples, seed, found)
    scores += [image_score(name, matched, resamples, seed, found) for name in IMAGE_WISE]
    return [score.under(test) for score in scores]


@dataclass(frozen=True)
class MatchedResponses:
    """Responses and predictions that were matched by image id.

    Attributes:
        measured: (samples, voxels) Responses.
        predicted: (images, voxels) Predictions.
        image: (samples,) Row of `predicted` that belongs to each sample.
    """

    measured: np.ndarray
    predicted: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, test: Pairs, predicted: np.ndarray, predicted_ids: Ids) -> "MatchedResponses":
        """Match predictions to the responses of some pairs.

        Args:
            test: Responses, averaged over repeats or single trials.
            predicted: (images, voxels) Predictions.
            predicted_ids: (images,) Ids of the images, one for each row of `predicted`.

        Raises:
            AxisError: Shapes do not match.
            IdError: An image has no prediction, or two.
        """
        measured = test.array()
        if measured.ndim != 2 or np.ndim(predicted) != 2 or measured.shape[1] != np.shape(predicted)[1]:
            raise AxisError(
                f"expected predictions (images, voxels) for responses {measured.shape} of {test.subject.id}, got "
                f"{np.shape(predicted)}"
            )
        names, image = np.unique(test.image_ids, return_inverse=True)
        return cls(measured, join(names, predicted_ids, np.asarray(predicted)), image)

    @property
    def clusters(self) -> np.ndarray | None:
        """Labels (samples,) of samples that are drawn together. None if each image has one sample."""
        return None if len(self.predicted) == len(self.measured) else self.image

    @property
    def unit(self) -> str:
        """Name of what is averaged, for `Score.n_of`."""
        return "images" if self.clusters is None else f"trials of {len(self.predicted)} images"

    def select(self, mask: np.ndarray) -> "MatchedResponses":
        """The same with the voxels of a mask (voxels,) only."""
        return MatchedResponses(self.measured[:, mask], self.predicted[:, mask], self.image)


def _voxel_scores(
    matched: MatchedResponses, ceiling: np.ndarray | None, resamples: int, seed: int, found: dict
) -> list[Score]:
    y, p = matched.measured, matched.predicted[matched.image]
    values = {"voxel_r": voxel_r(y, p), "r2": r2(y, p, axis=0), "ev": ev(y, p, axis=0)}
    drawn = resampled_scores(y, p, bootstrap_weights(len(y), resamples, seed, matched.clusters))
    limits = {} if ceiling is None else {"voxel_r": max_r(ceiling), "r2": ceiling, "ev": ceiling}
    permuted = {"voxel_r": _permuted_r(matched, resamples, seed)}

    def score(name: str, value: float, of: str, average: Callable[[np.ndarray], Any], **more) -> Score:
        interval, chance = centred_interval(average(drawn[of]), value), None
        if of in permuted:
            chance = percentile_interval(average(permuted[of]), method=f"{resamples} permutations of the pairs")
        return Score(metric(name), value, len(y), interval=interval, chance_interval=chance, **(found | more))

    scores = []
    for name, value in values.items():
        for suffix, average in (("", _median), ("_mean", np.nanmean)):
            limit = float(average(limits[name])) if limits else None
            rows = partial(average, axis=-1)
            scores.append(score(name + suffix, float(average(value)), name, rows, ceiling=limit))
    if ceiling is None:
        return scores
    result = nr2(values["voxel_r"], ceiling, np.ones(len(ceiling), dtype=bool))
    words = f"{result.negative} of {result.n} voxels have a negative r, worth {result.negative_share:.3g}"
    more = {"ceiling": 1.0, "note": "; ".join(filter(None, [found.get("note"), words]))}
    total = score("nr2", result.total, "voxel_r", lambda r: np.nansum(r * np.abs(r), -1) / ceiling.sum(), **more)
    median = score("nr2_median", result.median, "voxel_r", lambda r: _median(r * np.abs(r) / ceiling, -1), **more)
    return [*scores, total, median]


def centred_interval(resampled: np.ndarray, value: float) -> Interval:
    """Interval of resampled values, shifted to have its mean at `value`.

    Resamples hold fewer distinct images, which lowers the score of every voxel a little.

    Args:
        resampled: (resamples,) Values of the score.
        value: Value from all images.
    """
    return percentile_interval(resampled - resampled.mean() + value, method="bootstrap over images, bias removed")


def _median(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """`np.nanmedian`, which is slow, only where there are NaN to leave out."""
    return (np.median if np.isfinite(values).all() else np.nanmedian)(values, axis=axis)


def image_score(name: str, matched: MatchedResponses, resamples: int, seed: int, found: dict) -> Score:
    """Score of a metric of images, one of `IMAGE_WISE`, as a mean over samples.

    Samples of one image are drawn together. Chance comes from the score of every sample with every prediction.

    Args:
        name: Name of the metric.
        matched: Responses and predictions.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the permutations.
        found: Further fields of `Score`.
    """
    values = IMAGE_WISE[name](matched.measured, matched.predicted[matched.image])
    table, rows = _all_pairs(name, matched), np.arange(len(values))
    chance = permutation_chance(
        lambda order: table[rows, order[matched.image]].mean(), len(matched.predicted), resamples, seed
    )
    found = {"chance": chance.mean, "chance_interval": chance.interval} | found
    return score_images(metric(name), values, None, resamples, clusters=matched.clusters, **found)


def _all_pairs(name: str, matched: MatchedResponses) -> np.ndarray:
    """Score of every sample with every prediction, (samples, images)."""
    if name == "sample_r":
        return correlation_matrix(matched.measured, matched.predicted)
    if name == "cosine":
        return similarity(matched.measured, matched.predicted)
    y, p = matched.measured.astype(np.float64), matched.predicted.astype(np.float64)
    centre = y.mean(0)  # keeps the three terms small
    y, p = y - centre, p - centre
    return (np.square(y).sum(1)[:, None] + np.square(p).sum(1) - 2 * y @ p.T) / y.shape[1]


def resampled_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of voxels in every resample, computed by weighted sums.

    Args:
        y: (samples, voxels) Measured responses.
        p: (samples, voxels) Predictions.
        weights: (resamples, samples) Weights from `bootstrap_weights`.

    Returns:
        fp32 (resamples, voxels) under "voxel_r", "r2" and "ev".
    """
    out = {name: np.empty((len(weights), y.shape[1]), np.float32) for name in ("voxel_r", "r2", "ev")}
    total = weights.sum(1, keepdims=True)
    for start in range(0, y.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        a, b = (x[:, part].astype(np.float64) for x in (y, p))
        d = a - b
        a, b = a - a.mean(0), b - b.mean(0)
        mean = {key: weights @ x / total for key, x in {"a": a, "b": b, "d": d}.items()}
        var = {key: weights @ np.square(x) / total - mean[key] ** 2 for key, x in {"a": a, "b": b, "d": d}.items()}
        both = weights @ (a * b) / total - mean["a"] * mean["b"]
        tiny = 1e-12 * np.square(a).mean(0)  # a resample of few distinct images may not vary at all
        below = np.where(var["a"] > tiny, var["a"], np.nan)
        spread = np.sqrt(below * np.maximum(var["b"], 0))
        out["voxel_r"][:, part] = np.where(spread > 0, both / np.where(spread > 0, spread, 1), 0 * below)
        out["r2"][:, part] = 1 - (var["d"] + mean["d"] ** 2) / below
        out["ev"][:, part] = 1 - var["d"] / below
    return out


def _permuted_r(matched: MatchedResponses, permutations: int, seed: int) -> np.ndarray:
    """voxel_r with predictions given to other images, (permutations, voxels) fp32."""
    rng = np.random.default_rng(seed)
    y = matched.measured - matched.measured.mean(0, dtype=np.float64)
    y = (y / np.linalg.norm(y, axis=0)).astype(np.float32)
    p = matched.predicted.astype(np.float64)
    counts = np.bincount(matched.image)[:, None]
    sums = np.zeros(p.shape, np.float32)
    np.add.at(sums, matched.image, y)  # the correlation needs a sum over the samples of each image only
    out = np.empty((permutations, p.shape[1]), np.float32)
    equal = bool((counts == counts[0]).all())
    flat = (p == p[:1]).all(0)
    standard = _standardized(p, counts) if equal else None
    for row in out:
        order = rng.permutation(len(p))
        dealt = standard[order] if standard is not None else _standardized(p[order], counts)
        row[:] = np.where(flat, 0, np.einsum("iv,iv->v", sums, dealt))
    return out


def _standardized(p: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Predictions centred, with unit norm over the samples, fp32."""
    p = p - (counts * p).sum(0) / counts.sum()
    norm = np.sqrt((counts * np.square(p)).sum(0))
    return (p / np.where(norm > 0, norm, 1)).astype(np.float32)


def space_ncsnr(test: Pairs) -> np.ndarray | None:
    """Noise ceiling signal-to-noise ratios (voxels,) of the voxel space of some pairs. None if it has none."""
    ncsnr = getattr(test.subject.space, "ncsnr", None)
    return ncsnr if ncsnr is None or test.columns is None else ncsnr[test.columns]
