"""Encoding: from features of images to responses, beside the controls and the ceiling."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..baselines import MeanMap, NearestNeighbor, PriorRidge, ReducedRankRidge, Ridge
from ..data import Pairs, Subject, VoxelSpace
from ..data.moments import column_moments, column_parts
from ..data.reliability import ncsnr, noise_ceiling
from ..errors import BrainDataError
from ..metrics import Interval, Score
from ..metrics.ceilings import ceiling_mask
from ..metrics.encoding import usable_voxels, voxel_r
from ..metrics.protocols import encoding_scores, resampled_scores
from ..metrics.statistics import bootstrap_weights, percentile_interval
from ..simulated import SimulatedDataset

__all__ = [
    "SHRUNK",
    "WHOLE",
    "Encoded",
    "Resampled",
    "Study",
    "chance_band",
    "encode",
    "encode_controls",
    "encode_shrunk",
    "judge",
    "learning_curve",
    "planted_oracle",
    "reliability",
    "ridge_prediction",
    "standardized",
]

_log = logging.getLogger(__name__)
WHOLE = "all voxels"
SHUFFLED, SHUFFLES = "ridge, pairs shuffled", 20
SHRUNK = {"reduced-rank ridge": ReducedRankRidge, "prior ridge": PriorRidge}  # voxels learn from each other in these


@dataclass(frozen=True)
class Study:
    """What every encoding of one subject shares.

    Attributes:
        train, test: Responses averaged over the repeats of an image.
        measured_train, measured: Those responses as arrays, fp32 (n, V).
        ncsnr: Signal by noise of single trials (V,), from train images or as published; None where it is unknown.
        voxels: Mask (V,) of voxels that count: finite everywhere, not constant, and above the threshold.
        ceiling: Noise ceiling (V,) of r^2 for the test responses; None without ncsnr.
        threshold: Smallest ceiling of a voxel that counts.
        resamples: Number of bootstrap resamples and of permutations.
        seed: Seed of intervals and permutations.
        shuffles: Number of fits to wrong pairs, whose range is the chance band of encoding and of decoding.
    """

    train: Pairs
    test: Pairs
    measured_train: np.ndarray
    measured: np.ndarray
    ncsnr: np.ndarray | None
    voxels: np.ndarray
    ceiling: np.ndarray | None
    threshold: float
    resamples: int
    seed: int
    shuffles: int = SHUFFLES

    @classmethod
    def of(
        cls,
        train: Pairs,
        test: Pairs,
        ncsnr: np.ndarray | None,
        threshold: float,
        resamples: int,
        seed: int,
        shuffles: int = SHUFFLES,
    ):
        measured_train, measured = train.array(), test.array()
        usable = usable_voxels(measured_train) & usable_voxels(measured)
        ceiling = None if ncsnr is None else noise_ceiling(ncsnr, [len(rows) for rows in test.trials])
        voxels = usable if ceiling is None else usable & ceiling_mask(ceiling, threshold)
        if not voxels.any():
            raise BrainDataError(
                f"expected voxels above a noise ceiling of {threshold:g}, got none of {len(usable)}, "
                f"{int((~usable).sum())} of them constant or undefined; what does not repeat cannot be predicted"
            )
        arrays = measured_train, measured, ncsnr, voxels, ceiling
        return cls(train, test, *arrays, threshold, resamples, seed, shuffles)

    def wrong_pairs(self) -> Iterator[np.ndarray]:
        """Orders (n,) in which the train images do not belong to their responses, one for each shuffle."""
        rng = np.random.default_rng(self.seed)
        return (rng.permutation(len(self.train)) for _ in range(self.shuffles))

    @property
    def rois(self) -> Mapping[str, np.ndarray]:
        """Regions of the space that have voxels that count."""
        known = getattr(self.test.subject.space, "rois", {})
        return {name: mask & self.voxels for name, mask in known.items() if (mask & self.voxels).any()}


@dataclass(frozen=True)
class Resampled:
    """A score of some voxels, and what it is in resamples of the test images.

    Attributes:
        value: sum r |r| / sum NC, or the mean r without a ceiling.
        draws: The same in each resample, (resamples,).
    """

    value: float
    draws: np.ndarray

    @property
    def span(self) -> tuple[float, float, float]:
        """(value, low, high), the interval centred on the value as that of `encoding_scores` is."""
        interval = percentile_interval(self.draws - (np.nanmean(self.draws) - self.value))
        return self.value, interval.low, interval.high


@dataclass(frozen=True)
class Encoded:
    """How well one model predicts the test responses.

    Attributes:
        model, features: Names of the model and of its features.
        scores: Scores over all voxels that count.
        r: Correlation of each voxel (V,), NaN where it does not count.
        rois: (value, low, high) by region: sum r |r| / sum NC, or the mean r without a ceiling.
        note: A caution that belongs to the numbers.
        predicted: Predictions (images, voxels that count), fp32. None for a mean of several fits.
        resampled: Score of each region and of `WHOLE`, all voxels that count. Rows of one study have the same
            resamples. Empty for a mean of several fits.
    """

    model: str
    features: str
    scores: Sequence[Score]
    r: np.ndarray
    rois: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    note: str = ""
    predicted: np.ndarray | None = field(default=None, repr=False)
    resampled: Mapping[str, Resampled] = field(default_factory=dict, repr=False)

    @property
    def headline(self) -> Score:
        """The score nr2, or the median correlation of a voxel where there is no noise ceiling."""
        return self.score("nr2") or next(score for score in self.scores if score.metric.name == "voxel_r")

    def score(self, name: str) -> Score | None:
        """One of the scores by the name of its metric."""
        return next((score for score in self.scores if score.metric.name == name), None)

    def to_json(self) -> dict[str, Any]:
        rois = {name: list(map(float, values)) for name, values in self.rois.items()}
        scores = [score.to_json() for score in self.scores]
        return {"model": self.model, "features": self.features, "note": self.note, "rois": rois, "scores": scores}


def reliability(subject: Subject, singles: Pairs) -> np.ndarray | None:
    """ncsnr of each voxel from the repeats of train images, standardised as `singles` are; None without repeats."""
    space = subject.space
    if isinstance(space, VoxelSpace) and space.ncsnr is not None:
        return space.ncsnr
    names, rows = np.unique(singles.image_ids, return_inverse=True)
    groups = [np.flatnonzero(rows == i) for i in range(len(names))]
    if max(map(len, groups)) < 2:
        _log.warning("no image of %s was repeated: there is no noise ceiling", subject.id)
        return None
    return ncsnr(singles.array(), groups)


def encode(study: Study, features: str, fingerprint: str, X: np.ndarray, X_test: np.ndarray, note: str = "") -> Encoded:
    """Ridge from standardised features, penalty by voxel, and its scores on the test images."""
    predicted = ridge_prediction(study, X, X_test)
    return judge(study, predicted, "ridge", features, note, features_of=fingerprint)


def encode_shrunk(
    study: Study, features: str, fingerprint: str, X: np.ndarray, X_test: np.ndarray, note: str = ""
) -> list[Encoded]:
    """As `encode`, by linear models in which voxels learn from each other, as they do in every deep model."""
    guesses = {name: ridge_prediction(study, X, X_test, kind=kind) for name, kind in SHRUNK.items()}
    return [judge(study, guess, name, features, note, features_of=fingerprint) for name, guess in guesses.items()]


def encode_controls(
    study: Study, features: str, fingerprint: str, X: np.ndarray, X_test: np.ndarray, note: str = ""
) -> list[Encoded]:
    """Scores that every model should exceed: the mean response, the nearest train image's, ridge on shuffled pairs."""
    Y = study.measured_train[:, study.voxels]
    neighbor = NearestNeighbor().fit(X, Y).predict(X_test)
    shuffles = [ridge_prediction(study, X[order], X_test) for order in study.wrong_pairs()]
    return [
        judge(study, _widen(study, MeanMap().fit(X, Y).predict(X_test)), "mean map", "none"),
        judge(study, _widen(study, neighbor), "nearest neighbour", features, note, features_of=fingerprint),
        _mean_of([judge(study, guess, SHUFFLED, features, note, features_of=fingerprint) for guess in shuffles]),
    ]


