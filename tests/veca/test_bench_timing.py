"""Timers: quantiles, screening, errors; the CUDA path on stand-ins that count what it does."""

import contextlib
import math
import time

import pytest
import torch

from veca.bench import peak, timing
from veca.bench.timing import Contender, TimeLimits, Timing, measure, num_buffer_sets, summarize


def _contender(seconds, log=None, name="", sets=1, **options):
    def call():
        if log is not None:
            log.append(name)
        time.sleep(seconds)

    return Contender(lambda: [call] * sets, contextlib.nullcontext, **options)


def test_quantiles():
    found = summarize([5.0, 1.0, 2.0, 3.0, 4.0, 100.0], calls_per_run=7)
    assert (found.median, found.low, found.high, found.runs, found.calls_per_run) == (3.5, 2.0, 5.0, 6, 7)
    with pytest.raises(ValueError, match="at least one sample"):
        summarize([])


def test_cpu_runs_are_interleaved_and_slow_peers_stop_early():
    log = []
    contenders = {
        "ours": _contender(0.02, log, "ours", kept=True),
        "fast": _contender(0.001, log, "fast"),
        "slow": _contender(0.02, log, "slow"),
        "other group": _contender(0.02, log, "other group", group="full"),
    }
    found = measure(contenders, "cpu", TimeLimits(runs=5, screening=2, max_seconds=10))
    assert {name: result.runs for name, result in found.items()} == {
        "ours": 5,
        "fast": 5,
        "slow": 1,
        "other group": 5,
    }
    assert found["ours"].median >= 0.02 > found["fast"].median
    assert log[4:10] == ["ours", "fast", "other group"] * 2  # after the first round of four


def test_the_budget_of_seconds_limits_runs_but_not_below_the_screening():
    found = measure({"a": _contender(0.01)}, "cpu", TimeLimits(runs=50, screening=3, max_seconds=0.001))
    assert found["a"].runs == 3


def test_buffer_sets_take_turns():
    log = []
    contender = Contender(
        lambda: [lambda: log.append(0), lambda: log.append(1), lambda: log.append(2)], contextlib.nullcontext
    )
    measure({"a": contender}, "cpu", TimeLimits(runs=6, screening=6, max_seconds=1))
    assert log[1:] == [0, 1, 2, 0, 1, 2]  # the first call warms up


def test_an_error_is_a_result():
    def broken():
        raise RuntimeError("no kernel\nand a long story")

    contenders = {"broken": Contender(lambda: [broken], contextlib.nullcontext), "fine": _contender(0)}
    found = measure(contenders, "cpu", TimeLimits(runs=2, screening=1, max_seconds=1))
    assert found["broken"] == "RuntimeError: no kernel"
    assert found["fine"].runs == 2


def test_an_error_in_a_later_run_is_a_result_too():
    runs = []

    def breaks_later():
        runs.append(1)
        if len(runs) == 3:
            raise MemoryError("no room")

    contenders = {"later": Contender(lambda: [breaks_later], contextlib.nullcontext), "fine": _contender(0)}
    found = measure(contenders, "cpu", TimeLimits(runs=6, screening=1, max_seconds=1, factor=math.inf))
    assert found["later"] == "MemoryError: no room" and len(runs) == 3
    assert found["fine"].runs == 6


def test_the_cause_behind_an_error_is_named():
    def capture():
        try:
            raise MemoryError("no room")
        finally:
            raise RuntimeError("capture invalidated")

    found = measure({"a": Contender(lambda: [capture], contextlib.nullcontext)}, "cpu", TimeLimits())
    assert found["a"] == "RuntimeError: capture invalidated (after MemoryError: no room)"


def test_unknown_timers_are_refused():
    with pytest.raises(ValueError, match=r"expected a timer of .* got 'gpu'"):
        measure({}, "gpu", TimeLimits())


def test_buffer_sets_exceed_the_cache():
    cpu = torch.device("cpu")
    assert num_buffer_sets(10**9, cpu) == 1
    assert num_buffer_sets(10**7, cpu) * 10**7 >= 3 * 32_000_000
    assert num_buffer_sets(1, cpu, most=9) == 9


@pytest.mark.parametrize("slow", ["matmul", "linear"])
def test_the_matmul_peak_is_the_faster_library_on_its_good_runs(slow, monkeypatch):
    def planted(contenders, mode, budget):
        for contender in contenders.values():
            assert contender.make()[0]().shape == (1024, 1024)
        return {name: Timing(9.0, 2.0 if name == slow else 0.5, 10.0, 5) for name in contenders}

    monkeypatch.setattr(peak, "measure", planted)
    assert peak.matmul_peak(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.5


def test_a_machine_that_cannot_multiply_is_named(monkeypatch):
    monkeypatch.setattr(peak, "measure", lambda contenders, mode, budget: dict.fromkeys(contenders, "no library"))
    with pytest.raises(RuntimeError, match="the matmul that fixes the peak rate of cpu failed: no library"):
        peak.matmul_peak(torch.device("cpu"), torch.float32)


class _Clock:
    """Device time that advances only when a call says so."""

    now = 0.0


class _Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = _Clock.now

    def elapsed_time(self, end):
        return (end.time - self.time) * 1e3


class _Stream:
    def wait_stream(self, other):
        pass


class _Graph:
    def replay(self):
        for seconds in self.cost:
            _Clock.now += seconds

    def reset(self):
        self.cost = None


@contextlib.contextmanager
def _capture(graph, stream):
    """What a capture sees: the device time of the calls inside, none of which passes now."""
    start = _Clock.now
    yield
    graph.cost = [_Clock.now - start]
    _Clock.now = start


@pytest.fixture
def fake_cuda(monkeypatch):
    _Clock.now = 0.0
    for name, value in {
        "Event": _Event,
        "Stream": _Stream,
        "CUDAGraph": _Graph,
        "graph": _capture,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": _Stream,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def _device_contender(seconds, log, sets=2, **options):
    def call(index):
        log.append(index)
        _Clock.now += seconds

    return Contender(lambda: [lambda i=i: call(i) for i in range(sets)], contextlib.nullcontext, **options)


def test_eager_takes_events_around_each_call(fake_cuda):
    log = []
    found = measure({"a": _device_contender(0.002, log)}, "eager", TimeLimits(runs=20, screening=5, max_seconds=1))["a"]
    assert (found.runs, found.calls_per_run) == (20, 1)
    assert found.median == pytest.approx(0.002)
    assert log[: timing._WARMUP_CALLS] == [0, 1, 0]
    assert log[timing._WARMUP_CALLS :] == [0, 1] * 10


def test_graph_divides_a_replay_by_its_calls(fake_cuda):
    log = []
    found = measure({"a": _device_contender(1.1e-4, log)}, "graph", TimeLimits(runs=100, screening=5, max_seconds=1))[
        "a"
    ]
    repeats = math.ceil(timing._REPLAY_SECONDS / 2.2e-4)
    assert found.calls_per_run == 2 * repeats
    assert found.median == pytest.approx(1.1e-4)
    assert found.runs == 100


def test_on_a_device_slow_peers_stop_after_the_screening_and_ours_never(fake_cuda):
    contenders = {
        "fast": _device_contender(0.001, []),
        "slow": _device_contender(0.003, []),
        "ours": _device_contender(0.003, [], kept=True),
    }
    found = measure(contenders, "eager", TimeLimits(runs=40, screening=11, max_seconds=10))
    assert {name: result.runs for name, result in found.items()} == {"fast": 40, "slow": 11, "ours": 40}
