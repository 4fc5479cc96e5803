"""The benchmark run: time every case, write its row, and write the table and the curves.

Cases of one size, pass and mode run in one process on the same images, smallest sizes first. On a CPU they take turns
run by run, so that other programs slow all of them alike. On CUDA one case follows the other. On a CPU each eager case
then runs again, alone in a fresh process, where no other model ran before.

The time of a run is predicted from the rate that the same model reached at its last size. Before its first run, it is
predicted from the matmul peak. On a CPU the memory of a case is predicted from its last peak, in proportion to the
number of patches.
"""

import difflib
import importlib.util
import itertools
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from tqdm import tqdm

from ..inspect.cost import break_even_side
from ..report.machine import describe_machine
from ..zoo.registry import create_model, list_models
from .alone import measure_alone
from .models import BackboneCase, Prepared, agrees_with_formula, build_model, prepare
from .peak import matmul_peak
from .settings import PATCH, BenchSettings
from .table import Row, bench_table
from .timing import OUT_OF_MEMORY, Contender, TimeLimits, Timing, measure, short_error

__all__ = ["check_bench", "run_bench"]

_log = logging.getLogger(__name__)
_PATCHES_A_BATCH, _MOST_IMAGES = 32768, 64
_LEAST_RUNS = 3
_TRAINING_FORWARDS = 3  # a backward pass has twice the multiplications of its forward pass
_NO_MEMORY = (OUT_OF_MEMORY, "MemoryError", "can't allocate memory", "not enough memory")


def run_bench(settings: BenchSettings, progress: bool = True, commit: str | None = None) -> list[Row]:
    """Measure, and write `name`.jsonl, `name`.md and `name`-<pass>-<mode>.png into `settings.out`.

    Rows are on disk as soon as they are measured. The table is written after every size, pass and mode.

    Args:
        settings: what to measure.
        progress: show a progress bar on stderr.
        commit: commit of the code, for the machine's row and the table; None if unknown.

    Returns:
        The rows, of three kinds:
            "environment": one row with the machine;
            "backbone": one row for each case;
            "break_even": one row for each pair of a VECA and a plain ViT, with the side from which VECA takes no more
                FLOPs.

    Raises:
        ImportError: `settings.figure` is set and matplotlib is not installed.
        ValueError: an unknown model, a size or number out of range, or no CUDA device.
    """
    check_bench(settings)
    device = _device(settings.device)
    dtype = _dtype(settings, device)
    started = time.monotonic()
    sink = _Sink(settings)
    peak = matmul_peak(device, getattr(torch, dtype))
    machine = describe_machine(device, getattr(torch, dtype))
    facts = {"batch": settings.batch, "matmul_peak": peak, "commit": commit}
    sink.add({"kind": "environment", **machine, **facts})
    for row in _break_evens(settings):
        sink.add(row)
    cases = _cases(settings, device, dtype)
    limits = _Limits(settings.longest_run, peak, _memory(device))
    with tqdm(total=len(cases), unit="case", disable=not progress) as bar:
        for key, group in itertools.groupby(cases, lambda case: (case.mode, case.pass_, case.size)):
            group = list(group)
            bar.set_description(f"{key[2]} px, {key[1]}, {key[0]}")
            if time.monotonic() - started > settings.time_limit:
                reason = f"the {settings.time_limit:g} s of this run were used up"
                rows = [_row(case, "skipped", reason) for case in group]
            else:
                rows = _measure(group, device, settings, limits)
            for row in rows:
                sink.add(row)
            sink.write_table()
            bar.update(len(group))
    if settings.figure:
        from .figure import draw_curves  # imports matplotlib

        draw_curves(sink.rows, settings.out, settings.name)
    return sink.rows


def check_bench(settings: BenchSettings) -> None:
    """Check the settings before anything runs. Raises the errors of `run_bench`."""
    _check_values(settings)
    for name in settings.models:
        if name not in list_models() and not timm.is_model(name):
            near = difflib.get_close_matches(name, [*list_models(), *timm.list_models()], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"expected a model of VECA or timm, got {name!r}{hint}")
    _device(settings.device)
    if settings.figure and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            'the curves need matplotlib, which is not installed; pip install "veca[bench]", or set figure=False'
        )


