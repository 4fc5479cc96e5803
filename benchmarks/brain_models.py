"""Studies of SynBrain and NeuroFlow on simulated subjects, whose true responses are known.

    python -m benchmarks.brain_models systems --seeds 1 3 4
    python -m benchmarks.brain_models solvers nonlinear fewshot variance augment budgets bottleneck

Every study prints its tables and appends them to the page of --out. Models are those of the `nano` recipes. Unless a
study says otherwise, features are the patch tokens of the shipped VECA nano at 64 cores. They are averaged and
projected to 16 tokens of width 32.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .brain_cases import Settings, Workshop
from .brain_studies import STUDIES, Table
from .record import RESULTS, environment, markdown_table, slug, today

_COLUMNS = ("date", "device", "threads", "torch", "numpy", "timm", "commit")


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ("voxels", "images", "test", "steps", "resamples", "workdir")
    settings = Settings(tuple(args.seeds), counts=tuple(args.counts), **{name: getattr(args, name) for name in names})
    workshop = Workshop(settings)
    command = shlex.join(["python", "-m", "benchmarks.brain_models", *(sys.argv[1:] if words is None else words)])
    facts = environment("cpu")
    out = args.out or RESULTS / f"{slug(facts['device'])}-brain-models-{today()}.md"
    for name in args.studies:
        for seed in settings.seeds:
            began = time.perf_counter()
            tables = STUDIES[name](workshop, seed)
            took = f"{(time.perf_counter() - began) / 60:.1f} min"
            known = ", ".join(f"{key} {facts[key]}" for key in _COLUMNS if facts.get(key))
            text = section(f"{name}, seed {seed}", tables, [f"`{command}`, {took}", _size(settings), known])
            publish(out, f"SynBrain and NeuroFlow on simulated subjects\n{_HEAD.rstrip()}", text)


_HEAD = """
Tables of `benchmarks.brain_models`. Responses are z-scored within sessions by train images; test responses are averaged
over three presentations. nr2 is sum r |r| / sum NC over voxels with NC of at least 0.1; intervals are 95 %, over
resampled test images. "Planted signal" is what a perfect model would predict. Simulated and real scores share no table.
"""


def publish(out: Path, heading: str, text: str) -> None:
    """Append a section to a page, which begins with a heading, and print it."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"# {heading}\n", encoding="utf-8")
    with out.open("a", encoding="utf-8") as file:
        file.write(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def how(command: str, began: float, facts: Mapping[str, Any]) -> list[str]:
    """How a section was made: the command with its minutes since `began`, and the facts of the machine."""
    known = ("date", "device", "torch", "numpy", "commit")
    told = ", ".join(f"{key} {facts[key]}" for key in known if facts.get(key))
    return [f"`{command}`, {(time.perf_counter() - began) / 60:.1f} min", told]


def section(title: str, tables: Sequence[Table], facts: Sequence[str]) -> str:
    """A section of the page: tables, and under them how they were made."""
    parts = [f"\n## {title}\n"]
    for table in tables:
        columns = list(dict.fromkeys(key for row in table.rows for key in row))
        parts.append(f"**{table.title}**" + (f" {table.note}" if table.note else "") + "\n")
        parts.append(markdown_table(table.rows, columns) + "\n")
    return "\n".join([*parts, *(f"{fact}  " for fact in facts[:-1]), facts[-1], ""])


def _size(settings: Settings) -> str:
    return (
        f"{settings.voxels} voxels, {settings.images} train and {settings.test} test images x 3, {settings.steps:g} x "
        "the steps of the nano recipes"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Settings()
    add = parser.add_argument
    add("studies", nargs="+", choices=tuple(STUDIES))
    add("--seeds", nargs="+", type=int, default=list(default.seeds), help="seeds of simulated subjects, 1 or more")
    add("--voxels", type=int, default=default.voxels, help="of the first subject")
    add("--images", type=int, default=default.images, help="train images")
    add("--test", type=int, default=default.test, help="test images")
    add("--counts", nargs="+", type=int, default=list(default.counts), help="images of a new subject")
    add("--steps", type=float, default=default.steps, help="factor of the lengths of all trainings")
    add("--resamples", type=int, default=default.resamples, help="number of resamples for intervals")
    add("--workdir", type=Path, default=default.workdir, help="folder of cached features")
    add("--threads", type=int, help="number of torch's threads")
    add("--out", type=Path, help="page to append to")
    return parser


if __name__ == "__main__":
    main()
