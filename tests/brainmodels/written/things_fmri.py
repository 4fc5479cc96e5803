"""Writes one subject as the tables of THINGS-fMRI, as `layouts.things_fmri` reads them."""

import csv
from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset
from brainmodels.errors import BrainDataError
from tests.brainmodels.written.flat import local, only_subject
from tests.brainmodels.written.hdf5 import new_hdf5

__all__ = ["write"]

_TEST_REPEATS = 12


def write(dataset: BrainDataset, root: str | Path, *, voxel_id: str = "block") -> None:
    """Write the only subject of a data set, whose test images are those of its split "things".

    Args:
        dataset: Data set with ids `things:<stem>`, the label "concept", and a space with ncsnr.
        root: Folder to write to, which is created if it is missing.
        voxel_id: "block" writes the numbers of the voxels as an integer block, as in the published files. "column"
            writes them as the first column of the responses.
    """
    root, person, test = Path(root), only_subject(dataset), dataset.split("things").test
    root.mkdir(parents=True, exist_ok=True)
    trials, space = person.responses.trials, person.space
    if space.ncsnr is None:
        raise BrainDataError("expected a space with ncsnr, which the table of voxels holds as noise ceilings, got none")
    values = person.responses.batch(np.arange(len(trials))).astype(np.float64).T  # (voxels, trials)
    numbers = np.arange(len(space))[:, None]
    with new_hdf5(root / f"{person.id}_ResponseData.h5") as file:
        group = file.create_group("ResponseData")
        group.attrs["pandas_type"] = "frame"
        if voxel_id == "column":
            group["block0_values"] = np.concatenate([numbers, values], 1)
        else:
            group["block0_values"], group["block1_values"] = values, numbers
    stems = [local(image_id) for image_id in trials.image_id]
    concepts = dataset.stimuli.label("concept", trials.image_id)
    rows = [
        ("test" if image_id in test else "train", session, run, number, f"{stem}.jpg", concept)
        for number, (image_id, session, run, stem, concept) in enumerate(
            zip(trials.image_id, trials.session, trials.run, stems, concepts, strict=True)
        )
    ]
    header = ("trial_type", "session", "run", "trial_id", "stimulus", "concept")
    _table(root / f"{person.id}_StimulusMetadata.csv", header, rows)
    squared = space.ncsnr.astype(np.float64) ** 2
    single, mean = (100 * squared / (squared + 1 / repeats) for repeats in (1, _TEST_REPEATS))
    header = ("voxel_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial", "nc_testset", "prf-size", *space.rois)
    regions = [roi.astype(int) for roi in space.rois.values()]
    rows = zip(numbers[:, 0], *space.index.T, single, mean, [""] * len(space), *regions, strict=True)
    _table(root / f"{person.id}_VoxelMetadata.csv", header, rows)


def _table(path: Path, header: tuple[str, ...], rows: object) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
