"""Small studies of objects whose values tell object, presentation, channel and time."""

from dataclasses import replace

import numpy as np

from brainmodels.data.dataset import BrainDataset, Split, Subject
from brainmodels.data.objects import ObjectStudy
from brainmodels.data.responses import Responses, TrialTable
from brainmodels.data.spaces import SensorSpace
from brainmodels.data.stimuli import StimulusSet

WORDS = ("bed", "lamp", "tree")
CHANNELS = ("FZ", "OZ", "PZ")
SIZES = {"static": (5, 250.0), "dynamic": (7, 100.0)}


class Clouds:
    """Clouds of random points. The colour of object i of a class is that of its label, and reads are counted."""

    def __init__(self, ids, colors, replaced=None):
        self.ids, self.colors, self.replaced, self.asked = list(ids), list(colors), replaced or {}, []

    def __len__(self):
        return len(self.ids)

    def read(self, index, size):
        raise AssertionError("nobody asked for pictures")

    def cloud(self, image_id):
        self.asked.append(image_id)
        if image_id in self.replaced:
            return self.replaced[image_id]
        row = self.ids.index(image_id)
        points = np.random.default_rng(row).normal(size=(40, 3))
        return np.column_stack([points, np.tile([self.colors[row] / 4, 0.5, row / 1000], (40, 1))])


def stimuli_of(words=WORDS, colors=2, **replaced):
    ids = [f"eeg3d:{word}_{number:02d}" for word in words for number in range(10)]
    labels = {
        "class": np.repeat(np.arange(len(words)), 10),
        "name": np.repeat(words, 10),
        "object": np.tile(np.arange(10), len(words)),
    }
    if colors:
        labels["color"] = np.arange(10 * len(words)) % colors
    clouds = {f"eeg3d:{name}": cloud for name, cloud in replaced.items()}
    return StimulusSet(ids, Clouds(ids, labels.get("color", np.zeros(len(ids)))), labels=labels), clouds


def split_of(stimuli, name="objects", val=()):
    objects = stimuli.labels["object"]
    train = frozenset(stimuli.ids[objects < 8].tolist()) - set(val)
    return Split(name, train, frozenset(val), frozenset(stimuli.ids[objects >= 8].tolist()))


def table_of(stimuli, seed=0):
    """Every train object twice, every test object four times, in random order."""
    shown = np.repeat(stimuli.ids, np.where(stimuli.labels["object"] < 8, 2, 4))
    shown = shown[np.random.default_rng(seed).permutation(len(shown))]
    return TrialTable.of(shown, session=np.arange(len(shown)) // 6 + 1)


def dataset_of(stimuli, stream, table=None, values=None, split=None, subject="sub01", **options):
    """Values tell object, presentation, channel and time, so that a wrong join is seen."""
    table = table_of(stimuli) if table is None else table
    num_times, sfreq = SIZES[stream]
    space = SensorSpace(CHANNELS, sfreq, np.arange(num_times) / sfreq - 0.2, unit="z")
    if values is None:
        base = stimuli.rows(table.image_id) * 10.0 + table.repeat
        values = base[:, None, None] + np.arange(3)[:, None] / 10 + np.arange(num_times) / 100
        values[:, 0] = base[:, None]  # the reference
    split = split_of(stimuli) if split is None else split
    person = Subject(subject, Responses(values.astype(np.float32), table), space, **options)
    return BrainDataset([person], stimuli, {split.name: split})


def study_of(static=None, dynamic=None, stimuli=None, **options):
    stimuli = stimuli_of()[0] if stimuli is None else stimuli
    return ObjectStudy(
        dataset_of(stimuli, "static") if static is None else static,
        dataset_of(stimuli, "dynamic") if dynamic is None else dynamic,
        **options,
    )


def changed(dataset, **responses):
    person = dataset.subject("sub01")
    return dataset.with_subject(replace(person, responses=replace(person.responses, **responses)))
