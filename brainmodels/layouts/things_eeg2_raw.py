"""The raw recordings of THINGS-EEG2, with the session and the order of trials that preprocessing loses.

    dataset = things_eeg2.load(root, "sub-01", form="raw")

A file holds one part of one session. It is a continuous recording at 1 kHz with a channel of triggers, whose codes are
the numbers of the images of that part, from 1.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veca.data.names import entries
from veca.files import read_members

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import SensorSpace
from ..data.splits import split_from_ids
from ..errors import AxisError, IdError, LayoutError, UnitsError, near_names, need
from ._files import blocks, by_number, check_finite, provenance, subject_number
from ._recordings import check_amplitudes
from ._things_eeg2 import PARTS, find_images, image_id, read_pickle, stimuli_of
from .raw_eeg import EpochRecipe, continuous, cut, find_events, space_of

if TYPE_CHECKING:
    from mne.io import BaseRaw

__all__ = ["EPOCHS", "TARGET", "load_raw", "read_recording"]

TARGET = 99999
"""Code of the targets of the participant's task. They show no image of the data set."""
EPOCHS = EpochRecipe(-0.2, 0.8, 250.0, baseline=(None, 0.0))
"""Window and baseline of the published preprocessing, which then resamples to 100 Hz."""
_SESSIONS = (1, 2, 3, 4)
_SFREQ = 1000.0
_KEYS = ("raw_eeg_data", "ch_names", "ch_types", "sfreq")


@dataclass(frozen=True)
class _Part:
    """One part of one session.

    Attributes:
        name: "training" or "test".
        session: Number of the session.
        path: Path of the file.
        events: Sample and code of each event, (events, 2).
        space: Channels and times of the epochs.
    """

    name: str
    session: int
    path: Path
    events: np.ndarray
    space: SensorSpace


def load_raw(
    root: str | Path,
    subject: str | int,
    *,
    epochs: EpochRecipe = EPOCHS,
    sessions: Sequence[int] | None = None,
    allow_pickle: bool = False,
    folder: str = "raw_data",
    images: str | Path | None = None,
    allocate: Callable[..., np.ndarray] = np.empty,
) -> BrainDataset:
    """Load the epochs of one participant's recordings, in volts.

    Rows are sorted by session, then training before test part, then time. It is not recorded how the two parts of a
    session followed each other, so `trial` and `run` are -1. `repeat` counts presentations over the loaded sessions.
    Every file is read twice, first for its events and then for its epochs, so that only one recording is in memory.

    Args:
        root: Folder with the files that `things_eeg2.describe` lists.
        subject: Name or number of the participant, such as "sub-01" or 1.
        epochs: Recipe for the epochs. Targets are always left out, in addition to its `drop_codes`.
        sessions: Numbers of the sessions to load. None loads all four.
        allow_pickle: Whether to open pickled files. Converting them is safer.
        folder: Name of the folder of raw data.
        images: Folder with `training_images` and `test_images`. None looks in the root and one level below.
        allocate: Function (shape, dtype) -> array for the values, fp32.

    Returns:
        A data set with the split "eeg2", and the labels of preprocessed data.

    Raises:
        UnsafePickleError: A file is a pickle.
        LayoutError: A session, a file or an image is missing, a recording has no events, or an epoch reaches beyond an
            end of its recording.
        IdError: A code is the number of no image.
        AxisError: Recordings differ in channels.
        UnitsError: The rate is not 1000 Hz, or the amplitudes are not those of EEG in volts.
    """
    root, name = Path(root), f"sub-{subject_number(subject):02d}"
    recipe = replace(epochs, drop_codes=(*epochs.drop_codes, TARGET))
    found = {part: find_images(root, images, part) for part in PARTS}
    for paths in found.values():
        _check_images(paths)
    ids_of = {part: np.array([image_id(path) for path in paths]) for part, paths in found.items()}
    files = _files(root / folder / name, sessions)
    parts = list(_find_parts(files, recipe, ids_of, allow_pickle))

    space, counts = parts[0].space, [len(part.events) for part in parts]
    values = allocate((sum(counts), len(space), len(space.times)), np.float32)
    row = 0
    for part in parts:
        raw = continuous(read_recording(part.path, allow_pickle), recipe, part.path)
        for rows in blocks(len(part.events), 8 * len(space) * round(_SFREQ * (recipe.tmax - recipe.tmin))):
            block = cut(raw, part.events[rows], recipe, part.path)
            check_finite(block, part.path, first_row=row)
            values[row : row + len(block)] = block
            row += len(block)

    ids = np.concatenate([ids_of[part.name][part.events[:, 1] - 1] for part in parts])
    trials = TrialTable.of(ids, session=np.repeat([part.session for part in parts], counts), trial=-1)
    record = provenance("things_eeg2", root, [part.path for part in parts], form="raw", recipe=repr(recipe))
    person = Subject(name, Responses(values, trials, unit="V"), space, provenance=record)
    split = split_from_ids("eeg2", *(ids_of[part].tolist() for part in PARTS))
    return BrainDataset([person], stimuli_of(found), {split.name: split})


