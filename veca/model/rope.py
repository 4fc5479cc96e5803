"""Rotary position embedding in two dimensions: coordinates become angles.

    angle_k = 2 pi coordinate / period_k,    period_k = base ** (k / (D/4)),    k = 0 .. D/4 - 1

One angle turns one pair of channels. The first half of the D channels follows x, the second half y. A pair is two
neighbours (2k, 2k+1), unless a model is built with the "half" layout. Tables are fp32 and follow from shapes alone.
Nothing here is a parameter or a buffer, so a model cast to bf16 keeps exact positions.

Shapes: B images, C cores, P patches, N of either, D head dim.
"""

import math

import torch
from torch import Tensor
from veca_kernels import rotate_tokens

__all__ = [
    "augment_coordinates",
    "interleave_halves",
    "patch_coordinates",
    "rope_periods",
    "rope_tables",
    "rotate",
    "tables_for",
]


def rope_periods(
    head_dim: int, base: float = 100.0, zero_low: float = 0.125, device: torch.device | None = None
) -> Tensor:
    """Periods of the channel pairs of one axis, shortest first, in units of half the image.

    Args:
        head_dim: D, a multiple of 4.
        base: base of the periods. The period of pair k is base ** (k / (D/4)).
        zero_low: share of the pairs that never turn, those of lowest frequency. Their period is infinite.
        device: device of the result.

    Returns:
        (D/4,), fp32.
    """
    pairs = head_dim // 4
    index = torch.arange(pairs, device=device)
    periods = torch.pow(base, index.to(torch.float32) / pairs)
    return periods.masked_fill(index >= pairs - round(zero_low * pairs), math.inf)


def patch_coordinates(rows: int, cols: int, coord_norm: str = "separate", device: torch.device | None = None) -> Tensor:
    """Centres (x, y) of the cells of a grid, row by row.

        x_j = (2j + 1 - cols) / span,    y_i = (2i + 1 - rows) / span

    Args:
        rows, cols: size of the grid.
        coord_norm: which axis spans [-1, 1]: "separate" both, "max" the longer one, "min" the shorter one. The last
            two keep the aspect ratio.
        device: device of the result.

    Returns:
        (P, 2), fp32, P = rows * cols.
    """
    if coord_norm == "separate":
        span_x, span_y = cols, rows
    else:
        span_x = span_y = max(rows, cols) if coord_norm == "max" else min(rows, cols)
    x = (2 * torch.arange(cols, device=device) + 1 - cols).to(torch.float32) / span_x
    y = (2 * torch.arange(rows, device=device) + 1 - rows).to(torch.float32) / span_y
    return torch.stack((x.expand(rows, cols), y[:, None].expand(rows, cols)), dim=-1).flatten(0, 1)  # (P, 2)


def augment_coordinates(xy: Tensor, shift: float, scale: float) -> Tensor:
    """Shift and scale all coordinates by one random draw, so that a model learns relative positions.

    Args:
        xy: coordinates (..., 2).
        shift: each axis moves by a number uniform in [-shift, shift].
        scale: at least 1; both axes are multiplied by one log-uniform factor in [1/scale, scale].

    Returns:
        Same shape as `xy`.
    """
    draw = 2 * torch.rand(3, device=xy.device) - 1
    return (xy + shift * draw[:2]) * torch.exp(math.log(scale) * draw[2])


def rope_tables(xy: Tensor, periods: Tensor, axis_order: str = "xy") -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of every channel pair, differentiable in the coordinates.

    Args:
        xy: coordinates (..., 2).
        periods: periods (D/4,), from `rope_periods`.
        axis_order: "xy" gives the first half of the channels to x, "yx" to y.

    Returns:
        (cos, sin), each (..., D/2).
    """
    if axis_order == "yx":
        xy = xy.flip(-1)
    angles = (2 * math.pi * xy[..., None] / periods).flatten(-2)  # (..., 2, D/4) -> (..., D/2)
    return angles.cos(), angles.sin()


def tables_for(tables: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The tables of the patches in the precision that attention over `x` should read.

    The kernels read the tables once for each head and tile. In fp32, the tables take as many bytes as keys and
    values of 16 bits. In fp16 they take half as many. Rounding cos and sin to fp16 costs an eighth of the error of
    rounding the products to bf16.

    Args:
        tables: (cos, sin), fp32.
        x: tokens. Autocast, where it is on, decides the dtype of the attention instead.

    Returns:
        fp16 tables for 16-bit attention on a GPU, else the tables unchanged.
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
        x: token-major tensor (B, N, ..., H, D).
        cos, sin: tables (N, D/2) or (B, N, D/2).

    Returns:
        Same shape and dtype as `x`.
    """
    return rotate_tokens(x, cos, sin)


def interleave_halves(qkv: Tensor) -> Tensor:
    """Bring the q and k of a fused projection from the "half" to the interleaved order.

    The "half" layout (DINOv3) pairs channel k of a head with k + D/2. Scores under this module's rotation are then
    equal. The order of v does not change.

    Args:
        qkv: q, k and v (..., 3, H, D).

    Returns:
        A copy of the same shape.
    """
    qk, v = qkv.split((2, 1), dim=-3)
    qk = qk.unflatten(-1, (2, -1)).transpose(-2, -1).flatten(-2)  # (..., 2, H, D)
    return torch.cat((qk, v), -3)
