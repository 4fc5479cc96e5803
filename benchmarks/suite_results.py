"""Results of the suite: rows of its jobs, verdicts, one JSON file and one page. This file does not import torch.

Results of several calls are joined if device, versions and commit agree.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .acceptance import judge, judge_backbone, verdict_table
from .record import ROOT, Row, markdown_table, read_rows, slug, today
from .red_tests import mark_red
from .suite_jobs import ALWAYS, Job
from .summary import host_table, launches_table, notes, summarize_rows, summary_table, tile_table

__all__ = ["collect", "finish", "free_stem", "join", "joinable", "markdown", "read_tests", "write"]

_SAME = ("device", "torch", "triton", "python")


def collect(jobs: Sequence[Job], done: Sequence[Row], commit: str, rehearsal: bool = False) -> Row:
    """Collect the rows that the jobs of a call have written so far. `finish` adds tests, summary and verdicts."""
    environment, rows, pages = {"date": today(), "device": None}, [], {}
    for job in jobs:
        if job.name == "environment":
            environment = _environment(job.rows) or environment
            continue
        for row in read_rows(job.rows):
            if row["kind"] != "environment":
                rows.append(row | {"job": job.name})
            elif not environment.get("device"):  # the first job was killed before it knew the device
                environment = row
        page = job.rows.with_suffix(".md")
        if page.exists():
            pages[job.name] = page.read_text(encoding="utf-8")
    head = {"date": today(), "commit": commit, "rehearsal": rehearsal, "environment": environment}
    return head | {"jobs": list(done), "pages": pages, "rows": rows}


def _environment(path: Path) -> Row | None:
    """The last whole record. There are up to three, and the last may be incomplete if the job was killed."""
    records = read_rows(path)
    return records[-1] if records else None


def joinable(earlier: Row, later: Row) -> bool:
    """Whether two results are of one device, the same versions and one known commit without changes."""
    same = all(earlier["environment"].get(name) == later["environment"].get(name) for name in _SAME)
    known = later["environment"].get("device") and later["commit"] != "unknown" and "+" not in later["commit"]
    return bool(same and known and earlier["commit"] == later["commit"] and earlier["rehearsal"] == later["rehearsal"])


def join(earlier: Row, later: Row) -> Row:
    """Join two results. A job of the later one replaces the earlier one's job of the same name."""
    again = {job["name"] for job in later["jobs"]}
    kept = {name: [row for row in earlier[name] if row[key] not in again] for name, key in _KEYS.items()}
    pages = {name: page for name, page in earlier["pages"].items() if name not in again}
    whole = "floor_rates" in later["environment"] or "floor_rates" not in earlier["environment"]
    return later | {
        "environment": later["environment"] if whole else earlier["environment"],
        "jobs": kept["jobs"] + later["jobs"],
        "rows": kept["rows"] + later["rows"],
        "pages": pages | later["pages"],
    }


_KEYS = {"jobs": "name", "rows": "job"}


def replaces_measurements(earlier: Row, names: Sequence[str]) -> bool:
    """Whether jobs of these names would overwrite what an earlier run measured to its end."""
    ended = {job["name"] for job in earlier["jobs"] if not job["status"].startswith(("killed", "not run"))}
    return bool(ended & set(names) - set(ALWAYS))


def finish(result: Row) -> Row:
    """Add tests, summary and verdicts to a result."""
    tests = read_tests(result["rows"])
    summary = mark_red(summarize_rows(result["rows"]), tests["failed"])
    models = mark_red((row for row in result["rows"] if row["kind"] == "backbone"), tests["failed"])
    verdicts = [*judge(summary, "cuda"), judge_backbone(models)]
    remark = "" if tests["passed"] or tests["failed"] else ", but no GPU test ran"
    if not remark and not tests["complete"]:
        remark = f", but only {tests['ended']} of {tests['collected']} GPU tests ended"
    for verdict in verdicts:
        if verdict["verdict"] != "not measured":
            verdict["verdict"] += remark
    return result | {"tests": tests, "acceptance": verdicts, "summary": summary}


def read_tests(rows: Sequence[Row]) -> Row:
    """Counts of the test rows. "complete" is True if every collected test has an outcome."""
    outcomes: dict[str, Row] = {}
    for row in rows:
        if row["kind"] == "test":  # a call that passed may still fail at its end
            known = outcomes.get(row["test"])
            outcomes[row["test"]] = known if known and known["outcome"] in ("failed", "error") else row
    counts = {name: sum(row["outcome"] == name for row in outcomes.values()) for name in ("passed", "skipped")}
    failed = [test for test, row in outcomes.items() if row["outcome"] in ("failed", "error")]
    collected = max((row["tests"] for row in rows if row["kind"] == "collected"), default=0)
    messages = {test: outcomes[test]["message"] for test in failed}
    whole = {"collected": collected, "ended": len(outcomes), "complete": 0 < collected <= len(outcomes)}
    return whole | counts | {"failed": failed, "messages": messages}


def write(result: Row, stem: Path) -> None:
    """Write the finished result as JSON, with one row in each line, and as Markdown. Local paths are shortened."""
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in result["rows"])
    text = json.dumps(head, indent=1, allow_nan=False)[:-2] + ',\n "rows": [\n' + rows + "\n]}\n"
    for suffix, content in ((".json", text), (".md", markdown(result))):
        partial = stem.parent / f"{stem.name}{suffix}.part"
        partial.write_text(content.replace(str(ROOT), ".").replace(sys.prefix, "python"), encoding="utf-8")
        partial.replace(stem.parent / f"{stem.name}{suffix}")


def markdown(result: Row) -> str:
    """The result as a page: verdicts first, then every table, then what is missing and why."""
    environment, tests, rows = result["environment"], result["tests"], result["rows"]
    facts = {name: value for name, value in environment.items() if not isinstance(value, dict)}
    rates = [{"rates": name, **environment[name]} for name in ("floor_rates", "measured_rates") if name in environment]
    counts = f"{tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped"
    pages = (page.replace("\n## ", "\n### ") for page in result["pages"].values())
    sections = {
        f"# {environment.get('device') or 'unknown device'}, {result['date']}, commit {result['commit']}": [
            "**A rehearsal on a CPU: its numbers mean nothing.**" if result["rehearsal"] else "",
            ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None),
            markdown_table(rates, ("rates", "bandwidth", "matmul", "exps", "launch", "source")) if rates else "",
        ],
        "## Acceptance": [verdict_table(result["acceptance"])],
        f"## GPU tests: {counts}, {tests['ended']} of {tests['collected']} ended": [
            "\n".join(f"- {test}: {message}" for test, message in tests["messages"].items())
        ],
        "## Jobs": [markdown_table(result["jobs"], ("part", "name", "status", "seconds", "limit"))],
        "## The four kernels by tile": [tile_table(rows)],
        "## Kernels": [summary_table(result["summary"])],
        "## Host times": [host_table(rows)],
        "## Backbone": list(pages),
        "## Kernels that ran": [launches_table(rows)],
        "## Not measured, and why": ["\n".join(f"- {line}" for line in notes(rows))],
    }
    lines = [text for title, texts in sections.items() for text in (title, *texts) if text]
    return "\n\n".join(lines) + "\n"


def free_stem(out: Path, name: str) -> Path:
    """A new stem <name>-<date>, or <name>-<date>-2 and so on, so that results are never overwritten."""
    base = f"{slug(name)}-{today()}"
    number = 1
    while (out / f"{_numbered(base, number)}.json").exists():
        number += 1
    return out / _numbered(base, number)


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}-{number}"
