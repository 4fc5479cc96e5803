"""Pictures from decoded tokens: the nearest of a bank, or drawn by a generator; both learn from images alone.

| class | draws |
|---|---|
| `KeyedNearest` | the picture of a bank that fits best: what was found, not what was seen |
| `Generator` | a new picture, from the tokens, what a reader makes of them, and the nearest picture |
"""

from .components import Reliability, TokenComponents
from .generator import Generator
from .keyed_nearest import KeyedNearest, PictureBank
from .recipes import GeneratorRecipe
from .training import train_generator, train_nearest

__all__ = [
    "Generator",
    "GeneratorRecipe",
    "KeyedNearest",
    "PictureBank",
    "Reliability",
    "TokenComponents",
    "train_generator",
    "train_nearest",
]
