"""Which sensors and which times a classifier of EEG uses.

    table = occlude(model, trials, labels, colors=colors, by="region")
    table.drop("occipital", "top1").difference.value  # accuracy that is lost without the occipital channels
    sliding_accuracy(train, labels, test, test_labels).peak  # (seconds, accuracy) of the best moment

A model is anything with a method `classify(trials)` that returns probabilities, such as `Neuro3D` or `SensorRidge`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..data.objects import ObjectTrials
from ..data.sensors import binned, regions_of, time_slices
from ..errors import AxisError, BrainDataError, check_choice, need
from ..metrics.eeg import top_k_hits
from ..metrics.statistics import RESAMPLES, Difference, bootstrap_mean, paired_difference
from ..records import to_json

__all__ = ["BY", "HOW", "Classifier", "Drop", "Occlusion", "Part", "TimeCourse", "occlude", "sliding_accuracy"]

BY = ("channel", "region", "window")
HOW = ("mean", "permute")
WINDOWS = {"static": 0.1, "dynamic": 1.0}
"""Length of the windows of each stream in occlusion, in seconds."""
SLIDING = {"static": 0.02, "dynamic": 0.2}
"""Length of the windows of each stream in sliding accuracy, in seconds."""
TOP = {"shape": (1, 5), "color": (1, 2)}
"""Values of k in the top-k accuracies of each target."""


class Probabilities(Protocol):
    """What `Classifier.classify` returns. `color` is None where the model knows no colours."""

    @property
    def shape(self) -> np.ndarray: ...

    @property
    def color(self) -> np.ndarray | None: ...


class Classifier(Protocol):
    """A fitted model."""

    def classify(self, trials: ObjectTrials) -> Probabilities:
        """Probabilities of classes (n, K) in `shape`, and of colours (n, Q) or None in `color`."""
        ...


Removal = Callable[[ObjectTrials], ObjectTrials]


@dataclass(frozen=True)
class Part:
    """Channels and times that are removed together.

    Attributes:
        name: Name of the channel or region, or the window in seconds.
        stream: "static", "dynamic", or "all" for all streams at once.
        channels: Names of the channels. None means all.
        window: Start and end in seconds from the onset. The end is not part of it. None means all times.
    """

    name: str
    stream: str
    channels: tuple[str, ...] | None = None
    window: tuple[float, float] | None = None

    def removed(self, trials: ObjectTrials, order: np.ndarray | None = None) -> ObjectTrials:
        """The trials without information in this part.

        Args:
            trials: Trials, which are not changed.
            order: Permutation (n,) of the rows. Row i gets the part of row order[i]. None gives each row the mean over
                all rows.
        """
        found = {}
        for name in trials.streams if self.stream == "all" else (self.stream,):
            space = trials.spaces[name]
            wanted = space.ch_names if self.channels is None else self.channels
            rows = np.flatnonzero(np.isin(np.asarray(space.ch_names), list(wanted)))[:, None]
            low, high = (-np.inf, np.inf) if self.window is None else self.window
            half = 0.5 / space.sfreq  # so that rounded times do not move an end
            columns = np.flatnonzero((space.times >= low - half) & (space.times < high - half))
            values = trials.values([name])[name]  # a copy
            piece = values[:, rows, columns]  # (n, channels, times)
            values[:, rows, columns] = piece.mean(0) if order is None else piece[order]
            found[name] = values
        return trials.with_values(found)


@dataclass(frozen=True)
class Drop:
    """What a measure loses without a part.

    Attributes:
        part: The channels and times that were removed.
        target: "shape" or "color".
        measure: "top1", "top5", "top2", or "probability" of the truth.
        full: Value with all channels and times.
        without: Value without the part.
        difference: `full - without` with its interval over objects.
    """

    part: Part
    target: str
    measure: str
    full: float
    without: float
    difference: Difference


@dataclass(frozen=True)
class Occlusion:
    """A table of drops.

    Attributes:
        by: What was removed: "channel", "region" or "window".
        how: "mean" or "permute".
        refitted: Whether a new model was fitted without each part.
        drops: All rows.
    """

    by: str
    how: str
    refitted: bool
    drops: tuple[Drop, ...]

    def drop(self, name: str, measure: str = "top1", target: str = "shape", stream: str = "all") -> Drop:
        """The row of a part. An unknown one is a `BrainDataError`."""
        rows = {row.part.name: row for row in self.select(measure, target, stream)}
        return rows[check_choice("part", name, tuple(rows))]

    def select(self, measure: str = "top1", target: str = "shape", stream: str = "all") -> list[Drop]:
        """The rows of a measure, one for each part.

        Raises:
            BrainDataError: There is no such row.
        """
        wanted = (measure, target, stream)
        found = [row for row in self.drops if (row.measure, row.target, row.part.stream) == wanted]
        if not found:
            known = sorted({(row.measure, row.target, row.part.stream) for row in self.drops})
            raise BrainDataError(f"expected measure, target and stream among {known}, got {wanted}")
        return found

    def values(self, measure: str = "top1", target: str = "shape", stream: str = "all") -> dict[str, float]:
        """Drop of each part by its name, such as the values of a topography."""
        return {row.part.name: row.difference.value for row in self.select(measure, target, stream)}

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return to_json(self)


@dataclass(frozen=True)
class TimeCourse:
    """Accuracy of classifiers that each see one window.

    Attributes:
        stream: Name of the stream.
        times: Centres of the windows in seconds, (W,).
        accuracy: Share of right guesses, (W,).
        low, high: Ends of the intervals over objects, (W,).
        chance: 1 / K.
        n: Number of test trials.
    """

    stream: str
    times: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: float
    n: int

    @property
    def peak(self) -> tuple[float, float]:
        """Time in seconds and accuracy of the best window."""
        best = int(self.accuracy.argmax())
        return float(self.times[best]), float(self.accuracy[best])

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return to_json(self)


def occlude(
    model: Classifier,
    trials: ObjectTrials,
    labels: Sequence[int] | np.ndarray,
    *,
    colors: Sequence[int] | np.ndarray | None = None,
    by: str = "region",
    how: str = "mean",
    regions: Mapping[str, Sequence[str]] | None = None,
    windows: Mapping[str, float] = WINDOWS,
    refit: Callable[[Removal], Classifier] | None = None,
    draws: int = 5,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Occlusion:
    """Remove channels, regions or windows from test trials, and measure what the classification loses.

    The model is not trained again, unless there is `refit`. Channels and regions are removed from each stream alone and
    from all streams ("all"). Windows are removed from each stream alone.

    Args:
        model: A fitted model.
        trials: Test trials, single ones or means, two or more.
        labels: True classes, (n,) integers from 0.
        colors: True colours, (n,) integers from 0. None leaves the colours out.
        by: "channel", "region" or "window".
        how: "mean" replaces values by their mean over the trials. "permute" takes them from another trial, so that
            their distribution stays the same.
        regions: Names of the channels of each region. None means `regions_of`.
        windows: Length of the windows of each stream in seconds.
        refit: Function that is called with a function that removes a region from any trials. It fits a new model on
            train trials without the region. Only for regions and "mean".
        draws: Number of permutations to average for "permute".
        resamples: Number of bootstrap samples.
        seed: Seed of the permutations and of the bootstrap.

    Returns:
        Drops of top-1 and top-5 accuracy of the class, top-1 and top-2 of the colour, and the probability of the truth.
        A top-k that reaches the number of classes is left out. Intervals are over objects.

    Raises:
        AxisError: Labels and trials differ in number.
        BrainDataError: There are fewer than two trials or objects, an argument is unknown, a channel belongs to no
            region, or the model gives no colours.
    """
    check_choice("by", by, BY)
    check_choice("how", how, HOW)
    if len(trials) < 2 or draws < 1:
        raise BrainDataError(f"expected two trials or more and one draw or more, got {len(trials)} and {draws}")
    if refit is not None and (by, how) != ("region", "mean"):
        raise BrainDataError(f"expected by='region' and how='mean' with refit=, got {by!r} and {how!r}")
    truth = {"shape": np.asarray(labels)} | ({} if colors is None else {"color": np.asarray(colors)})
    trials = trials.with_values(trials.values())  # means over presentations are computed once
    full = _measures(model, trials, truth)
    rng = np.random.default_rng(seed)
    orders = [None] if how == "mean" else [rng.permutation(len(trials)) for _ in range(draws)]
    drops = []
    for part in _parts(trials, by, regions, windows):
        judge = model if refit is None else refit(part.removed)
        seen = [_measures(judge, part.removed(trials, order), truth) for order in orders]
        for (target, measure), before in full.items():
            after = np.mean([values[target, measure] for values in seen], 0)  # (n,)
            difference = paired_difference(before, after, resamples, seed, trials.ids)
            drops.append(Drop(part, target, measure, float(before.mean()), float(after.mean()), difference))
    return Occlusion(by, how, refit is not None, tuple(drops))


def sliding_accuracy(
    train: ObjectTrials,
    labels: Sequence[int] | np.ndarray,
    test: ObjectTrials,
    test_labels: Sequence[int] | np.ndarray,
    *,
    stream: str = "static",
    window: float | None = None,
    estimator: Any = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TimeCourse:
    """Accuracy of a classifier that is fitted and tested in each window by itself, with `mne.decoding`.

    Args:
        train, test: Train and test trials, single ones or means.
        labels, test_labels: Their classes, (n,) integers.
        stream: Name of the stream.
        window: Length of a window in seconds. Values are averaged within. None means 20 ms for "static" and 200 ms for
            "dynamic".
        estimator: Classifier of scikit-learn from channels to classes. None means linear discriminant analysis with
            a shrinkage of 0.1.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        AxisError: Labels and trials differ in number.
        BrainDataError: The stream does not exist, or a window is shorter than a sample.
        ImportError: MNE or scikit-learn is not installed.
    """
    try:
        from mne.decoding import SlidingEstimator
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    except ImportError as error:
        raise need("mne and scikit-learn", "sliding accuracy") from error
    check_choice("stream", stream, train.streams)
    seconds = SLIDING[stream] if window is None else window
    space = train.spaces[stream]
    inputs, targets = {}, {}
    for name, trials, numbers in (("train", train, labels), ("test", test, test_labels)):
        targets[name] = _checked(numbers, trials)
        inputs[name] = binned(trials.values([stream])[stream], space.sfreq, seconds).astype(np.float64)
    if estimator is None:
        estimator = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    sliding: Any = SlidingEstimator(estimator, verbose="error").fit(inputs["train"], targets["train"])
    hits = sliding.predict(inputs["test"]) == targets["test"][:, None]  # (n, W)
    intervals = [bootstrap_mean(column, resamples, seed, test.ids) for column in hits.T]
    times = [space.times[part].mean() for part in time_slices(len(space.times), space.sfreq, seconds)]
    ends = np.array([[interval.low, interval.high] for interval in intervals]).T
    chance = 1 / len(np.unique(targets["train"]))
    return TimeCourse(stream, np.array(times), hits.mean(0), ends[0], ends[1], chance, len(test))


def _parts(
    trials: ObjectTrials, by: str, regions: Mapping[str, Sequence[str]] | None, windows: Mapping[str, float]
) -> Iterator[Part]:
    if by == "window":
        for name in trials.streams:
            space = trials.spaces[name]
            for piece in time_slices(len(space.times), space.sfreq, windows[name]):
                start, stop = float(space.times[piece.start]), float(space.times[piece.start] + _length(piece, space))
                yield Part(f"{start:.2f} to {stop:.2f} s", name, None, (start, stop))
        return
    names = list(dict.fromkeys(name for stream in trials.streams for name in trials.spaces[stream].ch_names))
    if by == "channel":
        groups: Mapping[str, Sequence[str]] = {name: (name,) for name in names}
    else:
        groups = regions_of(names) if regions is None else regions
    for group, channels in groups.items():
        unknown = sorted(set(channels) - set(names))
        if unknown:
            raise BrainDataError(f"expected channels of the trials in {group}, got {', '.join(unknown)}")
        streams = (*trials.streams, "all") if len(trials.streams) > 1 else ("all",)
        for stream in streams:
            yield Part(group, stream, tuple(channels))


def _length(piece: slice, space: Any) -> float:
    return (piece.stop - piece.start) / space.sfreq


def _measures(
    model: Classifier, trials: ObjectTrials, truth: Mapping[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """Value (n,) of each trial, by target and measure."""
    found, out = model.classify(trials), {}
    for target, numbers in truth.items():
        scores = getattr(found, target)
        if scores is None:
            raise BrainDataError("expected a model that gives colours, got one without; leave colors= out")
        numbers = _checked(numbers, trials)
        for k in (k for k in TOP[target] if k < scores.shape[1]):
            out[target, f"top{k}"] = top_k_hits(scores, numbers, k).astype(np.float64)
        out[target, "probability"] = np.asarray(scores, np.float64)[np.arange(len(numbers)), numbers]
    return out


def _checked(labels: Sequence[int] | np.ndarray, trials: ObjectTrials) -> np.ndarray:
    numbers = np.asarray(labels)
    if numbers.shape != (len(trials),) or numbers.dtype.kind not in "iu":
        raise AxisError(f"expected integers ({len(trials)},) as labels, got {numbers.dtype} {numbers.shape}")
    return numbers
