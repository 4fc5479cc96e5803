"""Tar archives of the Natural Scenes Dataset by MindEye and MindBridge. A sample is an image with its responses.

    dataset = load("webdataset_avg_split", "subj01")

Samples are identified by their image ids, because the numbers of samples are arbitrary. The validation images were
drawn at random and cannot be drawn again (MedARC-AI/fMRI-reconstruction-NSD#48). The release belongs to Scotti et al.,
"Reconstructing the Mind's Eye: fMRI-to-Image with Contrastive Learning and Diffusion Priors", NeurIPS 2023.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from veca.data.names import entries

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.splits import split_from_ids
from ..data.stimuli import StimulusSet
from ..errors import AxisError, LayoutError, LeakageError
from ._files import by_number, check_finite, provenance
from ._nsd import image_name, nsd_captions, nsd_subject, released_split, voxel_space
from ._tars import Member, TarImages, read_member, read_samples

__all__ = ["describe", "detect", "load"]

_PARTS = ("train", "val", "test")
_FOLDER = "webdataset_avg_split"
_PICTURES = ("jpg", "png")
_MEMBERS = (_PICTURES, "nsdgeneral.npy", "coco73k.npy", "trial.npy", "num_uniques.npy")


class _Sample(NamedTuple):
    part: str
    image: int
    count: int
    picture: Member
    responses: Member


def detect(root: Path) -> bool:
    """Whether a folder has archives of the train part."""
    return any(entries(Path(root) / folder / "train", "train_subj*_*.tar") for folder in ("", _FOLDER))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """webdataset_avg_split/{train,val,test}/{train,val,test}_subj0S_K.tar, K from 0, with members
    SAMPLE.jpg, SAMPLE.nsdgeneral.npy (3, voxels): repeats, filled up with copies where there were fewer,
    SAMPLE.num_uniques.npy: how many there were, SAMPLE.coco73k.npy: image from 0, SAMPLE.trial.npy
COCO_73k_annots_curated.npy: (73000, 5) str; optional
37 sessions: 8859 train and validation images and 982 test images of subjects 1, 2, 5 and 7."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    mask: str | Path | np.ndarray | None = None,
) -> BrainDataset:
    """Load one subject. The trials of an image are adjacent, in the order of the archives.

    Args:
        root: Folder webdataset_avg_split, or the folder that contains it.
        subject: Number or name of the subject, such as 1 or "subj01".
        allocate: Function (shape, dtype) -> array for all repeats, which is filled sample by sample.
        mask: Volume of nsdgeneral, or its NIfTI file. None leaves the positions of the voxels unknown.

    Returns:
        A data set with the subject "subj0S", whose values were z-scored before the release. Session, run and trial are
        unknown. It has two splits. "shared1000" chooses validation images by the hash of their ids, and "released" has
        those of the folder val.

    Raises:
        LayoutError: Archives are missing, or a sample is incomplete. The message names it.
        LeakageError: An image is in two parts.
    """
    root, number = Path(root), nsd_subject(subject)
    base = root / _FOLDER if (root / _FOLDER).is_dir() else root
    archives = _archives(base, f"subj{number:02d}")
    samples = [sample for part in _PARTS for path in archives[part] for sample in _read(path, part)]
    _check_images(samples, base)
    width, dtype = _shape(samples[0])
    values, start = allocate((sum(sample.count for sample in samples), width), dtype), 0
    for sample in samples:
        values[start : start + sample.count] = _repeats(sample, width)
        start += sample.count
    counts = [sample.count for sample in samples]
    ids = [image_name(sample.image) for sample in samples]
    repeat = np.concatenate([np.arange(count) for count in counts])
    responses = Responses(values, TrialTable.of(np.repeat(ids, counts), repeat=repeat, trial=-1), unit="z-scored")
    captions = nsd_captions(root, np.array([sample.image for sample in samples]))
    stimuli = StimulusSet(ids, TarImages([sample.picture for sample in samples]), captions)
    files = provenance("mindeye1", base, [path for part in _PARTS for path in archives[part]])
    person = Subject(f"subj{number:02d}", responses, voxel_space(width, mask), normalizer="session_z", provenance=files)
    train, val, test = ([image_name(s.image) for s in samples if s.part == part] for part in _PARTS)
    released = split_from_ids("released", train, test, val_ids=val, params={"variant": "validation images as released"})
    return BrainDataset([person], stimuli, {"shared1000": released_split(train + val, test), "released": released})


def _archives(base: Path, name: str) -> dict[str, list[Path]]:
    """Archives of each part in the order of their numbers. The part val may be missing."""
    found = {}
    for part in _PARTS:
        numbers = by_number(entries(base / part), rf"{part}_{name}_(\d+)\.tar")
        missing = [number for number in range(max(numbers, default=-1) + 1) if number not in numbers]
        if missing or (not numbers and part != "val"):
            raise LayoutError(
                f"expected archives {part}_{name}_0.tar and so on in {base / part}, got {sorted(numbers)}"
                + (f" without {missing}" if missing else "")
            )
        found[part] = list(numbers.values())
    return found


def _read(path: Path, part: str) -> list[_Sample]:
    samples = []
    for members in read_samples(path, _MEMBERS).values():
        image, count = (_integer(members[kind]) for kind in ("coco73k.npy", "num_uniques.npy"))
        picture = next(members[kind] for kind in _PICTURES if kind in members)
        samples.append(_Sample(part, image, count, picture, members["nsdgeneral.npy"]))
    return samples


def _integer(member: Member) -> int:
    array = read_member(member)
    if array.size != 1 or array.ravel()[0] < 0 or array.ravel()[0] != np.floor(array.ravel()[0]):
        raise LayoutError(f"expected one number from 0 in {member.name} of {member.archive}, got {array}")
    return int(array.ravel()[0])


def _check_images(samples: list[_Sample], base: Path) -> None:
    """Check that every image is in one sample."""
    first: dict[int, _Sample] = {}
    for sample in samples:
        other = first.setdefault(sample.image, sample)
        if other is sample:
            continue
        names = f"{other.responses.name} ({other.part}) and {sample.responses.name} ({sample.part})"
        text = f"expected one sample of {image_name(sample.image)} in {base}, got {names}"
        raise LayoutError(text) if other.part == sample.part else LeakageError(text)


def _shape(sample: _Sample) -> tuple[int, np.dtype]:
    """Number of voxels, and type of the values."""
    array = read_member(sample.responses)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise AxisError(
            f"expected floats (repeats, voxels) in {sample.responses.name} of {sample.responses.archive}, got "
            f"{array.dtype} {array.shape}"
        )
    return array.shape[1], array.dtype


def _repeats(sample: _Sample, width: int) -> np.ndarray:
    """The different rows of a sample, in their order. Other rows are copies or zeros that fill it up to three."""
    array, where = read_member(sample.responses), f"{sample.responses.name} of {sample.responses.archive}"
    if array.ndim != 2 or array.shape[1] != width:
        raise AxisError(f"expected (repeats, {width}) in {where}, as in the first sample, got {array.shape}")
    check_finite(array, where)
    _, first = np.unique(array, axis=0, return_index=True)
    rows = [row for row in sorted(first.tolist()) if array[row].any()]
    if len(rows) != sample.count:
        raise LayoutError(f"expected {sample.count} different repeats in {where}, as num_uniques says, got {len(rows)}")
    return array[rows]
