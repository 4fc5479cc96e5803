"""The rotation of the patches' q and k. Our op does it inside its kernels; a peer must do it before.

A pair (x[2i], x[2i + 1]) turns by the angle i of its patch. The arithmetic is fp32, and the result has the dtype of x.
On CUDA, peers use one compiled elementwise kernel. Its time counts as theirs, forward and backward.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .floors import AttentionCase

__all__ = ["angle_tables", "refused_tables", "rotate", "rotation"]


@functools.lru_cache(maxsize=8)
def angle_tables(
    patches: int, head_dim: int, dtype: str, device: torch.device, unturned: int = 0
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of random angles, each (unturned + patches, D/2). The first `unturned` rows do not rotate."""
    generator = torch.Generator().manual_seed(3)
    angles = 6 * torch.rand(patches, head_dim // 2, generator=generator)
    angles = torch.cat((angles.new_zeros(unturned, head_dim // 2), angles))
    return tuple(table.to(device, getattr(torch, dtype)) for table in (angles.cos(), angles.sin()))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, H, P, D) by tables (P, D/2). The result has the memory order and the dtype of x, also in fp64."""
    if x.stride(1) < x.stride(2):  # token-major
        return _rotate(x.transpose(1, 2), cos[:, None], sin[:, None]).transpose(1, 2)
    return _rotate(x, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.to(wide), sin.to(wide)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def rotation(case: AttentionCase, device: torch.device, unturned: int = 0) -> Callable[[Tensor], Tensor]:
    """The function that a peer calls on q or k of the patches.

    Args:
        case: the shape, which must have tables.
        device: device of the tables.
        unturned: number of cores before the patches, which do not rotate.
    """
    cos, sin = angle_tables(case.P, case.D, case.tables, device, unturned)
    turn = _compiled() if device.type == "cuda" else rotate
    return lambda x: turn(x, cos, sin)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(rotate, dynamic=False, fullgraph=True)


def refused_tables(case: AttentionCase) -> str:
    """The error message of our op for tables and inputs of these dtypes; empty if it takes them."""
    from veca_kernels import core_periphery_attention

    x = torch.zeros(1, 1, 2, case.D, dtype=getattr(torch, case.dtype))
    tables = angle_tables(1, case.D, case.tables, x.device)
    try:
        core_periphery_attention(x, x, x, 1, patch_rope=tables, impl="reference")
    except (TypeError, ValueError) as error:
        return str(error)
    return ""
