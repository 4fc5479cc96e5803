"""Curves against resolution, as the demo and `veca bench` draw them: logarithmic, each line named at its end.

Colours are Okabe and Ito's: blues for VECA, darker for more cores, vermillion for plain ViTs. Needs matplotlib.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

__all__ = [
    "BLUES",
    "FAINT",
    "GREY",
    "INK",
    "STYLE",
    "VERMILLION",
    "Series",
    "draw_line",
    "label_ends",
    "log_ticks",
    "resolution_axis",
]

BLUES = ("#0b3c6f", "#1f6aa8", "#4a90c4", "#7fb8da")
VERMILLION = "#d55e00"
INK, GREY, FAINT = "#1b1f24", "#5b6570", "#d9dee3"
STYLE = {
    "figure.dpi": 150,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
}

Series = Mapping[int, float]  # pixels -> value


def draw_line(axes: Axes, series: Series, color: str, marker: str, width: float = 1.6) -> None:
    """One line with its markers."""
    sizes = sorted(series)
    axes.plot(sizes, [series[size] for size in sizes], c=color, marker=marker, lw=width, ms=5.5, mec="white", mew=0.7)


def resolution_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """The horizontal axis: a tick at each of the ascending sizes, unless it would run into the next."""
    axes.set_xscale("log")
    spaced = [a for a, b in itertools.pairwise([*sizes, math.inf]) if b / a > 1.2]
    axes.set_xticks(spaced, [str(size) for size in spaced])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("image side, pixels")
    axes.grid(True, axis="both", which="major", c=FAINT, lw=0.7)
    axes.set_axisbelow(True)


def log_ticks(axes: Axes, text: Callable[[float], str]) -> None:
    """The vertical axis: 1, 2, 5 times powers of ten, only the powers over many decades, written by `text`."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.set_ylim(low, high)


def label_ends(axes: Axes, lines: Sequence[tuple[str, str, Series]]) -> None:
    """Names right of the axes in the order of the lines' ends, a step apart at least, joined to them by a hair.

    Args:
        axes: both axes as they will stay.
        lines: (name, colour, values); lines without values have no name.
    """
    ends = sorted((math.log(values[max(values)]), max(values), name, color) for name, color, values in lines if values)
    if not ends:
        return
    low, high = (math.log(limit) for limit in axes.get_ylim())
    step = 0.055 * (high - low)
    places: list[float] = []
    for end, *_ in ends:
        places.append(max(end, places[-1] + step) if places else end)
    ceiling = high
    for i in reversed(range(len(places))):  # push down what ran over the top
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - step
    sizes = [size for *_, values in lines for size in values]
    edge = max(sizes) * (max(sizes) / min(sizes)) ** 0.06
    for place, (end, size, name, color) in zip(places, ends, strict=True):
        axes.plot([size, edge], [math.exp(end), math.exp(place)], c=color, lw=0.6, alpha=0.6, clip_on=False)
        axes.annotate(
            name,
            (edge, math.exp(place)),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9.5,
            annotation_clip=False,
        )
    axes.set_xlim(right=edge)
