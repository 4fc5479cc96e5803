"""Choose features by a word of the command line, and turn them into one row of numbers for each image.

features = FeatureSet.parse("veca@8")              # the shipped VECA model with 8 cores
cache = FeatureCache("features", features.extractor, dataset.stimuli)
X = feature_rows(cache, train.image_ids)           # fp32 (n, p)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..data.ids import Ids
from ..errors import BrainDataError
from . import Extractor, FeatureCache, extractor

__all__ = ["FeatureSet", "feature_rows"]

SHIPPED = "veca_nano_patch8"  # the model whose weights ship with the package
SIDE = 4  # number of cells a side of the grid on which tokens are averaged
_BLOCK = 256  # number of images whose tokens are in memory at a time


@dataclass(frozen=True)
class FeatureSet:
    """An extractor, and the name under which tables show it.

    Attributes:
        name: Name for tables.
        extractor: Extractor that makes the features.
    """

    name: str
    extractor: Extractor

    @classmethod
    def parse(cls, word: str) -> "FeatureSet":
        """A feature set from a word: NAME, NAME@CORES, NAME=WEIGHTS or NAME@CORES=WEIGHTS.

        | word | features |
        |---|---|
        | veca | the model whose weights ship with the package, all its cores |
        | veca@8 | the same with 8 cores |
        | veca_small_patch16@16=runs/model | a folder of `save_pretrained` |
        | vit_nano_patch8 | the plain ViT that was trained as veca was |
        | vit_small_patch16_224=weights.safetensors | a model of timm |
        | veca_tiny_patch16=random | random weights, which every score then mentions |
        | pixels, grid, gabor, random_conv | controls that need no weights |

        Args:
            word: A word in one of these forms.

        Raises:
            BrainDataError: Another form, or an extractor without weights.
        """
        name, _, weights = word.partition("=")
        name, _, cores = name.partition("@")
        if cores and not cores.isdigit():
            raise BrainDataError(f"expected a number of cores after @, such as veca@16, got {word!r}")
        options: dict = {"num_cores": int(cores)} if cores else {}
        if weights:
            options["weights"] = weights
        elif name in ("veca", SHIPPED):
            name, options["pretrained"] = SHIPPED, True
        made = extractor(name, **options)
        shown = word.partition("=")[0]
        return cls(f"{shown}, random weights" if weights == "random" else shown, made)


def feature_rows(cache: FeatureCache, ids: Ids, side: int = SIDE) -> np.ndarray:
    """All features of each image in one row, for a linear model.

    A row holds the pooled vector and the tokens. Tokens are averaged over the cells of a side x side grid if they form
    a square of more cells than that. If the square's side is no multiple, cells share tokens, as in adaptive average
    pooling. If the pooled vector already holds every token, the row has nothing else.

    Args:
        cache: Cache with the features of these images.
        ids: Ids of the images.
        side: Number of cells a side of the grid.

    Returns:
        fp32 (len(ids), p).

    Raises:
        IdError: An id that is unknown or was not extracted.
    """
    blocks = [_rows(cache, ids[start : start + _BLOCK], side) for start in range(0, len(ids), _BLOCK)]
    return np.concatenate(blocks)


def _rows(cache: FeatureCache, ids: Ids, side: int) -> np.ndarray:
    kinds = cache.kinds
    pooled = cache.get(ids, "pooled") if "pooled" in kinds else np.empty((len(ids), 0), np.float32)
    if "tokens" not in kinds:
        return pooled
    tokens = cache.get(ids, "tokens")
    count, width = tokens.shape[1:]
    if pooled.shape[1] == count * width:
        return pooled
    root = round(count**0.5)
    if root * root == count and root > side:
        maps = torch.from_numpy(tokens).transpose(1, 2).unflatten(2, (root, root))
        tokens = F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2).numpy()
    return np.concatenate((pooled, tokens.reshape(len(ids), -1)), 1)
