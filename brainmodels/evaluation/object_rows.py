"""Classes, colours, retrieval and probes of an evaluation of objects: the model, what it must beat, and what it cannot.

answers = collect_answers(case, {"Neuro3D": model})
rows = class_rows(case, answers, {"Neuro3D": model})
rows[0].score("accuracy_top1").value
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..baselines import LinearDecoder, Ridge
from ..baselines.sensors import BINS, SensorFeatures, SensorRidge
from ..data.objects import ObjectTrials
from ..metrics import Score
from ..metrics.eeg import TASKS, classification_scores, confusion, prototype_accuracy
from ..metrics.retrieval import full_gallery, similarity
from .object_case import ObjectCase, Row, selected

__all__ = [
    "IDEAL",
    "RIDGE",
    "SINGLE",
    "Answer",
    "class_rows",
    "collect_answers",
    "color_rows",
    "confusion_of",
    "probe_rows",
    "retrieval_rows",
    "true_features",
]

_ALPHAS = np.logspace(-5, 3, 9)  # penalties for features of length 1
RIDGE, IDEAL, SINGLE = "ridge", "ideal observer", "single presentations"
_TOP = {"class": (1, 5), "color": (1, 2)}


@dataclass(frozen=True)
class Answer:
    """What something says of the test objects.

    Attributes:
        name: Who says it.
        kind: Kind of its rows.
        shape: Probabilities or scores of the classes, (n, K).
        color: Those of the colours, (n, Q), or None.
        about: Half a sentence that explains it.
        trials: Rows that were asked about.
        model: The model, if it is one.
    """

    name: str
    kind: str
    shape: np.ndarray
    color: np.ndarray | None
    about: str
    trials: ObjectTrials
    model: Any = None


def collect_answers(case: ObjectCase, models: Mapping[str, Any]) -> dict[str, Answer]:
    """Answers by name: models, ridge on each stream, what models name beside themselves, and the ideal observer.

    Args:
        case: The trials. A simulated subject has an ideal observer.
        models: Fitted models by name.
    """
    found = []
    for name, model in models.items():
        for trials, told in ((case.test, ""), (case.single, SINGLE)):
            said = model.classify(trials)
            full = f"{name}, {told}" if told else name
            about = "each test presentation by itself" if told else "means over the presentations of an object"
            found.append(Answer(full, "model", said.shape, said.color, about, trials, model))
    train, colors = case.train, None
    labels = case.labels("class", train.ids)
    if case.num_colors:
        colors = case.labels("color", train.ids)
    options = {"colors": colors, "num_colors": case.num_colors or None}
    for streams in _stream_sets(case.test.streams):
        chosen = [trials.with_streams(*streams) for trials in (train, case.test)]
        said = SensorRidge().fit(chosen[0], labels, case.num_classes, **options).classify(chosen[1])
        about = f"linear, {_binned(streams)}"
        found.append(Answer(_of(RIDGE, streams, case), "baseline", said.shape, said.color, about, case.test))
    for name, model in models.items():
        for key, ridge in model.reference_classifiers().items():
            chosen = [trials.with_streams(*ridge.bins) for trials in (train, case.test)]
            said = ridge.fit(chosen[0], labels, case.num_classes, **options).classify(chosen[1])
            about = f"linear, on the input of the encoder of {name}"
            found.append(Answer(key, "baseline", said.shape, said.color, about, case.test))
    if case.ideal is not None:
        for streams in _stream_sets(case.test.streams):
            trials = case.test.with_streams(*streams)
            shape = case.ideal.posterior(trials, "class")
            color = case.ideal.posterior(trials, "color") if case.num_colors else None
            about = "knows the simulated brain and its noise" if len(streams) == len(case.test.streams) else ""
            found.append(Answer(_of(IDEAL, streams, case), "above", shape, color, about, case.test))
    return {answer.name: answer for answer in found}


def class_rows(case: ObjectCase, answers: Mapping[str, Answer]) -> list[Row]:
    """Top-1, top-5 and balanced accuracy of the class, for every answer and for the majority class."""
    labels = case.labels("class", case.train_ids)
    guess = _constant(labels, case.num_classes, len(case.test))
    rows = [_row(case, answer, "class") for answer in answers.values()]
    scores = _scores(case, guess, case.test, "class")
    return [*rows, Row("majority class", "below", scores, "the most frequent class of the train objects")]


def color_rows(case: ObjectCase, answers: Mapping[str, Answer]) -> list[Row]:
    """Top-1, top-2 and balanced accuracy of the colour; empty without labels of colours.

    The row `color_given_class` names the most frequent colour of the train objects of the true class. It says what a
    perfect knowledge of the class alone is worth.
    """
    if not case.num_colors:
        return []
    rows = [_row(case, answer, "color") for answer in answers.values() if answer.color is not None]
    classes, colors = (case.labels(name, case.train_ids) for name in ("class", "color"))
    counts = np.zeros((case.num_classes, case.num_colors))
    np.add.at(counts, (classes, colors), 1)
    total = _constant(colors, case.num_colors, 1)
    known = (counts + 0.5 * total / (1 + total.max()))[case.labels("class", case.test.ids)]  # ties: the commoner colour
    further = {
        "color_given_class": (known, "the commonest colour of the train objects of the true class"),
        "majority colour": (np.tile(total, (len(case.test), 1)), "the most frequent colour of the train objects"),
    }
    return rows + [
        Row(name, "below", _scores(case, guess, case.test, "color"), about) for name, (guess, about) in further.items()
    ]


def confusion_of(case: ObjectCase, answer: Answer, label: str = "class") -> np.ndarray:
    """Number of test objects by true (rows) and predicted (columns) label."""
    scores = answer.shape if label == "class" else answer.color
    assert scores is not None  # of an answer with this label
    return confusion(scores, case.labels(label, answer.trials.ids))


def true_features(case: ObjectCase, model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features of geometry and appearance of the train and of the test objects themselves, (n, d) each."""
    ids = np.concatenate([case.train_ids, case.test.ids])
    split = len(case.train_ids)
    geometry, appearance = model.target_features(case.study, ids)
    return {"train": (geometry[:split], appearance[:split]), "test": (geometry[split:], appearance[split:])}


