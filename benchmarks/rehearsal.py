"""A rehearsal runs the GPU suite without a GPU. Every job runs on tiny shapes and writes its results.

    python -m benchmarks.gpu_suite --rehearse --out out/rehearsal     # as on a GPU, each job a process
    python -m benchmarks.rehearsal benchmarks.kernels --preset rotated    # one module, the same way

CPU tensors report that they are on a GPU. Triton kernels are compiled for sm_90 and launched by a driver that runs
nothing (fake_driver.py). The values come from the same op in plain torch, so that checks pass. Streams, events, graphs
and the profiler are stand-ins. torch.compile returns its argument, and `tyro` cannot be imported.

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
_ABSENT = ("tyro", "xformers")  # packages that a GPU machine may lack
_MODELS = ("veca_base_patch16", "vit_base_patch16_dinov3")
_HERE = {"pytest": ("-n", "0"), "benchmarks.warm": ("--workers", "0")}  # options for a rehearsal in one process
_TESTS = ("-p", "benchmarks.rehearsal", "-k", "test_halves or (test_other_entries and packed and rope)")


def shrink() -> None:
    """Make all shapes tiny, for measurements and for verdicts. Does not need torch."""
    from . import acceptance

    acceptance.LONG, acceptance.WIDE = (1, 96, 16), (2, 40, 16)
    acceptance.SHORT, acceptance.MIDDLE = (1, 40, 16), (2, 64, 16)
    acceptance.SHAPES = (acceptance.SHORT, acceptance.LONG)
    acceptance.ROTATED = (acceptance.LONG,)
    acceptance.GRID = (*acceptance.SHAPES, (1, 49, 8))
    acceptance.FULL_FACTORS = ((acceptance.SHORT, 10.0), (acceptance.LONG, 200.0))
    acceptance.BACKBONE = (acceptance.BACKBONE[0], 64)


def install() -> None:
    """Give this process a fake GPU. This cannot be undone."""
    import torch
    import torch._dynamo  # imported first, because a later import would find the stand-ins in place of types

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
    """Install as a pytest plugin, because workers of pytest-xdist are other processes."""
    install()


def _fake_cuda(torch: Any) -> None:
    """Replace the functions of torch.cuda that the benchmarks use."""
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
    torch.accelerator.current_stream = lambda *device: _Stream()  # torch 2.15's optimizers call it
    torch.cuda.Stream, torch.cuda.Event, torch.cuda.CUDAGraph = _Stream, _Event, _Graph
    make = torch.Generator.__new__
    torch.Generator = type("Generator", (torch.Generator,), {"__new__": lambda cls, *device: make(cls, "cpu")})
    torch.compile = lambda function=None, **options: function if function else (lambda f: f)
    torch.nn.Module.compile = nothing
    asked = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda *kind: kind != ("meta",) and asked(*kind)  # meta tensors only count FLOPs
    real_autocast = torch.autocast  # always called for the CPU, which has autocast as well
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
        """CPU tensors report "cuda:0", and functions put tensors for "cuda" on the CPU."""

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
    """Compute the results of an op in plain torch after its launches, which run nothing."""
    from veca_kernels import composed, registration
    from veca_kernels.triton import ops

    for name in registration.SCHEMAS:
        setattr(ops, name, _Both(getattr(ops, name), getattr(composed, name)))
    if importlib.util.find_spec("veca_kernels.triton.plan"):
        from veca_kernels.triton import plan

        real = plan.run

        def run(body: Any, settings: Any, *arguments: Any) -> Any:
            if not isinstance(body, _Both):  # a body that calls other ops
                return body(*arguments)
            real(body.launched, settings, *arguments)
            return body.compute(*arguments)

        plan.run = run


class _Both:
    """The body of an op, which launches kernels and then computes the values."""

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
    """Set small matrices, small models and short lists of cases, and record launches without a profiler."""
    from veca.bench import models, peak, run, timing

    timing._MOST_REPEATS = timing._WARMUP_CALLS = 1
    few = timing.TimeLimits(runs=2, screening=2, max_seconds=0.1)
    timing.TimeLimits = run.TimeLimits = lambda *limits, **named: few

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
        run._break_evens = lambda settings: []  # counting takes minutes under a mode that sees every function
    warm.use(driver)
    warm.calls_of_suite = lambda tests=True: _few(warm)


def _few(warm: Any) -> list[dict[str, Any]]:
    from .floors import AttentionCase

    return [{"case": AttentionCase(1, 40, 16), "layout": layout} for layout in ("token-major", "halves")] + [
        {"test": 0}
    ]


def _profile(call: Callable[[], object]) -> list[dict[str, Any]]:
    """A fake profile, in which each of the four kernels has run once."""
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
    """Run a module with these arguments, and return its exit code."""
    with _arguments(module, arguments):
        if module == "pytest":
            import pytest

            return int(pytest.main([*arguments, *_TESTS]))
        if module.startswith("benchmarks."):
            return int(importlib.import_module(module).main(arguments) or 0)
        runpy.run_module(module, run_name="__main__")
        return 0


def run_here(job: Any, limit: float, tick: Callable[[], None]) -> dict[str, Any]:
    """Do the work of `run_job` in this process, which saves imports. It has no limit, and a crash ends the suite."""
    from .suite_process import planned

    module, *arguments = job.arguments(limit)[1 + len(PREFIX) :]
    start = time.monotonic()
    tick()
    try:
        code = _run_module(module, [*arguments, *_HERE.get(module, ())])
        status = "ok" if code == 0 else f"failed, exit code {code}"
    except SystemExit as error:
        if error.code == 143:  # the suite itself must end
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
