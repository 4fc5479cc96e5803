"""The GPU suite on a machine without a GPU: every job is composed, run and written, on tiny shapes.

    python -m benchmarks.gpu_suite --rehearse --out out/rehearsal     # as on a GPU, each job a process
    python -m benchmarks.rehearsal benchmarks.kernels --preset rotated    # one module, the same way

CPU tensors say that they are on a GPU. Triton kernels are compiled for sm_90 and launched by a driver that runs
nothing (fake_driver.py). The values then come from the same op in plain torch, so that checks pass. Streams, events,
graphs and the profiler are stand-ins, torch.compile returns what it gets, and `tyro` cannot be imported.

Environment variables change what happens:

    REHEARSAL_COMPILES=0     nothing is compiled
    REHEARSAL_HANG=MODULE    the job of that module hangs
    REHEARSAL_WRONG=rope     the rotated op gives wrong values
"""

import contextlib
import functools
import importlib.util
import inspect
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

__all__ = ["PREFIX", "install", "run_here", "shrink"]

PREFIX = ("-m", "benchmarks.rehearsal")
NAME = "rehearsal"
_ABSENT = ("tyro", "xformers")  # not in the image of a GPU machine
_MODELS = ("veca_base_patch16", "vit_base_patch16_dinov3")
_HERE = {"pytest": ("-n", "0"), "benchmarks.warm": ("--workers", "0")}  # no processes where there is to be one
_TESTS = ("-p", "benchmarks.rehearsal", "-k", "test_halves or (test_other_entries and packed and rope)")


def shrink() -> None:
    """Tiny shapes, for measuring and for judging. Needs no torch."""
    from . import acceptance

    acceptance.LONG, acceptance.WIDE = (1, 96, 16), (2, 40, 16)
    acceptance.SHORT, acceptance.MIDDLE = (1, 40, 16), (2, 64, 16)
    acceptance.SHAPES = (acceptance.SHORT, acceptance.LONG)
    acceptance.ROTATED = (acceptance.LONG,)
    acceptance.GRID = (*acceptance.SHAPES, (1, 49, 8))
    acceptance.FULL_FACTORS = ((acceptance.SHORT, 10.0), (acceptance.LONG, 200.0))
    acceptance.BACKBONE = (acceptance.BACKBONE[0], 64)


def install() -> None:
    """Let this process believe in a GPU. There is no way back."""
    import torch
    import torch._dynamo  # what is imported later would meet the stand-ins as types

    if torch.cuda.is_available():
        return
    for name in _ABSENT:
        sys.modules[name] = None
    import veca.bench  # noqa: F401

    torch.set_num_threads(1)
    from .fake_driver import install as install_driver

    driver = install_driver("sm_90", compiles=os.environ.get("REHEARSAL_COMPILES") != "0", record=False)
    _fake_cuda(torch)
    _OnGpu(torch).__enter__()
    _compute()
    shrink()
    _shrink_modules(driver)


def pytest_configure(config: Any) -> None:
    """As a plugin, since workers of pytest-xdist are other processes."""
    install()


def _fake_cuda(torch: Any) -> None:
    """The surface of torch.cuda that the benchmarks touch."""
    properties = SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, L2_cache_size=1 << 18,
        shared_memory_per_block_optin=227 << 10, shared_memory_per_block=48 << 10,
    )  # fmt: skip
    nothing = lambda *args, **options: None  # noqa: E731
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": NAME,
        "get_device_capability": (9, 0), "get_device_properties": properties, "memory_allocated": 0,
        "max_memory_allocated": 1 << 20, "current_stream": _Stream(), "is_current_stream_capturing": False,
    }  # fmt: skip
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *args, value=value, **options: value)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed", "manual_seed_all"):
        setattr(torch.cuda, name, nothing)
    for name in ("stream", "device", "graph"):
        setattr(torch.cuda, name, lambda *args, **options: contextlib.nullcontext())
    torch.accelerator.current_stream = lambda *device: _Stream()  # torch 2.15's optimizers ask it
    torch.cuda.Stream, torch.cuda.Event, torch.cuda.CUDAGraph = _Stream, _Event, _Graph
    make = torch.Generator.__new__
    torch.Generator = type("Generator", (torch.Generator,), {"__new__": lambda cls, *device: make(cls, "cpu")})
    torch.compile = lambda function=None, **options: function if function else (lambda f: f)
    torch.nn.Module.compile = nothing
    asked = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda *kind: kind != ("meta",) and asked(*kind)  # tensors that are only counted
    real_autocast = torch.autocast  # of a CPU, where autocast exists as well
    torch.autocast = lambda kind, *args, **options: real_autocast("cpu", *args, **options)


class _Stream:
    def wait_stream(self, other: Any) -> None:
        pass

    def is_capturing(self) -> bool:
        return False


class _Event:
    def __init__(self, **options: Any) -> None:
        self.seconds = 0.0

    def record(self, *stream: Any) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "_Event") -> float:
        return max(1e-4, 1e3 * (end.seconds - self.seconds))


class _Graph:
    def replay(self) -> None:
        time.sleep(1e-5)

    def reset(self) -> None:
        pass


