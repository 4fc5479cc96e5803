"""Writes a subject as MindEye's tar archives of the Natural Scenes Dataset: an image and its responses a sample."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from brainmodels.data.dataset import BrainDataset, Split
from brainmodels.errors import BrainDataError
from brainmodels.layouts._nsd import image_name
from tests.brainmodels.written._nsd import image_numbers, open_subject, write_captions, z_scored
from tests.brainmodels.written.mindeye2 import add_sample

__all__ = ["write_mindeye1"]

_REPEATS = 3


def write_mindeye1(
    dataset: BrainDataset,
    root: str | Path,
    subject: str,
    split: str | Split,
    number: int = 1,
    per_archive: int = 500,
    picture: str = "jpg",
    seed: int = 0,
) -> dict[str, str]:
    """Write responses z-scored per session with their pictures, and captions.

    Args:
        dataset: Data set to write. Its images may have any ids.
        root: Folder to write to, which is created if it is missing.
        subject: Id of a subject whose trials run from 0 and sessions from 1, with up to three presentations an image.
        split: Split whose parts become the folders train, val and test.
        number: Number of the subject in the names of the files.
        per_archive: Number of samples in an archive.
        picture: Format of the pictures, "jpg" (lossy) or "png".
        seed: Seed of the order of samples, whose numbers have no meaning.

    Returns:
        Ids that `layouts.mindeye1.load` gives to the images, by their ids in `dataset`.
    """
    root, name = Path(root), f"subj{number:02d}"
    person, split, _ = open_subject(dataset, subject, split, number)
    numbers, trials = image_numbers(dataset), person.responses.trials
    values, samples = z_scored(person, np.arange(len(trials))), 0
    for part in ("train", "val", "test"):
        shown = sorted(split.ids(part) & set(trials.image_id.tolist()))
        shown = np.random.default_rng(seed).permutation(np.array(shown, dtype=str)).tolist()
        folder = root / "webdataset_avg_split" / part
        folder.mkdir(parents=True, exist_ok=True)
        for archive, start in enumerate(range(0, len(shown), per_archive)):
            chosen = shown[start : start + per_archive]
            with tarfile.open(folder / f"{part}_{name}_{archive}.tar", "w") as file:
                for image_id, rows in zip(chosen, person.responses.rows_of(chosen), strict=True):
                    if len(rows) > _REPEATS:
                        raise BrainDataError(f"expected up to {_REPEATS} presentations of {image_id}, got {len(rows)}")
                    members = {
                        picture: _encode(dataset.stimuli.image(image_id), picture),
                        "nsdgeneral.npy": values[np.resize(rows, _REPEATS)],
                        "coco73k.npy": np.array([numbers[image_id]]),
                        "trial.npy": np.array([trials.trial[rows[0]]]),
                        "num_uniques.npy": np.array([len(rows)]),
                    }
                    add_sample(file, f"sample{samples:09d}", members)
                    samples += 1
    names = {image: image_id for image_id, image in numbers.items()}
    write_captions(root / "COCO_73k_annots_curated.npy", dataset, [names.get(row) for row in range(max(names) + 1)])
    return {image_id: image_name(image) for image_id, image in numbers.items()}


def _encode(pixels: np.ndarray, picture: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG" if picture == "jpg" else "PNG")
    return file.getvalue()
