"""From epochs of EEG or MEG to a report: what `veca brain evaluate` does with responses of sensors over time.

evaluations = run_epoch_evaluations(EvaluationSettings(data="prepared/eeg", out="out/eeg"), dataset, sets)
print(evaluations[0].decoded[0].course.onset)
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data import BrainDataset
from ..errors import BrainDataError
from ..evaluation import EvaluationSettings
from ..evaluation.epochs import EpochEvaluation, are_epochs, evaluate_epochs
from ..features.sets import FeatureSet
from ..report.epochs import write_epoch_report

__all__ = ["OF_EPOCHS", "epoch_lines", "epochs_are_chosen", "run_epoch_evaluations"]

OF_EPOCHS = ("bands", "time_bin")
"""Settings that only studies of epochs have."""


def epochs_are_chosen(dataset: BrainDataset, names: Sequence[str]) -> bool:
    """Whether the responses of these subjects are epochs of sensors.

    Raises:
        BrainDataError: Those of some are, and those of others are not.
    """
    kinds = {name: are_epochs(dataset.subject(name)) for name in names}
    if len(set(kinds.values())) > 1:
        words = {True: "epochs", False: "one value a channel or voxel"}
        told = ", ".join(f"{name} has {words[found]}" for name, found in kinds.items())
        raise BrainDataError(
            f"expected subjects of one kind of responses, got: {told}; evaluate them one after the other"
        )
    return any(kinds.values())


def run_epoch_evaluations(
    settings: EvaluationSettings, dataset: BrainDataset, sets: Sequence[FeatureSet]
) -> list[EpochEvaluation]:
    """Evaluate every subject of the settings: one in `settings.out`, several in folders of their names below it.

    Args:
        settings: Settings of the study.
        dataset: Data set with the subjects.
        sets: Sets of features.

    Raises:
        BrainDataError: A setting is one of studies of voxels, or the responses are no epochs.
        LeakageError: A test picture is also a train picture, under another id.
    """
    names = settings.subject or (next(iter(dataset.subjects)),)
    found = []
    for name in names:
        out = Path(settings.out) / name if len(names) > 1 else Path(settings.out)
        found.append(evaluate_epochs(dataset, sets, replace(settings, subject=(name,), out=out)))
        write_epoch_report(found[-1], out)
    return found


def epoch_lines(evaluation: EpochEvaluation) -> list[str]:
    """A line for each direction, signal and set of features, and when each is above chance."""
    lines = []
    for item in evaluation.encoded:
        lines.append(f"encoding of {item.signal} from {item.features}: {item.scores[0]}; {_when(item.course)}")
    for item in evaluation.decoded:
        lines.append(f"decoding of {item.signal} into {item.features}: {item.scores[0]}; {_when(item.course)}")
    return lines


def _when(course) -> str:
    """When a course is above chance, in words."""
    if course.onset is None:
        return "at no time above chance"
    return f"above chance from {1000 * course.onset:.0f} ms"
