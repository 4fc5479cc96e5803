"""Files of betas in BIDS derivatives, and which runs each of them covers.

units = find_units(derived, root, folder, None, "T1w")    # one file each, or those of both hemispheres
for unit, runs in assign(units, runs, folder): ...        # in the order of time
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LayoutError
from ._bids_events import Run
from ._bids_names import BidsName, chosen, same_label, shown

__all__ = ["GLMSINGLE", "KINDS", "Unit", "assign", "find_units", "pairs_of", "space_of"]

GLMSINGLE = "TYPED_FITHRF_GLMDENOISE_RR"
KINDS = {  # extensions by the kind of place
    "volume": (".nii.gz", ".nii", ".npy", ".npz", ".hdf5", ".h5"),
    "gifti": (".func.gii", ".shape.gii", ".gii"),
    "cifti": (".dtseries.nii", ".dscalar.nii"),
}
_HEMISPHERES = ("L", "R")
_SUFFIXES = ("beta", "betas")
_DESCRIPTIONS = ("betas", "singletrial")


@dataclass(frozen=True)
class Unit:
    """The betas of some runs: one file, or one for each hemisphere.

    Attributes:
        names: Files, those of the left hemisphere first.
        kind: Kind of the place, a key of `KINDS`.
    """

    names: Sequence[BidsName]
    kind: str

    @property
    def path(self) -> Path:
        """Path of the first file."""
        return self.names[0].path


def find_units(
    derived: Sequence[BidsName], root: Path, folder: Path, pattern: str | Path | None, space: str | None
) -> list[Unit]:
    """Files of betas of a subject.

    Args:
        derived: Files of the subject in folders of derivatives.
        root: BIDS folder.
        folder: Folder of derivatives, for messages.
        pattern: Path or pattern of names. None looks for the suffix betas or beta, for desc-betas and
            desc-singletrial, and for GLMsingle's final model.
        space: Label of the space. None takes files of any one space.

    Raises:
        LayoutError: There are none, or they are of several kinds or spaces, or a hemisphere is missing.
    """
    extensions = [extension for group in KINDS.values() for extension in group]
    if pattern is not None:
        found = [name for name in chosen(derived, pattern, root, "betas") if name.extension in extensions]
    else:
        found = [name for name in derived if name.extension in extensions and _is_betas(name)]
        npz = {name.path.with_suffix("") for name in found if name.extension == ".npz"}
        found = [name for name in found if not (name.extension == ".npy" and name.path.with_suffix("") in npz)]
    if space is not None:
        spaces = {name.get("space") for name in found}
        found = [name for name in found if name.get("space") in (None, space)]
        if not found and spaces:
            raise LayoutError(
                f"expected betas of space={space!r} in {folder}, got {', '.join(sorted(filter(None, spaces)))}"
            )
    if not found:
        raise LayoutError(
            f"expected betas of single trials in {folder}, such as {GLMSINGLE}.npy or *_betas.nii.gz, got none; name "
            "them by betas=PATTERN"
        )
    kinds = {kind for kind, group in KINDS.items() for name in found if name.extension in group}
    if len(kinds) > 1:
        raise LayoutError(
            f"expected betas of one kind in {folder}, got {', '.join(sorted(kinds))} files such as {shown(found)}; "
            "choose some by betas=PATTERN"
        )
    (kind,) = kinds
    return [Unit(names, kind) for names in pairs_of(found)] if kind == "gifti" else [Unit([x], kind) for x in found]


def _is_betas(name: BidsName) -> bool:
    description = (name.get("desc") or "").lower()
    described = any(word in description for word in _DESCRIPTIONS) and name.suffix != "mask"
    return described or GLMSINGLE in name.words or name.suffix in _SUFFIXES


def pairs_of(names: Sequence[BidsName]) -> list[list[BidsName]]:
    """Files of both hemispheres, left first, that share all other entities.

    Raises:
        LayoutError: A hemisphere is missing or there twice.
    """
    groups: dict[tuple, dict[str, BidsName]] = {}
    for name in names:
        key = tuple(sorted((key, value) for key, value in name.entities.items() if key != "hemi")), name.words
        side = name.get("hemi") or "none"
        group = groups.setdefault(key, {})
        if side in group or side not in _HEMISPHERES:
            other = f" and {group[side].path}" if side in group else f" with hemi-{side}"
            raise LayoutError(f"expected one file of hemi-L and one of hemi-R, got {name.path}{other}")
        group[side] = name
    for group in groups.values():
        if len(group) < len(_HEMISPHERES):
            (side, name), *_ = group.items()
            missing = "R" if side == "L" else "L"
            raise LayoutError(f"expected a file of hemi-{missing} beside {name.path}, got none")
    return [[group[side] for side in _HEMISPHERES] for group in groups.values()]


def assign(units: Sequence[Unit], runs: Sequence[Run], folder: Path) -> list[tuple[Unit, list[Run]]]:
    """The runs of each file of betas, in the order of time.

    A file covers all runs that its session, task and run allow. What its name and folder do not say, it covers.

    Raises:
        LayoutError: A run has no betas, or two files cover it.
    """
    covered: dict[int, list[Run]] = {}
    for run in runs:
        mine = [number for number, unit in enumerate(units) if _covers(unit.names[0], run)]
        where = f"session {run.session or '1'}"
        if len(mine) > 1:
            raise LayoutError(
                f"expected one file of betas for {where}, run {run.number}, got "
                f"{' and '.join(str(units[number].path) for number in mine)}; choose by betas=PATTERN or space="
            )
        if not mine:
            raise LayoutError(
                f"expected betas of {where}, run {run.number}, whose events are {run.name.path}, in {folder}, got "
                f"{len(units)} files of other runs, such as {units[0].path}; to load fewer sessions pass sessions="
            )
        covered.setdefault(mine[0], []).append(run)
    return [(units[number], mine) for number, mine in covered.items()]


def _covers(name: BidsName, run: Run) -> bool:
    """Whether a file of betas is of a run."""
    own, other = name.entities, {**run.name.entities, "run": str(run.number)}
    return all(
        same_label(own[key], other.get(key, "")) for key in ("ses", "task", "run") if key in own and key in other
    ) and not ("ses" in own and "ses" not in other)


def space_of(units: Sequence[Unit], folder: Path) -> str | None:
    """The space that the names of the files of betas tell, or None.

    Raises:
        LayoutError: There are several.
    """
    spaces = sorted({space for unit in units if (space := unit.names[0].get("space"))})
    if len(spaces) > 1:
        raise LayoutError(f"expected betas of one space in {folder}, got {', '.join(spaces)}; choose one by space=")
    return spaces[0] if spaces else None
