"""Ratios, exponents, notes and verdicts, computed from the measurements.

The rows are those of report.json. A ratio is the ViT's value divided by VECA's, so VECA is cheaper above 1.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from .agreement import TOLERANCES, Agreement
from .schedule import PAIRS

__all__ = ["busy", "find", "headline", "known", "ratio_rows", "slopes", "summarise_agreement", "timing_notes"]

Row = Mapping[str, Any]

_FREE = 0.85  # share of the threads' cores that is left to them on an idle machine
_SLOWER = 1.4  # on two idle cores, rates at 256 to 1024 px were within a factor of 1.1


def find(rows: Iterable[Row], size: int, num_cores: int | None) -> Row | None:
    """Find the row of a model at a size; None if there is none. The ViT has None for `num_cores`."""
    return next((row for row in rows if (row["size"], row["num_cores"]) == (size, num_cores)), None)


def known(rows: Iterable[Row], size: int, num_cores: int | None) -> Row:
    """`find` for a row that must be there.

    Raises:
        ValueError: There is none.
    """
    row = find(rows, size, num_cores)
    if row is None:
        raise ValueError(f"expected a row of {size} px with num_cores={num_cores}, got none")
    return row


def ratio_rows(timings: Sequence[Row], flops: Sequence[Row]) -> list[dict[str, Any]]:
    """Time, memory and FLOPs of the ViT divided by VECA's, for every size and budget.

    A ratio is None if one side was not measured. `pairs` is the number of timed runs that both sides have.
    """
    rows = []
    for cost in sorted(flops, key=lambda row: (row["size"], row["num_cores"] or 0)):
        size, num_cores = cost["size"], cost["num_cores"]
        if num_cores is None:
            continue
        ours, theirs = find(timings, size, num_cores) or {}, find(timings, size, None) or {}
        row = {"size": size, "num_cores": num_cores}
        row["pairs"] = min(len(side.get("times_s", ())) for side in (ours, theirs))
        for key, source in (("time", "median_s"), ("memory", "peak_bytes")):
            a, b = theirs.get(source), ours.get(source)
            row[key] = a / b if a and b else None
        for part in ("attention", "block", "model"):
            row[f"flops_{part}"] = known(flops, size, None)[part] / cost[part]
        rows.append(row)
    return rows


def headline(ratios: Sequence[Row]) -> dict[str, Any] | None:
    """The row of the largest size and budget with `PAIRS` runs of both models; with fewer where no size has so many."""
    timed = [row for row in ratios if row["time"] is not None]
    best = max(timed, key=lambda row: (min(row["pairs"], PAIRS), row["size"], row["num_cores"]), default=None)
    return None if best is None else dict(best)


def busy(others: float | None, machine: Row) -> str:
    """Why the times are not those of an idle machine; empty where nothing says so.

    Args:
        others: Processor cores that other programs used while the times were taken; None where it is unknown.
        machine: Description of the machine, see `describe_machine`.
    """
    cores, threads = machine["cpu_count"], machine["torch_threads"]
    if others is None or not cores or cores - others > _FREE * min(threads, cores):
        return ""
    return f"other programs used {others:.1f} of {cores} processor cores"


def slopes(timings: Sequence[Row], flops: Sequence[Row]) -> list[dict[str, Any]]:
    """Exponents of time against patches, between the two largest sizes of each model: 1 is linear, 2 quadratic."""
    patches = {row["size"]: row["patches"] for row in flops}
    rows = []
    for num_cores in {row["num_cores"]: None for row in timings}:
        points = sorted(
            (row["size"], row["median_s"])
            for row in timings
            if row["num_cores"] == num_cores and row["median_s"] and row["size"] in patches
        )
        if len(points) < 2:
            continue
        (small, fast), (large, slow) = points[-2:]
        exponent = math.log(slow / fast) / math.log(patches[large] / patches[small])
        rows.append({"num_cores": num_cores, "from_size": small, "to_size": large, "exponent": exponent})
    return rows


def timing_notes(timings: Sequence[Row], flops: Sequence[Row]) -> list[str]:
    """Notes on the times: runs left out, sizes added, a machine that slowed down."""
    notes = []
    for size in sorted({row["size"] for row in timings}):
        left_out = [row for row in timings if row["size"] == size and not row["times_s"]]
        if left_out:
            names = [
                ("the ViT" if row["num_cores"] is None else f"VECA with {row['num_cores']} cores")
                + (f" ({row['predicted_s']:.3g} s predicted)" if row["predicted_s"] else "")
                for row in left_out
            ]
            notes.append(f"{size} px: there was no time left for {', '.join(names)}.")
    instead = {(row["size"], row["note"]) for row in timings if row["note"]}
    notes += [f"{size} px was measured {note}." for size, note in sorted(instead)]
    return notes + _slow_down(timings, flops)


def _slow_down(timings: Sequence[Row], flops: Sequence[Row]) -> list[str]:
    """A note if VECA's rate falls with size. Its FLOPs are linear, so a lower rate means a slower machine."""
    main = max(row["num_cores"] or 0 for row in timings)
    rates = [
        (known(flops, row["size"], main)["model"] / row["median_s"] / 1e9, row["size"])
        for row in sorted(timings, key=lambda row: row["size"])
        if row["num_cores"] == main and row["median_s"]
    ]
    if len(rates) < 2:
        return []
    (before, small), (after, large) = rates[-2:]
    if before < _SLOWER * after:
        return []
    return [
        f"The machine slowed down during the run: VECA reached {before:.0f} GFLOP/s at {small} px and {after:.0f} at "
        f"{large} px. Compare times within a size, not between sizes. The exponents are too large."
    ]


def summarise_agreement(rows: Sequence[Agreement], dtype: torch.dtype) -> list[dict[str, Any]]:
    """The largest errors of each implementation, over photographs and blocks."""
    tolerance = TOLERANCES[dtype]

    def key(row: Agreement) -> tuple[str, int, bool]:
        return row.impl, row.size, row.sharpened

    summary = []
    for (impl, size, sharpened), group in itertools.groupby(sorted(rows, key=key), key):
        group = list(group)
        failures = {row.failure: None for row in group if row.failure}
        errors = [row for row in group if row.failure is None]
        worst = max((row.relative_rms for row in errors if row.relative_rms is not None), default=None)
        summary.append(
            {
                "impl": impl,
                "size": size,
                "sharpened": sharpened,
                "comparisons": len(group),
                "failed": len(group) - len(errors),
                "score_std": sum(row.score_std for row in group) / len(group),
                "max_abs": max((row.max_abs for row in errors if row.max_abs is not None), default=None),
                "relative_rms": worst,
                "tolerance": tolerance,
                # NaN compares false, so it does not agree
                "agrees": None if worst is None else len(errors) == len(group) and worst <= tolerance,
                "failure": "; ".join(failures) or None,
            }
        )
    return summary
