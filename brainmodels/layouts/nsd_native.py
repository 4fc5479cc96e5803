"""The Natural Scenes Dataset as published: single-trial betas of whole volumes at 1.8 mm, one file a session.

    dataset = load("/data/nsd", "subj01", rois=["prf-visualrois"])

The data set is described by Allen et al., "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial
intelligence", Nature Neuroscience, 2022. Its authors grant access by form, and nothing of it is redistributed here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from veca.data.names import entries

from ..data.dataset import BrainDataset, Subject
from ..data.hdf5 import array_of, open_hdf5
from ..data.responses import Responses, TrialTable
from ..data.spaces import VoxelSpace
from ..data.splits import shared1000
from ..data.stimuli import StimulusSet
from ..errors import AxisError, IdError, LayoutError, near_names
from ._files import blocks, by_name, by_number, check_finite, provenance, read_table, read_text
from ._nsd import (
    PSC,
    ROI_CLASSES,
    Design,
    beta_scale,
    design_file,
    image_name,
    nsd_captions,
    nsd_stimuli,
    nsd_subject,
    read_design,
)
from ._volumes import VOLUME_SUFFIXES, Volume, check_grid, read_labels, read_series, read_volume

__all__ = ["BETAS", "describe", "detect", "load"]

BETAS = "betas_fithrf_GLMdenoise_RR"
_SPACE = "func1pt8mm"
_JOINED = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d"), "V4": ("hV4",)}
_PLAIN = tuple(name for name in ROI_CLASSES if name != "streams")  # classes whose labels are unique names
_TOO_MANY = 3  # times the voxels of nsdgeneral


def detect(root: Path) -> bool:
    """Whether a folder has betas of a session of any subject."""
    return any(Path(root).glob(f"nsddata_betas/ppdata/subj*/{_SPACE}/*/betas_session*"))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """nsddata_betas/ppdata/subjAA/func1pt8mm/betas_fithrf_GLMdenoise_RR/
    betas_sessionBB.nii.gz: (X, Y, Z, 750) int16, percent signal change x 300; or .hdf5: betas (750, Z, Y, X)
    ncsnr.nii.gz: (X, Y, Z); optional
nsddata/experiments/nsd/nsd_expdesign.mat: masterordering (1, 30000), subjectim (8, 10000), sharedix (1, 1000),
    stimpattern (40, 12, 75); nsd_stim_info_merged.csv: to cross-check; optional
