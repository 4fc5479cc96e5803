"""BIDS folders: events of a study, and betas of single trials in its derivatives, as of GLMsingle and fMRIPrep.

    dataset = load("/data/study", "01")
    dataset = load("/data/study", "01", task="things", space="T1w", trial_type="image", by="concept")

BIDS is the Brain Imaging Data Structure, https://bids-specification.readthedocs.io. Files are found by their names, and
all volumes that are used together must lie on one grid.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from veca.data.names import existing

from ..data.dataset import BrainDataset, Split, Subject
from ..data.responses import Responses, TrialTable
from ..data.scalings import PSC
from ..data.spaces import VoxelSpace
from ..data.splits import split_from_ids
from ..data.stimuli import ImageFiles, StimulusSet
from ..errors import IdError, LayoutError, check_choice, near_names
from ._bids_betas import GLMSINGLE, assign, find_units, space_of
from ._bids_events import EventChoice, Run, read_runs, session_numbers
from ._bids_measured import kept_voxels, read_measured, selected
from ._bids_names import known_subjects, subject_files, subject_folder
from ._bids_space import SpaceChoice, find_map, find_place, find_regions
from ._files import LISTS, find_files, provenance, read_ids
from ._held_out import folders_of, given_split, held_out, most_shown
from ._volumes import AFFINES

__all__ = ["describe", "detect", "load"]

_MARKS = {"test": True, "true": True, "1": True, "yes": True, "train": False, "false": False, "0": False, "no": False}


def detect(root: Path) -> bool:
    """Whether a folder has events of a functional run of any subject."""
    root = Path(root)
    return any(
        any((root / name).glob(f"{folder}*_events.tsv"))
        for name in known_subjects(root)
        for folder in ("func/", "ses-*/func/")
    )


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """sub-XX/[ses-YY/]func/*_task-T_[run-N_]events.tsv: columns onset, duration, stim_file, perhaps trial_type;
    stim_file is a path below stimuli/ and becomes the image id, such as animals/cat.jpg
stimuli/: pictures
derivatives/PROGRAM/sub-XX/[ses-YY/]...: betas of single trials in the order of the events, over all runs that the name
    and the folder of the file allow, such as one file for each session:
    TYPED_FITHRF_GLMDENOISE_RR.npy (a pickle, opened with allow_pickle=true), .npz (of veca brain convert) or .hdf5:
        betasmd (X, Y, Z, trials)
    *_betas.nii.gz: (X, Y, Z, trials), int16 with scl_slope or floats
    *_hemi-L_*_betas.func.gii with *_hemi-R_*: maps (vertices,); *_betas.dtseries.nii or .dscalar.nii: (trials, columns)
    *_desc-brain_mask.nii.gz: (X, Y, Z), > 0 inside; several are joined; for volumes only
    *_dseg.nii.gz, .label.gii or .dlabel.nii: labels, each a region, with names in *_dseg.tsv (index, name); optional
    *_ncsnr.nii.gz or *_stat-ncsnr_*: (X, Y, Z) signal by noise of one presentation; optional
    *_R2.nii.gz or *_stat-R2_*: (X, Y, Z) variance that the model explains, percent; optional
Files in folders anat are passed over. Every file can be named by an option, as a path or a pattern of names."""


def load(
    root: str | Path,
    subject: str | int,
    *,
    allocate: Callable = np.empty,
    task: str | None = None,
    sessions: str | int | Sequence[str | int] | None = None,
    trial_type: str | Sequence[str] | None = None,
    stim: str = "stim_file",
    stimuli: str | Path = "stimuli",
    namespace: str | None = None,
    derivatives: str | Path = "derivatives",
    space: str | None = None,
    betas: str | Path | None = None,
    allow_pickle: bool = False,
    mask: str | Path | None = None,
    atlas: str | Path | None = None,
    ncsnr: str | Path | None = None,
    r2: str | Path | None = None,
    r2_min: float | None = None,
    affines: str = "compare",
    test: str | Path | None = None,
    holdout: float = 0.1,
    by: str = "image",
    seed: int = 0,
    unit: str | None = None,
    normalizer: str = "none",
) -> BrainDataset:
    """Load one subject with all trials of some sessions. Voxels are in C order of (x, y, z), without dead ones.

    Args:
        root: BIDS folder. Other paths may be relative to it.
        subject: Label of the subject, such as "01" or "sub-01".
        allocate: Function (shape, dtype) -> array for the values, which is filled file by file.
        task: Name of the task. None takes the only one.
        sessions: Labels of the sessions to load, as a list or separated by commas. None loads all, which must all have
            betas.
        trial_type: Values of the column trial_type that are trials, as a list or separated by commas. None takes every
            line that names an image.
        stim: Column of the events that names the image.
        stimuli: Folder of the pictures.
        namespace: Text to put before every id, with a colon, so that ids of several studies differ.
        derivatives: Folder of the derivatives.
        space: Label of the space of betas, masks and atlases, such as "T1w". None takes the only one.
        betas: Path of the file of betas, or pattern of names such as "*_desc-glm_betas.nii.gz".
        allow_pickle: Whether to open GLMsingle's `.npy`, which is a pickle. Only arrays, strings and numbers are built.
            A `.npz` of one name beside it, as `veca brain convert` writes it, takes its place.
        mask: Path or pattern of the brain mask, or "all" to keep every voxel of the betas.
        atlas: Path or pattern of the label volumes, or "none".
        ncsnr: Path or pattern of the reliability.
        r2: Path or pattern of the variance that the model explains. None takes R2 of GLMsingle's files, averaged.
        r2_min: Least R2 of a voxel, in percent. Voxels below it are left out. R2 depends on test trials as well.
        affines: "compare" checks that all volumes lie on the grid of the mask. "ignore" compares their shapes only, for
            files with a wrong header.
        test: Ids of the test images in a file (.txt, or .tsv and .csv with a column image_id), or a column of the
            events with test and train, true and false, or 1 and 0. None takes the images that were shown most often as
            "repeated", see `_held_out.most_shown`, and a share by hash where all were shown about equally often.
        holdout: Share of the images that are held out by hash.
        by: What is held out together: "image", "concept" or "session". The concept of an image is the folder of its id.
            Any but "image" is always held out by hash.
        seed: Seed of the choice of held-out images and of validation images.
        unit: Physical unit of the betas. None is percent signal change for GLMsingle's files, and else unknown.
        normalizer: Name of the scaling that was applied before the betas were saved.

    Returns:
        A data set with the subject "sub-XX", its images and one split. Provenance counts the dead voxels.

    Raises:
        IdError: The subject is unknown, or a picture has no file.
        LayoutError: A file or a column is missing, betas and events differ in number, or a label has no name.
        AxisError: Volumes lie on different grids, or no voxel is alive.
        UnsafePickleError: A file is a pickle and `allow_pickle` is False.
    """
    root = Path(root)
    check_choice("affines", affines, AFFINES)
    check_choice("by", by, ("image", "concept", "session"))
    name, column = subject_folder(root, str(subject)), _test_column(root, test)
    raw, derived = subject_files(root, name, derivatives)
    runs = read_runs(raw, root / name, EventChoice(task, _listed(sessions), _listed(trial_type), stim, column))
    parts = assign(find_units(derived, root, root / derivatives, betas, space), runs, root / derivatives)
    units = [unit for unit, _ in parts]
    space = space or space_of(units, root / derivatives)
    task, labels = runs[0].name.get("task"), [run.session for run in runs]
    where = SpaceChoice(root, root / derivatives, space, mask, atlas, affines, labels, task)
    place, masks, where = find_place(units, derived, where)
    trials = _trials(runs, namespace, root / name)
    measured = read_measured(parts, place, len(trials), allocate, allow_pickle)
    explained, of_explained = find_map(place, units[0].kind, derived, where, "R2", r2)
    explained = measured.r2 if explained is None else explained
    kept = kept_voxels(measured, explained, r2_min, place.index, [unit.path for unit in units], masks)
    regions, of_regions = find_regions(place, units[0].kind, derived, where)
    ratio, of_ratio = find_map(place, units[0].kind, derived, where, "ncsnr", ncsnr)
    present = {region: inside for region, inside in regions.items() if (inside & kept).any()}
    voxels = VoxelSpace(f"{name}-{where.space or 'bids'}", place.index, place.shape, place.affine, present, ratio)
    files = [*(run.name.path for run in runs), *(item.path for unit in units for item in unit.names)]
    source = provenance(
        "bids",
        root,
        [*files, *masks, *of_regions, *of_ratio, *of_explained],
        task=task,
        space=where.space,
        sessions=session_numbers(labels, root / name),
        events_left_out=sum(run.left_out for run in runs),
        dead=measured.dead.to_json(place.index),
        below_r2_min=int(measured.dead.alive.sum() - kept.sum()),
        r2=None if explained is None else float(np.nanmedian(explained[kept])),
        regions_left_out=sorted(set(regions) - set(present)),
        not_read=place.left_out,
    )
    values = selected(measured.values, kept, allocate)
    unit = unit or (PSC if all(GLMSINGLE in item.names[0].words for item in units) else "unknown")
    responses = Responses(values, trials, measured.scale, unit=unit)
    person = Subject(name, responses, voxels.select(kept), normalizer, provenance=source)
    split = _split(root, test, runs, trials, holdout, by, seed, namespace)
    return BrainDataset([person], _stimuli(runs, namespace, existing(root / stimuli)), {split.name: split})


def _listed(values: str | int | Sequence[str | int] | None) -> list[str] | None:
    """Values as a list of text. Text is separated by commas."""
    if values is None:
        return None
    return [text.strip() for text in values.split(",")] if isinstance(values, str) else [str(x) for x in _all(values)]


def _all(values: int | Sequence[str | int]) -> Sequence[str | int]:
    return [values] if isinstance(values, int) else values


def _trials(runs: Sequence[Run], namespace: str | None, where: Path) -> TrialTable:
    numbers = session_numbers([run.session for run in runs], where)
    counts = [len(run.images) for run in runs]
    session = np.repeat([numbers[run.session] for run in runs], counts)
    names = [_named(namespace, image) for run in runs for image in run.images]
    return TrialTable.of(names, session=session, run=np.repeat([run.number for run in runs], counts))


def _named(namespace: str | None, image: str) -> str:
    return image if namespace is None else f"{namespace}:{image}"


def _stimuli(runs: Sequence[Run], namespace: str | None, folder: Path) -> StimulusSet:
    """The pictures of all trials. The first that is missing is named with the line that shows it."""
    if not folder.is_dir():
        raise LayoutError(f"expected a folder of stimuli at {folder}, got no such folder; pass stimuli=FOLDER")
    shown: dict[str, str] = {}
    for run in runs:
        for image, line in zip(run.images, run.lines, strict=True):
            shown.setdefault(image, f"line {line} of {run.name.path}")
    paths = {image: existing(folder / image) for image in sorted(shown)}
    missing = [image for image, path in paths.items() if not path.is_file()]
    if missing:
        known = [path.relative_to(folder).as_posix() for path in find_files(folder, "*")]
        raise IdError(
            f"expected the picture of {missing[0]!r}, which stim_file names in {shown[missing[0]]}, at "
            f"{paths[missing[0]]}, got no such file; {len(missing)} of {len(paths)} pictures are missing"
            f"{near_names(missing[0], known)}"
        )
    return StimulusSet([_named(namespace, image) for image in paths], ImageFiles(list(paths.values())))


def _test_column(root: Path, test: str | Path | None) -> str | None:
    """The column of the events that marks test images, or None where `test` is a file."""
    if test is None or Path(test).suffix in LISTS or (root / test).is_file():
        return None
    return str(test)


def _split(
    root: Path,
    test: str | Path | None,
    runs: Sequence[Run],
    trials: TrialTable,
    holdout: float,
    by: str,
    seed: int,
    namespace: str | None,
) -> Split:
    """The split of listed, marked or repeated images, or of a share by hash."""
    if test is not None and _test_column(root, test) is None:
        path = root / test
        return given_split(trials, [_named(namespace, name) for name in read_ids(path)[0]], path, seed)
    if test is not None:
        marked = [_named(namespace, name) for name in _marked(runs, str(test))]
        return given_split(trials, marked, f"the column {test} of the events", seed)
    often = most_shown(trials) if by == "image" else frozenset()
    if often:
        shown = set(trials.image_id.tolist())
        rule = f"{len(often)} of {len(shown)} images that were shown clearly more often than most"
        return split_from_ids("repeated", shown - often, often, seed=seed, params={"rule": rule})
    ids = sorted(set(trials.image_id.tolist()))
    return held_out(trials, holdout, by, folders_of(ids) if by == "concept" else None, seed)


def _marked(runs: Sequence[Run], column: str) -> set[str]:
    """Images that a column of the events marks as test images."""
    marks: dict[str, bool] = {}
    for run in runs:
        for image, text, line in zip(run.images, run.test, run.lines, strict=True):
            mark = _MARKS.get(text.lower())
            if mark is None:
                raise LayoutError(
                    f"expected {', '.join(_MARKS)} in the column {column}, line {line} of {run.name.path}, got {text!r}"
                )
            if marks.setdefault(image, mark) != mark:
                raise LayoutError(
                    f"expected one mark of {image!r} in the column {column}, got test and train, the second in line "
                    f"{line} of {run.name.path}"
                )
    return {image for image, mark in marks.items() if mark}
