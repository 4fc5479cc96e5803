"""The Algonauts Project 2023 challenge: responses of NSD, averaged over repeats, on the vertices of fsaverage.

    dataset = load("/data/algonauts2023", "subj01")

The test responses were never published. The split "algonauts" therefore holds out images of the training part. The
pictures of the test part are among the stimuli, so that their responses can be predicted. The challenge is described by
Gifford et al., "The Algonauts Project 2023 Challenge: How the Human Brain Makes Sense of Natural Scenes", 2023.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from veca.data.names import entries

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import VoxelSpace
from ..data.splits import holdout as hold_out
from ..data.splits import split_from_ids
from ..data.stimuli import ImageFiles, StimulusSet
from ..errors import AxisError, LayoutError, near_names
from ._files import blocks, check_finite, provenance, read_array, subject_number
from ._nsd import ROI_CLASSES

__all__ = ["describe", "detect", "load"]

_JOINED = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d")}
_HEMISPHERES = ("lh", "rh")
_FSAVERAGE = 163842  # vertices in a hemisphere


def detect(root: Path) -> bool:
    """Whether a folder has the training responses of both hemispheres of any subject."""
    return any(
        all(
            (folder / "training_split" / "training_fmri" / f"{side}_training_fmri.npy").is_file()
            for side in _HEMISPHERES
        )
        for folder in entries(root, "subj*")
    )


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """subjXX/training_split/training_images/train-0001_nsd-00013.png, ...: row from 1, NSD image from 0
subjXX/training_split/training_fmri/{lh,rh}_training_fmri.npy: (images, vertices) fp32, z-scored per session, averaged
subjXX/test_split/test_images/test-0001_nsd-00845.png, ...: without responses
subjXX/roi_masks/{lh,rh}.CLASS_challenge_space.npy: (vertices,) labels of the class; optional
subjXX/roi_masks/{lh,rh}.all-vertices_fsaverage_space.npy: (163842,) 1 where a vertex is in the challenge; optional
Training images of subjects 1 to 8: 9841, 9841, 9082, 8779, 9841, 9082, 9841, 8779; test: 159, 159, 293, 395, 159, 293,
159, 395. Subject 1 has 19,004 left and 20,544 right vertices."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    holdout: float = 0.1,
    seed: int = 0,
) -> BrainDataset:
    """Load one subject, with the left hemisphere's columns before the right one's.

    Args:
        root: Folder of the subjects.
        subject: Number or name of the subject, such as 1 or "subj01".
        allocate: Function (shape, dtype) -> array for the values, which is filled from the two hemispheres' files.
        holdout: Share of the training images that the split "algonauts" tests on.
        seed: Seed of the choice of held-out images and of validation images.

    Returns:
        A data set with the subject "subjXX" and one trial for each training image. The stimuli are those of both parts,
        with the label "partition", "train" or "test". The split "algonauts" tests on held-out training images. The
        split "algonauts_challenge" trains on all training images, and its test images have no responses.

    Raises:
        LayoutError: Files are missing, or their numbers do not run from 1 without a gap.
        AxisError: Hemispheres, images or masks differ in length.
    """
    name = f"subj{subject_number(subject):02d}"
    folder = Path(root) / name
    if not folder.is_dir():
        known = [path.name for path in entries(root, "subj*")]
        raise LayoutError(f"expected the folder of a subject at {folder}, got no such folder{near_names(name, known)}")
    training, train_ids = _images(folder / "training_split" / "training_images", "train")
    testing, challenge_ids = _images(folder / "test_split" / "test_images", "test")
    values, files = _responses(folder / "training_split" / "training_fmri", len(training), allocate)
    space = _space(folder / "roi_masks", [part.shape[1] for part in files.values()])
    trials = TrialTable.of(train_ids, repeat=0, trial=-1)
    responses = Responses(values, trials, unit="z-scored per session, averaged over repeats")
    source = provenance("algonauts2023", Path(root), list(files))
    person = Subject(name, responses, space, normalizer="session_z", provenance=source)
    partition = ["train"] * len(train_ids) + ["test"] * len(challenge_ids)
    stimuli = StimulusSet(train_ids + challenge_ids, ImageFiles(training + testing), labels={"partition": partition})
    test = hold_out(trials, holdout, seed).test
    params = {"holdout": holdout, "variant": "training images held out; the challenge's test responses are unpublished"}
    held_out = split_from_ids("algonauts", set(train_ids) - test, test, seed=seed, params=params)
    challenge = split_from_ids("algonauts_challenge", train_ids, challenge_ids, params={"variant": "no test responses"})
    return BrainDataset([person], stimuli, {split.name: split for split in (held_out, challenge)})


