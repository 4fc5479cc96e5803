"""Prepared folders: one subject's responses, images and splits, which open at once.

    summary = save_prepared(dataset, "subj01", "prepared/subj01")
    print(summary)
    dataset = load_prepared("prepared/subj01")

| file | content |
|---|---|
| values.npy | responses as stored, float or int16, to be memory-mapped |
| trials.npz | what every trial showed |
| images.npy | pictures (n, size, size, 3), uint8 |
| stimuli.json | ids, captions and labels of the images |
| space.npz | voxels and regions, or sensors |
| splits.json | image ids of every part |
| meta.json | layout, source, units, versions, command, and the size and SHA-256 of the other files |

A folder is written under another name and renamed when it is complete. The user's own data are only read.
"""

import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from veca.files import new_array, read_json, read_members, read_sealed, sealed, whole_folder
from veca.hashes import file_digest, file_facts, file_fault, hex_digest

from ..errors import BrainDataError, LayoutError
from ..records import plain
from ..versions import library_versions
from .dataset import BrainDataset, Split, Subject
from .leakage import duplicates_of
from .responses import Responses, TrialTable
from .spaces import SensorSpace, VoxelSpace
from .stimuli import ArrayImages, OptionalImageFiles, StimulusSet
from .summary import SubjectSummary, summarize

__all__ = ["load_prepared", "save_prepared", "write_prepared"]

Allocate = Callable[..., np.ndarray]

_log = logging.getLogger(__name__)
_FORMAT = 1
_FILES = ("values.npy", "trials.npz", "space.npz", "stimuli.json", "splits.json")
_PICTURES = "images.npy"
_WHOLE = 64 << 20  # bytes; of larger source files only the ends are hashed
_END = 1 << 20


def save_prepared(
    dataset: BrainDataset,
    subject: str,
    out: str | Path,
    image_size: int | None = 256,
    progress: bool = False,
    allow_duplicates: bool = False,
) -> SubjectSummary:
    """Write one subject of a data set to a new folder.

    The folder has all pictures that the subject saw. It also has test images of the splits without responses, which
    challenges publish.

    Args:
        dataset: Data set with the subject.
        subject: Id of the subject.
        out: Path of the folder to create.
        image_size: Side of the stored pictures in pixels. None stores no pictures.
        progress: Whether to show progress bars.
        allow_duplicates: Whether to go on where equal pictures with different ids are in two parts of a split.

    Returns:
        What the folder holds, in numbers.

    Raises:
        LayoutError: `out` exists already.
        LeakageError: A test picture is also a train picture, under another id.
        IdError: The subject is unknown.
    """
    command = f"save_prepared({subject!r}, {str(out)!r}, image_size={image_size})"
    return write_prepared(lambda allocate: (dataset, subject), out, command, image_size, progress, allow_duplicates)


def write_prepared(
    load: Callable[[Allocate], tuple[BrainDataset, str]],
    out: str | Path,
    command: str,
    image_size: int | None,
    progress: bool,
    allow_duplicates: bool = False,
) -> SubjectSummary:
    """Write what `load` returns to a new folder. After an error there is no folder.

    Args:
        load: Function that returns a data set and the id of the subject to write. Its argument is a function
            (shape, dtype) -> array, which makes arrays in files of the folder. Responses in such an array are not
            copied again.
        out: Path of the folder to create.
        command: Text of the command, to be kept in meta.json.
        image_size: Side of the stored pictures in pixels. None stores no pictures.
        progress: Whether to show progress bars.
        allow_duplicates: Whether to go on where equal pictures with different ids are in two parts of a split.

    Returns:
        What the folder holds, in numbers.

    Raises:
        BrainDataError: `image_size` is below 1.
        LayoutError: `out` exists already.
        LeakageError: A test picture is also a train picture, under another id.
    """
    out = Path(out)
    if image_size is not None and image_size < 1:
        raise BrainDataError(f"expected image_size of at least 1 pixel, got {image_size}")
    if out.exists():
        raise LayoutError(f"expected a folder that does not exist yet, got {out}; remove it or choose another")
    with whole_folder(out) as folder:
        memory = _Memory(folder)
        dataset, subject = load(memory.allocate)
        meta, pictures = _write(dataset, subject, folder, memory, image_size, progress)
        splits = dataset.splits.values()
        duplicates = {split.name: duplicates_of(pictures, split, allow_duplicates) for split in splits}
        meta |= {"duplicates": duplicates, "command": command}
        (folder / "meta.json").write_text(sealed(plain(meta)), encoding="utf-8")
        summary = summarize(dataset, subject, str(out))
    return summary


