"""What the preprocessed and the raw form of THINGS-EEG2 share: a restricted reader of pickles, and the images.

    content = read_pickle(path, allow_pickle=True)   # a dict of arrays
    paths = find_images(root, None, "training")      # in the order of rows and of trigger codes

The reader builds arrays, strings and numbers only.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from veca.data.images import IMAGE_SUFFIXES
from veca.data.names import entries, stem

from ..data.stimuli import ImageFiles, StimulusSet
from ..errors import IdError, LayoutError, UnsafePickleError

__all__ = ["PARTS", "find_images", "image_id", "npy_header", "read_pickle", "stimuli_of"]

PARTS = {"training": "training_images", "test": "test_images"}
_MAGIC = b"\x93NUMPY"
_HARMLESS = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def read_pickle(path: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """The dict in a pickled file, which is an array that holds a dict or a bare pickle.

    A pickle names the functions and classes that it is built with. Files that name anything outside a short list of
    NumPy's own are refused.

    Args:
        path: Path of the file.
        allow_pickle: Whether to open the pickle. It must be True.

    Raises:
        UnsafePickleError: The pickle is not allowed, or names something that could run code.
        LayoutError: The file is damaged, or holds no dict.
    """
    path = Path(path)
    if not allow_pickle:
        raise UnsafePickleError(
            f"expected arrays in {path}, got a pickle, which can run code when it is opened; convert it with: "
            f"veca brain convert --file {path} --out {path.with_suffix('.npz')}, or pass allow_pickle=True"
        )
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            file.seek(0)
            _, _, dtype = npy_header(file, path)
            if not dtype.hasobject:
                raise LayoutError(f"expected a dict in {path}, got an array of {dtype}")
        else:
            file.seek(0)
        try:
            content = _Unpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, UnsafePickleError):
                raise UnsafePickleError(f"{error}, in {path}") from None
            raise LayoutError(f"expected a complete pickle in {path}, got: {error}; copy the file again") from None
    content = content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    if not isinstance(content, dict):
        raise LayoutError(f"expected a dict in {path}, got {type(content).__name__}")
    return content


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds arrays and built-in types, and refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # files of NumPy 1
        if (module, name) not in _HARMLESS:
            raise UnsafePickleError(f"expected arrays, strings and numbers, got a pickle that asks for {module}.{name}")
        return super().find_class(module, name)


def npy_header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and type of an array. Leaves the file at its first value."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)
    except ValueError as error:
        raise LayoutError(f"expected a NumPy array in {path}, got something else ({error})") from None


def find_images(root: Path, images: str | Path | None, part: str) -> list[Path]:
    """Paths of the images of a part, sorted by the folder of the concept, then by name.

    Args:
        root: Folder of the data set.
        images: Folder with `training_images` and `test_images`. None looks in `root` and one level below.
        part: "training" or "test".

    Raises:
        LayoutError: There is no such folder, or several, or a concept's folder has another name.
    """
    folder = PARTS[part]
    bases = [root, *entries(root)] if images is None else [Path(images)]
    found = [base / folder for base in bases if (base / folder).is_dir()]
    if len(found) != 1:
        raise LayoutError(
            f"expected one folder {folder} in {root if images is None else images}, got {len(found)}; pass images="
        )
    paths = [path for concept in entries(found[0]) for path in entries(concept, "*.jp*g")]
    paths.sort(key=lambda path: (path.parent.name, path.name))  # the published order, by characters
    for path in paths:
        if "_" not in path.parent.name:
            raise LayoutError(f"expected folders such as 00001_aardvark in {found[0]}, got {path.parent.name!r}")
    return paths


def image_id(path: Path) -> str:
    """The id of an image, from the name of its file."""
    return f"things:{stem(path, IMAGE_SUFFIXES)}"


def stimuli_of(found: Mapping[str, list[Path]]) -> StimulusSet:
    """Stimuli with their concepts, from the paths of the images of each part."""
    paths = [path for of_part in found.values() for path in of_part]
    ids = [image_id(path) for path in paths]
    if len(set(ids)) != len(ids):
        raise IdError(f"expected images with different names, got {len(ids) - len(set(ids))} names twice")
    numbers = []
    for of_part in found.values():
        folders = sorted({path.parent.name for path in of_part})
        numbers += [folders.index(path.parent.name) for path in of_part]
    concepts = [path.parent.name.split("_", 1)[1] for path in paths]
    return StimulusSet(ids, ImageFiles(paths), labels={"concept": concepts, "concept_number": numbers})