def chance_band(runs: Sequence[Sequence[Score]], what: str = "shuffles") -> list[Score]:
    """Scores of several fits to wrong pairs as one row: means, with intervals from the least to the greatest fit.

    `what` says how the fits differ, for the notes of the scores.
    """
    scores, told = [], f"mean of {len(runs)} {what}, the interval from least to most"
    for same in zip(*runs, strict=True):
        values = [score.value for score in same]
        span = Interval(min(values), max(values), 1.0, f"{len(runs)} {what}")
        note = "; ".join(filter(None, [same[0].note, told]))
        scores.append(replace(same[0], value=float(np.mean(values)), interval=span, note=note))
    return scores


def _mean_of(runs: Sequence[Encoded]) -> Encoded:
    """Fits of one control as one row."""
    scores = chance_band([run.scores for run in runs])
    rois = {}
    for name in runs[0].rois:
        values = [run.rois[name][0] for run in runs]
        rois[name] = (float(np.mean(values)), min(values), max(values))
    r = np.mean([run.r for run in runs], 0)
    return replace(runs[0], scores=scores, r=r, rois=rois, predicted=None, resampled={})


def planted_oracle(study: Study, dataset: SimulatedDataset) -> Encoded:
    """The planted signal itself, each voxel in units of its train responses: what a perfect model would predict."""
    truth: Any = dataset.truth[study.test.subject.id]
    signal, known = truth.signal(study.test.image_ids), truth.signal(study.train.image_ids)
    centred, mean = known - known.mean(0), np.nan_to_num(study.measured_train.mean(0))
    slope = (centred * np.nan_to_num(study.measured_train)).sum(0) / (centred**2).sum(0)
    predicted = (signal - known.mean(0)) * slope + mean
    return judge(study, predicted, "planted signal", "truth", "an oracle: no model sees it")


