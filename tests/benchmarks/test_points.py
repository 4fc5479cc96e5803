"""The benchmark of points: its peer attends to all tokens, and its rows hold what they say."""

import math

import pytest
import torch

from benchmarks import points as benchmark
from benchmarks.record import read_rows
from veca.model.attention import CoreAttention


def test_the_peer_attends_to_all_tokens():
    layer = CoreAttention(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = layer.qkv(x).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = layer.proj(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(benchmark.FullAttention(layer)(x, 2), expected, rtol=1e-10, atol=1e-10)
    assert (layer(x, 2) - expected).abs().max() > 1e-3


def test_the_exponent_is_the_slope_between_two_sizes():
    assert benchmark.exponent({"points": 100, "s": 0.5}, {"points": 400, "s": 8.0}, "s") == pytest.approx(2)
    assert benchmark.exponent({}, {"points": 400, "s": 8.0}, "s") is None


def test_rows_have_ratio_and_exponent(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ["--points", "64", "256", "--width", "8", "--depth", "1", "--heads", "2", "--latents", "2"]
    benchmark.main([*sizes, "--runs", "3", "--out", str(out)])
    rows = read_rows(out)
    assert [(row["pass"], row["points"]) for row in rows] == [(x, n) for x in benchmark.PASSES for n in (64, 256)]
    for first, second in (rows[:2], rows[2:]):
        assert second["full / cores"] == second["full s"] / second["cores s"]
        assert second["exponent, cores"] == pytest.approx(math.log(second["cores s"] / first["cores s"]) / math.log(4))
    assert rows[0]["runs"] == 3 and rows[0]["width"] == 8 and {"device", "date", "torch", "commit"} < set(rows[0])
    assert "| inference | 64 |" in capsys.readouterr().out
    benchmark.main([*sizes, "--without-full", "--passes", "inference"])
    assert "full / cores" in capsys.readouterr().out
