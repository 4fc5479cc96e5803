"""Figures of an evaluation. Each function draws the numbers it gets and writes one PNG file.

The colours are those of `veca.report.curves`. The figures need matplotlib, and maps need nilearn.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from veca.report.curves import BLUES, FAINT, GREY, INK, STYLE, VERMILLION

from ..data.anatomy import anatomy_of, upright
from ..errors import BrainDataError, need

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..data import VoxelSpace

__all__ = [
    "CUTS",
    "Bar",
    "PictureRow",
    "brain_map",
    "curves",
    "picture_grid",
    "response_picture",
    "roi_bars",
    "voxel_scores",
]

CUTS = 4  # number of cuts in the small picture of a response
_SIDE, _GAP, _TEXT, _NAMES = 1.2, 0.14, 0.15, 1.4  # of a picture, between pictures, of a line, of names; inches
_MANY = 3000  # with more voxels, points hide each other
PALETTE = (BLUES[0], VERMILLION, BLUES[2], "#7d5ba6", "#4c9f62", "#c9a227", "#a3305e", "#8c6d4f")
GREYS = (GREY, "#a3adb6", "#d0d6dc")  # colours of controls


class Bar(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


class PictureRow(NamedTuple):
    """A row of a grid of pictures.

    Attributes:
        name: Name of the row.
        pictures: uint8 pictures, each of shape (H, W, 3).
        captions: Text for each picture, of one line or more.
        framed: Whether each picture has a frame.
    """

    name: str
    pictures: Sequence[np.ndarray]
    captions: Sequence[str] = ()
    framed: Sequence[bool] = ()


def voxel_scores(scores: np.ndarray, ceiling: np.ndarray | None, path: Path, name: str = "r") -> None:
    """Draw a histogram of the scores of voxels, and each score against the best that its noise allows.

    Args:
        scores: Correlations, shape (V,); NaN for a voxel without a score.
        ceiling: Largest correlations that the noise allows, sqrt(NC), shape (V,). None draws only the histogram.
        path: PNG file to write.
        name: Name of the score, for the axes.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 1 if ceiling is None else 2, figsize=(9.5, 3.6), squeeze=False, layout="constrained"
        )
        left = axes[0, 0]
        every = scores if ceiling is None else np.concatenate([scores, ceiling])
        low, high = min(-0.2, np.nanmin(scores)), max(0.9, np.nanmax(every))
        width = 0.05 if len(scores) < _MANY else 0.02
        bins = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
        left.hist(scores, bins, color=BLUES[2], ec="white", lw=0.4, label="measured")
        if ceiling is not None:
            left.hist(ceiling, bins, histtype="step", color=INK, lw=1.1, label="ceiling of the same voxels")
        left.axvline(0, c=GREY, lw=0.8, zorder=0.5)
        left.yaxis.get_major_locator().set_params(integer=True)
        left.set(xlabel=f"{name} of a voxel", ylabel="voxels")
        left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)
        if ceiling is not None:
            _against_ceiling(axes[0, 1], scores, ceiling, name)
        figure.savefig(path)
        plt.close(figure)


def _against_ceiling(axes: "Axes", scores: np.ndarray, ceiling: np.ndarray, name: str) -> None:
    """Draw the score of each voxel against the largest that its noise allows."""
    top = float(np.nanmax(ceiling)) * 1.05
    if len(scores) < _MANY:
        axes.scatter(ceiling, scores, s=11, color=BLUES[1], alpha=0.6, lw=0)
    else:
        axes.hexbin(ceiling, scores, gridsize=48, bins="log", cmap="Blues", mincnt=1, lw=0.1)
    axes.plot([0, top], [0, top], c=INK, lw=0.9)
    axes.annotate(
        "ceiling",
        (0.06 * top, 0.06 * top),
        xytext=(0, 3),
        textcoords="offset points",
        ha="left",
        va="bottom",
        rotation=45,
        rotation_mode="anchor",
        transform_rotates_text=True,
        fontsize=9.5,
    )
    axes.axhline(0, c=GREY, lw=0.8)
    axes.set(xlabel=f"largest {name} that the noise allows", ylabel=f"{name} of a voxel")


