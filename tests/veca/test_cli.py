import re
from pathlib import Path

import pytest

from veca import cli
from veca.demo import DemoSettings


def test_models_are_listed_with_their_exact_sizes(capsys):
    cli.main(["models"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "width", "depth", "heads", "parameters", "weights"]
    rows = {line[0]: line[1:] for line in lines[1:]}
    assert rows["veca_nano_patch8"] == ["192", "6", "3", "2,722,511", "shipped"]
    assert rows["veca_small_patch16"] == ["384", "12", "6", "21,628,961"]
    assert rows["veca_small_plus_patch16"] == ["384", "12", "6", "28,719,137"]
    assert rows["veca_base_patch16"] == ["768", "12", "12", "85,725,089"]
    assert rows["veca_large_patch16"] == ["1024", "24", "16", "303,195,301"]


@pytest.fixture
def asked(monkeypatch):
    """The settings that the demo would have run with."""
    seen = []

    def run_demo(settings):
        seen.append(settings)
        best = {"size": 96, "num_cores": 16, "time": 3.456, "memory": 0.5, "flops_model": 2.0}
        times = [(None, 3.456, 5e6), (16, 1.0, 1e7)]
        return {
            "headline": best,
            "busy": "",
            "ratios": [best, {"size": 64, "num_cores": 8, "time": 0.87}, {"size": 128, "num_cores": 8, "time": None}],
            "timings": [{"size": 96, "num_cores": c, "median_s": t, "peak_bytes": m} for c, t, m in times],
            "flops": [{"size": 96, "num_cores": c, "model": f} for c, f in ((None, 4e9), (16, 2e9))],
        }

    monkeypatch.setattr(cli, "run_demo", run_demo)
    monkeypatch.setattr(cli, "check_request", lambda settings: None)
    return seen


def test_demo_without_arguments(asked, capsys):
    cli.main(["demo"])
    assert asked == [DemoSettings()]
    assert asked[0].out == Path("out/demo") and asked[0].sizes == (256, 512, 1024, 1536)
    assert asked[0].budgets == (8, 16, 32, 64) and asked[0].time_limit == 240


def test_demo_ends_with_the_ratios_both_sides_and_the_report(asked, capsys):
    cli.main(["demo", "--out", "somewhere"])
    head, *ratios, slower, last = capsys.readouterr().out.splitlines()
    assert head.startswith("at 96 px with 16 cores")
    assert [re.split(r"\s{2,}", line.strip()) for line in ratios] == [
        ["forward pass", "3.46 s", "1.00 s", "3.46x"],
        ["peak memory", "5.00 MB", "10.0 MB", "0.50x"],
        ["FLOPs, whole model", "4.00 GFLOPs", "2.00 GFLOPs", "2.00x"],
    ]
    assert slower == "VECA is slower at 64 px with 8 cores (0.87x)"
    assert last == str(Path("somewhere") / "report.html")


def test_demo_takes_every_setting(asked):
    words = "--sizes 96 64 --budgets 16 8 --photographs coffee flower --time-limit 9 --model veca_nano_patch16"
    cli.main(["demo", *words.split(), "--device", "cpu", "--dtype", "bfloat16"])
    assert asked == [
        DemoSettings(
            sizes=(64, 96),
            budgets=(8, 16),
            photographs=("coffee", "flower"),
            time_limit=9,
            model="veca_nano_patch16",
            device="cpu",
            dtype="bfloat16",
        )
    ]


def test_a_mistake_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--model", "vit"])
    assert str(stopped.value).startswith("veca demo: expected model to be one of veca_nano_patch16")


@pytest.mark.parametrize("words", [["dance"], ["demo", "--sizes", "wide"], ["demo", "--nonsense", "1"]])
def test_words_nobody_knows_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
