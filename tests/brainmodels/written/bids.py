"""Writes a subject as a BIDS folder, with derivatives named as by fMRIPrep and GLMsingle, for `layouts.bids`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.cifti2 import cifti2_axes
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable
from PIL import Image

from brainmodels.data.dataset import BrainDataset, Subject
from tests.brainmodels.written.flat import local
from tests.brainmodels.written.hdf5 import new_hdf5

__all__ = ["SLOPE", "Written", "as_int16", "save", "write_bids"]

SLOPE = 0.004  # of int16 betas
_EVERY = 7  # trials between two lines of the events that show no image
_MEDIAL = 5  # vertices of each hemisphere without a signal
_HEMISPHERES = {"L": "CORTEX_LEFT", "R": "CORTEX_RIGHT"}


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        root: BIDS folder.
        ids: Ids that `layouts.bids.load` gives to the images, by their ids in the data set.
        voxels: Voxels of the subject in the order in which they are read, (V,).
        values: Betas in that order, (trials, voxels), as they should be read.
        index: Positions of these voxels.
        betas: Files of betas by session.
        events: Files of events by (session, run).
    """

    root: Path
    ids: dict[str, str]
    voxels: np.ndarray
    values: np.ndarray
    index: np.ndarray
    betas: dict[int, list[Path]]
    events: dict[tuple[int, int], Path]


def write_bids(
    dataset: BrainDataset,
    root: str | Path,
    subject: str,
    label: str = "01",
    betas: str = "nii.gz",
    runs: int = 2,
    dead: int = 3,
    space: str = "T1w",
    folder: Callable[[str], str] = lambda name: f"set{int(name[-1]) % 3}",
    slopes: Sequence[float] = (SLOPE,),
) -> Written:
    """Write events, pictures, betas, a brain mask for each run, an atlas with its table of labels, and ncsnr.

    Args:
        dataset: Data set to write.
        root: Folder to write to.
        subject: Id of the subject, with sessions from 1.
        label: Label of the subject in the folder.
        betas: "nii.gz", or "npy", "npz" and "hdf5" as GLMsingle has them, or "func.gii", "dtseries.nii", "dscalar.nii".
            Surfaces have the voxels of the subject as vertices, the first half on the left.
        runs: Number of runs of each session, where the runs of the trials are unknown.
        dead: Number of voxels in the mask that have no signal. Half of them are constant, the others NaN where betas
            are floats.
        space: Label of the space.
        folder: Folder of a picture by the name of its image.
        slopes: `scl_slope` of each session of "nii.gz", used in turn.
    """
    root, person = Path(root), dataset.subject(subject)
    ids = {str(name): f"{folder(local(name))}/{local(name)}.png" for name in dataset.stimuli.ids}
    for name, path in ids.items():
        (root / "stimuli" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.stimuli.image(name, 64)).save(root / "stimuli" / path)
    (root / "dataset_description.json").write_text('{"Name": "simulated", "BIDSVersion": "1.9.0"}\n')
    trials = person.responses.trials
    session_rows = {int(number): np.flatnonzero(trials.session == number) for number in np.unique(trials.session)}
    events = {}
    for session, rows in session_rows.items():
        for run, part in _runs(trials.run[rows], rows, runs):
            func = root / f"sub-{label}" / f"ses-{session:02d}" / "func"
            path = func / f"sub-{label}_ses-{session:02d}_task-scenes_run-{run}_events.tsv"
            _write_events(path, [ids[str(name)] for name in trials.image_id[part]])
            events[session, run] = path
    names = _Names(root, label, space)
    surface = betas in ("func.gii", "dtseries.nii", "dscalar.nii")
    writer = _Surface(person, names, betas) if surface else _Volume(person, names, betas, dead, slopes)
    files = {session: writer.session(session, rows) for session, rows in session_rows.items()}
    writer.maps(list(events))
    order = np.concatenate(list(session_rows.values()))
    return Written(root, ids, writer.voxels, writer.expected(order), writer.index, files, events)


def _runs(known: np.ndarray, rows: np.ndarray, count: int) -> list[tuple[int, np.ndarray]]:
    """Numbers of the runs of a session, and the rows of each."""
    if known.min() < 0:
        return list(enumerate(np.array_split(rows, count), 1))
    return [(int(run), rows[known == run]) for run in np.unique(known)]


def _write_events(path: Path, images: Sequence[str]) -> None:
    lines, onset = ["onset\tduration\ttrial_type\tstim_file\tresponse_time"], 4.0
    for number, image in enumerate(images):
        if number % _EVERY == 0:
            lines.append(f"{onset:.3f}\t3\t{'blank' if number % 2 else 'n/a'}\tn/a\tn/a")
            onset += 4
        lines.append(f"{onset:.3f}\t3.0\timage\t{image}\tn/a")
        onset += 4
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class _Names:
    """Paths of derivatives."""

    root: Path
    label: str
    space: str

    def fmriprep(self, session: int, rest: str) -> Path:
        folder = self.root / "derivatives/fmriprep" / f"sub-{self.label}" / f"ses-{session:02d}" / "func"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"sub-{self.label}_ses-{session:02d}_task-scenes_{rest}"

    def glmsingle(self, session: int | None, rest: str, prefix: bool = True) -> Path:
        folder = self.root / "derivatives/glmsingle" / f"sub-{self.label}"
        folder = folder if session is None else folder / f"ses-{session:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        parts = [f"sub-{self.label}"] + ([] if session is None else [f"ses-{session:02d}_task-scenes"])
        return folder / ("_".join([*parts, rest]) if prefix else rest)


