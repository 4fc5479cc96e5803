"""MindAligner: the voxels of a new subject in those of a known one, whose decoder is used as it is.

    model = MindAligner("tiny").fit(cache, {"sim02": new, "sim01": known}, new="sim02", labels=labels)
    model.decode(test)

The source is arXiv 2502.05034.
"""

from .closed_forms import AffineMap, Side, fit_closed_forms, posterior_mean_map
from .estimator import MindAligner
from .model import CrossStimulusMapper, EmbeddingDecoder, FunctionalEmbedder, LowRankMap
from .recipes import MindAlignerRecipe, nano, paper, released, tiny
from .transfer import region_flow, transfer_quantity

__all__ = [
    "AffineMap",
    "CrossStimulusMapper",
    "EmbeddingDecoder",
    "FunctionalEmbedder",
    "LowRankMap",
    "MindAligner",
    "MindAlignerRecipe",
    "Side",
    "fit_closed_forms",
    "nano",
    "paper",
    "posterior_mean_map",
    "region_flow",
    "released",
    "tiny",
    "transfer_quantity",
]
