"""MindEye2's release of the Natural Scenes Dataset: betas of nsdgeneral in HDF5, and trials in tar archives.

    dataset = load("/data/mindeye2", "subj01", sessions=[1])

The release belongs to Scotti et al., "MindEye2: Shared-Subject Models Enable fMRI-To-Image With 1 Hour of Data", ICML
2024.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from veca.data.names import entries

from ..data.dataset import BrainDataset, Subject
from ..data.hdf5 import array_of, open_hdf5
from ..data.responses import Responses, TrialTable
from ..data.stimuli import StimulusSet
from ..errors import AxisError, IdError, LayoutError, NormalizationError
from ._files import blocks, by_number, check_finite, provenance
from ._nsd import hdf5_stimuli, image_name, nsd_captions, nsd_subject, released_split, voxel_space
from ._tars import read_member, read_samples

__all__ = ["COLUMNS", "describe", "detect", "load"]

_log = logging.getLogger(__name__)
COLUMNS = (  # names of the columns of behav.npy; -1 marks a missing value
    "image subject session run trial global_trial time is_old is_correct reaction_time change_of_mind is_old_current "
    "is_correct_current total_old total_new button shared"
).split()
_MEMBERS = ("behav.npy", "past_behav.npy", "future_behav.npy", "olds_behav.npy")
_UNCENTRED = 0.5  # mean of |voxel mean| above which values cannot be z-scored


def detect(root: Path) -> bool:
    """Whether a folder has betas of any subject and archives of trials."""
    root = Path(root)
    return bool(entries(root, "betas_all_subj0*_fp32_renorm.hdf5")) and (root / "wds").is_dir()


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """betas_all_subj0S_fp32_renorm.hdf5: betas (trials, voxels of nsdgeneral) fp32, z-scored per session
coco_images_224_float16.hdf5: images (73000, 3, 224, 224) in [0, 1]
wds/subj0S/train/0.tar, 1.tar, ...: one a session, trials of images that are not shared
wds/subj0S/new_test/0.tar: trials of shared images, of all sessions
    with members SAMPLE.behav.npy (1, 17), .past_behav.npy, .future_behav.npy, .olds_behav.npy; of their columns, 0 is
    the image from 0, 2 and 3 are session and run, 5 is the row of betas, 16 the shared flag; -1 is missing
COCO_73k_annots_curated.npy: (73000, 5) str; optional
Test trials of subjects 1 to 8: 3000, 3000, 2371, 2188, 3000, 2371, 3000, 2188. Use new_test, never test, which is
of an older release."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    sessions: Sequence[int] | None = None,
    mask: str | Path | np.ndarray | None = None,
) -> BrainDataset:
    """Load one subject, trials in the order of time.

    Args:
        root: Folder of the HDF5 files and of wds.
        subject: Number or name of the subject, such as 1 or "subj01".
        allocate: Function (shape, dtype) -> array for all rows of betas, which is filled block by block.
        sessions: Numbers of the sessions whose train trials are loaded, from archive number - 1. All test trials are
            loaded in any case. None loads all sessions.
        mask: Volume of nsdgeneral, or its NIfTI file. None leaves the positions of the voxels unknown.

    Returns:
        A data set with the subject "subj0S" and the split "shared1000". The values were z-scored per session before the
        release. Repeats are -1 where only some sessions are loaded.

    Raises:
        LayoutError: Archives are missing, incomplete, or contradict the betas or the split.
        IdError: Two samples belong to one row of betas.
        NormalizationError: The values are not z-scored.
    """
    root, number = Path(root), nsd_subject(subject)
    name = f"subj{number:02d}"
    archives = _archives(root / "wds" / name, sessions)
    behaviour, test = _behaviour(archives)
    betas = root / f"betas_all_{name}_fp32_renorm.hdf5"
    values = _values(betas, allocate)
    rows = behaviour[:, COLUMNS.index("global_trial")]
    _check_rows(rows, len(values), betas, partly=sessions is not None)
    order = np.argsort(rows)
    behaviour, test, rows = behaviour[order], test[order], rows[order]
    images = behaviour[:, COLUMNS.index("image")]
    ids = np.array([image_name(image) for image in images])
    session, run = (behaviour[:, COLUMNS.index(column)] for column in ("session", "run"))
    trials = TrialTable.of(ids, session, run, repeat=None if sessions is None else -1, trial=rows)
    whole = np.array_equal(rows, np.arange(len(values)))
    responses = Responses(values, trials, rows=None if whole else rows, unit="z-scored per session")
    seen = np.unique(images)
    source = hdf5_stimuli(root / "coco_images_224_float16.hdf5", "images", seen)
    stimuli = StimulusSet([image_name(image) for image in seen], source, nsd_captions(root, seen))
    files = provenance("mindeye2", root, [betas, *archives])
    person = Subject(name, responses, voxel_space(values.shape[1], mask), normalizer="session_z", provenance=files)
    split = released_split(ids[~test].tolist(), ids[test].tolist())
    return BrainDataset([person], stimuli, {split.name: split})


