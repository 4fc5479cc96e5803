"""Stimuli, responses, splits: everything is joined by image id, and nothing is reordered or dropped without a word."""

from .align import AlignmentReport, check_alignment
from .budgets import Budget, budget
from .combinations import combination_holdout
from .dataset import BrainDataset, Pairs, Split, Subject
from .joined import join_datasets
from .leakage import check_duplicates, check_new_weights
from .normalize import Normalizer, fit_normalizer, register_normalizer
from .prepared import load_prepared, save_prepared
from .rescale import Bridge
from .responses import Responses, TrialTable
from .spaces import SensorSpace, VoxelSpace
from .splits import (
    bold5000_5fold,
    bold5000_repeated,
    context_split,
    first_250_images,
    first_session,
    holdout,
    loso,
    named_split,
    shared1000,
    split_from_ids,
    validation_ids,
)
from .stimuli import ArrayImages, HDF5Images, ImageFiles, RenderedImages, StimulusSet
from .summary import PreparedSummary, summarize

__all__ = [
    "AlignmentReport",
    "ArrayImages",
    "BrainDataset",
    "Bridge",
    "Budget",
    "HDF5Images",
    "ImageFiles",
    "Normalizer",
    "Pairs",
    "PreparedSummary",
    "RenderedImages",
    "Responses",
    "SensorSpace",
    "Split",
    "StimulusSet",
    "Subject",
    "TrialTable",
    "VoxelSpace",
    "bold5000_5fold",
    "bold5000_repeated",
    "budget",
    "check_alignment",
    "check_duplicates",
    "check_new_weights",
    "combination_holdout",
    "context_split",
    "first_250_images",
    "first_session",
    "fit_normalizer",
    "holdout",
    "join_datasets",
    "load_prepared",
    "loso",
    "named_split",
    "register_normalizer",
    "save_prepared",
    "shared1000",
    "split_from_ids",
    "summarize",
    "validation_ids",
]
