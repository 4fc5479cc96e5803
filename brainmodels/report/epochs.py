"""report.html of a study of epochs: one page without scripts or network, with its figures and record.json beside it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.report.page import render

from ..metrics import Score
from . import epoch_figures, figures
from .epoch_figures import lines_of
from .figures import PictureRow

if TYPE_CHECKING:
    from ..evaluation.epoch_scores import DecodedEpochs, EncodedEpochs
    from ..evaluation.epochs import EpochEvaluation

__all__ = ["write_epoch_report"]

_PICTURES = 8
_THUMBNAIL = 96


def write_epoch_report(evaluation: "EpochEvaluation", out: Path) -> Path:
    """Write report.html, record.json, epochs.npz and the figures.

    | array of epochs.npz | shape |
    |---|---|
    | times, ch_names | bins (L,) in seconds, channels (C,) |
    | encoding_r | (rows, C, L), one row for each entry of "encoding" in the record |
    | ceiling | (C, L) noise ceiling of r^2, where it is known |
    | decoding, encoding | (rows, L) courses |
    | similarities | (rows, m, m) cosines of decoded images (rows) with shown ones |
    | generalization | (G, G) |
    | test_ids | (m,) |

    Args:
        evaluation: Scores of one subject.
        out: Folder to write to.

    Returns:
        The path of report.html.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "record.json").write_text(json.dumps(evaluation.record, indent=1, allow_nan=False) + "\n")
    np.savez_compressed(out / "epochs.npz", **_arrays(evaluation))
    path = out / "report.html"
    path.write_text(render("epochs.html", "brainmodels.report", **_view(evaluation, out)), encoding="utf-8")
    return path


def _arrays(evaluation: "EpochEvaluation") -> dict[str, Any]:
    data = evaluation.data
    arrays: dict[str, Any] = {
        "times": data.space.times,
        "ch_names": np.array([str(name) for name in data.space.ch_names]),
        "test_ids": np.array([str(name) for name in data.test_ids]),
        "encoding_r": np.stack([item.r for item in evaluation.encoded]),
        "encoding": np.stack([item.course.values for item in evaluation.encoded]),
        "decoding": np.stack([item.course.values for item in evaluation.decoded]),
        "similarities": np.stack([item.similarities for item in evaluation.decoded]),
        "generalization": evaluation.generalization.values,
    }
    if data.ceiling is not None:
        arrays["ceiling"] = data.ceiling
    return arrays


def _view(evaluation: "EpochEvaluation", out: Path) -> dict[str, Any]:
    """Draw the figures, and collect what the template shows."""
    record, encoded, decoded = evaluation.record, evaluation.encoded, evaluation.decoded
    main = [item for item in decoded if item.signal == evaluation.data.name]
    predicted = [item for item in encoded if item.signal == evaluation.data.name]
    bands = [item for item in decoded if item not in main]
    courses = {f"decoded into {item.features}": item.course for item in main}
    if evaluation.classification is not None:
        courses["without features: pairs of images"] = evaluation.classification
    epoch_figures.course_figure(courses, out / "decoding.png", "two-way identification")
    courses = {f"predicted from {item.features}": item.course for item in predicted}
    epoch_figures.course_figure(courses, out / "encoding.png", "correlation, mean over channels")
    epoch_figures.generalization_figure(evaluation.generalization, out / "generalization.png")
    figures.picture_grid(_retrieved(evaluation, main[0]), out / "retrieved.png")
    drawn = {"maps": _maps(evaluation, predicted[0], out), "bands": bool(bands)}
    if bands:
        shown = {item.signal: item.course for item in [main[0], *bands]}
        epoch_figures.course_figure(shown, out / "bands.png", "two-way identification")
    scores = [score for item in [*encoded, *decoded] for score in [*item.scores, *item.chance]]
    notes = sorted({note for score in scores for note in score.note.split("; ") if "random" in note})
    return {
        "record": record,
        "data": record["data"],
        "main": main[0],
        "predicted": predicted[0],
        "share": predicted[0].score("epoch_nr2"),
        "encoded": list(zip(encoded, lines_of([item.course for item in encoded]), strict=True)),
        "decoded": list(zip(decoded, lines_of([item.course for item in decoded]), strict=True)),
        "bands": bands,
        "generalization": evaluation.generalization,
        "generalized": int((evaluation.generalization.values > evaluation.generalization.threshold).sum()),
        "classification": evaluation.classification,
        "classified": "" if evaluation.classification is None else lines_of([evaluation.classification])[0],
        "classified_mean": _after(evaluation),
        "occluded": evaluation.occluded,
        "at_chance": evaluation.at_chance,
        "notes": notes,
        "drawn": drawn,
        "versions": _versions(main[0].scores[0]),
        "lines": [str(score) for score in scores],
        "settings": {name: _word(value) for name, value in record["settings"].items() if name != "progress"},
    }


def _maps(evaluation: "EpochEvaluation", item: "EncodedEpochs", out: Path) -> dict[str, Any] | None:
    """Draw maps of the prediction and of its ceiling. None where the channels have no places."""
    space = evaluation.data.space
    windows = epoch_figures.windows_after(space.times)
    if not windows or not epoch_figures.drawable(space):
        return None
    maps = {name: item.r[:, mask].mean(1) for name, mask in windows.items()}
    known = [values for values in maps.values() if np.isfinite(values).sum() >= 4]
    if len(known) < len(maps):
        return None
    left_out = epoch_figures.topographies(maps, space, out / "topography.png", "r")
    ceiling = evaluation.data.ceiling
    if ceiling is not None:
        best = {
            name: np.sqrt(np.clip(ceiling[:, mask].mean(1), 0, 1)) + np.where(np.isfinite(maps[name]), 0, np.nan)
            for name, mask in windows.items()
        }
        epoch_figures.topographies(best, space, out / "ceiling.png", "ceiling of r")
    return {"left_out": left_out, "ceiling": ceiling is not None}


def _retrieved(evaluation: "EpochEvaluation", item: "DecodedEpochs") -> list[tuple[PictureRow, PictureRow]]:
    """Shown and nearest images, for random, best and worst test images."""
    ids, stimuli = evaluation.data.test_ids, evaluation.dataset.stimuli
    ranks, nearest = item.ranks, item.similarities.argmax(1)
    order = np.lexsort((-np.diagonal(item.similarities), ranks))
    some = np.random.default_rng(evaluation.seed).permutation(len(ids))[:_PICTURES]
    rows = []
    for name, chosen in (("random", some), ("best", order[:_PICTURES]), ("worst", order[::-1][:_PICTURES])):
        shown = [stimuli.image(str(ids[i]), _THUMBNAIL) for i in chosen]
        found = [stimuli.image(str(ids[nearest[i]]), _THUMBNAIL) for i in chosen]
        right = [bool(ranks[i] == 1) for i in chosen]
        words = ["" if first else f"right one: rank {ranks[i]}" for i, first in zip(chosen, right, strict=True)]
        rows.append((PictureRow(f"{name}\nshown", shown), PictureRow("found", found, words, right)))
    return rows


def _after(evaluation: "EpochEvaluation") -> float:
    """Mean of pairwise classification over the times after the onset."""
    found = evaluation.classification
    return 0.0 if found is None else float(found.values[evaluation.data.after].mean())


def _versions(score: Score) -> str:
    return ", ".join(f"{name} {version}" for name, version in score.versions.items())


def _word(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)
