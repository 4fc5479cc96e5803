"""Responses of users of nilearn: a fitted masker, images of betas and a table of events become a subject.

    masker = NiftiMasker("mask.nii.gz").fit()
    subject = from_masker(masker, ["ses-1_betas.nii.gz", "ses-2_betas.nii.gz"], [events_1, events_2])
    subject.responses.batch([0])                 # (1, voxels)
    masker.inverse_transform(scores)             # columns have the order of the masker

Only values that a session alone decides may be taken: standardisation and filters belong after the split.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError, IdError, LayoutError, near_names, need
from .dataset import Subject
from .dead import find_dead
from .responses import Responses, TrialTable
from .spaces import VoxelSpace

__all__ = ["from_masker"]

_log = logging.getLogger(__name__)
_OVER_TRIALS = ("standardize", "detrend", "low_pass", "high_pass", "high_variance_confounds")  # mix trials
_SIDES = ("left", "right")
_APART = 1e-3  # largest difference between entries of two affines
_ABSENT = ("", "n/a", "nan")


def from_masker(
    masker: Any,
    images: Any,
    events: Any,
    *,
    subject: str = "sub-01",
    stim: str = "stim_file",
    trial_type: str | Sequence[str] | None = None,
    rois: Mapping[str, Any] | None = None,
    ncsnr: Any = None,
    unit: str = "unknown",
    dead: str = "drop",
) -> Subject:
    """A subject from images of single-trial betas.

    Args:
        masker: Fitted `NiftiMasker` or `SurfaceMasker` of nilearn, without standardisation and filters over trials.
        images: One image (x, y, z, trials) or path, or a list of them, one for each session. They must lie on the grid
            of the mask.
        events: A `DataFrame` (or mapping of columns), or a list of them, one for each image. Its lines are the trials
            of the image in their order. A column `run` is taken over, and a column `session` of whole numbers as well.
            Without one, images are the sessions 1, 2, 3 and so on.
        subject: Id of the subject.
        stim: Column of the image ids.
        trial_type: Values of the column trial_type that are trials. None takes every line that names an image.
        rois: Images of region masks (> 0 inside) by the name of the region, which the same masker reads.
        ncsnr: Image of the reliability, or None.
        unit: Physical unit of the betas.
        dead: "drop" leaves voxels out that are constant in a session or not finite, and counts them in the log and in
            `provenance`. "keep" keeps all columns as the masker gives them, which has 0 for values that are not
            finite. "refuse" is an error where there are any.

    Returns:
        The subject. Its columns are those of the masker, in their order, without dead voxels.

    Raises:
        BrainDataError: The masker is not fitted, or changes values over trials.
        AxisError: An image lies on another grid, or events and trials differ in number.
        IdError: A trial has no image.
        LayoutError: A column is missing.
    """
    _check_masker(masker)
    if dead not in ("drop", "keep", "refuse"):
        raise BrainDataError(f"expected dead 'drop', 'keep' or 'refuse', got {dead!r}")
    images = list(images) if isinstance(images, list | tuple) else [images]
    tables = list(events) if isinstance(events, list | tuple) else [events]
    if len(images) != len(tables):
        raise AxisError(f"expected events for each of {len(images)} images, got {len(tables)} tables")
    kinds = [trial_type] if isinstance(trial_type, str) else trial_type
    ids, sessions, runs, values, spoilt, slices = [], [], [], [], [], []
    for number, (image, table) in enumerate(zip(images, tables, strict=True), 1):
        block, wrong = _transformed(masker, image, f"image {number}")
        rows = _rows(table, stim, kinds, number)
        if len(rows) != len(block):
            raise AxisError(
                f"expected {len(block)} lines of events for the {len(block)} betas of image {number}, got {len(rows)}"
            )
        slices.append(slice(len(ids), len(ids) + len(rows)))
        ids += [str(_column(table, stim, number)[row]) for row in rows]
        sessions += _whole(table, "session", rows, number, number)
        runs += _whole(table, "run", rows, -1, number)
        values.append(block)
        spoilt.append(wrong)
    stacked = np.concatenate(values).astype(np.float32)
    trials = TrialTable.of(ids, session=sessions, run=runs)
    space = _space(masker, f"{subject}-masker", rois or {}, ncsnr)
    found = find_dead(stacked, slices, np.any(spoilt, 0))
    facts = {"layout": "from_masker", "dead": found.to_json(space.index), "smoothing_fwhm": masker.smoothing_fwhm}
    if found.count and dead != "keep":
        if dead == "refuse" or not found.alive.any():
            raise AxisError(f"expected voxels that vary in each image, got {found}")
        _log.warning("%s, and are left out", found)
        stacked, space = stacked[:, found.alive], space.select(found.alive)
    return Subject(subject, Responses(stacked, trials, unit=unit), space, provenance=facts)


def _check_masker(masker: Any) -> None:
    if not hasattr(masker, "mask_img_"):
        raise BrainDataError(f"expected a fitted NiftiMasker or SurfaceMasker, got {type(masker).__name__}; call fit")
    if "Label" in type(masker).__name__ or "Maps" in type(masker).__name__:
        raise BrainDataError(f"expected a masker of voxels, got {type(masker).__name__}; pass regions as rois=")
    for name in _OVER_TRIALS:
        value = getattr(masker, name, None)
        if value not in (None, False):
            raise BrainDataError(
                f"expected a masker with {name}=False or None, got {value!r}, which mixes test and train trials; scale "
                "by fit_normalizer after the split"
            )


def _transformed(masker: Any, image: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Betas of an image, (trials, voxels), after a check of its grid, and which voxels were not finite, (V,)."""
    image = _opened(image, where)
    mask = masker.mask_img_
    if hasattr(mask, "mesh"):
        shapes = [{side: part.n_vertices for side, part in item.mesh.parts.items()} for item in (mask, image)]
        if shapes[0] != shapes[1]:
            raise AxisError(f"expected {shapes[0]} vertices in {where}, as the mask has, got {shapes[1]}")
    elif image.shape[:3] != mask.shape[:3]:
        raise AxisError(f"expected shape {mask.shape[:3]} of {where}, as the mask has, got {image.shape[:3]}")
    elif np.abs(image.affine - mask.affine).max() > _APART:
        raise AxisError(
            f"expected the affine of the mask in {where}, {mask.affine.tolist()}, got {image.affine.tolist()}; the "
            "masker would resample it: resample it yourself, or fit the masker to its grid"
        )
    return np.atleast_2d(np.asarray(masker.transform(image))), _not_finite(mask, image)


