"""Writes one subject as a file of bdpy, as `layouts.god` reads it."""

from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset
from tests.brainmodels.written.flat import local, only_subject
from tests.brainmodels.written.hdf5 import new_hdf5

__all__ = ["write"]


def write(dataset: BrainDataset, path: str | Path, *, older: bool = False) -> None:
    """Write the only subject of a data set.

    As in the published files, the columns of the design come before those of the voxels.

    Args:
        dataset: Data set with ids `god:n<WordNet id>_<number>`, or `god:n<WordNet id>` for imagined categories. The
            test images are those of its split "god".
        path: Path of the .h5 file.
        older: Whether to use the older spellings `dataSet`, `metaData` and `Label`.
    """
    person, test = only_subject(dataset), dataset.split("god").test
    trials, space = person.responses.trials, person.space
    kind = [_kind(image_id, test) for image_id in trials.image_id]
    design = {
        "DataType": kind,
        "Label" if older else "stimulus_id": [_number(image_id) for image_id in trials.image_id],
        "Session": trials.session,
        "Run": trials.run,
    }
    values = person.responses.batch(np.arange(len(trials)))
    data = np.concatenate([np.stack(list(design.values()), 1).astype(np.float64), values.astype(np.float64)], 1)
    keys, rows = list(design), np.full((len(design), data.shape[1]), np.nan)
    rows[np.arange(len(design)), np.arange(len(design))] = 1
    voxels = {"VoxelData": np.ones(len(space))} | {f"ROI_{name}": roi.astype(float) for name, roi in space.rois.items()}
    if space.affine is not None:
        place = space.index @ space.affine[:3, :3].T + space.affine[:3, 3]
        voxels |= {f"voxel_{axis}": column for axis, column in zip("xyz", place.T, strict=True)}
    more = np.full((len(voxels), data.shape[1]), np.nan)
    more[:, len(design) :] = list(voxels.values())
    names = ("dataSet", "metaData") if older else ("dataset", "metadata")
    with new_hdf5(path) as file:
        file[names[0]] = data
        file[f"{names[1]}/key"] = [key.encode() for key in [*keys, *voxels]]
        file[f"{names[1]}/description"] = [b"" for _ in [*keys, *voxels]]
        file[f"{names[1]}/value"] = np.concatenate([rows, more])


def _kind(image_id: str, test: frozenset[str]) -> int:
    if "_" not in image_id:
        return 3
    return 2 if image_id in test else 1


def _number(image_id: str) -> float:
    """`god:n01518878_10042` as 1518878.010042."""
    word, _, image = local(image_id).removeprefix("n").partition("_")
    return float(f"{int(word)}.{int(image or 0):06d}")
