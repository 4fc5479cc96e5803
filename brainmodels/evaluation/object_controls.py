"""Controls of an evaluation of objects: what remains without EEG, with wrong objects, or from time alone.

rows = control_rows(case, "Neuro3D", model)
runs = bottleneck(case)  # ridge that sees few components of the EEG
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..baselines.sensors import SensorFeatures
from ..data.objects import ObjectTrials
from ..errors import need
from ..metrics import Score
from ..metrics.cloud_sets import selection_chance
from ..metrics.controls import BOTTLENECK, Runs, bottleneck_curve
from ..metrics.eeg import classification_scores
from .encoding import chance_band
from .object_case import ObjectCase, Row
from .object_clouds import PRIMARY, Made
from .object_rows import RIDGE
from .time_controls import block_control, prestimulus_scores, time_controls

__all__ = ["NOISE", "SELECTION_EPOCHS", "SHUFFLED_OBJECTS", "bottleneck", "control_rows", "released_rows"]

SHUFFLED_OBJECTS = f"{RIDGE}, objects shuffled"
NOISE = "noise in place of EEG"
SELECTION_EPOCHS = (20, 50, 200)
_BLOCK = 128  # trials that are read at a time


def control_rows(case: ObjectCase, name: str, model: Any) -> list[Row]:
    """Accuracies of the class under every control. All are at chance where nothing is wrong.

    Args:
        case: The trials.
        name: Name of the model in tables.
        model: A fitted model.
    """
    settings, labels = case.settings, case.labels("class", case.train.ids)
    truth, single = case.labels("class", case.test.ids), case.labels("class", case.single.ids)
    shuffled = _shuffled(case)
    rows = [
        Row(
            SHUFFLED_OBJECTS,
            "control",
            shuffled,
            f"mean and range of {settings.shuffles} fits to EEG of other objects: the chance band",
        ),
        Row(f"{name}, {NOISE}", "control", _noise(case, model), "mean and range over draws of noise"),
    ]
    options: dict[str, Any] = {"num_classes": case.num_classes, "resamples": settings.resamples, "seed": settings.seed}
    if "static" in case.test.streams and case.test.spaces["static"].times[0] < 0:
        scores = prestimulus_scores(case.train, labels, case.test, truth, **options)
        rows.append(Row(scores[0].decoder or "", "control", scores, "EEG before the picture"))
    timed = time_controls(case.train, labels, case.single, single, **options)
    timed.append(block_control(case.train, labels, case.single, single, **options))
    abouts = (
        "the classes of the trials nearest in time",
        "the commonest classes of the session",
        "share of neighbouring trials of one class",
        "labels moved between runs of trials of one class",
    )
    for score, about in zip(timed, abouts, strict=True):
        own = about.startswith("share")
        rows.append(Row("equal neighbours" if own else score.decoder or "", "control", [score], about))
    return [Row(row.name, row.kind, [_full(case, score) for score in row.scores], row.about) for row in rows]


def bottleneck(case: ObjectCase) -> Runs:
    """Top-1 of a ridge that sees few principal components of the binned EEG (BrainBits; Mayo et al., 2024)."""
    try:
        from sklearn.linear_model import Ridge
    except ImportError as error:
        raise need("scikit-learn", "a bottleneck curve") from error
    labels, truth = case.labels("class", case.train.ids), case.labels("class", case.test.ids)
    eeg = SensorFeatures().fit(case.train, labels)
    targets = np.eye(case.num_classes)[labels]

    def refit(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
        centred = train - train.mean(0)
        ridge: Any = Ridge(alpha=float(np.square(centred).sum() / len(train)))  # mean eigenvalue, as in SensorRidge
        scores = ridge.fit(train, targets).predict(test)
        return {"top1": float(np.mean(scores.argmax(1) == truth))}

    train, test = eeg.transform(case.train), eeg.transform(case.test)
    return bottleneck_curve(refit, train, test, BOTTLENECK, case.settings.seed)


def released_rows(case: ObjectCase, retrieval: Sequence[Row], row: Row, made: Made, name: str) -> list[dict[str, Any]]:
    """What parts of the released protocol add, on these data: the same quantity in our way and in the released one.

    Args:
        case: The trials.
        retrieval: Rows of `retrieval_rows`.
        row: Row of the model's clouds.
        made: The model's clouds.
        name: Name of the model.

    Returns:
        Rows with "what", "ours", "released" and "about", ready for JSON.
    """
    named = {item.name: item for item in retrieval}
    pair = named[f"{name}, prototype_same_class"], named[f"{name}, first test object of each class"]
    first, second = (item.scores[0].value for item in pair)
    what, about = "class by the nearest prototype, top-1", "prototypes from one test object of each class"
    found = [_released(what, first, second, about)]
    n = len(case.test)
    for label, levels in (("class", case.num_classes), ("colour", case.num_colors)):
        for epochs in SELECTION_EPOCHS if levels else ():
            guess = selection_chance(n, 1 / levels, epochs)
            about = f"best of {epochs} epochs by the test objects"
            found.append(_released(f"{label} by guessing, top-1", 1 / levels, guess, about))
    best = {score.metric.name: score.value for score in row.scores}
    first, second = (best.get(f"{PRIMARY[:-1]}{word}]") for word in _samples(made))
    if second is not None:
        found.append(_released(f"{PRIMARY} of clouds, lower is better", first, second, "best sample by the truth"))
    error = row.score("color_error")
    if error is not None:
        told = "points paired by their order, signed differences"
        found.append(_released("error of colours, lower is better", error.value, _by_index(case, made), told))
    return found


def _samples(made: Made) -> tuple[str, str]:
    count = len(next(iter(made.clouds.values())))
    return f",mean_of_{count}", f",best_of_{count}"


def _released(what: str, ours: float | None, released: float | None, about: str) -> dict[str, Any]:
    return {"what": what, "ours": ours, "released": released, "about": about}


def _by_index(case: ObjectCase, made: Made) -> float:
    """|mean signed difference| of colours of points of the same position in their lists, mean over objects."""
    errors = []
    for name, true in case.truth.items():
        count = min(len(true), len(made.clouds[name][0]))
        errors += [abs(float((cloud[:count, 3:] - true[:count, 3:]).mean())) for cloud in made.clouds[name]]
    return float(np.mean(errors))


def _shuffled(case: ObjectCase) -> list[Score]:
    """Ridge fitted to trials of the train objects whose labels were permuted among these objects.

    Ridge is linear in its targets, so one matrix from targets to predictions serves all fits. It is that of
    `SensorRidge` where all classes have as many trials.
    """
    rows = np.searchsorted(case.train_ids, case.train.ids)
    own = case.labels("class", case.train_ids)
    eeg = SensorFeatures().fit(case.train, own[rows])
    train, test = eeg.transform(case.train), eeg.transform(case.test)
    mean = train.mean(0)
    train, test = train - mean, test - mean
    kernel = train @ train.T
    penalty = np.trace(kernel) / len(train)  # the mean eigenvalue
    hat = np.linalg.solve(kernel + penalty * np.eye(len(train)), train @ test.T).T  # (test, train)
    runs = []
    for number in range(case.settings.shuffles):
        order = np.random.default_rng((case.settings.seed, number)).permutation(len(own))
        targets = np.eye(case.num_classes)[own[order][rows]]
        runs.append(_classified(case, hat @ (targets - targets.mean(0)) + targets.mean(0), SHUFFLED_OBJECTS))
    return chance_band(runs)


def _noise(case: ObjectCase, model: Any) -> list[Score]:
    """The model on Gaussian noise with the mean and deviation of each channel and time of the train trials."""
    moments = {name: _moments(case.train, name) for name in case.test.streams}
    shrunk = np.sqrt(case.test.repeats)[:, None, None]  # means over presentations vary less
    runs = []
    for number in range(case.settings.noise):
        rng = np.random.default_rng((case.settings.seed, number))
        values = {}
        for name, (mean, sd) in moments.items():
            noise = rng.standard_normal((len(case.test), *mean.shape), np.float32)
            values[name] = (mean + sd * noise / shrunk).astype(np.float32)
        said = model.classify(case.test.with_values(values))
        runs.append(_classified(case, said.shape, NOISE))
    return chance_band(runs, "draws of noise")


def _moments(trials: ObjectTrials, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C, T) over trials, in one pass over blocks."""
    total = square = None
    for start in range(0, len(trials), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(trials)))
        values = trials.batch(rows, [stream])[stream].astype(np.float64)
        total = values.sum(0) + (0 if total is None else total)
        square = np.square(values).sum(0) + (0 if square is None else square)
    assert total is not None and square is not None  # of one trial or more
    mean = total / len(trials)
    return mean, np.sqrt((square / len(trials) - np.square(mean)).clip(0))


def _classified(case: ObjectCase, scores: np.ndarray, decoder: str) -> list[Score]:
    """Scores of one of several fits or draws, whose range stands in the place of intervals."""
    options = {"resamples": 2, **case.conditions(decoder=decoder)}
    found = classification_scores(scores, case.labels("class", case.test.ids), case.test.ids, (1, 5), **options)
    return [score.under(chance_interval=None) for score in found]


def _full(case: ObjectCase, score: Score) -> Score:
    """The score with a ceiling, which controls have in common with the model."""
    single = "single" if score.repeats == "single" else "mean"
    known: dict[str, Any] = {"split": case.split.name, "split_hash": case.split.hash, "part": "test"}
    if score.metric.direction != "none":
        known["ceiling"] = case.ceilings.get(f"class, {single}", {}).get(score.metric.name, 1.0)
        known["n_of"] = "trials" if single == "single" else "objects"
    return score.under(**known)
