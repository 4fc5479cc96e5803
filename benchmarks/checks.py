"""The numerical check before any timing. It compares the call that will be timed with the fp64 definition.

The contender runs at the full shape. Two (image, head) pairs of its output and gradients are compared, which is enough
because images and heads are independent. Of full attention only the first rows are compared.

A value passes if

    max |x - ref| <= 2 (max |composed - ref| + eps max |ref|)
    rms(x - ref)  <= max(0.005 rms(ref), 2 rms(composed - ref))

where `composed` is a plain chain in the dtype under test. In bf16 the RMS error of the chain itself exceeds 0.005 from
about a thousand patches on. In fp32 the bounds are 1e-5 max |ref| and 1e-5 rms(ref). NaN never passes.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from veca_kernels import core_to_patch_attention, patch_to_core_attention

from veca.bench.timing import OUT_OF_MEMORY, short_error

from .floors import AttentionCase
from .peers import Peer, chain
from .rotation import angle_tables, rotate

__all__ = ["BufferSet", "Buffers", "Check", "Oracle", "verify"]

_RMS_LIMIT = 0.005
_FP32_LIMIT = 1e-5
_FULL_ROWS = 256  # query rows of full attention that are compared
_NAMES = ("out", "dq", "dk", "dv")


@dataclass(frozen=True)
class BufferSet:
    """Inputs of an op (leaves that require grad) and the gradient of its output."""

    inputs: tuple[Tensor, ...]
    grad: Tensor


@dataclass(frozen=True)
class Check:
    """Whether a contender computes the op. `share` is its worst error divided by the allowed error."""

    status: str  # "ok", "wrong", "error", or "skipped" when out of memory
    share: float
    message: str
    peak_bytes: int | None = None  # peak of forward and backward beyond the inputs; CUDA only
    seconds: float = 0.0  # time of the second forward and backward with launches; CUDA only


class Buffers:
    """Random inputs of one op at one shape, with equal values in every layout, in several copies to be used in turn."""

    def __init__(self, case: AttentionCase, op: str, device: torch.device, count: int) -> None:
        self.case, self.op, self.device, self.count = case, op, device, count
        self._sets: dict[str, list[BufferSet]] = {}

    def get(self, layout: str) -> list[BufferSet]:
        """The sets in "token-major", "head-major" or "packed" memory, made at the first request."""
        if layout not in self._sets:
            first = self._make(layout)
            self._sets[layout] = [first, *(_copy(first) for _ in range(self.count - 1))]
        return self._sets[layout]

    def _make(self, layout: str) -> BufferSet:
        case = self.case
        lengths = {
            "read": (case.C, case.P),
            "write": (case.P, case.C),
            "whole": (case.C + case.P,) * 2,
            "full": (case.P, case.P),
        }
        queries, keys = lengths[self.op]
        generator = torch.Generator(self.device).manual_seed(0)
        q, k, v, grad = (self._random(length, generator) for length in (queries, keys, keys, queries))
        if layout == "packed":
            return BufferSet((torch.stack((q, k, v), 2).requires_grad_(),), grad)  # (B, T, 3, H, D)
        tensors = [x.transpose(1, 2) for x in (q, k, v, grad)]  # (B, H, L, D)
        if layout == "head-major":
            tensors = [x.contiguous() for x in tensors]
        return BufferSet(tuple(x.requires_grad_() for x in tensors[:3]), tensors[3])

    def _random(self, length: int, generator: torch.Generator) -> Tensor:
        case, dtype = self.case, getattr(torch, self.case.dtype)
        shape = (case.B, length, case.H, case.D)
        return torch.randn(shape, generator=generator, device=self.device, dtype=dtype)


def _copy(buffers: BufferSet) -> BufferSet:
    """The same values elsewhere in memory, strides included."""
    inputs = tuple(x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in buffers.inputs)
    return BufferSet(inputs, buffers.grad.clone(memory_format=torch.preserve_format))


class Oracle:
    """The fp64 values for two (image, head) pairs of the first buffer set, and the error that is allowed."""

    def __init__(self, case: AttentionCase, op: str, buffers: Buffers) -> None:
        self.case, self.op = case, op
        self.pairs = sorted({(0, 0), (case.B - 1, case.H - 1)})
        self.rows = min(case.P, _FULL_ROWS) if op == "full" else None
        self.fp32 = case.dtype == "float32"
        self.eps = torch.finfo(getattr(torch, case.dtype)).eps
        first = buffers.get("token-major")[0]
        self._expected, self._composed = [], []
        for image, head in self.pairs:
            pair = [x[image, head][None, None].detach() for x in (*first.inputs, first.grad)]
            q, k, v, grad = pair[0][:, :, : self.rows], pair[1], pair[2], pair[3][:, :, : self.rows]
            with _one_thread(q.device):
                exact = (x.double() for x in (q, k, v, grad))
                self._expected.append(_with_gradients(self._definition(), *exact))
                self._composed.append(_with_gradients(self._chain(), q, k, v, grad))

    def compare(self, out: Tensor, grads: Sequence[Tensor]) -> tuple[float, str]:
        """The worst error divided by the allowed error, and a message that names it.

        Args:
            out: output of the whole batch, (B, H, queries, D).
            grads: dq, dk and dv, shaped like q, k and v, or nothing.
        """
        worst, message = 0.0, ""
        values = dict(zip(_NAMES, (out, *grads), strict=False))
        if self.op == "full":
            values = {name: x[:, :, : self.rows] for name, x in values.items() if name in ("out", "dq")}
        for (image, head), expected, composed in zip(self.pairs, self._expected, self._composed, strict=True):
            for name, x in values.items():
                share, text = self._share(x[image, head].detach(), expected[name], composed[name])
                if not share <= worst:
                    worst, message = share, f"{name} of image {image}, head {head}: {text}"
        return worst, message

    def _share(self, x: Tensor, expected: Tensor, composed: Tensor) -> tuple[float, str]:
        """Error divided by the allowed error of one value: the larger ratio of maximum and RMS; inf for NaN."""
        error, rms = _errors(x, expected)
        largest = expected.abs().max().item()
        if self.fp32:
            allowed, allowed_rms = _FP32_LIMIT * largest, _FP32_LIMIT
        else:
            own, own_rms = _errors(composed, expected)
            allowed, allowed_rms = 2 * (own + self.eps * largest), max(_RMS_LIMIT, 2 * own_rms)
        share = max(error / allowed, rms / allowed_rms)
        text = f"max error {error:.3g}, allowed {allowed:.3g}; relative RMS {rms:.3g}, allowed {allowed_rms:.3g}"
        return (math.inf if math.isnan(error) else share), text

    def _definition(self) -> Callable[..., Tensor]:
        read = _reference(patch_to_core_attention)
        return self._compose(read, _reference(core_to_patch_attention))

    def _chain(self) -> Callable[..., Tensor]:
        return self._compose(chain, chain)

    def _compose(self, read: Callable[..., Tensor], write: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The op from its halves, because the dense T x T mask of the definition would need too much memory."""
        if self.op == "full":
            return read
        if self.op == "read":
            return lambda q, k, v: read(q, self._turn(k), v)
        if self.op == "write":
            return lambda q, k, v: write(self._turn(q), k, v)
        cores = self.case.C

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own, keys = k[:, :, :cores], torch.cat((k[:, :, :cores], self._turn(k[:, :, cores:])), 2)
            out_core = read(q[:, :, :cores], keys, v)
            return torch.cat((out_core, write(self._turn(q[:, :, cores:]), own, v[:, :, :cores])), 2)

        return whole

    def _turn(self, x: Tensor) -> Tensor:
        """The patches' q or k, rotated by the contenders' tables. Values of low-precision tables count as exact."""
        if self.case.tables is None:
            return x
        return rotate(x, *angle_tables(self.case.P, self.case.D, self.case.tables, x.device))


