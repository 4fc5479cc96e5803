"""A Triton driver for a GPU that the machine does not have. Kernels are compiled and launched, but not run.

    from benchmarks.fake_driver import install
    driver = install()                                      # from now on CPU tensors stand for CUDA tensors
    core_periphery_attention(q, k, v, 64, impl="triton")    # the path of a GPU, up to the launch
    print([launch.kernel for launch in driver.launches])

`fake_driver(...)` is the same as a context manager. Outputs are not written, so their values have no meaning. The
launcher checks every argument against the binary that would run. It raises AssertionError for these arguments:

    a pointer of another dtype, or an address that is not aligned as the binary expects
    an integer that does not fit the type of the argument
    a constant with another value

Works with Triton 3.6 to 3.9, without TRITON_INTERPRET. On a machine with a GPU, run it in a separate process.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.compiler
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from veca_kernels import devices
from veca_kernels.triton import plan

__all__ = ["FakeDriver", "Launch", "fake_driver", "install", "uninstall"]

# Number of multiprocessors, and bytes of shared memory that a block may use.
FACTS = {"sm_80": (108, 163 << 10), "sm_90": (132, 227 << 10), "sm_100": (148, 227 << 10), "sm_120": (170, 99 << 10)}
_DTYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
_RANGES = {"i32": (-(2**31), 2**31), "i64": (-(2**63), 2**63)}


@dataclass(frozen=True)
class Launch:
    """One launch: name of the kernel, number of programs, and types and values of its arguments in order."""

    kernel: str
    programs: int
    signature: tuple[Any, ...]
    arguments: tuple[Any, ...]


class FakeDriver(DriverBase):
    """The driver that is active between `install` and `uninstall`.

    Attributes:
        launches: All launches so far, where `record` is set.
        binaries: All binaries so far, one for each compilation.
    """

    def __init__(self, arch: str, compiles: bool, record: bool, check: bool) -> None:
        super().__init__()
        self.arch, self.compiles, self.record, self.check = arch, compiles, record, check
        self.launches: list[Launch] = []
        self.binaries: list[Any] = []
        self.utils = _Utils(*FACTS[arch])
        self.launcher_cls = self._launcher
        self._compile = triton.compiler.compile

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(self.arch[3:]), 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("a driver that runs nothing has nothing to time")

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def compile(self, src: Any, target: Any = None, options: Any = None, **rest: Any) -> Any:
        """Compile by Triton, or make a stand-in that can only be launched."""
        if self.compiles:
            binary = self._compile(src, target=target, options=options, **rest)
        else:
            binary = _Uncompiled(src, self._launcher(src, None))
        self.binaries.append(binary)
        return binary

    def _launcher(self, src: Any, metadata: Any) -> Any:
        return _Launcher(src, self) if self.record or self.check else _do_nothing


class _Utils:
    """The functions of the CUDA driver that Triton calls before the first launch of a binary."""

    def __init__(self, multiprocessors: int, shared: int) -> None:
        self.properties = {"max_shared_mem": shared, "multiprocessor_count": multiprocessors, "warpSize": 32}

    def get_device_properties(self, device: int) -> dict[str, int]:
        return self.properties

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, int, int, int, int]:
        return object(), 0, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class _Uncompiled:
    """A stand-in for a binary, with the attributes of Triton's CompiledKernel that a launch needs."""

    module, function, packed_metadata = None, 0, ()

    def __init__(self, src: Any, run: Any) -> None:
        self.src, self.run, self.name = src, run, src.name

    def launch_metadata(self, grid: Any, stream: int, *arguments: Any) -> None:
        return None


def _do_nothing(*arguments: Any) -> None:
    pass


