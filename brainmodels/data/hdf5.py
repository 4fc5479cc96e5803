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

__all__ = ["array_of", "open_hdf5"]


def open_hdf5(path: Path, key: str | None = None) -> "h5py.File":
    """Open a file to read from.

    Args:
        path: Path of the file.
        key: Name of a dataset that the file must have.

    Raises:
        LayoutError: The file is missing, damaged, has no such dataset, or refers to data in other files, which could be
            any file of the user.
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
    outside = _outside(file)
    if outside:
        file.close()
        raise LayoutError(
            f"expected all data of {path} in the file itself, got {outside[0]} in another file; copy the data into it"
        )
    if key is not None and key not in file:
        known = ", ".join(file) or "an empty file"
        file.close()
        raise LayoutError(f"expected a dataset {key!r} in {path}, got {known}")
    return file


def _outside(file: "h5py.File") -> list[str]:
    """Names in a file that stand for data in other files."""
    import h5py

    found = []

    def look(group: h5py.Group) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            place = f"{(group.name or '').rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                found.append(place)
            elif isinstance(link, h5py.HardLink):
                item = group[name]
                if isinstance(item, h5py.Group):
                    if item.id not in seen:
                        seen.append(item.id)
                        look(item)
                elif isinstance(item, h5py.Dataset) and (
                    item.external or (item.is_virtual and any(x.file_name != "." for x in item.virtual_sources()))
                ):
                    found.append(place)

    seen = [file.id]
    look(file)
    return found


def array_of(file: "h5py.File", key: str) -> "h5py.Dataset":
    """The dataset of a file under this name. A group under it is a `LayoutError`."""
    import h5py

    found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise LayoutError(f"expected a dataset {key!r} in {file.filename}, got a {type(found).__name__}")
    return found
