"""The schedule of the demo's measurements, on models that only let a clock advance."""

from types import SimpleNamespace

import pytest
import torch

from veca.demo import schedule
from veca.demo.schedule import Case, Schedule, fit_time
from veca.inspect import stopwatch


def test_fits_recover_planted_terms():
    assert fit_time([256, 1024, 4096], [2e-3 * p + 5e-7 * p**2 for p in (256, 1024, 4096)], (1, 2))(
        16384
    ) == pytest.approx(2e-3 * 16384 + 5e-7 * 16384**2)
    assert fit_time([256, 1024], [0.3 + 1e-3 * p for p in (256, 1024)], (0, 1))(4096) == pytest.approx(0.3 + 4.096)


def test_fits_have_no_negative_terms():
    # t = P^1.5 falls below any line through it: a plain fit would have a negative constant
    fit = fit_time([100, 400], [1.0, 8.0], (0, 1))
    assert fit(0) == 0 and fit(800) == pytest.approx(800 * (100 * 1 + 400 * 8) / (100**2 + 400**2))


class FakeMachine:
    """Models that only let the clock advance: VECA 1e-3 P + 1e-5 P C seconds, ViT 1e-4 P + 1e-6 P^2."""

    def __init__(self, monkeypatch):
        self.now, self.ran = 100.0, []
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        for module in (schedule, stopwatch):
            monkeypatch.setattr(module, "time", clock)
        self.patch_embed = SimpleNamespace(patch_size=(16, 16))
        self.vit = SimpleNamespace(forward_features=lambda image: self.run(image, None))

    def forward_features(self, image, cores):
        self.run(image, cores)

    def run(self, size, cores):
        self.ran.append((size, cores))
        self.now += self.seconds(size, cores)

    def seconds(self, size, cores):
        patches = (size // 16) ** 2
        return 1e-4 * patches + 1e-6 * patches**2 if cores is None else 1e-3 * patches + 1e-5 * patches * cores

    def schedule(self, limit):
        def flops_of(case):
            return self.seconds(case.size, case.num_cores) * 1e9

        cpu = torch.device("cpu")
        return Schedule(self, self.vit, lambda size, _: size, flops_of, cpu, self.now + limit, lambda text: None)


def test_all_cases_take_turns_and_the_median_counts(monkeypatch):
    fake = FakeMachine(monkeypatch)
    watch = fake.schedule(1e4)
    watch.run([64, 32], [8, 16])
    assert [m.case for m in watch.measured[:3]] == [Case(32, 16), Case(32, None), Case(32, 8)]
    small, large = ([(size, 16), (size, None), (size, 8)] for size in (32, 64))
    assert fake.ran == [*small, *small, *large, *large]  # untimed, timed
    watch.repeat()
    pairs = [*small[:2], *large[:2]] * 2  # up to three of each pair
    assert fake.ran[12:20] == pairs
    others = [m for m in watch.measured if m.case.num_cores == 8]
    assert fake.ran[20:] == [*small, *large] * 4 and [len(m.seconds) for m in others] == [5, 5]
    for m in watch.measured:
        assert m.warm and len(m.seconds) == (5 if m.case.num_cores == 8 else 7)
        assert m.median == pytest.approx(fake.seconds(m.case.size, m.case.num_cores))


def test_repetitions_end_with_the_time(monkeypatch):
    fake = FakeMachine(monkeypatch)
    watch = fake.schedule(1e4)
    watch.run([32, 1024], [8])  # a round takes 5 ms, and 21.6 s
    watch.deadline = fake.now + 30
    watch.repeat()
    assert fake.now <= watch.deadline
    assert [len(m.seconds) for m in watch.measured] == [5, 5, 2, 2]


def test_median():
    assert schedule.Measured(Case(1, 1), [3.0, 1.0, 2.0]).median == 2
    assert schedule.Measured(Case(1, 1), [4.0, 1.0, 2.0, 8.0]).median == 3
    assert schedule.Measured(Case(1, 1)).median is None


def test_large_sizes_are_predicted_and_run_within_the_limit(monkeypatch):
    fake = FakeMachine(monkeypatch)
    watch = fake.schedule(400)  # 2048 px takes 315 s
    watch.run([256, 512, 1024, 2048], [8, 64])
    watch.repeat()
    assert fake.now <= 500
    measured = {(m.case.size, m.case.num_cores): m for m in watch.measured}
    vit = measured[2048, None]
    assert vit.seconds == pytest.approx([270.1], abs=0.1) and not vit.warm
    assert vit.predicted == pytest.approx(vit.seconds[0])
    assert measured[2048, 8].predicted == pytest.approx(measured[2048, 8].seconds[0], rel=1e-3)
    assert measured[256, None].predicted is None and len(measured[256, None].seconds) == 7


def test_a_slow_moment_does_not_leave_a_case_out_for_ever(monkeypatch):
    """What was predicted too slow to fit is looked at again once its neighbour has run."""
    fake = FakeMachine(monkeypatch)
    watch = fake.schedule(60)
    honest = fake.seconds
    fake.seconds = lambda size, cores: honest(size, cores) * (5 if size < 512 else 1)
    watch.run([128, 256], [8, 64])
    fake.ran.clear()
    watch.deadline = fake.now + 0.9 * watch.predict(Case(512, 8)) + watch.predict(Case(512, 64)) * 1.15
    watch.deadline += 1.15 * watch.predict(Case(512, None))
    watch.run([512], [8, 64])
    assert [case for case in dict.fromkeys(fake.ran)] == [(512, 64), (512, None), (512, 8)]


def test_a_vit_that_does_not_fit_is_measured_at_a_smaller_size(monkeypatch):
    fake = FakeMachine(monkeypatch)
    watch = fake.schedule(200)
    watch.run([256, 512, 1024, 2048], [8, 64])
    assert fake.now <= 300
    measured = {(m.case.size, m.case.num_cores): m for m in watch.measured}
    assert not measured[2048, None].seconds and measured[2048, None].predicted == pytest.approx(270.1, abs=0.1)
    assert measured[2048, 64].seconds  # linear, so it fits
    extra = [m for m in watch.measured if m.note]
    assert [m.case.num_cores for m in extra] == [64, None] and {m.note for m in extra} == {"in place of 2048 px"}
    smaller = extra[0].case.size
    assert 1024 < smaller < 2048 and smaller % 128 == 0 and all(m.seconds for m in extra)
    assert [m.case.size for m in watch.measured] == sorted(m.case.size for m in watch.measured)


def test_without_time_the_smallest_size_is_measured_all_the_same(monkeypatch):
    watch = FakeMachine(monkeypatch).schedule(-5)
    watch.run([64, 128], [8])
    assert [(m.case.size, len(m.seconds)) for m in watch.measured] == [(64, 1), (64, 1), (128, 0), (128, 0)]
