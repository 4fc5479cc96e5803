"""Encoding and decoding of epochs at each time point, and of the whole window.

    targets = Targets.of("veca", fingerprint, X, X_test)
    encoded = encode_epochs(data, targets, options)   # r of each channel and time
    decoded = decode_epochs(data, targets, options)   # two-way identification over time, top-k of the window
    decoded.generalization                            # trained at one time, tested at another

All models are `GcvRidge`. Decoders see channels whose noise is white, and predict the first principal components of the
standardised features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..baselines.time_points import GcvRidge, TimeRidge
from ..data.sensors import time_slices
from ..errors import BrainDataError, need
from ..metrics import Score
from ..metrics.protocols import resampled_scores
from ..metrics.retrieval import full_gallery, identification
from ..metrics.statistics import Interval, bootstrap_weights, percentile_interval
from .encoding import SHUFFLED, chance_band
from .epoch_data import EpochData
from .epoch_results import (
    EPOCH_NR2,
    EPOCH_R,
    TIMED,
    DecodedEpochs,
    EncodedEpochs,
    EpochOptions,
    Generalization,
    Targets,
)
from .epoch_statistics import ERROR, Course, course_of, identification_tables, permuted_means

__all__ = [
    "WindowDecoder",
    "decode_epochs",
    "encode_epochs",
    "generalize",
    "pairwise_classification",
    "time_predictions",
]

WINDOW_BINS = 25  # of the whole window
MOST_CELLS = 50  # times of temporal generalisation, a side
_CELL_PERMUTATIONS = 200


def encode_epochs(data: EpochData, targets: Targets, options: EpochOptions) -> EncodedEpochs:
    """Ridge from features to each channel and bin, with a penalty of its own."""
    count, channels, bins = data.train.shape
    ridge = GcvRidge(per_target=True).decompose(targets.inputs)
    train, measured = data.train.reshape(count, -1), data.test.reshape(len(data.test), -1)
    predicted = ridge.solve(train).predict(targets.test_inputs)
    y, p = _standard(measured), _standard(predicted)
    r = _correlations(measured, y, p)
    tables = _channel_tables(y, p, channels, bins)
    weights = bootstrap_weights(len(measured), options.resamples, options.seed)
    drawn = resampled_scores(measured, predicted, weights)["voxel_r"].reshape(-1, channels, bins)
    wrong = []
    for order in options.orders(count):
        guess = _standard(ridge.solve(train[order]).predict(targets.test_inputs))
        wrong.append(_correlations(measured, y, guess).reshape(channels, bins))
    r = r.reshape(channels, bins)
    course = course_of(
        f"r of {targets.name}",
        data.space.times,
        tables,
        [np.nanmean(x, 0) for x in wrong],
        0.0,
        options.resamples,
        options.seed,
        _unbiased(np.nanmean(drawn, 1), np.nanmean(r, 0)),
        _best(data.ceiling, np.isfinite(r)),
    )
    null = permuted_means(tables[data.after].mean(0)[None], options.resamples, options.seed)[:, 0]
    scores = _encoding_scores(data, targets, options, r, drawn, null)
    runs = [_encoding_scores(data, targets, options, x) for x in wrong]
    largest = [_largest_cells(y, p, options.seed)]
    if wrong:
        largest.append(float(np.quantile([np.nanmax(x) for x in wrong], 1 - ERROR)))
    return EncodedEpochs(targets.name, data.name, r, max(largest), course, scores, chance_band(runs) if runs else [])


def decode_epochs(data: EpochData, targets: Targets, options: EpochOptions) -> DecodedEpochs:
    """Ridge from channels to features, at each bin and for the whole window."""
    train, test = data.white(data.train), data.white(data.test)
    ridge, window = TimeRidge().decompose(train), GcvRidge().decompose(_window(train))
    timed, whole = _guesses(ridge, window, targets.parts, test)
    tables = identification_tables(_similarities(timed, targets))
    wrong, runs = [], []
    for order in options.orders(len(train)):
        shuffled, guess = _guesses(ridge, window, targets.parts[order], test)
        wrong.append(_own_shares(_similarities(shuffled, targets)))
        runs.append(_decoding_scores(data, targets, replace(options, resamples=2), guess, wrong[-1])[0])
    times = data.space.times
    name = f"two-way in {targets.name}"
    course = course_of(name, times, tables, wrong, 0.5, options.resamples, options.seed)
    scores, table = _decoding_scores(data, targets, options, whole, course.values, tables)
    chance = [replace(score, decoder=SHUFFLED, chance_interval=None) for score in chance_band(runs)] if runs else []
    return DecodedEpochs(targets.name, data.name, course, scores, chance, table)


@dataclass(frozen=True, eq=False)
class WindowDecoder:
    """Ridge from all channels and times to features.

    Attributes:
        data: Responses that it was fitted to.
        targets: Features of the images.
        ridge: The fit.
    """

    data: EpochData
    targets: Targets
    ridge: GcvRidge

    @classmethod
    def fit(cls, data: EpochData, targets: Targets) -> "WindowDecoder":
        """Fit the train images."""
        return cls(data, targets, GcvRidge().fit(_window(data.white(data.train)), targets.parts))

    def similarities(self, epochs: np.ndarray) -> np.ndarray:
        """Cosines (m, m) of what epochs (m, C, L) give, in rows, with the features of the test images."""
        return _cosines(self.ridge.predict(_window(self.data.white(epochs))), self.targets)


def time_predictions(train: np.ndarray, targets: np.ndarray, test: np.ndarray, estimator: Any = None) -> np.ndarray:
    """What a regression at each time point predicts.

    Args:
        train: Epochs (n, C, T).
        targets: Targets (n, k).
        test: Epochs (m, C, T).
        estimator: Regressor of scikit-learn, which `mne.decoding.SlidingEstimator` fits at each time point to each
            target. None means `TimeRidge`.

    Returns:
        (m, T, k).

    Raises:
        AxisError: Epochs and targets do not fit each other.
        ImportError: MNE is not installed.
    """
    if estimator is None:
        return TimeRidge().fit(train, targets).predict(test)
    try:
        from mne.decoding import SlidingEstimator
    except ImportError as error:
        raise need("mne", "an estimator at each time point") from error
    train, test = (np.asarray(x, np.float64) for x in (train, test))
    fitted: list[Any] = [SlidingEstimator(estimator, verbose="error").fit(train, column) for column in targets.T]
    return np.stack([model.predict(test) for model in fitted], -1)


def generalize(data: EpochData, targets: Targets, options: EpochOptions) -> Generalization:
    """Two-way identification by decoders of each time at every other time, for at most 50 times."""
    step = -(-len(data.space.times) // MOST_CELLS)
    parts = time_slices(len(data.space.times), 1.0, step)
    train, test = (
        np.stack([x[:, :, part].mean(2) for part in parts], 2) for x in (data.white(data.train), data.white(data.test))
    )
    ridge = TimeRidge().decompose(train)
    times = np.array([data.space.times[part].mean() for part in parts])
    null = np.full(_CELL_PERMUTATIONS, -np.inf)
    values = np.empty((len(times), len(times)))
    for row, similar in enumerate(_generalized(ridge.solve(targets.parts), targets, test)):
        tables = identification_tables(similar)
        values[row] = np.diagonal(tables, axis1=1, axis2=2).mean(1)
        null = np.maximum(null, permuted_means(tables, _CELL_PERMUTATIONS, options.seed).max(1))
    limits = [float(np.quantile(null, 1 - ERROR))]
    most = []
    for order in options.orders(len(train)):
        wrong = _generalized(ridge.solve(targets.parts[order]), targets, test)
        most.append(max(float(_own_shares(similar).max()) for similar in wrong))
    if most:
        limits.append(float(np.quantile(most, 1 - ERROR)))
    return Generalization(times, values, max(limits))


def _generalized(ridge: TimeRidge, targets: Targets, test: np.ndarray) -> Iterator[np.ndarray]:
    """Similarities (T, m, m) at all times of the test epochs (m, C, T), for the decoder of one time after the other."""
    for slopes, offsets in zip(ridge.maps, ridge.offsets, strict=True):
        reader = targets.gallery @ slopes.T  # (m, C)
        yield np.einsum("ic,jct->tij", reader, test, optimize=True) + (targets.gallery @ offsets)[:, None]


def _own_shares(similar: np.ndarray) -> np.ndarray:
    """Two-way identification (L,) from similarities (L, m, m) of real images in rows with decoded ones in columns."""
    own = np.diagonal(similar, axis1=1, axis2=2)[:, None]
    count = similar.shape[1]
    return (similar < own).mean((1, 2)) * count / (count - 1)


def pairwise_classification(data: EpochData, options: EpochOptions) -> Course | None:
    """Which of two test images was shown, by linear discriminant analysis of channels at each bin, without features.

    Repeats 1, 3, 5, ... give the means of the classes, and repeats 2, 4, 6, ... are classified, then the other way
    round. The covariance is that of the noise in train trials. The score is the mean over pairs of test images. A
    single division into halves is used: with several, permuted pairs would be no valid chance.

    Args:
        data: Responses.
        options: Resamples and seed.

    Returns:
        The course, or None where a test image was shown once.

    Raises:
        BrainDataError: There are fewer than two test images.
    """
    if len(data.groups) < 2:
        raise BrainDataError(f"expected two test images or more, got {len(data.groups)}")
    if min(map(len, data.groups)) < 2:
        return None
    first, second = (
        data.white(np.stack([data.trials[group[start::2]].mean(0) for group in data.groups])) for start in (0, 1)
    )
    tables = 0.5 * (_class_tables(first, second).swapaxes(1, 2) + _class_tables(second, first))
    return course_of("pairwise classification", data.space.times, tables, (), 0.5, options.resamples, options.seed)


def _class_tables(known: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """Share of pairs (L, m, m) in which probe j is nearer to class i than to another one, by their means (m, C, L)."""
    similar = np.einsum("icl,jcl->lij", known, probe, optimize=True)
    return identification_tables(similar - 0.5 * np.square(known).sum(1).T[:, :, None])


def _guesses(ridge: TimeRidge, window: GcvRidge, parts: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components that each bin (m, L, k) and the window (m, k) predict after a fit to `parts`."""
    return ridge.solve(parts).predict(test), window.solve(parts).predict(_window(test))


