"""Names of files in BIDS, and the files of one subject.

    name = parse(Path("sub-01/ses-02/func/sub-01_ses-02_task-nsd_run-3_events.tsv"), root)
    name.entities       # {"sub": "01", "ses": "02", "task": "nsd", "run": "3"}
    name.suffix         # "events"
    name.extension      # ".tsv"

A name is a row of entities `key-value` and a suffix, joined by `_`. Folders `sub-01` and `ses-02` on the way count as
well, so that files of programs that know no BIDS, such as GLMsingle, are found by the folders they lie in.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from veca.data.names import composed, entries, files_below

from ..errors import IdError, LayoutError, near_names

__all__ = ["BidsName", "chosen", "known_subjects", "parse", "same_label", "shown", "subject_files", "subject_folder"]

_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")
_FOLDERS = ("sub", "ses")


@dataclass(frozen=True)
class BidsName:
    """What the name of a file says.

    Attributes:
        path: Path of the file.
        entities: Values by key, such as {"sub": "01", "ses": "02"}, with those of the folders on the way.
        suffix: Last part of the name, such as "events".
        extension: Everything from the first dot, such as ".nii.gz".
        words: Parts of the name before the extension that are no entities, joined by "_".
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    extension: str
    words: str

    def get(self, key: str) -> str | None:
        """The value of an entity, or None."""
        return self.entities.get(key)

    @property
    def datatype(self) -> str:
        """Name of the folder of the file, such as "func" or "anat"."""
        return self.path.parent.name


def parse(path: Path, root: Path) -> BidsName:
    """What the name of a file below `root` says.

    Raises:
        LayoutError: The name contradicts the folder of the subject or session that it lies in.
    """
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    stem, dot, extension = composed(path.name).partition(".")
    parts = stem.split("_")
    matches = [_ENTITY.fullmatch(part) for part in parts]
    entities = {match[1]: match[2] for match in matches if match}
    for folder in inside.parts[:-1]:
        match = _ENTITY.fullmatch(composed(folder))
        if match is None or match[1] not in _FOLDERS:
            continue
        if entities.setdefault(match[1], match[2]) != match[2]:
            raise LayoutError(f"expected files of {folder} in its folder, got {path}, whose name says otherwise")
    words = "_".join(part for part, match in zip(parts, matches, strict=True) if not match)
    return BidsName(path, entities, "" if matches[-1] else parts[-1], dot + extension, words)


def same_label(first: str, second: str) -> bool:
    """Whether two values of an entity are the same: equal text, or equal numbers, as 1 and 01."""
    return first == second or (first.isdecimal() and second.isdecimal() and int(first) == int(second))


def known_subjects(root: Path) -> list[str]:
    """Names of the folders of subjects, such as "sub-01"."""
    return [path.name for path in entries(root, "sub-*") if path.is_dir()]


def subject_folder(root: Path, subject: str) -> str:
    """The name of a subject's folder, from "01" or "sub-01".

    Raises:
        LayoutError: There is no folder of a study.
        IdError: The subject is unknown.
    """
    if not root.is_dir():
        raise LayoutError(f"expected a BIDS folder at {root}, got no such folder")
    name = composed(subject if subject.startswith("sub-") else f"sub-{subject}")
    known = known_subjects(root)
    if name not in known:
        listed = ", ".join(known) or "no folder sub-..."
        raise IdError(f"expected a subject of {root} ({listed}), got {subject!r}{near_names(name, known)}")
    return name


def subject_files(root: Path, subject: str, derivatives: str | Path) -> tuple[list[BidsName], list[BidsName]]:
    """Raw and derived files of a subject. Files at the top of a folder of derivatives count as derived ones of all.

    Args:
        root: BIDS folder.
        subject: Name of the subject's folder, such as "sub-01".
        derivatives: Folder of derivatives, relative to `root` or absolute. It holds folders of subjects itself, or
            folders of several programs.

    Raises:
        LayoutError: There are no derivatives, or a name contradicts its folder.
    """
    folder = root / derivatives
    if not folder.is_dir():
        raise LayoutError(f"expected a folder of derivatives at {folder}, got no such folder; pass derivatives=FOLDER")
    raw = [parse(path, root) for path in files_below(root / subject)]
    derived = {}
    for base in [folder, *(path for path in entries(folder) if path.is_dir() and not path.name.startswith("sub-"))]:
        top = [path for path in entries(base) if path.is_file()]
        for path in [*files_below(base / subject), *top]:
            derived[path] = parse(path, base)
    return raw, list(derived.values())


def chosen(names: Iterable[BidsName], pattern: str | Path, root: Path, option: str) -> list[BidsName]:
    """The files that an option names: one path below `root` or an absolute one, or all names that match a glob pattern.

    Raises:
        LayoutError: There is none.
    """
    path = root / pattern
    names = list(names)
    if path.is_file():
        return [next((name for name in names if name.path == path), parse(path, root))]
    found = [name for name in names if fnmatchcase(name.path.name, str(pattern))]
    if not found:
        near = near_names(str(pattern), [name.path.name for name in names])
        raise LayoutError(
            f"expected files of {option}={str(pattern)!r} as a path or a pattern of names in {root}, got none{near}"
        )
    return found


def shown(names: Sequence[BidsName]) -> str:
    """Paths for a message, three at most."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(str(name.path) for name in names[:3]) + more
