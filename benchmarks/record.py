"""Records of measurements: device, versions, date and commit, and rows as JSON lines and Markdown tables."""

import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["JsonLines", "Row", "environment", "markdown_table", "read_rows", "slug", "today"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "timm", "xformers", "numpy")

Row = dict[str, Any]  # one line of a results file, or one of a table


class JsonLines:
    """An append-only file of rows, each on disk before the next is measured. Without a path it is only a list."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, row: Row) -> None:
        """Append a row to list and file."""
        self.rows.append(dict(row))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON lines file. If the last line is incomplete, it is left out.

    Args:
        path: the file.

    Returns:
        The rows; an empty list if the file does not exist.

    Raises:
        ValueError: another line is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"expected JSON in line {number} of {path}, got {line[:80]!r}") from error
    return rows


def environment(device: str, threads: int | None = None) -> dict[str, Any]:
    """Device, versions, date and commit, as JSON.

    Args:
        device: "cpu" or "cuda".
        threads: number of CPU threads to record; None means torch's.
    """
    import torch

    record = {
        "date": today(),
        "device": cpu_name() if device == "cpu" else torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        **{name: version(name) for name in PACKAGES},
    }
    if device == "cpu":
        record["threads"] = torch.get_num_threads() if threads is None else threads
        return record
    properties = torch.cuda.get_device_properties(0)
    return record | {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def today() -> str:
    """The date in UTC, such as 2026-11-28."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def commit() -> str:
    """The commit that is checked out, with "+changes" if tracked files differ from it; "unknown" outside git."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def slug(name: str) -> str:
    """A device name for file names. "NVIDIA H200" gives "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def markdown_table(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """A Markdown table. Missing and None cells are empty, floats have three digits."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def microseconds(seconds: float) -> str:
    """Seconds as text with three digits and a unit, such as 47.1 us, 1.47 ms or 2.1 s."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def cpu_name() -> str:
    """The model of the CPU, or its architecture if the system does not name the model."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(ROOT), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
