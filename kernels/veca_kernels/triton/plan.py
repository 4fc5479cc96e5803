"""Launch plans: what a call allocates and launches is noted once and then repeated.

Preparing a launch (tile, splits, strides, Triton's own binding of arguments) takes longer than a short kernel runs.
All of it follows from shapes, strides, dtypes, numbers and flags. So the second call of a kind is noted while it
runs: its buffers, its binaries, and where every pointer among their arguments came from. Later calls of that kind
allocate, fill in pointers and launch.

The key of a plan holds everything that the noted call could depend on. Values of tensors are never read. Calls whose
pointers cannot be traced take the long way. So do calls with a pointer that is not aligned to 16 bytes, because they
need other binaries.
"""

import contextlib
import functools
import math
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..devices import takes_gpu_path
from . import adapter

MAX_PLANS = 1024  # for all shapes, budgets and passes; the least recently used plan is dropped first
_ALIGNMENT = 16  # bytes: what Triton specialises pointers on
_SCRATCH_ALIGNMENT = 256
_SCALARS = frozenset({type(None), bool, int, float})
_local = threading.local()


def run(body: Callable[..., Any], settings: Any, *arguments: Any) -> Any:
    """`body(*arguments)`, from a plan if there is one.

    Args:
        body: Allocates with `empty`, launches with `launch` and returns a buffer or a tuple of buffers.
        settings: What else the launches of the body depend on, hashable.
        arguments: Tensors of one device, None, numbers, flags and tuples of all these. The first is a tensor.
    """
    first = arguments[0]
    if not takes_gpu_path(first):  # ahead-of-time recording and the interpreter
        return body(*arguments)
    tensors: list[Tensor] = []
    key: list[Any] = [body, settings, first.device, adapter.compilation_state()]
    if first.dtype == torch.float32:
        key.append(torch.backends.cuda.matmul.fp32_precision)
    _describe(arguments, key, tensors)
    slot = _slot(tuple(key))
    if slot.plan is not None:
        results = slot.plan.repeat(tensors)
        return body(*arguments) if results is None else results
    if not slot.seen:  # a size that comes only once is not worth a plan
        slot.seen = True
        return body(*arguments)
    _local.notes = notes = _Notes(tensors)
    try:
        results = body(*arguments)
    finally:
        _local.notes = None
    slot.plan = notes.plan(results)
    return results


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A buffer on the device of `like`, in its dtype unless another is given."""
    buffer = like.new_empty(shape, dtype=dtype or like.dtype)
    notes = getattr(_local, "notes", None)
    if notes is not None:
        notes.buffers.append(buffer)
    return buffer


def launch(kernel: Any, programs: int, device: torch.device, **arguments: Any) -> None:
    """Launch a flat grid on the device of the tensors. An empty grid launches nothing."""
    if programs == 0:
        return
    # on a CPU: the interpreter, or an emulated device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        compiled = kernel[(programs,)](**arguments)
    notes = getattr(_local, "notes", None)
    if notes is not None:
        notes.launches.append((kernel, programs, compiled, arguments))


def clear() -> None:
    """Forget all plans. For tests and benchmarks that change what launches depend on."""
    _slot.cache_clear()


class _Slot:
    """The place of a plan. `seen` is set by the first call of its kind."""

    __slots__ = ("plan", "seen")

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.seen = False


@functools.lru_cache(MAX_PLANS)  # thread-safe; two threads may both fill a slot, with the same plan
def _slot(key: tuple[Any, ...]) -> _Slot:
    return _Slot()


def _describe(values: tuple[Any, ...], key: list[Any], tensors: list[Tensor]) -> None:
    """Append to `key` what a plan depends on, and the tensors among the values and in their tuples to `tensors`."""
    for x in values:
        if type(x) in _SCALARS:
            key.append(x)
        elif isinstance(x, tuple):
            _describe(x, key, tensors)
        else:
            tensors.append(x)
            key.append(_layout(x))


def _layout(x: Tensor) -> tuple[Any, ...]:
    """All that a launch can depend on beside the address."""
    if torch.version.hip is None:
        return x.shape, x.stride(), x.dtype
    return x.shape, x.stride(), x.dtype, x.untyped_storage().nbytes() < 2**31  # AMD's binaries depend on it


class Plan:
    """The buffers and launches of one kind of call. Holds no tensor."""

    def __init__(self, device: torch.device, outputs: list, single: bool, scratch: int, launches: list) -> None:
        self.index = device.index or 0
        self.outputs, self.single, self.scratch, self.launches = outputs, single, scratch, launches

    def repeat(self, tensors: list[Tensor]) -> Any:
        """Results for these tensors. If an address is not aligned, nothing is launched and None is returned."""
        first = tensors[0]
        results = [first.new_empty(shape, dtype=dtype) for shape, dtype in self.outputs]
        pointers = [x.data_ptr() for x in tensors]
        pointers += [x.data_ptr() for x in results]
        if self.scratch:
            scratch = first.new_empty(self.scratch, dtype=torch.float32)  # freed at the end, in stream order
            pointers.append(scratch.data_ptr())
        if functools.reduce(operator.or_, pointers) % _ALIGNMENT:
            return None
        driver = adapter.active_driver()
        if driver.get_current_device() == self.index:
            self._launch(driver.get_current_stream(self.index), pointers)
        else:
            with torch.cuda.device(self.index):
                self._launch(driver.get_current_stream(self.index), pointers)
        return results[0] if self.single else tuple(results)

    def _launch(self, stream: int, pointers: list[int]) -> None:
        for launch, programs, arguments in self.launches:
            launch(programs, stream, arguments(pointers))


class _Untraced(Exception):
    """A pointer of a launch is neither an input's nor a buffer's."""


class _Notes:
    """What happens during one call."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.buffers: list[Tensor] = []
        self.launches: list[tuple[Any, int, Any, dict[str, Any]]] = []

    def plan(self, results: Tensor | tuple[Tensor, ...]) -> Plan | None:
        """The plan of the call that returned `results`, or None if it cannot be repeated."""
        single = isinstance(results, Tensor)
        outputs = [results] if single else list(results)
        scratch = [x for x in self.buffers if not any(x is y for y in outputs)]
        known = [*self.tensors, *outputs]
        traced = len({id(x) for x in known}) == len(known) and len(outputs) + len(scratch) == len(self.buffers)
        if not traced or any(x.data_ptr() % _ALIGNMENT for x in (*known, *scratch)):
            return None
        size, places = 0, [(x, f"p[{i}]") for i, x in enumerate(known)]
        for x in scratch:
            places.append((x, f"p[{len(known)}] + {size}" if x.nbytes else "0"))
            size += -(-x.nbytes // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
        try:
            launches = [_repeatable(*launch, places) for launch in self.launches]
        except _Untraced:
            return None
        shapes = [(tuple(x.shape), x.dtype) for x in outputs]
        return Plan(self.tensors[0].device, shapes, single, size // 4, launches)


def _repeatable(
    kernel: Any, programs: int, compiled: Any, arguments: dict[str, Any], places: list[tuple[Tensor, str]]
) -> tuple[Callable, int, Callable]:
    """(launcher, programs, function from pointers to the kernel's arguments).

    The arguments are one expression that is compiled once. A loop over them would take as long as the rest of a launch.
    """
    if compiled is None:  # a hook of Triton's forbade the compilation
        raise _Untraced
    values = ", ".join(_expression(arguments[name], places) for name in kernel.arg_names)
    function = eval(f"lambda p: ({values},)", {"inf": math.inf, "nan": math.nan})
    return adapter.launcher(compiled), programs, function


def _expression(value: Any, places: list[tuple[Tensor, str]]) -> str:
    """Writes the value of an argument as Python code. A tensor becomes an address in terms of the pointers p."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{_expression(x, places)}, " for x in value) + ")"
    if not isinstance(value, Tensor):
        return repr(value)
    for x, place in places:
        if x is value:
            return place
    storage = value.untyped_storage().data_ptr()
    owners = [(x, place) for x, place in places if x.untyped_storage().data_ptr() == storage]
    if len(owners) != 1:  # views of two inputs in one memory could be at another distance next time
        raise _Untraced
    ((owner, place),) = owners
    return f"{place} + {value.data_ptr() - owner.data_ptr()}"
