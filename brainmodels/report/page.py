"""report.html of an evaluation: one page without scripts or network, with its pictures and record.json beside it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from veca.report.page import render

from ..data import VoxelSpace
from ..data.anatomy import to_mni
from ..errors import BrainDataError
from ..evaluation.encoding import SHRUNK, SHUFFLED
from ..evaluation.models import EXTERNAL, SAME_TOKENS
from ..evaluation.pictures import ANOTHER, MEAN, REDUCED, TRUE
from ..metrics import Score
from ..metrics.controls import all_at_chance
from . import figures, published
from .cross_subject import context_views, rivals
from .figures import Bar, PictureRow
from .generation import generation_views
from .models import model_views, value_of
from .opening import opening_view
from .surfaces import draw_maps

if TYPE_CHECKING:
    from ..evaluation.decoding import Decoded
    from ..evaluation.encoding import Encoded
    from ..evaluation.models import ModelEvaluation
    from ..evaluation.run import Evaluation

__all__ = ["write_report"]

_PICTURES = 8
_THUMBNAIL = 96
_REFERENCES = ("nearest neighbour", "planted signal")
_HEADLINES = ("image_given_brain_top1", "brain_given_image_top1", "two_way")
_METRICS = ("voxel_r", "nr2", "r2", "sample_r", "mse")  # columns of the table of encoding


class Result(NamedTuple):
    """What a model reaches on the test images, for the first screen.

    Attributes:
        name: Name of the model.
        correlation: Median correlation of a voxel.
        variance: Share of the explainable variance, or `correlation` where there is no noise ceiling.
        top: Share of the test images that are identified.
        judge: Name of the decoder of `top`.
        encodes: Whether the model predicts responses.
        decodes: Whether the model goes from responses to images.
        ridge: The same for ridge on the same tokens; None for ridge itself.
    """

    name: str
    correlation: Score
    variance: Score
    top: Score
    judge: str
    encodes: bool = True
    decodes: bool = True
    ridge: "Result | None" = None

    @classmethod
    def of(cls, name: str, encoded: "Encoded", decoded: "Decoded", **further: Any) -> "Result":
        r, top = _known(encoded, "voxel_r"), _known(decoded, "image_given_brain_top1")
        return cls(name, r, encoded.score("nr2") or r, top, decoded.scores[0].decoder or "", **further)

    @classmethod
    def of_model(cls, item: "ModelEvaluation") -> "Result":
        same = item.encoded[-1]
        own = item.encoded[0] if item.opened.encodes else same
        found, found_by_ridge = item.found
        ways = {"encodes": item.opened.encodes, "decodes": item.opened.decodes}
        ridge = cls.of(SAME_TOKENS, same, found_by_ridge, **ways)
        return cls.of(item.opened.name, own, found, ridge=ridge, **ways)


def write_report(evaluation: "Evaluation", out: Path) -> Path:
    """Write report.html, record.json, voxels.npz and the figures.

    Args:
        evaluation: Scores, predictions and pictures of one subject.
        out: Folder to write to.

    Returns:
        The path of report.html.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "record.json").write_text(json.dumps(evaluation.record, indent=1, allow_nan=False) + "\n")
    names = [f"{item.model}, {item.features}" for item in evaluation.encoded]
    arrays: dict[str, Any] = {f"r_{number}": item.r for number, item in enumerate(evaluation.encoded)}
    ceiling = evaluation.study.ceiling
    if ceiling is not None:
        arrays["ceiling"] = ceiling
    if evaluation.significance is not None:
        arrays |= evaluation.significance.arrays()
    np.savez(out / "voxels.npz", names=names, **arrays)
    path = out / "report.html"
    path.write_text(render("brain.html", "brainmodels.report", **_view(evaluation, out)), encoding="utf-8")
    return path