def learning_curve(
    study: Study, X: np.ndarray, X_test: np.ndarray, counts: Sequence[int]
) -> dict[int, tuple[float, float, float]]:
    """(value, low, high) of sum r |r| / sum NC, or of the mean r, against the number of train images."""
    order = np.random.default_rng(study.seed).permutation(len(X))
    found = {}
    for count in counts:
        predicted = ridge_prediction(study, X, X_test, np.sort(order[:count]))
        found[count] = _summaries(study, predicted, {WHOLE: study.voxels})[WHOLE].span
    return found


def judge(
    study: Study, predicted: np.ndarray, model: str, features: str, note: str = "", features_of: str | None = None
) -> Encoded:
    """Scores of predictions (images, V) of the test images."""
    scores = encoding_scores(
        study.test,
        predicted,
        study.test.image_ids,
        study.ncsnr,
        study.threshold,
        resamples=study.resamples,
        seed=study.seed,
        decoder=model,
        features=features_of,
        note=note,
    )
    r = np.full(len(study.voxels), np.nan)
    r[study.voxels] = voxel_r(study.measured[:, study.voxels], predicted[:, study.voxels])
    resampled = _summaries(study, predicted, {WHOLE: study.voxels, **study.rois})
    rois = {name: resampled[name].span for name in study.rois}
    kept = predicted[:, study.voxels].astype(np.float32, copy=False)
    return Encoded(model, features, scores, r, rois, note, kept, resampled)


def _summaries(study: Study, predicted: np.ndarray, masks: Mapping[str, np.ndarray]) -> dict[str, Resampled]:
    """The score of each mask, and in resampled images, which are the same for every model."""
    measured, guess = study.measured[:, study.voxels], predicted[:, study.voxels]
    r = voxel_r(measured, guess)
    weights = bootstrap_weights(len(measured), study.resamples, study.seed)
    drawn = resampled_scores(measured, guess, weights)["voxel_r"]
    found = {}
    for name, mask in masks.items():
        inside = mask[study.voxels]

        def total(r: np.ndarray, mask: np.ndarray = mask, inside: np.ndarray = inside) -> np.ndarray:
            r = r[..., inside]
            if study.ceiling is None:
                return np.nanmean(r, -1)
            return np.nansum(r * np.abs(r), -1) / study.ceiling[mask].sum()

        found[name] = Resampled(float(total(r)), total(drawn))
    return found


def ridge_prediction(
    study: Study, X: np.ndarray, X_test: np.ndarray, rows: np.ndarray | None = None, kind: type[Ridge] = Ridge
) -> np.ndarray:
    """Test responses (n, V) by ridge from standardised features, 0 in voxels that do not count; `rows` train it."""
    rows = np.arange(len(X)) if rows is None else rows
    X, X_test = standardized(X[rows], X_test)
    return _widen(study, kind().fit(X, study.measured_train[rows][:, study.voxels]).predict(X_test))


def standardized(X: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features in units of their deviation over train images, without those that hardly vary there.

    A unit that is silent for all but one train image can take any value in the test images. A feature is therefore
    left out where its deviation is below a thousandth of the largest.
    """
    mean, std = column_moments(X)
    kept = std > 1e-3 * std.max()
    if not kept.any():
        raise BrainDataError(f"expected features that vary over the train images, got {X.shape[1]} that are constant")
    columns = np.flatnonzero(kept)
    train, test = (np.empty((len(x), len(columns)), np.float32, order="F") for x in (X, X_test))
    for part in column_parts(train.shape):
        chosen = columns[part]
        for x, out in ((X, train), (X_test, test)):
            out[:, part] = (x[:, chosen] - mean[chosen]) / std[chosen]
    return train, test


def _widen(study: Study, predicted: np.ndarray) -> np.ndarray:
    """Predictions of the voxels that count, in the columns of all; elsewhere 0, the mean."""
    out = np.zeros((len(predicted), len(study.voxels)), np.float32)
    out[:, study.voxels] = predicted
    return out
