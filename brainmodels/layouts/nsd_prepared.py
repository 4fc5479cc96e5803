"""Arrays prepared from the Natural Scenes Dataset for Brain-Diffuser, SynBrain and NeuroFlow.

    dataset = load("processed_data", "subj01", kind="fmri_scale")

The arrays hold no image ids. Their rows follow the first appearance of each image in the trials of the subject. The ids
therefore come from the design of the experiment, or from a file of ids, and one of the two must be there. A wrong order
of rows trains with normal losses and gives scores at chance (MichaelMaiii/SynBrain#3).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.splits import shared1000
from ..data.stimuli import ImageSource, StimulusSet
from ..errors import AxisError, IdError, LayoutError, NormalizationError
from ._files import blocks, check_finite, provenance, read_array
from ._nsd import (
    HELD_BACK,
    PSC,
    SESSIONS,
    Design,
    beta_scale,
    design_file,
    existing,
    image_name,
    nsd_stimuli,
    nsd_subject,
    read_design,
    released_split,
    voxel_space,
)

__all__ = ["KINDS", "Kind", "describe", "detect", "load"]

_PARTS = ("train", "test")
_UNCENTRED = 0.5  # mean of |voxel mean| above which values cannot be z-scored
_FOLDERS = ("", "subj0{s}", "nsd/subj0{s}", "processed_data/subj0{s}", "data/processed_data/subj0{s}")


class Kind(NamedTuple):
    """What the name of an array says about its values.

    Attributes:
        ndim: Number of axes, 2 for (rows, voxels) and 3 for (images, 3, voxels).
        repeats: Number of adjacent rows of one image. 1 means that the row is an average over repeats.
        normalizer: Name of the scaling that the values went through. Averages are as measured, times 300.
        unit: Unit of the values.
    """

    ndim: int
    repeats: int
    normalizer: str
    unit: str


KINDS = {
    "fmriavg_nsdgeneral": Kind(2, 1, "none", PSC),
    "fmri_scale": Kind(3, 3, "div2000", "stored betas / 2000"),
    "fmri_all_scale": Kind(2, 3, "div2000", "stored betas / 2000"),
    "fmri_zscore": Kind(3, 3, "session_z", "z-scored per session"),
}


def detect(root: Path) -> bool:
    """Whether a folder has train responses of any kind and subject."""
    return any(_kinds(Path(root), number) for number in range(1, len(SESSIONS) + 1))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """nsd_{train,test}_KIND_subS.npy in the folder, in subj0S, nsd/subj0S or processed_data/subj0S, with KIND of
    fmriavg_nsdgeneral (images, voxels): averages of betas x 300 (Brain-Diffuser)
    fmri_scale (images, 3, voxels), fmri_all_scale (3 images, voxels): betas x 300 / 2000 (SynBrain)
    fmri_zscore (images, 3, voxels): z-scored per session (NeuroFlow)
