"""Creation of HDF5 files for the writers of this folder."""

from pathlib import Path

import h5py

__all__ = ["new_hdf5"]


def new_hdf5(path: Path) -> h5py.File:
    """Create an empty file to write into, and its folder if that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return h5py.File(path, "w")
