"""The parts of a transformer block around its attention. They save as little as possible for the backward pass.

    residual_norm_linear    x + scale * branch, and a linear layer of its LayerNorm: fc1, or the qkv projection
    swiglu                  a linear layer of silu(gate) * value: fc2

A linear layer needs its input for the weight gradient. Here that input is the normalised tokens, or the product. The
backward pass computes it again, in one cheap pass over the rows. kernels/README.md states what is saved.
"""

import torch
from torch import Tensor

from . import layer_ops
from .support import row_support

__all__ = ["residual_norm_linear", "swiglu"]

IMPLEMENTATIONS = ("auto", "triton", "torch")


def residual_norm_linear(
    x: Tensor,
    branch: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The residual sum of a branch, and the linear layer that reads its LayerNorm.

        total = x + scale * branch
        out = LayerNorm(total) weight^T + bias

    Args:
        x: Residual stream, (..., E).
        branch: Tensor that is added to it, (..., E). None adds nothing.
        norm_weight, norm_bias: Parameters of the LayerNorm, (E,).
        weight: Weight of the linear layer, (F, E). The normalised tokens are rounded to its dtype. Under autocast it is
            cast first.
        bias: Bias of the linear layer, (F,) or None.
        scale: LayerScale of the branch, (E,). None is 1.
        eps: Epsilon of the LayerNorm.
        impl: "triton" (one kernel for sum, scale and norm), "torch" (its operators), or "auto": triton on a GPU
            that supports the call, else torch. Second derivatives always take torch's operators.

    Returns:
        total (..., E), which is x where nothing is added, and out (..., F).

    Raises:
        ValueError: A shape or name is wrong, or an explicit `impl` cannot take the call. It never falls back.
        TypeError: An argument is no tensor of a floating dtype.
    """
    _check_tensors(x=x, branch=branch, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, scale=scale)
    width = x.shape[-1]
    for name, row in (("norm_weight", norm_weight), ("norm_bias", norm_bias), ("scale", scale)):
        if row is not None and row.shape != (width,):
            raise ValueError(f"expected {name} of shape ({width},) like the rows of x, got {tuple(row.shape)}")
    if branch is not None and branch.shape != x.shape:
        raise ValueError(f"expected a branch of the shape of x, {tuple(x.shape)}, got {tuple(branch.shape)}")
    if branch is None and scale is not None:
        raise ValueError("expected scale=None without a branch, got a tensor")
    weight, bias = _check_linear(width, weight, bias)
    tensors = [t for t in (x, branch, scale, norm_weight, norm_bias, weight) if t is not None]
    kernels = _takes_kernels(impl, tensors, width)
    return layer_ops.norm_linear(x, branch, scale, norm_weight, norm_bias, weight, bias, float(eps), kernels)


def swiglu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """The second half of a SwiGLU: the gate, and the linear layer that reads it.

        out = (silu(gate) * value) weight^T + bias

    Args:
        x: Gate and value side by side, (..., 2h), the output of the first linear layer.
        weight: Weight of the second linear layer, (F, h). Under autocast it is cast, and so is x.
        bias: Bias of the second linear layer, (F,) or None.
        impl: As in `residual_norm_linear`.

    Returns:
        The output of the second linear layer, (..., F).

    Raises:
        ValueError, TypeError: As in `residual_norm_linear`.
    """
    _check_tensors(x=x, weight=weight)
    if x.shape[-1] % 2:
        raise ValueError(f"expected x of shape (..., 2h), got {tuple(x.shape)}")
    weight, bias = _check_linear(x.shape[-1] // 2, weight, bias)
    x = x.to(weight.dtype)
    return layer_ops.gate_linear(x, weight, bias, _takes_kernels(impl, [x, weight]))


def _check_tensors(**tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is None and name in ("branch", "scale"):
            continue
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"expected {name} to be a tensor of a floating dtype, got {kind}")
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"expected {name} to have a last dimension of at least 1, got shape {tuple(x.shape)}")


def _check_linear(width: int, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the dtype of the product, which under autocast is that of torch's own layers."""
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(f"expected weight of shape (features, {width}), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    device = weight.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return weight.to(dtype), None if bias is None else bias.to(dtype)
    return weight, bias


def _takes_kernels(impl: str, tensors: list[Tensor], width: int = 0) -> bool:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"expected impl to be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "torch" or (impl == "auto" and not tensors[0].is_cuda):
        return False
    supported, reason = row_support(tuple(tensors), width)
    if impl == "triton" and not supported:
        raise ValueError(f"impl='triton' cannot take this call: {reason}")
    return supported
