"""Conversion of a stock ViT to core-periphery attention, with all its weights kept."""

import copy

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..model.attention import CoreAttention, core_attention
from ..model.cores import spread_points

__all__ = ["convert_vit"]

_NOISE = 0.02  # deviation of the noise that makes equal cores differ; timm initialises weights with the same


def convert_vit(
    vit: VisionTransformer,
    num_cores: int = 64,
    *,
    core_self: bool = True,
    patch_self: bool = False,
    impl: str = "auto",
) -> VisionTransformer:
    """Copy a timm ViT and let its patches attend only to cores, at a cost linear in the number of patches.

        student = veca.convert_vit(teacher, num_cores=64)

    Every weight is kept. The cores are the model's prefix tokens: the class token if there is one, then the register
    tokens, then new ones. A new core starts as the token of a grey patch, that is bias and position. Each sits at
    another of `cores.spread_points`, so the weights get inputs like those of their training. The positions of the
    prefix tokens are added to them once (timm's `no_embed_class`). Outputs differ from those of `vit`, because its
    patches no longer attend to each other. The copy is meant as the start of a distillation.

    Args:
        vit: an instance of timm's VisionTransformer, not of a subclass, with timm's Attention in every block.
        num_cores: C, at least the number of prefix tokens of `vit`.
        core_self, patch_self, impl: arguments of `core_attention`.

    Returns:
        A VisionTransformer in the mode, dtype and device of `vit`, which does not change. Its `num_prefix_tokens`
        is `num_cores`. `forward_features`, `forward_intermediates`, heads and pooling work as before. Its weights
        load into `timm.create_model(name, reg_tokens=num_cores - 1, no_embed_class=True,
        attn_layer=veca.core_attention(num_cores))`. Without a class token, `reg_tokens` is `num_cores`.

    Raises:
        TypeError: another architecture or attention; the message names the class.
        ValueError: fewer cores than prefix tokens, or dropout of attention weights.
    """
    _check(vit, num_cores)
    layer = core_attention(num_cores, core_self=core_self, patch_self=patch_self, impl=impl)
    model = copy.deepcopy(vit)
    _add_cores(model, num_cores)
    for block in model.blocks:
        block.attn = _swap(block.attn, layer)
    return model


def _check(vit: VisionTransformer, num_cores: int) -> None:
    if type(vit) is not VisionTransformer:
        kind = type(vit).__name__
        wrapped = "; convert its `.model`" if type(getattr(vit, "model", None)) is VisionTransformer else ""
        raise TypeError(f"expected timm's VisionTransformer, whose attention can be swapped, got {kind}{wrapped}")
    for index, block in enumerate(vit.blocks):
        attention = getattr(block, "attn", None)
        if type(attention) is not Attention:
            inside = "" if attention is None else f" with {type(attention).__name__}"
            raise TypeError(f"expected timm's Attention in block {index}, got {type(block).__name__}{inside}")
        if getattr(attention, "gate", None) is not None:
            raise TypeError(f"expected an Attention without gate in block {index}, got a gated one")
        dim = attention.qkv.in_features
        if not dim == attention.num_heads * attention.head_dim == attention.proj.out_features:
            raise TypeError(
                f"expected heads as wide as the tokens in block {index}, got an Attention of "
                f"{attention.num_heads} heads of {attention.head_dim} for {dim} channels"
            )
        if attention.attn_drop.p:
            raise ValueError(f"expected attn_drop=0, core attention has no dropout, got {attention.attn_drop.p}")
    if isinstance(num_cores, bool) or not isinstance(num_cores, int):
        raise TypeError(f"expected num_cores to be an int, got {type(num_cores).__name__}")
    if num_cores < max(vit.num_prefix_tokens, 1):
        raise ValueError(
            f"expected num_cores of at least {max(vit.num_prefix_tokens, 1)}, the prefix tokens of this model, "
            f"got {num_cores}"
        )


@torch.no_grad()
def _add_cores(model: VisionTransformer, num_cores: int) -> None:
    """Turn the prefix tokens into `num_cores` cores, and remove their positions from the position table."""
    prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
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
    model.num_prefix_tokens = num_cores
    model.num_reg_tokens = num_cores - own
    if hasattr(model.patch_drop, "num_prefix_tokens"):
        model.patch_drop.num_prefix_tokens = num_cores


def _grey_tokens(model: VisionTransformer, count: int) -> Tensor:
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


def _swap(attention: Attention, layer: type[CoreAttention]) -> CoreAttention:
    """A core attention with the modules of a stock attention."""
    swapped = layer(attention.qkv.in_features, attention.num_heads, device="meta")
    for name in ("qkv", "q_norm", "k_norm", "norm", "proj", "proj_drop"):
        setattr(swapped, name, getattr(attention, name))
    return swapped.train(attention.training)