def verify(peer: Peer, oracle: Oracle, buffers: Buffers) -> Check:
    """Run a peer as it will be timed, and compare. An exception is a failed check with its message as the reason."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            share, message, peak, seconds = _run(peer, oracle, buffers)
        except Exception as error:  # peers refuse shapes by exceptions of many types
            reasons = dict.fromkeys(str(w.message).split(" (Triggered")[0].strip() for w in caught)
            message = "; ".join((short_error(error), *reasons))[:600]
            status = "skipped" if OUT_OF_MEMORY in message else "error"
            return Check(status, math.inf, message)
    return Check("ok" if share <= 1 else "wrong", share, message, peak, seconds)


def _run(peer: Peer, oracle: Oracle, buffers: Buffers) -> tuple[float, str, int | None, float]:
    first = buffers.get(peer.layout)[0]
    cuda = buffers.device.type == "cuda"
    with peer.context():
        if cuda:  # the first run pays for compilation and library workspaces, the second shows the peak
            _forward_backward(peer, first)
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        out, grads = _forward_backward(peer, first)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() - held if cuda else None
    if peer.layout == "packed":
        out, grads = out.transpose(1, 2), [x.transpose(1, 2) for x in grads[0].unbind(2)] if grads else ()
    return *oracle.compare(out, grads), peak, seconds


def _forward_backward(peer: Peer, buffers: BufferSet) -> tuple[Tensor, Sequence[Tensor]]:
    if not peer.differentiable:
        with torch.no_grad():
            return peer.call(*buffers.inputs), ()
    out = peer.call(*buffers.inputs)
    return out, torch.autograd.grad(out, buffers.inputs, buffers.grad)


def _errors(x: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest error, and the RMS error relative to the RMS of the expected values."""
    difference = x.double() - expected
    return difference.abs().max().item(), (difference.norm() / expected.norm()).item()


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """One thread for many small fp64 products, whose threads mostly wait for each other on a busy CPU."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if device.type == "cpu" else threads)
        yield
    finally:
        torch.set_num_threads(threads)


def _with_gradients(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor
) -> dict[str, Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = attention(q, k, v)
    values = (out, *torch.autograd.grad(out, (q, k, v), grad))
    return {name: x[0, 0].detach() for name, x in zip(_NAMES, values, strict=True)}


def _reference(half: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return half(q, k, v, impl="reference")

    return definition
