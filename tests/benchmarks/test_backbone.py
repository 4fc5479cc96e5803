"""The published cases, their verdict, and what the suite keeps of them; the measuring is tested with `veca.bench`."""

import pytest

from benchmarks import backbone
from benchmarks.acceptance import judge_backbone
from benchmarks.backbone import BASE, CPU, PRESETS, SMALL, settings_of
from benchmarks.record import read_rows
from benchmarks.suite_jobs import Job
from benchmarks.suite_results import collect, finish, markdown
from tests.models import bench_tiny_models
from veca.bench import LINEAR_BACKBONES, check_bench, models, run


def _asked(*words, cuda):
    return settings_of(backbone._parser().parse_args(words), cuda)


def test_the_table_has_losing_sizes_and_every_peer():
    table = _asked(cuda=True)
    assert table.models == SMALL + BASE and set(LINEAR_BACKBONES) < set(SMALL)
    assert min(table.sizes) == 224 and max(table.sizes) == 4096
    assert table.passes == ("inference", "train") and table.modes == ("eager", "blocks", "compiled")
    small = _asked("--sizes", "64", "96", "--cores", "8", "--out", "some/where.jsonl", cuda=False)
    assert small.models == CPU and small.sizes == (64, 96) and small.budgets == (8,)
    assert small.out.name == "some" and small.name == "where" and small.device == "cpu"
    check_bench(small)


@pytest.fixture
def tiny(monkeypatch):
    bench_tiny_models(monkeypatch)


def test_rows_can_be_judged_and_the_suite_shows_the_page(tmp_path, tiny, monkeypatch, capsys):
    path = tmp_path / "backbone.jsonl"
    names = ("--models", "veca_base_patch16", "vit_base_patch16_224")
    options = ("--device", "cpu", *names, "--sizes", "64", "--cores", "4", "--runs", "2", "--out", str(path))
    assert backbone.main(options) == 0
    ours, vit = (row for row in read_rows(path) if row["kind"] == "backbone")
    page = capsys.readouterr().out
    assert ours["model"] == "veca_base_patch16" and "| 64 | vit_base_patch16_224 |" in page and "commit " in page
    assert judge_backbone([ours | {"size": 4096, "matmul_share": 0.7}])["verdict"] == "met"
    assert judge_backbone([ours | {"size": 4096, "matmul_share": 0.5}])["verdict"] == "missed"
    assert judge_backbone([vit | {"size": 4096}])["verdict"] == "not measured"
    whole = markdown(finish(collect([Job("backbone", "models", (), 1, path)], [], "unknown")))
    assert "### inference, eager, float32" in whole and "| 64 | vit_base_patch16_224 |" in whole


def test_presets_of_the_suite_hold_every_model_and_the_judged_size():
    """VECA-S and VECA-B beside plain, rotating and linear backbones, 512 to 4096 px, inference and training."""
    for name in PRESETS:
        check_bench(_asked("--preset", name, cuda=False))
    judged, models_ = PRESETS["judged"], PRESETS["models"]
    assert judged.models[0] == "veca_base_patch16" and judged.sizes == (4096,) and "inference" in judged.passes
    assert set(SMALL + BASE) == set(models_.models) and {512, 4096} <= set(models_.sizes)
    assert models_.passes == ("inference", "train")
    assert {"vit_small_patch16_dinov3", "vit_base_patch16_dinov3"} < set(models_.models)


def test_a_model_that_cannot_be_built_fails_the_run(tmp_path, monkeypatch, tiny):
    def broken(name, **options):
        raise RuntimeError("no such model")

    monkeypatch.setattr(models, "create_model", broken)
    monkeypatch.setattr(run, "_break_evens", lambda settings: [])
    path = tmp_path / "rows.jsonl"
    names = ("--models", "veca_nano_patch16", "vit_tiny_patch16_224")
    assert backbone.main(["--device", "cpu", *names, "--sizes", "32", "--runs", "1", "--out", str(path)]) == 1
    ours, vit = (row for row in read_rows(path) if row["kind"] == "backbone")
    assert ours["reason"] == "RuntimeError: no such model" and vit["status"] == "ok"
