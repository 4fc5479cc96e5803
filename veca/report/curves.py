"""Curves against resolution for the demo and `veca bench`. Both axes are logarithmic, and a name ends each line.

The colours are those of Okabe and Ito. VECA is blue, darker with more cores, and plain ViTs are vermillion. The module
needs matplotlib.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
STYLE: dict[Any, Any] = {  # matplotlib names its keys one by one
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
    """Draw one line with its markers."""
    sizes = sorted(series)
    axes.plot(sizes, [series[size] for size in sizes], c=color, marker=marker, lw=width, ms=5.5, mec="white", mew=0.7)


def resolution_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Set up the horizontal axis. Each of the ascending sizes gets a tick unless its label would touch the next one."""
    axes.set_xscale("log")
    spaced = [a for a, b in itertools.pairwise([*sizes, math.inf]) if b / a > 1.2]
    axes.set_xticks(spaced, [str(size) for size in spaced])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("image side, pixels")
    axes.grid(True, axis="both", which="major", c=FAINT, lw=0.7)
    axes.set_axisbelow(True)


def log_ticks(axes: Axes, text: Callable[[float], str]) -> None:
    """Set up the vertical axis with ticks at 1, 2 and 5 times powers of ten.

    Args:
        axes: Axes with all lines drawn.
        text: Function that writes the value of a tick. Over three decades or more, only powers of ten have ticks.
    """
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
    """Write the names of the lines right of the axes, in the order of their ends, with a thin line to each end.

    Args:
        axes: Axes whose limits do not change any more.
        lines: Name, colour and values of each line. A line without values gets no name.
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
    for i in reversed(range(len(places))):  # move names down that are above the top
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
