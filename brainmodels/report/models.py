"""Sections of the page about trained models: what they decode, draw, and lose on the way there and back."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veca.report.page import figure, table

from ..evaluation.models import EXTERNAL, SAME_TOKENS
from ..evaluation.pictures import ANOTHER, REDUCED, TRUE
from . import figures, published
from .cells import chance_cell, percent, score_cell
from .figures import Bar, PictureRow

if TYPE_CHECKING:
    from ..evaluation.models import ModelEvaluation
    from ..evaluation.pictures import Drawn, Pictures
    from ..evaluation.run import Evaluation

__all__ = ["headline", "model_sections", "published_section"]

_RESPONSES = 6  # test images whose responses are shown
_MEANINGS = {
    SAME_TOKENS: "a linear decoder into the same tokens",
    TRUE: "the ceiling of what draws",
    REDUCED: "the ceiling of any decoder into the model's tokens",
    ANOTHER: "what is drawn of nothing: chance",
}


def headline(evaluation: "Evaluation") -> str:
    """What the first model reaches, beside ridge, in one line."""
    item = evaluation.models[0]
    own, ridge = (row.score("nr2") or row.score("voxel_r") for row in item.encoded)
    words = percent if own.metric.name == "nr2" else "{:.2f}".format
    what = "of the explainable variance" if own.metric.name == "nr2" else "correlation of a voxel"
    told = f"{item.opened.name} predicts {words(own.value)} {what} (ridge on the same tokens {words(ridge.value)})"
    if not item.opened.decodes:
        return told
    top, beside = (row.score("image_given_brain_top1") for row in item.found)
    return (
        f"{told} and finds {percent(top.value)} of {top.n} images from the responses to them ({percent(beside.value)})"
    )


def model_sections(evaluation: "Evaluation", out: Path) -> list[str]:
    """A section for each model, with its figures in `out`."""
    sections = []
    for number, item in enumerate(evaluation.models):
        pictures = next((x for x in evaluation.pictures if x.model == item.opened.name), None)
        parts = [
            f"<h2>{escape(item.opened.name)}</h2>\n{_told(item)}",
            _pictures(evaluation, pictures, out, number) if pictures else "",
            _responses(evaluation, item, out, number),
            _decoding(item),
            _semantics(item),
            _trips(item),
            _bottleneck(item, out, number),
        ]
        sections.append("".join(parts))
    return sections


def published_section(wanted: bool) -> str:
    """Numbers of the papers, folded, where they were asked for."""
    if not wanted:
        return ""
    rows = [[escape(row.model), *map(escape, row.cells), escape(row.source)] for row in published.ROWS]
    warnings = "".join(f"<li>{escape(text)}</li>" for text in published.WARNINGS)
    head = ["model", *published.HEAD, "source"]
    return (
        "<h2>Published numbers</h2>\n<details><summary>of the papers, on the Natural Scenes Dataset; read what makes "
        f"them hard to compare</summary>\n{table(head, rows, wide_last=True)}<ul>{warnings}</ul></details>\n"
    )


def _told(item: "ModelEvaluation") -> str:
    model = item.opened.model
    count, width = item.space.test.shape[1:]
    meta, scaler = model.meta_, model.scaler_
    reduced = ""
    if scaler is not None and scaler.reduction is not None:
        full = " × ".join(map(str, scaler.reduction.full_shape))
        reduced = f", reduced from {full} (principal components keep {percent(scaler.explained_)} of the variance)"
    stages = "; ".join(
        f"{stage['name']} {stage['steps']:,} steps in {stage['seconds']:.0f} s" for stage in meta["stages"]
    )
    ways = (
        "images to responses and back through one reversible flow"
        if item.opened.decodes
        else "images to responses, whose latents are aligned with image tokens"
    )
    return (
        f"<p>{escape(meta['system'])} goes from {ways}. Recipe {escape(model.recipe.name)}, {count} × {width} tokens "
        f"of {escape(item.opened.features.name)}{reduced}; trained on single trials of {meta['train_images']} images: "
        f"{escape(stages)}.</p>\n"
    )


def _pictures(evaluation: "Evaluation", pictures: "Pictures", out: Path, number: int) -> str:
    """The grid of drawn test images, then its table."""
    name, chosen = f"pictures_{number}.png", pictures.chosen
    columns = np.concatenate([chosen["random"], chosen["best"], chosen["worst"]])
    words = [""] * len(chosen["random"]) + ["best"] * len(chosen["best"]) + ["worst"] * len(chosen["worst"])
    rows = [PictureRow("shown", list(pictures.shown[columns]), words)]
    rows += [PictureRow(label, list(item.images[columns])) for label, item in _shown_rows(pictures)]
    figures.picture_grid([rows], out / name)
    subject = "a simulated subject" if evaluation.record["data"]["simulated"] else "one subject"
    caption = (
        f"From the responses of {subject} to pictures, test images only: {len(chosen['random'])} drawn at random (seed "
        f"{pictures.seed}), then the best and the worst of the others by the cosine of decoded and true tokens. "
        f"“Nearest picture”: by tokens, of {_bank(pictures)}; “both”: what is drawn, laid over it. "
        "“Ceiling” is drawn from the true tokens of the shown image: what it lacks, no decoder of brains is to blame "
        "for."
    )
    trained = pictures.trained
    drawer = pictures.drawn[0].drawer
    made = ""
    if trained:
        known = (
            "as decoding makes them on validation images" if trained["error_measured"] else "for want of a measurement"
        )
        made = (
            f" It saw {trained['images']:,} pictures, no responses, and tokens with errors up to {trained['error']:g} "
            f"deviations, {known}."
        )
    return (
        f"<h3>Pictures</h3>\n{figure(name, caption)}<p>Tokens are drawn by {escape(drawer)}.{made} A score of pictures "
        "is one of decoding and drawing together.</p>\n"
        f"{_picture_table(pictures)}"
    )


def _bank(pictures: "Pictures") -> str:
    total, train = pictures.bank
    further = "" if total == train else f" and {total - train:,} further scenes that no subject saw"
    return f"{train:,} train images{further}"


def _shown_rows(pictures: "Pictures") -> "list[tuple[str, Drawn]]":
    """Rows of the figure: what was decoded in every way of showing it, then ridge and the ceiling as they are drawn."""
    first = pictures.drawn[0]
    name = "ridge" if first.source == SAME_TOKENS else first.source
    drawn, *others = (item for item in pictures.drawn if item.source == first.source)
    how = "drawn" if others else "nearest picture"
    rows = [(f"{name},\n{label}", item) for label, item in zip(("nearest picture", "both"), others, strict=False)]
    rows.append((f"{name},\n{how}", drawn))
    further = {SAME_TOKENS: f"ridge,\n{how}", TRUE: f"ceiling: true\ntokens, {how}"}
    return rows + [(further[x.source], x) for x in pictures.drawn if x.source in further and x.source != first.source]


def _picture_table(pictures: "Pictures") -> str:
    names = [score.metric.name for score in pictures.drawn[0].scores if score.available]
    rows = []
    for item in pictures.drawn:
        other = item.drawer != pictures.drawn[0].drawer
        meanings = item.drawer.rpartition(" ")[0].split(" + ") if other else [_MEANINGS.get(item.source, "")]
        source = escape(item.source) + "".join(f"<small>{escape(text)}</small>" for text in meanings if text)
        rows.append([source, *(score_cell(item.score(name)) for name in names)])
    rows.append(["chance, pairs permuted", *(chance_cell(pictures.drawn[0].score(name)) for name in names)])
    absent = [score for score in pictures.drawn[0].scores if not score.available]
    missing = "; ".join(f"{score.metric.name}: {score.note}" for score in absent)
    side = pictures.shown.shape[1]
    head = ["tokens from", *(f"{name.replace('two_way', 'two-way ')} ↑" for name in names)]
    return (
        f"{table(head, rows)}<p class='note'>All pictures at {side} × {side} pixels, which no published number "
        "is of. What is blurred gains in pixcorr and SSIM; two-way is identification by a network, chance 0.5. "
        f"Not available: {escape(missing)}.</p>\n"
    )


def _responses(evaluation: "Evaluation", item: "ModelEvaluation", out: Path, number: int) -> str:
    """Measured beside predicted responses of a few test images, and what is drawn from the predicted ones."""
    study, stimuli = evaluation.study, evaluation.dataset.stimuli
    chosen = np.sort(np.random.default_rng(study.seed).choice(len(study.test), min(_RESPONSES, len(study.test)), False))
    measured, predicted = (np.where(study.voxels, x, np.nan) for x in (study.measured, item.answers.predicted))
    limit = float(np.nanquantile(np.abs(measured[chosen]), 0.98))
    space = study.test.subject.space
    maps = [[figures.response_picture(x[i], space, limit) for i in chosen] for x in (measured, predicted)]
    counted = study.voxels
    r = [np.corrcoef(measured[i, counted], predicted[i, counted])[0, 1] for i in chosen]
    shown = [stimuli.image(study.test.image_ids[i], 128) for i in chosen]
    rows = [
        PictureRow("shown", shown),
        PictureRow("measured", maps[0]),
        PictureRow(f"predicted by\n{item.opened.name}", maps[1], [f"r = {value:.2f}" for value in r]),
    ]
    back = _back(item, evaluation.pictures)
    if back is not None:
        rows.append(PictureRow("drawn from\nthe predicted", list(back.images[chosen])))
    name = f"responses_{number}.png"
    figures.picture_grid([rows], out / name)
    how = (
        "" if back is None else f" Below, the way back: tokens read from the predicted response ({back.source}), drawn."
    )
    caption = (
        f"{len(chosen)} test images at random (seed {study.seed}), the responses to them and the predictions: voxels "
        f"that count on {figures.CUTS} axial cuts, red above and blue below the mean, one scale for all "
        f"(±{limit:.1f}). r is over voxels; measured responses hold noise that no model predicts.{how}"
    )
    return f"<h3>Responses</h3>\n{figure(name, caption)}"


def _back(item: "ModelEvaluation", pictures: "Sequence[Pictures]") -> "Drawn | None":
    """Pictures from the model's own responses, by itself where it decodes."""
    name = item.opened.name
    wanted = f"{name}, its own responses" if item.opened.decodes else f"{EXTERNAL}, responses of {name}"
    return next((drawn for made in pictures for drawn in made.drawn if drawn.source == wanted), None)


