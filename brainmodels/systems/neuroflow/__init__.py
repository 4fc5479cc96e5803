"""NeuroFlow: one model from images to responses and back, by a flow between image tokens and a VAE's latents."""

from .estimator import NeuroFlow
from .losses import LossWeights, StageOneLoss, stage_one_loss, stage_two_loss
from .model import XFM, Encoding, NeuroVAE, RoundTrip, decode, encode, round_trip
from .recipes import FlowSize, NeuroFlowRecipe, VAESize, named, nano, paper, tiny, veca, veca_cores

__all__ = [
    "XFM",
    "Encoding",
    "FlowSize",
    "LossWeights",
    "NeuroFlow",
    "NeuroFlowRecipe",
    "NeuroVAE",
    "RoundTrip",
    "StageOneLoss",
    "VAESize",
    "decode",
    "encode",
    "named",
    "nano",
    "paper",
    "round_trip",
    "stage_one_loss",
    "stage_two_loss",
    "tiny",
    "veca",
    "veca_cores",
]
