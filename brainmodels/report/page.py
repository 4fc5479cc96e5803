"""report.html of an evaluation: one page without scripts or network, its pictures and record.json beside it."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.report.page import document, figure, table

from ..evaluation.encoding import SHUFFLED
from ..evaluation.models import SAME_TOKENS
from ..metrics import Score
from ..metrics.controls import all_at_chance
from . import figures
from .cells import ceiling_cell, chance_cell, interval_words, percent, score_cell
from .figures import Bar, PictureRow
from .models import headline, model_sections, published_section

if TYPE_CHECKING:
    from ..evaluation.decoding import Decoded
    from ..evaluation.encoding import Encoded
    from ..evaluation.run import Evaluation

__all__ = ["write_report"]

_PICTURES = 8
_THUMBNAIL = 96
_REFERENCES = ("nearest neighbour", "planted signal")
_HEADLINES = ("image_given_brain_top1", "brain_given_image_top1", "two_way")
_MEANINGS = {
    "voxel_r": "median over voxels of the correlation with the measured responses",
    "nr2": "share of the explainable variance, sum of r |r| by sum of the noise ceilings; 1 is the best that any model "
    "can expect, and noise may put a perfect one slightly above",
    "r2": "median over voxels of the explained variance, which counts wrong means and gains",
    "sample_r": "correlation over voxels within an image",
    "mse": "squared error, in units of the normaliser",
}


def write_report(evaluation: "Evaluation", out: Path) -> Path:
    """Write report.html, record.json, voxels.npz and the figures.

    Args:
        evaluation: what came out.
        out: folder.

    Returns:
        The path of report.html.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "record.json").write_text(json.dumps(evaluation.record, indent=1, allow_nan=False) + "\n")
    names = [f"{item.model}, {item.features}" for item in evaluation.encoded]
    arrays = {f"r_{number}": item.r for number, item in enumerate(evaluation.encoded)}
    ceiling = evaluation.study.ceiling
    np.savez(out / "voxels.npz", names=names, **arrays, **({} if ceiling is None else {"ceiling": ceiling}))
    sections = (
        _head(evaluation),
        *model_sections(evaluation, out),
        published_section(evaluation.record["settings"].get("published", False)),
        _encoding_section(evaluation, out),
        _decoding_section(evaluation, out),
        _curve_section(evaluation, out),
        _all_scores(evaluation),
        _conditions(evaluation),
    )
    path = out / "report.html"
    path.write_text(document(_title(evaluation), sections), encoding="utf-8")
    return path


def _title(evaluation: "Evaluation") -> str:
    if evaluation.models:
        return headline(evaluation)
    best = evaluation.decoded[0].score("image_given_brain_top1")
    share = evaluation.encoded[0].score("nr2")
    told = f"{percent(best.value)} of {best.n} images found from the responses to them"
    if share is None:
        return told
    return f"{percent(share.value)} of the explainable variance predicted, {told}"


def _head(evaluation: "Evaluation") -> str:
    data = evaluation.record["data"]
    kind = "a simulated subject, whose truth is known" if data["simulated"] else f"layout {escape(data['name'])}"
    lead = (
        f"<b>{escape(data['subject'])}</b>, {kind}: {data['voxels']:,} voxels, {data['trials']:,} trials in "
        f"{data['sessions']} sessions. {data['train_images']} images train the models, {data['test_images']} others, "
        f"never seen in training, test them (split {escape(data['split'])}, {data['split_hash']}). Responses are "
        f"{_scaled(data)} and averaged over repeats; {data['voxels_counted']:,} voxels count."
    )
    chance = all_at_chance(_judged(evaluation))
    warning = f'<div class="banner"><p>{escape(chance)}</p></div>' if chance else ""
    notes = sorted({item.note for item in [*evaluation.encoded, *evaluation.decoded] if "random" in item.note})
    warning += "".join(f'<div class="banner"><p>{escape(note)}</p></div>' for note in notes)
    return (
        f'<p class="eyebrow">veca brain evaluate, {escape(evaluation.record["machine"]["date"][:10])}</p>\n'
        f'<h1>{escape(_title(evaluation))}</h1>\n<p class="lead">{lead}</p>\n{_cards(evaluation)}{warning}'
        f'<p class="machine">Alignment: {escape(evaluation.record["alignment"])}.</p>\n'
    )


