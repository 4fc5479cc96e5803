"""BraInCoRL and BrainCoDec: encoders and decoders that meet a new brain without a gradient step.

    model = BrainCoDec("tiny").fit(cache, {"sim02": pairs2, "sim03": pairs3})
    new = model.adapt(cache, context, subject="sim01")
    new.decode(test)

The sources are arXiv 2505.15813 (stage 1) and 2604.08537 (stage 2).
"""

from .estimator import BrainCoDec
from .in_context import InContextEncoder
from .model import ContextDecoder, ContextEncoder
from .recipes import BrainCoDecRecipe, InContextRecipe, in_context, nano, paper, released, tiny, veca

__all__ = [
    "BrainCoDec",
    "BrainCoDecRecipe",
    "ContextDecoder",
    "ContextEncoder",
    "InContextEncoder",
    "InContextRecipe",
    "in_context",
    "nano",
    "paper",
    "released",
    "tiny",
    "veca",
]
