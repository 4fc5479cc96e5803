"""report.html of decoded objects: one page without scripts or network, with pictures, clouds and record.json beside it.

write_object_report(evaluation, Path("out/study3d"))  # report.html, record.json, clouds/*.ply, *.glb and *.gif
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from veca.report.page import render

from ..data.cloud_files import export_cloud
from ..errors import BrainDataError
from ..evaluation.object_case import PairedRow, Row
from ..evaluation.object_clouds import PRIMARY, SAME_CLASS, TRUE_FEATURES, TWO_SAMPLINGS, retrieved_name
from ..evaluation.object_controls import SHUFFLED_OBJECTS
from ..evaluation.object_rows import IDEAL, RIDGE, confusion_of
from ..evaluation.objects import ObjectEvaluation
from ..metrics import Score
from ..metrics.image import examples
from . import figures, published
from .clouds import render_cloud, turntable
from .figures import Bar, PictureRow
from .object_figures import MOST_CLASSES, confusion_table, time_courses
from .topography import topography

__all__ = ["write_object_report"]

_SIZE = 192  # pixels of a picture in the grid
_RANDOM, _ENDS, _TURNING = 4, 2, 4  # columns of random objects, of best and of worst ones, and turning objects
_FRAMES = 18  # of one turn
_SAMPLES = 2  # decoded clouds of an object in the grid
_LINE = 16  # characters of a caption


class Column(NamedTuple):
    """A column of a table of clouds: its head, and the metric with its words in brackets."""

    head: str
    metric: str
    words: tuple[str, ...] = ()
    best: bool = False


class Number(NamedTuple):
    """A headline number, linear rivals that see all streams by name, and the best possible one where it is known."""

    score: Score
    rivals: Mapping[str, float | None]
    ideal: float | None


def write_object_report(evaluation: ObjectEvaluation, out: Path) -> Path:
    """Write report.html, record.json, the figures, and clouds of a few objects.

    Args:
        evaluation: Scores and clouds of one subject.
        out: Folder to write to.

    Returns:
        The path of report.html.
    """
    out = Path(out)
    (out / "clouds").mkdir(parents=True, exist_ok=True)
    record = evaluation.record
    (out / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    path = out / "report.html"
    path.write_text(render("objects.html", "brainmodels.report", **_view(evaluation, record, out)), encoding="utf-8")
    return path


def _view(evaluation: ObjectEvaluation, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """Draw the figures, and collect what the template shows."""
    chosen = _chosen(evaluation)
    grid = _draw_grid(evaluation, chosen, out / "objects.png")
    drawn = {"objects.png", *_draw(evaluation, out)}
    tables = evaluation.tables
    return {
        "record": record,
        "data": record["data"],
        "name": evaluation.name,
        "first_line": evaluation.first_line,
        "beats": evaluation.beats_retrieval,
        "outcome": evaluation.against(retrieved_name(evaluation.name)),
        "headline": _headline(evaluation),
        "grid": grid,
        "turning": _turning(evaluation, chosen, out),
        "drawn": drawn,
        "tables": tables,
        "levels": {"class": evaluation.case.num_classes, "color": evaluation.case.num_colors},
        "shape_table": _groups(evaluation, _shape_columns(evaluation)),
        "judge_table": _groups(evaluation, _judge_columns(evaluation)),
        "set_table": _groups(evaluation, _set_columns()),
        "more_table": _groups(evaluation, _more_columns(evaluation)),
        "paired": _paired(evaluation),
        "judges": evaluation.judges,
        "agreements": evaluation.agreements,
        "released": evaluation.released,
        "left_out": _maps(evaluation, out),
        "band": evaluation.row("controls", SHUFFLED_OBJECTS).scores[0],
        "duplicates": evaluation.duplicates,
        "selection": [name for name, model in evaluation.models.items() if model.recipe.selection == "test"],
        "published": published.OBJECTS,
        "published_regions": published.OBJECT_REGIONS,
        "lines": [str(score) for rows in tables.values() for row in rows for score in row.scores],
        "timing": ", ".join(f"{name} {value:.0f} s" for name, value in evaluation.seconds.items()),
        "settings": {name: value for name, value in record["settings"].items() if name != "progress"},
        "versions": tables["classes"][0].scores[0].versions,
    }


def _headline(evaluation: ObjectEvaluation) -> dict[str, Any]:
    """The numbers of the first sentences."""
    found: dict[str, Any] = {"class": _number(evaluation, "classes"), "color": None}
    if evaluation.tables["colors"]:
        found["color"] = _number(evaluation, "colors")
    names = {
        "decoded": evaluation.name,
        "retrieved": retrieved_name(evaluation.name),
        "ridge": retrieved_name(RIDGE),
        "same_class": SAME_CLASS,
        "samplings": TWO_SAMPLINGS,
        "features": TRUE_FEATURES,
    }
    for key, name in names.items():
        found[key] = evaluation.row("clouds", name).pick(*PRIMARY.rstrip("]").split("["))
    return found


def _number(evaluation: ObjectEvaluation, table: str) -> Number:
    rows = {row.name: row.scores[0].value for row in evaluation.tables[table]}
    linear = [row.name for row in evaluation.tables[table] if row.kind == "baseline" and " alone" not in row.name]
    rivals = {name: rows[name] for name in linear}
    return Number(evaluation.row(table, evaluation.name).scores[0], rivals, rows.get(IDEAL))


# pictures


def _chosen(evaluation: ObjectEvaluation) -> dict[str, np.ndarray]:
    """Rows of random objects, and of the best and the worst of the others by the first distance."""
    values = evaluation.row("clouds", evaluation.name).values[PRIMARY]
    seed, count = evaluation.case.settings.seed, len(values)
    drawn = examples(values, "down", min(_RANDOM, count), seed)["random"]
    others = np.setdiff1d(np.arange(count), drawn)
    ends = min(_ENDS, len(others) // 2)
    order = others[np.argsort(values[others], kind="stable")]
    return {"random": drawn, "best": order[:ends], "worst": order[::-1][:ends]}


def _draw_grid(evaluation: ObjectEvaluation, chosen: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Draw shown pictures, true, decoded and retrieved clouds of some test objects."""
    case, name = evaluation.case, evaluation.name
    rows = np.concatenate(list(chosen.values())).astype(int)
    ids = [str(case.test.ids[row]) for row in rows]
    words = [""] * len(chosen["random"]) + ["best"] * len(chosen["best"]) + ["worst"] * len(chosen["worst"])
    truth = case.labels("class", np.array(ids))
    best = _best_name(evaluation)
    lines = [
        PictureRow("shown", [case.study.stimuli.image(image_id, _SIZE) for image_id in ids], words),
        PictureRow("true cloud", [_picture(case.study.cloud(x)) for x in ids], [_words(case, x) for x in truth]),
    ]
    samples = min(_SAMPLES, len(evaluation.clouds(name)[ids[0]]))
    said = evaluation.answers[name].shape.argmax(1)[rows]
    for sample in range(samples):
        clouds = [_picture(evaluation.clouds(name)[image_id][sample]) for image_id in ids]
        label = f"{name},\nsample {sample + 1}" if samples > 1 else name
        captions = [_words(case, x) for x in said] if sample == samples - 1 else ()
        lines.append(PictureRow(label, clouds, captions, [bool(x) for x in said == truth]))
    further = {retrieved_name(name): "retrieved"}
    further[best] = "best possible\nretrieval" if case.ideal is not None else "other object\nof the class"
    for row, label in further.items():
        lines.append(PictureRow(label, [_picture(evaluation.clouds(row)[image_id][0]) for image_id in ids]))
    figures.picture_grid([lines], path)
    return {
        "random": len(chosen["random"]),
        "ends": len(chosen["best"]),
        "samples": samples,
        "ideal": case.ideal is not None,
    }


