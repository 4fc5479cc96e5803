"""Each example runs as its docstring says, without a network, and its result is what it promises."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import veca

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, out: Path) -> str:
    """Standard output of an example that writes to `out`."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}/kernels:{ROOT}",
    }
    command = [sys.executable, EXAMPLES / f"{name}.py", out]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_drop_in(tmp_path):
    """Core attention costs as many times more as there are pixels; full attention more than that."""
    assert "All keys matched successfully" in run("drop_in", tmp_path)
    with open(tmp_path / "flops.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    first, last = next(row for row in rows if row["side"] == 512), rows[-1]
    pixels = (last["side"] / first["side"]) ** 2
    assert 0.9 * pixels < last["core_gflops"] / first["core_gflops"] < pixels
    assert last["full_gflops"] / first["full_gflops"] > 4 * pixels


def test_features_and_attention_maps(tmp_path):
    run("features_and_attention_maps", tmp_path)
    arrays = np.load(tmp_path / "features.npz")
    assert arrays["patches"].shape == (256, 192)
    np.testing.assert_allclose(arrays["shares"].mean((1, 2)), 1, rtol=1e-4)
    assert np.median(arrays["on_object"]) > 2  # trained to name the object, cores look at it
    assert len(np.unique(np.asarray(Image.open(tmp_path / "features.png")))) > 100


@pytest.mark.slow
def test_train_on_your_images(tmp_path):
    out = run("train_on_your_images", tmp_path)
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < losses[0]
    right = [int(x) for x in re.findall(r"(\d+)% of the training images", out)]
    assert len(right) == 2
    assert min(right) >= 90
    assert veca.VECA.from_pretrained(tmp_path / "model").head.out_features == 2


@pytest.mark.slow
def test_brain_own_arrays(tmp_path):
    run("brain_own_arrays", tmp_path)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["data"]["test_images"] == 30  # a fifth of 150
    scores = {
        item["features"]: score["value"]
        for item in record["encoding"]
        if item["model"] == "ridge"
        for score in item["scores"]
        if score["metric"]["name"] == "nr2"
    }
    assert scores["veca"] > 0.15 > scores["pixels"]
    assert "me" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_decode_pictures(tmp_path):
    out = run("decode_pictures", tmp_path)
    assert float(re.search(r"tokens: ([\d.]+)%", out)[1]) > 65  # 20 images, chance 50 with a standard error near 7
    pictures = np.asarray(Image.open(tmp_path / "pictures.png"))
    assert pictures.shape == (2 * 64, 10 * 64, 3)
    assert len({pictures[64:, 64 * i : 64 * (i + 1)].tobytes() for i in range(10)}) > 1  # not one picture for all


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_say_what_they_print(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/{path.name}" in text
    assert "rint" in text.partition('"""')[2].partition('"""')[0]


def test_wrap_unclip(tmp_path):
    """The adapter carries tokens to the toy unCLIP well enough for pictures that resemble the new images."""
    found = re.search(r"correlation of pixels with the shown images (0\.\d\d)", run("wrap_unclip", tmp_path))
    assert found is not None and float(found[1]) > 0.6


def test_every_example_is_run_here():
    assert {f"test_{path.stem}" for path in EXAMPLES.glob("*.py")} <= set(globals())
