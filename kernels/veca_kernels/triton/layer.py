"""From tensors to launches of the row kernels: buffers, tiles, programs.

A program of the backward walks over several tiles, so that the partial sums of a device's programs stay small. Their
number depends on shapes and the device only, and two runs give the same bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..devices import device_facts
from . import gate, norm
from .plan import launch

_TILE = 1024  # numbers a tile of 4 warps holds of each operand: 8 a thread
_PROGRAMS_PER_SM = 8
_GATE_BLOCK = 1024


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and arguments, not yet run."""

    kernel: Any
    programs: int
    device: torch.device
    arguments: dict[str, Any]

    def run(self) -> None:
        launch(self.kernel, self.programs, self.device, **self.arguments)


def norm_forward(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As in layer_torch.py, with any dimensions before the last; total is empty where it would be x."""
    planned = plan_norm_forward(x, branch, scale, weight, bias, eps, dtype)
    planned.run()
    total, *rest = (planned.arguments[name] for name in ("total", "normed", "mean", "rstd"))
    return x.new_empty(0) if total is None else total, *rest


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
    planned = plan_norm_backward(grad, grad_total, total, mean, rstd, weight, branch, scale, dtype)
    planned.run()
    d_total, d_branch, sums = (planned.arguments[name] for name in ("d_total", "d_branch", "sums"))
    return d_total, total.new_empty(0) if d_branch is None else d_branch, sums.sum(0)


def gate_forward(x: Tensor) -> Tensor:
    """As in layer_torch.py."""
    planned = plan_gate_forward(x)
    planned.run()
    return planned.arguments["product"]


def gate_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """As in layer_torch.py."""
    planned = plan_gate_backward(grad, x)
    planned.run()
    return planned.arguments["product"], planned.arguments["dx"]


def plan_norm_forward(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Launch:
    """The launch of `norm_forward`, its results allocated."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    total = None
    if branch is not None:
        total = x.new_empty(x.shape, dtype=total_dtype(x, branch, scale))
    tile = _row_tile(width)
    arguments = dict(
        x=x.contiguous(),
        branch=None if branch is None else branch.contiguous(),
        scale=None if scale is None else scale.contiguous(),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        total=total,
        normed=x.new_empty(x.shape, dtype=dtype),
        mean=x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
        rstd=x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
        eps=eps,
        R=rows,
        **tile,
    )
    return Launch(norm.norm_forward, triton.cdiv(rows, tile["BR"]), x.device, arguments)


def plan_norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype | None,
) -> Launch:
    """The launch of `norm_backward`, its results allocated."""
    rows, width = total.numel() // total.shape[-1], total.shape[-1]
    tile = _row_tile(width)
    tiles = triton.cdiv(rows, tile["BR"])
    most = _PROGRAMS_PER_SM * device_facts(total.device)[0]
    tiles_per_program = max(triton.cdiv(tiles, most), 1)
    programs = triton.cdiv(tiles, tiles_per_program)
    arguments = dict(
        grad=grad.contiguous(),
        grad_total=None if grad_total is None else grad_total.contiguous(),
        total=total.contiguous(),
        mean=mean,
        rstd=rstd,
        weight=weight.contiguous(),
        branch=None if scale is None else branch.contiguous(),
        scale=None if scale is None else scale.contiguous(),
        d_total=total.new_empty(total.shape),
        d_branch=None if dtype is None else total.new_empty(total.shape, dtype=dtype),
        sums=total.new_empty((programs, 2 if scale is None else 3, width), dtype=torch.float32),
        R=rows,
        tiles_per_program=tiles_per_program,
        **tile,
    )
    return Launch(norm.norm_backward, programs, total.device, arguments)


def plan_gate_forward(x: Tensor) -> Launch:
    """The launch of `gate_forward`, its result allocated."""
    width = x.shape[-1] // 2
    product = x.new_empty((*x.shape[:-1], width))
    return _gate_launch(gate.gate_forward, width, x=x.contiguous(), product=product)


def plan_gate_backward(grad: Tensor, x: Tensor) -> Launch:
    """The launch of `gate_backward`, its results allocated."""
    product, dx = x.new_empty(grad.shape), x.new_empty(x.shape)
    tensors = dict(grad=grad.contiguous(), x=x.contiguous(), product=product, dx=dx)
    return _gate_launch(gate.gate_backward, x.shape[-1] // 2, **tensors)


def plans(width: int, hidden: int, dtype: torch.dtype, total: torch.dtype) -> list[Launch]:
    """Every launch of a block of that width, on tensors without data: what an ahead-of-time compiler must know.

    Args:
        width, hidden: E and h.
        dtype: Precision of the branches and the normalised tokens.
        total: Precision of the residual stream and of the norm's parameters.
    """
    x, branch = (torch.empty(64, width, dtype=d, device="meta") for d in (total, dtype))
    row, stat = (torch.empty(n, dtype=d, device="meta") for n, d in ((width, total), (64, torch.float32)))
    hidden_rows, product = (torch.empty(64, n, dtype=dtype, device="meta") for n in (2 * hidden, hidden))
    launches = [plan_norm_forward(x, b, s, row, row, 1e-5, dtype) for b, s in _residuals(branch, row)]
    for other, (b, s) in zip((None, x, x), _residuals(branch, row), strict=True):
        own = dtype if s is not None or (b is not None and dtype != total) else None
        launches.append(plan_norm_backward(branch, other, x, stat, stat, row, b, s, own))
    return [*launches, plan_gate_forward(hidden_rows), plan_gate_backward(product, hidden_rows)]


def total_dtype(x: Tensor, branch: Tensor, scale: Tensor | None) -> torch.dtype:
    """The dtype of x + scale * branch."""
    dtype = torch.promote_types(x.dtype, branch.dtype)
    return dtype if scale is None else torch.promote_types(dtype, scale.dtype)


def _residuals(branch: Tensor, scale: Tensor) -> list[tuple[Tensor | None, Tensor | None]]:
    return [(None, None), (branch, None), (branch, scale)]


def _row_tile(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return dict(
        E=width,
        BR=max(_TILE // block, 1),
        BE=block,
        num_warps=min(max(block * 4 // _TILE, 4), 16),
        enable_fp_fusion=True,
    )


def _gate_launch(kernel: Any, width: int, **tensors: Tensor) -> Launch:
    x = tensors["x"]
    block = min(triton.next_power_of_2(max(width, 1)), _GATE_BLOCK)
    programs = x.numel() // max(2 * width, 1) * triton.cdiv(width, block)
    return Launch(kernel, programs, x.device, dict(**tensors, h=width, BLOCK=block, num_warps=4, enable_fp_fusion=True))