def _best_name(evaluation: ObjectEvaluation) -> str:
    """The row that shows what a perfect answer would retrieve."""
    return retrieved_name(IDEAL) if evaluation.case.ideal is not None else SAME_CLASS


def _picture(cloud: np.ndarray) -> np.ndarray:
    return render_cloud(cloud, size=_SIZE)


def _words(case: Any, number: int) -> str:
    """Name of a class, broken into short lines."""
    words, lines = case.study.class_names[int(number)].split("_"), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= _LINE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _turning(evaluation: ObjectEvaluation, chosen: Mapping[str, np.ndarray], out: Path) -> list[dict[str, str]]:
    """Write clouds and turntables of a few random objects; their files for the page."""
    case, found = evaluation.case, []
    for row in chosen["random"][:_TURNING]:
        image_id = str(case.test.ids[row])
        stem = image_id.replace(":", "_").replace("/", "_")
        clouds = {
            "true": case.study.cloud(image_id),
            "decoded": evaluation.clouds(evaluation.name)[image_id][0],
            "retrieved": evaluation.clouds(retrieved_name(evaluation.name))[image_id][0],
        }
        files = {"id": image_id, "name": _words(case, case.labels("class", np.array([image_id]))[0])}
        for kind, cloud in clouds.items():
            path = out / "clouds" / f"{stem}_{kind}"
            if kind != "retrieved":
                turntable(cloud, path.with_suffix(".gif"), frames=_FRAMES)
            export_cloud(cloud, path.with_suffix(".ply"))
            export_cloud(cloud, path.with_suffix(".glb"), points_as="octahedra")
            files[kind] = f"clouds/{path.name}"
        found.append(files)
    return found


