"""The optimiser NorMuon makes the momentum orthogonal, then scales every row to the same size.

    momentum <- beta1 momentum + (1 - beta1) gradient
    update    = polar((1 - beta1) gradient + beta1 momentum)
    second   <- beta2 second + (1 - beta2) mean over columns of update ** 2
    update    = update / sqrt(second),  scaled to a root mean square of 0.2
    weight   <- weight - lr (update + weight_decay * weight where both have the same sign)

    NorMuon                           arXiv 2510.05491, here with Nesterov momentum
    weight decay                      arXiv 2510.12402
    polar factor, five polynomials    arXiv 2505.16932

A root mean square of 0.2 is about that of AdamW's updates, so AdamW's learning rates can be used.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["NorMuon", "orthogonalize"]

_POLYNOMIALS = (
    (8.237312, -23.157748, 16.680568),
    (4.082442, -2.893047, 0.525285),
    (3.926348, -2.854747, 0.531802),
    (3.298219, -2.424542, 0.486321),
    (2.320007, -1.686217, 0.420680),
)
_SAFETY = 1.01  # the polynomials take singular values up to 1, and bf16 rounds; all but the last leave this margin
_UPDATE_RMS = 0.2


def orthogonalize(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest matrices with singular values of 1, to within about 0.2.

    Args:
        matrix: matrices (..., rows, columns).
        dtype: dtype of the products. None takes bf16 on a GPU and fp32 on a CPU, where bf16 is often emulated.

    Returns:
        Matrices of the same shape, in `dtype`.
    """
    if dtype is None:
        dtype = torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = (x / (_SAFETY * torch.linalg.matrix_norm(x, keepdim=True)).clamp_min(1e-7)).to(dtype)
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


class NorMuon(torch.optim.Optimizer):
    """NorMuon for weight matrices; see the module.

    A group may set `splits`, the number of equal matrices that are stacked in its weights. A fused qkv projection has
    three.

    Args:
        params: 2-D parameters, or groups of them.
        lr: learning rate, on AdamW's scale.
        weight_decay: weight decay, which is multiplied by the learning rate.
        momentum, beta2: decay rates of the momentum and of the rows' second moments.
        eps: number added to the root of the second moments.

    Raises:
        ValueError: a parameter that is not a matrix, or whose rows `splits` does not divide.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-4,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ):
        super().__init__(
            params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, beta2=beta2, eps=eps, splits=1)
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2 or len(parameter) % group["splits"]:
                    raise ValueError(
                        f"expected matrices of {group['splits']} n rows, got a parameter {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient. Returns the loss of `closure`, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        stack = (group["splits"], -1)
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["second"] = parameter.new_zeros(len(parameter), 1)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]).unflatten(0, stack)  # (S, rows, columns)
        update = orthogonalize(update).to(parameter.dtype)
        rows = update.square().mean(-1, keepdim=True)
        second = state["second"].lerp_(rows.flatten(0, 1), 1 - group["beta2"]).unflatten(0, stack)
        update = update / (second.sqrt() + group["eps"])
        size = update.square().mean((-2, -1), keepdim=True).sqrt()
        update = (update * (_UPDATE_RMS / size.clamp_min(group["eps"]))).flatten(0, 1)
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter * (update * parameter > 0)
        parameter.sub_(update, alpha=group["lr"])