def roi_bars(
    values: Mapping[str, Mapping[str, Bar]],
    path: Path,
    ylabel: str,
    line: float | None = None,
    controls: Collection[str] = (),
) -> None:
    """Draw a group of bars for each region, with a bar for each model.

    Args:
        values: Values by model, then by region. The whiskers are the intervals.
        path: PNG file to write.
        ylabel: Label of the vertical axis.
        line: Value of a horizontal line, such as a ceiling of 1.
        controls: Names of the models to draw in grey.
    """
    plt = _pyplot()
    regions = list(dict.fromkeys(region for bars in values.values() for region in bars))
    colors = {name: _color(number) for number, name in enumerate(name for name in values if name not in controls)}
    colors |= {name: GREYS[i % len(GREYS)] for i, name in enumerate(name for name in values if name in controls)}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9.5, 3.9), layout="constrained")
        width = 0.82 / len(values)
        for number, (model, bars) in enumerate(values.items()):
            shown = [region for region in regions if region in bars]
            x = np.array([regions.index(region) for region in shown]) + (number - (len(values) - 1) / 2) * width
            heights = np.array([bars[region].value for region in shown])
            whiskers = np.array([[bars[r].value - bars[r].low, bars[r].high - bars[r].value] for r in shown]).T
            axes.bar(x, heights, width * 0.92, color=colors[model], label=model)
            axes.errorbar(x, heights, np.maximum(whiskers, 0), fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.8)
        if line is not None:
            axes.axhline(line, c=INK, lw=0.9, ls=(0, (5, 3)), zorder=0.9)
            _beside(axes, line, "ceiling")
        axes.axhline(0, c=GREY, lw=0.8)
        tilted = {"rotation": 40, "ha": "right"} if len(regions) > 12 else {}
        axes.set_xticks(range(len(regions)), regions, **tilted)
        axes.set_xlim(-0.55, len(regions) - 0.45)
        axes.set_ylabel(ylabel)
        axes.grid(True, axis="y", c=FAINT, lw=0.7)
        axes.set_axisbelow(True)
        widest = max(map(len, values))
        figure.legend(frameon=False, loc="outside upper left", ncols=min(len(values), 4 if widest < 24 else 3))
        figure.savefig(path)
        plt.close(figure)


