"""The plain ViT that was trained as `veca_nano_patch8` was: to compare with, offline.

    vit = load_vit_nano()
    vit.forward_features(images)  # (B, 65, 192), the class token first

Its file keeps eight bits a number, so that both models fit in a small package.
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
    """timm's ViT with the width, depth, heads and patch of a VECA, and very nearly its parameters: the baseline.

    Its MLP has two matrices of 4 E where VECA's SwiGLU has three of 8/3 E, and it has a class token and learned
    positions where VECA has cores.

    Args:
        model: the VECA.
        img_size: side of the training images, pixels: the size of the position table. Other sizes interpolate.
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
    """timm's ViT of the width, depth, heads and patch of `veca_nano_patch8`, trained by `nano_scenes()`; eval mode.

    For images of 64 pixels and, its positions interpolated, of other multiples of 8.
    """
    vit = equal_vit(create_model("veca_nano_patch8"), img_size=64)
    vit.load_state_dict(unpack_rows(load_file(_FILE)))
    return vit.eval()


def pack_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and filters as int8 with a scale for each row, `name.scale`, largest magnitude 127; the rest as fp16.

    Args:
        weights: by name; rows are along the first axis of tensors with two or four.
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
    """The weights that `pack_rows` packed, fp32; each within half a step of its row, 1/254 of the row's largest."""
    weights = {}
    for name, value in packed.items():
        scale = packed.get(name + _SCALE)
        if scale is not None:
            weights[name] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        elif not name.endswith(_SCALE):
            weights[name] = value.float()
    return weights
