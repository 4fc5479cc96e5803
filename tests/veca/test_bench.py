"""`veca bench`: rows against what was planted, failures as rows, the linear backbones as they are described."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.models import bench_tiny_models
from veca import cli
from veca.bench import LINEAR_BACKBONES, BenchSettings, check_bench, models, run, run_bench
from veca.bench.alone import measure_alone
from veca.bench.models import BackboneCase, build_model, prepare
from veca.bench.timing import TimeLimits
from veca.inspect.cost import counted_flops

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    bench_tiny_models(monkeypatch)


def settings(tmp_path, **options):
    pair = ("veca_nano_patch16", "vit_tiny_patch16_224")
    defaults = {"models": pair, "budgets": (4,), "sizes": (64,), "runs": 2, "device": "cpu", "figure": False}
    return BenchSettings(**(defaults | options), out=tmp_path)


def cases(rows):
    return [row for row in rows if row["kind"] == "backbone"]


def test_rows_hold_what_the_clock_and_the_counter_say(tmp_path, tiny):
    asked = settings(tmp_path, budgets=(4, 8), sizes=(64, 32), passes=("inference", "train"), batch=2)
    rows = run_bench(asked, progress=False)
    assert rows == [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    found = cases(rows)
    assert [row["size"] for row in found[:6]] == [32] * 3 + [64] * 3 and len(found) == 12
    assert {row["status"] for row in found} == {"ok"}
    for row in found:
        assert row["patches"] == row["size"] ** 2 // 256
        assert row["low_s"] <= row["median_s"] <= row["high_s"] and row["runs"] == 2
        assert (row["alone_s"], row["alone_runs"]) == (2.0, 1)
        assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
        assert row["patches_per_s"] == pytest.approx(2 * row["patches"] / row["median_s"])
        work = (3 if row["pass"] == "train" else 1) * 2 * row["model_flops"]
        assert row["matmul_share"] == pytest.approx(work / row["median_s"] / 1e11)
    flops = {(row["num_cores"], row["size"]): row for row in found}
    tokens, width, hidden = 8 + 16, 24, 64  # of VECA with 8 cores at 64 px
    attention = 8 * tokens * width**2 + 4 * width * (2 * 16 * 8 + 8**2)
    assert flops[8, 64]["attention_flops"] == attention
    assert flops[8, 64]["block_flops"] == attention + 6 * tokens * width * hidden
    assert flops[8, 64]["model_flops"] == 2 * flops[8, 64]["block_flops"] + 2 * 16 * 768 * width + 4 * 8 * width
    assert flops[None, 64]["block_flops"] == 8 * 17 * width**2 + 4 * width * 17**2 + 16 * 17 * width**2
    held = {(row["num_cores"], row["size"], row["pass"]): row["peak_bytes"] for row in found}
    for num_cores in (4, 8, None):
        assert held[num_cores, 64, "train"] > held[num_cores, 64, "inference"] > held[num_cores, 32, "inference"]


def test_page_and_curves_are_written(tmp_path, tiny):
    pytest.importorskip("matplotlib")
    run_bench(settings(tmp_path, sizes=(32, 64), figure=True, name="mine"), progress=False, commit="abc123")
    page = (tmp_path / "mine.md").read_text()
    assert "commit abc123" in page and "matmul peak 100 GFLOP/s in float32" in page
    assert "veca_nano_patch16 with 4 cores takes more FLOPs than vit_tiny_patch16_224 below" in page
    assert (tmp_path / "mine-inference-eager.png").stat().st_size > 10_000


class _OutOfMemory(nn.Linear):
    """Takes the place of a model's `norm`; fails the first or the third time, as allocators do."""

    errors = ("CUDA", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    def __init__(self, when, error):
        super().__init__(24, 24)
        self.when, self.error = when, error

    def forward(self, x):
        if x.device.type != "meta":
            self.when -= 1
            if self.when == 0:
                raise self.error
        return x


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError(_OutOfMemory.errors[1])])
def test_out_of_memory_is_a_row_and_the_others_go_on(when, error, tmp_path, tiny, monkeypatch):
    create = timm.create_model

    def hungry(name, **options):
        model = create(name, **options)
        model.norm = _OutOfMemory(when, error)
        return model

    monkeypatch.setattr(timm, "create_model", hungry)
    ours, vit = cases(run_bench(settings(tmp_path, runs=3), progress=False))
    assert ours["status"] == "ok" and ours["runs"] == 3
    assert vit["status"] == "out of memory" and str(error)[:20] in vit["reason"]
    line = next(line for line in (tmp_path / "bench.md").read_text().splitlines() if "| vit_tiny" in line)
    assert "out of memory: " in line and line.count("|") == 20