def _archives(folder: Path, sessions: Sequence[int] | None) -> list[Path]:
    """Train archives in the order of sessions, then the test archive."""
    test = folder / "new_test" / "0.tar"
    if not test.is_file():
        old = "; test/0.tar is of an older release with fewer sessions" if (folder / "test" / "0.tar").is_file() else ""
        raise LayoutError(f"expected the test trials at {test}, got no such file{old}")
    found = by_number(entries(folder / "train"), r"(\d+)\.tar")
    wanted = range(max(found, default=-1) + 1) if sessions is None else [int(number) - 1 for number in sessions]
    missing = [number for number in wanted if number not in found]
    if missing or not len(wanted):
        raise LayoutError(
            f"expected archives {', '.join(f'{number}.tar' for number in wanted) or '0.tar'} in {folder / 'train'}, "
            f"got {sorted(found)} without {missing}; an archive holds the session of its number plus 1, "
            "pass sessions= to take fewer"
        )
    return [*(found[number] for number in sorted(wanted)), test]


def _behaviour(archives: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Columns of behav.npy, int64 (trials, 17), and whether each trial is in the test archive, the last one."""
    columns, is_test = [], []
    for path in archives:
        shared = path is archives[-1]
        for sample, members in read_samples(path, _MEMBERS).items():
            row = read_member(members["behav.npy"]).astype(np.float64).ravel()
            if row.shape != (len(COLUMNS),):
                raise AxisError(f"expected {len(COLUMNS)} numbers in behav.npy of {sample!r} in {path}, got {row.size}")
            for column in ("image", "global_trial", "shared"):
                value = row[COLUMNS.index(column)]
                if value < 0 or value != np.floor(value):
                    raise LayoutError(f"expected {column} of sample {sample!r} in {path} from 0, got {value:g}")
            if bool(row[COLUMNS.index("shared")]) != shared:
                raise LayoutError(
                    f"expected shared flag {int(shared)} of sample {sample!r} in {path}, an archive of "
                    f"{'shared' if shared else 'other'} images, got {row[COLUMNS.index('shared')]:g}"
                )
            columns.append(row)
            is_test.append(shared)
    return np.nan_to_num(np.stack(columns), nan=-1.0).astype(np.int64), np.array(is_test)


def _values(path: Path, allocate: Callable) -> np.ndarray:
    """All rows of the betas, (trials, voxels). Values that are not z-scored, as the file's name says, are an error."""
    with open_hdf5(path, "betas") as file:
        betas = array_of(file, "betas")
        if betas.ndim != 2:
            raise AxisError(f"expected betas (trials, voxels) in {path}, got {betas.shape}")
        values, total = allocate(betas.shape, betas.dtype), np.zeros(betas.shape[1])
        for rows in blocks(len(betas), betas.dtype.itemsize * betas.shape[1]):
            part = betas[rows]
            check_finite(part, path, first_row=rows.start)
            values[rows] = part
            total += part.sum(0, dtype=np.float64)
    offset = float(np.abs(total / max(1, len(values))).mean())
    if offset > _UNCENTRED:
        raise NormalizationError(
            f"expected values z-scored per session in {path}, as renorm in its name says, got a mean of |voxel mean| "
            f"of {offset:.2f}"
        )
    return values


def _check_rows(rows: np.ndarray, count: int, path: Path, partly: bool) -> None:
    """Check that every trial has a different row of the betas."""
    if rows.max() >= count:
        raise LayoutError(f"expected global trials below {count}, the rows of {path}, got {rows.max()}")
    numbers, times = np.unique(rows, return_counts=True)
    if times.max() > 1:
        raise IdError(f"expected one sample for each row of {path}, got {times.max()} of row {numbers[times.argmax()]}")
    if len(rows) < count and not partly:
        _log.warning(
            "%s: %d of %d rows belong to no sample of the archives and are not used", path, count - len(rows), count
        )
