"""Simulated studies: drawn scenes, and subjects of whom everything is known.

`brainmodels.simulate("tiny")` is all that most uses need.
"""

from .eeg import ideal_observer, simulate_eeg
from .fmri import simulate
from .presets import PRESETS, Preset
from .scenes import FACTORS, FEATURE_GROUPS, photograph_stimuli, scene_combinations, scene_stimuli
from .truth import Drift, EEGTruth, SimulatedDataset, SubjectTruth, planted_features
from .tuning import ROIS, Tuning

__all__ = [
    "FACTORS",
    "FEATURE_GROUPS",
    "PRESETS",
    "ROIS",
    "Drift",
    "EEGTruth",
    "Preset",
    "SimulatedDataset",
    "SubjectTruth",
    "Tuning",
    "ideal_observer",
    "photograph_stimuli",
    "planted_features",
    "scene_combinations",
    "scene_stimuli",
    "simulate",
    "simulate_eeg",
]
