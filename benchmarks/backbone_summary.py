"""The backbone's rows as one table: both sides of every comparison in a line. No torch."""

from collections.abc import Iterable
from typing import Any

from .record import markdown_table

__all__ = ["backbone_table", "summarize_backbone"]


def summarize_backbone(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per comparison: both times, their ratio (above 1: VECA is faster), memory and FLOP."""
    pairs: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    names = ("pair", "pass", "mode", "size", "P", "batch", "dtype", "C")
    for row in rows:
        if row.get("kind") == "backbone":
            side = "veca" if row["model"].startswith("veca") else "vit"
            pairs.setdefault(tuple(row[name] for name in names), {})[side] = row
    summary = []
    for key, sides in pairs.items():
        entry = dict(zip(names, key, strict=True))
        for side, row in sides.items():
            ok = row["status"] == "ok"
            entry[f"{side} ms"] = row["median_ms"] if ok else f"{row['status']}: {row['reason']}"
            if ok:
                entry[f"{side} 20-80 %"] = f"{row['low_ms']:.3g} - {row['high_ms']:.3g}"
                entry[f"{side} runs"] = row["runs"]
                entry[f"{side} img/s"] = row["images_per_s"]
                entry[f"{side} MB"] = row["peak_bytes"] / 1e6 if row["peak_bytes"] is not None else None
                entry[f"{side} GFLOP"] = row["forward_gflop"]
                share = row["matmul_share"]
                entry[f"{side} % peak"] = None if share is None else f"{100 * share:.0f}"
        if all(isinstance(entry.get(f"{side} ms"), float) for side in ("veca", "vit")):
            entry["x time"] = f"{entry['vit ms'] / entry['veca ms']:.2f}"
            entry["x FLOP"] = f"{entry['vit GFLOP'] / entry['veca GFLOP']:.2f}"
            if entry["veca MB"] and entry["vit MB"]:
                entry["x memory"] = f"{entry['vit MB'] / entry['veca MB']:.2f}"
        summary.append(entry)
    return summary


def backbone_table(rows: Iterable[dict[str, Any]]) -> str:
    """The comparisons as Markdown."""
    columns = (
        *("pair", "pass", "mode", "dtype", "size", "P", "C", "batch", "veca ms", "veca 20-80 %", "vit ms"),
        *("vit 20-80 %", "x time", "veca runs", "vit runs", "veca img/s", "vit img/s", "veca MB", "vit MB"),
        *("x memory", "veca GFLOP", "vit GFLOP", "x FLOP", "veca % peak", "vit % peak"),
    )
    return markdown_table(summarize_backbone(rows), columns)
