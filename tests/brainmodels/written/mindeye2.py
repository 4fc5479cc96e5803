"""Writes a subject as MindEye2's release of the Natural Scenes Dataset: HDF5 files and tar archives of trials."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset, Split
from brainmodels.data.responses import TrialTable
from brainmodels.layouts._nsd import image_name
from brainmodels.layouts.mindeye2 import COLUMNS
from tests.brainmodels.written._nsd import image_numbers, open_subject, write_captions, z_scored
from tests.brainmodels.written.hdf5 import new_hdf5

__all__ = ["add_sample", "write_mindeye2"]

_AROUND = 15  # trials before and after
_OLDS = 3


def write_mindeye2(
    dataset: BrainDataset,
    root: str | Path,
    subject: str,
    split: str | Split,
    number: int = 1,
    size: int = 224,
) -> dict[str, str]:
    """Write responses z-scored per session, pictures, captions, and an archive of trials a session.

    Args:
        dataset: Data set to write. Its images may have any ids.
        root: Folder to write to, which is created if it is missing.
        subject: Id of a subject whose trials run from 0 and sessions from 1.
        split: Split whose test images become the shared ones.
        number: Number of the subject in the names of the files.
        size: Side of the pictures in pixels.

    Returns:
        Ids that `layouts.mindeye2.load` gives to the images, by their ids in `dataset`.
    """
    root = Path(root)
    person, split, rows = open_subject(dataset, subject, split, number)
    trials, numbers = person.responses.trials[rows], image_numbers(dataset)
    with new_hdf5(root / f"betas_all_subj{number:02d}_fp32_renorm.hdf5") as file:
        file.create_dataset("betas", data=z_scored(person, rows).astype(np.float32))
    names = {image: image_id for image_id, image in numbers.items()}
    count = max(names) + 1
    with new_hdf5(root / "coco_images_224_float16.hdf5") as file:
        shape = (3, size, size)
        images = file.create_dataset("images", (count, *shape), np.float16, chunks=(1, *shape))
        for image, image_id in names.items():
            images[image] = (dataset.stimuli.image(image_id, size).astype(np.float32) / 255).transpose(2, 0, 1)
    write_captions(root / "COCO_73k_annots_curated.npy", dataset, [names.get(image) for image in range(count)])
    behaviour = _behaviour(trials, numbers, split.test, number)
    folder = root / "wds" / f"subj{number:02d}"
    shared = behaviour[:, COLUMNS.index("shared")] == 1
    for session in np.unique(trials.session):
        _write_archive(
            folder / "train" / f"{session - 1}.tar", behaviour, np.flatnonzero(~shared & (trials.session == session))
        )
    by_image = np.lexsort((trials.trial, behaviour[:, COLUMNS.index("image")]))  # test trials are sorted by image
    _write_archive(folder / "new_test" / "0.tar", behaviour, by_image[shared[by_image]])
    return {image_id: image_name(image) for image_id, image in numbers.items()}


def _behaviour(trials: TrialTable, numbers: Mapping[str, int], shared: frozenset[str], subject: int) -> np.ndarray:
    """Columns of behav.npy, (trials, 17), with -1 where nothing is known."""
    out = np.full((len(trials), len(COLUMNS)), -1.0)
    known = {
        "image": [numbers[name] for name in trials.image_id.tolist()],
        "subject": subject,
        "session": trials.session,
        "run": trials.run,
        "global_trial": trials.trial,
        "is_old": trials.repeat > 0,
        "shared": np.isin(trials.image_id, sorted(shared)),
    }
    for column, values in known.items():
        out[:, COLUMNS.index(column)] = values
    return out


def _write_archive(path: Path, behaviour: np.ndarray, trials: np.ndarray) -> None:
    """Write an archive with one sample a trial: the trial, those around it, and earlier ones of its image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    padded = np.pad(behaviour, ((_AROUND, _AROUND), (0, 0)), constant_values=-1)
    with tarfile.open(path, "w") as archive:
        for trial in trials.tolist():
            olds = np.full((_OLDS, len(COLUMNS)), -1.0)
            earlier = behaviour[:trial][behaviour[:trial, 0] == behaviour[trial, 0]][-_OLDS:]
            olds[: len(earlier)] = earlier
            arrays = {
                "behav.npy": behaviour[trial : trial + 1],
                "past_behav.npy": padded[trial : trial + _AROUND],
                "future_behav.npy": padded[trial + _AROUND + 1 : trial + 2 * _AROUND + 1],
                "olds_behav.npy": olds,
            }
            add_sample(archive, f"sample{trial:09d}", arrays)


def add_sample(archive: tarfile.TarFile, sample: str, members: Mapping[str, np.ndarray | bytes]) -> None:
    """Add the members of a sample to an archive, arrays as `.npy` and bytes unchanged."""
    for kind, content in members.items():
        if isinstance(content, np.ndarray):
            file = io.BytesIO()
            np.save(file, content, allow_pickle=False)
            content = file.getvalue()
        info = tarfile.TarInfo(f"{sample}.{kind}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
