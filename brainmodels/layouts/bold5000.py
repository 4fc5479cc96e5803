"""BOLD5000, release 2: 4,916 photographs of scenes and objects, with betas in percent signal change.

    dataset = load("/data/bold5000", "CSI1", betas="TYPED")

Subjects saw one image every 10 s, 37 images a run, at a TR of 2 s, and 113 images more than once. The authors advise to
z-score each voxel within each session. The data set is described by Chang et al., "BOLD5000, a public fMRI dataset
while viewing 5000 visual images", 2019.
"""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from veca.data.images import IMAGE_SUFFIXES
from veca.data.names import stem

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.scalings import PSC
from ..data.spaces import VoxelSpace
from ..data.splits import bold5000_repeated, repeated_images
from ..data.stimuli import OptionalImageFiles, StimulusSet
from ..errors import AxisError, BrainDataError, IdError, LayoutError
from ._files import (
    blocks,
    check_finite,
    find_files,
    find_images,
    provenance,
    read_array,
    read_text,
    subject_number,
    voxels_in_a_row,
)
from ._volumes import VOLUME_SUFFIXES, Volume, check_grid, open_volume, read_labels, read_series, roi_in_mask

__all__ = ["describe", "detect", "load"]

_log = logging.getLogger(__name__)

_REGIONS = tuple(f"{side}{name}" for name in ("EarlyVis", "LOC", "OPA", "PPA", "RSC") for side in ("LH", "RH"))
_MISSPELT = {"LHLO": "LHLOC", "RHLO": "RHLOC", "RHRRSC": "RHRSC"}  # names of some masks of CSI2 and CSI3
_BETAS = re.compile(r"(CSI\d)_GLMbetas-(TY[PB]E[A-D])\S*?_(?:ses-(\d+)\.nii(?:\.gz)?|allses_(\w+)\.npy)")
_STIMULI = ("BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli", "Scene_Stimuli/Presented_Stimuli")
_RUN = 37  # images in a run