nsddata/ppdata/subjAA/func1pt8mm/roi/nsdgeneral.nii.gz: (X, Y, Z), > 0 inside; other *.nii.gz: labels from 1; optional
nsddata/freesurfer/subjAA/label/CLASS.mgz.ctab: names of the labels; optional
nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5: imgBrick (73000, 425, 425, 3) uint8
COCO_73k_annots_curated.npy: (73000, 5) str; optional
Volumes of subjects 1 to 8: 81x104x83, 82x106x84, 81x106x82, 85x99x80, 79x97x78, 85x113x83, 78x95x81, 80x103x78;
sessions: 40, 40, 32, 30, 40, 32, 40, 30;
voxels of nsdgeneral: 15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    sessions: Sequence[int] | None = None,
    mask: str | Path | np.ndarray = "nsdgeneral",
    betas: str = BETAS,
    suffix: str | None = None,
    scale: str | None = None,
    rois: Sequence[str] | None = None,
    affines: str = "compare",
) -> BrainDataset:
    """Load one subject with all trials of some sessions. Voxels are in C order of (x, y, z).

    Args:
        root: Folder of nsddata and nsddata_betas.
        subject: Number or name of the subject, such as 1 or "subj01".
        allocate: Function (shape, dtype) -> array for the values, which is filled session by session.
        sessions: Numbers of the sessions to load. None loads all recorded sessions, which must all be there.
        mask: "nsdgeneral", the NIfTI file of a mask (> 0 inside), or a boolean volume.
        betas: Name of the folder of betas.
        suffix: "nii.gz" or "hdf5", where a folder has both. None prefers nii.gz.
        scale: "psc" if betas were converted to percent signal change. None if they are as published.
        rois: Names of files in the folder of regions, such as "prf-visualrois". None means all but lh.* and rh.*.
        affines: "compare" checks that regions, reliability and betas lie on the grid of nsdgeneral. "ignore" compares
            their shapes only, for files with a wrong header.

    Returns:
        A data set with the subject "subjAA", its betas as stored with their scale, and the split "shared1000".
        Regions have the names of their labels, such as "V1v" and "FFA-1", and V1 to V4 are joined as well. Where a
        label is not unique, its class comes first: "streams:ventral". Regions without a voxel are left out.

    Raises:
        LayoutError: Sessions are missing or truncated, or values are in another unit.
        AxisError: Volumes differ in shape or place, or the order of their axes is ambiguous.
        IdError: The table of stimuli contradicts the design.
    """
    root, number = Path(root), nsd_subject(subject)
    name = f"subj{number:02d}"
    design = read_design(design_file(root), number)
    folder = root / "nsddata_betas" / "ppdata" / name / _SPACE / betas
    files = _session_files(folder, name, design.num_sessions, sessions, suffix)
    volume = _mask(root / "nsddata" / "ppdata" / name / _SPACE / "roi", mask, affines)
    space = _space(root, name, volume, folder / "ncsnr.nii.gz", rois, affines)
    trials = design.trials(list(files))
    values, scaled = _values(files, design, trials, volume, affines, allocate, scale)
    seen = np.unique(design.image[np.isin(design.session, list(files))])
    labels = _cross_check(root / "nsddata" / "experiments" / "nsd" / "nsd_stim_info_merged.csv", number, trials, seen)
    ids = [image_name(image) for image in seen]
    stimuli = StimulusSet(ids, nsd_stimuli(root, seen), nsd_captions(root, seen), labels)
    source = provenance("nsd_native", root, list(files.values()), betas=betas, sessions=list(files))
    responses = Responses(values, trials, scale=scaled, unit=PSC)
    split = shared1000(trials, design.shared_ids())
    return BrainDataset([Subject(name, responses, space, provenance=source)], stimuli, {split.name: split})


def _session_files(
    folder: Path, name: str, num_sessions: int, sessions: Sequence[int] | None, suffix: str | None
) -> dict[int, Path]:
    """Files of betas by session number, ascending."""
    if suffix not in (None, "nii.gz", "hdf5"):
        raise LayoutError(f"expected suffix 'nii.gz' or 'hdf5', got {suffix!r}")
    found: dict[int, Path] = {}
    for kind in ("hdf5", "nii.gz"):  # the latter replaces the former
        paths = [path for path in entries(folder, f"betas_session*.{kind}") if suffix in (None, kind)]
        found |= by_number(paths, rf"betas_session(\d+)\.{re.escape(kind)}")
    if not found:
        known = [path.name for path in entries(folder.parent)]
        near = f"{near_names(folder.name, known)}; {', '.join(known)} are there" if known else ""
        raise LayoutError(f"expected betas_session01.nii.gz or .hdf5 and so on in {folder}, got none{near}")
    wanted = list(range(1, num_sessions + 1)) if sessions is None else sorted({int(number) for number in sessions})
    beyond = [number for number in (found if sessions is None else wanted) if not 1 <= number <= num_sessions]
    if beyond:
        raise LayoutError(f"expected sessions 1 to {num_sessions} of {name}, got {sorted(beyond)}")
    missing = [number for number in wanted if number not in found]
    if missing or not wanted:
        raise LayoutError(
            f"expected sessions {wanted} of {name} in {folder}, got {sorted(found)}, without {missing}; to load fewer "
            f"pass sessions={sorted(set(wanted) & set(found))}"
        )
    return {number: found[number] for number in wanted}


