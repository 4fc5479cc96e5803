"""One global token and one token a patch, from whatever gives them: VECA, timm's models, any module of a pair."""

from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..model.backbone import VECA

__all__ = ["Tokens", "freeze", "largest_batch", "load_teacher", "tokens_of"]


class Tokens(NamedTuple):
    """Features of a batch of images.

    Attributes:
        global_token: (B, E).
        patches: (B, P, E), row by row.
    """

    global_token: Tensor
    patches: Tensor


def tokens_of(model: nn.Module, images: Tensor, num_cores: int | None = None) -> Tokens:
    """Features of images by any of the models that training knows.

    Args:
        model: a VECA; a model of timm, whose class token is the global one, or else the mean of its patches; or a
            module that returns the pair (global token, patches).
        images: (B, 3, height, width), normalised.
        num_cores: budget of a VECA; the others have none, and take None only.
    """
    if isinstance(model, VECA):
        record = model.forward_features(images, num_cores)
        return Tokens(record.global_token, record.patches)
    if num_cores is not None:
        raise ValueError(f"expected num_cores=None for a {type(model).__name__}, which has no cores, got {num_cores}")
    if not hasattr(model, "forward_features"):
        return Tokens(*model(images))
    x = model.forward_features(images)
    if x.ndim == 4:  # a map, of a hierarchical model
        x = x if getattr(model, "output_fmt", "NCHW") == "NHWC" else x.movedim(1, -1)
        return Tokens(x.mean((1, 2)), x.flatten(1, 2))
    patches = x[:, getattr(model, "num_prefix_tokens", 0) :]
    has_class = getattr(model, "cls_token", None) is not None
    norm = getattr(model, "fc_norm", nn.Identity())  # of models that normalise after pooling, where timm has it
    return Tokens(norm(x[:, 0] if has_class else patches.mean(1)), norm(patches))


def load_teacher(name: str, weights: str | Path | None = None) -> nn.Module:
    """A model of timm, frozen.

    Args:
        name: of the model, such as "vit_base_patch16_dinov3.lvd1689m".
        weights: a .safetensors file; "random" for tests; None asks the hub for the weights that `name` stands for.
    """
    options = dict(pretrained=weights is None, num_classes=0)
    try:
        teacher = timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # convolutions know no such argument, and need none
        teacher = timm.create_model(name, **options)
    if weights is not None and weights != "random":
        if Path(weights).suffix != ".safetensors":
            raise ValueError(f"expected the teacher's weights as a .safetensors file, got {weights}")
        teacher.load_state_dict(load_file(weights))
    return freeze(teacher)


def freeze(module: nn.Module) -> nn.Module:
    """The module itself, in evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)


def largest_batch(images: Tensor, pixels: int | None) -> int:
    """How many of the images (B, 3, height, width) to take at once so that they hold at most so many pixels."""
    return len(images) if pixels is None else max(pixels // torch.Size(images.shape[2:]).numel(), 1)