def _not_finite(mask: Any, image: Any) -> np.ndarray:
    """Voxels of the mask with values that are not finite, (V,). The masker replaces them by 0 without a word."""
    if not hasattr(mask, "mesh"):
        finite = np.isfinite(np.asarray(image.dataobj)[np.asarray(mask.dataobj) > 0])
        return np.logical_not(finite.reshape(_count(mask), -1).all(1))
    sides = [(np.asarray(mask.data.parts[side]).ravel() > 0, image.data.parts[side]) for side in mask.data.parts]
    return ~np.concatenate(
        [np.isfinite(np.asarray(part)[inside]).reshape(inside.sum(), -1).all(1) for inside, part in sides]
    )


def _count(mask: Any) -> int:
    return int((np.asarray(mask.dataobj) > 0).sum())


def _opened(image: Any, where: str) -> Any:
    if not isinstance(image, str | Path):
        return image
    try:
        import nibabel
    except ImportError as error:
        raise need("nibabel", f"reading {where}") from error
    if not Path(image).is_file():
        raise LayoutError(f"expected {where} at {image}, got no such file")
    return nibabel.load(image)


def _column(table: Any, name: str, number: int) -> list:
    """A column of a table as a list. A missing one is named with those that are there."""
    known = [str(key) for key in table]
    if name not in known:
        raise LayoutError(
            f"expected a column {name!r} in the events of image {number}, got {', '.join(known)}"
            f"{near_names(name, known)}"
        )
    return list(table[name])


def _rows(table: Any, stim: str, kinds: Sequence[str] | None, number: int) -> list[int]:
    """Lines of the events that are trials."""
    shown = [str(value).strip() for value in _column(table, stim, number)]
    if kinds is None:
        return [row for row, name in enumerate(shown) if name not in _ABSENT]
    types = [str(value) for value in _column(table, "trial_type", number)]
    rows = [row for row, kind in enumerate(types) if kind in kinds]
    if not rows:
        raise LayoutError(
            f"expected lines of trial_type {', '.join(kinds)} in the events of image {number}, got "
            f"{', '.join(sorted(set(types)))}"
        )
    bare = [row for row in rows if shown[row] in _ABSENT]
    if bare:
        raise IdError(f"expected an image in column {stim!r} of trial {bare[0]} of image {number}, got none")
    return rows


def _whole(table: Any, name: str, rows: Sequence[int], default: int, number: int) -> list[int]:
    """A column of whole numbers where the table has it, else the default."""
    if name not in [str(key) for key in table]:
        return [default] * len(rows)
    values = _column(table, name, number)
    try:
        found = np.array([float(values[row]) for row in rows])
    except (TypeError, ValueError):
        found = np.array([np.nan])
    if not (found == np.rint(found)).all():
        raise LayoutError(f"expected whole numbers of {name} in the events of image {number}, got {values[:3]}")
    return found.astype(int).tolist()


def _space(masker: Any, name: str, rois: Mapping[str, Any], ncsnr: Any) -> VoxelSpace:
    """The voxels or vertices of a masker, in the order of its columns."""
    mask = masker.mask_img_
    regions = {key: _transformed(masker, image, f"region {key!r}")[0][0] > 0 for key, image in rois.items()}
    ratio = None if ncsnr is None else _transformed(masker, ncsnr, "ncsnr")[0][0].astype(np.float32)
    if not hasattr(mask, "mesh"):
        inside = np.asarray(mask.dataobj) > 0
        return VoxelSpace.from_mask(name, inside, np.asarray(mask.affine), rois=regions, ncsnr=ratio)
    parts = mask.data.parts
    if list(parts) != list(_SIDES):
        raise AxisError(f"expected a mask of left and right hemispheres, got {', '.join(parts)}")
    places = [np.flatnonzero(np.asarray(parts[side]).ravel() > 0) for side in _SIDES]
    index = np.concatenate([np.stack([np.full(len(x), side), x], 1) for side, x in enumerate(places)])
    counts = tuple(len(np.asarray(parts[side])) for side in _SIDES)
    return VoxelSpace(name, index, counts, None, regions, ratio)
