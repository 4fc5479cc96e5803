"""Simulated fMRI and EEG studies of drawn scenes and solids, and clips of talking heads. The truth is known.

    dataset = brainmodels.simulate("tiny")
    dataset.truth["sim01"].ceiling()  # the best possible r^2 of each voxel
    clips = simulate_clips(ToyHead(), train=48, test=8)
    clips.truth["test_0000"].opening  # (32,), how far the mouth is open in each frame

Use them for tests, tutorials and to try a model before real data are there.
"""

from .eeg import ideal_observer, simulate_eeg
from .fmri import simulate
from .lab import LabTruth
from .objects import OBJECT_PRESETS, ObjectPreset, ObjectTruth, SimulatedObjects, simulate_objects
from .presets import PRESETS, LabPreset, Preset
from .scenes import FACTORS, FEATURE_GROUPS, photograph_stimuli, scene_combinations, scene_stimuli
from .speech import PHONEMES, VISEMES, Phoneme, cut_schedule, draw_schedule, sentence_of, synthesize, visemes_of
from .talking_head import ClipTruth, SimulatedClips, drawn_face, drawn_speech, simulate_clips
from .truth import Drift, EEGTruth, SimulatedDataset, SubjectTruth, planted_features
from .tuning import ROIS, Tuning

__all__ = [
    "FACTORS",
    "FEATURE_GROUPS",
    "OBJECT_PRESETS",
    "PHONEMES",
    "PRESETS",
    "ROIS",
    "VISEMES",
    "ClipTruth",
    "Drift",
    "EEGTruth",
    "LabPreset",
    "LabTruth",
    "ObjectPreset",
    "ObjectTruth",
    "Phoneme",
    "Preset",
    "SimulatedClips",
    "SimulatedDataset",
    "SimulatedObjects",
    "SubjectTruth",
    "Tuning",
    "cut_schedule",
    "draw_schedule",
    "drawn_face",
    "drawn_speech",
    "ideal_observer",
    "photograph_stimuli",
    "planted_features",
    "scene_combinations",
    "scene_stimuli",
    "sentence_of",
    "simulate",
    "simulate_clips",
    "simulate_eeg",
    "simulate_objects",
    "synthesize",
    "visemes_of",
]
