"""UniBrain: from responses to a picture and a caption, by linear regressors and one frozen generator."""

from .generator import Generator, Latents
from .nano import GeneratorSize, NanoGenerator
from .pretrain import pretrain
from .recipes import GeneratorRecipe, generator_named
from .sampling import Sampling
from .saved import load_generator, save_generator

__all__ = [
    "Generator",
    "GeneratorRecipe",
    "GeneratorSize",
    "Latents",
    "NanoGenerator",
    "Sampling",
    "generator_named",
    "load_generator",
    "pretrain",
    "save_generator",
]
