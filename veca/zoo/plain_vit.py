"""A plain ViT trained like `veca_nano_patch8`, as an offline baseline.

    vit = load_vit_nano()
    vit.forward_features(images)  # (B, 65, 192), the class token first

Its file has eight bits for each number, to keep the package small.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..model.backbone import VECA
from .registry import create_model

__all__ = ["equal_vit", "load_vit_nano", "pack_rows", "unpack_rows"]

_FILE = Path(__file__).parent / "weights" / "vit_nano_patch8.safetensors"
_SCALE = ".scale"


def equal_vit(model: VECA, img_size: int) -> VisionTransformer:
    """Build the baseline: timm's ViT with the width, depth, heads and patch of a VECA, and nearly as many parameters.

    Its MLP has two matrices of width 4 E where VECA's SwiGLU has three of width 8/3 E. It has a class token and learned
    positions where VECA has cores.

    Args:
        model: the VECA.
        img_size: side of the training images in pixels, the size of the position table. Other sizes interpolate it.
    """
    hidden = model.blocks[0].mlp.fc2.in_features
    return VisionTransformer(
        img_size=img_size,
        patch_size=model.patch_embed.patch_size[0],
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        mlp_ratio=1.5 * hidden / model.embed_dim,
        num_classes=0,
        dynamic_img_size=True,
    )


def load_vit_nano() -> VisionTransformer:
    """Load `equal_vit` of `veca_nano_patch8`, trained by the recipe `nano_scenes()`, in eval mode.

    It takes images of 64 pixels, or of other multiples of 8 with interpolated positions.
    """
    vit = equal_vit(create_model("veca_nano_patch8"), img_size=64)
    vit.load_state_dict(unpack_rows(load_file(_FILE)))
    return vit.eval()


def pack_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack matrices and filters as int8 with a scale for each row, and other weights as fp16.

        row = int8 * scale,    scale = max |row| / 127

    Args:
        weights: weights by name. Rows are along the first axis of tensors with two or four axes.

    Returns:
        The packed weights by name; the scales are called `name.scale`.
    """
    packed = {}
    for name, weight in weights.items():
        if weight.ndim not in (2, 4):
            packed[name] = weight.half()
            continue
        scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        shape = (-1, *[1] * (weight.ndim - 1))
        packed[name] = (weight / scale.view(shape)).round().to(torch.int8)
        packed[name + _SCALE] = scale
    return packed


def unpack_rows(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unpack the weights of `pack_rows` as fp32.

    Args:
        packed: output of `pack_rows`.

    Returns:
        Weights by name. Each differs from the original by at most 1/254 of the largest in its row.
    """
    weights = {}
    for name, value in packed.items():
        scale = packed.get(name + _SCALE)
        if scale is not None:
            weights[name] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        elif not name.endswith(_SCALE):
            weights[name] = value.float()
    return weights
