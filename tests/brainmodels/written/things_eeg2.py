"""Writes a simulated subject as a folder of THINGS-EEG2, preprocessed or raw, in either encoding or converted."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from brainmodels.data.dataset import BrainDataset, Subject
from brainmodels.errors import BrainDataError
from veca.data.scenes import SHAPES

__all__ = ["write_things_eeg2", "write_things_eeg2_raw"]

_IMAGES_PER_CONCEPT = 10
_CUT = 50
_RATE = 1000  # hertz, sampling rate of raw data
_TARGET = 99999
VOLTS = 1e-5  # volts of one standard deviation of the simulated noise


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

    A training concept is a shape with its first images of the train part. Shapes with too few images are left out. Each
    test image is a different concept. All images of a part must be shown equally often.

    Args:
        dataset: Data set of `simulate_eeg`.
        root: Folder to write to, which is created if it is missing.
        subject: Id of the subject. sim01 becomes sub-01.
        split: Name of the split whose train, validation and test images are taken.
        encoding: "array" for a dict in an object array, "pickle" for a bare pickle, or "npz".
        whitening: Value of the key "whitening". None leaves the key out, as published files do.
        images_per_concept: Number of images of a training concept.
        image_size: Side of the pictures in pixels. They are JPEG files, so their pixels change a little.

    Returns:
        Ids that `layouts.things_eeg2.load` gives to the images, by their ids in `dataset`.
    """
    root, person = Path(root), dataset.subject(subject)
    folder = root / "Preprocessed_data_250Hz" / f"sub-{subject[-2:]}"
    folder.mkdir(parents=True, exist_ok=True)
    times = person.space.times
    early = times[0] - np.arange(_CUT, 0, -1) / person.space.sfreq  # `times` keeps what was cut from the data
    new_ids = {}
    for part, named in _choose(dataset, split, images_per_concept).items():
        new_ids |= _save_images(dataset, root, part, named, image_size)
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


def write_things_eeg2_raw(
    dataset: BrainDataset,
    root: str | Path,
    subject: str = "sim01",
    split: str = "scenes",
    encoding: str = "npz",
    sessions: int = 4,
    images_per_concept: int = _IMAGES_PER_CONCEPT,
    image_size: int = 64,
) -> dict[str, str]:
    """Write images, and recordings of one subject's trials at 1 kHz.

    Each sample of the simulation is repeated until it fills its time at 1 kHz, and half a second of zeros comes before
    and after each trial. Epochs of the length of a trial at 1 kHz, without baseline, then contain every stored value. A
    target of code 99999 lies in the pause after each trial. Other arguments are those of `write_things_eeg2`.

    Args:
        dataset: Data set of `simulate_eeg`, whose rate must divide 1 kHz. One unit of its values becomes 10 microvolts.
        sessions: Number of sessions. The trials of each part are divided among them equally, in the order of time.

    Returns:
        Ids that `layouts.things_eeg2.load` gives to the images, by their ids in `dataset`.
    """
    root, person = Path(root), dataset.subject(subject)
    if _RATE % person.space.sfreq:
        raise BrainDataError(f"expected a rate that divides {_RATE} Hz, got {person.space.sfreq:g} Hz")
    new_ids = {}
    for part, named in _choose(dataset, split, images_per_concept).items():
        new_ids |= _save_images(dataset, root, part, named, image_size)
        codes = {image_id: code for code, image_id in enumerate(sorted(named, key=lambda name: named[name]), 1)}
        shown = person.responses.trials.image_id
        trials = np.flatnonzero(np.isin(shown, list(codes)))
        for session, rows in enumerate(np.array_split(trials, sessions), 1):
            folder = root / "raw_data" / f"sub-{subject[-2:]}" / f"ses-{session:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            content = {
                "raw_eeg_data": _recording(person, rows, [codes[image_id] for image_id in shown[rows].tolist()]),
                "ch_names": [*person.space.ch_names, "stim"],
                "ch_types": ["eeg"] * len(person.space) + ["stim"],
                "sfreq": _RATE,
            }
            _save(folder / f"raw_eeg_{part}.npy", content, encoding)
    return new_ids


def _recording(person: Subject, rows: np.ndarray, codes: Sequence[int]) -> np.ndarray:
    """Recording of these trials, float64 (channels + 1, samples), with the triggers in the last channel."""
    hold, pause = round(_RATE / person.space.sfreq), np.zeros((len(person.space) + 1, _RATE // 2))
    onset = -round(person.space.times[0] * _RATE)
    after = pause.copy()
    after[-1, _RATE // 4] = _TARGET
    pieces = [pause]
    for trial, code in zip(person.responses.batch(rows), codes, strict=True):
        held = np.repeat(trial.astype(np.float64) * VOLTS, hold, axis=1)
        triggers = np.zeros((1, held.shape[1]))
        triggers[0, onset] = code
        pieces += [np.concatenate([held, triggers]), after]
    return np.concatenate(pieces, axis=1)


def _save_images(
    dataset: BrainDataset, root: Path, part: str, named: Mapping[str, tuple[str, str]], image_size: int
) -> dict[str, str]:
    """Write the pictures of a part, and return their new ids."""
    for image_id, (concept, stem) in named.items():
        path = root / "images" / f"{part}_images" / concept / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.stimuli.image(image_id, image_size)).save(path, quality=95)
    return {image_id: f"things:{stem}" for image_id, (_, stem) in named.items()}


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
    """Folder of the concept and name of each image, by part and image id."""
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
