"""Writes a subject as the arrays that Brain-Diffuser, SynBrain and NeuroFlow prepare from NSD."""

from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset, Split, Subject
from brainmodels.errors import BrainDataError
from brainmodels.layouts._nsd import image_name
from brainmodels.layouts.nsd_prepared import KINDS
from tests.brainmodels.written._nsd import (
    check_as_measured,
    image_numbers,
    open_subject,
    stored_betas,
    write_captions,
    write_design,
    z_scored,
)

__all__ = ["write_nsd_prepared"]

_DIVISOR = 2000


def write_nsd_prepared(
    dataset: BrainDataset,
    root: str | Path,
    subject: str,
    split: str | Split,
    number: int = 1,
    kind: str = "fmriavg_nsdgeneral",
    source: str | None = "expdesign",
    pixels: str = "uint8",
) -> dict[str, str]:
    """Write responses, pictures and captions of both parts, images in the order of their first appearance.

    Args:
        dataset: Data set to write. Its images may have any ids, and its pictures have one size.
        root: Folder to write to, which is created if it is missing.
        subject: Id of a subject whose trials run from 0 and sessions from 1, in percent signal change.
        split: Split whose test images are the test part. All other shown images are the train part.
        number: Number of the subject in the names of the files.
        kind: Kind of arrays, one of `layouts.nsd_prepared.KINDS`. All but averages need three presentations of every
            image.
        source: What tells the ids of the rows: "expdesign" writes the design, "ids" writes files of ids, None neither.
        pixels: Type of the pictures, "uint8", or "float64" from 0 to 255 as Brain-Diffuser's script saves them.

    Returns:
        Ids that `layouts.nsd_prepared.load` gives to the images, by their ids in `dataset`.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    person, split, rows = open_subject(dataset, subject, split, number)
    trials, numbers = person.responses.trials[rows], image_numbers(dataset)
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for name in dict.fromkeys(trials.image_id.tolist()):
        parts["test" if name in split.test else "train"].append(name)
    if source == "expdesign":
        write_design(root / "nsd_expdesign.mat", trials, numbers, split.test, number)
    for part, names in parts.items():
        np.save(root / f"nsd_{part}_{kind}_sub{number}.npy", _responses(person, names, kind))
        pictures = np.stack([dataset.stimuli.image(name) for name in names])
        np.save(root / f"nsd_{part}_stim_sub{number}.npy", pictures.astype(pixels))
        write_captions(root / f"nsd_{part}_cap_sub{number}.npy", dataset, names)
        if source == "ids":
            np.save(root / f"nsd_{part}_ids_sub{number}.npy", np.array([numbers[name] for name in names]))
    if kind == "fmri_zscore":
        _write_statistics(root, person, parts["train"], number)
    return {image_id: image_name(image) for image_id, image in numbers.items()}


def _responses(person: Subject, names: list[str], kind: str) -> np.ndarray:
    """Responses to the images in the shape and scale of a kind, fp64."""
    groups = person.responses.rows_of(names)
    if KINDS[kind].repeats == 1:
        check_as_measured(person)
        return np.stack([stored_betas(person, rows).mean(0) for rows in groups])
    if {len(rows) for rows in groups} != {KINDS[kind].repeats}:
        raise BrainDataError(
            f"expected {KINDS[kind].repeats} presentations of every image for {kind!r}, got "
            f"{sorted({len(rows) for rows in groups})}"
        )
    rows = np.concatenate(groups)
    if KINDS[kind].normalizer == "session_z":
        values = z_scored(person, rows).astype(np.float64)
    else:
        check_as_measured(person)
        values = stored_betas(person, rows) / _DIVISOR
    return values.reshape(len(groups), -1, values.shape[1]) if KINDS[kind].ndim == 3 else values


def _write_statistics(root: Path, person: Subject, names: list[str], number: int) -> None:
    """Write the mean and standard deviation of the train trials as betas / 2000, which undo the z-scores."""
    values = stored_betas(person, np.concatenate(person.responses.rows_of(names))) / _DIVISOR
    np.save(root / f"nsd_train_global_mean_scaled_sub{number}.npy", values.mean(0).astype(np.float32))
    np.save(root / f"nsd_train_global_std_scaled_sub{number}.npy", values.std(0).astype(np.float32))
