"""Models of new subjects on the page: curves over few images, what regions and numbers of voxels add, maps of encoders.

The templates are `context.html` and `voxels.html`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data import VoxelSpace
from . import figures
from .figures import Bar

if TYPE_CHECKING:
    from ..evaluation.models import ModelEvaluation
    from ..evaluation.run import Evaluation
    from ..evaluation.voxels import VoxelStudy, WeightMaps
    from ..metrics import Score

__all__ = ["Rival", "context_views", "rivals", "voxel_view"]

LABELS = {"nr2": "share of the explainable variance", "voxel_r": "median r of a voxel"}


class Rival(NamedTuple):
    """The best of the simpler methods that a model names beside itself.

    Attributes:
        name: Name of the method.
        model: Name of the model.
        verb: "predicts" or "identifies".
        score, own: Score of the method, and of the model.
    """

    name: str
    model: str
    verb: str
    score: "Score"
    own: "Score"


def rivals(items: "list[ModelEvaluation]") -> list[Rival]:
    """The best simpler method of each model and direction."""
    found = []
    for item in items:
        rows = {row.scores[0].decoder: row for row in item.decoded}
        known = {
            "predicts": ({row.model: row.score("nr2") or row.score("voxel_r") for row in item.encoded}),
            "identifies": {name: row.score("image_given_brain_top1") for name, row in rows.items()},
        }
        names = {"predicts": item.answers.reference_predictions, "identifies": item.answers.reference_decodings}
        for verb, scores in known.items():
            told = {name: score for name in names[verb] if (score := scores[name]) is not None}
            own = scores.get(item.opened.name)
            if told and own is not None:
                best = max(told, key=lambda name: told[name].value or 0.0)
                found.append(Rival(best.partition(": ")[2], item.opened.name, verb, told[best], own))
    return found


def context_views(evaluation: "Evaluation", out: Path) -> list[dict[str, Any]]:
    """Draw the curves over the number of train images into `out`, and collect what the template shows of each."""
    context = evaluation.record.get("context", {"draws": 1, "curves": []})
    views = []
    for number, curve in enumerate(context["curves"]):
        series = {
            row: {int(count): Bar(float(np.mean(values)), min(values), max(values)) for count, values in points.items()}
            for row, points in curve["points"].items()
        }
        counts = sorted({count for points in series.values() for count in points})
        file = f"context_{number}.png" if len(counts) > 1 else ""
        metric, chance = curve["metric"], curve["chance"]
        label = LABELS.get(metric) or f"top-1 of {metric.partition('@')[2]} images"
        if file:
            lines = {"chance": chance} if chance else {}
            figures.curves(series, out / file, "train images", label, lines, logarithmic=True)
        views.append({"label": label, "chance": chance, "counts": counts, "series": series, "file": file})
    return views


def voxel_view(evaluation: "Evaluation", item: "ModelEvaluation", out: Path, number: int) -> dict[str, Any]:
    """Draw the curve over the number of voxels, write the maps of encoders, and collect what the template shows."""
    view: dict[str, Any] = {"voxel_curve": "", "maps": []}
    if item.voxels is not None and len(item.voxels.counts) > 1:
        view["voxel_curve"] = f"voxels_{number}.png"
        _draw_counts(item.voxels, out / view["voxel_curve"])
    if item.maps is not None:
        view["maps"] = _write_maps(item.maps, evaluation, out, number)
    return view


def _draw_counts(found: "VoxelStudy", path: Path) -> None:
    """Cosine and top-1 against the number of voxels."""
    series: dict[str, dict[int, Bar]] = {}
    chance = 0.0
    for count, (cosine, top) in found.counts.items():
        for name, score in (("cosine", cosine), ("top-1", top)):
            assert score.value is not None and score.interval is not None  # of more than one image
            series.setdefault(name, {})[count] = Bar(score.value, score.interval.low, score.interval.high)
        chance = top.chance or 0.0
    figures.curves(series, path, "voxels", "cosine, or share of the images", {"chance of top-1": chance}, True)


def _write_maps(maps: "WeightMaps", evaluation: "Evaluation", out: Path, number: int) -> list[str]:
    """Write weights as npz, and principal components as NIfTI volumes where there is an affine; names of the files."""
    space: Any = evaluation.study.test.subject.space
    rois = getattr(space, "rois", {})
    names, files = np.array(list(rois), dtype=str), [f"encoders_{number}.npz"]
    inside = np.stack(list(rois.values())) if rois else np.zeros((0, maps.coef.shape[1]), bool)
    arrays: dict[str, Any] = {"coef": maps.coef, "intercept": maps.intercept, "components": maps.components}
    arrays |= {"explained": maps.explained, "index": space.index, "regions": names, "inside": inside}
    np.savez(out / files[0], **arrays)
    if isinstance(space, VoxelSpace) and space.affine is not None:
        for order, values in enumerate(maps.components, 1):
            files.append(f"encoders_{number}_pc{order}.nii.gz")
            space.to_image(np.nan_to_num(values)).to_filename(out / files[-1])
    return files
