"""EEG-BIDS and MEG-BIDS folders: recordings with events, cut into epochs of the images that the events name.

    dataset = load("/data/study", "01", epochs=EpochRecipe(-0.2, 0.8, sfreq=100, baseline=(None, 0.0)))

EEG-BIDS is the part of the Brain Imaging Data Structure for EEG (Pernet et al., 2019),
https://bids-specification.readthedocs.io. Recordings are read by MNE and cut as `raw_eeg` cuts them.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veca.data.names import existing, files_below

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..errors import AxisError, LayoutError, near_names
from ._bids_events import EventChoice, Run, read_runs, session_numbers
from ._bids_names import BidsName, known_subjects, parse, subject_folder
from ._epoch_splits import epoch_splits, names_of_test
from ._files import check_finite, provenance, read_table
from ._recordings import READERS, read_raw
from ._triggers import check_samples
from .bids import _stimuli
from .raw_eeg import EpochRecipe, epoch, space_of

if TYPE_CHECKING:
    from mne.io import BaseRaw

__all__ = ["describe", "detect", "load"]

_log = logging.getLogger(__name__)
_FOLDERS = {"eeg": "eeg", "mag": "meg", "grad": "meg"}
_TYPES = {
    "EEG": "eeg",
    "EOG": "eog",
    "VEOG": "eog",
    "HEOG": "eog",
    "ECG": "ecg",
    "EMG": "emg",
    "TRIG": "stim",
    "MISC": "misc",
    "REF": "misc",
    "OTHER": "misc",
    "GSR": "misc",
    "PPG": "misc",
    "RESP": "misc",
    "TEMP": "misc",
    "AUDIO": "misc",
    "EYEGAZE": "misc",
    "PUPIL": "misc",
    "SYSCLOCK": "misc",
    "ADC": "misc",
    "DAC": "misc",
}
"""Types of channels.tsv, and those of MNE. Only EEG becomes responses."""


def detect(root: str | Path) -> bool:
    """Whether a folder has events of a recording of EEG or MEG of any subject."""
    root = Path(root)
    return any(
        any((root / name).glob(f"{folder}{kind}/*_events.tsv"))
        for name in known_subjects(root)
        for folder in ("", "ses-*/")
        for kind in ("eeg", "meg")
    )


def describe() -> str:
    """The files that are needed, with their shapes."""
    return f"""sub-XX/[ses-YY/]eeg/*_task-T_[run-N_]eeg.fif, .edf, .bdf, .vhdr or .set: recordings in volts; for MEG,
    with kind=mag or kind=grad: meg/*_meg.fif. Readers: {", ".join(READERS)}
sub-XX/[ses-YY/]eeg/*_task-T_[run-N_]events.tsv: columns onset (seconds from the first sample), duration, stim_file,
    perhaps trial_type; stim_file is a path below stimuli/ and becomes the image id, such as animals/cat.jpg
*_channels.tsv, optional: columns name, type and perhaps status, one line for each channel of the recording; only
    channels of type EEG become responses
*_electrodes.tsv, optional: a column name; it must name channels of the recording
stimuli/: pictures"""


def load(
    root: str | Path,
    subject: str,
    *,
    epochs: EpochRecipe,
    task: str | None = None,
    sessions: str | int | Sequence[str | int] | None = None,
    trial_type: str | Sequence[str] | None = None,
    stim: str = "stim_file",
    stimuli: str | Path = "stimuli",
    namespace: str | None = None,
    test: str | Path | Sequence[str] | None = None,
    holdout: float | None = None,
    seed: int = 0,
    allocate: Callable[..., np.ndarray] = np.empty,
) -> BrainDataset:
    """Load the epochs of one subject.

    Args:
        root: BIDS folder.
        subject: Label of the subject, such as "01" or "sub-01".
        epochs: Recipe for the epochs. Its `kind` chooses EEG or MEG.
        task: Name of the task. None takes the only one.
        sessions: Labels of the sessions. None takes all.
        trial_type: Values of the column trial_type that are trials. None takes every line that names an image.
        stim: Column of the events with the image.
        stimuli: Folder of the pictures, relative to `root` or absolute.
        namespace: Text to put before every id, with a colon, so that ids of several studies differ.
        test: Ids of the test images, or the path of a text file in `root` with one id a line.
        holdout: Share of the images to test on. Without it and `test`, images that were shown clearly more often than
            most are tested on, or a random fifth if there are none.
        seed: Seed of the choice of test and of validation images.
        allocate: Function (shape, dtype) -> array for the values, fp32.

    Returns:
        A data set with one split, "given", "repeated" or "holdout_image". Sessions and runs are those of the names.

    Raises:
        LayoutError: A file or a column is missing, a table and its recording name other channels, or an epoch reaches
            beyond an end of its recording.
        IdError: The subject is unknown, or a picture is missing.
        AxisError: Recordings differ in channels or rate.
        UnitsError: The amplitudes are not those of EEG in volts or of MEG in tesla.
    """
    root = Path(root)
    name = subject_folder(root, str(subject))
    kind = _FOLDERS[epochs.kind]
    files = [parse(path, root) for path in files_below(root / name)]
    files = [file for file in files if file.datatype == kind]
    if not files:
        raise LayoutError(
            f"expected recordings in {root / name}/{kind} or {root / name}/ses-*/{kind}, got no files there"
        )
    choice = EventChoice(task, _texts(sessions), _texts(trial_type), stim)
    runs = [run for run in read_runs(files, root / name, choice) if run.images]
    recordings = [_recording(run, files, kind) for run in runs]
    opened = [_open(recording, run, files, epochs.kind) for recording, run in zip(recordings, runs, strict=True)]
    space = space_of(opened[0], epochs, recordings[0].path)
    values = allocate((sum(len(run.images) for run in runs), len(space), len(space.times)), np.float32)
    row = 0
    for raw, recording, run in zip(opened, recordings, runs, strict=True):
        other = space_of(raw, epochs, recording.path)
        if other.ch_names != space.ch_names or len(other.times) != len(space.times) or other.sfreq != space.sfreq:
            raise AxisError(
                f"expected {len(space)} channels and {space.sfreq:g} Hz of {recordings[0].path} in {recording.path}, "
                f"got {len(other)} and {other.sfreq:g} Hz, or another order of channels; pass channels= and sfreq="
            )
        block = epoch(raw, _samples(raw, run), epochs)
        check_finite(block, recording.path, first_row=row)
        values[row : row + len(block)] = block
        row += len(block)
    responses = Responses(values, _trials(runs, namespace, root / name), unit=space.unit)
    tested = names_of_test(test, root)
    where = test if isinstance(test, str | Path) else "test="
    if tested is not None and namespace is not None:
        tested = [f"{namespace}:{image}" for image in tested]
    splits = epoch_splits(responses.trials, tested, holdout, seed, where)
    paths = [path for recording, run in zip(recordings, runs, strict=True) for path in (recording.path, run.name.path)]
    facts = provenance("eeg_bids", root, paths, recipe=repr(epochs), task=task)
    images = _stimuli(runs, namespace, existing(root / stimuli))
    return BrainDataset([Subject(name, responses, space, provenance=facts)], images, splits)


