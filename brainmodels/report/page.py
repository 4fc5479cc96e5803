"""report.html of an evaluation: one page without scripts or network, its pictures and record.json beside it."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.page import document, figure, table

from ..metrics import Score
from ..metrics.controls import all_at_chance
from . import figures
from .figures import Bar, PictureRow

if TYPE_CHECKING:
    from ..evaluation.decoding import Decoded
    from ..evaluation.encoding import Encoded
    from ..evaluation.run import Evaluation

__all__ = ["write_report"]

_PICTURES = 8
_THUMBNAIL = 96


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
    best = evaluation.decoded[0].score("image_given_brain_top1")
    share = evaluation.encoded[0].score("nr2")
    told = f"{best.value:.0%} of {best.n} images found from the responses to them"
    if share is None:
        return told[0].upper() + told[1:]
    return f"{share.value:.0%} of the explainable variance predicted, {told}"


def _head(evaluation: "Evaluation") -> str:
    data, first = evaluation.record["data"], evaluation.encoded[0]
    kind = "a simulated subject, whose truth is known" if data["simulated"] else f"layout {escape(data['name'])}"
    lead = (
        f"<b>{escape(data['subject'])}</b>, {kind}: {data['voxels']:,} voxels, {data['trials']:,} trials in "
        f"{data['sessions']} sessions. {data['train_images']} images train the models, {data['test_images']} others, "
        f"never seen in training, test them (split {escape(data['split'])}, {data['split_hash']}). Responses are "
        f"{escape(data['normalizer'])} and averaged over repeats; {data['voxels_counted']:,} voxels count."
    )
    scores = [score for item in evaluation.encoded + evaluation.decoded[:1] for score in item.scores]
    chance = all_at_chance(scores[: len(first.scores)])
    warning = f'<div class="banner"><p>{escape(chance)}</p></div>' if chance else ""
    notes = sorted({item.note for item in [*evaluation.encoded, *evaluation.decoded] if "random" in item.note})
    warning += "".join(f'<div class="banner"><p>{escape(note)}</p></div>' for note in notes)
    return (
        f'<p class="eyebrow">veca brain evaluate, {escape(evaluation.record["machine"]["date"][:10])}</p>\n'
        f'<h1>{escape(_title(evaluation))}</h1>\n<p class="lead">{lead}</p>\n{_cards(evaluation)}{warning}'
        f'<p class="machine">Alignment: {escape(evaluation.record["alignment"])}.</p>\n'
    )


def _cards(evaluation: "Evaluation") -> str:
    encoded, decoded = evaluation.encoded[0], evaluation.decoded[0]
    rows = []
    r = encoded.score("voxel_r")
    rows.append((f"{r.value:.2f}", "correlation of a voxel", f"{_interval(r)}; ridge on {encoded.features}"))
    share = encoded.score("nr2")
    if share is not None:
        rows.append((f"{share.value:.0%}", "of the explainable variance", f"{_interval(share)}; 100 % is the ceiling"))
    top = decoded.score("image_given_brain_top1")
    rows.append((f"{top.value:.0%}", f"top-1 among {top.n} images", f"{_interval(top)}; chance {top.chance:.1%}"))
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(text)}</small></div>'
        for value, name, text in rows
    )
    return f'<div class="cards">{cards}</div>\n'


def _encoding_section(evaluation: "Evaluation", out: Path) -> str:
    study, encoded = evaluation.study, evaluation.encoded
    best = None if study.ceiling is None else np.where(study.voxels, np.sqrt(study.ceiling), np.nan)
    figures.voxel_scores(encoded[0].r, best, out / "voxels.png")
    share = study.ceiling is not None
    label = "share of the explainable variance" if share else "mean r"
    pages = [figure("voxels.png", f"Each voxel: ridge on {encoded[0].features}, test images.")]
    if study.rois:
        shown = {f"{item.model}, {item.features}": _bars(item) for item in encoded if item.model != "mean map"}
        figures.roi_bars(shown, out / "rois.png", label, 1.0 if share else None)
        caption = f"By region: {label}; whiskers hold 95 % of resamples of the test images."
        pages.append(figure("rois.png", caption))
    if getattr(study.test.subject.space, "affine", None) is not None:
        figures.brain_map(encoded[0].r, study.test.subject.space, out / "map.png")
        pages.append(
            figure("map.png", f"r of each voxel, ridge on {encoded[0].features}, in the space of the subject.")
        )
    names = [name for name in ("voxel_r", "nr2", "r2", "sample_r", "mse") if encoded[0].score(name) is not None]
    rows = [
        [escape(item.model), escape(item.features), *(_cell(item.score(name)) for name in names)] for item in encoded
    ]
    head = ["model", "features", *(str(encoded[0].score(name).metric) for name in names)]
    return (
        "<h2>Encoding: from images to responses</h2>\n<p>A linear model predicts voxels from features of the image; "
        f"{escape(encoded[0].score('voxel_r').mask or '')}.</p>\n"
        f"{table(head, rows, left=2)}{''.join(pages)}"
    )


def _decoding_section(evaluation: "Evaluation", out: Path) -> str:
    decoded = evaluation.decoded
    rows = []
    for item in decoded:
        names = ("image_given_brain_top1", "image_given_brain_top5", "brain_given_image_top1", "two_way")
        cells = [_cell(item.score(name)) for name in names]
        rows.append([escape(item.scores[0].decoder), escape(item.features), *cells])
    gallery = decoded[0].scores[0].n
    head = ["decoder", "features", f"top-1 of {gallery} ↑", "top-5 ↑", "image to brain top-1 ↑", "two-way ↑"]
    figures.picture_grid(_retrieved(evaluation, decoded[0]), out / "retrieved.png")
    caption = (
        f"Shown image above, the image nearest to what was decoded below, in features of {decoded[0].features}: "
        f"examples drawn at random (seed {evaluation.study.seed}), then those found best and worst."
    )
    return (
        "<h2>Decoding: from responses to images</h2>\n<p>A linear model predicts features of the image from the "
        "responses; the image is looked up among all test images. Each row is judged in features of its own, so rows "
        f"compare how far each set can be read from these responses.</p>\n{table(head, rows, left=2)}"
        f"{figure('retrieved.png', caption)}"
    )


def _retrieved(evaluation: "Evaluation", decoded: "Decoded") -> list[PictureRow]:
    """Pairs of rows: shown and nearest, for random, best and worst test images."""
    ids, stimuli = evaluation.study.test.image_ids, evaluation.dataset.stimuli
    ranks, nearest = decoded.ranks, decoded.similarities.argmax(1)
    own = np.diagonal(decoded.similarities)
    order = np.lexsort((-own, ranks))
    drawn = np.random.default_rng(evaluation.study.seed).permutation(len(ids))[:_PICTURES]
    rows = []
    for name, chosen in (("random", drawn), ("best", order[:_PICTURES]), ("worst", order[::-1][:_PICTURES])):
        shown = [stimuli.image(ids[i], _THUMBNAIL) for i in chosen]
        found = [stimuli.image(ids[nearest[i]], _THUMBNAIL) for i in chosen]
        rows.append(PictureRow(f"{name}\nshown", shown, [""] * len(chosen)))
        rows.append(PictureRow("found", found, [f"rank {ranks[i]}" for i in chosen]))
    return rows


def _curve_section(evaluation: "Evaluation", out: Path) -> str:
    record = evaluation.record["learning_curve"]
    points = {int(count): Bar(*values) for count, values in record["points"].items()}
    label = "share of the explainable variance" if evaluation.study.ceiling is not None else "mean r"
    lines = {"ceiling": 1.0} if evaluation.study.ceiling is not None else {}
    figures.curves({record["features"]: points}, out / "learning.png", "train images", label, lines, logarithmic=True)
    caption = "How much more data would help; bands hold 95 % of resamples of the test images."
    parts = [figure("learning.png", caption, "narrow")]
    budgets = [item for item in evaluation.encoded if item.model == "ridge" and "@" in item.features]
    if len(budgets) > 1:
        parts.append(_budget_figure(evaluation, budgets, out))
    return f"<h2>Against data and cores</h2>\n{''.join(parts)}"


def _budget_figure(evaluation: "Evaluation", budgets: "Sequence[Encoded]", out: Path) -> str:
    """Scores of one backbone against its budget of cores, other features as levels."""
    name = "voxel_r" if evaluation.study.ceiling is None else "nr2"
    series: dict[str, dict[float, Bar]] = {}
    for item in budgets:
        model, _, cores = item.features.partition("@")
        series.setdefault(model, {})[float(cores.split(",")[0])] = _bar(item.score(name))
    lines = {
        f"{item.model}, {item.features}": item.score(name).value
        for item in evaluation.encoded
        if "@" not in item.features and item.model in ("ridge", "planted signal") and item.features not in series
    }
    label = "share of the explainable variance" if name == "nr2" else "r of a voxel"
    figures.curves(series, out / "budgets.png", "cores", label, lines)
    return figure("budgets.png", "The same weights cut to fewer cores, without training again.", "narrow")


def _all_scores(evaluation: "Evaluation") -> str:
    lines = [str(score) for item in [*evaluation.encoded, *evaluation.decoded] for score in item.scores]
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


def _interval(score: Score) -> str:
    return f"95 % interval {score.interval.low:.2f} to {score.interval.high:.2f}"


def _cell(score: Score | None) -> str:
    if score is None or not score.available:
        return "–"
    interval = score.interval
    small = f"<small>{interval.low:.3f} to {interval.high:.3f}</small>" if interval else ""
    return f"{score.value:.3f}{small}"