# tables


def _shape_columns(evaluation: ObjectEvaluation) -> list[Column]:
    columns = [
        Column("Chamfer ↓", "chamfer_l2", ("rms",)),
        Column("F-score .05 ↑", "fscore@0.05", ("rms",)),
    ]
    emd = evaluation.tables["clouds"][0].pick("emd", "rms")
    if emd is not None:
        columns.append(Column(f"EMD, {emd.metric.name.partition('@')[2].partition('[')[0]} points ↓", "emd", ("rms",)))
    if evaluation.case.num_colors:
        columns.append(Column("error of colour ↓", "color_error"))
        columns.append(Column("majority colour ↑", "majority_color"))
    return columns


def _judge_columns(evaluation: ObjectEvaluation) -> list[Column]:
    """N-way scores of each judge, for protocols that the number of classes allows."""
    columns = []
    for judge in evaluation.judges:
        for key in evaluation.tables["clouds"][0].values:
            start, _, inside = key.partition("[")
            if inside.rstrip("]") == judge.name:
                head = f"{_short(key, evaluation.case.num_classes)} ↑"
                columns.append(Column(head, start, tuple(judge.name.split(","))))
    return columns


def _set_columns() -> list[Column]:
    heads = {"mmd_cd": "MMD ↓", "cov_cd": "coverage ↑", "1nna_cd": "1-NN accuracy, best 0.5"}
    return [Column(head, name, ("rms",)) for name, head in heads.items()]


def _more_columns(evaluation: ObjectEvaluation) -> list[Column]:
    """Distances at the other scale, with a smaller tolerance, and of the best sample."""
    columns = [
        Column("Chamfer, largest radius ↓", "chamfer_l2"),
        Column("F-score .05, largest radius ↑", "fscore@0.05"),
        Column("F-score .01, largest radius ↑", "fscore@0.01"),
        Column("Chamfer, not squared ↓", "chamfer_l1", ("rms",)),
    ]
    if evaluation.tables["clouds"][0].pick("chamfer_l2", "rms", best=True) is not None:
        columns.append(Column("Chamfer, best sample ↓", "chamfer_l2", ("rms",), best=True))
    return columns


def _groups(evaluation: ObjectEvaluation, columns: Sequence[Column]) -> dict[str, Any]:
    """A table of clouds: heads, rows by group with their cells, and chance and ceiling of the first row."""
    kinds = {"above": "What can be reached at best", "model": "Decoded from EEG", "below": "What must be beaten"}
    rows = {title: [x for x in evaluation.tables["clouds"] if x.kind == kind] for kind, title in kinds.items()}

    def cells(row: Row) -> list[Score | None]:
        return [row.pick(column.metric, *column.words, best=column.best) for column in columns]

    told = {title: [(row, cells(row)) for row in found] for title, found in rows.items()}
    return {
        "head": [column.head for column in columns],
        "groups": {title: [pair for pair in pairs if any(pair[1])] for title, pairs in told.items()},
        "first": cells(evaluation.tables["clouds"][0]),
    }