def test_a_broken_model_is_an_error_row(tmp_path, tiny, monkeypatch):
    def broken(name, **options):
        raise RuntimeError("no such weights")

    monkeypatch.setattr(timm, "create_model", broken)
    monkeypatch.setattr(run, "_break_evens", lambda settings: [])
    ours, vit = cases(run_bench(settings(tmp_path), progress=False))
    assert ours["status"] == "ok" and (vit["status"], vit["reason"]) == ("error", "RuntimeError: no such weights")


def test_runs_predicted_too_long_are_skipped(tmp_path, tiny):
    flops = counted_flops(models.create_model("veca_nano_patch16", num_cores=4), 64, 64)
    first, vit = cases(run_bench(settings(tmp_path, longest_run=0.5 * flops / 1e11), progress=False))
    assert {first["status"], vit["status"]} == {"skipped"}
    assert re.search(r"s a run predicted from the matmul peak, limit", first["reason"])


def test_predictions_use_what_the_model_reached_at_its_last_size(tiny):
    limits = run._Limits(longest_run=1.0, peak=1e30, memory=1e6)
    small, large = (
        prepare(BackboneCase("veca_nano_patch16", 4, s, 1, "inference", "eager", "float32"), CPU) for s in (32, 64)
    )
    rate = large.flops / 2  # two seconds
    assert limits.refuse(large) is None
    limits.note(small, small.flops / rate, peak_bytes=249_000)
    status, reason = limits.refuse(large)
    assert status == "skipped" and reason == "2 s a run predicted from its rate at 32 px, limit 1 s"
    limits.note(small, 1e-9, peak_bytes=251_000)  # four times the patches
    status, reason = limits.refuse(large)
    assert status == "out of memory" and "0.001 GB predicted from the peak at 32 px, 0.001 GB available" in reason


def test_time_that_is_used_up_leaves_rows(tmp_path, tiny):
    found = cases(run_bench(settings(tmp_path, time_limit=1e-9), progress=False))
    assert {row["reason"] for row in found} == {"the 1e-09 s of this run were used up"} and len(found) == 2


@pytest.mark.slow
def test_a_case_alone_is_timed_in_another_process():
    case = BackboneCase("vit_tiny_patch16_224", None, 32, 1, "inference", "eager", "float32")
    timing = measure_alone(case, 1, TimeLimits(runs=2, screening=1, max_seconds=1.0))
    assert timing.runs == 2 and 0 < timing.low <= timing.high
    assert "vit_smal" in measure_alone(dataclasses.replace(case, model="vit_smal"), 1, TimeLimits(runs=1))


def test_models_take_turns(tmp_path, tiny, monkeypatch):
    order, features = [], models._dense_features

    def logged(model, images):
        order.append(type(model).__name__)
        return features(model, images)

    monkeypatch.setattr(models, "_dense_features", logged)
    run_bench(settings(tmp_path, runs=3), progress=False)
    assert order[:8] == ["VECA", "VisionTransformer"] * 4  # the first of each is the warm-up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["veca_nano_patch16", "vit_tiny_patch16_224"])
def test_a_training_step_moves_every_parameter(name, dtype, tiny):
    num_cores = 4 if name.startswith("veca") else None
    prepared = prepare(BackboneCase(name, num_cores, 32, 2, "train", "eager", dtype), CPU)
    before = {key: value.clone() for key, value in prepared.model.named_parameters()}
    prepared.calls[1]()
    for key, value in prepared.model.named_parameters():
        assert not torch.equal(value, before[key]), key
        assert value.dtype == torch.float32 and value.grad is None


