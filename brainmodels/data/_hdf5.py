"""HDF5 files, opened to be read or written; messages say what is wrong with them."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LayoutError, need

if TYPE_CHECKING:
    import h5py

__all__ = ["new_hdf5", "open_hdf5"]


def new_hdf5(path: Path) -> "h5py.File":
    """An empty file to write into, in a folder that is made where it is not there."""
    try:
        import h5py
    except ImportError as error:
        raise need("h5py", f"writing {path.name}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    return h5py.File(path, "w")


def open_hdf5(path: Path, key: str | None = None) -> "h5py.File":
    """A file to read from; one that is absent, damaged or without the dataset `key` is a `LayoutError`."""
    try:
        import h5py
    except ImportError as error:
        raise need("h5py", f"reading {path.name}") from error
    if not path.is_file():
        raise LayoutError(f"expected an HDF5 file at {path}, got no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise LayoutError(f"expected an HDF5 file at {path}, got: {error}; copy it again") from None
    if key is not None and key not in file:
        known = ", ".join(file) or "an empty file"
        file.close()
        raise LayoutError(f"expected a dataset {key!r} in {path}, got {known}")
    return file
