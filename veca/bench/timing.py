"""Timers of the benchmarks. A contender uses several buffer sets in turn, so that no run finds its inputs in the cache.

    cpu     wall clock; contenders take turns run by run, so that other programs disturb all of them alike
    eager   CUDA events around every call; the time includes the launch latency
    graph   CUDA graph of one or more turns of the buffer sets; the time of a replay divided by its calls

A list of samples is reported by its median, its 20 % and 80 % quantiles and its length.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..inspect.stopwatch import wall_seconds

__all__ = ["Contender", "TimeLimits", "Timing", "measure", "num_buffer_sets", "summarize"]

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)
OUT_OF_MEMORY = "OutOfMemoryError"
MODES = ("cpu", "eager", "graph")
_WARMUP_CALLS = 3
_LONG_RUN = 0.5  # seconds
_REPLAY_SECONDS = 1e-3
_MOST_REPEATS = 8
_CPU_CACHE_BYTES = 32_000_000


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 20 % and 80 % quantiles of `runs` samples, each a mean of `calls_per_run` calls."""

    median: float
    low: float
    high: float
    runs: int
    calls_per_run: int = 1


@dataclass(frozen=True)
class TimeLimits:
    """How long to measure.

    Every contender gets `screening` runs. It goes on to `runs` runs, or to as many as fit `max_seconds`, if it is
    within `factor` of the fastest of its group. Contenders that are `kept` always go on; they do not count as fastest.
    `Timing.runs` tells how many runs there were.
    """

    runs: int = 100
    screening: int = 11
    max_seconds: float = 3.0
    factor: float = 2.0


@dataclass(frozen=True)
class Contender:
    """Something to time. `make` builds one call for each buffer set. It and the calls run inside `context`."""

    make: Callable[[], Sequence[Call]]
    context: Callable[[], AbstractContextManager[object]]
    group: str = ""  # contenders of one group are screened against each other
    kept: bool = False  # measured in full even if slow


def measure(contenders: Mapping[Key, Contender], mode: str, limits: TimeLimits) -> dict[Key, Timing | str]:
    """Time every contender. A contender that raises gets its error as text instead of a timing."""
    if mode not in MODES:
        raise ValueError(f"expected a timer of {MODES}, got {mode!r}")
    if mode == "cpu":
        return _interleave(contenders, limits)
    results: dict[Key, Timing | str] = {}
    fastest: dict[str, float] = {}  # seconds by group, so far
    for name, contender in contenders.items():
        limit = math.inf if contender.kept else limits.factor * fastest.get(contender.group, math.inf)
        result = _guarded(lambda c=contender, limit=limit: _measure_cuda(c, mode, limits, limit))
        if isinstance(result, Timing) and not contender.kept:
            fastest[contender.group] = min(result.median, fastest.get(contender.group, math.inf))
        results[name] = result
    return results


def num_buffer_sets(bytes_per_set: int, device: torch.device, most: int = 128) -> int:
    """Number of buffer sets that exceed three times the last-level cache, at most `most`."""
    cuda = device.type == "cuda"
    cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else _CPU_CACHE_BYTES
    return max(1, min(most, math.ceil(3 * cache / max(bytes_per_set, 1))))


def summarize(samples: Sequence[float], calls_per_run: int = 1) -> Timing:
    """Median and quantiles of samples in seconds. Each sample is an average over `calls_per_run` calls."""
    if not samples:
        raise ValueError("expected at least one sample, got none")
    ordered = sorted(samples)

    def quantile(q: float) -> float:
        return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]

    return Timing(statistics.median(ordered), quantile(0.2), quantile(0.8), len(ordered), calls_per_run)


def short_error(error: BaseException) -> str:
    """One line of an exception and of the first one behind it, because a failed graph capture hides its cause."""
    first = error
    while first.__context__ is not None:
        first = first.__context__
    return _line(error) if first is error else f"{_line(error)} (after {_line(first)})"


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _affordable(seconds_per_run: float, limits: TimeLimits) -> int:
    """Number of runs that fit the limits, between the screening count and the full count."""
    fitting = int(limits.max_seconds / max(seconds_per_run, 1e-9))
    return max(limits.screening, min(limits.runs, fitting))