def _similarities(predicted: np.ndarray, targets: Targets) -> np.ndarray:
    """Similarities (L, m, m) of real images in rows with decoded ones in columns, up to a factor of each column."""
    return np.einsum("ik,jlk->lij", targets.gallery, predicted, optimize=True)


def _cosines(predicted: np.ndarray, targets: Targets) -> np.ndarray:
    """Cosines (m, m) of predicted components in rows with those of the test images."""
    return predicted @ targets.gallery.T / np.maximum(np.linalg.norm(predicted, axis=1, keepdims=True), 1e-12)


def _window(epochs: np.ndarray) -> np.ndarray:
    """Channels and at most `WINDOW_BINS` bins as one row for each epoch, (n, C * bins)."""
    parts = np.array_split(np.arange(epochs.shape[2]), min(WINDOW_BINS, epochs.shape[2]))
    return np.stack([epochs[:, :, part].mean(2) for part in parts], 2).reshape(len(epochs), -1)


def _decoding_scores(
    data: EpochData,
    targets: Targets,
    options: EpochOptions,
    whole: np.ndarray,
    timed: np.ndarray,
    tables: np.ndarray | None = None,
) -> tuple[list[Score], np.ndarray]:
    """Scores of the whole window, and the mean over bins of those over time, whose intervals `tables` give."""
    said: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed, "decoder": "ridge"}
    table = _cosines(whole, targets)
    scores = full_gallery(table, **said)
    scores.append(identification(targets.test_parts, whole, targets.name, **said))
    conditions: dict[str, Any] = {"decoder": "ridge at each time", "seed": options.seed}
    if tables is not None:
        mean = tables[data.after].mean(0)
        weights = bootstrap_weights(len(mean), options.resamples, options.seed)
        drawn = weights @ np.diagonal(mean) / weights.sum(1)
        null = permuted_means(mean[None], options.resamples, options.seed)[:, 0]
        conditions["interval"] = percentile_interval(drawn)
        conditions["chance_interval"] = percentile_interval(null, method="permuted test images")
    scores.append(Score(TIMED, float(timed[data.after].mean()), len(whole), **conditions))
    return [_under(score, data, targets) for score in scores], table


