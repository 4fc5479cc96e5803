"""Curves of time and memory for each image against resolution. Needs matplotlib.

Models that are neither VECA nor a plain ViT get further colours of Okabe and Ito. Each line has another marker.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..report.curves import BLUES, GREY, STYLE, VERMILLION, draw_line, label_ends, log_ticks, resolution_axis
from .table import Row

__all__ = ["draw_curves"]

_REDS = (VERMILLION, "#a34700")
_OTHERS = ("#009e73", "#cc79a7", "#b8860b", "#6a4c93", "#7f7f7f", "#5b9a2f")
_MARKERS = "osD^vP*X<>"

Line = tuple[str, str, str, dict[int, float]]  # name, colour, marker, pixels -> value


def draw_curves(rows: Iterable[Row], folder: Path, name: str) -> list[Path]:
    """Draw a picture <name>-<pass>-<mode>.png for each pass and mode that has a measured case.

    Args:
        rows: rows that `run_bench` returned.
        folder: folder of the pictures.
        name: stem of their names.

    Returns:
        The files.
    """
    rows = list(rows)
    caption = next((f"{row['device']}, torch {row['torch']}" for row in rows if row["kind"] == "environment"), "")
    measured = [row for row in rows if row["kind"] == "backbone" and row["status"] == "ok"]
    looks = _looks(measured)
    paths = []
    for pass_, mode, dtype in dict.fromkeys((row["pass"], row["mode"], row["dtype"]) for row in measured):
        group = [row for row in measured if (row["pass"], row["mode"], row["dtype"]) == (pass_, mode, dtype)]
        path = folder / f"{name}-{pass_}-{mode}.png"
        with matplotlib.rc_context(STYLE):
            figure = _draw(group, looks, f"{pass_}, {mode}", f"{caption}, {dtype}")
            figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


def _draw(rows: Sequence[Row], looks: Mapping[str, tuple[str, str]], title: str, caption: str) -> Figure:
    figure = Figure(figsize=(12.4, 5.0))
    left, right = figure.subplots(1, 2)
    _panel(left, _lines(rows, looks, lambda row: row["median_s"]), "time an image", "s")
    _panel(right, _lines(rows, looks, lambda row: row["peak_bytes"]), "peak memory an image", "B")
    left.set_title(f"Time, {title}", loc="left", fontweight="bold", fontsize=12)
    right.set_title(f"Memory, {title}", loc="left", fontweight="bold", fontsize=12)
    figure.text(0.01, 0.015, caption, fontsize=8.5, color=GREY)
    figure.subplots_adjust(left=0.078, right=0.868, top=0.92, bottom=0.16, wspace=0.66)
    return figure


def _lines(
    rows: Sequence[Row], looks: Mapping[str, tuple[str, str]], value_of: Callable[[Row], float | None]
) -> list[Line]:
    """The measured values for each image, by model and budget."""
    series: dict[str, dict[int, float]] = {}
    for row in rows:
        value = value_of(row)
        if value:
            series.setdefault(_label(row), {})[row["size"]] = value / row["batch"]
    return [(label, *looks[label], values) for label, values in series.items()]


def _label(row: Row) -> str:
    name = row["model"].removesuffix("_224").removesuffix("_patch16")
    return name if row["num_cores"] is None else f"{name}, {row['num_cores']} cores"


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each line, which are the same in every picture."""
    kinds: dict[str, list[str]] = {"veca": [], "vit": [], "other": []}
    for row in sorted(rows, key=lambda row: -(row["num_cores"] or 0)):
        kind = "veca" if row["num_cores"] is not None else "vit" if row["model"].startswith("vit_") else "other"
        if _label(row) not in kinds[kind]:
            kinds[kind].append(_label(row))
    markers = itertools.cycle(_MARKERS)
    palettes = (("veca", BLUES), ("vit", _REDS), ("other", _OTHERS))
    return {
        label: (colors[i % len(colors)], next(markers))
        for kind, colors in palettes
        for i, label in enumerate(kinds[kind])
    }


def _panel(axes: Axes, lines: Sequence[Line], label: str, unit: str) -> None:
    resolution_axis(axes, sorted({size for *_, values in lines for size in values}))
    axes.set_ylabel(label)
    if not lines:  # compiled models on a CPU hide their memory
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        return
    for _, color, marker, values in lines:
        draw_line(axes, values, color, marker, width=2.2 if color in BLUES or color in _REDS else 1.4)
    log_ticks(axes, EngFormatter(unit))
    label_ends(axes, [(name, color, values) for name, color, _, values in lines])
