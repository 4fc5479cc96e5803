"""VECA: vision transformers whose patches exchange information only through learned cores, at linear cost."""

from .large.streaming import stream_features
from .model.attention import core_attention
from .model.backbone import VECA
from .model.features import AttentionMaps, Features
from .zoo import timm_models
from .zoo.convert import convert_vit, drop_in
from .zoo.registry import create_model, list_models, load

__all__ = [
    "VECA",
    "AttentionMaps",
    "Features",
    "convert_vit",
    "core_attention",
    "create_model",
    "drop_in",
    "list_models",
    "load",
    "stream_features",
    "timm_models",
]

__version__ = "0.1.0"