def _encoding_scores(
    data: EpochData,
    targets: Targets,
    options: EpochOptions,
    r: np.ndarray,
    drawn: np.ndarray | None = None,
    null: np.ndarray | None = None,
) -> list[Score]:
    """`epoch_r`, and with a noise ceiling `epoch_nr2`. `drawn` (resamples, C, L) give intervals."""
    after, base = data.after, {"decoder": "ridge", "seed": options.seed}
    kept = np.isfinite(r) & after
    best = None if data.ceiling is None else float(np.sqrt(np.clip(data.ceiling[kept].mean(), 0, 1)))
    found: dict[str, Any] = {"ceiling": best}
    if null is not None:
        found["chance_interval"] = percentile_interval(null, method="permuted test images")
    if drawn is not None:
        found["interval"] = _interval(np.nanmean(drawn[:, kept], 1), float(r[kept].mean()))
    scores = [Score(EPOCH_R, float(r[kept].mean()), len(data.test), **base, **found)]
    if data.ceiling is not None:
        counted = kept & (data.ceiling >= options.threshold)
        rule = f"NC >= {options.threshold:g}: {int(counted.sum())} of {int(kept.sum())} channels and bins"
        if counted.any():
            total = data.ceiling[counted].sum()
            value = float((r[counted] * np.abs(r[counted])).sum() / total)
            found = {}
            if drawn is not None:
                cells = drawn[:, counted]
                found["interval"] = _interval(np.nansum(cells * np.abs(cells), 1) / total, value)
            scores.append(Score(EPOCH_NR2, value, len(data.test), mask=rule, ceiling=1.0, **base, **found))
    return [_under(score, data, targets) for score in scores]


