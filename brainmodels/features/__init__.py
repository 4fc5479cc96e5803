"""Features of pictures: extractors with a fingerprint, a cache on disk by image id, a scaler fitted on train ids."""

from .base import Extractor, FeatureOutput
from .cache import FeatureCache
from .controls import Gabor, Grid, Pixels, RandomConv
from .grid import grid_features
from .networks import VECAFeatures, veca_features
from .registry import extractor
from .scaler import TokenScaler
from .towers import OpenCLIPFeatures, TimmFeatures, open_clip_features, timm_features

__all__ = [
    "Extractor",
    "FeatureCache",
    "FeatureOutput",
    "Gabor",
    "Grid",
    "OpenCLIPFeatures",
    "Pixels",
    "RandomConv",
    "TimmFeatures",
    "TokenScaler",
    "VECAFeatures",
    "extractor",
    "grid_features",
    "open_clip_features",
    "timm_features",
    "veca_features",
]
