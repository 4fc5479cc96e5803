"""Opening of HDF5 files.

    with open_hdf5(path, "betas") as file:
        betas = file["betas"][:100]

Error messages say what is wrong with a file.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LayoutError, need

if TYPE_CHECKING:
    import h5py

__all__ = ["open_hdf5"]


def open_hdf5(path: Path, key: str | None = None) -> "h5py.File":
    """Open a file to read from.

    Args:
        path: Path of the file.
        key: Name of a dataset that the file must have.

    Raises:
        LayoutError: The file is missing, damaged, or has no such dataset.
        ImportError: h5py is not installed.
    """
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