def _view(evaluation: "Evaluation", out: Path) -> dict[str, Any]:
    """Draw the figures, and collect what the template shows."""
    record, encoded, decoded = evaluation.record, evaluation.encoded, evaluation.decoded
    results = [Result.of_model(item) for item in evaluation.models]
    full = Result.of(f"ridge on {encoded[0].features}", encoded[0], decoded[0])
    wrong = [row for row in decoded if row.scores[0].decoder == SHUFFLED]
    control = next(item for item in encoded if item.model == SHUFFLED)
    told: list[Any] = [*encoded, *decoded]
    notes = sorted({note for item in told for note in item.note.split("; ") if "random" in note})
    told += [row for item in evaluation.models for row in [*item.decoded, *item.semantics]]
    counts = [scores for item in evaluation.models if item.voxels for scores in item.voxels.counts.values()]
    told += [row for item in evaluation.pictures for row in item.drawn]
    told += [row for item in evaluation.generated for row in item.rows]
    return {
        "record": record,
        "data": record["data"],
        "seed": evaluation.study.seed,
        "share": evaluation.study.ceiling is not None,
        "results": results or [full],
        "verdict": evaluation.verdict,
        "partition": evaluation.partition,
        "full": full,
        "shrunk": _best_shrunk(evaluation.models[0]) if evaluation.models else None,
        "rivals": rivals(list(evaluation.models)),
        "shuffled": Result.of(SHUFFLED, control, wrong[0]),
        "worse": {
            "variance": [row for row in results if row.ridge and _below(row.variance, row.ridge.variance)],
            "top": [row for row in results if row.decodes and row.ridge and _below(row.top, row.ridge.top)],
        },
        "at_chance": all_at_chance(_judged(evaluation)),
        "notes": notes,
        "opening": opening_view(evaluation, out),
        "models": model_views(evaluation, out),
        "context": context_views(evaluation, out),
        "generated": generation_views(evaluation, out),
        "published_generation": published.GENERATION,
        "published_images": list(published.IMAGES),
        "published_captions": list(published.CAPTIONS),
        "published": published.ROWS,
        "protocols": evaluation.protocols,
        "layers": evaluation.layers,
        "significant_maps": evaluation.significance is not None and evaluation.significance.tests[0] is not None,
        "encoded": encoded,
        "decoded": decoded,
        "metrics": [score for name in _METRICS if (score := encoded[0].score(name)) is not None],
        "drawn": set(_draw(evaluation, out)),
        "lines": [str(score) for item in told for score in item.scores] + [str(x) for scores in counts for x in scores],
        "settings": {name: _word(value) for name, value in record["settings"].items() if name != "progress"},
        **{
            "same_tokens": SAME_TOKENS,
            "external": EXTERNAL,
            "true_tokens": TRUE,
            "reduced": REDUCED,
            "another": ANOTHER,
            "mean_tokens": MEAN,
        },
    }


def _best_shrunk(item: "ModelEvaluation") -> tuple[str, Score] | None:
    """Name and headline score of the best linear model on the same tokens in which voxels learn from each other."""
    rows = [row for row in item.encoded if row.model.startswith(tuple(SHRUNK))]
    names = [row.model.replace(", same", " on the same") for row in rows]
    found = [(name, row.score("nr2") or _known(row, "voxel_r")) for name, row in zip(names, rows, strict=True)]
    return max(found, key=lambda pair: value_of(pair[1], pair[0])) if found and item.opened.encodes else None


def _judged(evaluation: "Evaluation") -> list[Score]:
    """Scores of the models, controls left out: all of encoding, top-1 and two-way of decoding."""
    encoded = [score for item in evaluation.encoded if item.model == "ridge" for score in item.scores]
    models = [item for item in evaluation.decoded if item.scores[0].decoder == "ridge"]
    models += [item.found[0] for item in evaluation.models]
    decoded = [_known(item, name) for item in models for name in _HEADLINES]
    trained = [score for item in evaluation.models for score in item.encoded[0].scores]
    return encoded + trained + decoded


def _draw(evaluation: "Evaluation", out: Path) -> Iterable[str]:
    """Draw the figures of ridge and of the backbones; names of the files that were drawn."""
    study, encoded = evaluation.study, evaluation.encoded
    best = None if study.ceiling is None else np.where(study.voxels, np.sqrt(study.ceiling), np.nan)
    label = "mean r" if study.ceiling is None else "share of the explainable variance"
    lines = {} if study.ceiling is None else {"ceiling": 1.0}
    figures.voxel_scores(encoded[0].r, best, out / "voxels.png")
    budgets = _budgets(evaluation)
    if study.rois:
        cut = {item.features for items in budgets.values() for item in list(items.values())[1:]}
        beside = {name for item in evaluation.models for name in item.references}
        kept = [x for x in encoded if _has_bars(x) and x.features not in cut and x.model not in beside]
        shown = {_shown(item): {name: Bar(*values) for name, values in item.rois.items()} for item in kept}
        controls = [_shown(item) for item in kept if item.model in _REFERENCES]
        figures.roi_bars(shown, out / "rois.png", label, lines.get("ceiling"), controls)
        yield "rois.png"
    yield from _maps(evaluation, out)
    figures.picture_grid(_retrieved(evaluation, evaluation.decoded[0]), out / "retrieved.png")
    curve = evaluation.record["learning_curve"]
    if len(curve["points"]) > 1:
        points = {int(count): Bar(*values) for count, values in curve["points"].items()}
        figures.curves(
            {curve["features"]: points}, out / "learning.png", "train images", label, lines, logarithmic=True
        )
        yield "learning.png"
    if any(len(items) > 1 for items in budgets.values()):
        _draw_budgets(evaluation, budgets, out / "budgets.png")
        yield "budgets.png"


