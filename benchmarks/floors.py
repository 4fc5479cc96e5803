"""Arithmetic floors: the least time that any correct kernel needs for a pass. This file does not import torch.

    floor = max(bytes / bandwidth, flops / matmul rate, exps / exponential rate)

Every input counts once as read and every output once as written, with s bytes for each element. lse has 4 bytes for
each row:

    pass        bytes                          matmuls (2 B H P C D FLOP each)
    read  fwd   s (2 BPHD + 2 BCHD) + lse      2
    read  bwd   s (4 BPHD + 4 BCHD) + 2 lse    5
    write fwd   s (2 BPHD + 2 BCHD)            2
    write bwd   s (3 BPHD + 4 BCHD)            5     all keys resident: no output, no statistics read
    full  fwd   s 4 BPHD                       2     with P keys instead of C
    full  bwd   s 8 BPHD                       5

"whole" is read and write, "fwd+bwd" is both passes. Floors add up, because each pass needs the result of the one
before.

A rotated op rotates the patches' k for the read and their q for the write. Its floor moves the same patch tensors. It
also reads the angle tables, P D/2 cosines and as many sines, once in every pass. The two halves of "whole" share that
reading, and so do images and heads. The multiplications of the rotation are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "H200",
    "OPS",
    "PASSES",
    "AttentionCase",
    "Cost",
    "Floor",
    "Machine",
    "cost",
    "floor",
    "memory_limit",
    "score_bytes",
]

OPS = ("read", "write", "whole", "full")
PASSES = ("fwd", "bwd", "fwd+bwd")
ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
HALVES = {"read": ("read",), "write": ("write",), "whole": ("read", "write"), "full": ("full",)}


@dataclass(frozen=True)
class AttentionCase:
    """One shape of the op: B images, P patches, C cores, H heads of D channels.

    `tables` is the dtype of the angle tables that rotate the patches' q and k. None does not rotate.
    """

    B: int
    P: int
    C: int
    H: int = 12
    D: int = 64
    dtype: str = "bfloat16"
    tables: str | None = None

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch-sized tensor (B, P, H, D)."""
        return self.element_bytes * self.B * self.P * self.H * self.D

    @property
    def core_bytes(self) -> int:
        """Bytes of one core-sized tensor (B, C, H, D)."""
        return self.element_bytes * self.B * self.C * self.H * self.D

    @property
    def table_bytes(self) -> int:
        """Bytes of the cosines and the sines, (P, D/2) each, shared by images and heads; 0 without rotation."""
        return 0 if self.tables is None else ELEMENT_BYTES[self.tables] * self.P * self.D


@dataclass(frozen=True)
class Cost:
    """Bytes, FLOP and exponentials of one elementary pass."""

    bytes: int
    flops: int
    exps: int


@dataclass(frozen=True)
class Machine:
    """Rates of a device.

    Attributes:
        name: name of the device.
        bandwidth: copy rate in B/s, bytes read plus written.
        matmul: matmul rate in FLOP/s.
        exps: exponentials a second.
        launch: seconds of a launch.
        source: how the rates are known.
    """

    name: str
    bandwidth: float
    matmul: float
    exps: float
    launch: float
    source: str


H200 = Machine(
    name="NVIDIA H200",
    bandwidth=4.3e12,
    matmul=790e12,
    exps=132 * 16 * 1.755e9,
    launch=2.5e-6,
    source="copy, bf16 matmul: measured on one H200, 2026-11-04; exponentials: 16 a clock and SM, 1.755 GHz",
)


@dataclass(frozen=True)
class Floor:
    """Seconds of a floor, and what limits it.

    The regime is M for memory, T for matmul, E for exponentials. It is L for launches where the floor is shorter than
    two launches for each pass.
    """

    seconds: float
    regime: str


def cost(case: AttentionCase, op: str, pass_: str) -> Cost:
    """Bytes, FLOP and exponentials of one elementary pass, without the angle tables.

    Args:
        case: the shape.
        op: "read", "write" or "full".
        pass_: "fwd" or "bwd".

    Raises:
        ValueError: another op or pass.
    """
    patch, core = case.patch_bytes, case.core_bytes
    lse = 4 * case.B * case.H * case.C
    table = {
        ("read", "fwd"): 2 * patch + 2 * core + lse,
        ("read", "bwd"): 4 * patch + 4 * core + 2 * lse,
        ("write", "fwd"): 2 * patch + 2 * core,
        ("write", "bwd"): 3 * patch + 4 * core,
        ("full", "fwd"): 4 * patch,
        ("full", "bwd"): 8 * patch,
    }
    if (op, pass_) not in table:
        raise ValueError(f"expected an elementary pass, one of {sorted(table)}, got {(op, pass_)}")
    pairs = case.B * case.H * case.P * (case.P if op == "full" else case.C)
    matmuls = 2 if pass_ == "fwd" else 5
    return Cost(table[op, pass_], matmuls * 2 * pairs * case.D, pairs)


def floor(case: AttentionCase, op: str, pass_: str, machine: Machine) -> Floor:
    """The floor of an op and a pass on a machine.

    A sum of passes has the regime of its longest part.

    Args:
        case: the shape.
        op: one of `OPS`.
        pass_: one of `PASSES`.
        machine: rates of the device.

    Raises:
        ValueError: another op or pass.
    """
    parts = []
    for elementary_op, elementary_pass in _elementary(op, pass_):
        c = cost(case, elementary_op, elementary_pass)
        angles = case.table_bytes if elementary_op == HALVES[op][0] else 0  # the second half shares them
        times = {
            "M": (c.bytes + angles) / machine.bandwidth,
            "T": c.flops / machine.matmul,
            "E": c.exps / machine.exps,
        }
        limit = max(times, key=times.__getitem__)
        parts.append((times[limit], limit))
    seconds = math.fsum(time for time, _ in parts)
    return Floor(seconds, "L" if seconds < 2 * machine.launch * len(parts) else max(parts)[1])


def flops(case: AttentionCase, op: str, pass_: str) -> int:
    """FLOP of an op and a pass, to predict its time; `op` and `pass_` as in `floor`."""
    return sum(cost(case, *elementary).flops for elementary in _elementary(op, pass_))


def score_bytes(case: AttentionCase, op: str) -> int:
    """Bytes of the (queries x keys) matrix in the working dtype. An unfused chain writes and reads this matrix."""
    keys = case.P if op == "full" else 2 * case.C if op == "whole" else case.C
    return case.element_bytes * case.B * case.H * case.P * keys


def memory_limit(case: AttentionCase) -> int:
    """Bytes that a training step of the op may take: q, k, v, o and their four gradients, plus 32 MB."""
    return 8 * (case.patch_bytes + case.core_bytes) + 32_000_000


def _elementary(op: str, pass_: str) -> Iterator[tuple[str, str]]:
    if op not in OPS or pass_ not in PASSES:
        raise ValueError(f"expected an op of {OPS} and a pass of {PASSES}, got {op!r} and {pass_!r}")
    for half in HALVES[op]:
        for elementary in ("fwd", "bwd") if pass_ == "fwd+bwd" else (pass_,):
            yield half, elementary
