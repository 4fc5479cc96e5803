"""A small SynBrain that its tests share."""

from dataclasses import replace

import torch

from brainmodels.systems.synbrain.model import BrainVAE, build_mapper
from brainmodels.systems.synbrain.recipes import MapperSize, VAESize

SMALL = VAESize(stem=16, channels=(64, 64), blocks=1, pool=32, hidden=16)
TOKENS, WIDTH = 6, 10
SMALL_MAPPER = MapperSize(width=12, depth=2, heads=3)


def small_vae(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return BrainVAE(TOKENS, WIDTH, SMALL).to(dtype)


def small_mapper(seed=0, conditioning="adaln", trained=True):
    """A mapper in fp64; `trained` fills in what begins at zero."""
    torch.manual_seed(seed)
    mapper = build_mapper(TOKENS, WIDTH, replace(SMALL_MAPPER, conditioning=conditioning)).double()
    if trained:
        for parameter in mapper.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return mapper


def numbers(module, buffers=False):
    parts = [*module.parameters(), *(module.buffers() if buffers else [])]
    return sum(part.numel() for part in parts)
