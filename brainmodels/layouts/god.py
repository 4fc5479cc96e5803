"""Generic Object Decoding: responses to ImageNet photographs, seen and imagined, in the HDF5 files of bdpy.

    dataset = load("/data/god", "Subject1", rois=["VC"], images="images")

| part | items | presentations | rows |
|---|---|---|---|
| training images | 1,200 | 1 | 1,200 |
| test images | 50 | 35 | 1,750 |
| imagined categories | 50 | 10 | 500 |

The data set is described by Horikawa and Kamitani, "Generic decoding of seen and imagined objects using hierarchical
visual features", 2017.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import BrainDataset, Subject
from ..data.hdf5 import open_hdf5
from ..data.responses import Responses, TrialTable
from ..data.spaces import VoxelSpace
from ..data.splits import split_from_ids
from ..data.stimuli import OptionalImageFiles, StimulusSet
from ..errors import AxisError, IdError, LayoutError, near_names, need
from ._files import blocks, check_finite, find_files, find_images, provenance, subject_number, voxels_in_a_row

__all__ = ["describe", "detect", "load"]

_SPELLINGS = (("dataset", "metadata"), ("dataSet", "metaData"))
_TRAIN, _TEST, _IMAGERY = 1, 2, 3  # values of DataType
_SMALLEST_VOXEL = 0.5  # mm


def detect(root: Path) -> bool:
    """Whether a file below a folder has the name of a subject's file and the two parts of a bdpy file."""
    return any(_is_bdpy(path) for path in find_files(Path(root), "*ubject*.h5"))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """Subject{1..5}.h5 with
dataset: (rows, columns) float64; 3450 rows = 1200 + 50 x 35 + 50 x 10
metadata/key: (keys,) names; metadata/value: (keys, columns), 1 where a column belongs to the key, NaN elsewhere
keys VoxelData, ROI_{VC,LVC,HVC,V1,V2,V3,V4,LOC,FFA,PPA}, voxel_{x,y,z}: mm; DataType: 1 training, 2 test, 3 imagery;
stimulus_id (older: Label): WordNet id . image number in six digits; Session and Run where there are such.
Older files spell dataSet and metaData. Pictures: a folder of <WordNet id>_<number>.JPEG, passed as images="""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    file: str | Path | None = None,
    rois: Sequence[str] | None = None,
    imagery: bool = False,
    images: str | Path | None = None,
) -> BrainDataset:
    """Load one subject.

    Args:
        root: Folder of the files.
        subject: Number or name of the subject, such as 1 or "Subject1".
        allocate: Function (shape, dtype) -> array for the values, which is filled from the file.
        file: Path of the subject's file, relative to `root`, where there are several.
        rois: Names of regions whose voxels are loaded, such as ["VC"], with or without `ROI_`. None loads all voxels.
        imagery: Whether to load the imagined categories too. Their ids are like `god:n01518878`, without a picture.
        images: Folder of the pictures, which are found by stem. None loads no pictures.

    Returns:
        A data set with the subject "SubjectN", image ids such as `god:n01518878_10042`, and the label "category". The
        split "god" tests on the images that were seen repeatedly. With imagery, the split "god_imagery" tests on the
        imagined categories.

    Raises:
        LayoutError: The file has another layout, a region is missing, or files of one subject differ in their voxels.
        IdError: A number does not identify a stimulus.
    """
    root, name = Path(root), f"Subject{subject_number(subject)}"
    path = _file(root, name) if file is None else root / file
    with open_hdf5(path) as opened:
        data, keys, metadata = _open(opened, path)
        kind = _column(data, keys, metadata, ("DataType",), path).astype(np.int64)
        stimulus = _column(data, keys, metadata, ("stimulus_id", "Label"), path)
        keep = np.flatnonzero(kind != _IMAGERY) if not imagery else np.arange(len(kind))
        ids = np.array([_image_id(stimulus[row], kind[row], row, path) for row in keep.tolist()])
        session, run = (_optional(data, keys, metadata, word, keep, path) for word in ("Session", "Run"))
        columns, regions = _voxels(keys, metadata, rois, path)
        values = allocate((len(keep), len(columns)), np.float32)
        for rows in blocks(len(keep), data.shape[1] * 8):
            first, last = keep[rows][0], keep[rows][-1] + 1
            values[rows] = data[first:last][keep[rows] - first][:, columns]
        space = _space(name, keys, metadata, columns, regions)
    check_finite(values, path, ids, remedy="choose regions without it with rois=")
    trials = TrialTable.of(ids, session, run, trial=keep)
    source = provenance("god", root, [path])
    person = Subject(name, Responses(values, trials), space, provenance=source)
    return _dataset(person, kind[keep], None if images is None else root / images)