def retrieval_rows(case: ObjectCase, model: Any, name: str, truth: Mapping[str, tuple]) -> list[Row]:
    """The shown object found among the features of all test objects, and classes by the nearest prototype.

    The literature has two tasks of prototypes under one name, see `metrics.eeg.prototype_accuracy`. The third row of
    prototypes is that of the released protocol. It takes the first test object of each class, so that half of the
    queries look for the very object that was shown.

    Args:
        case: The trials.
        model: A fitted model.
        name: Its name in tables.
        truth: Its `true_features`.
    """
    said = model.embed(case.test)
    guesses = {
        f"{name}, both features": (np.concatenate([said.geometry, said.appearance], 1), "model", (0, 1)),
        f"{name}, geometry": (said.geometry, "model", (0,)),
        f"{name}, appearance": (said.appearance, "model", (1,)),
        f"{RIDGE}, both features": (_ridge_features(case, np.concatenate(truth["train"], 1)), "baseline", (0, 1)),
    }
    every = {
        label: {part: np.concatenate([values[place] for place in places], 1) for part, values in truth.items()}
        for label, (_, _, places) in guesses.items()
    }
    found = [Row(label, kind, _retrieval(case, guess, every[label])) for label, (guess, kind, _) in guesses.items()]
    for label in (f"{name}, both features", f"{RIDGE}, both features"):
        guess, kind, _ = guesses[label]
        found += _prototypes(case, guess, every[label], label.partition(",")[0], kind)
    return found


def probe_rows(case: ObjectCase, model: Any, name: str, truth: Mapping[str, tuple]) -> dict[str, list[Row]]:
    """Class and colour that a linear probe reads from each feature, top-1, fitted on train trials.

    If the features are apart, geometry tells the class and not the colour, and appearance tells the colour. The ceiling
    is the same probe on the features of the objects themselves.

    Returns:
        A row for each feature, by label.
    """
    fitted, said = model.embed(case.train), model.embed(case.test)
    rows: dict[str, list[Row]] = {}
    for place, feature in enumerate(("geometry", "appearance")):
        for label in ("class", "color") if case.num_colors else ("class",):
            ceiling = _probe(case, label, case.train_ids, truth["train"][place], truth["test"][place])
            found = _probe(case, label, case.train.ids, getattr(fitted, feature), getattr(said, feature))
            conditions = {"decoder": f"linear probe of the {label}", "ceiling": _accuracy(case, ceiling, label)}
            scores = _scores(case, found, case.test, label, **conditions)[:1]
            rows.setdefault(label, []).append(Row(f"{name}, {feature}", "model", scores))
    return rows


def _row(case: ObjectCase, answer: Answer, label: str) -> Row:
    guess = answer.shape if label == "class" else answer.color
    assert guess is not None  # of an answer with this label
    scores = _scores(case, guess, answer.trials, label, decoder=answer.name)
    if answer.model is not None:
        scores = selected(answer.model, scores, guess.shape[1])
    return Row(answer.name, answer.kind, scores, answer.about)


