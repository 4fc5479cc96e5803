"""Find an extractor by its name.

extractor("gabor", scales=3)
extractor("veca_small_patch16", weights="folder", num_cores=16)
"""

from typing import Any

import timm

from veca.zoo.plain_vit import load_vit_nano
from veca.zoo.sizes import VARIANTS

from ..errors import BrainDataError, near_names
from .base import Extractor
from .controls import Gabor, Grid, Pixels, RandomConv
from .networks import veca_features
from .towers import TimmFeatures, open_clip_features, timm_features

__all__ = ["extractor"]

SHIPPED_VIT = "vit_nano_patch8"
CONTROLS = {"pixels": Pixels, "grid": Grid, "gabor": Gabor, "random_conv": RandomConv}


def extractor(name: str, **options: Any) -> Extractor:
    """A feature extractor by name.

        extractor("gabor", scales=3)
        extractor("veca_small_patch16", weights="folder", num_cores=16, layer=-2, tokens="cores")
        extractor("vit_small_patch14_dinov2.lvd142m", weights="dinov2.safetensors")
        extractor("open_clip:ViT-bigG-14", weights="open_clip_model.safetensors", norm=False)

    | name | extractor |
    |---|---|
    | "pixels", "grid", "gabor", "random_conv" | a control that needs no weights |
    | a name of `veca.list_models()` | that VECA model |
    | "veca" | any folder of a VECA model |
    | "vit_nano_patch8" | the plain ViT that ships with this package |
    | "open_clip:" and an architecture | the image tower of that CLIP model |
    | any name of timm | that model |

    Args:
        name: One of the names above.
        options: Arguments of `Pixels`, `Grid`, `Gabor`, `RandomConv`, `veca_features`, `open_clip_features` or
            `timm_features`.

    Raises:
        BrainDataError: An unknown name; the message lists the nearest known ones.
    """
    if name in CONTROLS:
        return CONTROLS[name](**options)
    if name == SHIPPED_VIT:
        return TimmFeatures(load_vit_nano(), name, **options)
    if name == "veca" or name in VARIANTS:
        return veca_features(name, **options)
    if name.startswith("open_clip:"):
        return open_clip_features(name, **options)
    if timm.is_model(name):
        return timm_features(name, **options)
    known = [*CONTROLS, "veca", *VARIANTS, *timm.list_models()]
    raise BrainDataError(
        f"expected {', '.join(CONTROLS)}, veca, a VECA size, open_clip:ARCHITECTURE or a model of timm, got {name!r}"
        f"{near_names(name, known)}"
    )