def _images(folder: Path, part: str) -> tuple[list[Path], list[str]]:
    """Pictures in the order of their numbers, and their image ids in NSD."""
    found = {}
    for path in entries(folder, "*.png"):
        match = re.fullmatch(rf"{part}-(\d+)_nsd-(\d+)", path.stem)
        if match is None:
            raise LayoutError(f"expected {part}-0001_nsd-00013.png and the like in {folder}, got {path.name}")
        if int(match[1]) in found:
            raise LayoutError(f"expected one picture of number {int(match[1])} in {folder}, got {path.name} as well")
        found[int(match[1])] = (path, f"nsd:{int(match[2]):05d}")
    missing = sorted(set(range(1, len(found) + 1)) - set(found))
    if not found or missing:
        got = f"{len(found)} pictures without {missing[:5]}" if found else "none"
        raise LayoutError(
            f"expected pictures numbered from 1 without gaps in {folder}, got {got}; copy the folder again"
        )
    paths, ids = zip(*(found[number] for number in sorted(found)), strict=True)
    return list(paths), list(ids)


def _responses(folder: Path, count: int, allocate: Callable) -> tuple[np.ndarray, dict[Path, np.ndarray]]:
    files: dict[Path, np.ndarray] = {}
    for side in _HEMISPHERES:
        path = folder / f"{side}_training_fmri.npy"
        files[path] = part = read_array(path)
        if part.ndim != 2:
            raise AxisError(f"expected (images, vertices) in {path}, got shape {part.shape}")
    left, right = files.values()
    if len(left) != len(right):
        raise AxisError(
            f"expected as many rows in both hemispheres of {folder}, got {len(left)} left and {len(right)} right"
        )
    if len(left) != count:
        raise AxisError(f"expected {count} rows in {folder}, one for each training image, got {len(left)}")
    for path, part in files.items():
        check_finite(part, path)
    values = allocate((count, left.shape[1] + right.shape[1]), np.result_type(left, right))
    for rows in blocks(count, values[:1].nbytes):
        values[rows, : left.shape[1]] = left[rows]
        values[rows, left.shape[1] :] = right[rows]
    return values, files


def _space(folder: Path, widths: list[int]) -> VoxelSpace:
    """Vertices of both hemispheres with their regions, and with positions on fsaverage where the folder has them."""
    rois: dict[str, np.ndarray] = {}
    for path in entries(folder, "lh.*_challenge_space.npy"):
        name = path.name.removeprefix("lh.").removesuffix("_challenge_space.npy")
        if name not in ROI_CLASSES:
            raise LayoutError(
                f"expected a class of regions of {', '.join(ROI_CLASSES)}, got {path}"
                f"{near_names(name, list(ROI_CLASSES))}"
            )
        labels = np.concatenate(
            [_labels(folder / f"{side}.{path.name[3:]}", widths[k]) for k, side in enumerate(_HEMISPHERES)]
        )
        if not 0 <= labels.min() <= labels.max() <= len(ROI_CLASSES[name]):
            raise LayoutError(
                f"expected labels 0 to {len(ROI_CLASSES[name])} in {path} and its right twin, got {labels.min():g} to "
                f"{labels.max():g}"
            )
        rois |= {region: labels == number for number, region in enumerate(ROI_CLASSES[name], 1)}
    rois |= {name: rois[a] | rois[b] for name, (a, b) in _JOINED.items() if a in rois}
    vertices, known = [], 0
    for side, width in zip(_HEMISPHERES, widths, strict=True):
        path = folder / f"{side}.all-vertices_fsaverage_space.npy"
        found = np.flatnonzero(read_array(path)) if path.is_file() else np.arange(width)
        if len(found) != width:
            raise AxisError(f"expected {width} vertices of {path}, as many as columns, got {len(found)}")
        known += path.is_file()
        vertices.append(found)
    hemisphere = np.repeat([0, 1], widths)
    if known == 1:
        raise LayoutError(f"expected all-vertices_fsaverage_space.npy of both hemispheres in {folder}, got one")
    shape = (_FSAVERAGE, _FSAVERAGE) if known else tuple(widths)
    index = np.stack([hemisphere, np.concatenate(vertices)], 1)
    return VoxelSpace("challenge-fsaverage", index, shape, rois=rois)


def _labels(path: Path, width: int) -> np.ndarray:
    labels = read_array(path)
    if labels.shape != (width,):
        raise AxisError(f"expected labels of {width} vertices in {path}, as many as columns, got shape {labels.shape}")
    return labels
