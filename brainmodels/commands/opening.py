"""A data set from words of the command line."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data import BrainDataset, Split, load_prepared
from ..data.clip_files import read_manifest
from ..data.clips import ClipSet
from ..data.joined import join_datasets
from ..data.object_study import ObjectStudy
from ..data.subject_splits import context_split
from ..errors import BrainDataError, check_choice
from ..evaluation import EvaluationSettings
from ..evaluation.kinds import data_of
from ..heads import FlameFile, GnmFile, HeadModel, IctFile, ToyHead
from ..layouts import eeg3d
from ..simulated import PRESETS, simulate, simulate_eeg, simulate_objects
from ..simulated.eeg import EEG_STUDY
from ..simulated.objects import OBJECT_PRESETS
from ..simulated.talking_head import simulate_clips

__all__ = ["choose_split", "data_of_study", "kind_of_data", "open_clips", "open_data", "open_head", "open_objects"]

_EEG = "eeg"  # preset of simulated epochs
_OBJECTS, _EEG3D, _CLIPS = "objects", "eeg3d", "clips"
_HEADS = {"flame": FlameFile, "gnm": GnmFile, "ict": IctFile}


def open_data(
    data: str | Sequence[str], seed: int = 0, subjects: Sequence[str] = (), everyone: bool = False
) -> BrainDataset:
    """The data set that a word or folders stand for.

    Args:
        data: "simulated" or "simulated:PRESET", "simulated:eeg" for epochs of EEG, or folders of prepared
            subjects, which are joined by image id.
        seed: Seed of a simulation.
        subjects: Subjects that will be asked for; a simulation makes as many as they need, one at least.
        everyone: Simulate all subjects of the preset.

    Raises:
        BrainDataError: A word is neither, or a simulation is mixed with folders.
    """
    words = [data] if isinstance(data, str) else list(data)
    if (other := kind_of_data(words)) != "images":
        raise BrainDataError(f"expected data of images, got {' '.join(words)!r}, data of {other}")
    kind, _, preset = words[0].partition(":") if words else ("", "", "")
    if kind == "simulated" and len(words) == 1:
        if preset and preset not in (*PRESETS, _EEG):
            raise BrainDataError(f"expected a preset of {', '.join((*PRESETS, _EEG))}, got {preset!r}")
        numbers = [int(name[3:]) for name in subjects if re.fullmatch(r"sim\d\d", name)]
        if preset == _EEG:
            return simulate_eeg(n_subjects=max([1, *numbers]), seed=seed, **EEG_STUDY)
        count = max([PRESETS[preset or "small"].subjects if everyone else 1, *numbers])
        return simulate(preset or "small", seed=seed, n_subjects=count)
    for word in words or [""]:
        if not Path(word).is_dir() or not word:
            raise BrainDataError(
                f"expected simulated, simulated:PRESET or the folder of a prepared subject, got {word!r}; "
                "`veca brain prepare` makes such a folder"
            )
    return join_datasets([load_prepared(word) for word in words])


def kind_of_data(words: Sequence[str]) -> str:
    """What kind of data words stand for: "images", "objects" or "clips".

    Raises:
        BrainDataError: Data of objects or of clips stand beside other words.
    """
    kinds = {_OBJECTS: "objects", _EEG3D: "objects", _CLIPS: "clips"}
    others = [word for word in words if word.partition(":")[0] in kinds and not Path(word).is_dir()]
    if others and len(words) > 1:
        raise BrainDataError(f"expected {others[0]} alone, which is a whole data set, got {' '.join(words)}")
    return kinds[others[0].partition(":")[0]] if others else "images"


def data_of_study(settings: EvaluationSettings, models: Iterable[Any], kind: str, wanted: str) -> tuple[str, int]:
    """The word and the seed of the data of a study: those that the user names, or those of the models' training.

    Args:
        settings: Settings of the evaluation.
        models: Trained models.
        kind: Kind of the data, see `kind_of_data`.
        wanted: What is expected, for the message.

    Raises:
        BrainDataError: The data are of another kind, or the models do not know theirs.
    """
    default = next(field.default for field in fields(settings) if field.name == "data")
    if settings.data == default:
        return data_of(models)
    if kind_of_data(settings.data) != kind:
        raise BrainDataError(f"expected {wanted}, got {' '.join(settings.data)}")
    return settings.data[0], settings.seed


def open_clips(word: str, head: HeadModel, size: int, seed: int = 0) -> ClipSet:
    """The clips that a word stands for.

    Args:
        word: "clips:toy", drawn heads that talk, or "clips:MANIFEST", a table of clips of the user.
        head: Head model of the coefficients.
        size: Side of drawn pictures in pixels.
        seed: Seed of drawn clips.

    Raises:
        BrainDataError: The word is neither, or drawn clips are asked for with another head than the drawn one.
        LayoutError: The manifest or a file that it names is missing.
    """
    kind, _, rest = word.partition(":")
    if kind != _CLIPS or not rest:
        raise BrainDataError(f"expected clips:toy or clips:MANIFEST, got {word!r}")
    if rest != "toy":
        return read_manifest(Path(rest))
    if not isinstance(head, ToyHead):
        raise BrainDataError(f"expected the head toy for clips:toy, got {head.name}")
    return simulate_clips(head, size=size, seed=seed)


def open_head(word: str) -> HeadModel:
    """The head model that a word stands for: "toy", "flame:FILE", "gnm:FILE" or "ict:FOLDER".

    Raises:
        BrainDataError: The word is another.
        LayoutError: The file is missing or is another.
    """
    kind, _, place = word.partition(":")
    if word == "toy":
        return ToyHead()
    if kind not in _HEADS or not place:
        raise BrainDataError(f"expected toy, {', '.join(f'{name}:PATH' for name in _HEADS)}, got {word!r}")
    return _HEADS[kind](place)


def open_objects(word: str, seed: int = 0, subjects: Sequence[str] = ()) -> ObjectStudy:
    """The study of objects that a word stands for.

    Args:
        word: "objects" or "objects:PRESET", a simulation, or "eeg3d:FOLDER" with the files of EEG-3D.
        seed: Seed of a simulation.
        subjects: Subjects that will be asked for. A simulation makes as many as they need, one at least. Of EEG-3D the
            first is opened; none is "sub01".

    Raises:
        BrainDataError: The word is neither, or the preset is unknown.
        LayoutError: The folder lacks a file of EEG-3D.
    """
    kind, _, rest = word.partition(":")
    if kind == _EEG3D and rest:
        return eeg3d.open_objects(rest, *(subjects[:1] or ("sub01",)))
    if kind != _OBJECTS or Path(word).is_dir():
        raise BrainDataError(f"expected objects:PRESET or eeg3d:FOLDER, a study of objects, got {word!r}")
    numbers = [int(name[3:]) for name in subjects if re.fullmatch(r"sim\d\d", name)]
    preset = check_choice("a preset", rest or "nano", tuple(OBJECT_PRESETS))
    return simulate_objects(preset, n_subjects=max([1, *numbers]), seed=seed)


def choose_split(
    dataset: BrainDataset,
    name: str | None,
    subject: str = "",
    context: int | None = None,
    draw: int = 0,
    draws: int = 1,
    seed: int = 0,
) -> Split:
    """The split of a name, or the first one; with `context`, its few train images of one subject.

    Args:
        dataset: The data set.
        name: Name of the split; None takes the first.
        subject: Subject whose train images are few.
        context: Number of train images of this subject; None takes all.
        draw, draws: Which of how many disjoint draws of these images.
        seed: Seed of the draws.
    """
    split = dataset.split(name or next(iter(dataset.splits), "none"))
    if context is None:
        return split
    return context_split(dataset, subject, split, context, seed, draw, draws)
