"""Simulated fMRI and EEG studies of drawn scenes and solids, with subjects whose true responses are known.

    dataset = brainmodels.simulate("tiny")
    dataset.truth["sim01"].ceiling()  # the best possible r^2 of each voxel

Use them for tests, tutorials and to try a model before real data are there.
"""

from .eeg import ideal_observer, simulate_eeg
from .fmri import simulate
from .objects import OBJECT_PRESETS, ObjectPreset, ObjectTruth, SimulatedObjects, simulate_objects
from .presets import PRESETS, Preset
from .scenes import FACTORS, FEATURE_GROUPS, photograph_stimuli, scene_combinations, scene_stimuli
from .truth import Drift, EEGTruth, SimulatedDataset, SubjectTruth, planted_features
from .tuning import ROIS, Tuning

__all__ = [
    "FACTORS",
    "FEATURE_GROUPS",
    "OBJECT_PRESETS",
    "PRESETS",
    "ROIS",
    "Drift",
    "EEGTruth",
    "ObjectPreset",
    "ObjectTruth",
    "Preset",
    "SimulatedDataset",
    "SimulatedObjects",
    "SubjectTruth",
    "Tuning",
    "ideal_observer",
    "photograph_stimuli",
    "planted_features",
    "scene_combinations",
    "scene_stimuli",
    "simulate",
    "simulate_eeg",
    "simulate_objects",
]
