"""Linear layers and the SwiGLU of VECA, with two shortcuts for inference on x86 CPUs.

1. Without gradient, fp32 products go to oneDNN. torch itself uses oneDNN for every other dtype and MKL for fp32.
   From 128 rows on, oneDNN is 1.1 to 1.6 times as fast.

    (E = 384 and 768, two cores of an AMD EPYC, torch 2.15, 2026-11-22)

2. Without gradient, the gate is applied in place.

With gradients, the SwiGLU keeps neither silu(gate) nor the product. The backward pass computes them again.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from veca_kernels import swiglu

__all__ = ["SwiGLU", "apply_linear", "linear", "unobserved"]

_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")
_is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage]  # documented, but not in its __all__
_WORTHWHILE = 2**24  # multiply-adds; for fewer, oneDNN's set-up costs more than it saves


class SwiGLU(nn.Module):
    """E -> 2h, SiLU of the first half times the second, h -> E. Parameters are named as in timm's SwiGLUPacked.

    Args:
        dim: E.
        hidden_dim: h.
        recompute: compute the gate again in the backward pass. False keeps two tensors of width h instead.
        impl: argument of `veca_kernels.swiglu`.
    """

    def __init__(self, dim: int, hidden_dim: int, recompute: bool = True, impl: str = "auto"):
        super().__init__()
        self.recompute = recompute
        self.impl = impl
        self.fc1 = nn.Linear(dim, 2 * hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(apply_linear(self.fc1, x))

    def contract(self, hidden: Tensor) -> Tensor:
        """Apply the gate and the second projection: the output of fc1 (..., 2h) to (..., E)."""
        if self.recompute and (torch.is_grad_enabled() or hidden.is_cuda) and unobserved((self.fc2, nn.Linear)):
            return swiglu(hidden, self.fc2.weight, self.fc2.bias, impl=self.impl)
        gate, value = hidden.chunk(2, dim=-1)  # each (..., h)
        if torch.is_grad_enabled() or _is_tracing():
            return self.fc2(F.silu(gate) * value)
        return apply_linear(self.fc2, F.silu(gate).mul_(value))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, through oneDNN where that is faster (see the module).

    Args:
        x: input (..., in).
        weight: (out, in).
        bias: (out,), or None.

    Returns:
        (..., out).
    """
    if not _takes_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`. A plain `nn.Linear` without hooks computes its product by `linear`."""
    if torch.is_grad_enabled() or not unobserved((layer, nn.Linear)):
        return layer(x)
    plain: Any = layer
    return linear(x, plain.weight, plain.bias)


def unobserved(*modules: tuple[nn.Module, type[nn.Module]]) -> bool:
    """Whether a fused operator may replace these modules.

    Each must have exactly its type, its own `forward` and no hooks, and nothing may be compiled or traced. A compiler
    fuses the plain form itself, and a tracer should see the usual operators.

    Args:
        modules: pairs of a module and the type that it must have.
    """
    if torch.compiler.is_compiling() or _is_tracing() or nn.modules.module._has_any_global_hook():
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
    return all(type(m) is kind and not any(map(vars(m).get, hooks)) for m, kind in modules)


def _takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if not _ONEDNN or torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_tracing():
        return False
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return False
    if x.shape[-1] != weight.shape[-1] or not (bias is None or bias.is_contiguous()):
        return False  # the operator checks neither, and reads a strided bias as if it were not
    if type(weight) not in (Tensor, nn.Parameter) or torch._C._are_functorch_transforms_active():
        return False
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return False
    if torch._C._len_torch_dispatch_stack():  # modes that count or record operators should see the usual ones
        return False
    return x.numel() * weight.shape[0] >= _WORTHWHILE
