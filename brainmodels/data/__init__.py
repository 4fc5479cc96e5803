"""Stimuli, responses and splits of brain data, and what prepares them for a model.

    dataset = load_prepared("prepared/subj01")
    split = dataset.split("shared1000")
    normalizer = fit_normalizer("session_z_train", dataset.subject("subj01"), split)
    train = dataset.pairs("subj01", split, "train", average="repeats", transform=normalizer)

Responses and images are matched by image id. Rows are never reordered or dropped silently.
"""

from .align import AlignmentReport, check_alignment
from .combinations import combination_holdout
from .dataset import BrainDataset, Pairs, Split, Subject
from .in_silico import from_berg
from .joined import join_datasets
from .leakage import check_duplicates, check_new_weights
from .maskers import from_masker
from .normalize import Normalizer, fit_normalizer, register_normalizer
from .objects import ObjectStudy, ObjectTrials
from .prepared import load_prepared, save_prepared
from .recording_costs import RecordingCost, recording_cost
from .rescale import Bridge
from .responses import Responses, TrialTable
from .spaces import SensorSpace, VoxelSpace
from .splits import (
    bold5000_5fold,
    bold5000_repeated,
    class_holdout,
    first_250_images,
    first_session,
    holdout,
    shared1000,
    split_from_ids,
    validation_ids,
)
from .stimuli import ArrayImages, HDF5Images, ImageFiles, RenderedImages, StimulusSet
from .subject_splits import context_split, loso, shared_part
from .summary import SubjectSummary, summarize

__all__ = [
    "AlignmentReport",
    "ArrayImages",
    "BrainDataset",
    "Bridge",
    "HDF5Images",
    "ImageFiles",
    "Normalizer",
    "ObjectStudy",
    "ObjectTrials",
    "Pairs",
    "RecordingCost",
    "RenderedImages",
    "Responses",
    "SensorSpace",
    "Split",
    "StimulusSet",
    "Subject",
    "SubjectSummary",
    "TrialTable",
    "VoxelSpace",
    "bold5000_5fold",
    "bold5000_repeated",
    "check_alignment",
    "check_duplicates",
    "check_new_weights",
    "class_holdout",
    "combination_holdout",
    "context_split",
    "first_250_images",
    "first_session",
    "fit_normalizer",
    "from_berg",
    "from_masker",
    "holdout",
    "join_datasets",
    "load_prepared",
    "loso",
    "recording_cost",
    "register_normalizer",
    "save_prepared",
    "shared1000",
    "shared_part",
    "split_from_ids",
    "summarize",
    "validation_ids",
]
