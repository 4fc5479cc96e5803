"""Fakes of the registered ops for compilers, and their rules under vmap."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _lse_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _fake_core_periphery_forward(q: Tensor, k: Tensor, v: Tensor, num_cores: int, *rest: Any) -> tuple[Tensor, ...]:
    batch, _, heads, head_dim = q.shape
    core_rows = q.new_empty((batch, num_cores, heads, head_dim))
    return q.new_empty(q.shape), core_rows, q.new_empty((batch, heads, num_cores), dtype=_lse_dtype(q))


def _fake_core_periphery_backward(grad: Tensor, q: Tensor, *rest: Any) -> Tensor:
    batch, tokens, heads, head_dim = q.shape
    packed = rest[-1]
    return q.new_empty((batch, tokens, 3, heads, head_dim) if packed else (3, batch, tokens, heads, head_dim))


def _fake_read_forward(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, cores, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, cores), dtype=_lse_dtype(q))


def _fake_read_backward(grad: Tensor, grad_lse: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = rest[:3]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fake_write_forward(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def _fake_write_backward(grad: Tensor, q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty((2, *k.shape))


FAKES = {
    "core_periphery_forward": _fake_core_periphery_forward,
    "core_periphery_backward": _fake_core_periphery_backward,
    "read_forward": _fake_read_forward,
    "read_backward": _fake_read_backward,
    "write_forward": _fake_write_forward,
    "write_backward": _fake_write_backward,
}


def vmap_rule(name: str, arguments: list[str]) -> Callable[..., Any]:
    """A rule that folds the mapped dimension into the batch, runs the op and unfolds its results."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        size = info.batch_size
        batch = next(
            x.shape[0] if d is None else x.movedim(d, 0).shape[1]
            for n, x, d in zip(arguments, values, in_dims, strict=True)
            if n == "q"
        )

        def fold(argument: str, x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            table = argument in ("cos", "sin")
            if table and dim is None and x.ndim == 2:
                return x  # one table for every image of every slice
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            if table and x.ndim == 3:
                x = x[:, None].expand(-1, batch, -1, -1)
            return x.flatten(0, 1)

        folded = [fold(n, x, d) for n, x, d in zip(arguments, values, in_dims, strict=True)]
        results = getattr(torch.ops.veca_kernels, name)(*folded)
        single = isinstance(results, Tensor)
        results = (results,) if single else results
        # the batch is the first dimension, except where gradients of several tensors are stacked before it
        stacked = {"core_periphery_backward": [not folded[-1]], "write_backward": [False, True]}
        dims = [int(x) for x in stacked.get(name, [False] * len(results))]
        results = tuple(x.unflatten(d, (size, batch)) for x, d in zip(results, dims, strict=True))
        return (results[0], dims[0]) if single else (results, tuple(dims))

    return rule
