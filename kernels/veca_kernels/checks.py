"""Checks of all arguments. Every error names what was expected and what came.

Checks take longer than a short kernel. So each kind of joint call that goes to Triton is checked once, see `recall`.
"""

import functools
import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .devices import device_facts, takes_gpu_path
from .options import Options


class Slot:
    """What the checks of one kind of joint call found: the scale, or None until a call has passed them."""

    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale: float | None = None


@functools.lru_cache(1024, typed=True)  # typed, because True is no number of cores
def _slot(*key: Any) -> Slot:
    return Slot()


def recall(impl: str, tensors: tuple[Tensor, ...], given: tuple[Any, ...]) -> Slot | None:
    """The place of this kind of call. Where its `scale` is set, the call needs no check.

    Args:
        impl: Implementation that the caller named.
        tensors: q, k and v, or qkv alone.
        given: The other arguments of the caller, in the order of `Options`.

    Returns:
        The place, or None where the checks run every time: on a CPU, under compilers, and for arguments of odd types.
    """
    first = tensors[0]
    if impl not in ("auto", "triton"):
        return None
    if torch.compiler.is_compiling() or not isinstance(first, Tensor) or not takes_gpu_path(first):
        return None
    num_cores, active, lengths, rope, scale, core_self, patch_self = given
    if not (rope is None or type(rope) is tuple):
        return None
    kinds = [  # all that the checks ask about a tensor, and the class of anything else
        (type(x), x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else type(x)
        for x in (*tensors, active, lengths, *(rope or ()))
    ]
    active = None if isinstance(active, Tensor) else active
    try:
        return _slot(impl, num_cores, active, scale, core_self, patch_self, device_facts(first.device), *kinds)
    except TypeError:  # not hashable; the checks say what is wrong
        return None


def filled_in(given: tuple[Any, ...], scale: float) -> Options:
    """Checked arguments with their defaults. Tables that require a gradient are detached."""
    num_cores, active, lengths, rope, _, core_self, patch_self = given
    if rope is not None and (rope[0].requires_grad or rope[1].requires_grad):
        rope = tuple(x.detach() for x in rope)
    return Options(num_cores, num_cores if active is None else active, lengths, rope, scale, core_self, patch_self)


def check_options(given: tuple[Any, ...], like: Tensor, batch: int, tokens: int) -> Options:
    """Check everything beside q, k and v, and fill in the defaults. `like` is q or qkv, with last dimension D."""
    num_cores, active, lengths, rope, scale, core_self, patch_self = given
    _check_int("num_cores", num_cores)
    if not 0 <= num_cores <= tokens:
        raise ValueError(f"expected 0 <= num_cores <= {tokens} tokens, got num_cores={num_cores}")
    for name, flag in (("core_self", core_self), ("patch_self", patch_self)):
        if not isinstance(flag, bool):
            raise TypeError(f"expected {name} to be a bool, got {type(flag).__name__}")
    if rope is not None:
        check_rope(rope, batch, tokens - num_cores, like)
    check_active(active, num_cores, batch, like.device)
    if lengths is not None:
        check_counts("patch_lengths", lengths, batch, like.device)
    return filled_in(given, check_scale(scale, like.shape[-1]))


def check_qkv(*tensors: Tensor) -> None:
    """Types, dtypes, devices and dimensions of q, k and v (B, H, tokens, D), or of qkv alone."""
    for x in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected q, k, v to be tensors, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"expected q, k, v of a floating dtype, got {x.dtype}")
        if len(tensors) == 3 and x.ndim != 4:
            raise ValueError(f"expected q, k, v of shape (B, H, tokens, D), got {shapes_of(*tensors)}")
        if x.shape[-1] == 0:
            raise ValueError(f"expected a head dim of at least 1, got shape {tuple(x.shape)}")
    if len({x.dtype for x in tensors}) > 1:
        raise ValueError(f"expected q, k, v of one dtype, got {', '.join(str(x.dtype) for x in tensors)}")
    if len({x.device for x in tensors}) > 1:
        raise ValueError(f"expected q, k, v on one device, got {', '.join(str(x.device) for x in tensors)}")


def check_halves(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q (B, H, queries, D), k and v (B, H, keys, D)."""
    check_qkv(q, k, v)
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"expected q (B, H, queries, D) and k, v (B, H, keys, D), got {shapes_of(q, k, v)}")


def check_active(active: int | Tensor | None, num_cores: int, batch: int, device: torch.device) -> int | Tensor:
    """The number of active cores, an int or int32 (B,); all for None."""
    if active is None:
        return num_cores
    if isinstance(active, Tensor):
        return check_counts("active_cores", active, batch, device)
    _check_int("active_cores", active)
    if not 0 <= active <= num_cores:
        raise ValueError(f"expected 0 <= active_cores <= {num_cores} cores, got active_cores={active}")
    return active


def check_counts(name: str, counts: Tensor, batch: int, device: torch.device) -> Tensor:
    """Counts per image, int32 (B,)."""
    if not isinstance(counts, Tensor):
        raise TypeError(f"expected {name} to be an int32 tensor of shape ({batch},), got {type(counts).__name__}")
    if counts.dtype != torch.int32:
        raise TypeError(f"expected {name} to be int32, got {counts.dtype}; call .to(torch.int32)")
    if counts.shape != (batch,):
        raise ValueError(f"expected {name} of shape ({batch},), one count per image, got {tuple(counts.shape)}")
    if counts.device != device:
        raise ValueError(f"expected {name} on {device} like q, got {counts.device}")
    return counts


def check_rope(rope: tuple[Tensor, Tensor], batch: int, patches: int, like: Tensor) -> None:
    """(cos, sin), each (P, D/2) or (B, P, D/2), on the device of `like`, in fp32 or with 16-bit q in fp16."""
    if not isinstance(rope, tuple | list) or len(rope) != 2 or not all(isinstance(x, Tensor) for x in rope):
        raise TypeError(f"expected patch_rope to be a pair of tensors (cos, sin), got {type(rope).__name__}")
    head_dim = like.shape[-1]
    shapes = ((patches, head_dim // 2), (batch, patches, head_dim // 2))
    halves = like.dtype in (torch.float16, torch.bfloat16)
    for name, x in zip(("cos", "sin"), rope, strict=True):
        if head_dim % 2 or tuple(x.shape) not in shapes or x.shape != rope[0].shape:
            raise ValueError(
                f"expected patch_rope (cos, sin) of one shape, {shapes[0]} or {shapes[1]}, got {shapes_of(*rope)}"
            )
        if x.dtype != rope[0].dtype or not (x.dtype == torch.float32 or (halves and x.dtype == torch.float16)):
            raise TypeError(
                f"expected patch_rope {name} in float32, or cos and sin in float16 where q is a 16-bit type, got "
                f"{x.dtype} with q in {like.dtype}"
            )
        if x.device != like.device:
            raise ValueError(f"expected patch_rope {name} on {like.device} like q, got {x.device}")


def check_scale(scale: float | None, head_dim: int) -> float:
    """The factor of the scores; D ** -0.5 for None."""
    if scale is None:
        return head_dim**-0.5
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"expected scale to be a float or None, got {type(scale).__name__}")
    try:
        value = float(scale)
    except OverflowError:
        value = math.inf
    if not -math.inf < value < math.inf:
        raise ValueError(f"expected scale to be finite, got {value}")
    return value


def _check_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")


def shapes_of(*tensors: Tensor) -> str:
    """Shapes for an error message."""
    return ", ".join(str(tuple(x.shape)) for x in tensors)
