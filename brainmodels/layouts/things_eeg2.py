"""THINGS-EEG2: ten people see 16,540 training and 200 test images in quick succession (Gifford et al., 2022).

    convert_pickle(folder / "preprocessed_eeg_training.npy", folder / "preprocessed_eeg_training.npz")
    dataset = load(root, "sub-01", whitening="none")
    dataset = load(root, "sub-01", form="raw")  # sessions and the order of trials, which preprocessing loses

The released files are pickles. They have two encodings under one name: an array that holds a dict (`numpy.save`), and a
bare pickle. Both are opened only with `allow_pickle=True`, and then only arrays, strings and numbers are built.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.data.names import entries
from veca.files import read_members, whole_file

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import SensorSpace
from ..data.splits import split_from_ids
from ..errors import AxisError, BrainDataError, LayoutError, LeakageError, near_names
from ._files import blocks, check_finite, provenance, subject_number
from ._things_eeg2 import PARTS, find_images, image_id, npy_header, read_pickle, stimuli_of
from .things_eeg2_raw import EPOCHS, load_raw

if TYPE_CHECKING:
    from .raw_eeg import EpochRecipe

__all__ = ["EPOCHS", "convert_pickle", "describe", "detect", "load", "read_pickle"]

_PREPROCESSED = ("*reprocessed_data*", "sub-*", "preprocessed_eeg_training.np[yz]")
_RAW = ("raw_data", "sub-*", "ses-*", "raw_eeg_training.np[yz]")
_DATA = "preprocessed_eeg_data.npy"  # member of the .npz file
_CUT = 50  # samples that NICE cut from the data, but not from `times`
_WHITENING = {"none": "none", "train": "mvnn_train", "both": "mvnn_transductive"}


def detect(root: str | Path) -> bool:
    """Whether a folder has files of preprocessed or raw training data at the paths of `describe`."""
    return any(_matches(Path(root), *patterns) for patterns in (_PREPROCESSED, _RAW))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """Preprocessed_data_250Hz/sub-XX/preprocessed_eeg_training.npy or .npz: a dict of
    preprocessed_eeg_data (16540, 4, C, T), ch_names (C,), times (T,) or (T + 50,)
