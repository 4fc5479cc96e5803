"""Figures of epochs: scores over time with their chance, temporal generalisation, and maps of channels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.report.curves import FAINT, GREY, INK, STYLE

from ..data import SensorSpace
from ..errors import BrainDataError
from .figures import _color, _pyplot
from .topography import MONTAGE, _positions, placed

if TYPE_CHECKING:
    from ..evaluation.epoch_scores import Generalization
    from ..evaluation.epoch_statistics import Course

__all__ = ["course_figure", "drawable", "generalization_figure", "lines_of", "topographies", "windows_after"]

_LEAST_PLACED = 4  # channels of a map
_MAPS = 6


def course_figure(courses: "Mapping[str, Course]", path: Path, label: str) -> None:
    """Draw scores over time. The first has its interval, chance band and ceiling; bars show what is above chance.

    Args:
        courses: Courses by the name in the legend, which share times and chance level.
        path: PNG file to write.
        label: Label of the vertical axis.
    """
    plt = _pyplot()
    first = next(iter(courses.values()))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 3.9), layout="constrained")
        if first.chance_low is not None and first.chance_high is not None:
            name = f"range of {first.refits} fits to wrong pairs"
            axes.fill_between(
                first.times, first.chance_low, first.chance_high, color=GREY, alpha=0.25, lw=0, label=name
            )
        axes.axhline(first.level, c=GREY, lw=1.0, ls=(0, (5, 3)), label="chance")
        axes.axvline(0, c=INK, lw=0.9)
        if first.ceiling is not None:
            axes.plot(first.times, first.ceiling, c=INK, lw=1.1, ls=":", label="noise ceiling")
        axes.fill_between(first.times, first.low, first.high, color=_color(0), alpha=0.15, lw=0)
        for number, (name, course) in enumerate(courses.items()):
            axes.plot(course.times, course.values, c=_color(number), lw=1.7, label=name)
        low, high = axes.get_ylim()
        step = 0.035 * (high - low)
        for number, course in enumerate(courses.values()):
            width = course.times[1] - course.times[0] if len(course.times) > 1 else 0.01
            for start, stop in course.spans:
                ends = [start - width / 2, stop + width / 2]
                axes.plot(ends, [low - (number + 0.5) * step] * 2, c=_color(number), lw=3, solid_capstyle="butt")
        axes.set_ylim(low - (len(courses) + 0.5) * step, high)
        axes.set(xlabel="seconds from the onset of the image", ylabel=label)
        axes.margins(x=0.01)
        axes.grid(True, c=FAINT, lw=0.7)
        figure.legend(frameon=False, loc="outside upper left", ncols=3)
        figure.savefig(path)
        plt.close(figure)


def generalization_figure(found: "Generalization", path: Path) -> None:
    """Draw two-way identification by time of training and time of test. A line surrounds what is above chance."""
    plt = _pyplot()
    times, values = found.times, found.values
    half = (times[1] - times[0]) / 2 if len(times) > 1 else 0.01
    ends = (times[0] - half, times[-1] + half)
    most = max(float(np.abs(values - 0.5).max()), 0.02)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
        shown: dict[str, Any] = {"cmap": "RdBu_r", "vmin": 0.5 - most, "vmax": 0.5 + most, "origin": "lower"}
        image = axes.imshow(values, extent=(*ends, *ends), aspect="equal", **shown)
        above = values > found.threshold
        if above.any() and len(times) > 1:
            axes.contour(times, times, above.astype(float), levels=[0.5], colors=[INK], linewidths=0.9)
        axes.plot(ends, ends, c=GREY, lw=0.8, ls=(0, (4, 3)))
        axes.axvline(0, c=INK, lw=0.8)
        axes.axhline(0, c=INK, lw=0.8)
        axes.set(xlabel="tested at, seconds", ylabel="trained at, seconds", xlim=ends, ylim=ends)
        figure.colorbar(image, ax=axes, shrink=0.85, label="two-way identification")
        figure.savefig(path)
        plt.close(figure)


def windows_after(times: np.ndarray, width: float = 0.1, most: int = _MAPS) -> dict[str, np.ndarray]:
    """Masks of consecutive windows from the onset on, by their names such as "100–200 ms".

    Args:
        times: Middles of the bins in seconds, (L,).
        width: Length of a window in seconds.
        most: Largest number of windows. Later ones are left out.
    """
    found, start = {}, 0.0
    while start < times[-1] and len(found) < most:
        mask = (times >= start) & (times < start + width)
        if mask.any():
            found[f"{1000 * start:.0f}\N{EN DASH}{1000 * (start + width):.0f} ms"] = mask
        start += width
    return found


def drawable(space: SensorSpace) -> dict[str, str]:
    """Names in the montage of the channels that have a place on the head.

    Empty where fewer than four channels or half of them have one. Single names of another system may be those of a
    montage: C3 of BioSemi's 128 channels is none of the 10-20 system.
    """
    try:
        places = placed(space.ch_names, space.montage or MONTAGE, ())
    except (BrainDataError, ImportError):
        return {}
    return places if len(places) >= max(_LEAST_PLACED, len(space) / 2) else {}


def topographies(
    maps: Mapping[str, np.ndarray], space: SensorSpace, path: Path, name: str, limit: float | None = None
) -> tuple[str, ...]:
    """Draw several maps of the channels in a row, with one scale of colours.

    Args:
        maps: Values (C,) by the title of the map. NaN leaves a channel out of all maps.
        space: Sensors, four of which or more have a place.
        path: PNG file to write.
        name: Name of the values, for the colour bar.
        limit: Absolute value of the strongest colours. None means the largest drawn one.

    Returns:
        Names of the channels that were left out.

    Raises:
        BrainDataError: Fewer than four channels can be drawn.
        ImportError: MNE or matplotlib is not installed.
    """
    table = np.stack([np.asarray(values, np.float64) for values in maps.values()])  # (k, C)
    places = drawable(space)
    kept = [i for i, channel in enumerate(space.ch_names) if channel in places and np.isfinite(table[:, i]).all()]
    if len(kept) < _LEAST_PLACED:
        raise BrainDataError(f"expected {_LEAST_PLACED} channels or more with a place and a value, got {len(kept)}")
    import mne

    info = mne.create_info([places[space.ch_names[i]] for i in kept], space.sfreq, "eeg", verbose="error")
    info.set_montage(_positions(space.montage or MONTAGE), verbose="error")
    drawn = table[:, kept]
    most = limit or float(np.abs(drawn).max()) or 1.0
    plt = _pyplot()
    with plt.rc_context(STYLE):
        width = 1.55 * len(maps) + 0.9
        figure, axes = plt.subplots(1, len(maps), figsize=(width, 2.1), squeeze=False, layout="constrained")
        look: dict[str, Any] = {"cmap": "RdBu_r", "contours": 0, "sensors": "k.", "vlim": (-most, most)}
        image: Any = None
        for spot, title, values in zip(axes[0], maps, drawn, strict=True):
            image, _ = mne.viz.plot_topomap(values, info, axes=spot, show=False, **look)
            spot.set_title(title, fontsize=9.5)
        figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8, label=name)
        figure.savefig(path)
        plt.close(figure)
    return tuple(channel for i, channel in enumerate(space.ch_names) if i not in kept)


def lines_of(courses: "Sequence[Course]", most: int = 2) -> list[str]:
    """When each course is above chance, as text such as "84 to 340 ms". Spans after the first `most` are counted."""
    lines = []
    for course in courses:
        words = [
            f"{1000 * start:.0f} to {1000 * stop:.0f} ms" if stop > start else f"at {1000 * start:.0f} ms"
            for start, stop in course.spans
        ]
        more = [f"{len(words) - most} more"] if len(words) > most else []
        lines.append(", ".join([*words[:most], *more]) or "at no time")
    return lines