def _recording(run: Run, files: Sequence[BidsName], kind: str) -> BidsName:
    """The recording that the events of a run belong to: all entities of its name but the suffix are equal."""
    found = [
        file
        for file in files
        if file.suffix == kind and file.extension.lower() in READERS and file.entities == run.name.entities
    ]
    if len(found) != 1:
        stem = run.name.path.name.removesuffix("events.tsv")
        wanted = f"{stem}{kind} with one of {', '.join(READERS)}"
        listed = ", ".join(file.path.name for file in found)
        near = near_names(f"{stem}{kind}", [file.path.name for file in files if file.suffix == kind])
        raise LayoutError(
            f"expected one recording {wanted} beside {run.name.path}, got {listed or 'none'}"
            f"{'; keep one format' if found else near}"
        )
    return found[0]


def _open(recording: BidsName, run: Run, files: Sequence[BidsName], kind: str) -> "BaseRaw":
    """A recording with the types and marks of its channels from the tables beside it."""
    tables = {suffix: _beside(run, files, suffix) for suffix in ("channels", "electrodes")}
    raw = read_raw(recording.path, kind)
    if tables["channels"] is not None and kind == "eeg":
        _set_types(raw, tables["channels"], recording.path)
    if tables["electrodes"] is not None:
        names = [text.strip() for text in read_table(tables["electrodes"], ["name"])["name"]]
        if not set(names) & set(raw.ch_names):
            raise LayoutError(
                f"expected names of channels of {recording.path} ({', '.join(raw.ch_names[:5])}, ...) in the column "
                f"name of {tables['electrodes']}, got {', '.join(names[:5]) or 'none'}"
            )
    return raw