def _promising(contenders: Mapping[Key, Contender], screened: Mapping[Key, Timing], factor: float) -> set[Key]:
    """Contenders that get all runs: those that are kept, and those within `factor` of the fastest of their group."""
    fastest: dict[str, float] = {}
    for name, timing in screened.items():
        if not contenders[name].kept:
            group = contenders[name].group
            fastest[group] = min(timing.median, fastest.get(group, math.inf))
    return {
        name
        for name, timing in screened.items()
        if contenders[name].kept or timing.median <= factor * fastest[contenders[name].group]
    }


def _guarded(run: Callable[[], Timing]) -> Timing | str:
    """Run a timing. An error becomes one line of text and leaves the device usable for the next contender."""
    try:
        return run()
    except Exception as error:  # an error of a third-party kernel is that contender's result
        message = short_error(error)
    # This is outside the handler because its traceback keeps the tensors of a failed run alive.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    return message


def _interleave(contenders: Mapping[Key, Contender], limits: TimeLimits) -> dict[Key, Timing | str]:
    """Measure by wall clock in turns. The first round warms up and screens with twice the usual factor.

    The first sample is dropped unless a run takes so long that the warm-up makes no difference.
    """
    results: dict[Key, Timing | str] = {}
    calls: dict[Key, Sequence[Call]] = {}
    samples: dict[Key, list[float]] = {}
    for name, contender in contenders.items():
        try:
            with contender.context():
                made = contender.make()
                samples[name], calls[name] = [wall_seconds(made[0])], made
        except Exception as error:
            results[name] = short_error(error)
    first = {name: summarize(times) for name, times in samples.items()}
    running = _promising(contenders, first, 2 * limits.factor)
    wanted = {n: _affordable(first[n].median, limits) for n in running}
    for name in running:
        if first[name].median < _LONG_RUN:
            samples[name].clear()
    for i in range(max(wanted.values(), default=0)):
        for name in [n for n in samples if n in running and len(samples[n]) < wanted[n]]:
            try:
                with contenders[name].context():
                    samples[name].append(wall_seconds(calls[name][i % len(calls[name])]))
            except Exception as error:  # a later run may need more memory than the first
                results[name] = short_error(error)
                del samples[name]
    return results | {name: summarize(times) for name, times in samples.items()}


def _measure_cuda(contender: Contender, mode: str, limits: TimeLimits, limit: float) -> Timing:
    """Warm up and time one contender on a new stream, so that backward passes can be captured too."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with contender.context(), torch.cuda.stream(stream):
        calls = contender.make()
        for i in range(max(_WARMUP_CALLS, len(calls))):
            calls[i % len(calls)]()
        if mode == "eager":
            timing = _time_events(calls, limits, limit)
        else:
            calls = [*calls] * _repeats(calls)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                kept = [call() for call in calls]  # alive until the end: outputs reach memory, not L2
            del kept
            graph.replay()
            timing = _time_events([graph.replay], limits, limit, calls_per_run=len(calls))
            graph.reset()
    torch.cuda.current_stream().wait_stream(stream)
    return timing


def _repeats(calls: Sequence[Call]) -> int:
    """How often one replay goes through the calls. It should take about a millisecond but keep few outputs."""
    once = _time_events(calls, TimeLimits(screening=len(calls)), limit=0.0).median
    return max(1, min(_MOST_REPEATS, math.ceil(_REPLAY_SECONDS / (once * len(calls)))))


def _time_events(calls: Sequence[Call], limits: TimeLimits, limit: float, calls_per_run: int = 1) -> Timing:
    """Time runs by CUDA events on the current stream. Outputs live for one turn of the buffer sets.

    The measurement stops after the screening if a call takes longer than `limit` seconds.
    """
    samples: list[float] = []
    kept: list[object] = [None] * len(calls)
    runs = limits.screening
    while len(samples) < runs:
        count = min(runs - len(samples), 32)  # runs queued between two synchronisations
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)]
        for i, (start, end) in enumerate(events, start=len(samples)):
            start.record()
            kept[i % len(calls)] = calls[i % len(calls)]()
            end.record()
        torch.cuda.synchronize()
        samples += [start.elapsed_time(end) * 1e-3 / calls_per_run for start, end in events]
        median = statistics.median(samples)
        if len(samples) >= limits.screening and median <= limit:
            runs = _affordable(median * calls_per_run, limits)
    return summarize(samples, calls_per_run)
