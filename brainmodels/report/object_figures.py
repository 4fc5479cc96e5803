"""Figures of decoded objects: a table of confusions, regions, and accuracy over time. Each writes one PNG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from veca.report.curves import BLUES, FAINT, GREY, INK, STYLE, VERMILLION

from .figures import _pyplot

__all__ = ["MOST_CLASSES", "confusion_table", "time_courses"]

MOST_CLASSES = 40  # with more, names of classes cannot be read
_ONSETS = {"static": "picture", "dynamic": "video"}


def confusion_table(counts: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> None:
    """Draw how many objects of each true class (rows) got each answer (columns), one panel for each of several.

    Args:
        counts: Numbers (K, K) by the title of the panel.
        names: Names of the classes, (K,).
        path: PNG file to write.
    """
    plt = _pyplot()
    labels = [name.replace("_", " ") for name in names]
    side = max(2.4, 0.18 * len(names))
    width, height = max(9.5, 1.5 + len(counts) * side), side + 1.2
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(counts), figsize=(width, height), squeeze=False, layout="constrained")
        for spot, (title, table) in zip(axes[0], counts.items(), strict=True):
            share = table / table.sum(1, keepdims=True).clip(1)
            spot.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for row, column in np.argwhere(table > 0):
                color = "white" if share[row, column] > 0.6 else INK
                spot.text(column, row, str(table[row, column]), ha="center", va="center", fontsize=7.5, color=color)
            small = 8 if len(names) > 12 else 9.5
            spot.set_xticks(range(len(names)), labels, rotation=90, fontsize=small)
            spot.set_yticks(range(len(names)), labels if spot is axes[0, 0] else [""] * len(names), fontsize=small)
            spot.tick_params(length=0)
            spot.set_title(title, fontsize=10.5, loc="left")
            spot.set_xlabel("answer")
            for edge in spot.spines.values():
                edge.set_color(FAINT)
        axes[0, 0].set_ylabel("true class")
        figure.savefig(path)
        plt.close(figure)


def time_courses(courses: Sequence, path: Path, drops: Mapping[str, Sequence] | None = None) -> None:
    """Draw the accuracy of a classifier of each window, one panel a stream, and what the model loses without it.

    Args:
        courses: `TimeCourse` of each stream.
        path: PNG file to write.
        drops: Rows of occlusion by windows of each stream, whose parts have a window. None leaves them out.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(courses), figsize=(9.5, 3.5), squeeze=False, layout="constrained")
        for spot, course in zip(axes[0], courses, strict=True):
            spot.fill_between(course.times, course.low, course.high, color=BLUES[1], alpha=0.15, lw=0)
            spot.plot(course.times, course.accuracy, c=BLUES[1], lw=1.7, label="accuracy of one window, linear")
            spot.axhline(course.chance, c=GREY, lw=1.0, ls=(0, (5, 3)), label="chance")
            spot.axvline(0, c=INK, lw=0.9)
            for number, row in enumerate((drops or {}).get(course.stream, ())):
                low, high = row.part.window
                label = "probability that the model loses without the window" if number == 0 else None
                spot.plot([low, high], [row.difference.value] * 2, c=VERMILLION, lw=3, label=label)
            spot.annotate(
                _ONSETS.get(course.stream, "onset"),
                (0, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=9,
                color=GREY,
            )
            spot.set(xlabel=f"seconds from the onset, {course.stream} stream", ylabel="share")
            spot.grid(True, c=FAINT, lw=0.7)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=3)
        figure.savefig(path)
        plt.close(figure)