def _is_bdpy(path: Path) -> bool:
    try:
        import h5py
    except ImportError as error:
        raise need("h5py", f"reading {path.name}") from error
    if not h5py.is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return any(data in file and metadata in file for data, metadata in _SPELLINGS)


def _file(root: Path, name: str) -> Path:
    """The only file of a subject. Several files are a `LayoutError` that says whether their voxels differ."""
    pattern = re.compile(rf"{name}(\D.*)?\.h5", re.IGNORECASE)
    everything = find_files(root, "*.h5")
    found = [path for path in everything if pattern.fullmatch(path.name)]
    if not found:
        names = [path.name for path in everything]
        raise LayoutError(f"expected {name}.h5 in {root}, got {', '.join(names) or 'no .h5 file'}; {describe()}")
    if len(found) == 1:
        return found[0]
    totals = {}
    for path in found:
        with open_hdf5(path) as opened:
            _, keys, metadata = _open(opened, path)
            totals[path.name] = int((_selector("VoxelData", keys, metadata, path) == 1).sum())
    listed = ", ".join(f"{file} with {count} voxels" for file, count in totals.items())
    if len(set(totals.values())) > 1:
        raise LayoutError(
            f"expected files of {name} with one number of voxels, got {listed}: another voxel size is another space; "
            "pass file= and never join them"
        )
    raise LayoutError(f"expected one file of {name} in {root}, got {listed}; pass file=")


def _open(opened: Any, path: Path) -> tuple[Any, list[str], np.ndarray]:
    """The dataset of rows, which is not read, the keys, and the value of each key for each column."""
    for data, metadata in _SPELLINGS:
        if data in opened and metadata in opened:
            keys = [
                key.decode() if isinstance(key, bytes) else str(key) for key in np.ravel(opened[metadata]["key"][()])
            ]
            values = np.asarray(opened[metadata]["value"][()], np.float64)
            if values.shape != (len(keys), opened[data].shape[1]):
                raise AxisError(
                    f"expected {metadata}/value ({len(keys)} keys, {opened[data].shape[1]} columns) in {path}, got "
                    f"{values.shape}"
                )
            if "DataType" not in keys:
                raise LayoutError(f"expected a key DataType in {path}, not a GOD file, keys found: {', '.join(keys)}")
            return opened[data], keys, values
    raise LayoutError(f"expected dataset and metadata in {path}, got {', '.join(opened) or 'an empty file'}")


def _selector(key: str, keys: list[str], metadata: np.ndarray, path: Path) -> np.ndarray:
    if key not in keys:
        raise LayoutError(f"expected a key {key} in {path}, got {', '.join(keys)}{near_names(key, keys)}")
    return metadata[keys.index(key)]


def _column(data: Any, keys: list[str], metadata: np.ndarray, names: Sequence[str], path: Path) -> np.ndarray:
    """The column of the first of these keys that the file has. A key must have one column."""
    name = next((name for name in names if name in keys), names[0])
    columns = np.flatnonzero(_selector(name, keys, metadata, path) == 1)
    if len(columns) != 1:
        raise LayoutError(f"expected one column of {name} in {path}, got {len(columns)}")
    return np.asarray(data[:, columns[0]])


def _optional(data: Any, keys: list[str], metadata: np.ndarray, name: str, keep: np.ndarray, path: Path) -> Any:
    """A column of the design for the loaded rows, or -1 where the file has none."""
    known = {key.lower(): key for key in keys}
    if name.lower() not in known:
        return -1
    return _column(data, keys, metadata, (known[name.lower()],), path)[keep].astype(np.int64)


