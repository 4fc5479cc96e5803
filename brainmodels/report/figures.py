"""Figures of an evaluation. Each function writes one PNG; numbers come in, nothing is computed but what is drawn.

Colours are those of `veca.curves`. Needs matplotlib, and nilearn for maps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from veca.curves import BLUES, FAINT, GREY, INK, STYLE, VERMILLION

from ..errors import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..data import VoxelSpace

__all__ = ["Bar", "PictureRow", "brain_map", "curves", "picture_grid", "roi_bars", "voxel_scores"]

_MANY = 3000  # voxels beyond which points hide each other
PALETTE = (BLUES[0], VERMILLION, BLUES[2], "#7d5ba6", "#4c9f62", GREY)


class Bar(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


class PictureRow(NamedTuple):
    """A row of a grid: its name, pictures uint8 (H, W, 3), and a line below each."""

    name: str
    pictures: Sequence[np.ndarray]
    captions: Sequence[str]


def voxel_scores(scores: np.ndarray, ceiling: np.ndarray | None, path: Path, name: str = "r") -> None:
    """Scores of single voxels: their histogram, and each against the best that its noise allows.

    Args:
        scores: (V,) correlations; NaN where a voxel has none.
        ceiling: (V,) largest correlation that the noise allows, sqrt(NC); None draws the histogram alone.
        path: of the PNG.
        name: of the score, for the axes.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 1 if ceiling is None else 2, figsize=(9.5, 3.6), squeeze=False, layout="constrained"
        )
        left = axes[0, 0]
        bins = np.linspace(min(-0.2, np.nanmin(scores)), max(0.9, np.nanmax(scores)), 56)
        left.hist(scores, bins, color=BLUES[1], label="measured")
        if ceiling is not None:
            left.hist(ceiling, bins, histtype="step", color=INK, lw=1.1, label="ceiling of the same voxels")
        left.axvline(0, c=GREY, lw=0.8)
        left.set(xlabel=f"{name} of a voxel", ylabel="voxels")
        left.legend(frameon=False)
        if ceiling is not None:
            right = axes[0, 1]
            top = float(np.nanmax(ceiling)) * 1.05
            if len(scores) < _MANY:
                right.scatter(ceiling, scores, s=9, color=BLUES[1], alpha=0.6, lw=0)
            else:
                right.hexbin(ceiling, scores, gridsize=48, bins="log", cmap="Blues", mincnt=1, lw=0.1)
            right.plot([0, top], [0, top], c=INK, lw=0.9)
            right.annotate("ceiling", (top * 0.97, top * 0.98), ha="right", va="bottom", color=INK, fontsize=9.5)
            right.axhline(0, c=GREY, lw=0.8)
            right.set(xlabel=f"largest {name} that the noise allows", ylabel=f"{name} of a voxel")
        figure.savefig(path)
        plt.close(figure)


def roi_bars(values: Mapping[str, Mapping[str, Bar]], path: Path, ylabel: str, line: float | None = None) -> None:
    """A group of bars for each region, a bar for each model.

    Args:
        values: by model, then by region; whiskers are the intervals.
        path: of the PNG.
        ylabel: of the values.
        line: drawn across, such as a ceiling of 1.
    """
    plt = _pyplot()
    regions = list(dict.fromkeys(region for bars in values.values() for region in bars))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(6.0, 1.3 * len(regions) + 2), 3.6), layout="constrained")
        width = 0.8 / len(values)
        for number, (model, bars) in enumerate(values.items()):
            shown = [region for region in regions if region in bars]
            x = np.array([regions.index(region) for region in shown]) + (number - (len(values) - 1) / 2) * width
            heights = np.array([bars[region].value for region in shown])
            whiskers = np.array([[bars[r].value - bars[r].low, bars[r].high - bars[r].value] for r in shown]).T
            axes.bar(x, heights, width * 0.92, color=_color(number), label=model)
            axes.errorbar(x, heights, np.maximum(whiskers, 0), fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        _reference_line(axes, line, "ceiling")
        axes.axhline(0, c=GREY, lw=0.8)
        axes.set_xticks(range(len(regions)), regions)
        axes.set_ylabel(ylabel)
        axes.grid(True, axis="y", c=FAINT, lw=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(path)
        plt.close(figure)


def curves(
    series: Mapping[str, Mapping[float, Bar]],
    path: Path,
    xlabel: str,
    ylabel: str,
    lines: Mapping[str, float] | None = None,
    logarithmic: bool = False,
) -> None:
    """Values against a number, such as train images or core budgets, with their intervals as bands.

    Args:
        series: by name, then by the number.
        path: of the PNG.
        xlabel, ylabel: of the axes.
        lines: levels drawn across by name, such as a ceiling, chance, or a model without that number.
        logarithmic: of the horizontal axis.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
        for number, (name, points) in enumerate(series.items()):
            x = sorted(points)
            color = _color(number)
            axes.plot(x, [points[i].value for i in x], "o-", c=color, lw=1.8, ms=5, mec="white", mew=0.7, label=name)
            axes.fill_between(x, [points[i].low for i in x], [points[i].high for i in x], color=color, alpha=0.15, lw=0)
        for number, (name, level) in enumerate((lines or {}).items()):
            axes.axhline(level, c=_color(len(series) + number), lw=1.1, ls=(0, (5, 3)), label=name)
        if logarithmic:
            axes.set_xscale("log")
        ticks = sorted({x for points in series.values() for x in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(True, c=FAINT, lw=0.7)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(path)
        plt.close(figure)


def picture_grid(rows: Sequence[PictureRow], path: Path) -> None:
    """Pictures in rows, named at the left, a line of words below each."""
    plt = _pyplot()
    columns = max(len(row.pictures) for row in rows)
    with plt.rc_context(STYLE):
        size = (1.15 * columns + 1.3, 1.32 * len(rows))
        figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
        for line, row in zip(axes, rows, strict=True):
            for spot in line:
                spot.set_axis_off()
            for spot, picture, caption in zip(line, row.pictures, row.captions, strict=False):
                spot.imshow(picture)
                spot.set_title(caption, fontsize=8, color=GREY, pad=2)
            line[0].annotate(
                row.name, (-0.12, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=9.5, color=INK
            )
        figure.savefig(path)
        plt.close(figure)


def brain_map(scores: np.ndarray, space: "VoxelSpace", path: Path, title: str = "") -> None:
    """Scores (V,) on three cuts through the volume of a space that has an affine."""
    try:
        from nilearn.plotting import plot_stat_map
    except ImportError as error:
        raise need("nilearn", "a map of the brain") from error
    plt = _pyplot()
    image = space.to_image(np.nan_to_num(scores))
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.5, 3.0))
        limit = float(np.nanmax(np.abs(scores)))
        plot_stat_map(
            image,
            bg_img=None,
            figure=figure,
            title=title,
            cmap="RdBu_r",
            vmax=limit,
            symmetric_cbar=True,
            black_bg=False,
            annotate=False,
            draw_cross=False,
        )
        figure.savefig(path)
        plt.close(figure)


def _reference_line(axes: "Axes", level: float | None, name: str) -> None:
    if level is not None:
        axes.axhline(level, c=INK, lw=0.9, ls=(0, (5, 3)))
        axes.annotate(name, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)


def _color(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise need("matplotlib", "a figure") from error
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot

    return matplotlib.pyplot