def _check_values(settings: BenchSettings) -> None:
    for name in ("models", "budgets", "sizes", "passes", "modes"):
        if not getattr(settings, name):
            raise ValueError(f"expected at least one of {name}, got none")
    for size in (*settings.sizes, *settings.compiled_sizes):
        if size < 2 * PATCH or size % PATCH:
            raise ValueError(f"expected sizes in multiples of {PATCH} pixels from {2 * PATCH} on, got {size}")
    if min(settings.budgets) < 1:
        raise ValueError(f"expected budgets of at least 1 core, got {settings.budgets}")
    for name in ("runs", "case_seconds", "longest_run", "time_limit", "batch"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ValueError(f"expected {name} above 0, got {value}")


class _Sink:
    """Keeps the rows in a list and in their file, and writes the table beside it."""

    def __init__(self, settings: BenchSettings):
        self.rows: list[Row] = []
        settings.out.mkdir(parents=True, exist_ok=True)
        self.path = settings.out / f"{settings.name}.jsonl"
        self.path.write_text("")

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def write_table(self) -> None:
        self.path.with_suffix(".md").write_text(bench_table(self.rows), encoding="utf-8")


@dataclass
class _Limits:
    """Limits on what may run. Time and memory of a case are predicted from earlier cases and counted FLOPs."""

    longest_run: float  # seconds
    peak: float  # FLOP/s
    memory: float  # bytes
    # by contestant: its last case, the rate that it reached in FLOP/s, the bytes that it took
    reached: dict[tuple[Any, ...], tuple[BackboneCase, float, int | None]] = field(default_factory=dict)
    counts: dict[tuple[Any, ...], int] = field(default_factory=dict)  # FLOPs that `prepare` has counted

    def note(self, prepared: Prepared, seconds: float, peak_bytes: int | None) -> None:
        self.reached[prepared.case.contestant] = prepared.case, _work(prepared) / seconds, peak_bytes

    def refuse(self, prepared: Prepared) -> tuple[str, str] | None:
        """Status and reason of a case that should not run."""
        case = prepared.case
        last, rate, held = self.reached.get(case.contestant, (None, self.peak, None))
        if last is not None and held is not None:
            needed = held * _patches(case) * case.batch / (_patches(last) * last.batch)
            if needed > self.memory:
                basis = f"predicted from the peak at {last.size} px"
                return "out of memory", f"{needed / 1e9:.3g} GB {basis}, {self.memory / 1e9:.3g} GB available"
        seconds = _work(prepared) / rate
        if seconds > self.longest_run:
            basis = f"from its rate at {last.size} px" if last else "from the matmul peak"
            return "skipped", f"{seconds:.3g} s a run predicted {basis}, limit {self.longest_run:g} s"
        return None


def _measure(
    group: Sequence[BackboneCase], device: torch.device, settings: BenchSettings, limits: _Limits
) -> list[Row]:
    """One row for each case. On CUDA one model at a time is in memory, on a CPU all that take turns."""
    if device.type == "cuda" and len(group) > 1:
        return [row for case in group for row in _measure([case], device, settings, limits)]
    torch.compiler.reset()  # sizes share a recompile limit; beyond it torch falls back to eager without an error
    rows: dict[BackboneCase, Row] = {}
    ready: dict[BackboneCase, Prepared] = {}
    for case in group:
        try:
            prepared = prepare(case, device, limits.counts)
        except Exception as error:  # a model that cannot be built or does not take this size
            rows[case] = _failure(case, short_error(error))
            continue
        if refusal := limits.refuse(prepared):
            rows[case] = _row(case, *refusal)
        else:
            ready[case] = prepared
    contenders = {case: Contender(lambda p=p: p.calls, p.context, kept=True) for case, p in ready.items()}
    timed = TimeLimits(settings.runs, min(_LEAST_RUNS, settings.runs), settings.case_seconds)
    timings = measure(contenders, "eager" if device.type == "cuda" else "cpu", timed)
    for case, timing in timings.items():
        if not isinstance(timing, Timing):
            rows[case] = _failure(case, timing)
            continue
        try:
            held = ready[case].peak()
        except Exception as error:
            rows[case] = _failure(case, short_error(error))
            continue
        limits.note(ready[case], timing.median, held)
        rows[case] = _row(case) | _fields(ready[case], timing, held, limits.peak)
        if settings.alone and device.type == "cpu" and case.mode == "eager":
            rows[case] |= _alone(ready[case], TimeLimits(timed.screening, 1, timed.max_seconds))
    return [rows[case] for case in group]


def _alone(prepared: Prepared, limits: TimeLimits) -> Row:
    timing = measure_alone(prepared.case, prepared.flops, limits)
    if not isinstance(timing, Timing):
        _log.warning("%s at %d px, alone: %s", prepared.case.model, prepared.case.size, timing)
        return {}
    return {"alone_s": timing.median, "alone_runs": timing.runs}


def _row(case: BackboneCase, status: str = "ok", reason: str = "") -> Row:
    names = {"kind": "backbone", "model": case.model, "num_cores": case.num_cores, "size": case.size}
    names |= {"patches": _patches(case), "batch": case.batch, "pass": case.pass_, "mode": case.mode}
    return names | {"dtype": case.dtype, "status": status, "reason": reason}


def _failure(case: BackboneCase, message: str) -> Row:
    if any(sign in message for sign in _NO_MEMORY):
        return _row(case, "out of memory", message)
    _log.warning("%s at %d px: %s", case.model, case.size, message)
    return _row(case, "error", message)


def _fields(prepared: Prepared, timing: Timing, held: int | None, peak: float) -> Row:
    case, cost = prepared.case, prepared.cost
    return {
        "median_s": timing.median,
        "low_s": timing.low,
        "high_s": timing.high,
        "runs": timing.runs,
        "alone_s": None,
        "alone_runs": 0,
        "images_per_s": case.batch / timing.median,
        "patches_per_s": case.batch * _patches(case) / timing.median,
        "peak_bytes": held,
        "model_flops": prepared.flops,
        "block_flops": cost.block if cost else None,
        "attention_flops": cost.attention if cost else None,
        "matmul_share": _work(prepared) / timing.median / peak,
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
    }


def _work(prepared: Prepared) -> int:
    """FLOPs of a call."""
    passes = _TRAINING_FORWARDS if prepared.case.pass_ == "train" else 1
    return passes * prepared.flops * prepared.case.batch


def _patches(case: BackboneCase) -> int:
    return (case.size // PATCH) ** 2


def _cases(settings: BenchSettings, device: torch.device, dtype: str) -> list[BackboneCase]:
    """All cases, in the order of `modes` and `passes`, then smallest sizes first, then in the order of `models`."""
    cases = []
    for mode, pass_ in itertools.product(settings.modes, settings.passes):
        sizes = settings.sizes if mode == "eager" else settings.compiled_sizes or settings.sizes
        for size, model in itertools.product(sorted(set(sizes)), settings.models):
            batch = settings.batch or _batch(size, device)
            for num_cores in settings.budgets if model in list_models() else (None,):
                cases.append(BackboneCase(model, num_cores, size, batch, pass_, mode, dtype))
    return list(dict.fromkeys(cases))


def _batch(size: int, device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return max(1, min(_MOST_IMAGES, _PATCHES_A_BATCH // (size // PATCH) ** 2))


def _break_evens(settings: BenchSettings) -> list[Row]:
    """The smallest side at which each VECA takes no more FLOPs than each plain ViT that is compared with it."""
    rows: list[Row] = []
    veca: str | None = None
    with torch.device("meta"):  # no weights
        for name in settings.models:
            if name in list_models():
                veca = name
                continue
            other = build_model(name) if veca else None
            if veca is None or not isinstance(other, VisionTransformer) or not agrees_with_formula(other):
                continue
            for num_cores in settings.budgets:
                side = break_even_side(create_model(veca, num_cores=num_cores), other, num_cores)
                rows.append({"kind": "break_even", "model": veca, "num_cores": num_cores, "vit": name, "pixels": side})
    return rows


def _device(name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("expected a CUDA device for device='cuda', but torch sees none")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def _dtype(settings: BenchSettings, device: torch.device) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if device.type == "cuda" else "float32"


def _memory(device: torch.device) -> float:
    """Bytes of memory. Unlimited if the system does not tell, and on CUDA, which raises an error that is handled."""
    if device.type == "cuda" or not hasattr(os, "sysconf"):
        return float("inf")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
