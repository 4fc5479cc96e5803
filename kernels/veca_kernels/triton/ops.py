"""The bodies of the registered ops on a GPU and in the interpreter, with the signatures of composed.py.

Tensors are (B, T, H, D) with any strides but a contiguous last dimension. Results are contiguous.
"""

from typing import Any

from torch import Tensor

from ..options import Options
from .launch import (
    Call,
    partial_sums,
    run_backward,
    run_forward,
    run_read_backward,
    run_read_forward,
    run_write_backward,
    run_write_forward,
    sum_partials,
)
from .plan import empty


def core_periphery_forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, T, H, D), a copy of its core rows (B, C, H, D), and their log-sum-exp (B, H, C), fp32.

    q, k, v are (B, T, H, D), or q is qkv (B, T, 3, H, D) with k and v None.
    """
    call = _joint_call(q, k, v, options)
    out = empty(q, call.q.shape)
    core_rows = empty(q, (call.batch, call.cores, call.heads, call.head_dim))
    lse = run_forward(call, out, core_rows)
    return out, core_rows, lse


def core_periphery_output(*arguments: Any) -> Tensor:
    """`core_periphery_forward` where only `out` is wanted. The other results become scratch memory."""
    return core_periphery_forward(*arguments)[0]


def core_periphery_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    core_rows: Tensor,
    lse: Tensor,
    options: Options,
    packed: bool,
) -> Tensor:
    """Gradients of q, k, v in one buffer: (B, T, 3, H, D) if packed, else (3, B, T, H, D)."""
    call = _joint_call(q, k, v, options)
    batch, tokens, heads, head_dim = call.q.shape
    grads = empty(q, (batch, tokens, 3, heads, head_dim) if packed else (3, batch, tokens, heads, head_dim))
    dq, dk, dv = dqkv = grads.movedim(2, 0) if packed else grads  # (3, B, T, H, D)

    splits, part = partial_sums(call, 3)  # (3, splits B, C, H, D)
    core_grads = (dq, dk, dv) if part is None else part.unbind(0)
    run_backward(call, core_rows, lse, grad, (dq, dk, dv), core_grads, splits)
    if part is not None:
        sum_partials(call, part, dqkv, splits)
    return grads


def read_forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Returns out (B, C, H, D) and its log-sum-exp (B, H, C), for q (B, C, H, D) and k, v (B, N, H, D)."""
    out = empty(q, q.shape)
    return out, run_read_forward(_read_call(q, k, v, lengths, scale), out)


def read_backward(
    grad: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq (B, C, H, D), dk and dv (B, N, H, D)."""
    call = _read_call(q, k, v, lengths, scale)
    dq, dk, dv = empty(q, q.shape), empty(k, k.shape), empty(v, v.shape)
    splits, part = partial_sums(call, 1)
    sums = dq if part is None else part[0]
    run_read_backward(call, out, lse, grad, grad_lse, (sums, dk, dv), splits)
    if part is not None:
        sum_partials(call, part, dq[None], splits)
    return dq, dk, dv


def write_forward(q: Tensor, k: Tensor, v: Tensor, active: int | Tensor, scale: float) -> Tensor:
    """Returns out (B, N, H, D), for q (B, N, H, D) and k, v (B, C, H, D)."""
    out = empty(q, q.shape)
    run_write_forward(_write_call(q, k, v, active, scale), out)
    return out


def write_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, active: int | Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns dq (B, N, H, D), and dk and dv stacked, (2, B, C, H, D)."""
    call = _write_call(q, k, v, active, scale)
    dq, dkv = empty(q, q.shape), empty(k, (2, *k.shape))
    splits, part = partial_sums(call, 2)
    dk_sum, dv_sum = dkv if part is None else part
    run_write_backward(call, grad, (dq, dk_sum, dv_sum), splits)
    if part is not None:
        sum_partials(call, part, dkv, splits)
    return dq, dkv


def _joint_call(q: Tensor, k: Tensor | None, v: Tensor | None, options: Options) -> Call:
    q, k, v = q.unbind(2) if k is None or v is None else (q, k, v)  # (B, T, H, D)
    return Call(q, k, v, q.shape[1] - options.num_cores, options.num_cores, options)


def _read_call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float) -> Call:
    cores = q.shape[1]
    return Call(q, k, v, k.shape[1], 0, Options(cores, cores, lengths, None, scale, False, False))


def _write_call(q: Tensor, k: Tensor, v: Tensor, active: int | Tensor, scale: float) -> Call:
    return Call(q, k, v, q.shape[1], 0, Options(k.shape[1], active, None, None, scale, False, False))
