"""What the layouts of the Natural Scenes Dataset share: the design, stimuli, voxels and unit of the betas.

    design = read_design(design_file(root), 1)
    design.trials()  # image ids, sessions and runs of subject 1

The id of an image is its position among the 73,000 images, from 0, such as "nsd:00013". These positions are called
73k ids. The data set is described by Allen et al., "A massive 7T fMRI dataset to bridge cognitive neuroscience and
artificial intelligence", Nature Neuroscience, 2022.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.dataset import Split
from ..data.responses import TrialTable
from ..data.scalings import PSC, STORED_PER_PERCENT
from ..data.spaces import VoxelSpace
from ..data.splits import split_from_ids
from ..data.stimuli import HDF5Images, ImageSource, OptionalImageFiles
from ..errors import AxisError, IdError, LayoutError, need
from ._files import read_array, subject_number, voxels_in_a_row
from ._volumes import read_labels

__all__ = [
    "HELD_BACK",
    "PSC",
    "ROI_CLASSES",
    "SESSIONS",
    "STORED_PER_PERCENT",
    "Design",
    "beta_scale",
    "design_file",
    "existing",
    "hdf5_stimuli",
    "image_name",
    "nsd_captions",
    "nsd_stimuli",
    "nsd_subject",
    "read_design",
    "released_split",
    "voxel_space",
]

SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)  # recorded sessions; the design lists 40 for every subject
HELD_BACK = 3  # sessions that were published last, so older papers have 37 of 40
# names of the labels 1, 2, ... of each class; label 0 means no region. The released tables of names are pickled.
ROI_CLASSES = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
_TRIALS = 750  # in a session
_SHARED = 1000  # positions of masterordering that all subjects share
_SMALL = 20  # below this median the stored unit cannot be 1/300 of a percent
_DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
_STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
_CAPTIONS = "COCO_73k_annots_curated.npy"


def nsd_subject(subject: str | int) -> int:
    """The number of a subject, 1 to 8, from its number or name. Another one is an `IdError`."""
    number = subject_number(subject)
    if not 1 <= number <= len(SESSIONS):
        raise IdError(f"expected a subject from 1 to {len(SESSIONS)}, got {subject!r}")
    return number


def image_name(number: int) -> str:
    """The id of an image, such as "nsd:00013", from its 73k id."""
    return f"nsd:{number:05d}"


def existing(paths: Iterable[Path]) -> Path | None:
    """The first of these paths that is a file, or None."""
    return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class Design:
    """What one subject was shown, trial by trial, in the recorded sessions.

    Attributes:
        image: 73k id of the image of each trial, (T,), from 0.
        session: Session of each trial, (T,), from 1.
        run: Run of each trial, (T,), from 1, or -1 where the file has no runs.
        shared: 73k ids of the images that all subjects were meant to see.
        num_sessions: Number of recorded sessions.
    """

    image: np.ndarray
    session: np.ndarray
    run: np.ndarray
    shared: np.ndarray
    num_sessions: int

    def trials(self, sessions: Sequence[int] | None = None) -> TrialTable:
        """The table of the trials of some sessions, or of all. Repeats are counted over all sessions in either case."""
        ids = [image_name(number) for number in self.image]
        table = TrialTable.of(ids, session=self.session, run=self.run)
        return table if sessions is None else table[np.isin(self.session, list(sessions))]

    def shared_ids(self) -> list[str]:
        """Ids of all shared images, seen or not."""
        return [image_name(number) for number in self.shared]


def read_design(path: str | Path, subject: int) -> Design:
    """Read the design of one subject from `nsd_expdesign.mat`.

    Trial k shows 73k id subjectim[subject, masterordering[k]] - 1, where the file counts everything from 1. The design
    lists 40 sessions for every subject and is cut to the recorded ones.

    Args:
        path: Path of the file.
        subject: Number of the subject, 1 to 8.

    Raises:
        LayoutError: The file or one of its arrays is missing, or the arrays contradict each other.
    """
    path = Path(path)
    arrays = _read_mat(path, ("masterordering", "subjectim", "sharedix"), ("stimpattern",))
    order = arrays["masterordering"].astype(np.int64).ravel() - 1
    images = arrays["subjectim"].astype(np.int64) - 1
    shared = arrays["sharedix"].astype(np.int64).ravel() - 1
    if (
        images.ndim != 2
        or len(images) < subject
        or not (len(order) and 0 <= order.min() and order.max() < images.shape[1])
    ):
        raise LayoutError(
            f"expected masterordering within 1 to {images.shape[-1]} and subject {subject} among the rows of subjectim "
            f"in {path}, got {order.min() + 1} to {order.max() + 1} and {len(images)} rows"
        )
    image = images[subject - 1, order]
    session, run = _sessions(arrays.get("stimpattern"), len(order), path)
    count = min(SESSIONS[subject - 1], int(session[-1]))
    kept = session <= count
    image, order = image[kept], order[kept]
    if image.min() < 0:
        raise LayoutError(
            f"expected images of subject {subject} in subjectim of {path}, got none for some of its trials"
        )
    if not np.array_equal(np.isin(image, shared), order < _SHARED):
        wrong = int(image[np.isin(image, shared) != (order < _SHARED)][0])
        raise LayoutError(
            f"expected the images of positions 1 to {_SHARED} in masterordering to be those of sharedix in {path}, got "
            f"another for {image_name(wrong)}; the file is not that of the experiment"
        )
    return Design(image, session[kept], run[kept], shared, count)


def _read_mat(path: Path, needed: Sequence[str], optional: Sequence[str]) -> dict[str, np.ndarray]:
    """Some arrays of a MATLAB file. Others are not read, because a small file can hold one that fills the memory."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise need("scipy", f"reading {path.name}") from error
    if not path.is_file():
        raise LayoutError(f"expected the design of the experiment at {path}, got no such file")
    try:
        names = [name for name, _, _ in whosmat(path)]
        arrays = loadmat(path, variable_names=[*needed, *optional])
    except Exception as error:  # on broken files, scipy raises nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise LayoutError(f"expected a MATLAB file of version 5 at {path}, got something else ({reason})") from None
    for name in needed:
        if name not in arrays:
            raise LayoutError(f"expected an array {name!r} in {path}, got {', '.join(names) or 'none'}")
    return arrays


