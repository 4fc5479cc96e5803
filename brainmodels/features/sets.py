"""Choose features by a word of the command line, and turn them into one row of numbers for each image.

features = FeatureSet.parse("veca@8")              # the shipped VECA model with 8 cores
layers = FeatureSet.parse_all(["vit_base_patch16_224:layers=2+5+8=weights.safetensors"])  # three sets, of one model
cache = FeatureCache("features", features.extractor, dataset.stimuli)
X = feature_rows(cache, train.image_ids)           # fp32 (n, p)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ..data.ids import Ids
from ..errors import BrainDataError
from . import Extractor, FeatureCache, extractor
from .registry import layer_extractors, option_defaults
from .words import Word

__all__ = ["FeatureSet", "LayerOf", "feature_rows"]

SHIPPED = "veca_nano_patch8"  # the model whose weights ship with the package
SIDE = 4  # number of cells a side of the grid on which tokens are averaged
_BLOCK = 256  # number of images whose tokens are in memory at a time


class LayerOf(NamedTuple):
    """The place of a set of features among several layers of one model.

    Attributes:
        name: Name of all layers together.
        layer: Number or name of this layer.
        select: Images on which the best layer of a region is chosen, "validation" or "folds" of the train images.
    """

    name: str
    layer: Any
    select: str


@dataclass(frozen=True)
class FeatureSet:
    """An extractor, and the name under which tables show it.

    Attributes:
        name: Name for tables.
        extractor: Extractor that makes the features.
        layer_of: Its place among several layers, of which an evaluation chooses the best by region. None for features
            that stand for themselves.
    """

    name: str
    extractor: Extractor
    layer_of: LayerOf | None = None

    @classmethod
    def parse(cls, word: str) -> "FeatureSet":
        """A feature set from a word: NAME[@CORES][:OPTION=VALUE,...][=WEIGHTS].

        | word | features |
        |---|---|
        | veca | the model whose weights ship with the package, all its cores |
        | veca@8 | the same with 8 cores |
        | veca@8:layer=-2,tokens=cores | the cores of its last block but one |
        | veca_small_patch16@16=runs/model | a folder of `save_pretrained` |
        | vit_nano_patch8 | the plain ViT that was trained as veca was |
        | vit_small_patch16_224=weights.safetensors | a model of timm |
        | vit_small_patch16_224:layer=6,pooled=cls=weights.safetensors | its class token after block 6 |
        | open_clip:ViT-L-14:tag=laion2b_s32b_b82k=clip.safetensors | an image tower of open_clip |
        | torchvision:resnet50:layer=layer3,tag=IMAGENET1K_V2=resnet50.pth | a classifier of torchvision |
        | veca_tiny_patch16=random | random weights, which every score then mentions |
        | pixels, grid, gabor, random_conv | controls that need no weights |

        Options are the arguments of the extractor, see `brainmodels.features.registry.option_defaults`. A tag is the
        name that open_clip or torchvision has for the weights; it decides how pictures are normalised.

        Args:
            word: A word in this form.

        Raises:
            BrainDataError: Another form, an unknown name or option, several layers, or an extractor without weights.
        """
        parts = Word.of(word)
        if parts.layers:
            raise BrainDataError(
                f"expected one layer, such as layer={parts.layers[0]}, got {word!r}; only the features of `veca brain "
                "evaluate` may have several"
            )
        return cls.parse_all([word])[0]

    @classmethod
    def parse_all(cls, words: Sequence[str]) -> "list[FeatureSet]":
        """Feature sets from words, in which one model may have several layers.

        The word NAME:layers=2+5+8 stands for one set a layer. An evaluation then also chooses the best layer of each
        region: on validation images with `select=validation`, the default, or on folds of the train images with
        `select=folds`. Test images have no part in it.

        Args:
            words: Words as in `parse`.

        Raises:
            BrainDataError: As in `parse`, or layers that repeat.
        """
        found: list[FeatureSet] = []
        for word in words:
            parts = Word.of(word)
            name, options = parts.name, dict(parts.options)
            if parts.weights:
                options["weights"] = parts.weights
            elif name in ("veca", SHIPPED):
                name, options["pretrained"] = SHIPPED, True
            parts.check(option_defaults(name))
            random = ", random weights" if parts.weights == "random" else ""
            if not parts.layers:
                found.append(cls(parts.shown + random, extractor(name, **options)))
                continue
            made = layer_extractors(name, parts.layers, **options)
            for layer, one in zip(parts.layers, made, strict=True):
                told = parts.shown.replace(f"layers={'+'.join(map(str, parts.layers))}", f"layer={layer}")
                told = told.replace(f",select={parts.select}", "").replace(f"select={parts.select},", "")
                found.append(cls(told + random, one, LayerOf(parts.shown + random, layer, parts.select)))
        return found


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