def _beside(run: Run, files: Sequence[BidsName], suffix: str) -> Path | None:
    """The table of a run, or one that holds for all runs of the session or task."""
    own = set(run.name.entities.items())
    found = [x for x in files if (x.suffix, x.extension) == (suffix, ".tsv") and set(x.entities.items()) <= own]
    return max(found, key=lambda file: len(file.entities)).path if found else None


def _set_types(raw: "BaseRaw", table: Path, recording: Path) -> None:
    columns = read_table(table, ["name", "type"])
    names = [text.strip() for text in columns["name"]]
    unknown = [name for name in names if name not in raw.ch_names]
    if unknown:
        raise LayoutError(
            f"expected channels of {recording} in the column name of {table}, got {unknown[0]!r} and "
            f"{len(unknown) - 1} others{near_names(unknown[0], raw.ch_names)}"
        )
    types = {}
    for line, (name, text) in enumerate(zip(names, columns["type"], strict=True), 2):
        if (given := text.strip().upper()) not in _TYPES:
            raise LayoutError(f"expected a type of {', '.join(_TYPES)} in line {line} of {table}, got {text!r}")
        types[name] = _TYPES[given]
    raw.set_channel_types(types, on_unit_change="ignore", verbose="error")
    absent = [name for name in raw.ch_names if name not in types and raw.get_channel_types([name])[0] == "eeg"]
    if absent:
        raise LayoutError(
            f"expected every channel of {recording} in {table}, got none of {', '.join(absent[:5])}"
            f"{f' and {len(absent) - 5} others' if len(absent) > 5 else ''}"
        )
    status = columns.get("status", [""] * len(names))
    raw.info["bads"] = [name for name, text in zip(names, status, strict=True) if text.strip().lower() == "bad"]


def _samples(raw: "BaseRaw", run: Run) -> np.ndarray:
    """Sample and code 1 of each trial, (events, 2). Onsets count from the first sample of the file."""
    onsets = read_table(run.name.path, ["onset"])["onset"]
    rate = raw.info["sfreq"]
    events = np.array([(round(float(onsets[line - 2]) * rate), 1) for line in run.lines], np.int64).reshape(-1, 2)
    outside = np.flatnonzero((events[:, 0] < 0) | (events[:, 0] >= raw.n_times))
    if len(outside):
        line = run.lines[int(outside[0])]
        raise LayoutError(
            f"expected onsets from 0 to {raw.n_times / rate:g} s, the length of the recording, in {run.name.path}, got "
            f"{onsets[line - 2]} in line {line}; onsets are seconds, not samples"
        )
    check_samples(events, run.name.path)
    return events


def _trials(runs: Sequence[Run], namespace: str | None, where: Path) -> TrialTable:
    numbers = session_numbers([run.session for run in runs], where)
    counts = [len(run.images) for run in runs]
    prefix = "" if namespace is None else f"{namespace}:"
    names = [prefix + image for run in runs for image in run.images]
    session = np.repeat([numbers[run.session] for run in runs], counts)
    return TrialTable.of(names, session=session, run=np.repeat([run.number for run in runs], counts))


def _texts(values: str | int | Sequence[str | int] | None) -> list[str] | None:
    """Values as a list of text. Text is separated by commas."""
    if values is None:
        return None
    if isinstance(values, str):
        return [text.strip() for text in values.split(",")]
    return [str(values)] if isinstance(values, int) else [str(value) for value in values]
