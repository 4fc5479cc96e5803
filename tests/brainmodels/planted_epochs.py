"""Epochs with features of images planted in a window of time and in some channels, in white noise."""

import functools
import tempfile

import numpy as np

from brainmodels.data import BrainDataset, Responses, SensorSpace, Subject, TrialTable
from brainmodels.data.splits import split_from_ids
from brainmodels.evaluation.epoch_data import collect
from brainmodels.evaluation.epoch_results import Targets
from brainmodels.features import FeatureCache
from brainmodels.features.sets import FeatureSet, feature_rows
from brainmodels.simulated.scenes import scene_stimuli

CHANNELS = ("FP1", "FZ", "CZ", "C3", "T7", "P3", "PO7", "O1", "OZ", "O2")
WINDOW = (0.1, 0.25)
"""Seconds in which features are planted."""


@functools.cache
def scenes(count: int = 200):
    """Drawn scenes, and the standardised first 8 components of their grid features."""
    stimuli = scene_stimuli(5, count)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, FeatureSet.parse("grid").extractor, stimuli)
        cache.extract(stimuli.ids, progress=False)
        rows = feature_rows(cache, stimuli.ids)
    left, _, _ = np.linalg.svd((rows - rows.mean(0)) / rows.std(0), full_matrices=False)
    return stimuli, rows, left[:, :8] * np.sqrt(count)


@functools.cache
def planted(gain: float = 1.0, channels: tuple[str, ...] = CHANNELS, seed: int = 0, test_repeats: int = 4):
    """A data set of subject "me": 150 train images shown twice and 50 test images. A gain of 0 leaves noise alone."""
    stimuli, _, parts = scenes()
    rng = np.random.default_rng(seed)
    ids = stimuli.ids
    shown = np.repeat(np.arange(200), [2] * 150 + [test_repeats] * 50)
    shown = shown[rng.permutation(len(shown))]
    times = np.arange(50) / 50 - 0.2
    course = ((times > WINDOW[0] - 1e-6) & (times < WINDOW[1] + 1e-6)).astype(float)
    pattern = rng.normal(size=(parts.shape[1], len(CHANNELS))) * np.isin(CHANNELS, channels)
    signal = np.einsum("ic,t->ict", parts @ pattern / np.sqrt(parts.shape[1]), course)
    values = gain * signal[shown] + rng.normal(size=(len(shown), len(CHANNELS), len(times)))
    space = SensorSpace(CHANNELS, 50.0, times, unit="z")
    responses = Responses(values.astype(np.float32), TrialTable.of(ids[shown]))
    split = split_from_ids("halves", ids[:150], ids[150:], percent=0)
    return BrainDataset([Subject("me", responses, space)], stimuli, {split.name: split})


@functools.cache
def case(gain: float = 1.0, channels: tuple[str, ...] = CHANNELS, seed: int = 0):
    """Responses and grid features of `planted`."""
    dataset = planted(gain, channels, seed)
    data = collect(dataset, dataset.subject("me"), dataset.split("halves"))
    stimuli, rows, _ = scenes()
    X, X_test = rows[stimuli.rows(data.train_ids)], rows[stimuli.rows(data.test_ids)]
    return data, Targets.of("grid", "0" * 12, X, X_test)
