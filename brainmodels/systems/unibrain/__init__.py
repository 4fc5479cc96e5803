"""UniBrain: from responses to a picture and a caption, by linear regressors and one frozen generator."""

from .estimator import UniBrain
from .generator import Generator, Latents
from .nano import GeneratorSize, NanoGenerator
from .pretrain import pretrain
from .recipes import GeneratorRecipe, UniBrainRecipe, generator_named, named, nano, paper, tiny, versatile
from .reconstruction import MODES, Reconstruction
from .regressors import Penalties, Regressors
from .sampling import Sampling
from .saved import load_generator, save_generator

__all__ = [
    "MODES",
    "Generator",
    "GeneratorRecipe",
    "GeneratorSize",
    "Latents",
    "NanoGenerator",
    "Penalties",
    "Reconstruction",
    "Regressors",
    "Sampling",
    "UniBrain",
    "UniBrainRecipe",
    "generator_named",
    "load_generator",
    "named",
    "nano",
    "paper",
    "pretrain",
    "save_generator",
    "tiny",
    "versatile",
]
