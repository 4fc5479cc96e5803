"""Export models for other programs: as ONNX or as torch.export's .pt2, for any batch, height and width.

    rows = export_model(model, "veca.onnx", num_cores=16)

    input "images"           (B, 3, height, width), fp32, normalised; at least two patches on each side
    output "global_token"    (B, E)
    output "patches"         (B, P, E), in row-major order
    output "cores"           (B, C, E)
    output "core_xy"         (B, C, 2)
    output "logits"          (B, num_classes), where the model has a classifier

The graph computes the positions from the size, so nothing is interpolated. An exported file cannot raise errors, so
sizes that are not a multiple of the patch are always accepted. They are cut if the model has on_odd="crop", and padded
with zeros otherwise. The budget C is fixed, so each budget needs its own file.

A written file is read again and compared with the model, at sizes and batches that differ from those of the export.
"""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from ..model.backbone import VECA

__all__ = ["FORMATS", "ExportCheck", "export_model"]

FORMATS = ("onnx", "pt2")
_TOLERANCE = 1e-3
_EXAMPLE = (2, 14, 10, -1)  # batch, rows and columns of patches, pixels more on each side
_CHECKS = ((1, 16, 24, 0), (3, 9, 5, -1))
_MOST_PIXELS = 2**17

Runner = Callable[[Tensor], list[Tensor]]


class ExportCheck(NamedTuple):
    """Comparison of an exported file with its model.

    Attributes:
        batch, height, width: number and size of the images, which are noise of deviation 1.
        difference: largest |exported - model| over all outputs, each divided by its largest |model|.
    """

    batch: int
    height: int
    width: int
    difference: float


class _Graph(nn.Module):
    """A copy of a model with one budget, which takes and returns tensors: fp32 on the CPU, attention in plain torch."""

    def __init__(self, model: VECA, num_cores: int):
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu().requires_grad_(False)
        self.num_cores = num_cores
        for block in self.model.blocks:
            block.attn.impl = "sdpa"
        self.eval()

    def output_names(self) -> list[str]:
        return ["global_token", "patches", "cores", "core_xy"] + ["logits"] * bool(self.model.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.model.forward_features(self.fit(images), self.num_cores)
        logits = (self.model.forward_head(features),) if self.model.num_classes else ()
        return (*features[:4], *logits)

    def fit(self, images: Tensor) -> Tensor:
        """`padding.fit_to_patches` without a branch on the size, which would fix the size in the graph."""
        height, width = images.shape[2:]
        patch_h, patch_w = self.model.patch_embed.patch_size
        extra = (0, 0) if self.model.on_odd == "crop" else (patch_h - 1, patch_w - 1)
        rows, cols = (height + extra[0]) // patch_h, (width + extra[1]) // patch_w
        return F.pad(images, (0, cols * patch_w - width, 0, rows * patch_h - height))


@torch.no_grad()
def export_model(
    model: VECA, file: str | Path, file_format: str | None = None, num_cores: int | None = None
) -> list[ExportCheck]:
    """Write a model for other programs, and check the file.

    Args:
        model: the model, which does not change. The file is in evaluation mode and fp32.
        file: file to write; its folder is made.
        file_format: "onnx" or "pt2"; None goes by the suffix. ONNX needs onnx, onnxscript and onnxruntime, which the
            extra `dev` installs.
        num_cores: C, the budget; None means `model.budget`.

    Returns:
        One row for each size that was checked.

    Raises:
        ImportError: a package for ONNX is not installed.
        TypeError: another model than a VECA.
        ValueError: an unknown format.
        RuntimeError: the outputs of the file differ from the model's.
    """
    if not isinstance(model, VECA):
        raise TypeError(f"expected model to be a VECA, got {type(model).__name__}; use torch.onnx.export")
    file = Path(file)
    file_format = file.suffix.removeprefix(".") if file_format is None else file_format
    if file_format not in FORMATS:
        raise ValueError(f"expected a format of {' or '.join(FORMATS)}, got {file_format!r} for {file}")
    if file_format == "onnx":
        _import_onnx()
    graph = _Graph(model, model.budget if num_cores is None else num_cores)
    least = [2 * side if model.on_odd == "crop" else side + 1 for side in model.patch_embed.patch_size]
    height, width = (Dim(name, min=n, max=_MOST_PIXELS) for name, n in zip(("height", "width"), least, strict=True))
    shapes = ({0: Dim("batch", min=1, max=65536), 2: height, 3: width},)
    file.parent.mkdir(parents=True, exist_ok=True)
    write = _write_onnx if file_format == "onnx" else _write_pt2
    run = write(graph, _noise(graph, *_EXAMPLE), shapes, file)

    checks = [_check(graph, run, *size) for size in _CHECKS]
    worst = max(check.difference for check in checks)
    if not worst <= _TOLERANCE:
        raise RuntimeError(f"expected {file} to equal the model within {_TOLERANCE}, it differs by {worst:.2g}")
    return checks


def _write_pt2(graph: _Graph, example: Tensor, shapes: tuple, file: Path) -> Runner:
    torch.export.save(torch.export.export(graph, (example,), dynamic_shapes=shapes), file)
    loaded = torch.export.load(file).module()
    return lambda images: list(loaded(images))


def _write_onnx(graph: _Graph, example: Tensor, shapes: tuple, file: Path) -> Runner:
    torch.onnx.export(
        graph,
        (example,),
        file,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=graph.output_names(),
        external_data=False,
        verbose=False,
    )
    session = _import_onnx().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})]


def _check(graph: _Graph, run: Runner, *size: int) -> ExportCheck:
    images = _noise(graph, *size)
    pairs = zip(run(images), graph(images), strict=True)
    difference = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    batch, _, height, width = images.shape
    return ExportCheck(batch, height, width, difference)


def _noise(graph: _Graph, batch: int, rows: int, cols: int, over: int) -> Tensor:
    embed = graph.model.patch_embed
    sides = [n * patch + over for n, patch in zip((rows, cols), embed.patch_size, strict=True)]
    shape = (batch, embed.proj.in_channels, *sides)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))


def _import_onnx():
    """Import onnxruntime, after a check that the packages that write ONNX are installed too."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"ONNX needs {name}, which is not installed; pip install onnx onnxscript onnxruntime"
            ) from error
    return module
