"""Ops around the row kernels, and the two autograd functions of a block, which save no activation they can recompute.

On CUDA the bodies of the four ops are the Triton kernels. On a CPU they are plain torch, or the interpreted kernels
under TRITON_INTERPRET=1. layer_torch.py computes derivatives that are differentiated again.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import layer_torch
from .devices import interpreting

_NORM = "Tensor x, Tensor? branch, Tensor? scale, Tensor weight, Tensor bias, float eps, ScalarType dtype"
SCHEMAS = {
    "norm_forward": f"({_NORM}) -> (Tensor, Tensor, Tensor, Tensor)",
    "norm_backward": (
        "(Tensor grad, Tensor? grad_total, Tensor total, Tensor mean, Tensor rstd, Tensor weight, Tensor? branch, "
        "Tensor? scale, ScalarType? dtype) -> (Tensor, Tensor, Tensor)"
    ),
    "gate_forward": "(Tensor x) -> Tensor",
    "gate_backward": "(Tensor grad, Tensor x) -> (Tensor, Tensor)",
}
_ops = torch.ops.veca_kernels


def norm_linear(
    x: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    """total = x + scale * branch and its LayerNorm times weight^T; see `layer.residual_norm_linear`."""
    run: Callable[..., Any] = _NormLinear.apply if torch.is_grad_enabled() else _NormLinear.forward
    rows = (_rows(x), None if branch is None else _rows(branch))
    out = run(*rows, scale, norm_weight, norm_bias, weight, bias, eps, kernels)
    total, out = (x, out) if branch is None else (out[0].reshape(x.shape), out[1])
    return total, out.reshape(*x.shape[:-1], weight.shape[0])


def gate_linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: bool) -> Tensor:
    """Computes (silu(gate) * value) weight^T, see `layer.swiglu`."""
    run = _GateLinear.apply if torch.is_grad_enabled() else _GateLinear.forward
    return run(_rows(x), weight, bias, kernels).reshape(*x.shape[:-1], weight.shape[0])


def _rows(x: Tensor) -> Tensor:
    """Rows (R, E) of (..., E). A Function takes rows and returns no views, since callers may write into its results."""
    return x.reshape(-1, x.shape[-1])


class _NormLinear(Function):
    """Saves total and the weights, and with a scale the branch. Normed tokens and statistics are not saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        branch: Tensor | None,
        scale: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        kernels: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        with _no_autocast(x):
            norm = _ops.norm_forward if kernels else layer_torch.norm_forward
            total, normed, *_ = norm(x, branch, scale, norm_weight, norm_bias, eps, weight.dtype)
            out = F.linear(normed, weight, bias)
        return out if branch is None else (total, out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, branch, scale, norm_weight, norm_bias, weight, bias, ctx.eps, ctx.kernels = inputs
        ctx.set_materialize_grads(False)
        total = x if branch is None else output[0]
        ctx.save_for_backward(total, None if scale is None else branch, scale, norm_weight, norm_bias, weight)
        ctx.dtypes = [None if t is None else t.dtype for t in (x, branch, bias)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, branch, scale, norm_weight, norm_bias, weight = ctx.saved_tensors
        x_dtype, branch_dtype, bias_dtype = ctx.dtypes
        *grad_total, grad = grads
        (grad_total,) = grad_total or (None,)
        if grad is None:
            grad = weight.new_zeros((total.shape[0], weight.shape[0]))
        kernels = ctx.kernels and not torch.is_grad_enabled()  # a second derivative goes through torch's operators
        norm = _ops.norm_forward if kernels else layer_torch.norm_forward
        with _no_autocast(total):
            _, normed, mean, rstd = norm(total, None, None, norm_weight, norm_bias, ctx.eps, weight.dtype)
            d_weight, d_bias = _linear_backward(grad, normed, ctx.needs_input_grad[5], bias_dtype)
            del normed
            given = (grad @ weight, grad_total, total, mean, rstd, norm_weight)
            if kernels:
                own = branch_dtype if scale is not None or branch_dtype != total.dtype else None
                d_total, d_branch, sums = _ops.norm_backward(*given, branch, scale, own)
                d_branch = d_total if own is None else d_branch
                d_norm_weight, d_norm_bias, *d_scale = sums
                (d_scale,) = d_scale or (None,)
            else:
                d_total, d_branch, d_norm_weight, d_norm_bias, d_scale = layer_torch.norm_backward(
                    *given, norm_bias, branch, scale
                )
                d_branch = d_total if d_branch is None else d_branch
        d_branch = None if branch_dtype is None else d_branch.to(branch_dtype)
        d_scale = None if scale is None or d_scale is None else d_scale.to(scale.dtype)
        d_norm = (d_norm_weight.to(norm_weight.dtype), d_norm_bias.to(norm_bias.dtype))
        return d_total.to(x_dtype), d_branch, d_scale, *d_norm, d_weight, d_bias, None, None


class _GateLinear(Function):
    """Saves x and the weight. silu(gate) and the product are not saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: bool) -> Tensor:
        with _no_autocast(x):
            product = _ops.gate_forward(x) if kernels else layer_torch.gate_forward(x)
            return F.linear(product, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.kernels = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        in_place = not torch.is_grad_enabled() and (ctx.kernels or x.device.type == "cpu")
        with _no_autocast(x):
            d_product = grad @ weight
            product, dx = (_ops.gate_backward if in_place else layer_torch.gate_backward)(d_product, x)
            d_weight, d_bias = _linear_backward(grad, product, ctx.needs_input_grad[1], ctx.bias_dtype)
        return dx, d_weight, d_bias, None


for _function in (_NormLinear, _GateLinear):  # `apply` inspects the signature at every call unless it finds it here
    _function.forward.__signature__ = inspect.signature(_function.forward)


def _linear_backward(
    grad: Tensor, x: Tensor, wants_weight: bool, bias_dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias of out = x weight^T + bias."""
    d_weight = grad.T @ x if wants_weight else None
    return d_weight, None if bias_dtype is None else grad.sum(0).to(bias_dtype)


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast: callers have cast already, and a backward pass may run inside autocast or outside."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _cpu_norm_forward(x: Tensor, branch: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    total, normed, mean, rstd = layer_torch.norm_forward(x, branch, *rest)
    wide = torch.promote_types(mean.dtype, torch.float32)
    return x.new_empty(0) if branch is None else total, normed, mean.to(wide), rstd.to(wide)


def _cpu_norm_backward(
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
    narrow_mean, narrow_rstd = mean.to(total.dtype), rstd.to(total.dtype)
    d_total, d_branch, *sums = layer_torch.norm_backward(
        grad, grad_total, total, narrow_mean, narrow_rstd, weight, torch.zeros_like(weight), branch, scale
    )
    if dtype is None:
        d_branch = total.new_empty(0)
    else:
        d_branch = d_total.to(dtype, copy=True) if d_branch is None else d_branch.to(dtype)
    return d_total, d_branch, torch.stack([x.to(mean.dtype) for x in sums if x is not None])


_CPU_BODIES = {
    "norm_forward": _cpu_norm_forward,
    "norm_backward": _cpu_norm_backward,
    "gate_forward": layer_torch.gate_forward,
    "gate_backward": layer_torch.gate_backward_in_place,
}


def _fake_norm_forward(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.new_empty(0)
    if branch is not None:
        total_dtype = torch.promote_types(x.dtype, branch.dtype)
        total_dtype = total_dtype if scale is None else torch.promote_types(total_dtype, scale.dtype)
        total = x.new_empty(x.shape, dtype=total_dtype)
    mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=wide) for _ in range(2))
    return total, x.new_empty(x.shape, dtype=dtype), mean, rstd


def _fake_norm_backward(
    grad: Tensor, grad_total: Tensor | None, total: Tensor, mean: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, scale, dtype = rest
    d_branch = total.new_empty(0) if dtype is None else total.new_empty(total.shape, dtype=dtype)
    sums = mean.new_empty((2 if scale is None else 3, total.shape[-1]))
    return total.new_empty(total.shape), d_branch, sums


FAKES = {
    "norm_forward": _fake_norm_forward,
    "norm_backward": _fake_norm_backward,
    "gate_forward": lambda x: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)),
    "gate_backward": lambda grad, x: (x.new_empty(grad.shape), x.new_empty(x.shape)),
}


def _body(op: str, on_cpu: bool) -> Callable[..., Any]:
    def run(*values: Any) -> Any:
        if on_cpu and not interpreting():
            return _CPU_BODIES[op](*values)
        from .triton import layer

        return getattr(layer, op)(*values)

    return run


def _vmap_rule(name: str) -> Callable[..., Any]:
    """One call per slice, since weights may be mapped too and a launch takes one set of them."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        slices = [
            [x if d is None else x.select(d, i) for x, d in zip(values, in_dims, strict=True)]
            for i in range(info.batch_size)
        ]
        results = [getattr(_ops, name)(*arguments) for arguments in slices]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(x) for x in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def _register() -> None:
    for name, schema in SCHEMAS.items():
        qualified = f"veca_kernels::{name}"
        torch.library.define(qualified, schema)
        torch.library.impl(qualified, "CPU", _body(name, on_cpu=True))
        torch.library.impl(qualified, "CUDA", _body(name, on_cpu=False))
        torch.library.register_fake(qualified)(FAKES[name])
        torch.library.register_vmap(qualified, _vmap_rule(name))


_register()
