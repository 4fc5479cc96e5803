"""Runs of a BIDS subject and the images of their trials, from `events.tsv`.

runs = read_runs(raw, root, folder, choice)    # in the order of sessions and runs
runs[0].images                                 # ids of the images, in the order of the onsets
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from veca.data.names import composed

from ..errors import IdError, LayoutError, near_names
from ._bids_names import BidsName, same_label
from ._files import read_table

__all__ = ["EventChoice", "Run", "read_runs", "session_numbers"]

_ABSENT = ("", "n/a")


@dataclass(frozen=True)
class EventChoice:
    """Which lines of the events are trials.

    Attributes:
        task: Name of the task. None takes the only one.
        sessions: Labels of the sessions. None takes all.
        trial_types: Values of the column `trial_type` that are trials. None takes every line that names an image.
        stim: Column of the image.
        test: Column that marks test images, or None.
    """

    task: str | None = None
    sessions: Sequence[str] | None = None
    trial_types: Sequence[str] | None = None
    stim: str = "stim_file"
    test: str | None = None


@dataclass(frozen=True)
class Run:
    """One run with its trials.

    Attributes:
        name: File of the events.
        session: Label of the session, "" where the study has none.
        number: Number of the run.
        images: Image of each trial, in the order of the onsets.
        lines: Line of the file of each trial, from 2.
        test: Value of the column of test images for each trial, "" where there is no such column.
        left_out: Number of lines that are no trials.
    """

    name: BidsName
    session: str
    number: int
    images: Sequence[str]
    lines: Sequence[int]
    test: Sequence[str]
    left_out: int = 0
    types: Mapping[str, int] = field(default_factory=dict)


def read_runs(files: Sequence[BidsName], folder: Path, choice: EventChoice) -> list[Run]:
    """The runs of a subject, in the order of sessions and runs.

    Args:
        files: Raw files of the subject.
        folder: Folder of the subject, for messages.
        choice: Which of them, and which of their lines.

    Raises:
        LayoutError: Files or columns are missing, two files are of one run, or a value is not as BIDS has it.
        IdError: A name of an image leaves the folder of stimuli.
    """
    found = [name for name in files if name.suffix == "events" and name.extension == ".tsv"]
    if not found:
        raise LayoutError(f"expected *_events.tsv in {folder}, got none")
    found = _of_sessions(_of_task(found, folder, choice.task), folder, choice.sessions)
    numbers = session_numbers([name.get("ses") or "" for name in found], folder)
    by_run: dict[tuple[int, int], BidsName] = {}
    for name in found:
        key = numbers[name.get("ses") or ""], _run_number(name)
        if key in by_run:
            raise LayoutError(
                f"expected one events file of run {key[1]} of session {name.get('ses') or key[0]}, got "
                f"{by_run[key].path} and {name.path}; remove or rename one"
            )
        by_run[key] = name
    runs = [_read(name, number, choice) for (_, number), name in sorted(by_run.items())]
    _check_types(runs, folder, choice)
    return runs


def session_numbers(labels: Sequence[str], where: Path) -> dict[str, int]:
    """A number for each label of a session: the label where all are whole numbers, else the position from 1.

    Raises:
        LayoutError: Two labels are one number, such as 1 and 01.
    """
    labels = sorted(set(labels))
    if not all(label.isdecimal() for label in labels):
        return {label: number for number, label in enumerate(labels, 1)}
    numbers: dict[str, int] = {}
    for label in labels:
        if int(label) in numbers.values():
            raise LayoutError(f"expected one folder of session {int(label)} in {where}, got {', '.join(labels)}")
        numbers[label] = int(label)
    return numbers


def _of_task(names: Sequence[BidsName], folder: Path, task: str | None) -> list[BidsName]:
    tasks = sorted({name.get("task") or "" for name in names})
    if task is None and len(tasks) > 1:
        raise LayoutError(f"expected events of one task in {folder}, got {', '.join(tasks)}; choose one by task=")
    if task is not None and task not in tasks:
        raise LayoutError(
            f"expected a task of {folder} ({', '.join(tasks)}), got task={task!r}{near_names(task, tasks)}"
        )
    return [name for name in names if task in (None, name.get("task"))]


def _of_sessions(names: Sequence[BidsName], folder: Path, sessions: Sequence[str] | None) -> list[BidsName]:
    if sessions is None:
        return list(names)
    known = sorted({name.get("ses") or "" for name in names})
    for wanted in sessions:
        if not any(same_label(wanted, label) for label in known):
            raise LayoutError(f"expected sessions of {folder} ({', '.join(known)}), got sessions={wanted!r}")
    return [name for name in names if any(same_label(wanted, name.get("ses") or "") for wanted in sessions)]


def _run_number(name: BidsName) -> int:
    run = name.get("run") or "1"
    if not run.isdecimal():
        raise LayoutError(f"expected a whole number of run in the name of {name.path}, got {run!r}")
    return int(run)


def _read(name: BidsName, number: int, choice: EventChoice) -> Run:
    needed = ["onset", "duration", choice.stim]
    needed += [] if choice.trial_types is None else ["trial_type"]
    needed += [] if choice.test is None else [choice.test]
    table = read_table(name.path, needed)
    _check_times(name.path, table)
    kept, counts = [], {}
    for row, image in enumerate(table[choice.stim]):
        if choice.trial_types is None:
            if image.strip() not in _ABSENT:
                kept.append(row)
            continue
        kind = table["trial_type"][row].strip()
        counts[kind] = counts.get(kind, 0) + 1
        if kind in choice.trial_types:
            kept.append(row)
    images = [_image(table[choice.stim][row], name.path, row + 2, choice.stim) for row in kept]
    test = [table[choice.test][row].strip() if choice.test else "" for row in kept]
    left_out = len(table["onset"]) - len(kept)
    return Run(name, name.get("ses") or "", number, images, [row + 2 for row in kept], test, left_out, counts)


def _check_times(path: Path, table: Mapping[str, Sequence[str]]) -> None:
    """Check onsets and durations. Betas are in the order of time, so onsets must ascend."""
    before = -math.inf
    for line, (onset, duration) in enumerate(zip(table["onset"], table["duration"], strict=True), 2):
        start = _seconds(path, "onset", onset, line)
        if start < before:
            raise LayoutError(
                f"expected onsets that ascend in {path}, as betas are in the order of time, got {onset} in line {line} "
                f"after {before:g}; sort the lines by onset"
            )
        before = start
        if duration.strip() not in _ABSENT and _seconds(path, "duration", duration, line) < 0:
            raise LayoutError(f"expected a duration of 0 or more in line {line} of {path}, got {duration!r}")


def _seconds(path: Path, column: str, text: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LayoutError(f"expected seconds in the column {column}, line {line} of {path}, got {text!r}")
    return value


def _image(text: str, path: Path, line: int, column: str) -> str:
    """The id of an image: its path below the folder of stimuli."""
    name = composed(text.strip())
    if name in _ABSENT:
        raise LayoutError(
            f"expected an image of each trial in the column {column} of {path}, got {text!r} in line {line}; choose "
            "trials by trial_type="
        )
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name:
        raise IdError(
            f"expected a path below the folder of stimuli, with /, in the column {column}, line {line} of {path}, got "
            f"{text!r}"
        )
    return inside.as_posix()


def _check_types(runs: Sequence[Run], folder: Path, choice: EventChoice) -> None:
    if any(run.images for run in runs):
        for wanted in choice.trial_types or ():
            if not any(wanted in run.types for run in runs):
                raise LayoutError(_no_type(wanted, runs, folder))
        return
    if choice.trial_types is not None:
        raise LayoutError(_no_type(", ".join(choice.trial_types), runs, folder))
    raise LayoutError(
        f"expected lines with an image in the column {choice.stim} of the events in {folder}, got none in "
        f"{sum(run.left_out for run in runs)} lines of {len(runs)} files, such as {runs[0].name.path}"
    )


def _no_type(wanted: str, runs: Sequence[Run], folder: Path) -> str:
    known = sorted({kind for run in runs for kind in run.types} - set(_ABSENT))
    return (
        f"expected lines of trial_type {wanted!r} in the events of {folder}, got {', '.join(known) or 'no trial_type'} "
        f"in {len(runs)} files, such as {runs[0].name.path}{near_names(wanted, known)}"
    )
