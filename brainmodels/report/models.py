"""Trained models on the page: their figures, and what the template `model.html` shows of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BrainDataError
from ..evaluation.models import EXTERNAL, SAME_TOKENS
from ..evaluation.pictures import ANOTHER, MEAN, TRUE
from . import figures
from .cross_subject import voxel_view
from .figures import Bar, PictureRow

if TYPE_CHECKING:
    from ..evaluation.models import ModelEvaluation
    from ..evaluation.pictures import Drawn, Pictures
    from ..evaluation.run import Evaluation
    from ..metrics import Score

__all__ = ["model_views", "value_of"]

_RESPONSES = 6  # test images whose responses are shown


def model_views(evaluation: "Evaluation", out: Path) -> list[dict[str, Any]]:
    """Draw the figures of every trained model into `out`, and collect what the template shows of it."""
    return [_view(evaluation, item, out, number) for number, item in enumerate(evaluation.models)]


def _view(evaluation: "Evaluation", item: "ModelEvaluation", out: Path, number: int) -> dict[str, Any]:
    pictures = next((made for made in evaluation.pictures if made.model == item.opened.name), None)
    names = ("pictures", "responses", "bottleneck")
    files = {name: f"{name}_{number}.png" for name in names}
    view: dict[str, Any] = {"item": item, "files": files, "pictures": pictures, **_semantics(item)}
    view |= voxel_view(evaluation, item, out, number)
    if pictures is not None:
        _draw_pictures(pictures, out / files["pictures"])
        scored = [score.metric.name for score in pictures.drawn[0].scores if score.available]
        view["picture_columns"] = {name: f"{name.replace('two_way', 'two-way ')} ↑" for name in scored}
    if item.opened.encodes:
        view |= _draw_responses(evaluation, item, out / files["responses"])
    else:
        files["responses"] = ""
    if item.bottleneck is None:
        files["bottleneck"] = ""
    else:
        _draw_bottleneck(item, out / files["bottleneck"])
    return view


def _draw_pictures(pictures: "Pictures", path: Path) -> None:
    """A grid of test images and of the pictures made for them."""
    chosen = pictures.chosen
    columns = np.concatenate([chosen["random"], chosen["best"], chosen["worst"]])
    words = [""] * len(chosen["random"]) + ["best"] * len(chosen["best"]) + ["worst"] * len(chosen["worst"])
    rows = [PictureRow("shown", list(pictures.shown[columns]), words)]
    rows += [PictureRow(label, list(item.images[columns])) for label, item in _shown_rows(pictures)]
    figures.picture_grid([rows], path)


def value_of(score: "Score | None", name: str) -> float:
    """The value of a score that must be there."""
    if score is None or score.value is None:
        raise BrainDataError(f"expected a value of {name}, got none")
    return score.value


def _shown_rows(pictures: "Pictures") -> "list[tuple[str, Drawn]]":
    """Rows of the grid: the first source in every way of drawing it, then what the first drawer makes of others."""
    first = pictures.drawn[0]
    name = "ridge" if first.source == SAME_TOKENS else first.source
    drawn, *others = (item for item in pictures.drawn if item.source == first.source)
    how = "drawn" if others or not pictures.bank else "nearest picture"
    rows = [(f"{name},\n{how}", drawn)]
    rows += [(f"{name},\nnearest picture", item) for item in others]
    further = {
        SAME_TOKENS: f"ridge,\n{how}",
        ANOTHER: f"chance: another\nimage, {how}",
        MEAN: f"chance: mean\ntokens, {how}",
        TRUE: f"ceiling: true\ntokens, {how}",
    }
    kind = first.drawer.partition(" ")[0]  # calibrated for each decoder, so that fingerprints differ
    same = [x for x in pictures.drawn if x.drawer.partition(" ")[0] == kind and x.source != first.source]
    return rows + [(label, x) for source, label in further.items() for x in same if x.source == source]


def _draw_responses(evaluation: "Evaluation", item: "ModelEvaluation", path: Path) -> dict[str, Any]:
    """Measured and predicted responses to a few test images, and pictures drawn from the predicted ones.

    Returns:
        The numbers of the test images, the limit of the colours and the row of pictures, for the caption.
    """
    study, stimuli = evaluation.study, evaluation.dataset.stimuli
    chosen = np.sort(np.random.default_rng(study.seed).choice(len(study.test), min(_RESPONSES, len(study.test)), False))
    assert item.answers.predicted is not None  # of a model that encodes
    measured, predicted = (np.where(study.voxels, x, np.nan) for x in (study.measured, item.answers.predicted))
    limit = float(np.nanquantile(np.abs(measured[chosen]), 0.98))
    space: Any = study.test.subject.space
    maps = [[figures.response_picture(x[i], space, limit) for i in chosen] for x in (measured, predicted)]
    counted = study.voxels
    r = [np.corrcoef(measured[i, counted], predicted[i, counted])[0, 1] for i in chosen]
    shown = [stimuli.image(str(study.test.image_ids[i]), 128) for i in chosen]
    rows = [
        PictureRow("shown", shown),
        PictureRow("measured", maps[0]),
        PictureRow(f"predicted by\n{item.opened.name}", maps[1], [f"r = {value:.2f}" for value in r]),
    ]
    back = _back(item, evaluation.pictures)
    if back is not None:
        rows.append(PictureRow("drawn from\nthe predicted", list(back.images[chosen])))
    figures.picture_grid([rows], path)
    return {"chosen": chosen, "limit": limit, "back": back}


def _back(item: "ModelEvaluation", pictures: "Sequence[Pictures]") -> "Drawn | None":
    """Pictures from the responses that the model predicts; decoded by itself if it decodes, else by ridge."""
    name = item.opened.name
    wanted = f"{name}, its own responses" if item.opened.decodes else f"{EXTERNAL}, responses of {name}"
    return next((drawn for made in pictures for drawn in made.drawn if drawn.source == wanted), None)


def _semantics(item: "ModelEvaluation") -> "dict[str, list[str] | dict[str, list[Score | None]]]":
    """Head and rows of the table: responses in rows, decoders in columns, so that no column mixes two decoders."""
    decoders = sorted({row.decoder for row in item.semantics}, reverse=True)
    found = {(row.responses, row.decoder): row for row in item.semantics}
    starts = {"two-way": "semantic_after_decoding", "top-1": "image_given_brain_top1"}
    rows = {}
    for name in dict.fromkeys(row.responses for row in item.semantics):
        cells = [(found.get((name, decoder)), start) for decoder in decoders for start in starts.values()]
        rows[name] = [None if row is None else row.score(start) for row, start in cells]
    head = ["responses", *(f"{decoder}: {label} ↑" for decoder in decoders for label in starts)]
    return {"semantics_head": head, "semantics": rows}


def _draw_bottleneck(item: "ModelEvaluation", path: Path) -> None:
    """Two-way identification by ridge against the number of principal components of the responses that it sees."""
    runs = item.bottleneck
    assert runs is not None  # of a model with one
    full = min(item.space.decoder.n_features_in_, len(item.space.train))
    values = dict(zip((full if x == "full" else x for x in runs.settings), runs.values["two_way"], strict=True))
    points = {SAME_TOKENS: {x: Bar(value, value, value) for x, value in values.items()}}
    lines = {"chance": 0.5}
    if item.opened.decodes:
        lines[f"{item.opened.name}, all components"] = value_of(item.decoded[0].score("two_way"), "two_way")
    label = "two-way identification of tokens"
    figures.curves(points, path, "principal components of the response", label, lines, logarithmic=True)