def save(
    path: Path, values: np.ndarray, affine: np.ndarray, slope: float | None = None, intercept: float = 0.0
) -> None:
    """Write a NIfTI image. With a slope, values are int16 as stored."""
    image = nibabel.Nifti1Image(values, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)


def as_int16(values: np.ndarray, slope: float) -> np.ndarray:
    """Values as they are stored with a slope."""
    return np.rint(values / slope).astype(np.int16)


class _Volume:
    """Betas in the voxels of a mask, of which some have no signal."""

    def __init__(self, person: Subject, names: _Names, betas: str, dead: int, slopes: Sequence[float]):
        self.person, self.names, self.betas, self.slopes = person, names, betas, slopes
        index, self.shape = person.space.index, person.space.shape
        self.voxels = np.lexsort(index.T[::-1])
        self.index = index[self.voxels]
        free = np.ones(self.shape, bool)
        free[tuple(index.T)] = False
        self.dead = np.argwhere(free)[:dead]
        self.affine = np.eye(4) if person.space.affine is None else person.space.affine
        self.written: dict[int, np.ndarray] = {}

    def session(self, session: int, rows: np.ndarray) -> list[Path]:
        values = self.person.responses.batch(rows)
        volume = np.zeros((*self.shape, len(rows)), np.float32)
        volume[tuple(self.person.space.index.T)] = values.T
        slope = self.slopes[(session - 1) % len(self.slopes)]
        if self.betas == "nii.gz":
            path = self.names.glmsingle(session, f"space-{self.names.space}_desc-glmsingle_betas.nii.gz")
            save(path, as_int16(volume, slope), self.affine, slope)
            self._keep(rows, as_int16(values, slope) * np.float32(slope))
            return [path]
        for place in self.dead[len(self.dead) // 2 :]:
            volume[tuple(place)] = np.nan
        self._keep(rows, values)
        path = self.names.glmsingle(session, f"TYPED_FITHRF_GLMDENOISE_RR.{self.betas}", prefix=False)
        r2 = np.zeros(self.shape, np.float32)
        r2[tuple(self.index.T)] = np.arange(len(self.index))
        content = {"HRFindex": np.zeros(self.shape), "betasmd": volume, "R2": r2, "rrbadness": None, "pcnum": 3}
        _write_glmsingle(path, content)
        return [path]

    def maps(self, runs: Sequence[tuple[int, int]]) -> None:
        space, person = f"space-{self.names.space}", self.person
        mask = np.zeros(self.shape, np.uint8)
        mask[tuple(np.concatenate([self.index, self.dead]).T)] = 1
        for session, run in runs:
            save(self.names.fmriprep(session, f"run-{run}_{space}_desc-brain_mask.nii.gz"), mask, self.affine)
        anat = self.names.root / "derivatives/fmriprep" / f"sub-{self.names.label}" / "anat"
        anat.mkdir()
        save(anat / f"sub-{self.names.label}_desc-brain_mask.nii.gz", np.ones((4, 4, 4), np.uint8), np.eye(4))
        save(anat / f"sub-{self.names.label}_dseg.nii.gz", np.ones((4, 4, 4), np.uint8), np.eye(4))
        if person.space.rois:
            labels = np.zeros(self.shape, np.int16)
            for label, region in enumerate(person.space.rois.values(), 1):
                labels[tuple(person.space.index[region].T)] = label
            save(self.names.glmsingle(None, f"{space}_atlas-sim_dseg.nii.gz"), labels, self.affine)
            _write_table(self.names, list(person.space.rois))
        if person.space.ncsnr is not None:
            ratio = person.space.volume(person.space.ncsnr.astype(np.float32), 0)
            save(self.names.glmsingle(None, f"{space}_stat-ncsnr_statmap.nii.gz"), ratio, self.affine)

    def expected(self, order: np.ndarray) -> np.ndarray:
        return np.stack([self.written[row] for row in order.tolist()])[:, self.voxels]

    def _keep(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.written |= dict(zip(rows.tolist(), values, strict=True))


def _write_glmsingle(path: Path, content: dict) -> None:
    if path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)  # a pickled dict, as GLMsingle writes it
    elif path.suffix == ".npz":
        np.savez(path, **{key: value for key, value in content.items() if value is not None})
    else:
        with new_hdf5(path) as file:
            for key, value in content.items():
                if value is not None:
                    file.create_dataset(key, data=value)


def _write_table(names: _Names, regions: Sequence[str]) -> None:
    """The table of labels at the top of the derivatives, as BIDS lets files inherit it."""
    lines = [f"{label}\t{region}" for label, region in enumerate(["Unknown", *regions, "nowhere"])]
    path = names.root / "derivatives/glmsingle/atlas-sim_dseg.tsv"
    path.write_text("\n".join(["index\tname", *lines]) + "\n")


class _Surface:
    """Voxels as vertices: the first half on the left hemisphere, and a medial wall without a signal."""

    def __init__(self, person: Subject, names: _Names, betas: str):
        self.person, self.names, self.betas = person, names, betas
        count = len(person.space)
        self.voxels = np.arange(count)
        self.halves = {"L": np.arange(count // 2), "R": np.arange(count // 2, count)}
        sides = [np.stack([np.full(len(x), number), np.arange(len(x))], 1) for number, x in enumerate(self._halves())]
        self.index = np.concatenate(sides)

    def session(self, session: int, rows: np.ndarray) -> list[Path]:
        values = self.person.responses.batch(rows)
        if self.betas == "func.gii":
            paths = []
            for side, half in self.halves.items():
                path = self.names.glmsingle(session, f"hemi-{side}_space-{self.names.space}_desc-glm_betas.func.gii")
                _write_gifti(path, np.pad(values[:, half], ((0, 0), (0, _MEDIAL))))
                paths.append(path)
            return paths
        path = self.names.glmsingle(session, f"space-{self.names.space}_desc-glm_betas.{self.betas}")
        below = np.random.default_rng(session).normal(size=(len(rows), 4)).astype(np.float32)
        first = cifti2_axes.SeriesAxis(0, 1, len(rows))
        if self.betas == "dscalar.nii":
            first = cifti2_axes.ScalarAxis([f"trial{row}" for row in rows])
        nibabel.save(nibabel.Cifti2Image(np.concatenate([values, below], 1), (first, self._columns())), path)
        return [path]

    def maps(self, runs: Sequence[tuple[int, int]]) -> None:
        space, rois = self.person.space, self.person.space.rois
        labels = np.zeros(len(space), np.int32)
        for label, region in enumerate(rois.values(), 1):
            labels[region] = label
        prefix = f"space-{self.names.space}"
        if self.betas != "func.gii":
            names = {0: ("Unknown", (0, 0, 0, 0))} | {i: (name, (1, 0, 0, 1)) for i, name in enumerate(rois, 1)}
            axis = cifti2_axes.LabelAxis(["sim"], [names])
            row = np.concatenate([labels, np.zeros(4, np.int32)])[None].astype(np.float32)
            image = nibabel.Cifti2Image(row, (axis, self._columns()))
            nibabel.save(image, self.names.glmsingle(None, f"{prefix}_atlas-sim_dseg.dlabel.nii"))
            row = np.concatenate([space.ncsnr, np.zeros(4)])[None].astype(np.float32)
            image = nibabel.Cifti2Image(row, (cifti2_axes.ScalarAxis(["ncsnr"]), self._columns()))
            nibabel.save(image, self.names.glmsingle(None, f"{prefix}_stat-ncsnr_statmap.dscalar.nii"))
            return
        for side, half in self.halves.items():
            path = self.names.glmsingle(None, f"hemi-{side}_{prefix}_atlas-sim_dseg.label.gii")
            _write_gifti(path, np.pad(labels[half], (0, _MEDIAL))[None], list(rois))
            path = self.names.glmsingle(None, f"hemi-{side}_{prefix}_stat-ncsnr_statmap.func.gii")
            _write_gifti(path, np.pad(space.ncsnr[half], (0, _MEDIAL))[None].astype(np.float32))

    def expected(self, order: np.ndarray) -> np.ndarray:
        return self.person.responses.batch(order)

    def _halves(self) -> list[np.ndarray]:
        return list(self.halves.values())

    def _columns(self) -> cifti2_axes.BrainModelAxis:
        sides = [
            cifti2_axes.BrainModelAxis.from_surface(np.arange(len(half)), len(half) + _MEDIAL, _HEMISPHERES[side])
            for side, half in self.halves.items()
        ]
        below = np.zeros((3, 3, 3), bool)
        below[0, 0] = below[1, 1, 1] = True
        return sides[0] + sides[1] + cifti2_axes.BrainModelAxis.from_mask(below, "THALAMUS_LEFT", np.eye(4))


def _write_gifti(path: Path, maps: np.ndarray, labels: Sequence[str] = ()) -> None:
    intent = "NIFTI_INTENT_LABEL" if labels else "NIFTI_INTENT_TIME_SERIES"
    table = GiftiLabelTable()
    for key, name in enumerate(["Unknown", *labels] if labels else []):
        item = GiftiLabel(key)
        item.label = name
        table.labels.append(item)
    kind = np.int32 if labels else np.float32
    arrays = [GiftiDataArray(np.asarray(row, kind), intent=intent) for row in maps]
    nibabel.save(GiftiImage(darrays=arrays, labeltable=table), path)
