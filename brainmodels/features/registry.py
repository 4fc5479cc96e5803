"""Find an extractor by its name.

extractor("gabor", scales=3)
extractor("veca_small_patch16", weights="folder", num_cores=16)
layer_extractors("vit_base_patch16_224", (2, 5, 8), weights="weights.safetensors")  # three, of one model
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import timm

from veca.zoo.plain_vit import load_vit_nano
from veca.zoo.sizes import VARIANTS

from ..errors import BrainDataError, near_names
from .base import Extractor
from .controls import Gabor, Grid, Pixels, RandomConv
from .networks import VECAFeatures, veca_features
from .torchvision_towers import TorchvisionFeatures, torchvision_features
from .towers import OpenCLIPFeatures, TimmFeatures, open_clip_features, timm_features

__all__ = ["extractor", "layer_extractors", "option_defaults"]

SHIPPED_VIT = "vit_nano_patch8"
CONTROLS = {"pixels": Pixels, "grid": Grid, "gabor": Gabor, "random_conv": RandomConv}
_NOT_IN_WORDS = {"model", "name", "pretrained", "num_cores", "model_options", "random_seed", "options"}


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
    | "torchvision:" and a name of `torchvision.models` | that classifier |
    | any name of timm | that model |

    Args:
        name: One of the names above.
        options: Arguments of `Pixels`, `Grid`, `Gabor`, `RandomConv`, `veca_features`, `open_clip_features`,
            `torchvision_features` or `timm_features`.

    Raises:
        BrainDataError: An unknown name; the message lists the nearest known ones.
    """
    if name == SHIPPED_VIT:
        return TimmFeatures(load_vit_nano(), name, **options)
    return _makers(name)[0](name, **options)


def layer_extractors(name: str, layers: Sequence[Any], **options: Any) -> list[Extractor]:
    """Extractors of several layers of one model, whose weights are in memory once.

    Args:
        name: As in `extractor`.
        layers: Layers, in the numbers or names of that model.
        options: Further arguments, as in `extractor`.

    Raises:
        BrainDataError: As in `extractor`, or a control, which has no layers.
    """
    if name in CONTROLS:
        raise BrainDataError(f"expected a network for layers {', '.join(map(str, layers))}, got the control {name!r}")
    first: Any = extractor(name, layer=layers[0], **options)
    return [first, *(first.at_layer(layer) for layer in layers[1:])]


def option_defaults(name: str) -> dict[str, Any]:
    """Options that an extractor takes in a word of the command line, with their defaults; see `FeatureSet.parse`.

    Args:
        name: As in `extractor`.

    Returns:
        Defaults by name, "weights" among them if the extractor can be given a file.

    Raises:
        BrainDataError: An unknown name.
    """
    known = [inspect.signature(maker).parameters for maker in _makers(name)]
    return {key: item.default for found in known for key, item in found.items() if key not in _NOT_IN_WORDS}


def _makers(name: str) -> tuple[Callable[..., Extractor], ...]:
    """The function that makes an extractor from its name, then the class that takes the function's other arguments."""
    if name in CONTROLS:
        return lambda name, **options: CONTROLS[name](**options), CONTROLS[name]
    if name == SHIPPED_VIT:
        return (TimmFeatures,)
    if name == "veca" or name in VARIANTS:
        return veca_features, VECAFeatures
    if name.startswith("open_clip:"):
        return open_clip_features, OpenCLIPFeatures
    if name.startswith("torchvision:"):
        return torchvision_features, TorchvisionFeatures
    if timm.is_model(name):
        return timm_features, TimmFeatures
    known = [*CONTROLS, "veca", *VARIANTS, *timm.list_models()]
    raise BrainDataError(
        f"expected {', '.join(CONTROLS)}, veca, a VECA size, open_clip:ARCHITECTURE, torchvision:NAME or a model of "
        f"timm, got {name!r}{near_names(name, known)}"
    )
