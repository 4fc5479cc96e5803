"""Whether classes can be told from the time of a trial, which no classifier of EEG should profit from.

    for score in time_controls(train, labels, test, test_labels):
        print(score, score.at_chance)

A block design shows the trials of a class one after the other. Slow drifts of the signal then tell the classes apart
without any response to the stimulus (Li et al., 2021).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..baselines.sensors import BINS, SensorRidge
from ..data.objects import ObjectTrials
from ..data.responses import Responses, TrialTable
from ..errors import BrainDataError
from ..metrics import Metric, Score, metric
from ..metrics.controls import block_shuffle
from ..metrics.eeg import classification_scores
from ..metrics.statistics import RESAMPLES, permutation_chance

__all__ = ["EQUAL_NEIGHBORS", "block_control", "prestimulus_scores", "time_controls", "within"]

EQUAL_NEIGHBORS = Metric(
    "equal_neighbors",
    "classification",
    "none",
    None,
    None,
    "share of pairs of neighbouring trials of a session that show the same class; chance is that of shuffled trials",
)
_REACH = 3.0  # trials over which the weight of a neighbour falls to 1/e
_UNKNOWN = "the order of the trials is not known"


def time_controls(
    train: ObjectTrials,
    labels: Sequence[int] | np.ndarray,
    test: ObjectTrials,
    test_labels: Sequence[int] | np.ndarray,
    num_classes: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Score]:
    """Classes of test trials from their time alone, and how often neighbouring trials show the same class.

    | decoder | guesses |
    |---|---|
    | "trial number alone" | the classes of the train trials nearest in time |
    | "session alone" | the commonest classes of the train trials of the session |

    Both are at chance in a random order: `Score.at_chance` of a row says whether it lies in its chance interval.

    Args:
        train, test: Single trials, with their order and session.
        labels, test_labels: Their classes, (n,) integers from 0.
        num_classes: Number of classes. None means the largest label plus 1.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of both.

    Returns:
        Top-1 accuracy of both decoders and `EQUAL_NEIGHBORS`. A row that needs what is not known, or a second session,
        is not available.

    Raises:
        AxisError: Labels and trials differ in number.
    """
    first, second = np.asarray(labels), np.asarray(test_labels)
    count = int(max(first.max(), second.max())) + 1 if num_classes is None else num_classes
    members = np.eye(count)[first]  # (train, K)
    found = []
    for name, scores in (
        ("trial number alone", _by_time(train.order, test.order, members)),
        ("session alone", _by_session(train.session, test.session, members)),
    ):
        if isinstance(scores, str):
            found.append(_absent(metric(f"accuracy_top1@{count}"), name, scores))
        else:
            rows = classification_scores(scores, second, test.ids, (1,), resamples, seed, **_about(test), decoder=name)
            found.append(rows[0])
    return [*found, _equal_neighbors(train, first, test, second, resamples, seed)]


def prestimulus_scores(
    train: ObjectTrials,
    labels: Sequence[int] | np.ndarray,
    test: ObjectTrials,
    test_labels: Sequence[int] | np.ndarray,
    num_classes: int | None = None,
    stream: str = "static",
    stop: float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Score]:
    """Accuracy of `SensorRidge` on the times before the onset, where nothing can be known about the stimulus.

    A score above chance says that time, or a filter, carries the class. The window of the dynamic stream of EEG-3D
    before its onset holds the response to the picture. Use the static stream there.

    Args:
        train, test: Train and test trials, single ones or means.
        labels, test_labels: Their classes, (n,) integers from 0.
        num_classes: Number of classes. None means the largest label plus 1.
        stream: Name of the stream.
        stop: End of the window in seconds, which is not part of it.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of both.

    Returns:
        Scores of `metrics.eeg.classification_scores`, top-1 first.

    Raises:
        BrainDataError: The stream has no time before `stop`.
    """
    early, probe = (within(trials, stream, -np.inf, stop) for trials in (train, test))
    count = int(max(np.max(labels), np.max(test_labels))) + 1 if num_classes is None else num_classes
    ridge = SensorRidge({stream: BINS[stream]}).fit(early, labels, count)
    name = f"ridge, {stream} before {stop:g} s"
    scores, truth = ridge.scores(probe), np.asarray(test_labels)
    return classification_scores(scores, truth, test.ids, (1, 5), resamples, seed, **_about(test), decoder=name)


def block_control(
    train: ObjectTrials,
    labels: Sequence[int] | np.ndarray,
    test: ObjectTrials,
    test_labels: Sequence[int] | np.ndarray,
    num_classes: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """Accuracy of `SensorRidge` on labels that were moved between blocks, see `metrics.controls.block_shuffle`.

    The blocks are runs of trials of one class. An accuracy above chance comes from the time of the trials. Where each
    class has a single block the control says nothing, because the classes are only renamed.

    Args:
        train, test: Single trials, with their order.
        labels, test_labels: Their classes, (n,) integers from 0.
        num_classes: Number of classes. None means the largest label plus 1.
        resamples: Number of bootstrap samples over blocks, and of permutations.
        seed: Seed of the shuffle, the bootstrap and the permutations.

    Returns:
        Top-1 accuracy, or a row that is not available where the order is not known or each class has one block.
    """
    every = np.concatenate([np.asarray(labels), np.asarray(test_labels)])
    count = int(every.max()) + 1 if num_classes is None else num_classes
    definition, name = metric(f"accuracy_top1@{count}"), "ridge, labels moved between blocks"
    order = np.concatenate([train.order, test.order])
    if (order < 0).any():
        return _absent(definition, name, _UNKNOWN)
    sorting = np.argsort(order, kind="stable")
    sorted_blocks = np.concatenate(([0], np.cumsum(np.diff(every[sorting]) != 0)))
    if sorted_blocks[-1] + 1 == len(np.unique(every)):
        return _absent(definition, name, "each class has a single block, so that time and class cannot be separated")
    moved, blocks = np.empty_like(every), np.empty_like(every)
    moved[sorting], blocks[sorting] = block_shuffle(every[sorting], sorted_blocks, seed), sorted_blocks
    ridge = SensorRidge({stream: BINS[stream] for stream in train.streams})
    scores = ridge.fit(train, moved[: len(train)], count).scores(test)
    truth, members = moved[len(train) :], blocks[len(train) :]
    return classification_scores(scores, truth, members, (1,), resamples, seed, **_about(test), decoder=name)[0]


def within(trials: ObjectTrials, stream: str, start: float, stop: float) -> ObjectTrials:
    """One stream of the trials, cut to the times from `start` to `stop` in seconds. `stop` is not part of it.

    Raises:
        BrainDataError: The stream does not exist, or has no such times.
    """
    trials = trials.with_streams(stream)
    space = trials.spaces[stream]
    half = 0.5 / space.sfreq  # so that rounded times do not move an end
    columns = np.flatnonzero((space.times >= start - half) & (space.times < stop - half))
    if not len(columns):
        raise BrainDataError(
            f"expected times of {stream} from {start:g} to {stop:g} s, got {space.times[0]:g} to {space.times[-1]:g} s"
        )
    values = np.ascontiguousarray(trials.values()[stream][:, :, columns])
    return replace(
        trials,
        spaces={stream: replace(space, times=space.times[columns])},
        sources={stream: Responses(values, TrialTable.of(trials.ids, trial=-1))},
        groups={stream: list(np.arange(len(trials))[:, None])},
    )


def _by_time(train: np.ndarray, test: np.ndarray, members: np.ndarray) -> np.ndarray | str:
    """Scores (test, K) by the classes of train trials near in time, or why there are none."""
    if (train < 0).any() or (test < 0).any():
        return _UNKNOWN
    gaps = np.abs(test[:, None] - train).astype(np.float64)
    gaps -= gaps.min(1, keepdims=True)  # so that the nearest one keeps its weight, however far it is
    return np.exp(-gaps / _REACH) @ members


def _by_session(train: np.ndarray, test: np.ndarray, members: np.ndarray) -> np.ndarray | str:
    """Scores (test, K) by the classes of train trials of the same session, or why there are none."""
    if (train < 0).any() or (test < 0).any():
        return "the sessions of the trials are not known"
    if len(np.unique(np.concatenate([train, test]))) < 2:
        return "there is a single session"
    return (test[:, None] == train).astype(np.float64) @ members


def _equal_neighbors(
    train: ObjectTrials, first: np.ndarray, test: ObjectTrials, second: np.ndarray, resamples: int, seed: int
) -> Score:
    order = np.concatenate([train.order, test.order])
    if (order < 0).any():
        return _absent(EQUAL_NEIGHBORS, "labels alone", _UNKNOWN)
    sorting = np.argsort(order, kind="stable")
    every, session = (np.concatenate(pair)[sorting] for pair in ((first, second), (train.session, test.session)))
    near = (np.diff(order[sorting]) == 1) & (session[1:] == session[:-1])
    if not near.any():
        return _absent(EQUAL_NEIGHBORS, "labels alone", "no two of the trials are neighbours")

    def rate(shuffled: np.ndarray) -> float:
        return float(np.mean((shuffled[1:] == shuffled[:-1])[near]))

    chance = permutation_chance(lambda rows: rate(every[rows]), len(every), resamples, seed)
    return Score(
        EQUAL_NEIGHBORS,
        rate(every),
        int(near.sum()),
        "pairs",
        chance=chance.mean,
        chance_interval=chance.interval,
        decoder="labels alone",
        seed=seed,
        subject=test.subject,
        split=test.split or None,
    )


def _about(trials: ObjectTrials) -> dict[str, str | None]:
    """Conditions of a score that the trials know."""
    known = {"subject": trials.subject, "split": trials.split, "split_hash": trials.split_hash, "part": trials.part}
    repeats = "avg_voxels" if trials.repeats.max(initial=1) > 1 else "single"
    return {name: text or None for name, text in known.items()} | {"repeats": repeats}


def _absent(definition: Metric, decoder: str, why: str) -> Score:
    return Score(definition, None, n=0, decoder=decoder, available=False, note=why)
