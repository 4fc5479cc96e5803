"""The contenders: our implementations and every peer, one function for each, in the layout that suits it.

Ops and their inputs (H heads of D channels each, C cores, P patches, T = C + P tokens):

    read    q (B, H, C, D); k, v (B, H, P, D)       cores gather from patches
    write   q (B, H, P, D); k, v (B, H, C, D)       patches receive from cores
    whole   q, k, v (B, H, T, D), or packed qkv (B, T, 3, H, D): both halves, one joint output
    full    q, k, v (B, H, P, D): what the op replaces

Layouts are the memory orders of these shapes:

    token-major    (B, tokens, H, D), the order of a fused projection's output and an output projection's input
    head-major     (B, H, tokens, D)
    packed         (B, tokens, 3, H, D)

The halves get separate tensors, not slices of joint ones. Folding is then always a view, which favours the peers.

If the case rotates, a peer's read first turns k and its write first turns q (rotation.py). Our halves do not rotate.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from veca_kernels import (
    core_periphery_attention,
    core_periphery_attention_qkvpacked,
    core_to_patch_attention,
    patch_to_core_attention,
)

from .floors import AttentionCase
from .rotation import angle_tables, refused_tables, rotation

__all__ = ["FAMILIES", "Absent", "Peer", "chain", "fold", "fold_candidates", "peers"]

FAMILIES = ("veca", "sdpa", "chain", "chain-compiled", "flex", "xformers")
SDPA_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_SMALLEST_PIECE = 256  # number of patches in the smallest piece of a fold

Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Peer:
    """One way to compute an op.

    `call` maps the inputs of the op to its output and runs inside `context`. `score_matrices` counts the
    (queries x keys) matrices it holds in memory at its worst.
    """

    name: str
    family: str
    op: str
    layout: str
    call: Attention
    context: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    differentiable: bool = True
    score_matrices: int = 0

    @property
    def label(self) -> str:
        return f"{self.name} ({self.layout})"

    @property
    def ours(self) -> bool:
        return self.family == "veca"


@dataclass(frozen=True)
class Absent:
    """A peer that cannot run on this machine, and the reason."""

    name: str
    family: str
    op: str
    reason: str


def peers(
    op: str,
    case: AttentionCase,
    device: torch.device,
    families: Sequence[str] = FAMILIES,
    layouts: Sequence[str] = ("token-major",),
) -> Iterator[Peer | Absent]:
    """Yield all contenders for `op`, also those that cannot compute it, with the reason.

    Args:
        op: "read", "write", "whole" or "full".
        case: the shape, for which folds are chosen.
        device: device on which they will run.
        families: a subset of FAMILIES.
        layouts: memory orders for the peers. Ours take only token-major and packed.

    Raises:
        ValueError: an unknown family.
    """
    builders = {
        "veca": _veca,
        "sdpa": _sdpa,
        "chain": _chain,
        "chain-compiled": _compiled_chain,
        "flex": _flex,
        "xformers": _xformers,
    }
    unknown = sorted(set(families) - set(builders))
    if unknown:
        raise ValueError(f"expected peer families of {FAMILIES}, got {', '.join(unknown)}")
    for family in families:
        for peer in builders[family](op, case, device, layouts):
            turned = case.tables is not None and op in ("read", "write") and isinstance(peer, Peer)
            yield _turned(peer, case, device) if turned else peer


def _turned(peer: Peer, case: AttentionCase, device: torch.device) -> Peer:
    """A peer's half with the rotation that it needs first: of k for the read, of q for the write."""
    turn, attend = rotation(case, device), peer.call
    if peer.op == "read":
        return replace(peer, name=f"{peer.name}+rope", call=lambda q, k, v: attend(q, turn(k), v))
    return replace(peer, name=f"{peer.name}+rope", call=lambda q, k, v: attend(turn(q), k, v))


