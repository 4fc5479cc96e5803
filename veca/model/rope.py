"""Rotary position embedding in two dimensions: coordinates become angles.

    angle_k = 2 pi coordinate / period_k,    period_k = base ** (k / (D/4)),    k = 0 .. D/4 - 1

One angle turns one pair of channels. The first half of the D channels follows x, the second half y; pairs are
neighbours, (2k, 2k+1), unless a model is built with the "half" layout. Tables are fp32 and come from shapes
alone, so nothing here is a parameter or a buffer, and a model cast to bf16 keeps exact positions.

Shapes: B images, C cores, P patches, N of either, D head dim.
"""

import math

import torch
from torch import Tensor
from veca_kernels import rotate_tokens

__all__ = [
    "augment_coordinates",
    "interleaved_rows",
    "patch_coordinates",
    "rope_periods",
    "rope_tables",
    "rotate",
    "tables_for",
]


def rope_periods(
    head_dim: int, base: float = 100.0, zero_low: float = 0.125, device: torch.device | None = None
) -> Tensor:
    """Periods of the pairs of one axis, shortest first, in units of half the image.

    Args:
        head_dim: D, a multiple of 4.
        base: ratio between the longest period, were it not left out, and the shortest.
        zero_low: share of the pairs, those of lowest frequency, that never turn; their period is infinite.
        device: where the result lives.

    Returns:
        (D/4,), fp32.
    """
    pairs = head_dim // 4
    index = torch.arange(pairs, device=device)
    periods = torch.pow(base, index.to(torch.float32) / pairs)
    return periods.masked_fill(index >= pairs - round(zero_low * pairs), math.inf)


def patch_coordinates(rows: int, cols: int, coord_norm: str = "separate", device: torch.device | None = None) -> Tensor:
    """Centres of the cells of a grid, (x, y) in that order, row by row.

        x_j = (2j + 1 - cols) / span,    y_i = (2i + 1 - rows) / span

    Args:
        rows, cols: the grid.
        coord_norm: "separate" spans [-1, 1] on each axis; "max" does so on the longer one and "min" on the
            shorter one, which keeps the aspect ratio.
        device: where the result lives.

    Returns:
        (P, 2), fp32, P = rows * cols.
    """
    if coord_norm == "separate":
        span_x, span_y = cols, rows
    else:
        span_x = span_y = max(rows, cols) if coord_norm == "max" else min(rows, cols)
    x = (2 * torch.arange(cols, device=device) + 1 - cols).to(torch.float32) / span_x
    y = (2 * torch.arange(rows, device=device) + 1 - rows).to(torch.float32) / span_y
    return torch.stack((x.expand(rows, cols), y[:, None].expand(rows, cols)), dim=-1).flatten(0, 1)


def augment_coordinates(xy: Tensor, shift: float, scale: float) -> Tensor:
    """Shift, then scale all coordinates by one random draw, so that a model trusts relative positions.

    Args:
        xy: (..., 2).
        shift: each axis moves by U(-shift, shift).
        scale: at least 1; both axes are multiplied by one log-uniform factor in [1/scale, scale].

    Returns:
        Same shape as `xy`.
    """
    draw = 2 * torch.rand(3, device=xy.device) - 1
    return (xy + shift * draw[:2]) * torch.exp(math.log(scale) * draw[2])


def rope_tables(xy: Tensor, periods: Tensor, axis_order: str = "xy") -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of every channel pair; differentiable in the coordinates.

    Args:
        xy: (..., 2).
        periods: (D/4,), from `rope_periods`.
        axis_order: "xy" gives the first half of the channels to x, "yx" to y.

    Returns:
        (cos, sin), each (..., D/2).
    """
    if axis_order == "yx":
        xy = xy.flip(-1)
    angles = (2 * math.pi * xy[..., None] / periods).flatten(-2)
    return angles.cos(), angles.sin()


def tables_for(tables: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The tables of the patches in the precision that attention over `x` should read.

    The kernels read the tables once a head and tile. In fp32 that is as much as the keys and values in 16 bits. fp16
    halves it, and rounds cos and sin an eighth as much as bf16 rounds the products.

    Args:
        tables: (cos, sin), fp32.
        x: Tokens. Autocast, where it is on, decides the dtype of the attention instead.

    Returns:
        fp16 tables for 16-bit attention on a GPU, else the tables as they are.
    """
    if x.device.type != "cuda":
        return tables
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return tables
    cos, sin = tables
    return cos.half(), sin.half()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channel pairs counter-clockwise, in fp32, with one rounding at the end.

        (a, b) -> (a cos - b sin, a sin + b cos)

    Args:
        x: token-major, (B, N, ..., H, D).
        cos, sin: (N, D/2) or (B, N, D/2).

    Returns:
        Same shape and dtype as `x`.
    """
    return rotate_tokens(x, cos, sin)


def interleaved_rows(head_dim: int, num_heads: int, device: torch.device | None = None) -> Tensor:
    """Where to find the rows of a fused qkv projection in the "half" layout, listed in interleaved order.

    The "half" layout (DINOv3) pairs channel k of a head with k + D/2. `weight[interleaved_rows(D, H)]` gives
    equal scores under this module's rotation; rows of v stay where they are.

    Returns:
        (3 H D,), int64.
    """
    rows = torch.arange(3 * num_heads * head_dim, device=device).view(3, num_heads, head_dim)
    pairs = rows[:2].unflatten(-1, (2, head_dim // 2)).transpose(-2, -1).flatten(-2)  # (2, H, D)
    return torch.cat((pairs, rows[2:])).flatten()
