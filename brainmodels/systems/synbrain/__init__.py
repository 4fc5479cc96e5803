"""SynBrain: from images to synthetic fMRI responses, by a variational autoencoder of voxels and a mapper to its latent.

SynBrain, arXiv 2508.10298 (NeurIPS 2025).
"""

from .augment import SyntheticPool
from .estimator import SynBrain
from .losses import StageOneLoss, mapper_loss, stage_one_loss
from .model import BrainVAE, BrainVAEOutput, adapt_parameters, build_mapper, synthesize
from .recipes import MapperSize, SynBrainRecipe, VAESize, named, nano, paper, tiny, veca, veca_cores

__all__ = [
    "BrainVAE",
    "BrainVAEOutput",
    "MapperSize",
    "StageOneLoss",
    "SynBrain",
    "SynBrainRecipe",
    "SyntheticPool",
    "VAESize",
    "adapt_parameters",
    "build_mapper",
    "mapper_loss",
    "named",
    "nano",
    "paper",
    "stage_one_loss",
    "synthesize",
    "tiny",
    "veca",
    "veca_cores",
]
