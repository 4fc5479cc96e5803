"""Features of pictures: extractors, a cache on disk, arrays in memory, and a scaler.

    cache = FeatureCache("features", extractor("gabor"), dataset.stimuli)
    cache.extract()                              # once; later calls compute only what is missing
    X = cache.get(train.image_ids)               # (n, p) fp32
    scaler = TokenScaler("pooled").fit(cache, train.image_ids)

Each extractor has a 12-digit fingerprint. It changes when its weights, layer or preprocessing change. Features are
matched to responses by image id.
"""

from ..data.grid import grid_features
from .arrays import ArrayFeatures, FeatureSource
from .base import Extractor, FeatureOutput
from .cache import FeatureCache
from .controls import Gabor, Grid, Pixels, RandomConv
from .embedding import EmbeddingSpace
from .networks import VECAFeatures, veca_features
from .registry import extractor
from .scaler import TokenScaler
from .towers import OpenCLIPFeatures, TimmFeatures, open_clip_features, timm_features

__all__ = [
    "ArrayFeatures",
    "EmbeddingSpace",
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
