"""Imports in bare surroundings, the wheel, the editable install."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BRAIN = (
    "diffusers transformers open_clip nibabel nilearn h5py sklearn skimage torchmetrics himalaya mne matplotlib trimesh"
)


def run_without(blocked: str, code: str) -> str:
    """Standard output and error of `code` in a fresh interpreter where importing `blocked` names fails."""
    block = "import sys\nfor name in '{}'.split():\n    sys.modules[name] = None\n"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", block.format(blocked) + code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_kernels_need_torch_only():
    """Attention runs, forward and backward, with triton and every other dependency blocked."""
    code = (
        "import torch, veca_kernels\n"
        "x = torch.randn(1, 2, 20, 16, requires_grad=True)\n"
        "veca_kernels.core_periphery_attention(x, x, x, 4).sum().backward()\n"
        "try:\n    veca_kernels.core_periphery_attention(x, x, x, 4, impl='triton')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    out = run_without(f"triton numpy timm einops safetensors xformers {BRAIN}", code)
    assert "triton is not installed" in out


def test_import_does_not_load_triton():
    """triton enters with the first launch, not with the import."""
    code = (
        "import sys, torch\nbefore = 'triton.runtime' in sys.modules\nimport veca_kernels\n"
        "print('veca_kernels.triton.ops' in sys.modules, 'triton.runtime' in sys.modules and not before)"
    )
    assert run_without("", code) == "False False\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_three_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"veca_kernels", "veca", "brainmodels"}
    assert {
        "veca_kernels/triton/read.py",
        "veca/report/templates/demo.html",
        "veca/report/templates/page.css",
        "brainmodels/report/templates/brain.html",
        "brainmodels/catalog/entries/models.toml",
        "veca/zoo/weights/vit_nano_patch8.safetensors",
        "veca/py.typed",
        "brainmodels/py.typed",
    } <= set(names)


def test_sdist_holds_what_a_reader_needs(tmp_path):
    """Packages, documentation, examples and the files of the root; no tests and no results of benchmarks."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names}
    assert {"kernels", "veca", "brainmodels", "docs", "examples", "mkdocs.yml", "constraints.txt"} <= tops
    assert {"README.md", "CONTRIBUTING.md", "CITATION.cff", "CHANGELOG.md", "LICENSE"} <= tops
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")} <= names
    assert not tops & {"tests", "benchmarks", "out"}


def test_wheel_installs_and_runs(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, veca, veca_kernels, brainmodels, json\n"
        "x = torch.randn(1, 2, 20, 16)\n"
        "veca_kernels.core_periphery_attention(x, x, x, 4)\n"
        "veca.create_model('veca_nano_patch8', pretrained=True)\n"
        "print(json.dumps([m.__file__ for m in (veca, veca_kernels, brainmodels)]))\n"
    )
    files = json.loads(run_without("", code))
    assert all(f.startswith(str(tmp_path)) for f in files)


def test_editable_install_points_at_the_checkout():
    import veca_kernels

    import veca

    for module in (veca, veca_kernels):
        assert Path(module.__file__).is_relative_to(ROOT)
    assert metadata.version("veca") == veca.__version__


def test_extras_are_the_promised_ones():
    extras = metadata.metadata("veca").get_all("Provides-Extra")
    assert sorted(extras) == ["bench", "brain", "dev", "face"]
