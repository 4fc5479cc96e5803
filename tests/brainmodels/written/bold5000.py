"""Writes one subject as release 2 of BOLD5000, as `layouts.bold5000` reads it."""

from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset
from brainmodels.errors import BrainDataError
from tests.brainmodels.written.flat import local, only_subject, write_images, write_volume

__all__ = ["write"]

_BETAS = "GLMbetas-TYPED-FITHRF-GLMDENOISE-RR"


def write(
    dataset: BrainDataset, root: str | Path, *, arrays: bool = False, misspelt: dict[str, str] | None = None
) -> None:
    """Write the only subject of a data set, fp32, trials in the order of their sessions.

    As in the release, the betas have another affine than the mask, and repeated presentations have the prefix `rep_`.

    Args:
        dataset: Data set with a subject "CSIx" and sessions 1, 2, ... in rising order.
        root: Folder to write to, which is created if it is missing.
        arrays: Whether to write one array a region over all sessions, in place of volumes.
        misspelt: Names in the files of regions, where they differ, such as {"LHLOC": "LHLO"}.
    """
    root, person = Path(root), only_subject(dataset)
    root.mkdir(parents=True, exist_ok=True)
    trials, space = person.responses.trials, person.space
    values = person.responses.batch(np.arange(len(trials)))
    if np.any(np.diff(trials.session) < 0):
        raise BrainDataError("expected trials in the order of their sessions, got another order")
    names = [
        ("rep_" if repeat else "") + local(name) + ".png"
        for name, repeat in zip(trials.image_id, trials.repeat, strict=True)
    ]
    (root / f"{person.id}_imgnames.txt").write_text("\n".join(names) + "\n")
    write_images(dataset.stimuli, root / "Scene_Stimuli" / "Presented_Stimuli")
    if arrays:
        for name, region in space.rois.items():
            np.save(root / f"{person.id}_{_BETAS}_allses_{name}.npy", values[:, region])
        return
    wrong = np.eye(4)
    for session in np.unique(trials.session):
        volume = space.volume(values[trials.session == session].T, 0)
        write_volume(root / f"{person.id}_{_BETAS}_ses-{session:02d}.nii.gz", volume, wrong)
    write_volume(
        root / f"{person.id}_brainmask.nii.gz", space.volume(np.ones(len(space)), 0).astype(np.uint8), space.affine
    )
    (root / f"sub-{person.id}").mkdir()
    for name, region in space.rois.items():
        volume = space.volume(region.astype(np.float32), 0).astype(np.uint8)
        file = (misspelt or {}).get(name, name)
        write_volume(root / f"sub-{person.id}" / f"sub-{person.id}_mask-{file}.nii.gz", volume, space.affine)
