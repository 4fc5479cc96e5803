"""Compile in parallel the kernels that the suite will launch, before it times and tests.

    python -m benchmarks.warm --arch sm_90

Each process of a pool runs its share of the calls with a driver that compiles kernels but does not launch them
(fake_driver.py). The tensors are on the CPU, and their memory is never touched. The binaries stay in Triton's cache,
where the real launches find them.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import acceptance
from .floors import AttentionCase
from .record import JsonLines

__all__ = ["calls_of_suite", "compile_call"]

TILES = ("chosen", "64x4x3", "64x8x3")


def calls_of_suite(tests: bool = True) -> list[dict[str, Any]]:
    """The calls to compile: the shapes of the benchmarks, the compared tiles, and the cases of the GPU tests.

    Args:
        tests: with the cases of the GPU tests.
    """
    shapes = dict.fromkeys((*acceptance.ROTATED, *acceptance.SHAPES))
    calls = [
        {"case": AttentionCase(*shape, tables=tables), "layout": layout}
        for shape, tables, layout in itertools.product(
            shapes, (None, "float32", "float16"), ("token-major", "packed", "halves")
        )
        if not (layout == "halves" and tables)
    ]
    calls += [
        {"case": AttentionCase(*acceptance.LONG, tables=tables), "layout": "token-major", "tile": tile}
        for tables, tile in itertools.product((None, "float32", "float16"), TILES)
    ]
    if tests:
        calls += [{"test": number} for number in range(_num_tests())]
    return calls


def compile_call(call: dict[str, Any]) -> dict[str, Any]:
    """Run one call under the driver of this process. Its row has the number of new binaries and the seconds."""
    from veca.bench.timing import short_error

    driver, start = _drivers[-1], time.monotonic()
    before = len(driver.binaries)
    row = {"kind": "warm", "call": _name(call), "status": "ok", "reason": ""}
    try:
        _run(call)
    except Exception as error:  # the op refuses the dtype, or the tile does not fit
        row |= {"status": "refused", "reason": short_error(error)}
    return row | {"binaries": len(driver.binaries) - before, "seconds": round(time.monotonic() - start, 2)}


def _run(call: dict[str, Any]) -> None:
    import torch
    from veca_kernels import (
        core_periphery_attention,
        core_periphery_attention_qkvpacked,
        core_to_patch_attention,
        patch_to_core_attention,
    )

    if "test" in call:
        from tests.kernels.cases import forward_backward

        impl, case = _tests()[call["test"]]
        forward_backward(impl, case)
        return
    from .tiles import tiles_of

    case, layout = call["case"], call["layout"]
    dtype, tokens = getattr(torch, case.dtype), case.C + case.P
    angles = (torch.empty(2, case.P, case.D // 2, dtype=getattr(torch, case.tables)).unbind(0)) if case.tables else None

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, requires_grad=True)

    def step(out: torch.Tensor, inputs: Sequence[torch.Tensor]) -> None:
        torch.autograd.grad(out, inputs, torch.empty_like(out))

    with tiles_of(call["tile"]) if "tile" in call else _as_they_are():
        if layout == "packed":
            qkv = empty(case.B, tokens, 3, case.H, case.D)
            step(core_periphery_attention_qkvpacked(qkv, case.C, patch_rope=angles, impl="triton"), [qkv])
        elif layout == "token-major":
            leaves = [empty(case.B, tokens, case.H, case.D) for _ in range(3)]
            heads = [x.transpose(1, 2) for x in leaves]
            step(core_periphery_attention(*heads, case.C, patch_rope=angles, impl="triton"), leaves)
            with torch.no_grad():
                core_periphery_attention(*heads, case.C, patch_rope=angles, impl="triton")
        else:
            for attend, lengths in (
                (patch_to_core_attention, (case.C, case.P, case.P)),
                (core_to_patch_attention, (case.P, case.C, case.C)),
            ):
                leaves = [empty(case.B, length, case.H, case.D) for length in lengths]
                step(attend(*(x.transpose(1, 2) for x in leaves), impl="triton"), leaves)


def _as_they_are() -> Any:
    import contextlib

    return contextlib.nullcontext()


def _tests() -> list[tuple[str, Any]]:
    """Implementation and case of the comparisons with fp64 in tests/kernels/test_gpu.py, with dtypes mixed."""
    import torch

    from tests.kernels import test_gpu as t

    cases = [*t.OPTIONS, *t.LAYOUTS, *t.GRADS, *t.HEAD_DIMS, *t.CORES, *t.EMPTY]
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    found = [("triton", case.at(dtype=dtype)) for case in cases for dtype in dtypes]
    return found + [("packed_triton", case.at(dtype=dtype)) for case in t.OPTIONS for dtype in (dtypes[0], dtypes[2])]


def _num_tests() -> int:
    return len(_tests())


def _name(call: dict[str, Any]) -> str:
    if "test" in call:
        impl, case = _tests()[call["test"]]
        return f"{impl} {case}"
    shape = dataclasses.asdict(call["case"])
    return " ".join(f"{key}={value}" for key, value in (call | {"case": shape}).items())


_drivers: list[Any] = []


def use(driver: Any) -> None:
    """Use the fake driver that is installed in this process."""
    _drivers.append(driver)


def _start(arch: str) -> None:
    """Start a worker with one thread and the driver that launches nothing."""
    import torch

    from .fake_driver import install

    torch.set_num_threads(1)
    compiles = os.environ.get("REHEARSAL_COMPILES") != "0"
    use(install(arch, compiles=compiles, record=False, check=False))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    sink, deadline = JsonLines(args.out), time.monotonic() + args.seconds
    arch = args.arch or _arch()
    from .fake_driver import FACTS

    if arch not in FACTS:
        sink.append({"kind": "warm", "status": "refused", "reason": f"expected one of {sorted(FACTS)}, got {arch}"})
        return 0
    calls = calls_of_suite(tests=not args.shapes_only)
    if args.workers == 0:
        for call in calls:
            sink.append(compile_call(call))
    else:
        _in_parallel(calls, arch, args.workers, deadline, sink)
    binaries = sum(row["binaries"] for row in sink.rows)
    print(f"{binaries} binaries for {arch} of {len(sink.rows)} calls")
    return 0


def _in_parallel(
    calls: Sequence[dict[str, Any]], arch: str, workers: int | None, deadline: float, sink: JsonLines
) -> None:
    """Compile in parallel until the deadline, and append each row at once. Then kill processes that still compile."""
    context = multiprocessing.get_context("spawn")  # a fork would share a CUDA context
    pool = concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context, _start, (arch,))
    try:
        futures = [pool.submit(compile_call, call) for call in calls]
        for future in concurrent.futures.as_completed(futures, timeout=max(1.0, deadline - time.monotonic())):
            sink.append(future.result())
    except TimeoutError:
        print(f"{len(sink.rows)} of {len(calls)} calls are compiled", file=sys.stderr)
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def _arch() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", help="GPU to compile for, such as sm_90; default: the GPU of this machine")
    parser.add_argument("--shapes-only", action="store_true", help="leave out the kernels that only GPU tests need")
    parser.add_argument("--workers", type=int, help="number of processes; default: CPU cores; 0: this process")
    parser.add_argument("--seconds", type=float, default=300.0, help="seconds, then other jobs compile the rest")
    parser.add_argument("--out", type=Path, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
