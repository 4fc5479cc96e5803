"""Several prepared subjects as one study: subjects side by side, images joined by id, splits joined by name.

dataset = join_datasets([load_prepared("prepared/subj01"), load_prepared("prepared/subj02")])
dataset.subjects  # {"subj01": ..., "subj02": ...}
"""

import logging
from collections.abc import Sequence

import numpy as np

from ..errors import BrainDataError, IdError
from .dataset import BrainDataset, Split
from .ids import Ids
from .stimuli import StimulusSet

__all__ = ["join_datasets"]

_log = logging.getLogger(__name__)


def join_datasets(datasets: Sequence[BrainDataset]) -> BrainDataset:
    """One data set of all subjects.

    An image with one id in several data sets is one image. Splits are joined if all data
    sets have them under one name. Each subject keeps its train and validation images. The test images are those of all.

    Args:
        datasets: Data sets of different subjects whose images are named alike.

    Raises:
        IdError: Two data sets have a subject of one name.
        BrainDataError: Two pictures under one id differ.
        LeakageError: A joined split would test on an image that it trains on.
    """
    if not datasets:
        raise BrainDataError("expected at least one data set to join, got none")
    if len(datasets) == 1:
        return datasets[0]
    subjects = [person for dataset in datasets for person in dataset.subjects.values()]
    names = [person.id for person in subjects]
    if len(set(names)) != len(names):
        raise IdError(f"expected subjects of different names, got {', '.join(names)}; prepare one under another name")
    stimuli = _joined_stimuli([dataset.stimuli for dataset in datasets])
    common = [name for name in datasets[0].splits if all(name in dataset.splits for dataset in datasets)]
    for name in sorted({name for dataset in datasets for name in dataset.splits} - set(common)):
        _log.warning("split %r is not in every data set and is left out of the joined one", name)
    return BrainDataset(subjects, stimuli, {name: _joined_split(name, datasets) for name in common})


class _JoinedImages:
    """Pictures of several sets, each read from the first set that has it."""

    def __init__(self, sets: Sequence[StimulusSet], ids: Ids):
        self.places = [(next(x for x in sets if name in x), name) for name in ids]

    def __len__(self) -> int:
        return len(self.places)

    def has(self, index: int) -> bool:
        """Whether the set of this picture knows it."""
        stimuli, name = self.places[index]
        return stimuli.has_picture(name)

    def read(self, index: int, size: int | None) -> np.ndarray:
        stimuli, name = self.places[index]
        return stimuli.source.read(int(stimuli.rows([name])[0]), size)


def _joined_stimuli(sets: Sequence[StimulusSet]) -> StimulusSet:
    ids = list(dict.fromkeys(str(name) for stimuli in sets for name in stimuli.ids))
    source = _JoinedImages(sets, ids)
    first = {name: stimuli for stimuli, name in source.places}
    for stimuli in sets:
        for name in map(str, stimuli.ids):
            if first[name] is not stimuli and not np.array_equal(first[name].image(name), stimuli.image(name)):
                raise BrainDataError(f"expected one picture under {name!r} in all data sets, got two that differ")
    captions = {name: first[name].captions(name) for name in ids}
    shared = [label for label in sets[0].labels if all(label in stimuli.labels for stimuli in sets)]
    for label in sorted({label for stimuli in sets for label in stimuli.labels} - set(shared)):
        _log.warning("label %r is not in every data set and is left out of the joined one", label)
    labels = {label: np.array([first[name].label(label, [name])[0] for name in ids]) for label in shared}
    return StimulusSet(ids, source, captions, labels)


def _joined_split(name: str, datasets: Sequence[BrainDataset]) -> Split:
    splits = {person: dataset.split(name) for dataset in datasets for person in dataset.subjects}
    if any(split.sessions for split in splits.values()):
        raise BrainDataError(f"expected splits by image to join, got {name!r}, which is by session")
    train, val = ({person: split.ids(part, person) for person, split in splits.items()} for part in ("train", "val"))
    return Split(
        name,
        train=frozenset().union(*train.values()),
        val=frozenset().union(*val.values()),
        test=frozenset().union(*(split.test for split in splits.values())),
        params={"joined": {person: split.hash for person, split in splits.items()}},
        train_of=train,
        val_of=val,
    )