def _scores(case: ObjectCase, guess: np.ndarray, trials: ObjectTrials, label: str, **more: Any) -> list[Score]:
    """Scores of guesses (n, levels). The ceiling is that of the ideal observer, or no error at all."""
    repeats = "avg_voxels" if len(trials) == len(case.test) else "single"
    options = {"top": _TOP[label], "resamples": case.settings.resamples, **case.conditions(repeats, **more)}
    truth = case.labels(label, trials.ids)
    found = classification_scores(guess, truth, trials.ids, **options)
    if "ceiling" in more:
        return found
    ceilings = case.ceilings.get(f"{label}, {'single' if repeats == 'single' else 'mean'}", {})
    return [score.under(ceiling=ceilings.get(score.metric.name, 1.0)) for score in found]


def _retrieval(case: ObjectCase, guess: np.ndarray, gallery: Mapping[str, np.ndarray]) -> list[Score]:
    """Top-k and ranks of the shown object."""
    options = {"resamples": case.settings.resamples, **case.conditions(ceiling=1.0)}
    found = full_gallery(similarity(guess, gallery["test"]), (1, 5), **options)
    return [score for score in found if score.metric.name.startswith("image_given_brain")]  # the best rank is 1 too


def _prototypes(
    case: ObjectCase, guess: np.ndarray, gallery: Mapping[str, np.ndarray], name: str, kind: str
) -> list[Row]:
    """A row for each task of prototypes."""
    options = {"top": (1, 5), "resamples": case.settings.resamples, **case.conditions(ceiling=1.0)}
    labels, rows = case.labels("class", case.test.ids), []
    abouts = ("prototypes from other objects of the class", "prototypes from the shown objects among others")
    for task, part, ids, about in zip(TASKS, ("train", "test"), (case.train_ids, case.test.ids), abouts, strict=True):
        known = gallery[part], ids, case.labels("class", ids)
        scores = prototype_accuracy(guess, case.test.ids, labels, *known, task, **options)
        rows.append(Row(f"{name}, {task}", kind, scores, about))
    classes, first = np.unique(labels, return_index=True)
    prototypes = np.full((case.num_classes, guess.shape[1]), 0.0)
    prototypes[classes] = gallery["test"][first]
    scores = classification_scores(similarity(guess, prototypes), labels, case.test.ids, **options)
    about = "prototypes from one test object of each class, as in the released code"
    return [*rows, Row(f"{name}, first test object of each class", kind, scores, about)]


def _ridge_features(case: ObjectCase, targets: np.ndarray) -> np.ndarray:
    """Features (n, 2 d) of the test objects by ridge from binned EEG."""
    rows = np.searchsorted(case.train_ids, case.train.ids)
    eeg = SensorFeatures().fit(case.train, case.labels("class", case.train.ids))
    decoder = LinearDecoder(calibration="none").fit(eeg.transform(case.train), targets[rows], groups=case.train.ids)
    return decoder.predict(eeg.transform(case.test))


def _probe(case: ObjectCase, label: str, ids: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores (n, levels) of a label by ridge from features."""
    count = case.num_classes if label == "class" else case.num_colors
    targets = np.eye(count, dtype=np.float32)[case.labels(label, ids)]
    return Ridge(_ALPHAS.tolist()).fit(train, targets, groups=ids).predict(test)


def _accuracy(case: ObjectCase, scores: np.ndarray, label: str) -> float:
    return float(np.mean(scores.argmax(1) == case.labels(label, case.test.ids)))


def _constant(labels: np.ndarray, levels: int, count: int) -> np.ndarray:
    """The same scores (count, levels) for every object: frequencies of the labels, of equal ones the first above."""
    counts = np.bincount(labels, minlength=levels).astype(np.float64)
    return np.tile(counts - np.arange(levels) / (levels + 1), (count, 1))


def _stream_sets(streams: Sequence[str]) -> list[tuple[str, ...]]:
    """All streams together, then each alone where there are several."""
    return [tuple(streams), *([(name,) for name in streams] if len(streams) > 1 else [])]


def _of(name: str, streams: Sequence[str], case: ObjectCase) -> str:
    return name if len(streams) == len(case.test.streams) else f"{name}, {streams[0]} alone"


def _binned(streams: Sequence[str]) -> str:
    return " and ".join(f"{1000 * BINS[name]:g} ms of the {name} stream" for name in streams)
