"""One command for a GPU machine: tests, kernels, backbone and verdicts within eight minutes.

    python -m benchmarks.gpu_suite              # writes benchmarks/results/<gpu>-<date>.json and .md
    python -m benchmarks.gpu_suite --dry-run    # composes the commands, runs none
    python -m benchmarks.gpu_suite --device cpu # a rehearsal of every part with tiny shapes

Every part is a process of its own with a time limit: one that fails or hangs costs its own numbers and no
others. Rows are on disk as they are measured, and both result files are rewritten after every part. Needs
torch, triton, timm, tqdm and pytest; every other peer is optional and named where it is absent.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .acceptance import judge, judge_backbone, verdict_table
from .record import RESULTS, ROOT, commit, markdown_table, read_rows, slug, today
from .summary import launches_table, notes, summarize_rows, summary_table

Row = dict[str, Any]
# Beside the environment, which always runs.
PARTS = ("tests", "acceptance", "full-attention", "eager", "launches", "compiled-peers", "grid", "backbone")
_START_SECONDS = 10.0  # importing torch and starting CUDA, in every part
_TAIL_CHARACTERS = 4000


@dataclass(frozen=True)
class Part:
    """One process: its command, its share of the time, and where its rows go. {seconds} is filled in late."""

    name: str
    command: tuple[str, ...]
    share: float
    rows: Path

    def arguments(self, limit: float) -> list[str]:
        """The command with the seconds it may measure: its limit less its start."""
        return [word.replace("{seconds}", f"{max(5.0, limit - _START_SECONDS):.0f}") for word in self.command]


def parts_of(device: str, work: Path) -> list[Part]:
    """The parts of a run, in order. Shares are seconds of an eight-minute run."""
    environment = work / "environment.json"
    parts = [_module("environment", 20, "machine", environment, "--device", device)]
    junit = work / "tests.xml"
    tests = ("pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--ignore=tests/brainmodels")
    tests += ("--continue-on-collection-errors", f"--junitxml={junit}")
    parts.append(Part("tests", (sys.executable, "-m", *tests), 90, junit))
    return parts + (_cuda_parts(work) if device == "cuda" else _cpu_parts(work))


def _cuda_parts(work: Path) -> list[Part]:
    def kernels(name: str, share: float, *options: str) -> Part:
        out = work / f"{name}.jsonl"
        return _module(name, share, "kernels", out, "--device", "cuda", "--seconds", "{seconds}", *options)

    acceptance, half_peers = ("--preset", "acceptance"), ("--peers", "veca", "sdpa", "chain", "xformers")
    halves, timed = ("--ops", "read", "write", "whole"), ("--passes", "fwd", "fwd+bwd")
    token_major, graph, eager = ("--layouts", "token-major"), ("--modes", "graph"), ("--modes", "eager")
    full = ("--ops", "full", "--longest-run", "0.1", *token_major, *graph, *timed)
    compiled = ("--peers", "flex", "chain-compiled", *token_major, *halves, *graph, *timed)
    rest = ("--preset", "rest", "--max-seconds", "0.3", "--longest-run", "0.1")
    backbone = ("--device", "cuda", "--seconds", "{seconds}", "--max-seconds", "0.5", "--longest-run", "2")
    models = ("--models", "veca_small_patch16", "vit_small_patch16_224", "xcit_small_12_p16_224")
    models += ("veca_base_patch16", "vit_base_patch16_224")
    sizes = ("--sizes", "224", "384", "512", "1024", "2048", "4096", "--compiled-sizes", "1024", "4096")
    return [
        kernels("acceptance", 85, *acceptance, *half_peers, *halves, *graph),
        kernels("full-attention", 30, *acceptance, *full),
        kernels("eager", 25, *acceptance, *half_peers, *halves, *timed, *token_major, *eager),
        _module("launches", 20, "launches", work / "launches.jsonl"),
        kernels("compiled-peers", 50, *acceptance, *compiled),
        kernels("grid", 65, *rest, *half_peers, *halves, *timed, *token_major, *graph),
        _module("backbone", 95, "backbone", work / "backbone.jsonl", *backbone, *models, *sizes),
    ]


def _cpu_parts(work: Path) -> list[Part]:
    seconds = ("--device", "cpu", "--seconds", "{seconds}")
    shape = ("--patches", "196", "--cores", "16", "--dtypes", "float32", "--runs", "3")
    image = ("--models", "veca_nano_patch16", "vit_tiny_patch16_224", "--sizes", "64", "--runs", "2")
    return [
        _module("acceptance", 60, "kernels", work / "acceptance.jsonl", *seconds, *shape),
        _module("backbone", 60, "backbone", work / "backbone.jsonl", *seconds, *image),
    ]


def _module(name: str, share: float, module: str, out: Path, *options: str) -> Part:
    command = (sys.executable, "-m", f"benchmarks.{module}", "--out", str(out), *options)
    return Part(name, command, share, out)


def run_part(part: Part, limit: float) -> Row:
    """Run a part in its own process group and kill the group at its limit."""
    command = part.arguments(limit)
    paths = [str(ROOT / "kernels"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    log = part.rows.with_suffix(".log")
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"failed, exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"killed at its limit of {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # compiler workers belong to the group
                process.wait()
    tail = "" if status == "ok" else log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
    return _part_row(part, status, time.monotonic() - start, limit, tail)


def _part_row(part: Part, status: str, seconds: float, limit: float, tail: str = "") -> Row:
    command = " ".join(part.arguments(limit)).replace(sys.executable, "python").replace(str(part.rows.parent), "parts")
    times = {"seconds": round(seconds, 1), "limit": round(limit)}
    return {"name": part.name, "status": status, **times, "command": command, "output_tail": tail}


def collect(parts: Sequence[Part]) -> tuple[Row | None, Row | None, list[Row]]:
    """What the parts have written so far: environment, outcome of the tests, rows."""
    environment, tests, rows = None, None, []
    for part in parts:
        if not part.rows.exists():
            continue
        if part.name == "environment":
            environment = json.loads(part.rows.read_text())
        elif part.name == "tests":
            tests = read_junit(part.rows)
        else:
            rows += [row | {"part": part.name} for row in read_rows(part.rows) if row["kind"] != "environment"]
    return environment, tests, rows


def backbone_page(parts: Sequence[Part]) -> str:
    """The Markdown that the backbone benchmark keeps beside its rows; empty before it has any."""
    pages = [part.rows.with_suffix(".md") for part in parts if part.name == "backbone"]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.exists())


def read_junit(path: Path) -> Row:
    """Counts of a pytest report, and the names of tests that failed."""
    suites = list(xml.etree.ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return counts | {"passed": passed, "failed": failed}


def result_of(
    device: str, dry_run: bool, done: Sequence[Row], parts: Sequence[Part], known_commit: str | None = None
) -> Row:
    """Everything known now; written after every part."""
    environment, tests, rows = collect(parts)
    summary = summarize_rows(rows)
    verdicts = [*judge(summary, device), judge_backbone(rows)]
    # Counts of a killed test run do not exist; red until proven green.
    green = tests is not None and tests["passed"] > 0 and not tests["failures"] and not tests["errors"]
    if not green:
        for verdict in verdicts:
            if verdict["verdict"] != "not measured":
                verdict["verdict"] += ", but the GPU tests are not green"
    return {
        "date": today(),
        "commit": known_commit or commit(),
        "dry_run": dry_run,
        "environment": environment,
        "parts": list(done),
        "tests": tests,
        "tests_green": green,
        "acceptance": verdicts,
        "summary": summary,
        "backbone": backbone_page(parts),
        "rows": rows,
    }


def write(result: Row, stem: Path) -> None:
    """The result as JSON, rows one to a line, and as Markdown; paths of this machine are shortened."""
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in result["rows"])
    text = json.dumps(head, indent=1, allow_nan=False)[:-2] + ',\n "rows": [\n' + rows + "\n]}\n"
    for suffix, content in ((".json", text), (".md", markdown(result))):
        partial = stem.parent / f"{stem.name}{suffix}.part"
        partial.write_text(content.replace(str(ROOT), ".").replace(sys.prefix, "python"), encoding="utf-8")
        partial.replace(stem.parent / f"{stem.name}{suffix}")


def markdown(result: Row) -> str:
    """The page a reader opens: verdicts first, then every table, then what is missing and why."""
    environment = result["environment"] or {}
    facts = {name: value for name, value in environment.items() if not isinstance(value, dict)}
    rates = [{"rates": name, **environment[name]} for name in ("floor_rates", "measured_rates") if name in environment]
    tests = result["tests"]
    counted = (
        "no report"
        if tests is None
        else ", ".join(f"{tests[n]} {n}" for n in ("passed", "failures", "errors", "skipped"))
    )
    failures = [f"- {name}" for name in (tests or {}).get("failed", [])]
    sections = [
        f"# {environment.get('device', 'no device')}, {result['date']}, commit {result['commit']}",
        "Dry run: nothing was measured." if result["dry_run"] else "",
        ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None),
        markdown_table(rates, ("rates", "bandwidth", "matmul", "exps", "launch", "source")) if rates else "",
        "## Acceptance",
        verdict_table(result["acceptance"]),
        f"## GPU tests: {counted}",
        "\n".join(failures),
        "## Parts",
        markdown_table(result["parts"], ("name", "status", "seconds", "limit")),
        "## Kernels",
        summary_table(result["summary"]),
        "## Backbone",
        result["backbone"].replace("\n## ", "\n### "),
        "## Kernels that ran",
        launches_table(result["rows"]),
        "## Not measured, and why",
        "\n".join(f"- {line}" for line in notes(result["rows"])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def free_stem(out: Path, name: str) -> Path:
    """<name>-<date>, or <name>-<date>-2 and so on: results are never overwritten."""
    number = 1
    while True:
        stem = out / (f"{name}-{today()}" + (f"-{number}" if number > 1 else ""))
        if not (out / f"{stem.name}.json").exists():
            return stem
        number += 1


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # lets the running part be killed with us
    out = args.out.resolve()
    work = out / f"parts-{os.getpid()}"
    work.mkdir(parents=True)
    wanted = {"environment", *(args.parts or PARTS)}
    parts = [part for part in parts_of(args.device, work) if part.name in wanted]
    left, stem, done = 60 * args.minutes, None, []
    for index, part in enumerate(parts):
        limit = left * part.share / sum(later.share for later in parts[index:])
        dry = _part_row(part, "dry run", 0.0, limit)
        print(f"{part.name} ({limit:.0f} s): {dry['command']}", flush=True)
        done.append(dry if args.dry_run else run_part(part, limit))
        print(f"  {done[-1]['status']}, {done[-1]['seconds']} s", flush=True)
        left -= limit if args.dry_run else done[-1]["seconds"]
        result = result_of(args.device, args.dry_run, done, parts, args.commit)
        if stem is None:
            if not args.dry_run and result["environment"] is None:
                print(f"expected a working {args.device} device, got:\n{done[-1]['output_tail']}", file=sys.stderr)
                shutil.rmtree(work)
                return 2
            stem = free_stem(out, "dry-run" if args.dry_run else slug(result["environment"]["device"]))
        write(result, stem)
    shutil.rmtree(work)
    print(f"\n{verdict_table(result['acceptance'])}\n\n{stem}.json\n{stem}.md")
    return 0 if all(row["status"] in ("ok", "dry run") for row in done) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", help="for a copy of the tree without git")
    parser.add_argument("--dry-run", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
