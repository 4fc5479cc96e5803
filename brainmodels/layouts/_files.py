"""File access that all layouts share: memory-mapped arrays, text, tables, and files by name.

    values = read_array(path)                          # memory-mapped, after a check of its length
    check_finite(values, path, trials.image_id)        # names the first NaN
    for rows in blocks(len(values), values[:1].nbytes):
        out[rows] = values[rows]                       # about 64 MiB at a time

Every error names the file and what is wrong with it.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veca.data.images import IMAGE_SUFFIXES
from veca.data.names import composed, entries, files_below, natural_key, stem
from veca.data.names import read_text as read_utf8

from ..errors import IdError, LayoutError, UnsafePickleError, near_names

__all__ = [
    "LISTS",
    "TABLES",
    "blocks",
    "by_name",
    "by_number",
    "check_finite",
    "find_files",
    "find_images",
    "provenance",
    "read_array",
    "read_ids",
    "read_json",
    "read_table",
    "read_text",
    "subject_number",
    "voxels_in_a_row",
]

LISTS = (".npy", ".txt", ".csv", ".tsv", ".json")  # suffixes of lists of ids
TABLES = (".csv", ".tsv")
_BLOCK_BYTES = 64 << 20
_COLUMNS = ("session", "run", "repeat", "trial")
_AXES = {  # name of the second axis, remedy against values that are not finite, name of the third axis
    2: ("voxel", "leave these voxels out of the mask"),
    3: ("channel", "leave that channel or trial out and save the file again", "sample"),
}


def read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped and read-only.

    Raises:
        LayoutError: The file is missing, is no `.npy` file, or is shorter or longer than its header says.
        UnsafePickleError: The file holds Python objects.
    """
    if not path.is_file():
        names = [other.name for other in entries(path.parent, "*.npy")]
        raise LayoutError(f"expected an array at {path}, got no such file{near_names(path.name, names)}")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {1: np.lib.format.read_array_header_1_0}.get(version[0], np.lib.format.read_array_header_2_0)
            shape, _, dtype = read_header(file)
        except ValueError as error:
            raise LayoutError(f"expected a .npy file at {path}, got something else ({error})") from None
        header = file.tell()
    if dtype.hasobject:
        raise UnsafePickleError(
            f"expected numbers or strings in {path}, got pickled Python objects, which can run code when they are "
            "opened; convert the file with: veca brain convert"
        )
    expected, size = header + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise LayoutError(
            f"expected {expected} bytes of {path} for {dtype} {shape}, got {size}: the file is {state}; copy it again"
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_text(path: Path) -> str:
    """The content of a text file, in the composed Unicode form and without a byte order mark.

    Raises:
        LayoutError: The file is not in UTF-8.
    """
    try:
        return read_utf8(path)
    except ValueError as error:
        raise LayoutError(str(error)) from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. A file of another kind is a `LayoutError` that names it."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise LayoutError(f"expected JSON in {path}, got: {error}") from None


def read_table(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a table with a header, as strings.

    Args:
        path: Path of the file. Fields of a `.tsv` file are separated by tabs and never quoted, as BIDS has them. Fields
            of all other files are separated by commas.
        needed: Names of the columns that must be there.

    Raises:
        LayoutError: The file or a needed column is missing, or a line has another number of fields.
    """
    if not path.is_file():
        raise LayoutError(f"expected a table at {path}, got no such file")
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    rows = list(csv.reader(io.StringIO(read_text(path), newline=""), **options))
    header = rows[0] if rows else []
    for name in needed:
        if name not in header:
            raise LayoutError(
                f"expected a column {name!r} in {path}, got {', '.join(header) or 'an empty file'}"
                f"{near_names(name, header)}"
            )
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise LayoutError(f"expected {len(header)} fields in line {line} of {path}, got {len(row)}")
    return {name: [row[column] for row in rows[1:]] for column, name in enumerate(header)}


def read_ids(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Ids in a file, and the columns session, run, repeat and trial of a table that has them.

    Args:
        path: A `.npy`, `.txt` or `.json` list, or a `.csv` or `.tsv` table with the column image_id.

    Raises:
        LayoutError: The file is missing or of another kind, or an id is missing.
    """
    if not path.is_file():
        raise LayoutError(f"expected a list of ids at {path}, got no such file")
    if path.suffix in TABLES:
        table = read_table(path, ("image_id",))
        return table["image_id"], {key: table[key] for key in _COLUMNS if key in table}
    if path.suffix == ".txt":
        names = [line.strip() for line in read_text(path).splitlines()]
    elif path.suffix == ".json":
        names = read_json(path)
    elif path.suffix == ".npy":
        array = read_array(path)
        if array.ndim != 1 or array.dtype.kind not in "USiu":
            raise LayoutError(f"expected a list of text or whole numbers in {path}, got {array.dtype} {array.shape}")
        names = [name.decode() if isinstance(name, bytes) else name for name in array.tolist()]
    else:
        raise LayoutError(f"expected a list in a file of {', '.join(LISTS)}, got {path}")
    if not isinstance(names, list) or not all(isinstance(name, str | int) and name != "" for name in names):
        raise LayoutError(f"expected a list of ids without gaps in {path}, got something else or an empty line")
    return [composed(str(name)) for name in names], {}


def find_files(root: Path, pattern: str) -> list[Path]:
    """Files below a folder whose names match a glob pattern, sorted by name. Names with a leading dot do not count."""
    return sorted(files_below(root, pattern), key=lambda path: (natural_key(path.name), natural_key(path)))


def by_name(paths: Iterable[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """Files by their names without a suffix.

    Args:
        paths: Files.
        suffixes: Known suffixes, such as ".nii.gz". Any other dot belongs to the name.

    Raises:
        LayoutError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = stem(path, suffixes)
        if name in found:
            raise LayoutError(f"expected one file of {name!r} in {path.parent}, got {found[name].name} and {path.name}")
        found[name] = path
    return found


def by_number(paths: Iterable[Path], pattern: str) -> dict[int, Path]:
    """Files or folders by the number in their names, ascending. Two of one number, such as 1 and 01, are refused.

    Args:
        paths: Files or folders. Those with other names are left out.
        pattern: Regular expression of the whole name, whose first group is the number.

    Raises:
        LayoutError: Two files have one number.
    """
    found: dict[int, Path] = {}
    for path in paths:
        match = re.fullmatch(pattern, path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in found:
            raise LayoutError(
                f"expected one file of number {number} in {path.parent}, got {found[number].name} and {path.name}"
            )
        found[number] = path
    return dict(sorted(found.items()))


def find_images(folder: Path, names: Sequence[str]) -> list[Path]:
    """Picture files below a folder by their stems, one path for each name.

    Args:
        folder: Folder to search, with all its sub-folders.
        names: Stems of the files, without their last suffix.

    Raises:
        LayoutError: The folder does not exist.
        IdError: A name has no picture, or several.
    """
    if not folder.is_dir():
        raise LayoutError(f"expected a folder of images at {folder}, got no such folder")
    found: dict[str, list[Path]] = {}
    for path in files_below(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(stem(path, IMAGE_SUFFIXES), []).append(path)
    names = [composed(name) for name in names]
    missing = [name for name in names if name not in found]
    if missing:
        raise IdError(
            f"expected a picture of each of {len(names)} images in {folder}, got none of {len(missing)}, such as "
            f"{missing[0]!r}{near_names(missing[0], list(found))}"
        )
    for name in names:
        if len(found[name]) > 1:
            raise IdError(f"expected one picture {name!r} in {folder}, got {', '.join(map(str, found[name]))}")
    return [found[name][0] for name in names]


def blocks(count: int, row_bytes: int) -> Iterator[slice]:
    """Consecutive slices of `count` rows, about 64 MiB each."""
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def check_finite(
    values: np.ndarray,
    where: str | Path,
    image_id: np.ndarray | None = None,
    first_row: int = 0,
    remedy: str | None = None,
) -> None:
    """Check that responses have no NaN and no infinite value.

    Args:
        values: Responses (trials, voxels) or (trials, channels, times). Integers are always finite.
        where: File of the values, for the message.
        image_id: Image id of every trial of the data set, for the message.
        first_row: Number of the first of these trials among all trials.
        remedy: End of the message. None advises to leave out voxels, or channels or trials of EEG.

    Raises:
        LayoutError: A value is not finite. The message names the trial, and the voxel or the channel and sample.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return
    columns, remedy_of_kind, *samples = _AXES[values.ndim]
    first, count, touched = None, 0, np.zeros(values.shape[1], bool)
    for rows in blocks(len(values), values[:1].nbytes):
        bad = ~np.isfinite(values[rows])
        if not bad.any():
            continue
        if first is None:
            row, *place = np.argwhere(bad)[0].tolist()
            first = (rows.start + row, *place)
        count += int(bad.sum())
        touched |= bad.reshape(*bad.shape[:2], -1).any((0, 2))
    if first is None:
        return
    row, *place = first
    shown = "" if image_id is None else f" (image {image_id[first_row + row]})"
    named = ", ".join(f"{axis} {position}" for axis, position in zip((columns, *samples), place, strict=True))
    raise LayoutError(
        f"expected finite values in {where}, got {values[first]} at trial {first_row + row}{shown}, {named}; {count} "
        f"values of {touched.sum()} {columns}s in all; {remedy or remedy_of_kind}"
    )


def subject_number(subject: str | int) -> int:
    """The number in the name of a subject: "1", "subj01", "sub-01" and "CSI1" all give 1.

    Raises:
        IdError: The name does not end in a number.
    """
    match = re.fullmatch(r"\D*0*(\d+)", str(subject))
    if match is None:
        raise IdError(f"expected a subject by number, such as 1 or 'subj01', got {subject!r}")
    return int(match[1])


def voxels_in_a_row(count: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Index and shape of a `VoxelSpace` whose positions in the brain are not known.

    Returns:
        Positions (count, 3) along the first axis, and the shape (count, 1, 1).
    """
    index = np.zeros((count, 3), np.int64)
    index[:, 0] = np.arange(count)
    return index, (count, 1, 1)


def provenance(layout: str, root: Path, files: Sequence[Path], **facts: Any) -> Mapping[str, Any]:
    """A record of where responses come from: layout, folder, files with their sizes in bytes, and further `facts`."""
    sizes = {str(path.relative_to(root) if path.is_relative_to(root) else path): path.stat().st_size for path in files}
    return {"layout": layout, "root": str(root), "files": sizes, **facts}