def _paired(evaluation: ObjectEvaluation) -> dict[str, Any]:
    """Differences with pairs of rows in rows and metrics in columns; of several N-way scores 2-way and all classes."""
    classes, arrows = evaluation.case.num_classes, {"up": "↑", "down": "↓"}
    kept = [x for x in evaluation.paired if "way" not in x.metric or int(x.metric.partition("way")[0]) in (2, classes)]
    pairs: dict[str, list[PairedRow]] = {}
    for item in kept:
        label = item.second if item.first == evaluation.name else f"{item.first} minus {item.second}"
        pairs.setdefault(label, []).append(item)
    heads = dict.fromkeys(f"{_short(item.metric, classes)} {arrows[item.direction]}" for item in kept)
    return {"head": list(heads), "rows": pairs}


def _short(name: str, classes: int) -> str:
    """A metric as it heads a column: "chamfer_nn: 2-way top-1" for 2way_top1[chamfer_nn,rms]."""
    start, _, inside = name.partition("[")
    known = {"chamfer_l2": "Chamfer", "fscore@0.05": "F-score .05"}
    if start in known:
        return known[start]
    ways, top = start.split("way_top")
    label = "class named" if int(ways) == classes else f"{ways}-way top-{top}"
    return f"{inside.rstrip(']').partition(',')[0]}: {label}"


# further figures


def _draw(evaluation: ObjectEvaluation, out: Path) -> list[str]:
    """Draw the figures of classes, of sensors and of the bottleneck; names of the files that were drawn."""
    case, drawn = evaluation.case, []
    if case.num_classes <= MOST_CLASSES:
        wanted = [name for name in (evaluation.name, RIDGE) if name in evaluation.answers]
        counts = {name: confusion_of(case, evaluation.answers[name]) for name in wanted}
        confusion_table(counts, case.study.class_names, out / "confusion.png")
        drawn.append("confusion.png")
    runs = evaluation.bottleneck
    full = 1 + max((int(x) for x in runs.settings if x != "full"), default=0)
    full = max(full, len(case.train) - 1)
    points = {full if x == "full" else int(x): y for x, y in zip(runs.settings, runs.values["top1"], strict=True)}
    if len(points) > 1:
        lines = {"chance": 1 / case.num_classes}
        bars = {RIDGE: {x: Bar(y, y, y) for x, y in points.items()}}
        figures.curves(
            bars, out / "bottleneck.png", "principal components of the EEG", "top-1", lines, logarithmic=True
        )
        drawn.append("bottleneck.png")
    if evaluation.sensors is not None:
        _draw_regions(evaluation, out / "regions.png")
        windows = evaluation.sensors.occlusion["window"]
        drops = {name: windows.select("probability", "shape", name) for name in case.test.streams}
        time_courses(evaluation.sensors.times, out / "times.png", drops)
        drawn += ["regions.png", "times.png"]
    return drawn


def _draw_regions(evaluation: ObjectEvaluation, path: Path) -> None:
    """What classes and colours lose without each region, in all streams and in each."""
    if evaluation.sensors is None:
        raise BrainDataError("expected an evaluation of sensors, got none")
    table, streams = evaluation.sensors.occlusion["region"], evaluation.case.test.streams
    shown = {}
    for target, label in (("shape", "class"), ("color", "colour")):
        if target == "color" and not evaluation.case.num_colors:
            continue
        for stream in ("all", *(streams if len(streams) > 1 and target == "shape" else ())):
            rows = table.select("probability", target, stream)
            told = label if stream == "all" else f"{label}, {stream} stream alone"
            shown[told] = {row.part.name: Bar(row.difference.value, *row.difference.interval[:2]) for row in rows}
    controls = [name for name in shown if "alone" in name]
    figures.roi_bars(shown, path, "lost probability of the truth", controls=controls)


def _maps(evaluation: ObjectEvaluation, out: Path) -> dict[str, Any]:
    """Draw maps of channels on the head; their files, and the channels that have no place on it."""
    if evaluation.sensors is None:
        return {"files": {}, "channels": ()}
    table, streams = evaluation.sensors.occlusion["channel"], evaluation.case.test.streams
    space, files, missing = evaluation.case.test.spaces[streams[0]], {}, ()
    for target, label in (("shape", "class"), ("color", "colour")):
        if target == "color" and not evaluation.case.num_colors:
            continue
        values = table.values("probability", target, "all")
        drop = np.array([values[name] for name in space.ch_names])
        try:
            missing = topography(drop, space, out / f"head_{target}.png", f"lost probability, {label}")
        except BrainDataError:  # fewer than four channels have a place
            continue
        files[label] = f"head_{target}.png"
    return {"files": files, "channels": missing}
