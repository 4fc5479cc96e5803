"""Features of pictures: extractors with a fingerprint, a cache or an array by image id, a scaler of train ids."""

from ..data.grid import grid_features
from .arrays import ArrayFeatures, FeatureSource
from .base import Extractor, FeatureOutput
from .cache import FeatureCache
from .controls import Gabor, Grid, Pixels, RandomConv
from .networks import VECAFeatures, veca_features
from .registry import extractor
from .scaler import TokenScaler
from .towers import OpenCLIPFeatures, TimmFeatures, open_clip_features, timm_features

__all__ = [
    "ArrayFeatures",
    "Extractor",
    "FeatureCache",
    "FeatureOutput",
    "FeatureSource",
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
