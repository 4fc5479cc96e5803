"""Files and folders that are written whole or not at all, even where the program is killed meanwhile.

with whole_file(folder / "state.json") as partial:
    partial.write_text(text)  # state.json is replaced when the block ends
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["sync", "whole_file", "whole_folder"]


@contextmanager
def whole_file(path: Path, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield the name of a file to write, which becomes `path` when the block ends.

    If the block fails, what it wrote is removed, and an older file at `path` stays as it was.

    Args:
        path: Name of the finished file, in a folder that exists. An older file of this name is replaced.
        durable: Wait until the disk has all bytes before the file gets its name.
        shared: Allow several processes to write the file at the same time, under random names. Otherwise the name is
            `path` with the suffix ".partial", and the next writer overwrites what a killed one left.
    """
    name = f".{path.name}-{os.urandom(4).hex()}" if shared else f"{path.name}.partial"
    partial = path.with_name(name)
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `path` when the block ends and is removed if the block fails.

    The name of the folder starts with ".partial-", so that the remains of killed writers can be found.

    Args:
        path: Name of the finished folder. Missing parents are made.
        replace: Move an older folder of this name out of the way and remove it at the end.

    Raises:
        OSError: `path` has files, and `replace` is false.
    """
    end = f"{path.name}-{os.urandom(4).hex()}"
    partial, old = (path.with_name(f".{kind}-{end}") for kind in ("partial", "old"))
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace and path.exists():
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until the disk has all bytes of a file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
