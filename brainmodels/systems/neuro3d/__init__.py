"""Neuro-3D: coloured point clouds of objects from the EEG of a person who sees them."""

from .clouds import Decoded, Embedded, Found, Retrieved
from .estimator import Neuro3D
from .losses import ClassWeights, Goal, encoder_loss
from .model import Encoded, FusionEncoder, OfficialEncoder, StreamShape
from .recipes import EncoderSize, Neuro3DRecipe, PointSize, Targets, named, nano, paper, released, tiny, veca

__all__ = [
    "ClassWeights",
    "Decoded",
    "Embedded",
    "Encoded",
    "EncoderSize",
    "Found",
    "FusionEncoder",
    "Goal",
    "Neuro3D",
    "Neuro3DRecipe",
    "OfficialEncoder",
    "PointSize",
    "Retrieved",
    "StreamShape",
    "Targets",
    "encoder_loss",
    "named",
    "nano",
    "paper",
    "released",
    "tiny",
    "veca",
]