def _under(score: Score, data: EpochData, targets: Targets) -> Score:
    note = "; ".join(filter(None, [score.note, targets.note]))
    return score.under(data.pairs, features=targets.fingerprint, note=note)


def _interval(drawn: np.ndarray, value: float) -> Interval:
    """Interval of resampled values, moved by their bias: resamples repeat images, which lowers correlations."""
    return percentile_interval(drawn - (np.nanmean(drawn) - value))


def _unbiased(drawn: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.nanquantile(drawn - (np.nanmean(drawn, 0) - values), [0.025, 0.975], axis=0)
    return low, high


def _best(ceiling: np.ndarray | None, known: np.ndarray) -> np.ndarray | None:
    """Largest mean correlation (L,) of known channels (C, L), the root of their mean ceiling. It is averaged first."""
    if ceiling is None:
        return None
    return np.sqrt(np.clip(np.where(known, np.nan_to_num(ceiling), 0).sum(0) / np.maximum(known.sum(0), 1), 0, 1))


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and length 1, fp32 (m, V); constant ones become 0."""
    centred = values - values.mean(0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    tiny = 1e-6 * np.sqrt(len(values)) * np.abs(values).max(0)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > tiny).astype(np.float32)


def _correlations(measured: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Correlation (V,) of standard columns: 0 where the prediction is constant, NaN where the measurement is."""
    r = np.einsum("mv,mv->v", y, p).astype(np.float64)
    return np.where((y != 0).any(0), r, np.nan)


def _channel_tables(y: np.ndarray, p: np.ndarray, channels: int, bins: int) -> np.ndarray:
    """(L, m, m): mean over channels of the correlation is the mean of the diagonal."""
    first, second = (x.reshape(len(x), channels, bins) for x in (y, p))
    known = np.maximum((first != 0).any(0).sum(0), 1)  # channels that vary, by bin
    return np.einsum("icl,jcl->lij", first, second, optimize=True) * (len(y) / known)[:, None, None]


def _largest_cells(y: np.ndarray, p: np.ndarray, seed: int) -> float:
    """95 % quantile over permutations of the test images of the largest correlation of all channels and bins."""
    rng = np.random.default_rng(seed)
    most = [np.einsum("mv,mv->v", y[rng.permutation(len(y))], p).max() for _ in range(_CELL_PERMUTATIONS)]
    return float(np.quantile(most, 0.95))
