"""Everything that is said of decoded objects: classes, colours, retrieval, clouds, controls, and sensors.

evaluation = evaluate_objects(study, {"Neuro3D": model}, ObjectSettings(), subject="sim01")
print(evaluation.first_line)  # whether decoded clouds beat retrieved ones
evaluation.row("classes", "Neuro3D").score("accuracy_top1")
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from veca.report.machine import describe_machine

from ..data import Split
from ..data.objects import ObjectStudy
from ..errors import BrainDataError, check_choice
from ..metrics import Score
from ..metrics.cloud_duplicates import NearDuplicate, near_duplicates
from ..metrics.controls import Runs
from ..metrics.eeg import majority_rate
from ..metrics.registry import metric
from ..records import plain
from .object_case import ObjectCase, ObjectSettings, PairedRow, Row, check_model
from .object_clouds import (
    PRIMARY,
    PRIOR,
    SAME_CLASS,
    Judge,
    Made,
    agreement,
    collect_clouds,
    fit_judges,
    judge_clouds,
    retrieved_name,
)
from .object_controls import bottleneck, control_rows, released_rows
from .object_rows import (
    RIDGE,
    Answer,
    class_rows,
    collect_answers,
    color_rows,
    probe_rows,
    retrieval_rows,
    true_features,
)
from .object_sensors import Sensors, study_sensors

__all__ = ["ObjectEvaluation", "ObjectSettings", "evaluate_objects"]

_FSCORE = "fscore@0.05[rms]"


@dataclass(frozen=True, eq=False)
class ObjectEvaluation:
    """Scores and clouds of one subject.

    Attributes:
        name: Name of the first model, of which controls, probes and sensors are.
        models: Models by name.
        case: Trials and objects.
        answers: Classes and colours by who says them.
        tables: Rows by table: "classes", "colors", "retrieval", "probe_class", "probe_color", "clouds", "controls".
        made: Clouds of each row of "clouds".
        judges: Judges of clouds.
        paired: Differences of rows of "clouds" on the same objects.
        agreements: How often judges name the class that the model itself said.
        released: What parts of the released protocol add, see `released_rows`.
        bottleneck: Ridge that sees few components of the EEG.
        sensors: Occlusion and time courses; None if the settings leave them out.
        duplicates: Test objects with nearly the shape of a train object.
        seconds: Time that each section took.
        machine: Where and when it was computed.
    """

    name: str
    models: Mapping[str, Any]
    case: ObjectCase
    answers: Mapping[str, Answer]
    tables: Mapping[str, Sequence[Row]]
    made: Sequence[Made]
    judges: Sequence[Judge]
    paired: Sequence[PairedRow]
    agreements: Sequence[Score]
    released: Sequence[Mapping[str, Any]]
    bottleneck: Runs
    sensors: Sensors | None
    duplicates: Sequence[NearDuplicate]
    seconds: Mapping[str, float]
    machine: Mapping[str, Any]

    def row(self, table: str, name: str) -> Row:
        """A row of a table. An unknown table or row is a `BrainDataError`."""
        check_choice("table", table, tuple(self.tables))
        rows = {row.name: row for row in self.tables[table]}
        return rows[check_choice("row", name, tuple(rows))]

    def clouds(self, name: str) -> Mapping[str, Sequence[np.ndarray]]:
        """Clouds of a row of "clouds", by object."""
        found = {item.name: item for item in self.made}
        return found[check_choice("row", name, tuple(found))].clouds

    def against(self, second: str, metric_name: str = PRIMARY) -> PairedRow:
        """The first model's clouds against another row of "clouds". An unknown row is a `BrainDataError`."""
        rows = {row.second: row for row in self.paired if (row.first, row.metric) == (self.name, metric_name)}
        return rows[check_choice("row", second, tuple(rows))]

    @property
    def beats_retrieval(self) -> bool:
        """Whether decoded clouds are nearer to the true ones than retrieved ones, beyond the interval."""
        return self.against(retrieved_name(self.name)).outcome == "better"

    @property
    def first_line(self) -> str:
        """What the report says first: whether the decoder beats train clouds that are retrieved by its own class."""
        found = self.against(retrieved_name(self.name))
        own, other = (float(self.row("clouds", name).values[PRIMARY].mean()) for name in (found.first, found.second))
        start = "The decoder beats retrieval" if self.beats_retrieval else "The decoder does not beat retrieval"
        low, high = found.interval[:2]
        return (
            f"{start}: {PRIMARY} is {own:.4f} for decoded clouds and {other:.4f} for retrieved train clouds "
            f"(difference {found.value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, {found.n} objects)."
        )

    @property
    def record(self) -> dict[str, Any]:
        """All numbers as JSON types. `json.dumps(record, allow_nan=False)` always works."""
        return plain(
            {
                "first_line": self.first_line,
                "settings": asdict(self.case.settings),
                "machine": self.machine,
                "data": _describe(self.case),
                "models": {
                    name: {"recipe": model.recipe.to_json(), "meta": model.meta_} for name, model in self.models.items()
                },
                "tables": {name: [row.to_json() for row in rows] for name, rows in self.tables.items()},
                "paired": [row.to_json() for row in self.paired],
                "judges": {judge.name: judge.accuracy for judge in self.judges},
                "agreements": [score.to_json() for score in self.agreements],
                "released": self.released,
                "bottleneck": self.bottleneck.to_json(),
                "sensors": None if self.sensors is None else self.sensors.to_json(),
                "near_duplicates": [vars(pair) for pair in self.duplicates],
                "seconds": self.seconds,
            }
        )


