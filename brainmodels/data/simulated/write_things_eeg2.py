"""Writes a simulated subject as a folder of THINGS-EEG2, in either of its encodings or converted."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from veca.data.scenes import SHAPES

from ...errors import BrainDataError
from ..dataset import BrainDataset

__all__ = ["write_things_eeg2"]

_IMAGES_PER_CONCEPT = 10
_CUT = 50


def write_things_eeg2(
    dataset: BrainDataset,
    root: str | Path,
    subject: str = "sim01",
    split: str = "scenes",
    encoding: str = "array",
    whitening: str | None = "none",
    images_per_concept: int = _IMAGES_PER_CONCEPT,
    image_size: int = 64,
) -> dict[str, str]:
    """Write images and one subject's responses.

    A training concept is a shape with its first images of the train part; shapes with too few of them are left out.
    Each test image is a concept of its own. All images of a part have to be shown equally often.

    Args:
        dataset: of `simulate_eeg`.
        root: created where it is missing.
        subject: becomes sub-01 for sim01.
        split: whose train (and validation) and test images are taken.
        encoding: "array" for a dict in an object array, "pickle" for a bare pickle, "npz".
        whitening: stored under that key; None leaves the key out, as published files do.
        images_per_concept: of the training part.
        image_size: pixels; JPEG, so pictures come back changed a little.

    Returns:
        The ids that `layouts.things_eeg2.load` gives to images, by their ids in `dataset`.
    """
    root, person = Path(root), dataset.subject(subject)
    folder = root / "Preprocessed_data_250Hz" / f"sub-{subject[-2:]}"
    folder.mkdir(parents=True, exist_ok=True)
    times = person.space.times
    early = times[0] - np.arange(_CUT, 0, -1) / person.space.sfreq  # `times` keeps what was cut from the data
    new_ids = {}
    for part, named in _choose(dataset, split, images_per_concept).items():
        for image_id, (concept, stem) in named.items():
            path = root / "images" / f"{part}_images" / concept / f"{stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dataset.stimuli.image(image_id, image_size)).save(path, quality=95)
            new_ids[image_id] = f"things:{stem}"
        ordered = sorted(named, key=lambda image_id: named[image_id])
        trials = person.responses.rows_of(ordered)
        content = {
            "preprocessed_eeg_data": np.stack([person.responses.batch(rows) for rows in trials]).astype(np.float64),
            "ch_names": list(person.space.ch_names),
            "times": np.concatenate([early, times]),
        }
        content |= {} if whitening is None else {"whitening": whitening}
        _save(folder / f"preprocessed_eeg_{part}.npy", content, encoding)
    return new_ids


def _save(path: Path, content: Mapping, encoding: str) -> None:
    if encoding == "array":
        np.save(path, np.array(content, dtype=object), allow_pickle=True)
    elif encoding == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    elif encoding == "npz":
        np.savez(path.with_suffix(".npz"), **content)
    else:
        raise BrainDataError(f"expected encoding 'array', 'pickle' or 'npz', got {encoding!r}")


def _choose(dataset: BrainDataset, split: str, per_concept: int) -> dict[str, dict[str, tuple[str, str]]]:
    """(folder of the concept, name) of each image, by part and image id."""
    parts = dataset.split(split)
    train = [image_id for image_id in dataset.stimuli.ids.tolist() if image_id in parts.train | parts.val]
    shapes = dataset.stimuli.label("shape", train)
    groups = [[i for i, found in zip(train, shapes, strict=True) if found == shape] for shape in SHAPES]
    groups = [
        (shape, group[:per_concept]) for shape, group in zip(SHAPES, groups, strict=True) if len(group) >= per_concept
    ]
    if not groups:
        raise BrainDataError(
            f"expected {per_concept} train images of at least one shape, got fewer of each; simulate more"
        )
    training = {
        image_id: (f"{number:05d}_{shape}", f"{shape}_{index:02d}s")
        for number, (shape, group) in enumerate(groups, 1)
        for index, image_id in enumerate(group)
    }
    shown = [image_id for image_id in dataset.stimuli.ids.tolist() if image_id in parts.test]
    colors, shapes = (dataset.stimuli.label(name, shown) for name in ("color", "shape"))
    test = {
        image_id: (f"{number:05d}_{color}_{shape}", f"{color}_{shape}_{number:03d}s")
        for number, (image_id, color, shape) in enumerate(zip(shown, colors, shapes, strict=True), 1)
    }
    return {"training": training, "test": test}