def _judged(evaluation: "Evaluation") -> list[Score]:
    """Scores of the models, controls left out: all of encoding, top-1 and two-way of decoding."""
    encoded = [score for item in evaluation.encoded if item.model == "ridge" for score in item.scores]
    models = [item for item in evaluation.decoded if item.scores[0].decoder == "ridge"]
    models += [item.found[0] for item in evaluation.models]
    decoded = [item.score(name) for item in models for name in _HEADLINES]
    trained = [score for item in evaluation.models for score in item.encoded[0].scores]
    return encoded + trained + decoded


def _scaled(data: Mapping[str, Any]) -> str:
    if data["normalizer"] == "none":
        return "as they are stored"
    seen = ", statistics of test trials included (transductive)," if data["transductive"] else ""
    return f"normalised by <code>{escape(data['normalizer'])}</code>{seen}"


def _cards(evaluation: "Evaluation") -> str:
    encoded, decoded = evaluation.encoded[0], evaluation.decoded[0]
    name, beside = f"ridge on {encoded.features}", None
    if evaluation.models:
        first = evaluation.models[0]
        (encoded, beside), (decoded, ridge), name = first.encoded, first.found, first.opened.name
    rows = []
    r = encoded.score("voxel_r")
    text = f"median; {interval_words(r)}; {name}{_beside(beside, 'voxel_r')}"
    rows.append((f"{r.value:.2f}", "correlation of a voxel", text))
    share = encoded.score("nr2")
    if share is not None:
        text = f"{interval_words(share, percent)}; 100\N{NO-BREAK SPACE}% is the ceiling{_beside(beside, 'nr2')}"
        rows.append((percent(share.value), "of the explainable variance", text))
    top = decoded.score("image_given_brain_top1")
    judge = ""
    if evaluation.models:
        value = ridge.score("image_given_brain_top1").value
        judge = f"; {decoded.scores[0].decoder}; {SAME_TOKENS}: {percent(value)}"
    text = f"{interval_words(top, percent)}; chance {percent(top.chance)}{judge}"
    rows.append((percent(top.value), f"top-1 among {top.n} images", text))
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(text)}</small></div>'
        for value, name, text in rows
    )
    return f'<div class="cards">{cards}</div>\n'


def _beside(encoded: "Encoded | None", name: str) -> str:
    """What ridge reaches on the same tokens, after the words of a card."""
    if encoded is None:
        return ""
    value = encoded.score(name).value
    return f"; {encoded.model}: {percent(value) if name == 'nr2' else f'{value:.2f}'}"


def _encoding_section(evaluation: "Evaluation", out: Path) -> str:
    study, encoded = evaluation.study, evaluation.encoded
    best = None if study.ceiling is None else np.where(study.voxels, np.sqrt(study.ceiling), np.nan)
    figures.voxel_scores(encoded[0].r, best, out / "voxels.png")
    share = study.ceiling is not None
    label = "share of the explainable variance" if share else "mean r"
    pages = [figure("voxels.png", f"Each voxel: ridge on {encoded[0].features}, test images.")]
    if study.rois:
        cut = {item.features for items in _budgets(evaluation).values() for item in list(items.values())[1:]}
        kept = [item for item in encoded if item.model not in ("mean map", SHUFFLED) and item.features not in cut]
        shown = {_shown(item): _bars(item) for item in kept}
        controls = [_shown(item) for item in kept if item.model in _REFERENCES]
        figures.roi_bars(shown, out / "rois.png", label, 1.0 if share else None, controls)
        caption = (
            f"By region: {label}; whiskers hold 95 % of resamples of the test images; grey: references, not models."
            + (" Further budgets of cores are drawn below, against their number." if cut else "")
        )
        pages.append(figure("rois.png", caption))
    if getattr(study.test.subject.space, "affine", None) is not None:
        figures.brain_map(encoded[0].r, study.test.subject.space, out / "map.png")
        pages.append(
            figure("map.png", f"r of each voxel, ridge on {encoded[0].features}; axial cuts, z in mm, from below.")
        )
    names = [name for name in ("voxel_r", "nr2", "r2", "sample_r", "mse") if encoded[0].score(name) is not None]
    rows = [
        [escape(item.model), escape(item.features), *(score_cell(item.score(name)) for name in names)]
        for item in encoded
    ]
    rows.append(["noise ceiling", "", *(ceiling_cell(encoded[0].score(name)) for name in names)] if share else [])
    rows.append(["chance, pairs permuted", "", *(chance_cell(encoded[0].score(name)) for name in names)])
    head = ["model", "features", *(str(encoded[0].score(name).metric) for name in names)]
    meanings = "; ".join(f"<b>{name}</b> {escape(_MEANINGS[name])}" for name in names)
    return (
        f"<h2>Encoding: from images to responses</h2>\n<p>A linear model predicts voxels from features of the image; "
        f"{escape(encoded[0].score('voxel_r').mask or '')}.{_trained(evaluation)}</p>\n"
        f"{table(head, filter(None, rows), left=2)}"
        f'<p class="note">Small: 95\N{NO-BREAK SPACE}% intervals over resampled test images. {meanings}. '
        "Chance permutes the test images of one fit; where train pairs were shuffled, the mean of five fits, and from "
        "the least to the greatest.</p>\n"
        f"{''.join(pages)}"
    )


