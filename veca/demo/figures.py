"""The pictures of the report. They need matplotlib, which is part of the extra `brain`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import Tensor

from ..inspect.visualize import core_shares, draw_core_map, draw_image, map_limit
from ..model.features import AttentionMaps
from ..report.curves import BLUES, GREY, STYLE, VERMILLION, Series, draw_line, label_ends, log_ticks, resolution_axis

__all__ = ["draw_memory", "draw_photograph", "draw_times"]

_MARKERS = ("o", "^", "D", "v")


def draw_times(
    path: Path,
    vit: Series,
    veca: Mapping[int, Series],
    slopes: Mapping[int | None, float],
    predicted: Series,
    caption: str,
) -> None:
    """Draw time against resolution, and beside it how many times faster VECA is.

    Args:
        path: PNG file to write.
        vit: Seconds of the ViT by image side.
        veca: Seconds of VECA by number of cores and image side.
        slopes: Exponents of time against patches by number of cores; the ViT has the key None.
        predicted: Seconds of the ViT at sizes where it was not run.
        caption: Machine and precision.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.7))
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        ends = []
        for color, marker, cores in _veca_looks(veca):
            draw_line(left, veca[cores], color, marker)
            ends.append((f"VECA, {cores} cores{_power(slopes.get(cores))}", color, veca[cores]))
        draw_line(left, vit, VERMILLION, "s", width=2.2)
        ends.append((f"ViT{_power(slopes.get(None))}", VERMILLION, vit))
        beyond = {size: value for size, value in sorted(predicted.items()) if vit and size > max(vit)}
        if beyond:
            left.plot([max(vit), *beyond], [vit[max(vit)], *beyond.values()], ls=":", c=VERMILLION, zorder=1)
            left.plot(list(beyond), list(beyond.values()), "s", c=VERMILLION, mfc="white", ms=6)
            style = {"ha": "right", "va": "center", "color": VERMILLION, "fontsize": 9}
            end = (max(beyond), beyond[max(beyond)])
            left.annotate("predicted", end, xytext=(-9, 0), textcoords="offset points", **style)
        resolution_axis(left, sorted({*vit, *beyond, *(s for line in veca.values() for s in line)}))
        log_ticks(left, EngFormatter("s"))
        label_ends(left, ends)
        left.set_ylabel("time of a forward pass")
        left.set_title("Time against resolution", loc="left", fontweight="bold", fontsize=12)
        _draw_ratios(right, vit, veca)
        figure.text(0.01, 0.01, caption, fontsize=8.5, color=GREY)
        figure.subplots_adjust(left=0.085, right=0.925, top=0.91, bottom=0.19, wspace=0.72)
        _save(figure, path)


def draw_memory(path: Path, vit: Series, veca: Mapping[int, Series], caption: str) -> None:
    """Draw peak memory in bytes against resolution. The arguments are those of `draw_times`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 4.7))
        axes = figure.subplots()
        ends = []
        for color, marker, cores in _veca_looks(veca):
            draw_line(axes, veca[cores], color, marker)
            ends.append((f"VECA, {cores} cores", color, veca[cores]))
        draw_line(axes, vit, VERMILLION, "s", width=2.2)
        ends.append(("ViT", VERMILLION, vit))
        resolution_axis(axes, sorted({*vit, *(s for line in veca.values() for s in line)}))
        log_ticks(axes, EngFormatter("B"))
        label_ends(axes, ends)
        axes.set_ylabel("peak memory beyond weights and input")
        axes.set_title("Memory against resolution", loc="left", fontweight="bold", fontsize=12)
        figure.text(0.01, 0.01, caption, fontsize=8.5, color=GREY)
        figure.subplots_adjust(left=0.12, right=0.78, top=0.91, bottom=0.19)
        _save(figure, path)


def draw_photograph(
    path: Path,
    image: Tensor,
    maps: Mapping[int, AttentionMaps],
    cores: Sequence[int],
    colors: Mapping[int, Tensor],
) -> None:
    """Draw one photograph with its cores, what some cores read in some blocks, and its patch features.

    Args:
        path: PNG file to write.
        image: Image of the maps, shape (3, size, size), values in [0, 1].
        maps: Attention maps by number of the block, counted from 1.
        cores: Numbers of the cores to show, in columns.
        colors: Features as colours, shape (rows, cols, 3), by the side of their image in pixels.
    """
    shares = {block: core_shares(record, cores) for block, record in maps.items()}
    limit = max(map_limit(share) for share in shares.values())
    last, width, margin, gap = max(maps), 12.0, 0.12, 0.16
    side = min((width - 2 * margin - gap * len(colors)) / (1 + len(colors)), 2.9)  # of the photograph, inches
    label, bar_width = 0.32, 0.78
    cell = (width - 2 * margin - label - bar_width) / len(cores) - 0.07  # of a core map
    maps_top = 0.36 + side + 0.46
    height = maps_top + len(maps) * (cell + 0.07) + 0.32
    with matplotlib.rc_context(STYLE):
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
        figure.text(margin / width, 0.09 / height, text, fontsize=8.5, color=GREY)
        _save(figure, path)


def _power(exponent: float | None) -> str:
    return "" if exponent is None else f"  $\\propto$ P$^{{{exponent:.2f}}}$"


def _draw_ratios(axes: Axes, vit: Series, veca: Mapping[int, Series]) -> None:
    ends = []
    for color, marker, cores in _veca_looks(veca):
        ratios = {size: vit[size] / seconds for size, seconds in veca[cores].items() if size in vit}
        draw_line(axes, ratios, color, marker)
        ends.append((f"{cores} cores", color, ratios))
    resolution_axis(axes, sorted(vit))
    values = [value for *_, ratios in ends for value in ratios.values()] + [1.0]
    axes.set_ylim(min(values) / 1.35, max(values) * 1.25)
    axes.axhline(1, c=GREY, lw=1)
    axes.axhspan(axes.get_ylim()[0], 1, color=VERMILLION, alpha=0.08, lw=0)
    axes.text(0.98, 0.02, "VECA slower", transform=axes.transAxes, ha="right", color=VERMILLION, fontsize=9.5)
    log_ticks(axes, lambda value: f"{value:g}×")
    label_ends(axes, ends)
    axes.set_ylabel("ViT time / VECA time")
    axes.set_title("Speed-up", loc="left", fontweight="bold", fontsize=12)


def _veca_looks(veca: Mapping[int, Series]) -> list[tuple[str, str, int]]:
    """Colour, marker and cores of each line. Few cores come first, so that the darkest blue is drawn on top."""
    budgets = sorted(veca, reverse=True)
    return [(BLUES[min(i, len(BLUES) - 1)], _MARKERS[i % 4], cores) for i, cores in enumerate(budgets)][::-1]


def _share_ticks(bar: Colorbar, limit: float) -> None:
    ends = np.array([1 / limit, limit**-0.5, 1, limit**0.5, limit])
    bar.set_ticks(np.log(ends).tolist(), labels=[f"{end:.2f}×" if limit < 4 else f"{end:.2g}×" for end in ends])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