def detect(root: Path) -> bool:
    """Whether a folder has betas of any subject."""
    return any(_BETAS.fullmatch(path.name) for path in find_files(Path(root), "CSI*_GLMbetas-*"))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """CSI{1..4}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-XX.nii.gz: (x, y, z, trials), percent signal change
CSI{1..4}_brainmask.nii.gz: (x, y, z)
CSI{1..4}_imgnames.txt: a file name for each trial of all sessions
sub-CSI{1..4}_mask-{LH,RH}{EarlyVis,LOC,OPA,PPA,RSC}.nii.gz: (x, y, z); optional, misspelt LHLO, RHLO, RHRRSC are known
or, in place of volumes and masks: CSI{1..4}_GLMbetas-TYPED-..._allses_{LHPPA,...}.npy: (trials, voxels)
Volumes of CSI1 to 4: (71, 89, 72), (72, 92, 70), (72, 88, 67), (70, 89, 70); sessions 15, 15, 15, 9 of 333 or 370
trials; 5254 trials, of CSI4 3108. Sub-folders are searched."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    betas: str | None = None,
    sessions: Sequence[int] | None = None,
    images: str | Path | None = None,
    nan_voxels: str = "raise",
    affines: str = "compare",
) -> BrainDataset:
    """Load one subject with the voxels of its brain mask, or with the arrays of its regions where there are no volumes.

    Volumes are decompressed one session at a time (0.7 GB). Positions in the brain are those of the mask, because the
    affine of the beta volumes is known to be wrong. The columns of region arrays follow each other, and their positions
    are not known.

    Args:
        root: Folder with the files, possibly in sub-folders.
        subject: Number or name of the subject, such as 1 or "CSI1".
        allocate: Function (shape, dtype) -> array for the values, which is filled from the files.
        betas: Kind of betas, "TYPEA" to "TYPED". None takes the only kind that is there.
        sessions: Numbers of the sessions to load. The files of all sessions must be there in any case, because the list
            of names covers all trials.
        images: Folder of the pictures, which are found by stem. None looks for `Presented_Stimuli` and may load no
            pictures.
        nan_voxels: "raise" refuses voxels that are not finite in every trial. "drop" leaves them out with a warning.
        affines: "compare" checks that the volumes of regions lie on the grid of the brain mask. "ignore" compares their
            shapes only, for files with a wrong header. The affines of betas are never compared.

    Returns:
        A data set with the subject "CSIx" and image ids `b5k:<stem>`. The split "bold5000_repeated" tests on the images
        that this subject saw more than once. `brainmodels.data.splits.bold5000_5fold` makes folds of them.

    Raises:
        LayoutError: Files are missing, sessions have gaps, or trials and names differ in number.
        AxisError: Volumes differ in shape, or regions lie elsewhere than the mask.
    """
    root, name = Path(root), f"CSI{subject_number(subject)}"
    if nan_voxels not in ("raise", "drop"):
        raise BrainDataError(f"expected nan_voxels 'raise' or 'drop', got {nan_voxels!r}")
    volumes, arrays, kind = _beta_files(root, name, betas)
    ids, stems = _ids(_only(root, f"{name}_imgnames.txt"))
    if volumes:
        options = allocate, nan_voxels, affines
        values, space, session, run, keep = _from_volumes(root, name, volumes, ids, sessions, *options)
        ids = ids[keep]
    elif sessions is not None:
        raise LayoutError(
            f"expected volumes of single sessions in {root}, got arrays of all sessions; leave out sessions="
        )
    else:
        values, space = _from_arrays(arrays, len(ids), allocate)
        session, run, keep = -1, -1, np.arange(len(ids))
    trials = TrialTable.of(ids, session, run, trial=keep)
    source = provenance("bold5000", root, list((volumes or arrays).values()), betas=kind)
    person = Subject(name, Responses(values, trials, unit=PSC), space, provenance=source)
    shown = np.unique(ids)
    stimuli = StimulusSet(shown, _pictures(root, images, [stems[image_id] for image_id in shown]))
    splits = [bold5000_repeated(trials)] if repeated_images(trials) else []
    return BrainDataset([person], stimuli, {split.name: split for split in splits})


def _beta_files(root: Path, name: str, betas: str | None) -> tuple[dict[int, Path], dict[str, Path], str]:
    """Volumes by session, arrays by region, and the kind of the betas."""
    found: dict[str, tuple[dict, dict]] = {}
    for path in find_files(root, f"{name}_GLMbetas-*"):
        match = _BETAS.fullmatch(path.name)
        if match is None:
            continue
        kind = match[2].replace("TYBE", "TYPE")  # as the release spells type B
        volumes, arrays = found.setdefault(kind, ({}, {}))
        key, files = (int(match[3]), volumes) if match[3] else (_MISSPELT.get(match[4], match[4]), arrays)
        if key in files:
            raise LayoutError(f"expected one file of {name} {kind} {key} in {root}, got {files[key]} and {path}")
        files[key] = path
    if betas is None and len(found) > 1:
        raise LayoutError(f"expected betas of one kind of {name} in {root}, got {', '.join(found)}; pass betas='TYPED'")
    if not found or (betas is not None and betas not in found):
        raise LayoutError(
            f"expected {betas or 'betas'} of {name} in {root}, got {', '.join(found) or 'none'}; {describe()}"
        )
    kind = betas or next(iter(found))
    volumes, arrays = found[kind]
    return dict(sorted(volumes.items())), dict(sorted(arrays.items(), key=lambda item: _place(item[0]))), kind


def _place(region: str) -> tuple[int, str]:
    return (_REGIONS.index(region) if region in _REGIONS else len(_REGIONS), region)


def _only(root: Path, pattern: str) -> Path:
    found = find_files(root, pattern)
    if len(found) != 1:
        raise LayoutError(f"expected one {pattern} in {root}, got {', '.join(map(str, found)) or 'none'}")
    return found[0]


def _ids(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Image ids of all trials, and the stem of each image's picture by image id."""
    ids, files = [], {}
    for line, name in enumerate(read_text(path).splitlines(), 1):
        file = name.strip().removeprefix("rep_")  # repeated presentations may be marked
        if not file:
            raise LayoutError(f"expected a file name in every line of {path}, got an empty line {line}")
        ids.append(f"b5k:{stem(file, IMAGE_SUFFIXES)}")
        if files.setdefault(ids[-1], file) != file:
            raise IdError(f"expected one file of {ids[-1]} in {path}, got {files[ids[-1]]} and {file} in line {line}")
    return np.array(ids), {image_id: stem(file, IMAGE_SUFFIXES) for image_id, file in files.items()}


