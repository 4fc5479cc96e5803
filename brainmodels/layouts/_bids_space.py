"""Where the responses of a BIDS subject lie: brain mask, regions and reliability, found by their names.

place, masks, choice = find_place(units, derived, choice)
regions, files = find_regions(place, kind, derived, choice)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from veca.data.names import entries, stem

from ..errors import LayoutError
from ._bids_betas import Unit, pairs_of
from ._bids_names import BidsName, chosen, parse, same_label, shown
from ._bids_surface import CiftiPlace, GiftiPlace
from ._bids_volume import VolumePlace
from ._volumes import VOLUME_SUFFIXES

__all__ = ["Place", "SpaceChoice", "find_map", "find_place", "find_regions"]

_log = logging.getLogger(__name__)

Place = VolumePlace | GiftiPlace | CiftiPlace
_MAPS = {  # extensions of maps and of labels by the kind of place
    "volume": (VOLUME_SUFFIXES, VOLUME_SUFFIXES),
    "gifti": ((".func.gii", ".shape.gii"), (".label.gii",)),
    "cifti": ((".dscalar.nii", ".dtseries.nii"), (".dlabel.nii",)),
}
_ATLAS = ("atlas", "seg", "desc")  # entities that name an atlas, the first that is there


@dataclass(frozen=True)
class SpaceChoice:
    """Which files say where the responses lie.

    Attributes:
        root: BIDS folder.
        folder: Folder of derivatives, for messages.
        space: Label of the space, or None.
        mask, atlas: Paths or patterns of names. None looks for the usual names.
        affines: "compare" or "ignore".
        sessions: Labels of the loaded sessions.
        task: Name of the task.
    """

    root: Path
    folder: Path
    space: str | None
    mask: str | Path | None
    atlas: str | Path | None
    affines: str
    sessions: Sequence[str]
    task: str | None

    def fits(self, name: BidsName) -> bool:
        """Whether a file is of the space, of a loaded session and of the task, as far as its name says."""
        session, task = name.get("ses"), name.get("task")
        return (
            (self.space is None or name.get("space") in (None, self.space))
            and (session is None or any(same_label(session, other) for other in self.sessions))
            and (task is None or task == self.task)
        )

    def given(self, names: Sequence[BidsName], pattern: str | Path, option: str) -> list[BidsName]:
        """The files that an option names. A pattern chooses among files that fit, and a path is taken as it is."""
        return chosen([name for name in names if self.fits(name)], pattern, self.root, option)


def find_place(
    units: Sequence[Unit], derived: Sequence[BidsName], choice: SpaceChoice
) -> tuple[Place, list[Path], SpaceChoice]:
    """The voxels or vertices of the betas, the files of the brain masks, and the choice with the space of the masks.

    Several masks, such as one for each run, are joined: a voxel must be in all of them.

    Raises:
        LayoutError: There is no mask, or masks of several spaces.
        AxisError: Masks lie on different grids, or share no voxel.
    """
    if units[0].kind != "volume":
        return (GiftiPlace if units[0].kind == "gifti" else CiftiPlace).of(units[0]), [], choice
    if choice.mask == "all":
        return VolumePlace.whole(units[0].path, choice.affines), [], choice
    if choice.mask is not None:
        found = choice.given(derived, choice.mask, "mask")
    else:
        found = [
            name
            for name in derived
            if name.suffix == "mask"
            and name.get("desc") == "brain"
            and name.extension in VOLUME_SUFFIXES
            and choice.fits(name)
        ]
        found = [name for name in found if name.datatype != "anat"] or found
    if not found:
        raise LayoutError(
            f"expected a brain mask *_desc-brain_mask.nii.gz{_in(choice)} in {choice.folder}, got none; name one by "
            "mask=FILE, or pass mask='all' to keep every voxel of the betas"
        )
    spaces = {name.get("space") for name in found}
    if len(spaces) > 1:
        raise LayoutError(
            f"expected masks of one space in {choice.folder}, got {', '.join(sorted(map(str, spaces)))} in "
            f"{shown(found)}; choose one by space= or mask="
        )
    paths = [name.path for name in found]
    if len(paths) > 1:
        _log.info("%d brain masks are joined: a voxel must be in all of them", len(paths))
    placed = replace(choice, space=choice.space or found[0].get("space"))
    return VolumePlace.from_masks(paths, choice.affines), paths, placed


def find_map(
    place: Place, kind: str, derived: Sequence[BidsName], choice: SpaceChoice, word: str, given: str | Path | None
) -> tuple[np.ndarray | None, list[Path]]:
    """A number for each voxel, such as ncsnr, and the files that it was read from. None where there is no file.

    Args:
        place: Voxels or vertices.
        kind: Kind of the place.
        derived: Files of the subject in folders of derivatives.
        choice: Which of them.
        word: "ncsnr" or "R2": the suffix of the file, or the value of its entity stat or desc.
        given: Path or pattern of names, or None.

    Raises:
        LayoutError: There are several files.
        AxisError: The file lies on another grid.
    """
    if given is not None:
        found = choice.given(derived, given, word.lower())
    else:
        marks = [(name, (name.suffix, name.get("stat"), name.get("desc"))) for name in derived]
        found = [name for name, texts in marks if word in texts and name.extension in _MAPS[kind][0]]
        found = [name for name in found if choice.fits(name)]
    if not found:
        return None, []
    groups = pairs_of(found) if kind == "gifti" else [[name] for name in found]
    if len(groups) > 1:
        raise LayoutError(
            f"expected one file of {word}{_in(choice)} in {choice.folder}, got {shown(found)}; choose one by "
            f"{word.lower()}=FILE"
        )
    paths = [name.path for name in groups[0]]
    return place.map(*paths), paths


def find_regions(
    place: Place, kind: str, derived: Sequence[BidsName], choice: SpaceChoice
) -> tuple[dict[str, np.ndarray], list[Path]]:
    """The regions of all atlases, booleans (V,) by name, and the files that they were read from.

    Regions have the names of their labels. Where two atlases have a region of one name, the atlas comes first, as in
    "wang15:V1".

    Raises:
        LayoutError: A label has no name, or atlases of one name differ.
        AxisError: An atlas lies on another grid, or outside of the mask.
    """
    if choice.atlas == "none":
        return {}, []
    if choice.atlas is not None:
        found = choice.given(derived, choice.atlas, "atlas")
    else:
        names = (name for name in derived if name.suffix == "dseg" and name.extension in _MAPS[kind][1])
        found = [name for name in names if choice.fits(name) and name.datatype != "anat"]
    by_atlas: dict[str, dict[str, np.ndarray]] = {}
    files: list[Path] = []
    for group in pairs_of(found) if kind == "gifti" else [[name] for name in found]:
        paths, title = [name.path for name in group], _title(group[0])
        table = _table(group[0], choice.root)
        regions = place.regions(paths, title, table)
        if title in by_atlas and not _equal(by_atlas[title], regions):
            raise LayoutError(
                f"expected one atlas {title!r}{_in(choice)}, got {paths[0]}, which differs from others such as "
                f"{files[0]}; choose one by atlas=FILE"
            )
        by_atlas[title] = regions
        files += [*paths, *([table] if table else [])]
    counts: dict[str, int] = {}
    for regions in by_atlas.values():
        for region in regions:
            counts[region] = counts.get(region, 0) + 1
    joined = {
        region if counts[region] == 1 else f"{title}:{region}": inside
        for title, regions in by_atlas.items()
        for region, inside in regions.items()
    }
    return joined, list(dict.fromkeys(files))


def _in(choice: SpaceChoice) -> str:
    return f" of space-{choice.space}" if choice.space else ""


def _title(name: BidsName) -> str:
    """The name of an atlas."""
    named = next((text for key in _ATLAS if (text := name.get(key))), None)
    return named or stem(name.path, (*VOLUME_SUFFIXES, ".label.gii", ".dlabel.nii"))


def _table(name: BidsName, root: Path) -> Path | None:
    """The table of labels: the nearest `dseg.tsv`, beside the file or above it, whose entities the file all has."""
    for folder in [name.path.parent, *name.path.parent.parents]:
        tables = [parse(path, root) for path in entries(folder, "*dseg.tsv")]
        own = [stem(path.path, (".tsv",)) for path in tables]
        same = [table for table, text in zip(tables, own, strict=True) if text == stem(name.path, (name.extension,))]
        fitting = [table for table in tables if table.entities.items() <= name.entities.items()]
        if same or fitting:
            return (same or sorted(fitting, key=lambda table: len(table.entities)))[-1].path
        if folder == root:
            break
    return None


def _equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