def chain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The unfused chain computes scores, softmax and product, with (queries x keys) matrices in memory."""
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def fold(attention: Attention, pieces: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of many queries, cut into pieces that join the batch. Keys and values expand with stride 0.

    A key-parallel backward then has `pieces` times as many thread blocks. Autograd sums the expanded gradients.

    Args:
        attention: function from q (B', H, L, D) and k, v (B', H, C, D) to (B', H, L, D).
        pieces: number of pieces S, a divisor of P.
        q: queries (B, H, P, D) in the memory order (B, P, H, D). Other orders are copied for B > 1.
        k, v: keys and values (B, H, C, D).

    Returns:
        (B, H, P, D).

    Raises:
        ValueError: S does not divide P.
    """
    batch, heads, patches, _ = q.shape
    if patches % pieces:
        raise ValueError(f"expected the number of pieces to divide the {patches} patches, got {pieces}")
    q = q.unflatten(2, (pieces, -1)).transpose(1, 2).flatten(0, 1)  # (B S, H, P/S, D)
    k, v = (x[:, None].expand(-1, pieces, -1, -1, -1).flatten(0, 1) for x in (k, v))
    out = attention(q, k, v).transpose(1, 2)  # (B S, P/S, H, D)
    return out.reshape(batch, patches, heads, -1).transpose(1, 2)