def _from_volumes(
    root: Path,
    name: str,
    volumes: dict[int, Path],
    ids: np.ndarray,
    sessions: Sequence[int] | None,
    allocate: Callable,
    nan_voxels: str,
    affines: str,
) -> tuple[np.ndarray, VoxelSpace, np.ndarray, np.ndarray, np.ndarray]:
    """Values and space, then session, run and position in the list of names of each loaded trial."""
    brain = read_labels(_only(root, f"{name}_brainmask.nii*"))
    mask = brain.values > 0
    lengths = {number: _length(file, mask.shape) for number, file in volumes.items()}
    if list(volumes) != list(range(1, len(volumes) + 1)) or sum(lengths.values()) != len(ids):
        raise LayoutError(
            f"expected sessions of {len(ids)} trials in all, as many as {name}_imgnames.txt has names, got sessions "
            f"{list(volumes)} of {sum(lengths.values())}; without all of them the image of a trial is unknown"
        )
    unknown = sorted(set(sessions or ()) - set(volumes))
    if unknown:
        raise LayoutError(f"expected sessions of {list(volumes)}, got {unknown}")
    kept = list(volumes) if sessions is None else sorted(sessions)
    if nan_voxels == "drop":
        mask = _finite(brain, [volumes[number] for number in kept], name)
    starts = dict(zip(volumes, np.cumsum([0, *lengths.values()])[:-1].tolist(), strict=True))
    keep = np.concatenate([starts[number] + np.arange(lengths[number]) for number in kept])
    session = np.repeat(kept, [lengths[number] for number in kept])
    run = np.concatenate([_runs(lengths[number]) for number in kept])
    values, start = allocate((len(keep), int(mask.sum())), np.float32), 0
    for number in kept:
        part = values[start : start + lengths[number]]
        part[:] = _betas(volumes[number], brain)[mask].T
        check_finite(part, volumes[number], ids[keep], start, "pass nan_voxels='drop' to leave these voxels out")
        start += lengths[number]
    kept_voxels = brain._replace(values=mask)
    rois = {
        region: roi_in_mask(read_labels(file), kept_voxels, affines) for region, file in _regions(root, name).items()
    }
    return values, VoxelSpace.from_mask("bold5000-T1w-2mm", mask, brain.affine, rois=rois), session, run, keep


def _regions(root: Path, name: str) -> dict[str, Path]:
    """Volumes of regions by name, in a fixed order."""
    found: dict[str, Path] = {}
    for file in find_files(root, f"sub-{name}_mask-*.nii*"):
        region = stem(file, VOLUME_SUFFIXES).split("_mask-")[1]
        region = _MISSPELT.get(region, region)
        if region in found:
            raise LayoutError(f"expected one file of {region} of {name} in {root}, got {found[region]} and {file}")
        found[region] = file
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _betas(path: Path, brain: Volume) -> np.ndarray:
    """Betas (x, y, z, trials) of a session. Their affine is known to be wrong, so only shapes are compared."""
    volumes = read_series(path)
    check_grid(volumes, brain, "ignore")
    return volumes.values


def _runs(count: int) -> np.ndarray:
    """Run of each trial of a session. -1 where the trials do not divide into runs of 37."""
    return np.arange(count) // _RUN + 1 if count % _RUN == 0 else np.full(count, -1)


def _length(path: Path, shape: tuple[int, ...]) -> int:
    """Number of trials of a session, from the header of its volume."""
    found = open_volume(path).shape
    if len(found) != 4 or found[:3] != shape:
        raise AxisError(f"expected {(*shape, 'trials')} in {path}, as the brain mask has, got {found}")
    return found[3]


def _finite(brain: Volume, files: Sequence[Path], name: str) -> np.ndarray:
    """The voxels of a mask that are finite in all trials. This reads the files once more."""
    mask = brain.values > 0
    good = mask.copy()
    for path in files:
        good &= np.isfinite(_betas(path, brain).sum(-1, dtype=np.float64))
    _log.warning(
        "%s: %d of %d voxels dropped, which are not finite in every trial", name, (mask & ~good).sum(), mask.sum()
    )
    return good


def _from_arrays(arrays: dict[str, Path], num_names: int, allocate: Callable) -> tuple[np.ndarray, VoxelSpace]:
    parts = {region: read_array(path) for region, path in arrays.items()}
    for region, part in parts.items():
        if part.ndim != 2 or len(part) != num_names:
            raise AxisError(
                f"expected ({num_names}, voxels) in {arrays[region]}, a row for each name, got {part.shape}"
            )
        check_finite(part, arrays[region])
    edges = np.cumsum([0, *(part.shape[1] for part in parts.values())])
    values = allocate((num_names, int(edges[-1])), np.float32)
    rois = {}
    for region, part, start, stop in zip(parts, parts.values(), edges[:-1], edges[1:], strict=True):
        for rows in blocks(num_names, part[:1].nbytes):
            values[rows, start:stop] = part[rows]
        rois[region] = np.zeros(edges[-1], bool)
        rois[region][start:stop] = True
    index, shape = voxels_in_a_row(int(edges[-1]))
    return values, VoxelSpace("bold5000-regions", index, shape, rois=rois)


def _pictures(root: Path, images: str | Path | None, stems: list[str]) -> OptionalImageFiles:
    folders = [root / place for place in _STIMULI] if images is None else [root / images]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if images is None and folder is None:
        return OptionalImageFiles([None] * len(stems))
    return OptionalImageFiles(find_images(folder or folders[0], stems))
