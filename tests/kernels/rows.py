"""Cases of the row kernels, and the definition that every implementation is held against in fp64."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.cases import TOLERANCES

EPS = 1e-3  # large enough to show where it is left out


@dataclass(frozen=True)
class Rows:
    """A residual stream of `shape` rows of `width` numbers, and the linear layer that reads it or the gate.

    `dtype` is that of branch, weights and results of the linear layer; `stream` of x and the norm, None like dtype.
    """

    shape: tuple[int, ...] = (2, 5)
    width: int = 48
    features: int = 10
    dtype: torch.dtype = torch.float32
    stream: torch.dtype | None = None
    branch: bool = True
    scale: bool = True
    offset: float = 0.0  # added to x: exposes a variance computed without subtracting the mean first

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape)), f"E{self.width}", str(self.dtype).removeprefix("torch.")]
        words += [f"stream_{self.stream}"] * (self.stream is not None) + ["offset"] * bool(self.offset)
        words += ["no_branch"] * (not self.branch) + ["no_scale"] * (self.branch and not self.scale)
        return "-".join(words).replace("torch.", "")

    def at(self, **changes: object) -> "Rows":
        return replace(self, **changes)


WIDTHS = [Rows(width=w) for w in (1, 7, 64, 100, 384, 1025)]
PARTS = [Rows(), Rows(scale=False), Rows(branch=False, scale=False)]
EDGES = [Rows(shape=(0,)), Rows(shape=(2, 0)), Rows(shape=(1,), width=8), Rows(shape=(3, 23)), Rows(offset=30.0)]
MIXED = [case.at(stream=torch.float32, dtype=torch.bfloat16) for case in PARTS]


def make_norm(case: Rows, device: str = "cpu") -> list[Tensor | None]:
    """x, branch, scale, norm weight and bias, weight, bias: leaves, or None where the case has none."""
    draw = _drawer(case, device)
    stream = case.stream or case.dtype
    x = draw(*case.shape, case.width, dtype=stream, offset=case.offset)
    branch = draw(*case.shape, case.width) if case.branch else None
    scale = draw(case.width, dtype=stream) if case.scale else None
    norm = [draw(case.width, dtype=stream) for _ in range(2)]
    return [x, branch, scale, *norm, draw(case.features, case.width), draw(case.features)]


def make_gate(case: Rows, device: str = "cpu") -> list[Tensor]:
    """x (..., 2 width), weight, bias."""
    draw = _drawer(case, device)
    return [draw(*case.shape, 2 * case.width), draw(case.features, case.width), draw(case.features)]


def define_norm(x, branch, scale, norm_weight, norm_bias, weight, bias) -> tuple[Tensor, Tensor]:
    total = x if branch is None else x + (branch if scale is None else branch * scale)
    norm = [p.to(total.dtype) for p in (norm_weight, norm_bias)]
    normed = F.layer_norm(total, (x.shape[-1],), *norm, EPS)
    return total, F.linear(normed.to(weight.dtype), weight, bias)


def define_gate(x, weight, bias) -> tuple[Tensor]:
    gate, value = x.chunk(2, -1)
    return (F.linear(F.silu(gate) * value, weight, bias),)


def forward_backward(function: Callable, leaves: list[Tensor | None], dtype: torch.dtype | None = None):
    """[results, gradients of the leaves] of what `function` does with them; `dtype` computes on the same values."""
    taken = [x if x is None or dtype is None else x.detach().to(dtype).requires_grad_() for x in leaves]
    results = [out for out in function(*taken) if all(out is not x for x in taken)]
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(out.shape, generator=generator).to(out) for out in results]  # .to: device and dtype
    wanted = [x for x in taken if x is not None]
    return [out.detach() for out in results] + list(torch.autograd.grad(results, wanted, grads))


def assert_close(function: Callable, definition: Callable, leaves: list[Tensor | None], slack: float = 1.0) -> None:
    """`function` against the definition in fp64, by the rules of cases.py, in every result and gradient."""
    got = forward_backward(function, leaves)
    truth = forward_backward(definition, leaves, torch.float64)
    usual = forward_backward(definition, leaves)
    for index, (x, ref, same) in enumerate(zip(got, truth, usual, strict=True)):
        assert x.shape == ref.shape and x.dtype == same.dtype, index
        if x.numel() == 0:
            continue
        assert torch.isfinite(x).all(), index
        coarse = max((leaf.dtype for leaf in leaves if leaf is not None), key=lambda d: torch.finfo(d).eps)
        for order, relative in zip((float("inf"), 2), TOLERANCES[coarse], strict=True):
            size, error, known = (
                torch.linalg.vector_norm(y.double(), ord=order) for y in (ref, x.double() - ref, same.double() - ref)
            )
            bound = slack * max(relative * size, 2 * known, 1e-30)
            assert error <= bound, f"result {index}: error {error:.3g} > {bound:.3g} (order {order}, size {size:.3g})"


def _drawer(case: Rows, device: str) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = case.dtype, offset: float = 0.0) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) + offset
        return x.to(device=device, dtype=dtype).requires_grad_()

    return draw