def load_prepared(path: str | Path, verify: bool = True) -> BrainDataset:
    """The data set of one subject that `save_prepared` wrote.

    Values and pictures are memory-mapped, so they stay on the disk until they are needed.

    Args:
        path: Path of the folder.
        verify: Whether to compare the SHA-256 of every file. That reads all of them, about a second for each gigabyte
            where the disk is as fast. Sizes are always compared.

    Raises:
        LayoutError: A file is missing, truncated or changed.
    """
    path = Path(path)
    _check_there(path / "meta.json")
    meta = read_sealed(path / "meta.json", LayoutError)
    if meta.get("format") != _FORMAT:
        raise LayoutError(f"expected a prepared folder of format {_FORMAT} at {path}, got {meta.get('format')!r}")
    for name, facts in meta["files"].items():
        if fault := file_fault(path / name, facts, verify):
            raise LayoutError(f"{fault}; copy it again, or prepare the folder again")
    stored, content = meta["responses"], read_json(path / "stimuli.json", LayoutError)
    values = np.load(path / "values.npy", mmap_mode="r", allow_pickle=False)
    columns = [field.name for field in fields(TrialTable)]
    trials = TrialTable(**_members(path / "trials.npz", columns))
    pictures = path / _PICTURES
    source = (
        ArrayImages(np.load(pictures, mmap_mode="r", allow_pickle=False))
        if _PICTURES in meta["files"]
        else OptionalImageFiles(
            [None] * len(content["ids"]), f"{path} was prepared without pictures; prepare it with an image_size"
        )
    )
    labels = {name: np.array(label["values"], dtype=label["dtype"]) for name, label in content["labels"].items()}
    person = Subject(
        meta["subject"]["id"],
        Responses(values, trials, stored["scale"], unit=stored["unit"]),
        _read_space(path / "space.npz", meta["space"]),
        meta["subject"]["normalizer"],
        meta["subject"]["design"],
        meta["source"],
    )
    splits = [Split.from_json(content) for content in read_json(path / "splits.json", LayoutError)]
    stimuli = StimulusSet(content["ids"], source, content["captions"], labels)
    return BrainDataset([person], stimuli, {split.name: split for split in splits})


