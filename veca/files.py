"""Files and folders that are written whole or not at all, even where the program is killed meanwhile.

with whole_file(folder / "state.json") as partial:
    partial.write_text(text)  # state.json is replaced when the block ends

Files are read with errors that name them, and a folder is held by one program at a time.
"""

import json
import logging
import os
import shutil
import socket
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .hashes import json_digest

__all__ = [
    "alone_in",
    "new_array",
    "read_json",
    "read_members",
    "read_sealed",
    "read_tensors",
    "remove_stale",
    "reserve",
    "sealed",
    "sync",
    "whole_file",
    "whole_folder",
]

_log = logging.getLogger(__name__)
_STALE = 3600  # seconds without a change after which the remains of a killed writer are removed


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

    The name of the folder starts with ".partial-". What killed writers of the same folder left is removed first.

    Args:
        path: Name of the finished folder. Missing parents are made.
        replace: Move an older folder of this name out of the way and remove it at the end.

    Raises:
        FileExistsError: `path` has files, and `replace` is false.
    """
    end = f"{path.name}-{os.urandom(4).hex()}"
    partial, old = (path.with_name(f".{kind}-{end}") for kind in ("partial", "old"))
    partial.mkdir(parents=True)
    held = os.open(partial, os.O_RDONLY)
    _lock(held)
    try:
        remove_stale(path.parent, f"{path.name}-")
        yield partial
        if replace and path.exists():
            os.replace(path, old)
        elif path.is_dir() and any(path.iterdir()):
            raise FileExistsError(f"expected no folder {path}, got one that was written meanwhile")
        os.replace(partial, path)
    finally:
        os.close(held)
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def remove_stale(folder: Path, name: str = "") -> None:
    """Remove what killed writers left of folders whose names begin with `name`.

    Nothing is removed that a living writer holds, or that changed in the last hour.
    """
    for left in (*folder.glob(f".partial-{name}*"), *folder.glob(f".old-{name}*")):
        with suppress(OSError):  # finished meanwhile
            held = os.open(left, os.O_RDONLY)
            try:
                age = time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir()))
                if age > _STALE and _lock(held) is not False:
                    _log.info("removing %s, left by a writer that was killed", left)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)


def sync(path: Path) -> None:
    """Wait until the disk has all bytes of a file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def reserve(path: Path, size: int) -> None:
    """Make a file `size` bytes long, with room on the disk for all of them.

    A mapped file without room ends the program by SIGBUS when a page of it is written.

    Raises:
        OSError: The disk or the quota has no room. The message names the file.
    """
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.truncate(size)
            if size and hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, f"expected room for {size:,} bytes, got {error.strerror}", str(path)) from None


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """Return a new array of zeros that is mapped to a `.npy` file, with room on the disk for all of it.

    Raises:
        OSError: The disk or the quota has no room. The message names the file.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    try:
        reserve(path, path.stat().st_size)
    except OSError:
        path.unlink()
        raise
    return array


def read_json(path: Path, error: type[ValueError] = ValueError) -> Any:
    """Return what a JSON file holds; an error of the given kind names a file that holds something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as reason:  # also of bytes that are not UTF-8
        raise error(f"expected JSON in {path}, got: {reason}; the file is truncated or was edited") from None


def sealed(content: Mapping[str, Any]) -> str:
    """Return values as the text of a JSON file that `read_sealed` reads; it also has a digest of them."""
    content = json.loads(json.dumps(content))  # as it will be read, with text as keys
    return json.dumps({**content, "digest": json_digest(content)}, indent=1) + "\n"


def read_sealed(path: Path, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """Return the values of a file of `sealed`; an error of the given kind names a file that has changed since."""
    content = read_json(path, error)
    digest = content.pop("digest", None) if isinstance(content, dict) else None
    if digest is None or digest != json_digest(content):
        raise error(f"expected {path} as it was written, got another digest; the file is damaged or was edited")
    return content


def read_members(path: Path, names: Iterable[str], error: type[ValueError] = ValueError) -> dict[str, np.ndarray]:
    """Return the arrays of a `.npz` file that have these names; those that are absent are left out.

    No other member is read, because a small file can hold one that fills the memory. An error of the given kind names
    a file that is damaged or holds objects of Python.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names if name in content.files}
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, AttributeError, EOFError, OSError, ValueError) as reason:
        raise error(f"expected a complete .npz file at {path}, got: {reason}; convert or copy it again") from None


def read_tensors(path: Path, error: type[ValueError] = ValueError) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the CPU; an error of the given kind names a file that is none.

    They are aligned as torch aligns its own tensors. In the file they are not, and kernels round differently there.
    """
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as reason:
        raise error(f"expected safetensors in {path}, got: {reason}; the file is truncated or damaged") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A context in which no other program holds the folder. It has a file `.lock` meanwhile.

    The lock ends with its program, however that ends. Without effect where the file system has no locks.

    Raises:
        BlockingIOError: Another program holds the folder. The message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+") as file:
        if _lock(file.fileno()) is False:
            file.seek(0)
            raise BlockingIOError(
                f"expected no other run in {folder}, got {file.read() or 'one'}; wait for it or choose another folder"
            )
        if not (path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino):
            raise BlockingIOError(f"expected no other run in {folder}, got one that ended just now; start again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(handle: int) -> bool | None:
    """Lock an open file and tell whether that succeeded; None where there are no locks."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
