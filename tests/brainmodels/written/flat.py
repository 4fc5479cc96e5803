"""Writes one subject as arrays and images, as `layouts.flat` reads them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from brainmodels.data.dataset import BrainDataset, Split, Subject
from brainmodels.data.stimuli import StimulusSet
from brainmodels.errors import BrainDataError, need

__all__ = ["write", "write_images", "write_volume"]


def write(
    dataset: BrainDataset, root: str | Path, *, ids: str = ".csv", images: str = "files", split: Split | None = None
) -> None:
    """Write the only subject of a data set.

    Args:
        dataset: Data set to write. Values are written as stored, without their scale, and ids without namespace.
        root: Folder to write to, which is created if it is missing.
        ids: Format of the list of ids. ".csv" has all columns of the trials. ".npy", ".txt" and ".json" have sessions
            and runs in separate files.
        images: "files" writes PNG files named by id, "array" writes `X.npy`.
        split: Split whose test images are listed in a file. None writes no such file.
    """
    root, person = Path(root), only_subject(dataset)
    root.mkdir(parents=True, exist_ok=True)
    responses, trials, space = person.responses, person.responses.trials, person.space
    np.save(root / "Y.npy", responses.values if responses.rows is None else responses.values[responses.rows])
    names = [local(image_id) for image_id in trials.image_id]
    if ids == ".csv":
        columns = [names, *(getattr(trials, key).tolist() for key in ("session", "run", "repeat", "trial"))]
        lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
        (root / "ids.csv").write_text("\n".join(["image_id,session,run,repeat,trial", *lines]) + "\n")
    else:
        write_list(root / f"ids{ids}", names)
        np.save(root / "sessions.npy", trials.session)
        np.save(root / "runs.npy", trials.run)
    if images == "files":
        write_images(dataset.stimuli, root / "images")
    else:
        np.save(root / "X.npy", np.stack([dataset.stimuli.image(image_id) for image_id in dataset.stimuli.ids]))
        write_list(root / "image_ids.json", [local(image_id) for image_id in dataset.stimuli.ids])
    if split is not None:
        write_list(root / "test_ids.txt", sorted(local(image_id) for image_id in split.test))
    (root / "rois").mkdir(exist_ok=True)
    if space.affine is not None:
        mask = space.volume(np.ones(len(space)), 0)
        write_volume(root / "mask.nii.gz", mask.astype(np.uint8), space.affine)
    for name, region in space.rois.items():
        np.save(root / "rois" / f"{name}.npy", region)
    if space.ncsnr is not None:
        np.save(root / "ncsnr.npy", space.ncsnr)


def only_subject(dataset: BrainDataset) -> Subject:
    """The only subject of a data set."""
    if len(dataset.subjects) != 1:
        raise BrainDataError(f"expected a data set of one subject, got {', '.join(dataset.subjects)}")
    return next(iter(dataset.subjects.values()))


def local(image_id: str) -> str:
    """An id without its namespace."""
    return str(image_id).split(":", 1)[-1]


def write_list(path: Path, names: list[str]) -> None:
    """Write ids as .npy, .txt or .json."""
    if path.suffix == ".npy":
        np.save(path, np.array(names))
    else:
        path.write_text(json.dumps(names) if path.suffix == ".json" else "\n".join(names) + "\n")


def write_images(stimuli: StimulusSet, folder: Path) -> None:
    """Write all pictures as PNG files named by id, without the namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in stimuli.ids:
        Image.fromarray(stimuli.image(image_id)).save(folder / f"{local(image_id)}.png")


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI image."""
    try:
        import nibabel
    except ImportError as error:
        raise need("nibabel", f"writing {path.name}") from error
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