def read_recording(path: str | Path, allow_pickle: bool = False) -> "BaseRaw":
    """Read one file as a recording of MNE, whose channel of triggers is a stimulus channel.

    Args:
        path: Path of `raw_eeg_training` or `raw_eeg_test`, `.npz` or `.npy`.
        allow_pickle: Whether to open a pickle. It must be True for a `.npy` file.

    Raises:
        UnsafePickleError: The file is a pickle that is not allowed.
        LayoutError: The file is damaged, lacks a key, or has not exactly one channel of triggers.
        AxisError: Data, names and types differ in the number of channels.
        UnitsError: The rate is not 1000 Hz, or the amplitudes are not those of EEG in volts.
    """
    try:
        import mne
    except ImportError as error:
        raise need("mne", f"reading {Path(path).name}") from error
    path = Path(path)
    content = read_members(path, _KEYS, LayoutError) if path.suffix == ".npz" else read_pickle(path, allow_pickle)
    for key in _KEYS:
        if key not in content:
            raise LayoutError(
                f"expected a key {key!r} in {path}, got {', '.join(content)}{near_names(key, list(content))}"
            )
    data = np.asarray(content["raw_eeg_data"])
    names, types = (np.asarray(content[key]).astype(str).tolist() for key in ("ch_names", "ch_types"))
    if data.ndim != 2 or not len(data) == len(names) == len(types):
        raise AxisError(
            f"expected data (channels, samples) in {path} with a name and a type of each channel, got data "
            f"{data.shape}, {len(names)} names and {len(types)} types"
        )
    if types.count("stim") != 1:
        raise LayoutError(f"expected one channel of type 'stim' in {path}, got {types.count('stim')}")
    sfreq = float(content["sfreq"])
    if sfreq != _SFREQ:
        raise UnitsError(
            f"expected sfreq {_SFREQ:g} Hz in {path}, as was recorded, got {sfreq:g}; resampling moves and blurs "
            "triggers, so pass the original file, and the rate as sfreq of epochs="
        )
    raw = mne.io.RawArray(data, mne.create_info(names, sfreq, types), verbose="error")
    check_amplitudes(raw, path)
    return raw


def _files(place: Path, sessions: Sequence[int] | None) -> dict[tuple[int, str], Path]:
    """Files by session and part, after a check that none is missing."""
    found = by_number((path for path in entries(place, "ses-*") if path.is_dir()), r"ses-(\d+)")
    wanted = sorted(set(_SESSIONS if sessions is None else sessions))
    if not wanted or any(number not in found for number in wanted) or (sessions is None and len(found) > len(wanted)):
        known = ", ".join(f"{number}" for number in found) or "none"
        raise LayoutError(
            f"expected sessions {', '.join(map(str, wanted)) or '(at least one)'} in {place}, got {known}; pass "
            "sessions=[...] with the numbers to read"
        )
    files = {}
    for number in wanted:
        for part in PARTS:
            paths = [found[number] / f"raw_eeg_{part}{suffix}" for suffix in (".npz", ".npy")]
            paths = [path for path in paths if path.is_file()]
            if not paths:
                raise LayoutError(f"expected raw_eeg_{part}.npy or .npz in {found[number]}, got neither")
            files[number, part] = paths[0]
    return files


def _find_parts(
    files: Mapping[tuple[int, str], Path], recipe: EpochRecipe, ids_of: Mapping[str, np.ndarray], allow_pickle: bool
) -> Iterator[_Part]:
    """Parts with their events, after a check that all files have the channels of the first."""
    first: _Part | None = None
    for (session, part), path in files.items():
        raw = read_recording(path, allow_pickle)
        space = space_of(raw, recipe, path)
        if first and space.ch_names != first.space.ch_names:
            raise AxisError(
                f"expected channels {', '.join(first.space.ch_names)} in {path}, as in {first.path}, got "
                f"{', '.join(space.ch_names)}; pass channels in epochs="
            )
        events = find_events(raw, recipe)
        if not len(events):
            raise LayoutError(f"expected triggers of images in {path}, got none; the file is damaged")
        _check_codes(events, len(ids_of[part]), part, path)
        found = _Part(part, session, path, events, space)
        first = first or found
        yield found


def _check_images(paths: Sequence[Path]) -> None:
    """Check that folders are numbered without gaps and hold equally many images.

    Codes are positions of images, so a missing image would shift all that follow.
    """
    counts = Counter(path.parent for path in paths)
    per_concept = max(counts.values(), default=0)
    for number, (folder, count) in enumerate(counts.items(), 1):
        if count != per_concept or folder.name.split("_")[0] != f"{number:05d}":
            raise LayoutError(
                f"expected folder {number:05d} with {per_concept} images in {folder.parent}, got {folder.name} with "
                f"{count}; codes of raw data number the images of a complete folder"
            )


def _check_codes(events: np.ndarray, count: int, part: str, path: Path) -> None:
    unknown = Counter(code for code in events[:, 1].tolist() if not 1 <= code <= count)
    if unknown:
        code, times = unknown.most_common(1)[0]
        raise IdError(
            f"expected codes 1 to {count} in {path}, one for each image of {PARTS[part]}, or {TARGET} for a target, "
            f"got {code} {times} times and {len(unknown) - 1} other unknown codes; images are missing, or pass "
            "drop_codes in epochs="
        )
