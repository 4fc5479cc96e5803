"""A page of several subjects whose objects were decoded: each of them, and mean and standard error over subjects.

write_subjects(evaluations, Path("out/study3d"))  # report.html and subjects.json; a folder of each subject beside
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veca.report.page import render

from ..evaluation.object_clouds import PRIMARY, retrieved_name
from ..evaluation.object_rows import RIDGE
from ..evaluation.objects import ObjectEvaluation

__all__ = ["subject_table", "write_subjects"]


def subject_table(evaluations: Sequence[ObjectEvaluation]) -> dict[str, Any]:
    """The main scores of each subject by name, and their mean and standard error over subjects, ready for JSON."""
    subjects = {item.case.test.subject: _scores(item) for item in evaluations}
    names = list(next(iter(subjects.values())))
    values = {name: np.array([scores[name] for scores in subjects.values()], np.float64) for name in names}
    return {
        "scores": names,
        "subjects": subjects,
        "mean": {name: float(found.mean()) for name, found in values.items()},
        "sem": {name: float(found.std(ddof=1) / len(found) ** 0.5) for name, found in values.items()},
    }


def write_subjects(evaluations: Sequence[ObjectEvaluation], out: Path) -> Path:
    """Write report.html with links to the pages of the subjects, and subjects.json.

    Returns:
        The path of report.html.
    """
    out, table = Path(out), subject_table(evaluations)
    out.mkdir(parents=True, exist_ok=True)
    (out / "subjects.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")
    first = evaluations[0]
    lost = [item.case.test.subject for item in evaluations if not item.beats_retrieval]
    view = {"table_of": table, "name": first.name, "lost": lost, "machine": first.machine}
    path = out / "report.html"
    path.write_text(render("object_subjects.html", "brainmodels.report", **view), encoding="utf-8")
    return path


def _scores(item: ObjectEvaluation) -> dict[str, float]:
    """Values by what the columns of the page say."""
    found = {}
    for table, label in (("classes", "class"), ("colors", "colour")):
        rows = {row.name: row for row in item.tables[table]}
        for name in (item.name, RIDGE):
            if name in rows:
                found[f"{label} top-1, {name}"] = float(rows[name].scores[0].value or 0.0)
    for name in (item.name, retrieved_name(item.name)):
        found[f"{PRIMARY}, {name}"] = float(item.row("clouds", name).values[PRIMARY].mean())
    return found