def _decoding(item: "ModelEvaluation") -> str:
    names = ("image_given_brain_top1", "image_given_brain_top5", "brain_given_image_top1", "two_way", "token_cosine")
    rows = [[escape(row.scores[0].decoder), *(score_cell(row.score(name)) for name in names)] for row in item.decoded]
    rows.append(["chance, pairs permuted", *(chance_cell(item.decoded[0].score(name)) for name in names)])
    gallery = item.decoded[0].scores[0].n
    head = ["tokens from", f"top-1 of {gallery} ↑", "top-5 ↑", "image to brain top-1 ↑", "two-way ↑", "cosine ↑"]
    return (
        f"<h3>Retrieval</h3>\n<p>Image tokens found from responses, all rows in the token space of "
        f"{escape(item.opened.name)}. “raw” are latents of measured responses, “syn” latents of the model's own: the "
        "second say how much it agrees with itself, not what a brain tells.</p>\n"
        f"{table(head, rows)}"
    )


def _semantics(item: "ModelEvaluation") -> str:
    """Rows are responses, columns decoders; the two kinds of decoder never share a column."""
    responses = list(dict.fromkeys(row.responses for row in item.semantics))
    decoders = sorted({row.decoder for row in item.semantics}, reverse=True)
    found = {(row.responses, row.decoder): row for row in item.semantics}
    rows = []
    for name in responses:
        cells = []
        for decoder in decoders:
            row = found.get((name, decoder))
            for start in ("semantic_after_decoding", "image_given_brain_top1"):
                cells.append(score_cell(None if row is None else row.score(start)))
        rows.append([escape("measured, for reference" if name == "measured" else f"synthetic, of {name}"), *cells])
    head = ["responses", *(f"{decoder}: {name} ↑" for decoder in decoders for name in ("two-way", "top-1"))]
    return (
        "<h3>Semantics after decoding</h3>\n<p>What can be read from synthetic responses, by the decoder that the "
        f"column names. <code>{EXTERNAL}</code> is a linear decoder fitted to measured train responses; "
        "<code>self</code> decodes what it encoded itself, which favours it. The columns do not compare with each "
        "other. A synthetic response has no noise, so that it may be read better than a measured one.</p>\n"
        f"{table(head, rows)}"
    )