def curves(
    series: Mapping[str, Mapping[Any, Bar]],
    path: Path,
    xlabel: str,
    ylabel: str,
    lines: Mapping[str, float] | None = None,
    logarithmic: bool = False,
) -> None:
    """Draw values against a number, such as train images or core budgets, with their intervals as bands.

    Args:
        series: Values by name, then by the number.
        path: PNG file to write.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis.
        lines: Horizontal lines by name, such as a ceiling, chance, or a model without that number.
        logarithmic: Whether the horizontal axis is logarithmic.
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
            color = {"ceiling": INK, "chance": GREY}.get(name) or _color(len(series) + number)
            axes.axhline(level, c=color, lw=1.1, ls=(0, (5, 3)), label=name)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.03 * (high - low))  # a level at the lowest value would be hidden by the axis
        if logarithmic:
            axes.set_xscale("log")
        ticks = _apart(sorted({x for points in series.values() for x in points}), logarithmic)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(True, c=FAINT, lw=0.7)
        widest = max(map(len, [*series, *(lines or {})]), default=0)
        figure.legend(frameon=False, loc="outside upper left", ncols=3 if widest < 30 else 2)
        figure.savefig(path)
        plt.close(figure)


def _apart(ticks: Sequence[float], logarithmic: bool) -> list[float]:
    """Leave out ticks whose label would touch the next one. The last tick stays."""
    places = np.log(ticks) if logarithmic else np.asarray(ticks, float)
    least, kept = 0.05 * (places[-1] - places[0]), [len(ticks) - 1]
    for i in reversed(range(len(ticks) - 1)):
        if places[kept[-1]] - places[i] >= least:
            kept.append(i)
    return [ticks[i] for i in reversed(kept)]


def picture_grid(groups: Sequence[Sequence[PictureRow]], path: Path) -> None:
    """Draw rows of pictures in groups. The name of a row is at the left, captions are below the pictures."""
    plt = _pyplot()
    columns = max(len(row.pictures) for rows in groups for row in rows)
    lines = [row for rows in groups for row in (*rows, None)][:-1]  # a narrow empty line between groups
    heights = [_GAP if row is None else _SIDE + _GAP + _TEXT * _deepest(row) for row in lines]
    width, height = _NAMES + columns * (_SIDE + _GAP), sum(heights)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        bottom = height
        for row, used in zip(lines, heights, strict=True):
            bottom -= used
            if row is None:
                continue
            for number in range(len(row.pictures)):
                left, low = _NAMES + number * (_SIDE + _GAP), bottom + used - _SIDE
                _picture(row, number, figure.add_axes((left / width, low / height, _SIDE / width, _SIDE / height)))
        figure.savefig(path, bbox_inches="tight", pad_inches=0.06)
        plt.close(figure)


def _deepest(row: PictureRow) -> int:
    """Lines of the longest caption of a row."""
    return max((1 + caption.count("\n") for caption in row.captions if caption), default=0)


def _picture(row: PictureRow, number: int, spot: "Axes") -> None:
    """One picture of a row, with what belongs to it; the first has the name of the row at its left."""
    from matplotlib.patches import Rectangle

    spot.set_axis_off()
    spot.imshow(row.pictures[number])
    around: dict[str, Any] = {"xycoords": "axes fraction", "color": INK}
    if number == 0:
        spot.annotate(row.name, (-0.12, 0.5), ha="right", va="center", fontsize=9.5, **around)
    if number < len(row.captions):
        around["color"] = GREY
        spot.annotate(row.captions[number], (0.5, -0.04), ha="center", va="top", fontsize=8, **around)
    if number < len(row.framed) and row.framed[number]:
        frame = Rectangle((0, 0), 1, 1, transform=spot.transAxes, fill=False, ec=BLUES[1], lw=2.4)
        spot.add_patch(frame).set_clip_on(False)


def brain_map(
    scores: np.ndarray,
    space: "VoxelSpace",
    path: Path,
    name: str = "r",
    cuts: int = 7,
    anatomy: Path | None = None,
) -> None:
    """Draw scores on cuts through a volume, from below to above, left at the left. NaN shows what is below.

    Args:
        scores: Scores of the voxels, shape (V,).
        space: Space of the voxels, with an affine.
        path: PNG file to write.
        name: Name of the score, for the colour bar.
        cuts: Largest number of cuts. They are at equal quantiles of the heights of the voxels.
        anatomy: NIfTI image in the same space, drawn below the scores. None leaves the ground white.

    Raises:
        BrainDataError: A space without an affine.
        LayoutError: An anatomy that cannot be read, or that does not cover the voxels.
    """
    try:
        from nilearn.plotting import plot_stat_map
    except ImportError as error:
        raise need("nilearn", "a map of the brain") from error
    if space.affine is None:
        raise BrainDataError(f"expected a space with an affine, got {space.name!r} without")
    plt = _pyplot()
    from matplotlib.colors import Normalize

    known = np.isfinite(scores)
    heights = (np.column_stack((space.index[known], np.ones(known.sum()))) @ space.affine.T)[:, 2]
    places = np.unique(np.round(np.quantile(heights, (np.arange(cuts) + 0.5) / cuts, method="nearest"), 3))
    limit, image = float(np.nanmax(np.abs(scores))), space.to_image(np.nan_to_num(scores))
    below = None if anatomy is None else anatomy_of(anatomy, space)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.5, 2.1))
        left, width = 0.03, 0.84 / len(places)
        for number, place in enumerate(places):
            axes = figure.add_axes((left + number * width, 0.06, 0.88 * width, 0.74))
            plot_stat_map(
                image,
                bg_img=below,
                axes=axes,
                display_mode="z",
                cut_coords=[place],
                colorbar=False,
                cmap="RdBu_r",
                vmax=limit,
                symmetric_cbar=True,
                black_bg=False,
                annotate=False,
                draw_cross=False,
                resampling_interpolation="nearest",  # an oblique volume would get a rim otherwise
            )
            figure.text(left + (number + 0.44) * width, 0.87, f"z = {place:.3g}", ha="center", fontsize=9.5)
        figure.text(left - 0.008, 0.43, "L", ha="right", va="center", fontsize=9.5)
        figure.text(left + 0.84, 0.43, "R", ha="left", va="center", fontsize=9.5)
        scale = plt.cm.ScalarMappable(Normalize(-limit, limit), "RdBu_r")
        figure.colorbar(scale, cax=figure.add_axes((0.91, 0.12, 0.012, 0.7)), label=name)
        figure.savefig(path)
        plt.close(figure)


def response_picture(values: np.ndarray, space: "VoxelSpace", limit: float, side: int = 240) -> np.ndarray:
    """Draw a response as a small picture of four axial cuts, from below to above; front at the top, left at the left.

    Red is above 0 and blue is below. NaN is white. Cuts are along the axes of the volume that are nearest to those of
    the head, which the affine tells. Without one, axes are taken as they are stored. A space without a volume shows its
    voxels in a square, in the order in which they are stored.

    Args:
        values: Response, shape (V,).
        space: Space of the voxels.
        limit: Absolute value of the strongest colours.
        side: Side of the picture in pixels.

    Returns:
        The picture, uint8, shape (side, side, 3).
    """
    if space.index.shape[1] == 3:
        volume = upright(space.volume(values), space.affine)
        used = np.argwhere(np.isfinite(volume))
        heights = np.quantile(used[:, 2], (np.arange(CUTS) + 0.5) / CUTS, method="nearest").astype(int)
        low, high = used.min(0), used.max(0) + 1
        volume = volume[low[0] : high[0], low[1] : high[1]]
        cuts = [np.pad(volume[..., z].T[::-1], 1, constant_values=np.nan) for z in heights]
        plane = np.block([cuts[:2], cuts[2:]])
    else:
        width = int(np.ceil(np.sqrt(len(values))))
        plane = np.pad(values, (0, width**2 - len(values)), constant_values=np.nan).reshape(width, width)
    plt = _pyplot()
    from matplotlib.colors import Normalize

    colors = plt.get_cmap("RdBu_r")(Normalize(-limit, limit, clip=True)(np.nan_to_num(plane)))[..., :3]
    colors[~np.isfinite(plane)] = 1
    longest = max(plane.shape)
    picture = np.ones((longest, longest, 3))
    top, left = ((longest - length) // 2 for length in plane.shape)
    picture[top : top + plane.shape[0], left : left + plane.shape[1]] = colors
    rows = np.arange(side) * longest // side
    return (255 * picture[rows][:, rows]).round().astype(np.uint8)


def _beside(axes: "Axes", level: float, name: str) -> None:
    """Write the name of a horizontal line right of the axes."""
    axes.annotate(
        name,
        (1.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=9.5,
        annotation_clip=False,
    )


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