def test_compiled_modes_compile_before_the_clock_runs(tiny, monkeypatch):
    compiled, ran = [], []

    def compile(function, dynamic):
        compiled.append((function, dynamic))
        return lambda images: ran.append(1) or function(images)

    monkeypatch.setattr(torch, "compile", compile)
    prepared = prepare(BackboneCase("vit_tiny_patch16_224", None, 32, 1, "inference", "compiled", "float32"), CPU)
    assert len(prepared.calls) == 2 and len(ran) == 1 and compiled[0][1] is False
    assert prepared.peak() is None  # a graph hides its buffers
    blocks = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: blocks.append(self))
    prepared = prepare(BackboneCase("vit_tiny_patch16_224", None, 32, 1, "inference", "blocks", "float32"), CPU)
    assert blocks == list(prepared.model.blocks)


def test_blocks_need_blocks():
    with pytest.raises(ValueError, match=r"expected a model with blocks for mode='blocks', got efficientvit_b0"):
        prepare(BackboneCase("efficientvit_b0", None, 64, 1, "inference", "blocks", "float32"), CPU)


def test_linear_backbones_are_linear_and_as_large_as_described():
    table = dict(re.findall(r"^ {4}(\w+) +([\d.]+) M", models.__doc__, flags=re.MULTILINE))
    assert tuple(table) == LINEAR_BACKBONES

    def hollow(name, size):
        with torch.device("meta"):
            return build_model(name, 64 if name.startswith("veca") else None, size)

    growth = {}
    for name in (*LINEAR_BACKBONES, "veca_small_patch16", "vit_small_patch16_224"):
        model = hollow(name, 512)
        growth[name] = counted_flops(model, 2048, 2048) / counted_flops(model, 512, 512)
        if name in table:
            assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}" == table[name]
    assert growth.pop("vit_small_patch16_224") > 80
    assert all(15 < ratio <= 16.001 for ratio in growth.values()), growth  # windows pad small images more


def test_models_that_must_be_told_their_size_are():
    with torch.device("meta"):
        model = build_model("hiera_tiny_224", size=256)
    assert counted_flops(model, 256, 256) > 0
    with pytest.raises(RuntimeError, match="3136"), torch.device("meta"):
        counted_flops(build_model("hiera_tiny_224"), 256, 256)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"got 'vit_smal_patch16_224'; did you mean .*vit_small_patch16_224"):
        check_bench(settings(tmp_path, models=("vit_smal_patch16_224",)))
    for wrong, message in (
        ({"sizes": (64, 100)}, "multiples of 16 pixels from 32 on, got 100"),
        ({"compiled_sizes": (16,)}, "multiples of 16 pixels from 32 on, got 16"),
        ({"passes": ()}, "expected at least one of passes, got none"),
        ({"batch": 0}, "expected batch above 0, got 0"),
        ({"budgets": (8, 0)}, r"budgets of at least 1 core, got \(8, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check_bench(settings(tmp_path, **wrong))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="expected a CUDA device"):
            check_bench(settings(tmp_path, device="cuda"))


def test_curves_without_matplotlib_are_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    check_bench(settings(tmp_path))
    with pytest.raises(ImportError, match="need matplotlib"):
        check_bench(settings(tmp_path, figure=True))


def test_command_line(tmp_path, monkeypatch, capsys):
    asked = []

    def pretend(settings):
        asked.append(settings)
        settings.out.mkdir(exist_ok=True)
        (settings.out / "bench.md").write_text("the page")

    monkeypatch.setattr(cli, "run_bench", pretend)
    words = (
        f"bench --models veca_nano_patch16 resnet18 --sizes 64 96 --passes train --batch 3 --no-figure --out {tmp_path}"
    )
    cli.main(words.split())
    pair = ("veca_nano_patch16", "resnet18")
    changed = {"models": pair, "sizes": (64, 96), "passes": ("train",), "batch": 3, "figure": False}
    assert asked == [BenchSettings(**changed, out=Path(tmp_path))]
    assert capsys.readouterr().out.splitlines() == ["the page", str(tmp_path / "bench.md")]
    with pytest.raises(SystemExit, match="veca bench: expected a model of VECA or timm, got 'resnet'"):
        cli.main(["bench", "--models", "resnet"])


def test_batches_hold_equal_numbers_of_patches_on_a_gpu():
    cuda = torch.device("cuda")
    assert [run._batch(size, cuda) for size in (224, 512, 1024, 4096)] == [64, 32, 8, 1]
    assert run._batch(224, CPU) == 1
