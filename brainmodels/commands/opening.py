"""A data set from words of the command line."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..data import BrainDataset, Split, load_prepared
from ..data.joined import join_datasets
from ..data.object_study import ObjectStudy
from ..data.subject_splits import context_split
from ..errors import BrainDataError, check_choice
from ..layouts import eeg3d
from ..simulated import PRESETS, simulate, simulate_objects
from ..simulated.objects import OBJECT_PRESETS

__all__ = ["choose_split", "kind_of_data", "open_data", "open_objects"]

_OBJECTS, _EEG3D = "objects", "eeg3d"


def open_data(
    data: str | Sequence[str], seed: int = 0, subjects: Sequence[str] = (), everyone: bool = False
) -> BrainDataset:
    """The data set that a word or folders stand for.

    Args:
        data: "simulated" or "simulated:PRESET", or folders of prepared subjects, which are joined by image id.
        seed: Seed of a simulation.
        subjects: Subjects that will be asked for; a simulation makes as many as they need, one at least.
        everyone: Simulate all subjects of the preset.

    Raises:
        BrainDataError: A word is neither, or a simulation is mixed with folders.
    """
    words = [data] if isinstance(data, str) else list(data)
    if kind_of_data(words) == "objects":
        raise BrainDataError(f"expected data of images, got {' '.join(words)!r}, a study of objects")
    kind, _, preset = words[0].partition(":") if words else ("", "", "")
    if kind == "simulated" and len(words) == 1:
        if preset and preset not in PRESETS:
            raise BrainDataError(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}")
        numbers = [int(name[3:]) for name in subjects if re.fullmatch(r"sim\d\d", name)]
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
    """What kind of study words stand for: "objects" or "images".

    Raises:
        BrainDataError: A study of objects stands beside other words.
    """
    objects = [word for word in words if word.partition(":")[0] in (_OBJECTS, _EEG3D) and not Path(word).is_dir()]
    if objects and len(words) > 1:
        raise BrainDataError(f"expected {objects[0]} alone, which is a whole study, got {' '.join(words)}")
    return "objects" if objects else "images"


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
