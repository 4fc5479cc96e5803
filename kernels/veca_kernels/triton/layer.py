"""From tensors to launches of the row kernels: buffers, tiles, programs.

A program of the backward walks over several tiles. So the partial sums stay small, and their number depends on shapes
and the device only. Two runs give the same bits.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ..devices import device_facts
from . import gate, norm
from .plan import launch

_TILE = 1024  # numbers of each operand that a tile of 4 warps holds: 8 a thread
_PROGRAMS_PER_SM = 8
_GATE_BLOCK = 1024


def norm_forward(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Does what `layer_torch.norm_forward` does, for x (..., E). total is empty where it would be x."""
    rows, tile = x.numel() // x.shape[-1], _row_tile(x.shape[-1])
    total = None if branch is None else x.new_empty(x.shape, dtype=_total_dtype(x, branch, scale))
    normed = x.new_empty(x.shape, dtype=dtype)
    mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) for _ in range(2))
    launch(
        norm.norm_forward,
        triton.cdiv(rows, tile["BR"]),
        x.device,
        x=x.contiguous(),
        branch=None if branch is None else branch.contiguous(),
        scale=None if scale is None else scale.contiguous(),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        total=total,
        normed=normed,
        mean=mean,
        rstd=rstd,
        eps=eps,
        R=rows,
        **tile,
    )
    return x.new_empty(0) if total is None else total, normed, mean, rstd


def norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of total, of the branch in `dtype` (empty for None), and of weight, bias and scale (2 or 3, E)."""
    rows, width = total.numel() // total.shape[-1], total.shape[-1]
    tile = _row_tile(width)
    tiles = triton.cdiv(rows, tile["BR"])
    most = _PROGRAMS_PER_SM * device_facts(total.device)[0]
    tiles_per_program = max(triton.cdiv(tiles, most), 1)
    programs = triton.cdiv(tiles, tiles_per_program)
    d_total = total.new_empty(total.shape)
    d_branch = None if dtype is None else total.new_empty(total.shape, dtype=dtype)
    sums = total.new_empty((programs, 2 if scale is None else 3, width), dtype=torch.float32)
    launch(
        norm.norm_backward,
        programs,
        total.device,
        grad=grad.contiguous(),
        grad_total=None if grad_total is None else grad_total.contiguous(),
        total=total.contiguous(),
        mean=mean,
        rstd=rstd,
        weight=weight.contiguous(),
        branch=None if scale is None or branch is None else branch.contiguous(),
        scale=None if scale is None else scale.contiguous(),
        d_total=d_total,
        d_branch=d_branch,
        sums=sums,
        R=rows,
        tiles_per_program=tiles_per_program,
        **tile,
    )
    return d_total, total.new_empty(0) if d_branch is None else d_branch, sums.sum(0)


def gate_forward(x: Tensor) -> Tensor:
    """Does what `layer_torch.gate_forward` does, for x (..., 2h)."""
    product = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    _launch_gate(gate.gate_forward, x=x.contiguous(), product=product)
    return product


def gate_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Does what `layer_torch.gate_backward` does, for grad (..., h) and x (..., 2h)."""
    product, dx = x.new_empty(grad.shape), x.new_empty(x.shape)
    _launch_gate(gate.gate_backward, grad=grad.contiguous(), x=x.contiguous(), product=product, dx=dx)
    return product, dx


def _total_dtype(x: Tensor, branch: Tensor, scale: Tensor | None) -> torch.dtype:
    """The dtype of x + scale * branch."""
    dtype = torch.promote_types(x.dtype, branch.dtype)
    return dtype if scale is None else torch.promote_types(dtype, scale.dtype)


def _row_tile(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return dict(
        E=width,
        BR=max(_TILE // block, 1),
        BE=block,
        num_warps=min(max(block * 4 // _TILE, 4), 16),
        enable_fp_fusion=True,
    )


def _launch_gate(kernel: Any, **tensors: Tensor) -> None:
    x = tensors["x"]
    width = x.shape[-1] // 2
    block = min(triton.next_power_of_2(max(width, 1)), _GATE_BLOCK)
    programs = x.numel() // max(2 * width, 1) * triton.cdiv(width, block)
    launch(kernel, programs, x.device, **tensors, h=width, BLOCK=block, num_warps=4, enable_fp_fusion=True)
