"""VECA: vision transformers whose patches talk only through learned cores, at a cost linear in the image."""

from .attention import core_attention
from .backbone import VECA
from .features import AttentionMaps, Features
from .registry import create_model, list_models

__all__ = ["VECA", "AttentionMaps", "Features", "core_attention", "create_model", "list_models"]

__version__ = "0.1.0"