def _trained(evaluation: "Evaluation") -> str:
    if not evaluation.models:
        return ""
    names = ", ".join(item.opened.name for item in evaluation.models)
    return (
        f" Trained here: {escape(names)}, on single trials. “{SAME_TOKENS}” sees the same numbers of the same images "
        "as the model above it, and responses averaged over repeats."
    )


def _decoding_section(evaluation: "Evaluation", out: Path) -> str:
    decoded = evaluation.decoded
    rows = []
    for item in decoded:
        names = ("image_given_brain_top1", "image_given_brain_top5", "brain_given_image_top1", "two_way")
        cells = [score_cell(item.score(name)) for name in names]
        rows.append([escape(item.scores[0].decoder), escape(item.features), *cells])
    chances = [chance_cell(decoded[0].score(name)) for name in names]
    rows.append(["chance, pairs permuted", "", *chances])
    gallery = decoded[0].scores[0].n
    head = ["decoder", "features", f"top-1 of {gallery} ↑", "top-5 ↑", "image to brain top-1 ↑", "two-way ↑"]
    figures.picture_grid(_retrieved(evaluation, decoded[0]), out / "retrieved.png")
    caption = (
        f"Images that were shown, and the test image nearest to what was decoded from the responses, in features of "
        f"{decoded[0].features}; framed where it is the right one, otherwise with the rank of the right one. Drawn at "
        f"random (seed {evaluation.study.seed}), then those found best and worst."
    )
    return (
        "<h2>Decoding: from responses to images</h2>\n<p>A linear model predicts features of the image from the "
        "responses; the image is looked up among all test images. Each row is judged in features of its own, so rows "
        f"compare how far each set can be read from these responses.</p>\n{table(head, rows, left=2)}"
        f"{figure('retrieved.png', caption)}"
    )


def _retrieved(evaluation: "Evaluation", decoded: "Decoded") -> list[tuple[PictureRow, PictureRow]]:
    """Shown and nearest, for random, best and worst test images."""
    ids, stimuli = evaluation.study.test.image_ids, evaluation.dataset.stimuli
    ranks, nearest = decoded.ranks, decoded.similarities.argmax(1)
    own = np.diagonal(decoded.similarities)
    order = np.lexsort((-own, ranks))
    drawn = np.random.default_rng(evaluation.study.seed).permutation(len(ids))[:_PICTURES]
    rows = []
    for name, chosen in (("random", drawn), ("best", order[:_PICTURES]), ("worst", order[::-1][:_PICTURES])):
        shown = [stimuli.image(ids[i], _THUMBNAIL) for i in chosen]
        found = [stimuli.image(ids[nearest[i]], _THUMBNAIL) for i in chosen]
        right = [bool(ranks[i] == 1) for i in chosen]
        words = ["" if first else f"right one: rank {ranks[i]}" for i, first in zip(chosen, right, strict=True)]
        rows.append((PictureRow(f"{name}\nshown", shown), PictureRow("found", found, words, right)))
    return rows


