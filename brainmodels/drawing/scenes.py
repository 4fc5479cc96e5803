"""The bank of drawn scenes that ships: ids and keys of 8,000 scenes, which are drawn when they are shown.

`veca brain drawer --out DIR --kind nearest` made it.
"""

import logging
from pathlib import Path

import torch

from ..features import Extractor
from ..simulated.scenes import scene_pictures
from .keyed_nearest import KeyedNearest
from .patch_code import pixels_of

__all__ = ["SHIPPED", "shipped_nearest"]

_log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parent / "weights"
PIXELS = 64
PROBES = 4  # scenes whose keys are computed again, to see that the bank belongs to an extractor
DEVIATION = 0.05  # largest mean deviation of their scores, in standard deviations; int8 alone makes about 0.01


def shipped_nearest(extractor: Extractor, device: str | torch.device = "cpu") -> KeyedNearest | None:
    """The bank of drawn scenes that ships with the package, where its keys are those of this extractor; else None.

    The features of four scenes are computed and compared. Other weights, cores or sizes give other features; another
    version of a library rarely does.
    """
    nearest = KeyedNearest.load(SHIPPED, lambda ids: scene_pictures(ids, PIXELS), device)
    size, probes = nearest.components.size, scene_pictures(nearest.bank.ids[:PROBES], extractor.input_size)
    with torch.no_grad():
        seen = extractor.to(device).encode(pixels_of(probes).to(device))
    if seen.tokens is None or seen.tokens.shape[1:] != (size.num_tokens, size.token_width):
        return None
    apart = float((nearest.components(seen.tokens) - nearest.bank.scores[:PROBES]).abs().mean())
    if apart > DEVIATION:
        _log.info("the bank of scenes belongs to another extractor: keys are %.2f apart", apart)
        return None
    return nearest