def _mask(folder: Path, mask: str | Path | np.ndarray, affines: str) -> Volume:
    """Booleans (x, y, z) of the voxels to keep."""
    general = read_labels(folder / "nsdgeneral.nii.gz")
    general = general._replace(values=general.values > 0)  # 0 and -1 are outside
    if isinstance(mask, str) and mask == "nsdgeneral":
        return general
    if isinstance(mask, np.ndarray):
        chosen = general._replace(values=mask, path=Path("mask="))
        if mask.dtype != bool:
            raise AxisError(f"expected booleans in mask=, got {mask.dtype}; nsdgeneral holds -1, 0 and 1: use > 0")
    else:
        chosen = read_labels(Path(mask))
        chosen = chosen._replace(values=chosen.values > 0)
    check_grid(chosen, general, affines)
    inside, count = int(chosen.values.sum()), int(general.values.sum())
    if inside > _TOO_MANY * count:
        raise LayoutError(
            f"expected about {count} voxels in {chosen.path}, as nsdgeneral > 0 has, got {inside}; did you use != -1?"
        )
    if not inside:
        raise AxisError(f"expected voxels in {chosen.path}, got none of {chosen.values.size}")
    return chosen


def _space(root: Path, name: str, mask: Volume, ncsnr: Path, only: Sequence[str] | None, affines: str) -> VoxelSpace:
    """The voxels of the mask with their regions and their reliability."""
    folder = root / "nsddata" / "ppdata" / name / _SPACE / "roi"
    files = by_name(entries(folder, "*.nii.gz"), VOLUME_SUFFIXES)
    files = {key: path for key, path in files.items() if not key.startswith(("lh.", "rh.")) and key != "nsdgeneral"}
    unknown = sorted(set(only or ()) - set(files))
    if unknown:
        raise LayoutError(f"expected files of {folder} ({', '.join(files)}), got {unknown[0]!r}")
    rois: dict[str, np.ndarray] = {}
    for key in files if only is None else only:
        labels = _values_in(read_labels(files[key]), mask, affines)
        table = root / "nsddata" / "freesurfer" / name / "label" / f"{key}.mgz.ctab"
        names = _label_names(key, table, labels, files[key])
        rois |= {region: labels == value for value, region in names.items() if (labels == value).any()}
    for joined, parts in _JOINED.items():
        known = [rois[part] for part in parts if part in rois]
        if known:
            rois[joined] = np.logical_or.reduce(known)
    reliability = _values_in(read_volume(ncsnr), mask, affines) if ncsnr.is_file() else None
    return VoxelSpace.from_mask(_SPACE, mask.values, mask.affine, rois=rois, ncsnr=reliability)


def _values_in(volume: Volume, mask: Volume, affines: str) -> np.ndarray:
    """Values in the voxels of the mask, (V,), or (V, volumes) of a series."""
    check_grid(volume, mask, affines)
    return volume.values[mask.values]


def _label_names(key: str, table: Path, labels: np.ndarray, path: Path) -> dict[int, str]:
    """Names of regions by label: from the table of labels, else from `ROI_CLASSES`, else the labels themselves."""
    present = np.unique(labels[labels > 0]).astype(int).tolist()
    if table.is_file():
        lines = [line.split() for line in read_text(table).splitlines() if line.strip()]
        names = {int(fields[0]): fields[1] for fields in lines if int(fields[0]) > 0}
    elif key in ROI_CLASSES:
        names = dict(enumerate(ROI_CLASSES[key], 1))
    else:
        names = {value: str(value) for value in present}
    unnamed = [value for value in present if value not in names]
    if unnamed:
        raise LayoutError(f"expected labels of {names} in {path}, got {unnamed[0]}; see {table}")
    return {value: name if key in (*_PLAIN, name) else f"{key}:{name}" for value, name in names.items()}


