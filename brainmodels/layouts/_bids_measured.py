"""Betas of all files of a BIDS subject in one array, and the voxels that have a signal.

measured = read_measured(parts, place, trials, np.empty, allow_pickle=False)
kept = kept_voxels(measured, measured.r2, None, place.index, paths, masks)
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dead import DeadVoxels, find_dead
from ..errors import AxisError, LayoutError
from ._bids_betas import Unit
from ._bids_events import Run
from ._bids_space import Place
from ._files import blocks
from ._volumes import VOLUME_SUFFIXES, open_volume

__all__ = ["Measured", "kept_voxels", "read_measured", "selected"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Betas of all trials.

    Attributes:
        values: (trials, voxels) int16 as stored, or float32.
        scale: Physical units of one stored unit.
        dead: Which voxels have a signal.
        r2: Mean over files of the variance that GLMsingle's model explains, (voxels,), in percent, or None.
    """

    values: np.ndarray
    scale: float
    dead: DeadVoxels
    r2: np.ndarray | None


def read_measured(
    parts: Sequence[tuple[Unit, Sequence[Run]]], place: Place, trials: int, allocate: Callable, allow_pickle: bool
) -> Measured:
    """Read all betas. They stay int16 where all files are int16 with one slope.

    Args:
        parts: Files of betas with the runs that each covers.
        place: Voxels or vertices.
        trials: Number of all trials.
        allocate: Function (shape, dtype) -> array.
        allow_pickle: Whether to open pickles.

    Raises:
        LayoutError: A file has more or fewer betas than its runs have trials.
    """
    scale = _common_scale([unit for unit, _ in parts])
    values = allocate((trials, len(place.index)), np.dtype(np.float32 if scale is None else np.int16))
    slices, ratios, start = [], [], 0
    for unit, runs in parts:
        betas, count = place.read(unit, allow_pickle), sum(len(run.images) for run in runs)
        if len(betas.values) != count:
            raise LayoutError(_wrong_count(unit, runs, count, len(betas.values)))
        rows = slice(start, start + count)
        scaled = scale is not None or (betas.slope == 1 and betas.intercept == 0)
        values[rows] = betas.values if scaled else _scaled(betas.values, betas.slope, betas.intercept)
        slices.append(rows)
        ratios.append(betas.r2)
        start += count
    known = [ratio for ratio in ratios if ratio is not None]
    r2 = np.mean(known, 0) if len(known) == len(ratios) else None
    return Measured(values, 1.0 if scale is None else scale, find_dead(values, slices), r2)


def kept_voxels(
    measured: Measured,
    explained: np.ndarray | None,
    r2_min: float | None,
    index: np.ndarray,
    files: Sequence[Path],
    masks: Sequence[Path],
) -> np.ndarray:
    """The voxels that have a signal, and an R2 of `r2_min` or more, booleans (V,). The log counts the others.

    Args:
        measured: Betas of all trials.
        explained: R2 of each voxel in percent, (V,), or None.
        r2_min: Least R2, or None.
        index: Positions of the voxels, (V, 3) or (V, 2), for the log.
        files: Files of the betas, for messages.
        masks: Files of the masks, for messages.

    Raises:
        AxisError: No voxel is left.
        LayoutError: There is no R2 to compare.
    """
    dead = measured.dead
    where = str(masks[0]) if masks else str(files[0])
    if not dead.alive.any():
        raise AxisError(
            f"expected voxels of {where} whose betas vary in each of {len(files)} files such as {files[0]}, got none: "
            f"{dead.constant} are constant and {dead.not_finite} not finite; is the mask that of these betas?"
        )
    if dead.count:
        _log.warning("%s, and are left out. The first is at %s of %s", dead, index[dead.first[0]].tolist(), where)
    if r2_min is None:
        return dead.alive
    if explained is None:
        raise LayoutError(f"expected R2 for r2_min={r2_min:g} beside {files[0]}, got none; name a volume by r2=FILE")
    with np.errstate(invalid="ignore"):
        kept = dead.alive & (explained >= r2_min)
    if not kept.any():
        raise AxisError(
            f"expected voxels of {where} with an R2 of {r2_min:g} % or more, got {np.nanmax(explained):.3g} % at most"
        )
    _log.warning(
        "%d of %d voxels have an R2 below %g %% and are left out", (dead.alive & ~kept).sum(), len(kept), r2_min
    )
    return kept


def selected(values: np.ndarray, kept: np.ndarray, allocate: Callable) -> np.ndarray:
    """The columns of some voxels, (trials, voxels). The array itself where all are kept."""
    if kept.all():
        return values
    out = allocate((len(values), int(kept.sum())), values.dtype)
    for rows in blocks(len(values), values[:1].nbytes):
        out[rows] = values[rows][:, kept]
    return out


def _common_scale(units: Sequence[Unit]) -> float | None:
    """The slope of the headers where all files are int16 with one slope and no intercept, else None."""
    slopes = set()
    for unit in units:
        if unit.kind != "volume" or unit.names[0].extension not in VOLUME_SUFFIXES:
            return None
        image = open_volume(unit.path)
        proxy: Any = image.dataobj
        if np.dtype(image.get_data_dtype()) != np.int16 or proxy.inter != 0:
            return None
        slopes.add(float(proxy.slope))
    return slopes.pop() if len(slopes) == 1 else None


def _scaled(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _wrong_count(unit: Unit, runs: Sequence[Run], count: int, got: int) -> str:
    names = ", ".join(run.name.path.name for run in runs[:2]) + (f" and {len(runs) - 2} more" if len(runs) > 2 else "")
    left_out = sum(run.left_out for run in runs)
    also = f"; {left_out} lines of the events were left out as no trials" if left_out else ""
    return f"expected {count} betas in {unit.path}, one for each trial of {names}, got {got}{also}"