Preprocessed_data_250Hz/sub-XX/preprocessed_eeg_test.npy or .npz: the same, (200, 80, C, T)
training_images/NNNNN_concept/*.jpg, 1654 folders of 10, and test_images/NNNNN_concept/*.jpg, 200 of 1; in the root or
    in a folder of it. Rows of the arrays are the images in sorted order.
With form="raw", instead of the preprocessed data:
raw_data/sub-XX/ses-YY/raw_eeg_training.npy or .npz, sessions 01 to 04: a dict of raw_eeg_data (C + 1, samples), volts,
    with a channel of triggers; ch_names (C + 1,), ch_types (C + 1,) of eeg and stim, sfreq 1000
raw_data/sub-XX/ses-YY/raw_eeg_test.npy or .npz: the same. Trigger k is the k-th image of the part in sorted order,
    from 1; 99999 is a target, which is left out."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allow_pickle: bool = False,
    whitening: str | None = None,
    allow_transductive: bool = False,
    folder: str | None = None,
    images: str | Path | None = None,
    form: str = "preprocessed",
    sessions: Sequence[int] | None = None,
    epochs: "EpochRecipe | None" = None,
    allocate: Callable[..., np.ndarray] = np.empty,
) -> BrainDataset:
    """Load one participant's responses, preprocessed or raw.

    The published preprocessing merges sessions and shuffles repetitions. Session, run and trial of preprocessed data
    are therefore -1, and `repeat` counts positions in the file. `things_eeg2_raw.load_raw` describes raw data. A `.npz`
    file that `convert_pickle` wrote is preferred to the pickle beside it.

    Args:
        root: Folder with the files that `describe` lists.
        subject: Name or number of the participant, such as "sub-01" or 1.
        allow_pickle: Whether to open pickled files. Converting them is safer.
        whitening: Data from which the covariance of the noise was estimated when the values were whitened: "none" (not
            whitened), "train", or "both". The published scripts use training and test data together, which is "both"
            (gifale95/eeg_encoding#2). None takes the key `whitening` of the files, or "both" where there is none.
        allow_transductive: Whether to accept "both". The subject's normalizer is then "mvnn_transductive".
        folder: Name of the folder of preprocessed data, where there are several, or of raw data, if not raw_data.
        images: Folder with `training_images` and `test_images`. None looks in the root and one level below.
        form: "preprocessed" or "raw".
        sessions: Numbers of the sessions of raw data to load. None loads all four.
        epochs: Recipe for the epochs of raw data. None is `things_eeg2_raw.EPOCHS`.
        allocate: Function (shape, dtype) -> array for the values, fp32.

    Returns:
        A data set with the split "eeg2", which has the two parts of the files. The labels are "concept" (its name) and
        "concept_number" (its number in the part, from 0).

    Raises:
        UnsafePickleError: A file is a pickle.
        LeakageError: The values were whitened with test data.
        LayoutError: Files are missing, or images and rows differ in number.
        AxisError: `times` fits the samples neither as it is nor without its first 50.
        BrainDataError: An option belongs to the other form.
    """
    if form == "raw":
        if whitening is not None or allow_transductive:
            raise BrainDataError("expected no whitening= or allow_transductive= for raw data, which are not whitened")
        return load_raw(
            root,
            subject,
            epochs=epochs or EPOCHS,
            sessions=sessions,
            allow_pickle=allow_pickle,
            folder=folder or "raw_data",
            images=images,
            allocate=allocate,
        )
    if form != "preprocessed" or sessions is not None or epochs is not None:
        raise BrainDataError(f"expected form 'preprocessed', or 'raw' for sessions= and epochs=, got {form!r}")
    return _load_preprocessed(
        Path(root), subject, allow_pickle, whitening, allow_transductive, folder, images, allocate
    )


def _load_preprocessed(
    root: Path,
    subject: str | int,
    allow_pickle: bool,
    whitening: str | None,
    allow_transductive: bool,
    folder: str | None,
    images: str | Path | None,
    allocate: Callable[..., np.ndarray],
) -> BrainDataset:
    name = f"sub-{subject_number(subject):02d}"
    place = _subject_folder(root, name, folder)
    sources = {part: _Source(_part_file(place, part), allow_pickle) for part in PARTS}
    facts = {part: source.facts() for part, source in sources.items()}
    normalizer = _check_whitening(whitening, facts, allow_transductive, place)
    found = {part: find_images(root, images, part) for part in PARTS}
    ch_names, times = _check_parts(sources, facts, found)

    count = sum(source.shape[0] * source.shape[1] for source in sources.values())
    values = allocate((count, len(ch_names), len(times)), np.float32)
    row, ids = 0, []
    for part, source in sources.items():
        for block in source.blocks():
            epochs = block.reshape(-1, *block.shape[2:])
            check_finite(epochs, source.path, first_row=row)
            values[row : row + len(epochs)] = epochs
            row += len(epochs)
        ids.append(np.repeat([image_id(path) for path in found[part]], source.shape[1]))

    sfreq = round(1 / float(np.diff(times).mean()), 3)
    responses = Responses(values, TrialTable.of(np.concatenate(ids), trial=-1), unit="as preprocessed")
    space = SensorSpace(tuple(ch_names), sfreq, times, unit="V" if normalizer == "none" else "z")
    record = provenance("things_eeg2", root, [source.path for source in sources.values()], whitening=normalizer)
    person = Subject(name, responses, space, normalizer=normalizer, provenance=record)
    train, test = ([image_id(path) for path in found[part]] for part in PARTS)
    split = split_from_ids("eeg2", train, test)
    return BrainDataset([person], stimuli_of(found), {split.name: split})


def convert_pickle(path: str | Path, out: str | Path) -> Path:
    """Write the content of a pickled file as `.npz`, which opens without running code and is read block by block.

    This opens the pickle. `read_pickle` says what it refuses to build.

    Args:
        path: Path of a `.npy` file that holds a dict, in either encoding.
        out: Path of the new file, in an existing folder.

    Returns:
        `out`.

    Raises:
        LayoutError: `out` exists or does not end in .npz, or the file holds no dict of arrays.
        UnsafePickleError: The pickle asks for more than arrays, strings and numbers.
    """
    path, out = Path(path), Path(out)
    if out.suffix != ".npz" or out.exists():
        raise LayoutError(f"expected a new file ending in .npz, got {out}{' which exists' if out.exists() else ''}")
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in read_pickle(path, allow_pickle=True).items()}
    for key, array in arrays.items():
        if array.dtype.hasobject:
            raise LayoutError(f"expected numbers or strings under {key!r} in {path}, got an array of Python objects")
    with whole_file(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return out


class _Source:
    """The file of one part. A `.npz` is read block by block, a pickle is read whole."""

    def __init__(self, path: Path, allow_pickle: bool):
        self.path = path
        self._dict = read_pickle(path, allow_pickle) if path.suffix == ".npy" else None
        if self._dict is None and not zipfile.is_zipfile(path):
            raise LayoutError(f"expected a complete .npz file at {path}, got something else; convert or copy it again")
        keys = self._keys_of_npz() if self._dict is None else list(self._dict)
        for key in ("preprocessed_eeg_data", "ch_names", "times"):
            if key not in keys:
                raise LayoutError(f"expected a key {key!r} in {path}, got {', '.join(keys)}{near_names(key, keys)}")
        self.shape = self._shape()
        if len(self.shape) != 4:
            raise AxisError(f"expected data (images, repeats, channels, times) in {path}, got shape {self.shape}")

    def facts(self) -> dict[str, np.ndarray]:
        """Names of the channels, times of the samples and, if the file says it, the whitening, by key."""
        keys = ("ch_names", "times", "whitening")
        content = self._dict or read_members(self.path, keys, LayoutError)
        return {key: np.asarray(content[key]) for key in keys if key in content}

    def blocks(self) -> Iterator[np.ndarray]:
        """Data of consecutive images, (n, repeats, channels, times) a block."""
        if self._dict is not None:
            data = np.asarray(self._dict["preprocessed_eeg_data"])
            for rows in blocks(len(data), data[:1].nbytes):
                yield data[rows]
            return
        with _undamaged(self.path), zipfile.ZipFile(self.path) as archive, archive.open(_DATA) as file:
            shape, fortran, dtype = npy_header(file, self.path)
            if fortran or dtype.hasobject:
                raise LayoutError(
                    f"expected data in C order in {self.path}, got Fortran order or objects; save it again"
                )
            row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
            for rows in blocks(shape[0], row_bytes):
                content = file.read((rows.stop - rows.start) * row_bytes)
                yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])

    def _shape(self) -> tuple[int, ...]:
        if self._dict is not None:
            return np.shape(self._dict["preprocessed_eeg_data"])
        with _undamaged(self.path), zipfile.ZipFile(self.path) as archive, archive.open(_DATA) as file:
            return npy_header(file, self.path)[0]

    def _keys_of_npz(self) -> list[str]:
        with _undamaged(self.path), zipfile.ZipFile(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Name the file where its checksum or its compression shows damage."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise LayoutError(f"expected a complete .npz file at {path}, got: {error}; copy it again") from None


def _matches(root: Path, *patterns: str) -> list[Path]:
    """Paths below a folder that match one pattern at each level."""
    found = [root]
    for pattern in patterns:
        found = [path for folder in found for path in entries(folder, pattern)]
    return found


def _subject_folder(root: Path, name: str, folder: str | None) -> Path:
    places = [path for path in _matches(root, folder or "*reprocessed_data*", "sub-*") if path.is_dir()]
    chosen = [path for path in places if path.name == name]
    if len(chosen) != 1:
        known = ", ".join(str(path.relative_to(root)) for path in chosen or places) or "none"
        raise LayoutError(
            f"expected one folder {folder or '*reprocessed_data*'}/{name} in {root}, got {known}"
            + ("; pass folder=" if chosen else "; pass form='raw'" if _matches(root, *_RAW) else "")
        )
    return chosen[0]


def _part_file(place: Path, part: str) -> Path:
    for suffix in (".npz", ".npy"):
        path = place / f"preprocessed_eeg_{part}{suffix}"
        if path.is_file():
            return path
    raise LayoutError(f"expected preprocessed_eeg_{part}.npy or .npz in {place}, got neither")


def _check_whitening(
    whitening: str | None, facts: Mapping[str, Mapping[str, np.ndarray]], allow: bool, place: Path
) -> str:
    stored = {str(of_part["whitening"]) for of_part in facts.values() if "whitening" in of_part}
    if whitening is not None and stored and stored != {whitening}:
        raise BrainDataError(
            f"expected whitening {whitening!r} in {place}, the files say {', '.join(sorted(stored))!r}"
        )
    chosen = whitening or ("both" if len(stored) != 1 else stored.pop())
    if chosen not in _WHITENING:
        raise BrainDataError(f"expected whitening {', '.join(map(repr, _WHITENING))}, got {chosen!r}")
    if chosen == "both" and not allow:
        raise LeakageError(
            f"expected responses in {place} that were whitened without test data, got a covariance of training and "
            "test together, as the published scripts estimate it; pass whitening='train' or 'none' if these files were "
            "made otherwise, or allow_transductive=True to accept them as 'mvnn_transductive'"
        )
    return _WHITENING[chosen]


def _check_parts(
    sources: Mapping[str, _Source], facts: Mapping[str, Mapping[str, np.ndarray]], found: Mapping[str, list[Path]]
) -> tuple[list[str], np.ndarray]:
    """Names of the channels, and times (T,) in seconds, which must be the same in both files."""
    ch_names, times = [], []
    for part, source in sources.items():
        if len(found[part]) != source.shape[0]:
            raise LayoutError(
                f"expected one image of {PARTS[part]} for each of {source.shape[0]} rows of {source.path}, got "
                f"{len(found[part])} images"
            )
        ch_names.append(facts[part]["ch_names"].astype(str).tolist())
        if len(ch_names[-1]) != source.shape[2]:
            raise AxisError(
                f"expected {source.shape[2]} names of channels in {source.path}, as its data have, got "
                f"{len(ch_names[-1])}"
            )
        times.append(_fit_times(np.asarray(facts[part]["times"], np.float64), source.shape[3], source.path))
    paths = [source.path for source in sources.values()]
    if ch_names[0] != ch_names[1]:
        raise AxisError(f"expected channels {ch_names[0]} in {paths[1]}, as in {paths[0]}, got {ch_names[1]}")
    if times[0].shape != times[1].shape or not np.allclose(*times):
        raise AxisError(f"expected times of {paths[0]} in {paths[1]}, got {len(times[1])} others")
    return ch_names[0], times[0]


def _fit_times(times: np.ndarray, num_times: int, path: Path) -> np.ndarray:
    """Times of the samples, (T,) in seconds. Files of NICE lack the first 50 samples, but not their times."""
    if len(times) == num_times + _CUT:
        return times[_CUT:]
    if len(times) != num_times:
        raise AxisError(
            f"expected {num_times} times in {path}, one for each sample, or {num_times + _CUT} where the first {_CUT} "
            f"samples were cut, got {len(times)}"
        )
    return times
