"""Writes one subject as the Algonauts Project 2023 did, as `layouts.algonauts2023` reads it."""

from pathlib import Path

import numpy as np
from PIL import Image

from brainmodels.data.dataset import BrainDataset
from brainmodels.data.stimuli import StimulusSet
from brainmodels.errors import BrainDataError
from brainmodels.layouts._nsd import ROI_CLASSES
from tests.brainmodels.written.flat import local, only_subject

__all__ = ["write"]

_FSAVERAGE = 163842


def write(dataset: BrainDataset, root: str | Path) -> None:
    """Write the only subject of a data set, averaged over repeats, to the folder of its id.

    Args:
        dataset: Data set with ids `nsd:<number>` and a space of two hemispheres. Images without trials become the test
            part. Regions that are no labels of the challenge are left out.
        root: Folder of the subjects.
    """
    person = only_subject(dataset)
    folder, space = Path(root) / person.id, person.space
    if space.index.shape[1] != 2:
        raise BrainDataError(f"expected a surface of two hemispheres, got the volume {space.name!r}")
    shown = set(person.responses.trials.image_id.tolist())
    trained = [image_id for image_id in dataset.stimuli.ids if image_id in shown]
    rows = person.responses.rows_of(trained)
    values = np.stack([person.responses.batch(row).mean(0) for row in rows])
    _images(dataset.stimuli, trained, folder / "training_split" / "training_images", "train")
    tested = [image_id for image_id in dataset.stimuli.ids if image_id not in shown]
    _images(dataset.stimuli, tested, folder / "test_split" / "test_images", "test")
    for path in (folder / "training_split" / "training_fmri", folder / "roi_masks"):
        path.mkdir(parents=True)
    for number, side in enumerate(("lh", "rh")):
        here = space.index[:, 0] == number
        np.save(folder / "training_split" / "training_fmri" / f"{side}_training_fmri.npy", values[:, here])
        for name, regions in ROI_CLASSES.items():
            labels = np.zeros(here.sum(), np.float32)
            for label, region in enumerate(regions, 1):
                if region in space.rois:
                    labels[space.rois[region][here]] = label
            if any(region in space.rois for region in regions):
                np.save(folder / "roi_masks" / f"{side}.{name}_challenge_space.npy", labels)
        if space.shape == (_FSAVERAGE, _FSAVERAGE):
            vertices = np.zeros(_FSAVERAGE, np.float32)
            vertices[space.index[here, 1]] = 1
            np.save(folder / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy", vertices)


def _images(stimuli: StimulusSet, ids: list[str], folder: Path, part: str) -> None:
    folder.mkdir(parents=True)
    for number, image_id in enumerate(ids, 1):
        name = f"{part}-{number:04d}_nsd-{int(local(image_id)):05d}.png"
        Image.fromarray(stimuli.image(image_id)).save(folder / name)