def _curve_section(evaluation: "Evaluation", out: Path) -> str:
    record = evaluation.record["learning_curve"]
    points = {int(count): Bar(*values) for count, values in record["points"].items()}
    label = "share of the explainable variance" if evaluation.study.ceiling is not None else "mean r"
    lines = {"ceiling": 1.0} if evaluation.study.ceiling is not None else {}
    figures.curves({record["features"]: points}, out / "learning.png", "train images", label, lines, logarithmic=True)
    caption = "How much more data would help; bands hold 95 % of resamples of the test images."
    parts = [figure("learning.png", caption, "narrow")]
    series = _budgets(evaluation)
    if any(len(points) > 1 for points in series.values()):
        parts.append(_budget_figure(evaluation, series, out))
    title = "Against data and cores" if len(parts) > 1 else "Against data"
    return f"<h2>{title}</h2>\n{''.join(parts)}"


def _budgets(evaluation: "Evaluation") -> "dict[str, dict[int, Encoded]]":
    """Encoding by backbone, then by its budget of cores; a name without @ has all cores of its model."""
    found: dict[str, dict[int, Encoded]] = {}
    for item in evaluation.encoded:
        cores = evaluation.record["features"].get(item.features, {}).get("settings", {}).get("num_cores")
        if item.model == "ridge" and cores:
            found.setdefault(item.features.partition("@")[0], {})[cores] = item
    return found


def _budget_figure(evaluation: "Evaluation", budgets: "Mapping[str, Mapping[int, Encoded]]", out: Path) -> str:
    """Scores of backbones against their budget of cores, other features as levels."""
    name = "voxel_r" if evaluation.study.ceiling is None else "nr2"
    series = {
        model: {cores: _bar(item.score(name)) for cores, item in items.items()} for model, items in budgets.items()
    }
    drawn = {item.features for items in budgets.values() for item in items.values()}
    lines = {
        _shown(item): item.score(name).value
        for item in evaluation.encoded
        if item.model in ("ridge", "planted signal") and item.features not in drawn
    }
    label = "share of the explainable variance" if name == "nr2" else "r of a voxel"
    figures.curves(series, out / "budgets.png", "cores", label, lines, logarithmic=True)
    return figure("budgets.png", "The same weights cut to fewer cores, without training again.", "narrow")


def _all_scores(evaluation: "Evaluation") -> str:
    told = [*evaluation.encoded, *evaluation.decoded]
    told += [row for item in evaluation.models for row in [*item.decoded, *item.semantics]]
    told += [row for item in evaluation.pictures for row in item.drawn]
    lines = [str(score) for item in told for score in item.scores]
    return (
        f"<h2>Every score</h2>\n<p>With its interval, chance and conditions; the same as JSON in record.json, single "
        f"voxels in voxels.npz.</p>\n<details><summary>{len(lines)} scores</summary>"
        f"<pre>{escape(chr(10).join(lines))}</pre></details>\n"
    )


def _conditions(evaluation: "Evaluation") -> str:
    record = evaluation.record
    machine, settings = record["machine"], record["settings"]
    marks = ", ".join(f"{name} {mark}" for name, mark in record["fingerprints"].items())
    versions = ", ".join(f"{name} {value}" for name, value in evaluation.encoded[0].scores[0].versions.items())
    rows = {
        "features": marks,
        "settings": ", ".join(f"{name} {_word(value)}" for name, value in settings.items() if name != "progress"),
        "versions": versions,
        "machine": f"{machine['device']}, {machine['torch_threads']} threads, {machine['date']}",
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())
    return f"<h2>Conditions</h2>\n<dl>{items}</dl>\n"


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _bars(item: "Encoded") -> dict[str, Bar]:
    return {name: Bar(*values) for name, values in item.rois.items()}


def _bar(score: Score) -> Bar:
    return Bar(score.value, score.interval.low, score.interval.high)


def _shown(item: "Encoded") -> str:
    alone = item.features in ("none", "truth") or item.features.endswith(" tokens")  # of the model that is named
    return item.model if alone else f"{item.model}, {item.features}"
