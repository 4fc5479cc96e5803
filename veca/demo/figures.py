"""The pictures of the report. Needs matplotlib, which comes with the extra `brain`.

Colours are Okabe and Ito's vermillion for the ViT and blues, darker for more cores, for VECA; each line also has
its own marker and its name at its end.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from torch import Tensor

from ..features import AttentionMaps
from ..visualize import core_shares, draw_core_map, draw_image, map_limit

__all__ = ["Series", "draw_memory", "draw_photograph", "draw_times"]

_VIT = "#d55e00"
_BLUES = ("#7fb8da", "#4a90c4", "#1f6aa8", "#0b3c6f")
_MARKERS = ("v", "D", "^", "o")
_INK, _GREY, _FAINT = "#1b1f24", "#5b6570", "#d9dee3"

Series = Mapping[int, float]  # pixels -> value


@contextmanager
def _style() -> Iterator[None]:
    settings = {
        "figure.dpi": 150,
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
    with matplotlib.rc_context(settings):
        yield


def draw_times(
    path: Path,
    vit: Series,
    veca: Mapping[int, Series],
    slopes: Mapping[int | None, float],
    predicted: Series,
    caption: str,
) -> None:
    """Time against resolution, both logarithmic, and beside it how many times faster VECA is.

    Args:
        path: PNG to write.
        vit: seconds of the ViT.
        veca: seconds by number of cores.
        slopes: exponents of time against patches by number of cores, None for the ViT.
        predicted: seconds of the ViT where it was not run.
        caption: machine and precision.
    """
    with _style():
        figure = Figure(figsize=(11.2, 4.7))
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        ends = []
        for color, marker, cores in _veca_looks(veca):
            _line(left, veca[cores], color, marker)
            ends.append((veca[cores], f"VECA, {cores} cores", slopes.get(cores), color))
        _line(left, vit, _VIT, "s", width=2.2)
        ends.append((vit, "ViT", slopes.get(None), _VIT))
        beyond = {size: value for size, value in sorted(predicted.items()) if vit and size > max(vit)}
        if beyond:
            left.plot([max(vit), *beyond], [vit[max(vit)], *beyond.values()], ls=":", c=_VIT, zorder=1)
            left.plot(list(beyond), list(beyond.values()), "s", c=_VIT, mfc="white", ms=6)
            style = {"ha": "right", "va": "center", "color": _VIT, "fontsize": 9}
            end = (max(beyond), beyond[max(beyond)])
            left.annotate("predicted", end, xytext=(-9, 0), textcoords="offset points", **style)
        _label_ends(left, ends)
        _resolution_axis(left, sorted({*vit, *beyond, *(s for line in veca.values() for s in line)}))
        left.set_yscale("log")
        _plain_log_ticks(left, _seconds)
        left.set_ylabel("time of a forward pass")
        left.set_title("Time against resolution", loc="left", fontweight="bold", fontsize=12)
        _draw_ratios(right, vit, veca)
        figure.text(0.01, 0.01, caption, fontsize=8.5, color=_GREY)
        figure.subplots_adjust(left=0.085, right=0.925, top=0.91, bottom=0.19, wspace=0.72)
        _save(figure, path)


def draw_memory(path: Path, vit: Series, veca: Mapping[int, Series], caption: str) -> None:
    """Peak memory against resolution; arguments as in `draw_times`, in bytes."""
    with _style():
        figure = Figure(figsize=(7.4, 4.7))
        axes = figure.subplots()
        ends = []
        for color, marker, cores in _veca_looks(veca):
            _line(axes, veca[cores], color, marker)
            ends.append((veca[cores], f"VECA, {cores} cores", None, color))
        _line(axes, vit, _VIT, "s", width=2.2)
        ends.append((vit, "ViT", None, _VIT))
        _label_ends(axes, ends)
        _resolution_axis(axes, sorted({*vit, *(s for line in veca.values() for s in line)}))
        axes.set_yscale("log")
        _plain_log_ticks(axes, _bytes)
        axes.set_ylabel("peak memory beyond weights and input")
        axes.set_title("Memory against resolution", loc="left", fontweight="bold", fontsize=12)
        figure.text(0.01, 0.01, caption, fontsize=8.5, color=_GREY)
        figure.subplots_adjust(left=0.12, right=0.78, top=0.91, bottom=0.19)
        _save(figure, path)


def draw_photograph(
    path: Path,
    image: Tensor,
    maps: Mapping[int, AttentionMaps],
    cores: Sequence[int],
    colors: Mapping[int, Tensor],
) -> None:
    """One photograph: the cores on it, what some of them read in some blocks, and its patch features.

    Args:
        path: PNG to write.
        image: (3, size, size) in [0, 1], what the maps were computed on.
        maps: attention maps by number of the block, counted from 1.
        cores: which cores to show, in columns.
        colors: features as colours (rows, cols, 3), by pixels of the image they come from.
    """
    shares = {block: core_shares(record, cores) for block, record in maps.items()}
    limit = max(map_limit(share) for share in shares.values())
    last, width, margin, gap = max(maps), 12.0, 0.12, 0.16
    side = min((width - 2 * margin - gap * len(colors)) / (1 + len(colors)), 2.9)  # of the photograph, inches
    label, bar_width = 0.32, 0.78
    cell = (width - 2 * margin - label - bar_width) / len(cores) - 0.07  # of a core map
    maps_top = 0.36 + side + 0.46
    height = maps_top + len(maps) * (cell + 0.07) + 0.32
    with _style():
        figure = Figure(figsize=(width, height))

        def box(left: float, top: float, w: float, h: float) -> Axes:
            return figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))

        photo = box(margin, 0.36, side, side)
        draw_image(photo, image, maps[last].core_xy[0])
        photo.set_title(f"{maps[last].core_xy.shape[1]} cores, block {last}", fontsize=10)
        for column, (size, rgb) in enumerate(colors.items(), 1):
            axes = box(margin + column * (side + gap), 0.36, side, side)
            axes.imshow(rgb.cpu().numpy(), interpolation="nearest")
            axes.set_axis_off()
            rows, cols = rgb.shape[:2]
            axes.set_title(f"features, {size} px: {rows} × {cols} patches", fontsize=10 if len(colors) < 4 else 9)
        for row, (block, record) in enumerate(maps.items()):
            for column, core in enumerate(cores):
                left = margin + label + column * (cell + 0.07)
                axes = box(left, maps_top + row * (cell + 0.07), cell, cell)
                shown = draw_core_map(axes, shares[block][column].cpu(), record.core_xy[0, core], limit)
                if row == 0:
                    axes.set_title(f"core {core}", fontsize=10)
                if column == 0:
                    axes.set_ylabel(f"block {block}", fontsize=10, labelpad=6)
        bar = figure.colorbar(
            shown, cax=box(width - margin - bar_width + 0.12, maps_top, 0.12, len(maps) * (cell + 0.07) - 0.07)
        )
        _share_ticks(bar, limit)
        rows, cols = next(iter(maps.values())).grid_size
        text = (
            f"Untrained weights. Maps: {rows} × {cols} patches, in multiples of an even spread; the dot is the core. "
            "Colours: three principal components, one basis for all sizes."
        )
        figure.text(margin / width, 0.09 / height, text, fontsize=8.5, color=_GREY)
        _save(figure, path)


def _draw_ratios(axes: Axes, vit: Series, veca: Mapping[int, Series]) -> None:
    ends = []
    for color, marker, cores in _veca_looks(veca):
        ratios = {size: vit[size] / seconds for size, seconds in veca[cores].items() if size in vit}
        _line(axes, ratios, color, marker)
        ends.append((ratios, f"{cores} cores", None, color))
    _label_ends(axes, ends)
    _resolution_axis(axes, sorted(vit))
    axes.set_yscale("log")
    values = [value for ratios, *_ in ends for value in ratios.values()] + [1.0]
    axes.set_ylim(min(values) / 1.35, max(values) * 1.25)
    axes.axhline(1, c=_GREY, lw=1)
    axes.axhspan(axes.get_ylim()[0], 1, color=_VIT, alpha=0.08, lw=0)
    axes.text(0.98, 0.02, "VECA slower", transform=axes.transAxes, ha="right", color=_VIT, fontsize=9.5)
    _plain_log_ticks(axes, lambda value: f"{value:g}×")
    axes.set_ylabel("ViT time / VECA time")
    axes.set_title("Speed-up", loc="left", fontweight="bold", fontsize=12)


def _veca_looks(veca: Mapping[int, Series]) -> list[tuple[str, str, int]]:
    """Colour, marker, cores of each line, few cores first; the darkest blue is the largest budget."""
    budgets = sorted(veca)
    return [
        (_BLUES[max(len(_BLUES) - len(budgets) + i, 0)], _MARKERS[(len(_MARKERS) - len(budgets) + i) % 4], cores)
        for i, cores in enumerate(budgets)
    ]


def _line(axes: Axes, series: Series, color: str, marker: str, width: float = 1.6) -> None:
    sizes = sorted(series)
    axes.plot(sizes, [series[size] for size in sizes], c=color, marker=marker, lw=width, ms=5.5, mec="white", mew=0.7)


def _label_ends(axes: Axes, ends: Sequence[tuple[Series, str, float | None, str]]) -> None:
    """Names right of the lines' ends, pushed apart so that none covers another, each tied to its end."""
    drawn = [(line[max(line)], max(line), text, slope, color) for line, text, slope, color in ends if line]
    if not drawn:
        return
    sizes = [size for line, *_ in ends for size in line]
    right = max(sizes) * (max(sizes) / min(sizes)) ** 0.06
    drawn.sort(key=lambda end: end[0])
    low, high = math.log(min(end[0] for end in drawn)), math.log(max(end[0] for end in drawn))
    every = [math.log(value) for line, *_ in ends for value in line.values()]
    step = 0.075 * max(max(every) - min(every), 0.2)
    places = []
    for value, *_ in drawn:
        places.append(max(math.log(value), places[-1] + step if places else low - step * len(drawn)))
    excess = max(0.0, places[-1] - high) / 2 if len(places) > 1 else 0.0
    for place, (value, size, text, slope, color) in zip(places, drawn, strict=True):
        text += "" if slope is None else f"  $\\propto$ P$^{{{slope:.2f}}}$"
        axes.annotate(
            text,
            (size, value),
            xytext=(right, math.exp(place - excess)),
            textcoords="data",
            va="center",
            arrowprops=dict(arrowstyle="-", color=color, lw=0.7, relpos=(0, 0.5), shrinkA=2, shrinkB=5),
            color=color,
            fontsize=9.5,
            annotation_clip=False,
        )


def _resolution_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    spaced = [a for a, b in itertools.pairwise([*sizes, math.inf]) if b / a > 1.2]  # no label runs into the next
    axes.set_xticks(spaced, [str(size) for size in spaced])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("image side, pixels")
    axes.grid(True, axis="both", which="major", c=_FAINT, lw=0.7)
    axes.set_axisbelow(True)


def _plain_log_ticks(axes: Axes, text: Callable[[float], str]) -> None:
    """Ticks at 1, 2, 5 times powers of ten (fewer over many decades), written out."""
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)


def _share_ticks(bar: Colorbar, limit: float) -> None:
    ends = np.array([1 / limit, limit**-0.5, 1, limit**0.5, limit])
    bar.set_ticks(np.log(ends), labels=[f"{end:.2f}×" if limit < 4 else f"{end:.2g}×" for end in ends])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5)


def _seconds(value: float) -> str:
    return f"{value * 1e3:g} ms" if value < 1 else f"{value:g} s"


def _bytes(value: float) -> str:
    return f"{value / 1e6:g} MB" if value < 1e9 else f"{value / 1e9:g} GB"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