def _values(
    files: Mapping[int, Path],
    design: Design,
    trials: TrialTable,
    mask: Volume,
    affines: str,
    allocate: Callable,
    scale: str | None,
) -> tuple[np.ndarray, float]:
    """Betas (trials, voxels) as stored, and percent signal change of one stored unit."""
    values, scaled, start = None, 1.0, 0
    for session, path in files.items():
        count = int((design.session == session).sum())
        part = _read_session(path, mask, count, affines)
        if values is None:
            scaled = beta_scale(part, scale, path)
            stored = np.int16 if part.dtype.kind == "i" else np.float32
            values = allocate((len(trials), part.shape[1]), np.dtype(stored))
        if (part.dtype.kind == "i") != (values.dtype.kind == "i") or (part.dtype.kind == "i" and part.itemsize > 2):
            raise LayoutError(f"expected betas of {values.dtype} in {path}, as in the first session, got {part.dtype}")
        check_finite(part, path, trials.image_id, start)
        values[start : start + count] = part
        start += count
    if values is None:
        raise LayoutError("expected betas of one session or more, got no file")
    return values, scaled


def _read_session(path: Path, mask: Volume, count: int, affines: str) -> np.ndarray:
    """Betas of a session in the mask, (trials, voxels) as stored."""
    if path.suffix == ".hdf5":
        return _read_hdf5(path, mask.values, count)
    volumes = read_series(path)
    _check_count(path, volumes.values.shape[3], count)
    return _values_in(volumes, mask, affines).T


def _read_hdf5(path: Path, inside: np.ndarray, count: int) -> np.ndarray:
    with open_hdf5(path, "betas") as file:
        betas = array_of(file, "betas")
        if len(set(inside.shape)) < 3:
            raise AxisError(
                f"expected a mask whose three lengths differ, to tell the axes of {path} apart, got mask "
                f"{inside.shape} and betas {betas.shape}: their order is ambiguous; use the .nii.gz file"
            )
        if betas.ndim != 4 or betas.shape[:0:-1] != inside.shape:
            raise AxisError(
                f"expected betas {(count, *inside.shape[::-1])} in {path}, the mask {inside.shape} reversed after the "
                f"trials, got {betas.shape}"
            )
        _check_count(path, betas.shape[0], count)
        out = np.empty((count, int(inside.sum())), betas.dtype)
        for rows in blocks(count, betas.dtype.itemsize * inside.size):
            out[rows] = betas[rows].transpose(0, 3, 2, 1)[:, inside]
    return out


def _check_count(path: Path, got: int, count: int) -> None:
    if got != count:
        raise LayoutError(f"expected {count} trials in {path}, as the design has, got {got}")


def _cross_check(path: Path, subject: int, trials: TrialTable, seen: np.ndarray) -> dict[str, np.ndarray]:
    """COCO ids of the seen images, after a check of their table against the design. Empty without the table."""
    if not path.is_file():
        return {}
    repeats = [f"subject{subject}_rep{repeat}" for repeat in range(3)]
    table = read_table(path, ["nsdId", "cocoId", *repeats])
    images = np.array(table["nsdId"], dtype=np.int64)
    listed = {}
    for column in repeats:
        shown = np.array(table[column], dtype=np.float64).astype(np.int64)
        listed |= dict(zip(shown[shown > 0].tolist(), images[shown > 0].tolist(), strict=True))
    for trial, image_id in zip(trials.trial.tolist(), trials.image_id.tolist(), strict=True):
        image = listed.get(trial + 1)
        if image is not None and image_name(image) != image_id:
            raise IdError(
                f"expected trial {trial + 1} of subject {subject} to show {image_id}, as nsd_expdesign.mat says, got "
                f"{image_name(image)} in {path}; one of the two is not that of the experiment"
            )
    coco = dict(zip(images.tolist(), table["cocoId"], strict=True))
    absent = [int(image) for image in seen if int(image) not in coco]
    if absent:
        raise IdError(f"expected a row of {image_name(absent[0])} in {path}, got {len(images)} rows without it")
    return {"coco_id": np.array([int(coco[int(image)]) for image in seen])}