def fold_candidates(case: AttentionCase, workers: int) -> list[int]:
    """Numbers of pieces to try: the smallest divisor of P with two blocks per worker, its half and its double.

    Empty if the device is full without folding, or if pieces would have fewer than 256 patches.
    """
    blocks = case.B * case.H * math.ceil(case.C / 128)
    if blocks >= 2 * workers:
        return []
    divisors = [s for s in range(2, case.P // _SMALLEST_PIECE + 1) if case.P % s == 0]
    if not divisors:
        return []
    wanted = math.ceil(2 * workers / blocks)
    chosen = next((s for s in divisors if s >= wanted), divisors[-1])
    return [s for s in divisors if s in (chosen // 2, chosen, chosen * 2)]


def _veca(op: str, case: AttentionCase, device: torch.device, layouts: Sequence[str]) -> Iterator[Peer | Absent]:
    if op == "full" or (case.tables is not None and op != "whole"):
        return
    rope = None if case.tables is None else angle_tables(case.P, case.D, case.tables, device)
    for impl in ("triton", "sdpa"):
        name = f"veca-{impl}"
        reason = _triton_reason(case, device) if impl == "triton" else ""
        reason = reason or (refused_tables(case) if rope else "")
        if reason:
            yield Absent(name, "veca", op, reason)
            continue
        if op == "read":
            yield Peer(name, "veca", op, "token-major", functools.partial(patch_to_core_attention, impl=impl))
        elif op == "write":
            yield Peer(name, "veca", op, "token-major", functools.partial(core_to_patch_attention, impl=impl))
        else:
            options = {"num_cores": case.C, "impl": impl, "patch_rope": rope}
            joint = functools.partial(core_periphery_attention, **options)
            packed = functools.partial(core_periphery_attention_qkvpacked, **options)
            yield Peer(name, "veca", op, "token-major", joint)
            yield Peer(name, "veca", op, "packed", packed)


def _triton_reason(case: AttentionCase, device: torch.device) -> str:
    """The reason why our kernels cannot take the case, from their error message; empty if they can."""
    from veca_kernels.support import triton_support

    if device.type == "cpu":
        return "needs CUDA; times of Triton's interpreter would mean nothing"
    probe = torch.empty(1, 1, 1, case.D, dtype=getattr(torch, case.dtype), device=device)
    return triton_support((probe,), case.C)[1]


def _sdpa(op: str, case: AttentionCase, device: torch.device, layouts: Sequence[str]) -> Iterator[Peer | Absent]:
    if op == "whole":
        return
    attend = F.scaled_dot_product_attention
    for backend, value in SDPA_BACKENDS.items():
        name = f"sdpa-{backend}"
        if device.type != "cuda" and backend not in ("flash", "math"):
            yield Absent(name, "sdpa", op, f"torch has no {backend} attention on {device.type}")
            continue
        only = functools.partial(_only_backend, value)
        matrices = 6 if backend == "math" else 0  # bf16 scores and their gradients are kept in fp32
        for layout in layouts:
            yield Peer(name, "sdpa", op, layout, attend, only, score_matrices=matrices)
        for pieces in fold_candidates(case, num_workers(device)) if op == "write" else []:
            folded = functools.partial(fold, attend, pieces)
            label = f"{name}-fold{pieces}"
            yield Peer(label, "sdpa", op, "token-major", folded, only, score_matrices=matrices)


def num_workers(device: torch.device) -> int:
    """Number of units that run thread blocks in parallel: multiprocessors of a GPU, threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return torch.get_num_threads()


@contextmanager
def _only_backend(backend: SDPBackend) -> Iterator[None]:
    """A context in which SDPA uses only this backend. A call that the backend cannot take raises."""
    with sdpa_kernel([backend]):
        yield


def _chain(op: str, case: AttentionCase, device: torch.device, layouts: Sequence[str]) -> Iterator[Peer | Absent]:
    if op in ("read", "write"):
        for layout in layouts:
            yield Peer("chain", "chain", op, layout, chain, score_matrices=5)


def _compiled_chain(
    op: str, case: AttentionCase, device: torch.device, layouts: Sequence[str]
) -> Iterator[Peer | Absent]:
    """The chain under Inductor, whose pattern matcher would otherwise turn it into SDPA."""
    if op not in ("read", "write"):
        return
    if device.type != "cuda":
        yield Absent("chain-compiled", "chain-compiled", op, "compiled peers are measured on CUDA only")
        return
    compiled = torch.compile(chain, dynamic=False, fullgraph=True, options={"pattern_matcher": False})
    for layout in layouts:
        yield Peer("chain-compiled", "chain-compiled", op, layout, compiled, score_matrices=5)


def _flex(op: str, case: AttentionCase, device: torch.device, layouts: Sequence[str]) -> Iterator[Peer | Absent]:
    """FlexAttention on each half, and as one call with the core-periphery mask on the whole."""
    if op == "full":
        return
    if device.type != "cuda":
        yield Absent("flex", "flex", op, "FlexAttention has no backward on CPU")
        return
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    if op != "whole":
        for layout in layouts:
            yield Peer("flex", "flex", op, layout, compiled)
        return
    mask = _lazy(functools.partial(_block_mask, case.C, case.C + case.P, device))
    if case.tables is None:
        yield Peer("flex-mask", "flex", op, "token-major", lambda q, k, v: compiled(q, k, v, block_mask=mask()))
        return
    turn = rotation(case, device, unturned=case.C)
    yield Peer(
        "flex-mask+rope", "flex", op, "token-major", lambda q, k, v: compiled(turn(q), turn(k), v, block_mask=mask())
    )


def _block_mask(num_cores: int, tokens: int, device: torch.device) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    def core_periphery(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query < num_cores) | (key < num_cores)

    return create_block_mask(core_periphery, None, None, tokens, tokens, device=device, _compile=True)


def _lazy(build: Callable[[], object]) -> Callable[[], object]:
    """Build at the first call and keep the result, so that an unused mask takes no time."""
    return functools.cache(build)


def _xformers(op: str, case: AttentionCase, device: torch.device, layouts: Sequence[str]) -> Iterator[Peer | Absent]:
    if op not in ("read", "write"):
        return
    if reason := _xformers_reason(device):
        yield Absent("xformers", "xformers", op, reason)
        return
    from xformers.ops import fmha

    pairs = {
        "xformers-cutlass": (fmha.cutlass.FwOp, fmha.cutlass.BwOp),
        "xformers-flash": (fmha.flash.FwOp, fmha.flash.BwOp),
        "xformers-splitk": (fmha.triton_splitk.FwOp, None),
    }
    for name, ops in pairs.items():
        if ops[1] is None and op != "read":
            continue
        for layout in layouts:
            yield Peer(name, "xformers", op, layout, functools.partial(_fmha, ops), differentiable=ops[1] is not None)


def _fmha(ops: tuple[type, type | None], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import fmha

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # xformers takes (B, L, H, D)
    return fmha.memory_efficient_attention(q, k, v, op=ops).transpose(1, 2)


@functools.cache
def _xformers_reason(device: torch.device) -> str:
    if device.type != "cuda":
        return "its attention operators need CUDA"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (`pip install xformers`; each wheel fits one torch version)"
    os.environ.setdefault("XFORMERS_IGNORE_FLASH_VERSION_CHECK", "1")
    try:
        from xformers.ops import fmha  # noqa: F401
    except ImportError as error:
        return f"xformers cannot be imported: {error}"
    return ""
