"""The site builds without a warning and without a network, and holds the public names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*DOCS.rglob("*.md"), ROOT / "README.md"])
PROMISED = {
    "veca_kernels": ("core_periphery_attention", "patch_to_core_attention", "merge_attention_states"),
    "veca": ("VECA.forward_features", "core_attention", "create_model", "convert_vit", "stream_features"),
    "veca_train": ("nano_scenes", "train_scenes", "BudgetSampler", "ElasticOptimizer", "Images"),
    "brain_data": ("StimulusSet", "Responses", "BrainDataset", "check_alignment", "simulate", "save_prepared"),
    "brain_features": ("extractor", "FeatureCache", "ArrayFeatures", "Ridge", "BandedRidge"),
    "brain_systems": ("load_model", "BrainModel.fit", "NeuroFlow.decode", "LatentModel.predict", "SynBrain.adapt"),
    "brain_metrics": ("Score", "nr2", "noise_input", "evaluate", "run_training"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; any warning fails the build."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    environment = os.environ | {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}  # no network
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.mark.parametrize("page", PROMISED)
def test_the_reference_holds_the_promised_names(site, page):
    anchors = re.findall(r'id="([\w.]+)"', (site / "api" / f"{page}.html").read_text(encoding="utf-8"))
    assert [name for name in PROMISED[page] if not any(anchor.endswith(f".{name}") for anchor in anchors)] == []


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = r'<(?:script|img|iframe)[^>]*\bsrc="(https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(https?:)?//'
    assert [path.name for path in site.rglob("*.html") if re.search(loaded, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page):
    """Links of the source, and files of the repository that a page names."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    rooms = "kernels|veca|brainmodels|benchmarks|tests|examples|docs"
    named = re.findall(rf"`((?:{rooms})/[\w./-]*\w\.(?:md|py|png))`", text)
    invented = ("csv_study", "NAME")  # of the guides
    assert [name for name in named if not (ROOT / name).exists() and not any(x in name for x in invented)] == []


def test_the_figure_is_small_and_its_numbers_are_recorded(tmp_path):
    path = tmp_path / "time.png"
    subprocess.run([sys.executable, DOCS / "figure.py", path], check=True, capture_output=True)
    assert path.stat().st_size < 100_000
    assert (DOCS / "images/time.png").stat().st_size < 100_000
    assert (DOCS / "images/decoded.png").stat().st_size < 150_000


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
