"""FLOP formulas against torch's counter, memory against arithmetic, skips with reasons."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import veca
from benchmarks import backbone
from benchmarks.backbone import Job, Limits, forward_flops
from benchmarks.backbone_summary import backbone_table, summarize_backbone
from benchmarks.floors import H200
from benchmarks.memory import peak_bytes
from benchmarks.record import read_rows
from benchmarks.timing import Budget

CPU = torch.device("cpu")


def _counted(model, images):
    """FLOP by torch's counter; the composed attention, since not every version counts the fused one on CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel([SDPBackend.MATH]):
        model.forward_features(images)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_flop_formulas_match_the_counter(size):
    images = torch.zeros(1, 3, *size)
    patches = size[0] * size[1] // 256
    model = veca.VECA(embed_dim=48, depth=3, num_heads=3, num_cores=5)
    assert forward_flops(model, patches, 5) == _counted(model, images)
    options = {"embed_dim": 48, "depth": 3, "num_heads": 3, "dynamic_img_size": True, "num_classes": 0}
    vit = timm.create_model("vit_small_patch16_224", global_pool="avg", **options)
    assert forward_flops(vit, patches, None) == _counted(vit, images)


def test_flops_of_the_published_sizes():
    """Attention and SwiGLU of VECA-B with 64 cores: the paper's scale, 726 GFLOP at 1024 px, 190 at 512."""
    with torch.device("meta"):
        model = nn.Module()
        model.embed_dim, model.blocks = 768, [None] * 12
        block = nn.Module()
        block.mlp = nn.Module()
        block.mlp.fc2 = nn.Linear(2048, 768)
        model.blocks = [block] * 12
    for size, gflop in ((512, 190), (1024, 726), (2048, 2871)):
        patches = (size // 16) ** 2
        embed = 2 * patches * 768 * 3 * 256 + 4 * 64 * 768 * 11
        assert (forward_flops(model, patches, 64) - embed) / 1e9 == pytest.approx(gflop, abs=0.5)


def test_peak_memory_counts_what_is_alive_at_once():
    x = torch.zeros(1000)  # 4000 bytes, held before

    def call():
        a = x + 1  # 4000
        b = a + 1  # 8000
        del a
        c = b + 1  # 8000
        view = c.view(10, 100)  # no memory
        return view.sum()  # 4 more

    assert peak_bytes(call, CPU, [x]) == 8004


def test_peak_memory_sees_what_autograd_keeps():
    weight = torch.zeros(1000, requires_grad=True)

    def call():
        return weight.exp().exp()  # each result is saved for its backward

    assert peak_bytes(call, CPU, [weight]) == 8000


def test_slow_runs_are_skipped_with_the_rate_that_predicts_them():
    limits = Limits(Budget(), longest_run=1.0, matmul=1e9)
    job = Job("small", 512, 1, "train", "eager", "float32", 64)
    assert "at the matmul rate" in limits.too_long(job, "vit", 10**9)
    assert limits.too_long(job, "vit", 10**8) is None
    limits.rates["vit", "train", "eager"] = (1e8, 224)
    assert "3 s a run predicted at the rate it reached at 224 px, limit 1 s" in limits.too_long(job, "vit", 10**8)


@pytest.fixture
def tiny_models(monkeypatch):
    """Models of two blocks; rates known, since measuring them takes longer than these tests."""

    def create_veca(name, num_cores):
        return veca.VECA(embed_dim=24, depth=2, num_heads=2, num_cores=num_cores)

    def create_vit(name, **options):
        return create_timm(name, embed_dim=24, depth=2, num_heads=2, **options)

    create_timm = timm.create_model
    monkeypatch.setattr(backbone, "machine_for", lambda device, dtype: H200)
    monkeypatch.setattr(veca, "create_model", create_veca)
    monkeypatch.setattr(timm, "create_model", create_vit)


def test_both_sides_are_measured_and_paired(tmp_path, capsys, tiny_models):
    path = tmp_path / "rows.jsonl"
    sizes = ("--sizes", "32", "48", "--cores", "3", "--runs", "2", "--batch", "2")
    status = backbone.main(["--device", "cpu", "--passes", "inference", "train", *sizes, "--out", str(path)])
    assert status == 0
    rows = [row for row in read_rows(path) if row["kind"] == "backbone"]
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok"}
    for entry in summarize_backbone(rows):
        assert float(entry["x time"]) == pytest.approx(entry["vit ms"] / entry["veca ms"], abs=0.006)
        assert entry["veca MB"] > 0 and entry["veca img/s"] == pytest.approx(2e3 / entry["veca ms"])
        assert (entry["veca % peak"] is None) == (entry["pass"] == "train")
    memory = {(row["size"], row["pass"], row["model"]): row["peak_bytes"] for row in rows}
    for model in ("veca_small_patch16", "vit_small_patch16_224"):
        assert memory[48, "train", model] > memory[32, "train", model]
        assert memory[48, "train", model] > memory[48, "inference", model]
    assert "x time" in capsys.readouterr().out


def test_a_skipped_side_leaves_its_reason_in_the_table(tmp_path, tiny_models):
    path = tmp_path / "rows.jsonl"
    options = ("--sizes", "32", "--longest-run", "1e-15", "--cores", "3", "--out", str(path))
    assert backbone.main(["--device", "cpu", *options]) == 0
    assert backbone_table(read_rows(path)).count("skipped: ") == 2


def test_a_model_that_cannot_be_built_is_an_error_of_its_job(tmp_path, monkeypatch, tiny_models):
    def broken(name, **options):
        raise RuntimeError("no such model")

    monkeypatch.setattr(timm, "create_model", broken)
    path = tmp_path / "rows.jsonl"
    assert backbone.main(["--device", "cpu", "--sizes", "32", "--cores", "3", "--out", str(path)]) == 1
    rows = [row for row in read_rows(path) if row["kind"] == "backbone"]
    assert {row["reason"] for row in rows} == {"RuntimeError: no such model"} and len(rows) == 2