def _trips(item: "ModelEvaluation") -> str:
    if not item.trips:
        return ""
    rows = [
        [
            escape(x.start),
            escape(x.through),
            f"{x.relative_error:.2g}",
            x.solver,
            str(x.steps),
            str(x.function_evaluations),
        ]
        for x in item.trips
    ]
    head = ["from", "through", "relative error ↓", "solver", "steps", "evaluations"]
    return (
        "<h3>There and back</h3>\n<p>Through the latent only the solver errs: the flow is reversible. Through the "
        "response all that the model says of an image must pass its voxels, and what they do not hold is lost; an "
        f"answer of zeros would have 1.</p>\n{table(head, rows, left=2)}"
    )


def _bottleneck(item: "ModelEvaluation", out: Path, number: int) -> str:
    """Two-way identification by ridge against the number of components of the brain that it sees."""
    if item.bottleneck is None:
        return ""
    runs, name = item.bottleneck, f"bottleneck_{number}.png"
    full = min(item.space.decoder.n_features_in_, len(item.space.train))
    values = dict(zip((full if x == "full" else x for x in runs.settings), runs.values["two_way"], strict=True))
    points = {SAME_TOKENS: {x: Bar(value, value, value) for x, value in values.items()}}
    lines = {"chance": 0.5}
    if item.opened.decodes:
        lines[f"{item.opened.name}, all components"] = item.decoded[0].score("two_way").value
    label = "two-way identification of tokens"
    figures.curves(points, out / name, "principal components of the response", label, lines, logarithmic=True)
    caption = (
        "How much of the brain decoding needs: ridge, not the trained model, fitted again to k principal components of "
        "the train responses; the last point has all of them. A flat curve would mean that what is known of images "
        "beforehand does the work."
    )
    return f"<h3>Bottleneck</h3>\n{figure(name, caption, 'narrow')}"
