"""Pictures and captions on the page: their figures, and what the template `generation.html` shows of each model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.generation import MEANINGS
from . import figures
from .figures import Bar, PictureRow

if TYPE_CHECKING:
    from ..evaluation.generation import Generation, GenerationRow
    from ..evaluation.run import Evaluation

__all__ = ["generation_views"]

_RANDOM = 6
_DRAWN = {
    "model": "decoded",
    "only_z": "decoded,\nno diffusion",
    "true latents": "ceiling: true\nlatents",
    "other_images": "chance: another\nimage",
}
_WORDS = ("meteor_exact_stem", "rouge1", "rougeL", "caption_two_way[words]")
_PICTURES = ("pixcorr", "ssim_2d", "two_way[vit_nano_patch8]", "two_way[grid]")


def generation_views(evaluation: "Evaluation", out: Path) -> list[dict[str, Any]]:
    """Draw the figures of every model that makes pictures or captions into `out`, and collect what the page shows."""
    return [_view(item, evaluation.study.seed, out, number) for number, item in enumerate(evaluation.generated)]


def _view(item: "Generation", seed: int, out: Path, number: int) -> dict[str, Any]:
    chosen = _chosen(item, seed)
    columns = np.concatenate(list(chosen.values()))
    words = [name if name != "random" else "" for name, rows in chosen.items() for _ in rows]
    files = {"pictures": f"generation_{number}.png" if item.rows[0].images is not None else ""}
    if files["pictures"]:
        rows = [PictureRow("shown", list(item.shown[columns]), words)]
        for name, label in _DRAWN.items():
            images = item.row(name).images
            if images is not None:
                rows.append(PictureRow(label, list(images[columns])))
        figures.picture_grid([rows], out / files["pictures"])
    curves = {}
    for name in item.curves:
        curves[name] = f"generation_{number}_{name}.png"
        _draw_curve(item.group(name), name, out / curves[name])
    examples = None
    if item.rows[0].captions is not None:
        told = [item.rows[0], *(item.row(name) for name in ("only_z", "other_images"))]
        examples = [
            (word, item.references[row], [(x.captions or [])[row] for x in told])
            for word, row in zip(words, columns, strict=True)
        ]
    return {
        "item": item,
        "files": files,
        "curves": curves,
        "examples": examples,
        "chosen": chosen,
        "meanings": MEANINGS,
        "label_columns": _columns(item, lambda name: name.startswith("caption_label")),
        "word_columns": _columns(item, lambda name: name in _WORDS),
        "picture_columns": _columns(item, lambda name: name in _PICTURES),
        "absent": [score for score in item.rows[0].scores if not score.available],
    }


def _columns(item: "Generation", wanted: Any) -> dict[str, str]:
    """Heads of the columns by the names of the scores."""
    names = [score.metric.name for score in item.rows[0].scores if score.available and wanted(score.metric.name)]
    return {name: f"{name.replace('caption_label', '').strip('[]')} ↑" for name in names}


def _chosen(item: "Generation", seed: int) -> dict[str, np.ndarray]:
    """Rows of figures: random test images, then the best and the worst of the others by their words or pictures."""
    row = item.rows[0]
    values = _quality(item, row)
    drawn = np.random.default_rng(seed).permutation(len(values))[: min(_RANDOM, max(1, len(values) - 2))]
    others = np.setdiff1d(np.arange(len(values)), drawn)
    order = others[np.argsort(-values[others], kind="stable")]
    return {"random": drawn, "best": order[:1], "worst": order[1:][-1:]}


def _quality(item: "Generation", row: "GenerationRow") -> np.ndarray:
    """Share of words in common with the reference of each image, or the correlation of pixels without captions."""
    if row.captions is not None:
        pairs = zip(item.references, row.captions, strict=True)
        return np.array([len({*a.split()} & {*b.split()}) / max(1, len({*a.split()} | {*b.split()})) for a, b in pairs])
    assert row.images is not None  # a row has captions or pictures
    pairs = zip(item.shown, row.images, strict=True)
    return np.array([np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1] for a, b in pairs])


def _draw_curve(rows: "list[GenerationRow]", name: str, path: Path) -> None:
    """Mean label score, and two-way identification of the pictures, against a setting."""
    series: dict[str, dict[float, Bar]] = {}
    for row in rows:
        place = float(row.name.rpartition(" ")[2])
        found = {"labels in captions": row.labels}
        score = row.score("two_way[grid]")
        found["pictures, two-way by grid"] = None if score is None else score.value
        for label, value in found.items():
            if value is not None:
                series.setdefault(label, {})[place] = Bar(value, value, value)
    figures.curves(series, path, name.replace("_", " "), "share", {}, logarithmic=name == "components")