@functools.cache
def _on_gpu_class(torch: Any) -> type:
    from torch.overrides import TorchFunctionMode

    device_of = torch.Tensor.device.__get__

    class OnGpu(TorchFunctionMode):
        """CPU tensors that say "cuda:0", and functions that take it for a place to put tensors."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is device_of:
                real = function(*args)
                return torch.device("cuda", 0) if real.type == "cpu" else real
            if function is torch.device:
                return function(*args, **(kwargs or {}))
            kwargs = {name: _cpu(torch, value) for name, value in (kwargs or {}).items()}
            return function(*(_cpu(torch, value) for value in args), **kwargs)

    return OnGpu


def _OnGpu(torch: Any) -> Any:
    return _on_gpu_class(torch)()


def _cpu(torch: Any, value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


def _compute() -> None:
    """After the launches of an op, which run nothing, its results from the composed algebra."""
    from veca_kernels import composed, registration
    from veca_kernels.triton import ops

    for name in registration.SCHEMAS:
        setattr(ops, name, _Both(getattr(ops, name), getattr(composed, name)))
    if importlib.util.find_spec("veca_kernels.triton.plan"):
        from veca_kernels.triton import plan

        real = plan.run

        def run(body: Any, settings: Any, *arguments: Any) -> Any:
            if not isinstance(body, _Both):  # made of another op
                return body(*arguments)
            real(body.launched, settings, *arguments)
            return body.compute(*arguments)

        plan.run = run


class _Both:
    """The body of an op: its launches, and its values."""

    def __init__(self, launched: Callable[..., Any], computed: Callable[..., Any]) -> None:
        self.launched, self.computed = launched, computed
        self.signature = inspect.signature(computed)
        self.wrong = os.environ.get("REHEARSAL_WRONG") == "rope"

    def __call__(self, *values: Any, **named: Any) -> Any:
        self.launched(*values, **named)
        return self.compute(*values, **named)

    def compute(self, *values: Any, **named: Any) -> Any:
        arguments = self.signature.bind(*values, **named).arguments
        if arguments.get("k", 0) is None:  # packed
            arguments |= zip("qkv", arguments["q"].unbind(2), strict=True)
        options = arguments.get("options")
        if self.wrong and options is not None and options.patch_rope is not None:
            arguments["options"] = options._replace(scale=1.5 * options.scale)
        return self.computed(**arguments)


def _shrink_modules(driver: Any) -> None:
    """Small matrices, small models, short lists of cases, launches without a profiler."""
    from veca.bench import models, peak, run, timing

    timing._MOST_REPEATS = timing._WARMUP_CALLS = 1
    budget = timing.Budget(runs=2, screening=2, max_seconds=0.1)
    timing.Budget = run.Budget = lambda *limits, **named: budget

    from . import backbone, host_times, kernels, launches, machine, tiles, warm

    host_times._BATCH = 2
    machine._COPIED["cuda"] = 2**16
    for module in (machine, run):
        module.matmul_peak = lambda device, dtype: 1e11
    peak.matmul_peak = run.matmul_peak
    launches.profile = tiles.profile = _profile
    kernels._wake = lambda device: None
    backbone.PRESETS = {
        "judged": backbone.Preset(_MODELS[:1], (64,), ("inference",), ("eager", "blocks")),
        "models": backbone.Preset(_MODELS, (64,)),
        "compiled-models": backbone.Preset(_MODELS[:1], (64,), ("inference",), ("compiled",)),
    }
    tiny = {"embed_dim": 48, "depth": 2, "num_heads": 4}
    real_veca, real_timm = models.create_model, models.timm.create_model
    models.create_model = lambda name, **options: real_veca(name, **options, **tiny)
    models.timm.create_model = lambda name, **options: real_timm(name, **options, **tiny)
    if os.environ.get("REHEARSAL_COMPILES") == "0":
        run._break_evens = lambda settings: []  # minutes of counting under a mode that sees every function
    warm.use(driver)
    warm.calls_of_suite = lambda tests=True: _few(warm)


def _few(warm: Any) -> list[dict[str, Any]]:
    from .floors import Case

    return [{"case": Case(1, 40, 16), "layout": layout} for layout in ("token-major", "halves")] + [{"test": 0}]


def _profile(call: Callable[[], object]) -> list[dict[str, Any]]:
    """As if each of the four kernels had run once."""
    call()
    names = ("read_forward", "write_forward", "read_backward", "write_backward")
    return [{"kernel": name, "grid": [1, 1, 1], "block": [128, 1, 1], "us": 1.0} for name in names]


@contextlib.contextmanager
def _arguments(module: str, arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [module, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _run_module(module: str, arguments: list[str]) -> int:
    """The exit code of a module that has been told what to do."""
    with _arguments(module, arguments):
        if module == "pytest":
            import pytest

            return int(pytest.main([*arguments, *_TESTS]))
        if module.startswith("benchmarks."):
            return int(importlib.import_module(module).main(arguments) or 0)
        runpy.run_module(module, run_name="__main__")
        return 0


def run_here(job: Any, limit: float, tick: Callable[[], None]) -> dict[str, Any]:
    """What `run_job` does, in this process: no limit, and nothing survives a crash. Spares the imports of a process."""
    from .suite_process import planned

    module, *arguments = job.arguments(limit)[1 + len(PREFIX) :]
    start = time.monotonic()
    tick()
    try:
        code = _run_module(module, [*arguments, *_HERE.get(module, ())])
        status = "ok" if code == 0 else f"failed, exit code {code}"
    except SystemExit as error:
        if error.code == 143:  # the suite itself is to end
            raise
        status = f"failed, exit code {error.code}"
    return planned(job, limit) | {"status": status, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    here = "--here" in sys.argv
    module, *arguments = [word for word in sys.argv[1:] if word != "--here"]
    if os.environ.get("REHEARSAL_HANG") == module:
        time.sleep(3600)
    install()
    if here:  # the whole suite in one process
        from . import gpu_suite

        return gpu_suite.main(arguments, run=run_here)
    return _run_module(module, arguments)


if __name__ == "__main__":
    sys.exit(main())
