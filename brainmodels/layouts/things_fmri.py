"""THINGS-fMRI, single-trial responses in table format: 8,640 object images once, and 100 images 12 times.

    dataset = load("/data/things-fmri", "sub-01", rois=["V1", "lFFA"], images="images")

The responses are a pandas table in HDF5, which is read with h5py. The data set is described by Hebart et al.,
"THINGS-data, a multimodal collection of large-scale datasets for investigating object representations in human brain
and behavior", eLife 2023.
"""

import io
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veca.data.images import IMAGE_SUFFIXES
from veca.data.names import stem

from ..data.dataset import BrainDataset, Subject
from ..data.hdf5 import open_hdf5
from ..data.responses import Responses, TrialTable
from ..data.spaces import VoxelSpace
from ..data.splits import split_from_ids
from ..data.stimuli import OptionalImageFiles, StimulusSet
from ..errors import AxisError, IdError, LayoutError, near_names
from ._files import (
    blocks,
    check_finite,
    find_files,
    find_images,
    provenance,
    read_table,
    read_text,
    subject_number,
)
from ._volumes import read_labels

__all__ = ["describe", "detect", "load"]

_log = logging.getLogger(__name__)

_NO_ROI = re.compile(r"|voxel_id|subject_id|voxel_[xyz]|nc_\w+|splithalf_\w+|prf-\w+|Unnamed: 0")
_PLACE = ("voxel_x", "voxel_y", "voxel_z")
_TABLES = ("StimulusMetadata.csv", "VoxelMetadata.csv")


