"""Residual, LayerScale, LayerNorm and SwiGLU in plain torch: the definition, which CPUs and refused calls take.

All functions but `gate_backward_in_place` can be differentiated again and mapped, since they are made of torch's own
operators. Arguments and results are those of triton/layer.py, rows (R, E).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_forward(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns total = x + scale * branch, its LayerNorm in `dtype`, and mean and 1 / deviation of its rows (R, 1)."""
    total = x
    if branch is not None:
        total = x + (branch if scale is None else branch * scale)
    weight, bias = weight.to(total.dtype), bias.to(total.dtype)
    normed, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
    return total, normed.to(dtype), mean, rstd


def norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """Gradients of total, branch, weight, bias and scale.

    That of the branch is None where it is the gradient of total, rounded.
    """
    wide = [p.to(total.dtype) for p in (weight, bias)]
    backward = torch.ops.aten.native_layer_norm_backward
    d_total, d_weight, d_bias = backward(
        grad.to(total.dtype), total, weight.shape, mean, rstd, *wide, [True, True, True]
    )
    if grad_total is not None:
        d_total = d_total + grad_total
    if branch is None or scale is None:
        return d_total, None, d_weight, d_bias, None
    d_scale = (d_total * branch).sum(0)
    return d_total, d_total * scale, d_weight, d_bias, d_scale


def gate_forward(x: Tensor) -> Tensor:
    """Returns silu(gate) * value, (R, h), for x = (gate, value), (R, 2h)."""
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def gate_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the product again, (R, h), and the gradient of x, (R, 2h)."""
    gate, value = x.chunk(2, -1)
    slope = gate.sigmoid()
    silu = gate * slope
    d_gate = grad * value * (slope + silu * (1 - slope))  # written out, since torch's silu_backward has no derivative
    return silu * value, torch.cat((d_gate, grad * silu), -1)


def gate_backward_in_place(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`gate_backward` with two temporary tensors less. For first derivatives only."""
    gate, value = x.chunk(2, -1)
    dx = torch.empty_like(x)
    d_gate, d_value = dx.chunk(2, -1)
    product = F.silu(gate)
    torch.mul(grad, product, out=d_value)
    product.mul_(value)
    torch.mul(grad, value, out=d_gate)
    torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
    return product, dx
