"""A page of several subjects of one study: each score over subjects, with links to the page of each subject.

write_group(evaluations, Path("out/study"))  # report.html and group.json; a folder of each subject lies beside them
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veca.report.page import render

from ..evaluation.group import Group, group_of

if TYPE_CHECKING:
    from ..evaluation.run import Evaluation

__all__ = ["write_group"]


def write_group(evaluations: "Sequence[Evaluation]", out: str | Path) -> Path:
    """Write report.html and group.json of several subjects, whose own reports lie in folders of their names.

    Args:
        evaluations: One evaluation for each subject.
        out: Folder that holds the folders of the subjects.

    Returns:
        The path of report.html.

    Raises:
        BrainDataError: See `group_of`.
    """
    group, out = group_of(evaluations, evaluations[0].study.seed if evaluations else 0), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "group.json").write_text(json.dumps(group.to_json(), indent=1, allow_nan=False) + "\n")
    first = evaluations[0].record
    view: dict[str, Any] = {"group": group, "title": _title(group), "machine": first["machine"], "data": first["data"]}
    view["share"] = group.measure == "nr2"
    path = out / "report.html"
    path.write_text(render("group.html", "brainmodels.report", **view), encoding="utf-8")
    return path


def _title(group: Group) -> str:
    """The first difference as a sentence, or the first score where nothing is compared."""
    what = "nr2" if group.measure == "nr2" else "the mean correlation"
    compared = [row for row in group.rows if "variance_change" in row.scores]
    row = (compared or group.rows)[0]
    if compared:
        change = row.scores["variance_change"].over_subjects.mean
        told = f"{row.model} on {row.features} differs from {row.against} by {change:+.3f} in {what}"
    else:
        name = "variance" if "variance" in row.scores else "top"
        value = row.scores[name].over_subjects.mean
        told = f"{row.model} on {row.features} reaches {value:.3f} in {what if name == 'variance' else 'top-1'}"
    return f"{told[0].upper()}{told[1:]}, {len(group.subjects)} subjects"