def detect(root: Path) -> bool:
    """Whether a folder has the three files of any subject."""
    return any(
        all((path.parent / path.name.replace("ResponseData.h5", name)).is_file() for name in _TABLES)
        for path in find_files(Path(root), "sub-*_ResponseData.h5")
    )


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """sub-0{1..3}_ResponseData.h5: /ResponseData/blockN_values, the float block (voxels, 9840 trials), and
voxel_id in an integer block (voxels, 1)
sub-0{1..3}_StimulusMetadata.csv: a line for each trial; stimulus, trial_type (train, test), session, run, maybe concept
sub-0{1..3}_VoxelMetadata.csv: a line for each voxel; voxel_id, voxel_x, voxel_y, voxel_z, nc_singletrial and nc_testset
(percent of variance), regions as 0 and 1, such as V1, lFFA; perhaps more
Pictures: a folder of <concept>/<stimulus>, passed as images=. Sub-folders are searched."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    rois: Sequence[str] | None = None,
    min_noise_ceiling: float | None = None,
    drop_voxel_id: bool = False,
    mask: str | Path | None = None,
    images: str | Path | None = None,
) -> BrainDataset:
    """Load one subject.

    Args:
        root: Folder of the files, possibly in sub-folders.
        subject: Number or name of the subject, such as 1 or "sub-01".
        allocate: Function (shape, dtype) -> array of fp32, to which the fp64 values of the file are rounded. All voxels
            of a subject take 8 GB.
        rois: Names of regions whose voxels are loaded, such as ["V1", "lFFA"]. None loads all voxels.
        min_noise_ceiling: Smallest `nc_testset` of the voxels to load, in percent of the variance of means over 12
            trials.
        drop_voxel_id: Whether to leave out a column of voxel numbers that was saved among the responses.
        mask: NIfTI brain mask of the subject, which gives the volume its shape and affine.
        images: Folder of the pictures, which are found by stem. None loads no pictures.

    Returns:
        A data set with the subject "sub-0N", image ids `things:<stem>`, and the label "concept". The split "things" is
        the published one. The split "things_zero_shot" leaves out train images that share a concept with a test image.

    Raises:
        LayoutError: Files or columns are missing, tables and responses differ in length, or no voxel is left.
        IdError: Voxels of the responses are not those of the table.
    """
    root, name = Path(root), f"sub-{subject_number(subject):02d}"
    files = [_file(root, f"{name}_{suffix}") for suffix in ("ResponseData.h5", *_TABLES)]
    voxels = _voxel_table(files[2])
    trials, concepts, test = _trials(files[1])
    regions = {key: column != 0 for key, column in voxels.items() if _is_region(key, column)}
    keep = _kept(voxels, regions, rois, min_noise_ceiling, files[2])
    values = _responses(files[0], voxels["voxel_id"], keep, len(trials), drop_voxel_id, allocate)
    check_finite(values, files[0], trials.image_id, remedy="keep other voxels with rois= or min_noise_ceiling=")
    space = _space(name, voxels, regions, keep, None if mask is None else root / mask)
    source = provenance("things_fmri", root, files, rois=list(rois or []), min_noise_ceiling=min_noise_ceiling)
    person = Subject(name, Responses(values, trials), space, provenance=source)
    shown = sorted(concepts)
    stems = [image_id.removeprefix("things:") for image_id in shown]
    pictures = OptionalImageFiles([None] * len(shown) if images is None else find_images(root / images, stems))
    stimuli = StimulusSet(shown, pictures, labels={"concept": [concepts[image_id] for image_id in shown]})
    train = set(shown) - test
    tested = {concepts[image_id] for image_id in test}
    unseen = {image_id for image_id in train if concepts[image_id] not in tested}
    splits = [
        split_from_ids("things", train, test),
        split_from_ids("things_zero_shot", unseen, test, params={"dropped_train_images": len(train) - len(unseen)}),
    ]
    return BrainDataset([person], stimuli, {split.name: split for split in splits})


def _file(root: Path, name: str) -> Path:
    found = find_files(root, name)
    if len(found) != 1:
        known = [path.name for path in find_files(root, "sub-*")]
        got = ", ".join(map(str, found)) or "none"
        raise LayoutError(f"expected one {name} in {root}, got {got}{'' if found else near_names(name, known)}")
    return found[0]


def _voxel_table(path: Path) -> dict[str, np.ndarray]:
    """Columns of a table of numbers by name, in which an empty field is NaN."""
    with io.StringIO(read_text(path), newline=None) as file:
        header = file.readline().rstrip("\r\n").split(",")
        for name in ("voxel_id", *_PLACE, "nc_singletrial"):
            if name not in header:
                raise LayoutError(
                    f"expected a column {name} in {path}, got {', '.join(header)}{near_names(name, header)}"
                )
        try:
            table = np.loadtxt(file, delimiter=",", ndmin=2, converters=lambda field: float(field or "nan"))
        except ValueError as error:
            raise LayoutError(f"expected a table of numbers in {path}, got: {error}") from None
    if table.shape[1] != len(header):
        raise LayoutError(f"expected {len(header)} fields in a line of {path}, got {table.shape[1]}")
    return dict(zip(header, table.T, strict=True))


def _trials(path: Path) -> tuple[TrialTable, dict[str, str], set[str]]:
    """The trials, the concept of each image, and the test images."""
    table = read_table(path, ("stimulus", "trial_type", "session", "run"))
    unknown = sorted(set(table["trial_type"]) - {"train", "test"})
    if unknown:
        raise LayoutError(
            f"expected trial_type train or test in {path}, got {unknown[0]!r}; catch trials have no response"
        )
    numbers = table.get("trial_id")
    if numbers is not None and not all(int(a) < int(b) for a, b in itertools.pairwise(numbers)):
        raise IdError(
            f"expected rising trial_id in {path}, got another order: rows are no longer those of the responses"
        )
    stems = [stem(name, IMAGE_SUFFIXES) for name in table["stimulus"]]
    ids = [f"things:{name}" for name in stems]
    concept = table.get("concept") or [name.rsplit("_", 1)[0] for name in stems]
    test = {image_id for image_id, part in zip(ids, table["trial_type"], strict=True) if part == "test"}
    session, run = (np.array([int(float(number)) for number in table[key]]) for key in ("session", "run"))
    return TrialTable.of(ids, session, run), dict(zip(ids, concept, strict=True)), test


def _is_region(name: str, column: np.ndarray) -> bool:
    return _NO_ROI.fullmatch(name) is None and bool(np.isin(column, (0, 1)).all())


def _kept(
    voxels: dict[str, np.ndarray],
    regions: dict[str, np.ndarray],
    rois: Sequence[str] | None,
    min_noise_ceiling: float | None,
    path: Path,
) -> np.ndarray:
    keep = np.ones(len(voxels["voxel_id"]), bool)
    if rois is not None:
        absent = [name for name in rois if name not in regions]
        if absent:
            raise LayoutError(
                f"expected regions of {path} ({', '.join(regions)}), got {absent[0]!r}"
                f"{near_names(absent[0], list(regions))}"
            )
        keep &= np.any([regions[name] for name in rois], axis=0)
    inside = int(keep.sum())
    if min_noise_ceiling is not None:
        if "nc_testset" not in voxels:
            raise LayoutError(f"expected a column nc_testset in {path}, got {', '.join(voxels)}")
        keep &= voxels["nc_testset"] >= min_noise_ceiling
    if not keep.any():
        raise LayoutError(
            f"expected voxels of {', '.join(rois or ['the brain'])} in {path}, got none of {inside} with a noise "
            f"ceiling of at least {min_noise_ceiling} percent; lower min_noise_ceiling="
        )
    return keep


def _responses(
    path: Path, voxel_id: np.ndarray, keep: np.ndarray, num_trials: int, drop_voxel_id: bool, allocate: Callable
) -> np.ndarray:
    with open_hdf5(path) as file:
        block, numbers = _blocks(file, path)
        if len(block) != len(keep):
            raise LayoutError(
                f"expected {len(keep)} voxels in {path}, as VoxelMetadata has lines, got {len(block)} rows of responses"
            )
        first = block.shape[1] - num_trials
        if first == 1 and numbers is None:
            if not drop_voxel_id:
                raise LayoutError(
                    f"expected {num_trials} trials in {path}, as StimulusMetadata has lines, got {block.shape[1]} "
                    "columns: voxel_id was saved as the first of them; pass drop_voxel_id=True"
                )
            numbers = block[:, 0]
            _log.warning("%s: the first column is voxel_id and was left out of the responses", path)
        elif first != 0:
            raise LayoutError(
                f"expected {num_trials} trials in {path}, as StimulusMetadata has lines, got {block.shape[1]} columns"
            )
        if numbers is not None and not np.array_equal(np.ravel(numbers), voxel_id):
            raise IdError(
                f"expected voxel_id of {path} in the order of VoxelMetadata, got other voxels or another order"
            )
        values = allocate((num_trials, int(keep.sum())), np.float32)
        start = 0
        for rows in blocks(len(keep), block.shape[1] * block.dtype.itemsize):
            part = block[rows][keep[rows], first:]
            values[:, start : start + len(part)] = part.T
            start += len(part)
    return values


def _blocks(file: Any, path: Path) -> tuple[Any, np.ndarray | None]:
    """The block of responses of a pandas table in "fixed" format, and the block of voxel_id where there is one."""
    group = file.get("ResponseData")
    found = {} if group is None else {key: group[key] for key in group if re.fullmatch(r"block\d+_values", key)}
    floats = [block for block in found.values() if block.dtype.kind == "f" and block.ndim == 2]
    if len(floats) != 1:
        got = ", ".join(f"{key} {block.dtype} {block.shape}" for key, block in found.items()) or ", ".join(file)
        raise LayoutError(f"expected /ResponseData with one block of floats (voxels, trials) in {path}, got {got}")
    whole = [
        block[()] for block in found.values() if block.dtype.kind in "iu" and block.ndim == 2 and block.shape[1] == 1
    ]
    return floats[0], whole[0] if whole else None


def _space(
    name: str, voxels: dict[str, np.ndarray], regions: dict[str, np.ndarray], keep: np.ndarray, mask: Path | None
) -> VoxelSpace:
    """The space of the loaded voxels.

    Its ncsnr s follows from the published noise ceiling of single trials, 100 s^2 / (s^2 + 1) percent.
    """
    index = np.stack([voxels[axis][keep] for axis in _PLACE], 1).astype(np.int64)
    shape, affine = tuple(np.stack([voxels[axis] for axis in _PLACE]).max(1).astype(int) + 1), None
    if mask is not None:
        volume = read_labels(mask)
        shape, affine = volume.values.shape, volume.affine
        if np.any(index.max(0) >= shape) or not np.all(volume.values[tuple(index.T)] > 0):
            raise AxisError(
                f"expected the voxels of {name} inside {mask}, got some outside of {shape} or of its voxels > 0"
            )
    ceiling = voxels["nc_singletrial"][keep]
    if not np.all((ceiling >= 0) & (ceiling < 100)):
        raise LayoutError(
            f"expected nc_singletrial of {name} from 0 to below 100 percent, got {ceiling.min()} to {ceiling.max()}"
        )
    ncsnr = np.sqrt(ceiling / (100 - ceiling)).astype(np.float32)
    rois = {key: region[keep] for key, region in regions.items()}
    return VoxelSpace(f"things-{name}-T1w", index, shape, affine, rois, ncsnr)