def _maps(evaluation: "Evaluation", out: Path) -> list[str]:
    """Draw the maps of the first model, of significant voxels where voxels were tested; names of the files."""
    settings, space = evaluation.record["settings"], evaluation.study.test.subject.space
    if not isinstance(space, VoxelSpace):
        return []
    tests = evaluation.significance
    test = tests.tests[0] if tests is not None else None
    significant = None if tests is None or test is None else test.fdr(tests.level)
    anatomy = Path(settings["anatomy"]) if settings.get("anatomy") else None
    transform = to_mni(settings.get("to_mni") or "", space)
    return draw_maps(evaluation.encoded[0].r, space, out, significant, anatomy, transform)


def _has_bars(item: "Encoded") -> bool:
    """Whether a model is among the bars by region; of its variants the table has more."""
    return not (item.model in ("mean map", SHUFFLED) or item.model.startswith(tuple(SHRUNK)) or "alone" in item.model)


def _retrieved(evaluation: "Evaluation", decoded: "Decoded") -> list[tuple[PictureRow, PictureRow]]:
    """Shown and nearest images, for random, best and worst test images."""
    ids, stimuli = evaluation.study.test.image_ids, evaluation.dataset.stimuli
    ranks, nearest = decoded.ranks, decoded.similarities.argmax(1)
    own = np.diagonal(decoded.similarities)
    order = np.lexsort((-own, ranks))
    drawn = np.random.default_rng(evaluation.study.seed).permutation(len(ids))[:_PICTURES]
    rows = []
    for name, chosen in (("random", drawn), ("best", order[:_PICTURES]), ("worst", order[::-1][:_PICTURES])):
        shown = [stimuli.image(str(ids[i]), _THUMBNAIL) for i in chosen]
        found = [stimuli.image(str(ids[nearest[i]]), _THUMBNAIL) for i in chosen]
        right = [bool(ranks[i] == 1) for i in chosen]
        words = ["" if first else f"right one: rank {ranks[i]}" for i, first in zip(chosen, right, strict=True)]
        rows.append((PictureRow(f"{name}\nshown", shown), PictureRow("found", found, words, right)))
    return rows


def _budgets(evaluation: "Evaluation") -> "dict[str, dict[int, Encoded]]":
    """Encoding by backbone, then by number of cores. A name without @ has all cores of its model."""
    found: dict[str, dict[int, Encoded]] = {}
    for item in evaluation.encoded:
        cores = evaluation.record["features"].get(item.features, {}).get("settings", {}).get("num_cores")
        if item.model == "ridge" and cores:
            found.setdefault(item.features.partition("@")[0], {})[cores] = item
    return found


def _draw_budgets(evaluation: "Evaluation", budgets: "Mapping[str, Mapping[int, Encoded]]", path: Path) -> None:
    """Scores of backbones against their number of cores, with other features as levels."""
    name = "voxel_r" if evaluation.study.ceiling is None else "nr2"
    series = {
        model: {cores: _bar(_known(item, name)) for cores, item in items.items()} for model, items in budgets.items()
    }
    drawn = {item.features for items in budgets.values() for item in items.values()}
    lines = {
        _shown(item): value_of(item.score(name), name)
        for item in evaluation.encoded
        if item.model in ("ridge", "planted signal") and item.features not in drawn
    }
    label = "share of the explainable variance" if name == "nr2" else "r of a voxel"
    figures.curves(series, path, "cores", label, lines, logarithmic=True)


def _word(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


def _known(item: "Encoded | Decoded", name: str) -> Score:
    """A score by its name, which must be there."""
    score = item.score(name)
    if score is None:
        raise BrainDataError(f"expected a score {name} of {item.features}, got none")
    return score


def _below(score: Score, other: Score) -> bool:
    return value_of(score, score.metric.name) < value_of(other, other.metric.name)


def _bar(score: Score) -> Bar:
    if score.interval is None:
        raise BrainDataError(f"expected an interval of {score.metric.name}, got none")
    return Bar(value_of(score, score.metric.name), score.interval.low, score.interval.high)


def _shown(item: "Encoded") -> str:
    """Name of a model in legends, with its features unless the name says which they are."""
    alone = item.features in ("none", "truth") or item.features.endswith(" tokens")
    return item.model if alone else f"{item.model}, {item.features}"
