"""The bodies of the registered ops on a CPU: the algebra of the kernels in plain torch, dense and unfused.

They run where a program that holds the ops, such as one exported on a GPU, gets CPU tensors. The public functions take
sdpa.py there. Signatures are those of triton/ops.py, and fp64 is supported. So registration, autograd, compilation and
the backward formulas are tested without a GPU.
"""

import torch
from torch import Tensor

from .masks import allowed_pairs, masked_logsumexp, masked_softmax, prefix_mask, rotate_pairs
from .options import Options


@torch.no_grad()
def core_periphery_forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, T, H, D), a copy of its core rows (B, C, H, D), and their log-sum-exp (B, H, C)."""
    cores = options.num_cores
    q_, k_, v_ = _rotated(q, cores, options.patch_rope), _rotated(k, cores, options.patch_rope), _heads_first(v)
    mask = allowed_pairs(options, q.shape[1] - cores, q.device)[:, None]  # (1 or B, 1, T, T)
    scores = q_ @ k_.transpose(-2, -1) * options.scale  # (B, H, T, T)
    lse = masked_logsumexp(scores[:, :, :cores], mask[:, :, :cores])  # (B, H, C)
    out = _tokens_first(masked_softmax(scores, mask) @ v_, q)  # (B, T, H, D)
    return out, out[:, :cores].clone(), lse


@torch.no_grad()
def core_periphery_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    core_rows: Tensor,
    lse: Tensor,
    options: Options,
    packed: bool,
) -> Tensor:
    """Gradients of q, k, v in one buffer: (B, T, 3, H, D) if packed, else (3, B, T, H, D)."""
    cores, rope = options.num_cores, options.patch_rope
    q_, k_, v_, do = _rotated(q, cores, rope), _rotated(k, cores, rope), _heads_first(v), _heads_first(grad)
    mask = allowed_pairs(options, q.shape[1] - cores, q.device)[:, None]  # (1 or B, 1, T, T)
    scores = q_ @ k_.transpose(-2, -1) * options.scale  # (B, H, T, T)
    p_core = _weights_from_lse(scores[:, :, :cores], lse, mask[:, :, :cores])  # (B, H, C, T)
    p = torch.cat((p_core, masked_softmax(scores[:, :, cores:], mask[:, :, cores:])), 2)  # (B, H, T, T)
    dp = do @ v_.transpose(-2, -1)  # (B, H, T, T)
    core_delta = (_heads_first(core_rows) * do[:, :, :cores]).sum(-1)  # (B, H, C)
    patch_delta = (p * dp)[:, :, cores:].sum(-1)  # (B, H, P)
    ds = p * (dp - torch.cat((core_delta, patch_delta), 2)[..., None]) * options.scale  # (B, H, T, T)
    back = None if rope is None else (rope[0], -rope[1])
    dq, dk = (_turn_patches(x, cores, back) for x in (ds @ k_, ds.transpose(-2, -1) @ q_))  # (B, H, T, D)
    grads = (dq, dk, p.transpose(-2, -1) @ do)
    return torch.stack([_tokens_first(x, q) for x in grads], dim=2 if packed else 0)


@torch.no_grad()
def read_forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Returns out (B, C, H, D) and its log-sum-exp (B, H, C), for q (B, C, H, D) and k, v (B, N, H, D)."""
    mask = _key_mask(k, k.shape[1] if lengths is None else lengths)
    scores = _heads_first(q) @ _heads_first(k).transpose(-2, -1) * scale  # (B, H, C, N)
    out = masked_softmax(scores, mask) @ _heads_first(v)  # (B, H, C, D)
    return _tokens_first(out, q), masked_logsumexp(scores, mask)


@torch.no_grad()
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
    q_, k_, v_, do = (_heads_first(x) for x in (q, k, v, grad))
    mask = _key_mask(k, k.shape[1] if lengths is None else lengths)
    p = _weights_from_lse(q_ @ k_.transpose(-2, -1) * scale, lse, mask)  # (B, H, C, N)
    delta = (_heads_first(out) * do).sum(-1) - grad_lse.masked_fill(lse == float("-inf"), 0.0)  # (B, H, C)
    ds = p * (do @ v_.transpose(-2, -1) - delta[..., None]) * scale  # (B, H, C, N)
    return (
        _tokens_first(ds @ k_, q),
        _tokens_first(ds.transpose(-2, -1) @ q_, q),
        _tokens_first(p.transpose(-2, -1) @ do, q),
    )


@torch.no_grad()
def write_forward(q: Tensor, k: Tensor, v: Tensor, active: int | Tensor, scale: float) -> Tensor:
    """Returns out (B, N, H, D), for q (B, N, H, D) and k, v (B, C, H, D)."""
    scores = _heads_first(q) @ _heads_first(k).transpose(-2, -1) * scale  # (B, H, N, C)
    return _tokens_first(masked_softmax(scores, _key_mask(k, active)) @ _heads_first(v), q)


@torch.no_grad()
def write_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, active: int | Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns dq (B, N, H, D), and dk and dv stacked, (2, B, C, H, D)."""
    q_, k_, v_, do = (_heads_first(x) for x in (q, k, v, grad))
    p = masked_softmax(q_ @ k_.transpose(-2, -1) * scale, _key_mask(k, active))  # (B, H, N, C)
    dp = do @ v_.transpose(-2, -1)  # (B, H, N, C)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale  # (B, H, N, C)
    dkv = (ds.transpose(-2, -1) @ q_, p.transpose(-2, -1) @ do)
    return _tokens_first(ds @ k_, q), torch.stack([_tokens_first(x, q) for x in dkv])


def _heads_first(x: Tensor) -> Tensor:
    """(B, tokens, H, D) -> (B, H, tokens, D), fp32 or fp64."""
    return x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))


def _tokens_first(x: Tensor, like: Tensor) -> Tensor:
    """(B, H, tokens, D) -> (B, tokens, H, D), a contiguous copy in the dtype of `like`."""
    return torch.clone(x.transpose(1, 2).to(like.dtype), memory_format=torch.contiguous_format)


def _rotated(x: Tensor, num_cores: int, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """`_heads_first` with the patches rotated, rounded once to the dtype of x, as the kernels round their operands."""
    turned = _turn_patches(_heads_first(x), num_cores, rope)
    return turned.to(x.dtype).to(turned.dtype)


def _turn_patches(x: Tensor, num_cores: int, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    if rope is None:
        return x
    return torch.cat((x[:, :, :num_cores], rotate_pairs(x[:, :, num_cores:], *rope)), 2)


def _weights_from_lse(scores: Tensor, lse: Tensor, mask: Tensor) -> Tensor:
    """exp(scores - lse) where allowed, and zeros in rows without a key, where lse is -inf."""
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    return (scores - lse[..., None]).exp().masked_fill(~mask, 0.0)


def _key_mask(k: Tensor, count: int | Tensor) -> Tensor:
    return prefix_mask(count, k.shape[1], k.device)[:, None, None]  # (1 or B, 1, 1, keys)