def _image_id(stimulus: np.floating, kind: int, row: int, path: Path) -> str:
    """The id of a stimulus number. 1518878.010042 is image 10042 of n01518878.

    The six decimals are taken from the number as text, because floats must not be compared.
    """
    if stimulus.dtype.itemsize < 8:
        raise IdError(f"expected float64 stimulus numbers in {path}, got {stimulus.dtype}, which cannot hold 13 digits")
    word, image = f"{stimulus:.6f}".split(".") if np.isfinite(stimulus) else ("nan", "0")
    if not word.isdigit() or (int(image) == 0 and kind != _IMAGERY):
        raise IdError(
            f"expected a stimulus <WordNet id>.<image number> in row {row} of {path}, got {stimulus}; "
            "a category without an image number is allowed in imagery rows only"
        )
    return f"god:n{int(word):08d}" if kind == _IMAGERY else f"god:n{int(word):08d}_{int(image)}"


def _voxels(
    keys: list[str], metadata: np.ndarray, rois: Sequence[str] | None, path: Path
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Columns of the voxels to load, and the mask of each region over them."""
    voxel = _selector("VoxelData", keys, metadata, path) == 1
    regions = {key.removeprefix("ROI_"): metadata[keys.index(key)] == 1 for key in keys if key.startswith("ROI_")}
    if rois is not None:
        wanted = [name.removeprefix("ROI_") for name in rois]
        absent = [name for name in wanted if name not in regions]
        if absent:
            known = list(regions)
            raise LayoutError(
                f"expected regions of {path} ({', '.join(known)}), got {absent[0]!r}{near_names(absent[0], known)}"
            )
        voxel &= np.any([regions[name] for name in wanted], axis=0)
    columns = np.flatnonzero(voxel)
    if not len(columns):
        raise AxisError(f"expected voxels of {', '.join(rois or ['VoxelData'])} in {path}, got none")
    return columns, {name: region[columns] for name, region in regions.items()}


def _space(
    name: str, keys: list[str], metadata: np.ndarray, columns: np.ndarray, regions: dict[str, np.ndarray]
) -> VoxelSpace:
    """The space of the voxels, on the grid of their coordinates in millimetres, or in a row where there is no grid."""
    axes = [f"voxel_{axis}" for axis in "xyz"]
    if all(axis in keys for axis in axes):
        place = np.stack([metadata[keys.index(axis)][columns] for axis in axes], 1)
        step = np.array([np.diff(np.unique(values)).min(initial=np.inf) for values in place.T])
        step[np.isinf(step)] = step.min(initial=1, where=np.isfinite(step))
        position = (place - place.min(0)) / step
        index = np.rint(position)
        if np.all(np.isfinite(place)) and step.min() >= _SMALLEST_VOXEL and np.abs(position - index).max() < 0.01:
            index = index.astype(np.int64)
            if len(np.unique(index, axis=0)) == len(index):
                affine = np.diag([*step, 1.0])
                affine[:3, 3] = place.min(0)
                return VoxelSpace(f"god-{name}", index, tuple(index.max(0) + 1), affine, rois=regions)
    index, shape = voxels_in_a_row(len(columns))
    return VoxelSpace(f"god-{name}", index, shape, rois=regions)


def _dataset(person: Subject, kind: np.ndarray, folder: Path | None) -> BrainDataset:
    ids = person.responses.trials.image_id
    parts = {part: set(ids[kind == part].tolist()) for part in (_TRAIN, _TEST, _IMAGERY)}
    shown = sorted(set(ids.tolist()))
    seen = [image_id for image_id in shown if image_id not in parts[_IMAGERY]]
    paths: dict[str, Path] = {}
    if folder is not None:
        paths = dict(zip(seen, find_images(folder, [name.removeprefix("god:") for name in seen]), strict=True))
    pictures = [paths.get(image_id) for image_id in shown]
    source = (
        OptionalImageFiles(pictures)
        if folder is None
        else OptionalImageFiles(pictures, "an imagined category has no picture")
    )
    category = [image_id.removeprefix("god:").split("_")[0] for image_id in shown]
    splits = [split_from_ids("god", parts[_TRAIN], parts[_TEST])]
    if parts[_IMAGERY]:
        splits.append(split_from_ids("god_imagery", parts[_TRAIN], parts[_IMAGERY]))
    stimuli = StimulusSet(shown, source, labels={"category": category})
    return BrainDataset([person], stimuli, {split.name: split for split in splits})
