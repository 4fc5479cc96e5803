"""Stimuli, responses, splits: everything is joined by image id, and nothing is reordered or dropped without a word."""

from .dataset import BrainDataset, Pairs, Split, Subject
from .responses import Responses, TrialTable
from .spaces import SensorSpace, VoxelSpace
from .stimuli import ArrayImages, HDF5Images, ImageFiles, RenderedImages, StimulusSet

__all__ = [
    "ArrayImages",
    "BrainDataset",
    "HDF5Images",
    "ImageFiles",
    "Pairs",
    "RenderedImages",
    "Responses",
    "SensorSpace",
    "Split",
    "StimulusSet",
    "Subject",
    "TrialTable",
    "VoxelSpace",
]
