"""The demo's report: report.html from the record, and the main result as text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report.page import gflops, megabytes, render, seconds
from .conclusions import find, known

__all__ = ["summary_lines", "write_html"]

Record = Mapping[str, Any]


def write_html(record: Record, out: Path) -> None:
    """Write `report.html`; a link leads to `brain/report.html` if that file is in the folder.

    Args:
        record: Content of report.json.
        out: Folder that holds the pictures.
    """
    machine, ratios, flops = record["machine"], record["ratios"], record["flops"]
    budgets = sorted({row["num_cores"] for row in ratios}, reverse=True)
    patches = {row["size"]: row["patches"] for row in flops}
    counted = [row for row in flops if row["model_counted"] is not None]
    versions = ("torch", "triton", "timm", "numpy", "veca", "cuda")
    page = render(
        "demo.html",
        record=record,
        find=find,
        brain=(out / "brain" / "report.html").is_file(),
        sides=_sides(record),
        names={None: "ViT"} | {cores: f"VECA, {cores} cores" for cores in budgets},
        patches={size: patches[size] for size in sorted({row["size"] for row in record["timings"]})},
        slower=_slower(ratios, dict.fromkeys((budgets[0], budgets[-1]))),
        heavier=sorted({row["size"] for row in ratios if row["memory"] is not None and row["memory"] < 1}),
        threads=f"{machine['torch_threads']} thread{'s' * (machine['torch_threads'] != 1)}",
        versions={name: machine[name] for name in versions if machine[name]},
        foreseen=_foreseen(record["timings"]),
        flops=sorted(flops, key=lambda row: (row["size"], -(row["num_cores"] or float("inf")))),
        counted=counted,
        different=[row for row in counted if row["model"] != row["model_counted"]],
        agreement=_agreement(record["agreement"]),
        command=_command(record),
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def summary_lines(record: Record) -> list[str]:
    """The main result as plain text: three ratios with both their sides, and where VECA is slower."""
    best = record["headline"]
    if best is None:
        return ["the ViT was timed at no size"]
    lines = [f"the machine was busy: {record['busy']}, so times are not those of an idle one"] if record["busy"] else []
    lines.append(f"at {best['size']} px with {best['num_cores']} cores       ViT         VECA   ViT / VECA")
    for side in _sides(record):
        lines.append(f"  {side['name']:22} {side['vit']:>11}  {side['veca']:>11}  {best[side['key']]:6.2f}x")
    slower = [row for row in record["ratios"] if row["time"] is not None and row["time"] < 1]
    if slower:
        listed = ", ".join(f"{row['size']} px with {row['num_cores']} cores ({row['time']:.2f}x)" for row in slower)
        lines.append(f"VECA is slower at {listed}")
    return lines


def _sides(record: Record) -> list[dict[str, str]]:
    """Time, memory and FLOPs of both models in the headline: name, key of the ratio, and both values as text."""
    best = record["headline"]
    if best is None:
        return []
    rows = {"veca": best["num_cores"], "vit": None}
    timings = {side: known(record["timings"], best["size"], cores) for side, cores in rows.items()}
    flops = {side: known(record["flops"], best["size"], cores) for side, cores in rows.items()}
    return [
        {"name": "forward pass", "key": "time"} | {side: seconds(row["median_s"]) for side, row in timings.items()},
        {"name": "peak memory", "key": "memory"}
        | {side: megabytes(row["peak_bytes"]) for side, row in timings.items()},
        {"name": "FLOPs, whole model", "key": "flops_model"}
        | {side: gflops(row["model"]) for side, row in flops.items()},
    ]


def _slower(ratios: list[Record], budgets: Mapping[int, None]) -> dict[int, list[Record]]:
    """Rows in which VECA is slower, by number of cores."""
    rows = {
        cores: [row for row in ratios if row["num_cores"] == cores and row["time"] is not None and row["time"] < 1]
        for cores in budgets
    }
    return {cores: found for cores, found in rows.items() if found}


def _foreseen(timings: list[Record]) -> Record | None:
    """The last row of the ViT that was both predicted and measured."""
    found = [row for row in timings if row["num_cores"] is None and row["predicted_s"] and row["times_s"]]
    return found[-1] if found else None


def _agreement(rows: list[Record]) -> list[Record]:
    """Rows of the table; an implementation that refused for one reason has one row for it."""
    shown, refused = [], set()
    for row in rows:
        reason = (row["impl"], row["failure"])
        if row["agrees"] is not None:
            shown.append(row)
        elif reason not in refused:
            refused.add(reason)
            shown.append(row)
    return shown


def _command(record: Record) -> str:
    """The command line that repeats the run."""
    settings = record["settings"]
    words = {
        "sizes": " ".join(map(str, settings["sizes"])),
        "budgets": " ".join(map(str, settings["budgets"])),
        "model": settings["model"],
        "device": record["machine"]["device_type"],
        "dtype": settings["dtype"],
        "time-limit": f"{settings['time_limit']:g}",
        "photographs": " ".join(settings["photographs"]),
    }
    return "veca demo " + " \\\n  ".join(f"--{name} {value}" for name, value in words.items())