def _sessions(pattern: np.ndarray | None, count: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Session and run of each trial, from a `pattern` (sessions, runs, positions) of 1 where a picture was shown."""
    if pattern is None:
        if count % _TRIALS:
            raise LayoutError(f"expected sessions of {_TRIALS} trials in {path}, got {count} trials and no stimpattern")
        return np.arange(count) // _TRIALS + 1, np.full(count, -1)
    if pattern.ndim != 3 or int(pattern.sum()) != count:
        raise LayoutError(
            f"expected stimpattern (sessions, runs, positions) with {count} pictures, one for each entry of "
            f"masterordering, in {path}, got shape {pattern.shape} with {int(pattern.sum())}"
        )
    session, run, _ = np.nonzero(pattern)
    return session + 1, run + 1


def beta_scale(sample: np.ndarray, scale: str | None, where: str | Path) -> float:
    """Percent signal change of one stored unit.

    Args:
        sample: Some of the stored values.
        scale: "psc" if floats are percent signal change. None if they are 300 times that, as published.
        where: File of the values, for messages.

    Raises:
        LayoutError: The values contradict `scale`.
    """
    if scale not in (None, "psc"):
        raise LayoutError(f"expected scale None or 'psc', got {scale!r}")
    if np.issubdtype(sample.dtype, np.integer):
        if scale == "psc":
            raise LayoutError(f"expected floats in {where}, as scale='psc' says, got {sample.dtype}; leave scale out")
        return 1 / STORED_PER_PERCENT
    if scale == "psc":
        return 1.0
    sizes = np.abs(sample[sample != 0])
    median = float(np.median(sizes)) if sizes.size else 0.0
    if median < _SMALL:
        raise LayoutError(
            f"expected betas times {STORED_PER_PERCENT} in {where}, got floats of median size {median:.3g}; "
            "already percent signal change? pass scale='psc'"
        )
    return 1 / STORED_PER_PERCENT


def design_file(root: Path) -> Path:
    """Path of the design of the experiment, as published or directly in `root`."""
    return existing([root / _DESIGN, root / Path(_DESIGN).name]) or root / _DESIGN


def nsd_captions(root: Path, numbers: np.ndarray) -> dict[str, list[str]]:
    """Five captions of each image from `COCO_73k_annots_curated.npy`, by image id. Empty without that file."""
    path = existing(root / folder / _CAPTIONS for folder in ("", "annots", "nsddata/annots"))
    if path is None:
        return {}
    texts = read_array(path)
    if texts.ndim != 2 or texts.dtype.kind != "U":
        raise LayoutError(f"expected strings (73000, 5) in {path}, got {texts.dtype} {texts.shape}")
    if len(numbers) and numbers.max() >= len(texts):
        raise IdError(f"expected captions of {image_name(numbers.max())} in {path}, got {len(texts)} rows")
    return {image_name(number): [str(text) for text in texts[number] if text] for number in numbers}


def hdf5_stimuli(path: Path, key: str, numbers: np.ndarray) -> ImageSource:
    """Pictures by their rows in an HDF5 file of all images.

    Args:
        path: Path of the file. Where there is none, only reading a picture raises an error.
        key: Name of the dataset in the file.
        numbers: 73k ids of the pictures.
    """
    if not path.is_file():
        return OptionalImageFiles([None] * len(numbers), f"there is no {path}")
    count = len(HDF5Images(path, key))
    if len(numbers) and numbers.max() >= count:
        raise IdError(f"expected a picture of {image_name(numbers.max())} in {path}:{key}, got {count} rows")
    return HDF5Images(path, key, numbers)


def nsd_stimuli(root: Path, numbers: np.ndarray) -> ImageSource:
    """Pictures with these 73k ids from `nsd_stimuli.hdf5`, whose array is `(73000, 425, 425, 3)` uint8."""
    return hdf5_stimuli(root / _STIMULI, "imgBrick", numbers)


def voxel_space(count: int, mask: str | Path | np.ndarray | None, rois: Mapping | None = None) -> VoxelSpace:
    """The space of arrays whose columns are the voxels of nsdgeneral.

    Args:
        count: Number of columns.
        mask: Volume of nsdgeneral, > 0 inside, or its NIfTI file. None leaves the positions of the voxels unknown.
        rois: Masks (count,) of regions by name.

    Raises:
        AxisError: The mask has another number of voxels.
    """
    if mask is None:
        index, shape = voxels_in_a_row(count)
        return VoxelSpace("nsdgeneral", index, shape, rois=rois or {})
    if isinstance(mask, np.ndarray):
        volume, inside, affine = None, mask > 0, None
    else:
        volume = read_labels(Path(mask))
        inside, affine = volume.values > 0, volume.affine
    if int(inside.sum()) != count:
        where = "the mask" if volume is None else mask
        raise AxisError(
            f"expected {count} voxels > 0 in {where}, as many as columns, got {int(inside.sum())} of {inside.shape}"
        )
    return VoxelSpace.from_mask("func1pt8mm", inside, affine, rois=rois or {})


def released_split(train_ids: Iterable[str], test_ids: Iterable[str]) -> Split:
    """The split "shared1000" of data whose authors released them as a train part and a test part."""
    test = set(test_ids)
    return split_from_ids("shared1000", train_ids, test, params={"variant": f"{len(test)} test images, as released"})