class _Memory:
    """Arrays in files of the folder that is being written. Responses that are read into one are not copied again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.arrays: dict[str, np.memmap] = {}

    def allocate(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """A memory-mapped array of zeros, with the arguments of `np.empty`."""
        name = f"allocated-{len(self.arrays)}.npy"
        shape = tuple(int(n) for n in np.atleast_1d(shape))  # a header with numpy's integers is not readable
        self.arrays[name] = new_array(self.folder / name, shape, dtype)
        return self.arrays[name]

    def store(self, responses: Responses, progress: bool) -> None:
        """Write values.npy, and remove all other allocated arrays."""
        target = self.folder / "values.npy"
        own = [name for name, array in self.arrays.items() if responses.rows is None and _same(array, responses.values)]
        if own:
            self.arrays[own[0]].flush()
            os.replace(self.folder / own[0], target)
        else:
            shape = (len(responses), *responses.values.shape[1:])
            out = new_array(target, shape, responses.values.dtype)
            rows = np.arange(len(out)) if responses.rows is None else np.asarray(responses.rows)
            for start in tqdm(range(0, len(out), 512), "responses", disable=not progress):
                out[start : start + 512] = responses.values[rows[start : start + 512]]
            out.flush()
        for name in self.arrays:
            if name not in own[:1]:
                (self.folder / name).unlink()


def _write(
    dataset: BrainDataset,
    subject: str,
    folder: Path,
    memory: _Memory,
    image_size: int | None,
    progress: bool,
) -> tuple[dict[str, Any], StimulusSet]:
    """Write all files of a folder but meta.json, and return its content and the written pictures."""
    person = dataset.subject(subject)
    trials, responses = person.responses.trials, person.responses
    memory.store(responses, progress)
    np.savez(folder / "trials.npz", **{field.name: getattr(trials, field.name) for field in fields(TrialTable)})
    space = _write_space(folder / "space.npz", person.space)
    ids = _images_of(dataset, person)
    source = OptionalImageFiles([None] * len(ids))
    if image_size is not None:
        shape = (len(ids), image_size, image_size, 3)
        images = new_array(folder / _PICTURES, shape, np.uint8)
        for row, name in enumerate(tqdm(ids, "pictures", disable=not progress)):
            images[row] = dataset.stimuli.image(name, image_size)
        images.flush()
        source = ArrayImages(images)
    stimuli = dataset.stimuli
    labels = {name: stimuli.label(name, ids) for name in stimuli.labels}
    captions = {name: stimuli.captions(name) for name in ids}
    _write_json(
        folder / "stimuli.json",
        {
            "ids": ids,
            "captions": {name: texts for name, texts in captions.items() if texts},
            "labels": {name: {"dtype": str(x.dtype), "values": x.tolist()} for name, x in labels.items()},
        },
    )
    _write_json(folder / "splits.json", [split.to_json() for split in dataset.splits.values()])
    names = [*_FILES, *([_PICTURES] if image_size is not None else [])]
    meta = {
        "format": _FORMAT,
        "subject": {"id": person.id, "design": person.design, "normalizer": person.normalizer},
        "responses": {
            "scale": float(responses.scale),
            "unit": responses.unit,
            "dtype": str(responses.values.dtype),
            "shape": [len(responses), *responses.values.shape[1:]],
        },
        "space": space,
        "image_size": image_size,
        "source": person.provenance,
        "source_sha256": _source_hashes(person.provenance),
        "versions": _versions(),
        "files": {name: file_facts(folder / name) for name in names},
    }
    return meta, StimulusSet(ids, source)


def _images_of(dataset: BrainDataset, person: Subject) -> list[str]:
    """Ids of the shown images and of the test images, in the order of the data set."""
    shown = set(person.responses.trials.image_id.tolist())
    tested = set().union(*(split.test for split in dataset.splits.values()))
    wanted = shown | {name for name in tested if name in dataset.stimuli}
    return dataset.stimuli.ids[np.sort(dataset.stimuli.rows(sorted(wanted)))].tolist()


def _write_space(path: Path, space: VoxelSpace | SensorSpace) -> dict[str, Any]:
    """Write the arrays of a space, and return the rest of it for meta.json."""
    if isinstance(space, SensorSpace):
        np.savez(path, times=np.asarray(space.times))
        names = [str(name) for name in space.ch_names]
        return {
            "kind": "sensors",
            "ch_names": names,
            "sfreq": space.sfreq,
            "unit": space.unit,
            "montage": space.montage,
        }
    arrays: dict[str, Any] = {"index": space.index, "affine": space.affine, "ncsnr": space.ncsnr}
    arrays["rois"] = np.array(list(space.rois.values()), dtype=bool).reshape(len(space.rois), len(space))
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    np.savez(path, **arrays)
    return {"kind": "voxels", "name": space.name, "shape": [int(n) for n in space.shape], "rois": list(space.rois)}


def _read_space(path: Path, facts: Mapping[str, Any]) -> VoxelSpace | SensorSpace:
    if facts["kind"] == "sensors":
        times = _members(path, ["times"])["times"]
        return SensorSpace(facts["ch_names"], facts["sfreq"], times, facts["unit"], facts["montage"])
    arrays = _members(path, ["index", "rois"], ["affine", "ncsnr"])
    rois = dict(zip(facts["rois"], arrays["rois"], strict=True))
    shape = tuple(facts["shape"])
    return VoxelSpace(facts["name"], arrays["index"], shape, arrays.get("affine"), rois, arrays.get("ncsnr"))


def _members(path: Path, needed: Sequence[str], others: Sequence[str] = ()) -> dict[str, np.ndarray]:
    arrays = read_members(path, (*needed, *others), LayoutError)
    if missing := [name for name in needed if name not in arrays]:
        raise LayoutError(f"expected {', '.join(missing)} in {path}, got none")
    return arrays


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays are the same memory, shape and type."""
    return (
        first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
        and first.shape == second.shape
        and first.strides == second.strides
        and first.dtype == second.dtype
    )


def _source_hashes(provenance: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every source file. Above 64 MiB it covers the first and last MiB only, and is marked "ends:"."""
    hashes = {}
    for name in provenance.get("files", {}):
        path = Path(provenance.get("root", ""), name)
        if not path.is_file():
            continue
        if path.stat().st_size <= _WHOLE:
            hashes[name] = file_digest(path)
            continue
        with path.open("rb") as file:
            first = file.read(_END)
            file.seek(-_END, os.SEEK_END)
            hashes[name] = f"ends:{hex_digest([first, file.read(_END)])}"
    return hashes


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **library_versions("h5py", "nibabel", "mne")}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(plain(content), indent=1), encoding="utf-8")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise LayoutError(f"expected a prepared folder with {path.name} at {path.parent}, got none")
