"""The benchmark of talking heads: a small model goes through it and its page holds every table."""

import functools

import pytest

from benchmarks import heads as benchmark
from brainmodels.evaluation.heads import HeadSettings
from brainmodels.simulated.talking_head import simulate_clips
from tests.brainmodels.head_fits import SMALL


def test_a_small_model_goes_through(tmp_path, monkeypatch):
    few = {"partners": 2, "alphas": (0.0, 0.5, 1.0), "grid_frames": 0, "probe_pictures": 64, "probe_steps": 4}
    monkeypatch.setattr(benchmark, "named", lambda name: SMALL)
    monkeypatch.setattr(benchmark, "simulate_clips", functools.partial(simulate_clips, train=16, test=8, frames=16))
    monkeypatch.setattr(benchmark, "HeadSettings", functools.partial(HeadSettings, **few))
    out, models = tmp_path / "page.md", tmp_path / "models"
    words = ["--seeds", "1", "--clips", "4", "--steps", "1", "--resamples", "4", "--out", str(out)]
    benchmark.main([*words, "--models", str(models)])
    page = out.read_text()
    for part in ("Speech to coefficients", "Pictures.", "Sync.", "Expression.", "Identity.", "Bounds."):
        assert f"**{part}" in page
    assert "| generator |" in page and "| ridge |" in page and "hide flagged, seed 1" in page
    for row in ("reference frame repeated", "exact render of the truth", benchmark.NAME):
        assert f"| {row} |" in page
    monkeypatch.setattr(benchmark.EmoDiffHead, "fit", lambda *_: pytest.fail("a saved model is trained again"))
    benchmark.main([*words, "--models", str(models)])
    first, second = out.read_text().split("## ")[1:]
    numbers = [part.split("Bounds.")[0].split("coefficients, test sentences.")[1] for part in (first, second)]
    assert numbers[0] == numbers[1]
