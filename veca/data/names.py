"""Names of files: which of them count, in which order, and what they are called without their suffix.

    for path in files_below("photos"):                      # each file once; run-2 comes before run-10
        print(stem(path, (".nii.gz", ".nii")))              # "lh.V1" of "lh.V1.nii.gz"

Names that begin with a dot are passed over, because systems and programs leave such files beside data. Names are
compared in the composed Unicode form (NFC), since systems store letters with accents in different forms.
"""

import logging
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

__all__ = ["composed", "entries", "existing", "files_below", "natural_key", "open_text", "read_text", "stem", "walk"]

_log = logging.getLogger(__name__)


def composed(text: str) -> str:
    """The text in the composed Unicode form (NFC), in which an accent and its letter are one character."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def natural_key(path: str | os.PathLike) -> tuple:
    """A key that sorts paths folder by folder, and numbers in their names as numbers: run-2 before run-10."""
    text = composed(os.fspath(path))
    parts = [re.split(r"([0-9]+)", part) for part in text.split("/")]
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(part)] for part in parts], text


def stem(path: str | os.PathLike, suffixes: Iterable[str]) -> str:
    """The name of a file without the longest of these suffixes that it has, composed.

    Args:
        path: Path or name of the file.
        suffixes: Known suffixes in lower case, with their dot, such as ".nii.gz". Capitals in the name do not matter.
            Any other dot belongs to the name.
    """
    name = composed(Path(path).name)
    for suffix in sorted(suffixes, key=len, reverse=True):
        if len(name) > len(suffix) and name[-len(suffix) :].lower() == suffix:
            return name[: -len(suffix)]
    return name


def entries(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """Files and folders directly in a folder whose names match a glob pattern, sorted. Empty if it does not exist."""
    folder = Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    found = (name for name in names if not name.startswith(".") and fnmatchcase(name, pattern))
    return [folder / name for name in sorted(found, key=natural_key)]


def files_below(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """Files at any depth below a folder whose names match a glob pattern, sorted by their paths. See `walk`."""
    found = [here / name for here, names in walk(folder) for name in names if fnmatchcase(name, pattern)]
    return sorted(found, key=natural_key)


def walk(folder: str | os.PathLike) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all folders below it, each with the names of its files. Nothing if it does not exist.

    Links to folders are followed after all other folders. Each real folder is visited once. Links to a folder that was
    visited already, or that contains `folder`, are passed over and named in the log.
    """
    folder = Path(folder)
    top = folder.resolve()
    folders, links, seen, passed = deque([(folder, top)] if folder.is_dir() else ()), deque(), set(), []
    while folders or links:
        here, real = folders.popleft() if folders else links.popleft()
        if here is not folder and (real in seen or top.is_relative_to(real)):
            passed.append(here)
            continue
        seen.add(real)
        names = []
        with os.scandir(here) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    names.append(entry.name)
                elif entry.is_symlink():
                    links.append((here / entry.name, Path(entry.path).resolve()))
                else:
                    folders.append((here / entry.name, real / entry.name))
        links = deque(sorted(links, key=lambda link: natural_key(link[0])))
        yield here, sorted(names, key=natural_key)
    if passed:
        text = "%d links in %s lead to folders that are searched anyway and were passed over, such as %s"
        _log.warning(text, len(passed), folder, passed[0])


def existing(path: Path) -> Path:
    """The path, or where there is nothing, the same path in another Unicode form if that exists."""
    if str(path).isascii() or path.exists():
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)


@contextmanager
def open_text(path: str | os.PathLike) -> Iterator[TextIO]:
    """A text file in UTF-8, opened without its byte order mark and with its line ends as they are.

    Raises:
        ValueError: The file is in another encoding. The message names it.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected text in UTF-8 in {path}, got other bytes ({error.reason}); it may be UTF-16 or Latin-1, save it "
            "again as UTF-8"
        ) from None


def read_text(path: str | os.PathLike) -> str:
    """The content of a text file in UTF-8, composed and without its byte order mark. Errors are those of `open_text`.

    Text with NUL characters, as of UTF-16 without a mark, is refused too.
    """
    with open_text(path) as file:
        text = file.read()
    if "\0" in text:
        raise ValueError(f"expected text in UTF-8 in {path}, got NUL characters as of UTF-16; save it again as UTF-8")
    return composed(text)