class _Launcher:
    """Checks and records launches, and calls the launch hooks as Triton's launchers do."""

    def __init__(self, src: Any, driver: FakeDriver) -> None:
        self.src, self.driver = src, driver
        self.signature = tuple(src.signature.values())
        names = list(src.signature)
        index = lambda key: (names.index(key),) if isinstance(key, str) else tuple(key)  # noqa: E731
        self.constants = {index(key): value for key, value in src.constants.items()}
        aligned = [index(key) for key, value in src.attrs.items() if ["tt.divisibility", 16] in value]
        self.aligned = set(aligned)

    def __call__(
        self,
        programs: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: Any,
        packed_metadata: Any,
        launch_metadata: Any,
        enter: Any,
        leave: Any,
        *arguments: Any,
    ) -> None:
        if enter is not None:
            enter(launch_metadata)
        if self.driver.check:
            assert len(arguments) == len(self.signature), f"{len(arguments)} arguments for {len(self.signature)}"
            for position, (kind, value) in enumerate(zip(self.signature, arguments, strict=True)):
                self._check(kind, value, (position,))
        if self.driver.record:
            self.driver.launches.append(Launch(self.src.fn.__name__, programs, self.signature, arguments))
        if leave is not None:
            leave(launch_metadata)

    def _check(self, kind: Any, value: Any, path: tuple[int, ...]) -> None:
        """Check one argument against the type, the alignment or the constant of the binary."""
        where = f"{self.src.fn.__name__}, argument {self.src.fn.arg_names[path[0]]} {path[1:]}"
        if isinstance(kind, tuple):
            assert isinstance(value, tuple) and len(value) == len(kind), f"{where}: {value!r} for {kind}"
            for position, (inner, x) in enumerate(zip(kind, value, strict=True)):
                self._check(inner, x, (*path, position))
        elif kind == "constexpr":
            assert self.constants[path] == value, f"{where}: {value!r} for the constant {self.constants[path]!r}"
        elif kind.startswith("*"):
            pointer = value
            if isinstance(value, Tensor):
                assert _DTYPES[value.dtype] == kind, f"{where}: {value.dtype} for {kind}"
                pointer = value.data_ptr()
            assert path not in self.aligned or pointer % 16 == 0, f"{where}: a pointer that is not aligned"
        elif kind in _RANGES:
            low, high = _RANGES[kind]
            assert type(value) is int and low <= value < high, f"{where}: {value!r} for {kind}"
            assert path not in self.aligned or value % 16 == 0, f"{where}: {value} is not a multiple of 16"
        else:
            assert isinstance(value, float), f"{where}: {value!r} for {kind}"


_installed: list[FakeDriver] = []


def install(arch: str = "sm_90", *, compiles: bool = True, record: bool = True, check: bool = True) -> FakeDriver:
    """Make a driver that runs nothing Triton's active driver, and let CPU tensors take the code path of a GPU.

    Args:
        arch: GPU to compile for: "sm_80", "sm_90", "sm_100" or "sm_120".
        compiles: Compile each kernel. False replaces binaries by stand-ins, for measurements of host time.
        record: Keep every launch with its arguments in `launches`.
        check: Check every argument of a launch against the binary.

    Returns:
        The driver.

    Raises:
        RuntimeError: A fake driver is installed already, or Triton interprets its kernels.
    """
    if _installed or os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("expected no fake driver and no TRITON_INTERPRET=1, got one of both")
    driver = FakeDriver(arch, compiles, record, check)
    triton.compiler.compile = driver.compile
    triton.runtime.driver.set_active(driver)
    devices.emulate(FACTS[arch])
    _installed.append(driver)
    return driver


def uninstall() -> None:
    """Undo `install`, and drop the binaries that were made for the fake device."""
    driver = _installed.pop()
    triton.compiler.compile = driver._compile
    triton.runtime.driver.set_active(None)  # Triton looks for a real one when it needs it
    devices.emulate(None)
    plan.clear()
    for binary in driver.binaries:
        binary.src.fn.device_caches.pop(0, None)
        binary.module = None  # otherwise Triton 3.9 asks a driver to unload it


@contextlib.contextmanager
def fake_driver(arch: str = "sm_90", **options: bool) -> Iterator[FakeDriver]:
    """`install` with the same arguments, and `uninstall` at the end of the block."""
    driver = install(arch, **options)
    try:
        yield driver
    finally:
        uninstall()
