"""Writes a subject as a folder of the Natural Scenes Dataset, as `layouts.nsd_native` reads it."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset, Split
from brainmodels.data.spaces import VoxelSpace
from brainmodels.errors import BrainDataError, need
from brainmodels.layouts._nsd import ROI_CLASSES, SESSIONS, image_name
from brainmodels.layouts.nsd_native import BETAS
from tests.brainmodels.written._nsd import (
    check_as_measured,
    image_numbers,
    open_subject,
    stored_betas,
    write_captions,
    write_design,
)
from tests.brainmodels.written.hdf5 import new_hdf5

__all__ = ["write_nsd_native"]

_WHOLE = {"V1": "V1v", "V2": "V2v", "V3": "V3v", "V4": "hV4"}  # a joined region is written as one of its parts


def write_nsd_native(
    dataset: BrainDataset,
    root: str | Path,
    subject: str,
    split: str | Split,
    number: int = 1,
    suffixes: Sequence[str] = ("nii.gz",),
    dtype: str = "int16",
) -> dict[str, str]:
    """Write betas, design, regions, reliability, pictures and captions.

    Args:
        dataset: Data set to write, with a volume. Its images may have any ids, and its pictures have one size.
        root: Folder to write to, which is created if it is missing.
        subject: Id of a subject whose trials run from 0 and sessions from 1, in percent signal change.
        split: Split whose test images become the shared ones.
        number: Number of the subject in the folder.
        suffixes: Suffixes of the files of betas: "nii.gz", "hdf5" or both.
        dtype: "int16" writes percent signal change x 300, rounded. "float32" writes percent signal change.

    Returns:
        Ids that `layouts.nsd_native.load` gives to the images, by their ids in `dataset`.
    """
    root, name = Path(root), f"subj{number:02d}"
    person, split, rows = open_subject(dataset, subject, split, number)
    check_as_measured(person)
    space, trials, numbers = person.space, person.responses.trials[rows], image_numbers(dataset)
    if not isinstance(space, VoxelSpace) or space.index.shape[1] != 3:
        raise BrainDataError(f"expected voxels of a volume, got {type(space).__name__} {space.name!r}")
    experiment = root / "nsddata" / "experiments" / "nsd"
    shown = write_design(experiment / "nsd_expdesign.mat", trials, numbers, split.test, number)
    shared = {numbers[image_id] for image_id in split.test}
    _write_table(experiment / "nsd_stim_info_merged.csv", sorted(numbers.values()), shown, shared, number)
    folder = root / "nsddata_betas" / "ppdata" / name / "func1pt8mm" / BETAS
    folder.mkdir(parents=True, exist_ok=True)
    for session in np.unique(trials.session):
        betas = stored_betas(person, rows[trials.session == session])
        betas = _as_int16(betas) if dtype == "int16" else (betas / 300).astype(np.float32)
        volume = np.zeros((*space.shape, len(betas)), betas.dtype)
        volume[tuple(space.index.T)] = betas.T
        for suffix in suffixes:
            _write_betas(folder / f"betas_session{session:02d}.{suffix}", volume, space)
    if space.ncsnr is not None:
        _save(folder / "ncsnr.nii.gz", space.volume(space.ncsnr.astype(np.float32)), space)
    _write_regions(root, name, space)
    _write_stimuli(root, dataset, numbers)
    return {image_id: image_name(image) for image_id, image in numbers.items()}


def _as_int16(betas: np.ndarray) -> np.ndarray:
    rounded, limits = np.rint(betas), np.iinfo(np.int16)
    if not (limits.min <= rounded.min() and rounded.max() <= limits.max):
        raise BrainDataError(
            f"expected betas within {limits.min / 300:.0f} to {limits.max / 300:.0f} %, got sizes up to "
            f"{np.abs(betas).max() / 300:.0f} %"
        )
    return rounded.astype(np.int16)


def _write_betas(path: Path, volume: np.ndarray, space: VoxelSpace) -> None:
    if path.suffix == ".hdf5":
        with new_hdf5(path) as file:
            file.create_dataset("betas", data=volume.T)  # (trials, z, y, x), the order of a file from MATLAB
    else:
        _save(path, volume, space)


def _save(path: Path, volume: np.ndarray, space: VoxelSpace) -> None:
    try:
        import nibabel
    except ImportError as error:
        raise need("nibabel", f"writing {path.name}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if space.affine is None else space.affine
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def _write_regions(root: Path, name: str, space: VoxelSpace) -> None:
    """Write nsdgeneral with -1, 0 and 1, and the regions of the space by class, with their tables of labels."""
    folder = root / "nsddata" / "ppdata" / name / "func1pt8mm" / "roi"
    labels = np.full(space.shape, -1, np.int16)
    labels[: space.shape[0] // 2] = 0  # outside of the mask, published volumes have both 0 and -1
    labels[tuple(space.index.T)] = 1
    _save(folder / "nsdgeneral.nii.gz", labels, space)
    by_class: dict[str, dict[str, np.ndarray]] = {}
    for region, mask in space.rois.items():
        written = region if region not in _WHOLE or _WHOLE[region] in space.rois else _WHOLE[region]
        key = next((key for key, names in ROI_CLASSES.items() if written in names), region)
        if not (region in _WHOLE and written == region):  # the reader joins a region whose parts are there
            by_class.setdefault(key, {})[written] = mask
    tables = root / "nsddata" / "freesurfer" / name / "label"
    tables.mkdir(parents=True, exist_ok=True)
    for key, regions in by_class.items():
        if (np.sum(list(regions.values()), 0) > 1).any():
            raise BrainDataError(f"expected regions of {key} that do not overlap, got {', '.join(regions)}")
        names = ROI_CLASSES.get(key, (key,))
        labels = np.full(space.shape, -1, np.int16)
        values = np.zeros(len(space), np.int16)
        for region, mask in regions.items():
            values[mask] = names.index(region) + 1
        labels[tuple(space.index.T)] = values
        _save(folder / f"{key}.nii.gz", labels, space)
        lines = ["0 Unknown", *(f"{value} {region}" for value, region in enumerate(names, 1))]
        (tables / f"{key}.mgz.ctab").write_text("\n".join(lines) + "\n")


def _write_table(path: Path, images: Sequence[int], shown: np.ndarray, shared: set[int], number: int) -> None:
    """Write `nsd_stim_info_merged.csv`: a row an image, with the trials that showed it, from 1, or 0."""
    people = range(1, len(SESSIONS) + 1)
    repeats = [f"subject{person}_rep{repeat}" for person in people for repeat in range(3)]
    columns = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"subject{person}" for person in people), *repeats])
        for image in images:
            at = (np.flatnonzero(shown == image)[:3] + 1).tolist()
            seen = [int(person == number and bool(at)) for person in people]
            trials = [(at + [0] * 3)[:3] if person == number else [0] * 3 for person in people]
            coco = [image, 1000 + image, "train2017", "(0, 0, 0, 0)", 0.0, image, False, False, image in shared]
            writer.writerow([*coco, *seen, *(trial for three in trials for trial in three)])


def _write_stimuli(root: Path, dataset: BrainDataset, numbers: dict[str, int]) -> None:
    """Write pictures and captions by 73k id. Rows without an image are black and empty."""
    names = {image: image_id for image_id, image in numbers.items()}
    count, shape = max(names) + 1, dataset.stimuli.image(names[min(names)]).shape
    with new_hdf5(root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5") as file:
        bricks = file.create_dataset("imgBrick", (count, *shape), np.uint8, chunks=(1, *shape))
        for image, image_id in names.items():
            bricks[image] = dataset.stimuli.image(image_id)
    write_captions(root / "COCO_73k_annots_curated.npy", dataset, [names.get(image) for image in range(count)])
