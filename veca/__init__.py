"""VECA: vision transformers whose patches talk only through learned cores, at a cost linear in the image."""

from . import timm_models
from .attention import core_attention
from .backbone import VECA
from .convert import convert_vit
from .features import AttentionMaps, Features
from .registry import create_model, list_models, load
from .streaming import stream_features

__all__ = [
    "VECA",
    "AttentionMaps",
    "Features",
    "convert_vit",
    "core_attention",
    "create_model",
    "list_models",
    "load",
    "stream_features",
    "timm_models",
]

__version__ = "0.1.0"
