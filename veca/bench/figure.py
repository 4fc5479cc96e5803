"""The curves: time and memory an image against resolution, both axes logarithmic. Needs matplotlib.

VECA is blue, darker for more cores, plain ViTs are vermillion, the others take further colours of Okabe and Ito;
each line has its own marker and its name at its end.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

__all__ = ["draw_curves"]

_BLUES = ("#0b3c6f", "#1f6aa8", "#4a90c4", "#7fb8da")
_REDS = ("#d55e00", "#a34700")
_OTHERS = ("#009e73", "#cc79a7", "#b8860b", "#6a4c93", "#7f7f7f", "#5b9a2f")
_MARKERS = "osD^vP*X<>"
_INK, _GREY, _FAINT = "#1b1f24", "#5b6570", "#d9dee3"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}

Row = Mapping[str, Any]
Line = tuple[str, str, str, dict[int, float]]  # name, colour, marker, pixels -> value


def draw_curves(rows: Iterable[Row], folder: Path, name: str) -> list[Path]:
    """One picture for each pass and mode that has a measured case: <name>-<pass>-<mode>.png.

    Args:
        rows: of `run_bench`.
        folder: where the pictures go.
        name: their stem.
    """
    rows = list(rows)
    caption = next((f"{row['device']}, torch {row['torch']}" for row in rows if row["kind"] == "environment"), "")
    measured = [row for row in rows if row["kind"] == "backbone" and row["status"] == "ok"]
    looks = _looks(measured)
    paths = []
    for pass_, mode, dtype in dict.fromkeys((row["pass"], row["mode"], row["dtype"]) for row in measured):
        group = [row for row in measured if (row["pass"], row["mode"], row["dtype"]) == (pass_, mode, dtype)]
        path = folder / f"{name}-{pass_}-{mode}.png"
        with matplotlib.rc_context(_STYLE):
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
    figure.text(0.01, 0.015, caption, fontsize=8.5, color=_GREY)
    figure.subplots_adjust(left=0.078, right=0.868, top=0.92, bottom=0.16, wspace=0.66)
    return figure


def _lines(
    rows: Sequence[Row], looks: Mapping[str, tuple[str, str]], value_of: Callable[[Row], float | None]
) -> list[Line]:
    """The measured values an image, by model and budget."""
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
    """Colour and marker of each line, the same in every picture."""
    kinds: dict[str, list[str]] = {"veca": [], "vit": [], "other": []}
    for row in sorted(rows, key=lambda row: -(row["num_cores"] or 0)):
        kind = "veca" if row["num_cores"] is not None else "vit" if row["model"].startswith("vit_") else "other"
        if _label(row) not in kinds[kind]:
            kinds[kind].append(_label(row))
    markers = itertools.cycle(_MARKERS)
    palettes = (("veca", _BLUES), ("vit", _REDS), ("other", _OTHERS))
    return {
        label: (colors[i % len(colors)], next(markers))
        for kind, colors in palettes
        for i, label in enumerate(kinds[kind])
    }


def _panel(axes: Axes, lines: Sequence[Line], label: str, unit: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("image side, pixels")
    axes.set_ylabel(label)
    if not lines:  # compiled models on a CPU hide their memory
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_GREY)
        return
    for _, color, marker, values in lines:
        ours = color in _BLUES or color in _REDS
        xs = sorted(values)
        axes.plot(
            xs, [values[x] for x in xs], c=color, marker=marker, lw=2.2 if ours else 1.4, ms=6, mec="white", mew=0.7
        )
    sizes = sorted({size for *_, values in lines for size in values})
    spaced = [a for a, b in itertools.pairwise([*sizes, math.inf]) if b / a > 1.2]  # no label runs into the next
    axes.set_xticks(spaced, [str(size) for size in spaced])
    axes.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(axes, unit)
    axes.grid(True, which="major", c=_FAINT, lw=0.7)
    axes.set_axisbelow(True)
    _label_ends(axes, lines, sizes[-1])


def _plain_ticks(axes: Axes, unit: str) -> None:
    """1, 2, 5 times powers of ten, only the powers over many decades, with SI prefixes."""
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(unit))
    axes.set_ylim(low, high)


def _label_ends(axes: Axes, lines: Sequence[Line], right: int) -> None:
    """Names right of the axes in the order of the lines' ends, a step apart at least, joined to them by a hair."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    ends = sorted((math.log(values[max(values)]), max(values), label, color) for label, color, _, values in lines)
    step = 0.052 * (high - low)
    places: list[float] = []
    for end, *_ in ends:
        places.append(max(end, places[-1] + step) if places else end)
    overflow = max(0.0, places[-1] - high)
    for i in reversed(range(len(places))):  # push down what ran over the top
        places[i] = min(places[i], high if i == len(places) - 1 else places[i + 1] - step) if overflow else places[i]
    edge = right * (right / min(min(values) for *_, values in lines)) ** 0.06
    for place, (end, size, label, color) in zip(places, ends, strict=True):
        axes.plot([size, edge], [math.exp(end), math.exp(place)], c=color, lw=0.6, alpha=0.6, clip_on=False)
        axes.annotate(
            label,
            (edge, math.exp(place)),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9.5,
            annotation_clip=False,
        )
    axes.set_xlim(right=edge)
