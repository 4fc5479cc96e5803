"""Conversion of a stock ViT to core-periphery attention, with all its weights kept."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models import Eva, VisionTransformer
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from ..model.attention import CoreAttention, core_attention
from ..model.cores import spread_points
from .rotary import RotaryCoreAttention, fused_qkv

__all__ = ["convert_vit", "drop_in"]

_KINDS = {VisionTransformer: (Attention,), Eva: (EvaAttention, AttentionRope)}  # models, attentions of their blocks
_ROTATIONS = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3)  # one table for all heads and blocks
_NOISE = 0.02  # deviation of the noise that makes equal cores differ; timm initialises weights with the same


def drop_in(
    name: str,
    num_cores: int = 64,
    *,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    core_self: bool = True,
    patch_self: bool = False,
    impl: str = "auto",
    **options: Any,
) -> VisionTransformer | Eva:
    """Build a timm ViT with core attention, and load weights of the stock model into it.

        model = veca.drop_in("vit_small_patch16_224", num_cores=64, pretrained=True)

    This is `convert_vit` of timm's model. The prefix tokens are the cores, and the attention of every block is swapped,
    or the name is refused. `state_dict` of the result loads into another `drop_in` of the same arguments.

    Args:
        name: name of a ViT or Eva model in timm, such as "vit_small_patch16_dinov3".
        num_cores: C, at least the number of prefix tokens of the stock model.
        pretrained: load timm's weights, which are downloaded.
        checkpoint_path: file with weights of the stock model, in place of `pretrained`.
        core_self, patch_self, impl: arguments of `core_attention`.
        options: arguments of `timm.create_model`. `dynamic_img_size` is True unless given.

    Returns:
        The model in training mode.

    Raises:
        TypeError: a name of another architecture or attention.
        ValueError: fewer cores than prefix tokens, dropout of attention weights, or two sources of weights.
        RuntimeError: a name that timm does not know, or weights that do not fit.
    """
    if pretrained and checkpoint_path is not None:
        raise ValueError(f"expected pretrained or checkpoint_path, got both, {checkpoint_path}")
    with torch.device("meta"):  # a name is refused before its weights are downloaded
        hollow: Any = timm.create_model(name, **options)
        _check(hollow, num_cores)
    options = dict(dynamic_img_size=True) | options
    stock: Any = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint_path or "", **options)
    return convert_vit(stock, num_cores, core_self=core_self, patch_self=patch_self, impl=impl)


def convert_vit(
    vit: VisionTransformer | Eva,
    num_cores: int = 64,
    *,
    core_self: bool = True,
    patch_self: bool = False,
    impl: str = "auto",
) -> VisionTransformer | Eva:
    """Copy a timm ViT and let its patches attend only to cores, at a cost linear in the number of patches.

        student = veca.convert_vit(teacher, num_cores=64)

    Every weight is kept. The cores are the model's prefix tokens: the class token if there is one, then the register
    tokens, then new ones. A new core starts as the token of a grey patch, that is bias and position. Each sits at
    another of `cores.spread_points`, so the weights get inputs like those of their training. The positions of the
    prefix tokens are added to them once (timm's `no_embed_class`). In a model with rotary positions, such as DINOv3,
    cores are not rotated, as its prefix tokens are not. Outputs differ from those of `vit`, because its patches no
    longer attend to each other. The copy is meant as the start of a distillation.

    Args:
        vit: an instance of timm's VisionTransformer or Eva, not of a subclass, with timm's attention in every block.
        num_cores: C, at least the number of prefix tokens of `vit`.
        core_self, patch_self, impl: arguments of `core_attention`.

    Returns:
        A model of the class, mode, dtype and device of `vit`, which does not change. Its `num_prefix_tokens`
        is `num_cores`. `forward_features`, `forward_intermediates`, heads and pooling work as before. The weights of a
        VisionTransformer load into `timm.create_model(name, reg_tokens=num_cores - 1, no_embed_class=True,
        attn_layer=veca.core_attention(num_cores))`. Without a class token, `reg_tokens` is `num_cores`. Those of
        every model load into `drop_in` of its name. In Eva models, q, k and v are in one layer afterwards.

    Raises:
        TypeError: another architecture, stem or attention; the message names the class.
        ValueError: fewer cores than prefix tokens, or dropout of attention weights.
    """
    _check(vit, num_cores)
    options: dict[str, Any] = dict(core_self=core_self, patch_self=patch_self, impl=impl)
    layer: Callable[..., CoreAttention] = core_attention(num_cores, **options)
    if isinstance(vit, Eva):
        layer = partial(RotaryCoreAttention, num_cores=num_cores, **options)
    model = copy.deepcopy(vit)
    _add_cores(model, num_cores)
    blocks: Any = model.blocks
    for block in blocks:
        block.attn = _swap(block.attn, layer)
    return model


def _check(vit: VisionTransformer | Eva, num_cores: int) -> None:
    if type(vit) not in _KINDS:
        kind = type(vit).__name__
        wrapped = "; convert its `.model`" if type(getattr(vit, "model", None)) in _KINDS else ""
        raise TypeError(f"expected timm's {_listed(_KINDS)}, whose attention can be swapped, got {kind}{wrapped}")
    if type(vit.patch_embed) is not PatchEmbed:
        stem = type(vit.patch_embed).__name__
        backbone = getattr(vit.patch_embed, "backbone", None)
        inside = "" if backbone is None else f" with {type(backbone).__name__}"
        raise TypeError(f"expected timm's PatchEmbed as the stem, got {stem}{inside}")
    rope = getattr(vit, "rope", None)
    if rope is not None and type(rope) not in _ROTATIONS:
        raise TypeError(f"expected rotary positions of {_listed(_ROTATIONS)}, got {type(rope).__name__}")
    for index, block in enumerate(vit.blocks):
        _check_block(index, block, _KINDS[type(vit)])
    if isinstance(num_cores, bool) or not isinstance(num_cores, int):
        raise TypeError(f"expected num_cores to be an int, got {type(num_cores).__name__}")
    if num_cores < max(vit.num_prefix_tokens, 1):
        raise ValueError(
            f"expected num_cores of at least {max(vit.num_prefix_tokens, 1)}, the prefix tokens of this model, "
            f"got {num_cores}"
        )


def _check_block(index: int, block: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    attention: Any = getattr(block, "attn", None)
    if type(attention) not in kinds:
        inside = "" if attention is None else f" with {type(attention).__name__}"
        raise TypeError(f"expected timm's {_listed(kinds)} in block {index}, got {type(block).__name__}{inside}")
    if getattr(attention, "gate", None) is not None:
        raise TypeError(f"expected an Attention without gate in block {index}, got a gated one")
    if getattr(attention, "num_kv_groups", 1) != 1:
        raise TypeError(f"expected as many heads of k as of q in block {index}, got {attention.num_kv_heads}")
    if getattr(attention, "rotate_half", False) and not isinstance(attention.q_norm, nn.Identity):
        raise TypeError(f"expected no norm of q and k beside rotated halves in block {index}, got one")
    dim = (attention.q_proj if attention.qkv is None else attention.qkv).in_features
    if not dim == attention.num_heads * attention.head_dim == attention.proj.out_features:
        raise TypeError(
            f"expected heads as wide as the tokens in block {index}, got an Attention of "
            f"{attention.num_heads} heads of {attention.head_dim} for {dim} channels"
        )
    if attention.attn_drop.p:
        raise ValueError(f"expected attn_drop=0, core attention has no dropout, got {attention.attn_drop.p}")


def _listed(kinds: Any) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


@torch.no_grad()
def _add_cores(model: VisionTransformer | Eva, num_cores: int) -> None:
    """Turn the prefix tokens into `num_cores` cores, and remove their positions from the position table."""
    prefix: list[Tensor] = [token for token in (model.cls_token, model.reg_token) if token is not None]
    width, old = model.embed_dim, model.num_prefix_tokens
    tokens = torch.cat(prefix, 1) if prefix else model.patch_embed.proj.weight.new_zeros(1, 0, width)
    if model.pos_embed is not None and not model.no_embed_class and old:
        tokens = tokens + model.pos_embed[:, :old]
        model.pos_embed = nn.Parameter(model.pos_embed[:, old:].clone(), model.pos_embed.requires_grad)
    model.no_embed_class = True
    tokens = torch.cat((tokens, _grey_tokens(model, num_cores)[:, old:].to(tokens)), 1)
    own = 1 if model.cls_token is not None else 0
    if own:
        model.cls_token = nn.Parameter(tokens[:, :1].clone())
    model.reg_token = nn.Parameter(tokens[:, own:].clone()) if num_cores > own else None
    counted: Any = model
    counted.num_prefix_tokens = num_cores
    if hasattr(model, "num_reg_tokens"):
        counted.num_reg_tokens = num_cores - own
    if hasattr(model.patch_drop, "num_prefix_tokens"):
        counted.patch_drop.num_prefix_tokens = num_cores


def _grey_tokens(model: VisionTransformer | Eva, count: int) -> Tensor:
    """Tokens (1, count, E) that patches without contrast would have at points spread over the image."""
    weight = model.patch_embed.proj.weight
    rows, cols = model.patch_embed.grid_size
    sides = [n * p for n, p in zip((rows, cols), model.patch_embed.patch_size, strict=True)]
    patches = model.patch_embed(weight.new_zeros(1, weight.shape[1], *sides)).reshape(1, rows * cols, -1)
    if model.pos_embed is not None:
        patches = patches + model.pos_embed
    points = spread_points(count).to(weight.device)
    maps = patches.float().transpose(1, 2).unflatten(2, (rows, cols))
    grey = F.grid_sample(maps, points[None, None], padding_mode="border", align_corners=False)  # (1, E, 1, count)
    noise = torch.randn(count, maps.shape[1], generator=torch.Generator().manual_seed(0))
    return grey[:, :, 0].transpose(1, 2) + _NOISE * noise.to(weight.device)


def _swap(attention: Any, layer: Callable[..., CoreAttention]) -> CoreAttention:
    """A core attention with the modules of a stock attention."""
    qkv = fused_qkv(attention)
    options = dict(rope_layout="half") if getattr(attention, "rotate_half", False) else {}
    swapped = layer(qkv.in_features, attention.num_heads, device="meta", **options)
    swapped.qkv = qkv
    for name in ("q_norm", "k_norm", "norm", "proj", "proj_drop"):
        setattr(swapped, name, getattr(attention, name))
    return swapped.train(attention.training)