def evaluate_objects(
    study: ObjectStudy,
    models: Mapping[str, Any],
    settings: ObjectSettings | None = None,
    subject: str | None = None,
    split: str | Split | None = None,
) -> ObjectEvaluation:
    """All scores of the models of one subject, with what they must beat and what they cannot.

    Args:
        study: Data set. A simulated one adds the ideal observer.
        models: Fitted models by their names in tables, such as `Neuro3D`. Controls and sensors are of the first.
        settings: See there; None takes the defaults.
        subject: Subject of the models; None is the one that the first was fitted to.
        split: Split of the training; None takes the first.

    Raises:
        BrainDataError: There is no model, or one of another subject; a test object has a class without train objects.
        LeakageError: A model has seen test objects, or was fitted on another split.
        IdError: Streams or labels do not match.
    """
    if not models:
        raise BrainDataError("expected a fitted model, got none")
    name, model = next(iter(models.items()))
    settings = settings or ObjectSettings()
    clock = _Clock(settings.progress)
    with clock("data"):
        subject = next(iter(model.meta_["subjects"])) if subject is None else subject
        case = ObjectCase.of(study, subject, split, settings)
        for label, one in models.items():
            check_model(case, one, label)
        duplicates = near_duplicates(study, case.split, settings.seed)
    tables: dict[str, Sequence[Row]] = {}
    with clock("classes and colours"):
        answers = collect_answers(case, models)
        tables["classes"], tables["colors"] = class_rows(case, answers), color_rows(case, answers)
    with clock("features"):
        truth = true_features(case, model)
        tables["retrieval"] = retrieval_rows(case, model, name, truth)
        probes = probe_rows(case, model, name, truth)
        tables |= {f"probe_{label}": rows for label, rows in probes.items()}
    with clock("decoding"):
        made = collect_clouds(case, answers, models, truth)
    with clock("clouds"):
        judges = fit_judges(case)
        tables["clouds"] = judge_clouds(case, made, judges)
        agreements = agreement(case, made[0], judges)
    with clock("controls"):
        tables["controls"] = control_rows(case, name, model)
        squeezed = bottleneck(case)
        released = released_rows(case, tables["retrieval"], tables["clouds"][0], made[0], name)
    sensors = None
    with clock("sensors"):
        if settings.sensors:
            sensors = study_sensors(case, model)
    clock.close()
    marked = {table: [_marked(row, models) for row in rows] for table, rows in tables.items()}
    found = marked, made, judges, _paired(case, marked["clouds"], models, judges), agreements, released, squeezed
    machine = describe_machine(torch.device("cpu"), torch.float32)
    return ObjectEvaluation(name, models, case, answers, *found, sensors, duplicates, clock.seconds, machine)


class _Clock:
    """A bar over the sections of an evaluation, and the seconds that each took."""

    def __init__(self, progress: bool):
        self.seconds: dict[str, float] = {}
        self.bar = tqdm(total=7, disable=not progress, desc="evaluate", unit="section")

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self.bar.set_postfix_str(section)
        start = time.perf_counter()
        yield
        self.seconds[section] = time.perf_counter() - start
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def _paired(
    case: ObjectCase, rows: Sequence[Row], models: Mapping[str, Any], judges: Sequence[Judge]
) -> list[PairedRow]:
    """Each model's clouds against its retrieved ones; those of the first also against further rows."""
    named, (first, *_) = {row.name: row for row in rows}, models
    names = [PRIMARY, _FSCORE]
    names += [key for judge in judges for key in named[first].values if key.endswith(f"[{judge.name}]")]
    others = [(label, retrieved_name(label)) for label in models]
    others += [(first, second) for second in (retrieved_name(RIDGE), PRIOR, SAME_CLASS)]
    others += [(first, label) for label in models if label != first]
    settings = case.settings
    return [
        PairedRow.of(named[a], named[b], metric(name), settings.resamples, settings.seed)
        for a, b in others
        for name in names
    ]


def _marked(row: Row, models: Mapping[str, Any]) -> Row:
    """The row, with a note if its model's epoch was chosen by the test objects."""
    chosen = [name for name, model in models.items() if model.recipe.selection == "test"]
    if not any(row.name == name or row.name.startswith((f"{name},", retrieved_name(name))) for name in chosen):
        return row
    told, scores = "epoch chosen by the test objects", []
    for score in row.scores:
        scores.append(score if told in score.note else score.under(note="; ".join(filter(None, [told, score.note]))))
    return replace(row, scores=scores)


def _describe(case: ObjectCase) -> dict[str, Any]:
    study, test = case.study, case.test
    return {
        "simulated": case.ideal is not None,
        "subject": test.subject,
        "split": case.split.name,
        "split_hash": case.split.hash,
        "classes": case.num_classes,
        "colors": case.num_colors,
        "color_names": study.color_names,
        "train_objects": len(case.train_ids),
        "train_trials": len(case.train),
        "test_objects": len(test),
        "test_trials": len(case.single),
        "points": len(next(iter(case.truth.values()))),
        "normalizer": test.normalizer,
        "streams": test.signature()["streams"],
        "majority": {
            label: majority_rate(case.labels(label, test.ids))
            for label in ("class", *(("color",) if case.num_colors else ()))
        },
    }
