"""What every row of an evaluation of objects shares: trials, labels, clouds and settings, and the rows themselves.

case = ObjectCase.of(study, "sim01", None, ObjectSettings())
case.labels("class", case.test.ids)  # (n,) classes of the test objects
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Split
from ..data.objects import ObjectStudy, ObjectTrials
from ..errors import BrainDataError, LeakageError
from ..metrics import Interval, Metric, Score
from ..metrics.cloud_sets import draw_points, selection_chance
from ..metrics.eeg import classification_scores
from ..metrics.statistics import RESAMPLES, paired_difference
from ..records import plain
from .encoding import SHUFFLES

__all__ = [
    "ObjectCase",
    "ObjectSettings",
    "PairedRow",
    "Row",
    "check_model",
    "epochs_of",
    "selected",
    "words_of",
]

_LEAST_OBJECTS = 2


@dataclass(frozen=True)
class ObjectSettings:
    """Settings of an evaluation of objects.

    Attributes:
        data, out: Word of the data and folder of the report; they are only written down.
        published: Print numbers of the papers, with what makes them hard to compare; not beside simulated scores.
        samples: Number of clouds for each test object. None is that of the model's recipe.
        num_points: Number of points of a cloud. None is that of the model's recipe.
        emd_points: Most points of a cloud in the earth mover's distance. 0 leaves this distance out.
        judge_steps: Steps of the training of the judge `pointnet`. 0 leaves this judge out.
        shuffles: Number of fits of ridge to shuffled objects, whose range is the chance band, at least 2.
        noise: Number of draws of noise that the model gets in place of EEG.
        sensors: Whether to measure what the model loses without regions, windows and channels.
        resamples: Number of bootstrap resamples, and of permutations.
        seed: Seed of all random choices.
        progress: Show a bar.
    """

    data: str = ""
    out: Path = Path("out/objects")
    published: bool = False
    samples: int | None = None
    num_points: int | None = None
    emd_points: int = 512
    judge_steps: int = 400
    shuffles: int = SHUFFLES
    noise: int = 5
    sensors: bool = True
    resamples: int = RESAMPLES
    seed: int = 0
    progress: bool = False

    def __post_init__(self):
        if self.shuffles < 2 or self.noise < 1 or self.resamples < 2:
            raise BrainDataError(
                f"expected 2 shuffles or more, 1 draw of noise and 2 resamples, got {self.shuffles}, {self.noise} and "
                f"{self.resamples}"
            )


@dataclass(frozen=True)
class Row:
    """One row of a table of scores.

    Attributes:
        name: What is scored.
        kind: "model", "baseline", "above" (the best that can be reached), "below" (what knows less), or "control".
        scores: Scores of the row.
        about: Half a sentence that explains the row; "" where the name says it.
        values: Value (n,) of each test object by name of the metric, for paired comparisons.
    """

    name: str
    kind: str
    scores: Sequence[Score]
    about: str = ""
    values: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def score(self, name: str) -> Score | None:
        """The first score whose metric has this name, with any gallery or number of classes: "accuracy_top1"."""
        return next((x for x in self.scores if name in (x.metric.name, x.metric.name.partition("@")[0])), None)

    def pick(self, name: str, *words: str, best: bool = False) -> Score | None:
        """The score of clouds with these words in brackets, as the mean over the samples of an object.

        Args:
            name: What stands before the bracket, such as "chamfer_l2", with "@512" or without.
            words: Words in brackets, such as "rms".
            best: Take the best sample, which the truth chooses, in place of the mean.
        """
        for score in self.scores:
            start, inside = words_of(score)
            rest = {word for word in inside if not word.startswith("mean_of")}
            chosen = any(word.startswith("best_of") for word in rest)
            rest = {word for word in rest if not word.startswith("best_of")}
            if name in (start, start.partition("@")[0]) and rest == set(words) and chosen == best:
                return score
        return None

    def to_json(self) -> dict[str, Any]:
        scores = [score.to_json() for score in self.scores]
        return {"name": self.name, "kind": self.kind, "about": self.about, "scores": scores} | {
            "values": plain(dict(self.values))
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Row":
        """The row that `to_json` wrote."""
        scores = [Score.from_json(score) for score in record["scores"]]
        values = {name: np.array(array) for name, array in record["values"].items()}
        return cls(record["name"], record["kind"], scores, record["about"], values)


@dataclass(frozen=True)
class PairedRow:
    """How far one row is from another on the same test objects.

    Attributes:
        first, second: Names of the rows.
        metric: Name of the metric.
        direction: "up" if a higher value is better, else "down".
        value: Mean over objects of first - second.
        interval: Its interval over objects.
        n: Number of objects.
    """

    first: str
    second: str
    metric: str
    direction: str
    value: float
    interval: Interval
    n: int

    @property
    def outcome(self) -> str:
        """ "better" or "worse" where the interval excludes 0, else "no different"."""
        if 0.0 in self.interval:
            return "no different"
        return "better" if (self.value > 0) == (self.direction == "up") else "worse"

    def to_json(self) -> dict[str, Any]:
        return plain(vars(self)) | {"outcome": self.outcome}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "PairedRow":
        """The row that `to_json` wrote."""
        content: dict[str, Any] = {name: value for name, value in record.items() if name != "outcome"}
        content["interval"] = Interval(*record["interval"])
        return cls(**content)

    @classmethod
    def of(cls, first: Row, second: Row, definition: Metric, resamples: int, seed: int) -> "PairedRow":
        """The difference of two rows that have values of a metric."""
        name = definition.name
        found = paired_difference(first.values[name], second.values[name], resamples, seed)
        return cls(first.name, second.name, name, definition.direction, found.value, found.interval, found.n)


@dataclass(frozen=True, eq=False)
class ObjectCase:
    """Trials of one subject in a split, and the objects that they show.

    Attributes:
        study: Data set.
        split: Split whose test objects are decoded.
        train: Single trials of the objects that are not in the test part.
        single: Single test trials.
        test: Means over the presentations of each test object.
        settings: See there.
    """

    study: ObjectStudy
    split: Split
    train: ObjectTrials
    single: ObjectTrials
    test: ObjectTrials
    settings: ObjectSettings

    @classmethod
    def of(cls, study: ObjectStudy, subject: str, split: str | Split | None, settings: ObjectSettings) -> "ObjectCase":
        """The trials of a subject.

        Raises:
            BrainDataError: There are fewer than two test objects, or one of a class without a train object.
            IdError: The subject is unknown, or a presentation is missing in one stream.
        """
        chosen = study.split(split)
        train = ObjectTrials.of(study, subject, "train+val", chosen)
        single = ObjectTrials.of(study, subject, "test", chosen)
        case = cls(study, chosen, train, single, single.averaged(), settings)
        if len(case.test) < _LEAST_OBJECTS:
            raise BrainDataError(
                f"expected {_LEAST_OBJECTS} test objects or more in {chosen.name!r}, got {len(case.test)}"
            )
        unseen = set(case.labels("class", case.test.ids).tolist()) - set(case.labels("class", train.ids).tolist())
        if unseen:
            raise BrainDataError(
                f"expected test objects of trained classes in {chosen.name!r}, got those of {len(unseen)} others, such "
                f"as {study.class_names[min(unseen)]}; such a split is for retrieval alone"
            )
        return case

    def labels(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Labels of objects, int64 (len(ids),)."""
        return np.asarray(self.study.label(name, ids)).astype(np.int64)

    @property
    def num_classes(self) -> int:
        return len(self.study.class_names)

    @property
    def num_colors(self) -> int:
        """Number of colours; 0 without labels of them."""
        return 0 if self.palette is None else len(self.palette)

    @cached_property
    def palette(self) -> np.ndarray | None:
        """Colour (Q, 3) of each label of colour, from objects that are not in the test part."""
        return self.study.palette(self.split)

    @cached_property
    def train_ids(self) -> np.ndarray:
        """Objects that are not in the test part, sorted."""
        return np.unique(self.train.ids)

    @cached_property
    def train_clouds(self) -> list[np.ndarray]:
        """Their clouds, (N, 6) each."""
        return [self.study.cloud(str(name)) for name in self.train_ids]

    @cached_property
    def halves(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Two random halves of the cloud of each test object, by id. The first is the truth of all cloud scores."""
        rng = np.random.default_rng(self.settings.seed)
        first, second = {}, {}
        for name in self.test.ids.tolist():
            cloud = self.study.cloud(name)
            order, half = rng.permutation(len(cloud)), len(cloud) // 2
            first[name], second[name] = cloud[order[:half]], cloud[order[half : 2 * half]]
        return first, second

    @property
    def truth(self) -> dict[str, np.ndarray]:
        """True cloud of each test object, by id."""
        return self.halves[0]

    def cut(self, clouds: Sequence[np.ndarray], num_points: int) -> list[np.ndarray]:
        """Clouds with as many points as decoded ones have, so that the number of points favours no row."""
        rng = np.random.default_rng(self.settings.seed + 1)
        return [draw_points(cloud, num_points, rng) for cloud in clouds]

    @cached_property
    def ideal(self) -> Any:
        """The truth of a simulated subject, whose `posterior` is the best possible guess. None of real subjects."""
        return getattr(self.study, "truth", {}).get(self.test.subject)

    @cached_property
    def ceilings(self) -> dict[str, dict[str, float]]:
        """Scores of the ideal observer by metric, by label and whether each row is a single trial, as "class, single".

        Empty of real subjects, whose best possible score is not known.
        """
        found, ideal = {}, self.ideal
        if ideal is None:
            return found
        for label in ("class", "color"):
            for kind, trials in (("mean", self.test), ("single", self.single)):
                guess, truth = ideal.posterior(trials, label), self.labels(label, trials.ids)
                best = classification_scores(guess, truth, trials.ids, (1, 2, 5), resamples=2)
                found[f"{label}, {kind}"] = {score.metric.name: float(score.value or 0.0) for score in best}
        return found

    def conditions(self, repeats: str = "avg_voxels", **more: Any) -> dict[str, Any]:
        """Fields that all scores of the test objects share."""
        return {
            "n_of": "objects" if repeats != "single" else "trials",
            "subject": self.test.subject,
            "split": self.split.name,
            "split_hash": self.split.hash,
            "part": "test",
            "normalizer": self.test.normalizer,
            "repeats": repeats,
            "seed": self.settings.seed,
        } | more


def words_of(score: Score) -> tuple[str, set[str]]:
    """Name of a metric before the bracket, and the words in it."""
    start, _, inside = score.metric.name.partition("[")
    return start, set(filter(None, inside.rstrip("]").split(",")))


def check_model(case: ObjectCase, model: Any, name: str) -> None:
    """Refuse a model of other data, or one that has seen test objects.

    Raises:
        LeakageError: It was fitted to test objects, or on another split.
        BrainDataError: It was fitted to another subject.
    """
    seen = set(map(str, model.train_ids_)) & set(case.test.ids.tolist())
    if seen:
        raise LeakageError(
            f"expected {name} fitted without the test objects of split {case.split.name!r}, got {len(seen)} of "
            f"{len(case.test)} among its train objects, such as {min(seen)}"
        )
    facts = model.meta_["subjects"]
    if case.test.subject not in facts:
        raise BrainDataError(f"expected {name} of {case.test.subject}, got a model of {', '.join(facts)}")
    known = facts[case.test.subject]["split_hash"]
    if known != case.split.hash:
        raise LeakageError(
            f"expected {name} of split {case.split.hash} ({case.split.name}), got one trained on {known}; evaluate it "
            "on the data, seed and split of its training"
        )


def selected(model: Any, scores: Sequence[Score], levels: int) -> list[Score]:
    """Scores of a model whose epoch was chosen by the test objects, with the chance of the best of so many guesses.

    Args:
        model: A fitted model. The scores of others stay as they are.
        scores: Scores of `classification_scores`.
        levels: Number of classes or colours.
    """
    if model.recipe.selection != "test":
        return list(scores)
    epochs = epochs_of(model)
    told = f"epoch chosen by the test objects: chance is the best of {epochs} guesses"
    found = []
    for score in scores:
        k = _top_of(score)
        note = "; ".join(filter(None, [told, score.note]))
        chance = selection_chance(score.n, k / levels, epochs)
        found.append(replace(score, chance=chance, chance_interval=None, note=note))
    return found


def epochs_of(model: Any) -> int:
    """Number of epochs of the encoder, among which the test objects chose."""
    stage = next(stage for stage in model.meta_["stages"] if stage["name"] == "encoder")
    return max(1, round(stage["epochs"]))


def _top_of(score: Score) -> int:
    start, _, rest = score.metric.name.partition("_top")
    return int(rest.partition("@")[0]) if start == "accuracy" else 1