nsd_{train,test}_ids_subS.npy: (images,) 73k ids from 0; or nsd_expdesign.mat, here or where the data set has it
nsd_{train,test}_stim_subS.npy: (images, 425, 425, 3) 0 to 255; or nsd_stimuli.hdf5 where the data set has it; optional
nsd_{train,test}_cap_subS.npy: (images, 5) str; optional
8859 train and 982 test images are those of 37 sessions, 9000 and 1000 those of 40 (subjects 1, 2, 5 and 7)."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    kind: str | None = None,
    ids: Mapping[str, Sequence | str | Path] | None = None,
    expdesign: str | Path | None = None,
    order: str = "first_appearance",
    scale: str | None = None,
    mask: str | Path | np.ndarray | None = None,
) -> BrainDataset:
    """Load one subject, train rows before test rows.

    Args:
        root: Folder of the arrays.
        subject: Number or name of the subject, such as 1 or "subj01".
        allocate: Function (shape, dtype) -> array for the values, which is filled block by block with fp32.
        kind: Name of the kind of arrays, one of `KINDS`. None takes the only kind that is there.
        ids: Image of each row for "train" and "test", or a `.npy` file of them. Images are 73k ids from 0, or names
            such as "nsd:00013". None takes the files of ids where they exist, and `expdesign` otherwise.
        expdesign: Path of `nsd_expdesign.mat`. None looks for it.
        order: Order of the rows, where ids come from the design: "first_appearance" or "sorted_id".
        scale: "psc" if averages are percent signal change. None if they are 300 times that.
        mask: Volume of nsdgeneral, or its NIfTI file. None leaves the positions of the voxels unknown.

    Returns:
        A data set with the subject "subj0S" and the split "shared1000". An average over repeats is one trial. The
        positions of repeats in time are known where there is a design.

    Raises:
        IdError: The order of the rows is unknown.
        LayoutError: The numbers of rows fit no release.
        NormalizationError: Values contradict the name of their array.
    """
    root, number = Path(root), nsd_subject(subject)
    kind, paths = _arrays(root, number, kind)
    arrays = {part: _rows(path, KINDS[kind]) for part, path in paths.items()}
    counts = {part: len(array) // KINDS[kind].repeats for part, array in arrays.items()}
    images, design = _images(root, number, counts, ids, expdesign, order, paths["train"])
    trials = _trials(images, design, KINDS[kind].repeats, paths["train"])
    values, scaled = _values(arrays, paths, kind, scale, allocate)
    names = [image_name(image) for part in _PARTS for image in images[part]]
    pictures, captions = _stimuli(root, paths["train"].parent, number, images)
    name, source = f"subj{number:02d}", provenance("nsd_prepared", root, list(paths.values()), kind=kind)
    responses = Responses(values, trials, scale=scaled, unit=KINDS[kind].unit)
    space = voxel_space(values.shape[1], mask)
    person = Subject(name, responses, space, normalizer=KINDS[kind].normalizer, provenance=source)
    train, test = (names[: counts["train"]], names[counts["train"] :])
    split = released_split(train, test) if design is None else shared1000(trials, design.shared_ids())
    return BrainDataset([person], StimulusSet(names, pictures, captions), {split.name: split})


def _folders(root: Path, number: int) -> list[Path]:
    """Folders that may hold arrays of a subject."""
    folders = [root / folder.format(s=number) for folder in _FOLDERS]
    return [*folders, *(folder / "fmri" for folder in folders)]


def _kinds(root: Path, number: int) -> dict[str, Path]:
    """Train arrays of a subject by kind."""
    names = {kind: f"nsd_train_{kind}_sub{number}.npy" for kind in KINDS}
    found = {kind: existing(folder / name for folder in _folders(root, number)) for kind, name in names.items()}
    return {kind: path for kind, path in found.items() if path is not None}


def _arrays(root: Path, number: int, kind: str | None) -> tuple[str, dict[str, Path]]:
    """The kind to read, and the files of its parts."""
    found = _kinds(root, number)
    if (kind not in found) if kind is not None else len(found) != 1:
        wanted = f"nsd_train_{kind or 'KIND'}_sub{number}.npy"
        remedy = "; pass kind=" if len(found) > 1 and kind is None else f"; KIND is one of {', '.join(KINDS)}"
        raise LayoutError(f"expected one {wanted} in {root}, got {', '.join(found) or 'none'}{remedy}")
    kind = kind or next(iter(found))
    train = found[kind]
    return kind, {"train": train, "test": train.with_name(train.name.replace("nsd_train_", "nsd_test_"))}


def _rows(path: Path, kind: Kind) -> np.ndarray:
    """An array as (rows, voxels), memory-mapped. Repeats of an image are adjacent."""
    array = read_array(path)
    if array.ndim != kind.ndim or array.dtype.kind != "f" or (kind.ndim == 3 and array.shape[1] != kind.repeats):
        wanted = f"(images, {kind.repeats}, voxels)" if kind.ndim == 3 else "(rows, voxels)"
        raise AxisError(f"expected floats {wanted} in {path}, got {array.dtype} {array.shape}")
    if kind.ndim == 2 and len(array) % kind.repeats:
        raise LayoutError(
            f"expected groups of three rows in {path}, the repeats of one image, got {len(array)} rows; images with "
            "fewer repeats cannot be told apart"
        )
    return array.reshape(-1, array.shape[-1])


def _images(
    root: Path,
    number: int,
    counts: Mapping[str, int],
    ids: Mapping[str, Sequence | str | Path] | None,
    expdesign: str | Path | None,
    order: str,
    train: Path,
) -> tuple[dict[str, np.ndarray], Design | None]:
    """73k ids of the rows of each part, and the design they come from, cut to the sessions of the arrays."""
    beside = {part: train.with_name(f"nsd_{part}_ids_sub{number}.npy") for part in _PARTS}
    if ids is None and expdesign is None and all(path.is_file() for path in beside.values()):
        ids = beside
    if ids is not None:
        missing = [part for part in _PARTS if part not in ids]
        if missing:
            raise IdError(f"expected ids of 'train' and 'test', got none of {missing[0]!r}")
        return {part: _numbers(ids[part], part, counts[part]) for part in _PARTS}, None
    path = design_file(root) if expdesign is None else Path(expdesign)
    if expdesign is None and not path.is_file():
        raise IdError(
            f"row order unknown: expected the image of each row of {train}, got no id file and no design; pass ids= or "
            "expdesign="
        )
    if order not in ("first_appearance", "sorted_id"):
        raise IdError(f"expected order 'first_appearance' or 'sorted_id', got {order!r}")
    design = _release(read_design(path, number), counts, train)
    images = _by_part(design)
    return (images if order == "first_appearance" else {part: np.sort(images[part]) for part in _PARTS}), design


def _numbers(ids: Sequence | str | Path, part: str, count: int) -> np.ndarray:
    """73k ids from the user's `ids`, checked, int64 (count,)."""
    where = str(ids) if isinstance(ids, str | Path) else f"ids[{part!r}]"
    array = read_array(Path(ids)) if isinstance(ids, str | Path) else np.asarray(ids)
    if array.dtype.kind == "U" and all(name.startswith("nsd:") and name[4:].isdecimal() for name in array.tolist()):
        array = np.array([int(name[4:]) for name in array.tolist()])
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise IdError(
            f"expected 73k ids from 0, or 'nsd:00013' and the like, in {where}, got {array.dtype} {array.shape}"
        )
    if len(array) != count or len(np.unique(array)) != count:
        raise IdError(
            f"expected {count} different ids in {where}, one for each {part} image, got {len(array)}, "
            f"{len(np.unique(array))} of them different"
        )
    return array.astype(np.int64)


def _by_part(design: Design) -> dict[str, np.ndarray]:
    """73k ids of the images that are not shared and of those that are, in the order of their first appearance."""
    images, first = np.unique(design.image, return_index=True)
    images = images[np.argsort(first)]
    shared = np.isin(images, design.shared)
    return {"train": images[~shared], "test": images[shared]}


def _release(design: Design, counts: Mapping[str, int], train: Path) -> Design:
    """The design, cut to the number of sessions that gives these numbers of images."""
    known = []
    for sessions in (design.num_sessions, max(1, design.num_sessions - HELD_BACK)):
        kept = design.session <= sessions
        cut = Design(design.image[kept], design.session[kept], design.run[kept], design.shared, sessions)
        images = _by_part(cut)
        if all(len(images[part]) == counts[part] for part in _PARTS):
            return cut
        known.append(f"{len(images['train'])} and {len(images['test'])} ({sessions} sessions)")
    raise LayoutError(
        f"expected {' or '.join(known)} train and test images in {train} and its twin, got {counts['train']} and "
        f"{counts['test']}; pass ids= for another choice of images"
    )


def _trials(images: Mapping[str, np.ndarray], design: Design | None, repeats: int, train: Path) -> TrialTable:
    """The table of trials. Positions in time are known where the design has the single repeats of the rows."""
    numbers = np.concatenate([images[part] for part in _PARTS])
    if design is None or repeats == 1:
        ids = [image_name(image) for image in numbers]
        repeat = np.tile(np.arange(repeats), len(ids))
        return TrialTable.of(np.repeat(ids, repeats), repeat=repeat, trial=-1)
    by_image = np.argsort(design.image, kind="stable")  # trials of an image stay in the order of time
    found, starts, times = np.unique(design.image[by_image], return_index=True, return_counts=True)
    if (times != repeats).any():
        odd = int(np.flatnonzero(times != repeats)[0])
        raise LayoutError(
            f"expected {repeats} presentations of every image in {design.num_sessions} sessions, as {train} has rows, "
            f"got {times[odd]} of {image_name(found[odd])}; pass ids= to say what the rows are"
        )
    at = starts[np.searchsorted(found, numbers)]
    return design.trials()[by_image[(at[:, None] + np.arange(repeats)).ravel()]]


def _values(
    arrays: Mapping[str, np.ndarray], paths: Mapping[str, Path], kind: str, scale: str | None, allocate: Callable
) -> tuple[np.ndarray, float]:
    """Train rows, then test rows, fp32 (rows, voxels), and the physical units of one stored unit."""
    widths = {part: array.shape[1] for part, array in arrays.items()}
    if len(set(widths.values())) != 1:
        raise AxisError(f"expected as many voxels in {paths['test']} as in the train part, got {widths}")
    scaled = beta_scale(arrays["train"][:64], scale, paths["train"]) if KINDS[kind].normalizer == "none" else 1.0
    values = allocate((sum(map(len, arrays.values())), widths["train"]), np.dtype(np.float32))
    total, start = np.zeros(widths["train"]), 0
    for part, array in arrays.items():
        for rows in blocks(len(array), array[:1].nbytes):
            block = np.asarray(array[rows])
            check_finite(block, paths[part], first_row=rows.start)
            values[start + rows.start : start + rows.stop] = block
            if part == "train":
                total += block.sum(0, dtype=np.float64)
        start += len(array)
    offset = float(np.abs(total / max(1, len(arrays["train"]))).mean())
    if KINDS[kind].normalizer == "session_z" and offset > _UNCENTRED:
        raise NormalizationError(
            f"expected z-scored values in {paths['train']}, as zscore in its name says, got a mean of |voxel mean| of "
            f"{offset:.2f} over the train rows"
        )
    return values, scaled


def _stimuli(
    root: Path, folder: Path, number: int, images: Mapping[str, np.ndarray]
) -> tuple[ImageSource, dict[str, list[str]]]:
    """Pictures and captions, from arrays beside the responses, or pictures from the published file."""
    pictures = {part: existing([folder / f"nsd_{part}_stim_sub{number}.npy"]) for part in _PARTS}
    captions: dict[str, list[str]] = {}
    for part in _PARTS:
        path = existing([folder / f"nsd_{part}_cap_sub{number}.npy"])
        texts = None if path is None else read_array(path)
        if texts is not None and (texts.dtype.kind != "U" or texts.ndim != 2 or len(texts) != len(images[part])):
            raise AxisError(f"expected strings ({len(images[part])}, 5) in {path}, got {texts.dtype} {texts.shape}")
        for image, row in zip(images[part], () if texts is None else texts, strict=texts is not None):
            captions[image_name(image)] = [str(text) for text in row if text]
    found = [path for path in pictures.values() if path is not None]
    if len(found) < len(pictures):
        return nsd_stimuli(root, np.concatenate([images[part] for part in _PARTS])), captions
    arrays = [read_array(path) for path in found]
    for part, array in zip(_PARTS, arrays, strict=True):
        if array.ndim != 4 or array.shape[-1] != 3 or len(array) != len(images[part]):
            raise AxisError(f"expected images ({len(images[part])}, H, W, 3) in {pictures[part]}, got {array.shape}")
    return _Pictures(arrays), captions


class _Pictures:
    """Pictures of several arrays (n, H, W, 3), one after the other, uint8 or whole floats from 0 to 255."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = list(arrays)
        self._starts = np.cumsum([0, *map(len, self.arrays)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int, size: int | None) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        pixels = np.asarray(self.arrays[part][index - self._starts[part]])
        if pixels.dtype != np.uint8 and not (np.isin(pixels, np.arange(256)).all()):
            raise AxisError(
                f"expected image {index} in whole numbers from 0 to 255, got {pixels.min()} to {pixels.max()}"
            )
        return pixels.astype(np.uint8)
