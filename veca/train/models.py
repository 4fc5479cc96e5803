"""The global token and the patch tokens of VECA, of timm's models, or of any module that returns the pair."""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..model.backbone import VECA

__all__ = ["Tokens", "freeze", "largest_batch", "load_teacher", "tokens_of"]


class Tokens(NamedTuple):
    """Features of a batch of images.

    Attributes:
        global_token: one token for each image, (B, E).
        patches: patch tokens (B, P, E), row by row.
    """

    global_token: Tensor
    patches: Tensor


def tokens_of(model: nn.Module, images: Tensor, num_cores: int | None = None) -> Tokens:
    """Features of images from any model that training supports.

    Args:
        model: a VECA, a timm model, or a module that returns the pair (global token, patches). The global token of a
            timm model is its class token, or else the mean of its patches.
        images: normalised images (B, 3, height, width).
        num_cores: budget of a VECA. Other models have none and take only None.

    Raises:
        ValueError: `num_cores` for a model without cores.
    """
    if isinstance(model, VECA):
        record = model.forward_features(images, num_cores)
        return Tokens(record.global_token, record.patches)
    if num_cores is not None:
        raise ValueError(f"expected num_cores=None for a {type(model).__name__}, which has no cores, got {num_cores}")
    if not hasattr(model, "forward_features"):
        return Tokens(*model(images))
    network: Any = model
    x = network.forward_features(images)
    if x.ndim == 4:  # a hierarchical model returns a map
        x = x if getattr(model, "output_fmt", "NCHW") == "NHWC" else x.movedim(1, -1)
        return Tokens(x.mean((1, 2)), x.flatten(1, 2))
    patches = x[:, getattr(model, "num_prefix_tokens", 0) :]
    has_class = getattr(model, "cls_token", None) is not None
    norm = getattr(model, "fc_norm", nn.Identity())  # timm has this norm in models that normalise after pooling
    return Tokens(norm(x[:, 0] if has_class else patches.mean(1)), norm(patches))


def load_teacher(name: str, weights: str | Path | None = None) -> nn.Module:
    """Load a timm model as a frozen teacher.

    Args:
        name: name of the model, such as "vit_base_patch16_dinov3.lvd1689m".
        weights: a .safetensors file, or "random" for tests. None downloads the weights of `name` from the hub.

    Raises:
        ValueError: a file of another kind.
    """
    options: dict[str, Any] = dict(pretrained=weights is None, num_classes=0)
    try:
        teacher = timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # convolutional models have no such argument and do not need it
        teacher = timm.create_model(name, **options)
    if weights is not None and weights != "random":
        if Path(weights).suffix != ".safetensors":
            raise ValueError(f"expected the teacher's weights as a .safetensors file, got {weights}")
        teacher.load_state_dict(load_file(weights))
    return freeze(teacher)


def freeze(module: nn.Module) -> nn.Module:
    """Put a module in evaluation mode without gradients, and return it."""
    return module.eval().requires_grad_(False)


def largest_batch(images: Tensor, pixels: int | None) -> int:
    """How many of the images (B, 3, height, width) may be taken at once.

    Args:
        images: the images.
        pixels: largest number of pixels; None takes all images.

    Returns:
        Number of images, at least 1.
    """
    return len(images) if pixels is None else max(pixels // torch.Size(images.shape[2:]).numel(), 1)
