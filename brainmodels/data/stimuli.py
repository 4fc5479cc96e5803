"""Stimuli by image id: pictures, captions and labels.

    stimuli = StimulusSet(ids, ImageFiles(paths))
    stimuli.images(["nsd:00013"], size=256)  # (1, 256, 256, 3) uint8

Pictures may come from arrays, HDF5 files, image files or a function. They are read only when they are needed.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from veca.data import load_image
from veca.data.names import composed
from veca.hashes import hex_digest

from ..errors import AxisError, BrainDataError, IdError, LayoutError, near_names
from .hdf5 import array_of, open_hdf5
from .ids import Ids, Integers, as_ids
from .mapped import packed, unpacked

__all__ = [
    "ArrayImages",
    "HDF5Images",
    "ImageFiles",
    "ImageSource",
    "OptionalImageFiles",
    "RenderedImages",
    "StimulusSet",
]


class ImageSource(Protocol):
    """A source of pictures, which are read one at a time by their position.

    Sources with missing pictures also have `has(index)`, which says whether a picture is there.
    """

    def __len__(self) -> int: ...

    def read(self, index: int, size: int | None) -> np.ndarray:
        """Return the picture at a position, uint8 (height, width, 3). Only sources that draw use `size`."""
        ...


class ArrayImages:
    """Pictures of one array, (N, H, W, 3) or (N, 3, H, W), uint8 or floats in [0, 1]. It may be memory-mapped."""

    def __init__(self, array: np.ndarray):
        if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]):
            raise AxisError(f"expected images (N, H, W, 3) or (N, 3, H, W), got {tuple(array.shape)}")
        self.array = array
        self._channels_first = array.shape[-1] != 3

    def __getstate__(self) -> dict:
        return self.__dict__ | {"array": packed(self.array)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state | {"array": unpacked(state["array"])})

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int, size: int | None) -> np.ndarray:
        return _as_uint8(np.asarray(self.array[index]), self._channels_first, f"image {index}")


class HDF5Images:
    """Pictures of a dataset in an HDF5 file, with the shapes of `ArrayImages`.

    Each process opens the file at its first read.

    Args:
        path: Path of the file.
        key: Name of the dataset.
        rows: Rows of the dataset that hold the pictures. None means all of them in order.
    """

    def __init__(self, path: str | Path, key: str, rows: Integers | None = None):
        self.path, self.key = Path(path), key
        self.rows = None if rows is None else np.asarray(rows)
        self._file: Any = None
        self._process = 0
        with open_hdf5(self.path, key) as file:
            shape = array_of(file, key).shape
        if len(shape) != 4 or 3 not in (shape[1], shape[-1]):
            raise AxisError(f"expected images (N, H, W, 3) or (N, 3, H, W) in {path}:{key}, got {tuple(shape)}")
        self._channels_first = shape[-1] != 3
        self._count = shape[0] if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        return self._count

    def read(self, index: int, size: int | None) -> np.ndarray:
        row = index if self.rows is None else int(self.rows[index])
        return _as_uint8(self._array()[row], self._channels_first, f"image {row} of {self.path}")

    def _array(self) -> Any:
        if self._process != os.getpid():  # a fork shares the handle and its position in the file
            self._file, self._process = open_hdf5(self.path, self.key), os.getpid()
        return self._file[self.key]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None, "_process": 0}  # a handle is not valid in another process


class ImageFiles:
    """Pictures in files of any format that Pillow reads. A missing file is a `LayoutError`."""

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [Path(path) for path in paths]
        missing = [path for path in self.paths if not path.is_file()]
        if missing:
            raise LayoutError(
                f"expected {len(self.paths)} image files, got none at {missing[0]}, {len(missing)} missing"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, size: int | None) -> np.ndarray:
        return np.asarray(load_image(self.paths[index]))


class OptionalImageFiles:
    """Pictures in files, some or all of which are not known. Only reading such a picture raises a `LayoutError`.

    Args:
        paths: Path of each picture, or None where it is not known.
        why: Reason for the missing pictures and remedy, for the message.
    """

    def __init__(self, paths: Sequence[Path | None], why: str = "no folder of images was given; pass images=FOLDER"):
        self.paths, self.why = list(paths), why

    def __len__(self) -> int:
        return len(self.paths)

    def has(self, index: int) -> bool:
        """Whether the file of a picture is known."""
        return self.paths[index] is not None

    def read(self, index: int, size: int | None) -> np.ndarray:
        path = self.paths[index]
        if path is None:
            raise LayoutError(f"expected a file with the picture of image {index}, got none: {self.why}")
        return np.asarray(load_image(path))


class RenderedImages:
    """Pictures that a function draws.

    Args:
        count: Number of pictures.
        render: Function (index, size) -> picture, uint8 (size, size, 3).
        size: Side of a picture in pixels, where the caller names none.
    """

    def __init__(self, count: int, render: Callable[[int, int], np.ndarray], size: int):
        self.count, self.render, self.size = count, render, size

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, size: int | None) -> np.ndarray:
        return _as_uint8(self.render(index, size or self.size), False, f"image {index}")


class StimulusSet:
    """Images with their captions and labels, all found by image id.

    Args:
        ids: Unique id of each image, a string with a namespace such as "nsd:00013".
        source: Pictures in the order of `ids`.
        captions: Captions by image id. Images may lack them.
        labels: Labels in the order of `ids`, by name of the label.

    Raises:
        IdError: An id repeats, or a caption has an unknown id.
        AxisError: Pictures or labels differ in number from `ids`.
    """

    def __init__(
        self,
        ids: Ids,
        source: ImageSource,
        captions: Mapping[str, Sequence[str]] | None = None,
        labels: Mapping[str, Sequence | np.ndarray] | None = None,
    ):
        self.ids = as_ids(ids)
        self.source = source
        self._rows = {str(name): row for row, name in enumerate(self.ids)}
        if len(self._rows) != len(self.ids):
            names, counts = np.unique(self.ids, return_counts=True)
            raise IdError(f"expected unique image ids, got {names[counts > 1][0]} {counts.max()} times")
        if len(source) != len(self.ids):
            raise AxisError(f"expected {len(self.ids)} images, one for each id, got {len(source)}")
        self._digests: dict[str, str] = {}
        self._captions = {composed(str(name)): list(texts) for name, texts in (captions or {}).items()}
        self.rows(list(self._captions))
        self.labels = {name: np.asarray(values) for name, values in (labels or {}).items()}
        for name, values in self.labels.items():
            if len(values) != len(self.ids):
                raise AxisError(f"expected {len(self.ids)} labels of {name!r}, one for each id, got {len(values)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: str) -> bool:
        return composed(str(image_id)) in self._rows

    def __repr__(self) -> str:
        return (
            f"StimulusSet({len(self)} images, {type(self.source).__name__}, labels: {', '.join(self.labels) or 'none'})"
        )

    def rows(self, ids: Ids) -> np.ndarray:
        """Positions of ids, int64 (n,). An unknown id is an `IdError` that names the nearest known ones."""
        try:
            return np.array([self._rows[composed(str(name))] for name in ids], dtype=np.int64)
        except KeyError as error:
            name = error.args[0]
            text = f"expected ids of this set of {len(self)} images, got {name!r}{near_names(name, list(self._rows))}"
            raise IdError(text) from None

    def image(self, image_id: str, size: int | None = None) -> np.ndarray:
        """One picture, uint8 (height, width, 3).

        Args:
            image_id: Id of the image.
            size: Side in pixels of a square to resize to, by antialiased bicubic interpolation. The aspect of pictures
                that are not square changes. None leaves the picture as stored.

        Raises:
            IdError: The id is unknown.
        """
        pixels = self.source.read(int(self.rows([image_id])[0]), size)
        if size is None or pixels.shape[:2] == (size, size):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))

    def has_picture(self, image_id: str) -> bool:
        """Whether a picture of this image is known, without reading it."""
        has = getattr(self.source, "has", None)
        return has is None or has(int(self.rows([image_id])[0]))

    def digest(self, image_id: str) -> str:
        """Shape and SHA-256 of the pixels as stored. It is computed once."""
        name = str(image_id)
        if name not in self._digests:
            pixels = self.image(name)
            self._digests[name] = f"{pixels.shape} {hex_digest([pixels])}"
        return self._digests[name]

    def images(self, ids: Ids, size: int) -> np.ndarray:
        """Pictures of these ids, resized to squares, uint8 (len(ids), size, size, 3)."""
        out = np.empty((len(ids), size, size, 3), np.uint8)
        for row, name in enumerate(ids):
            out[row] = self.image(name, size)
        return out

    def captions(self, image_id: str) -> list[str]:
        """Captions of an image. The list is empty where there are none."""
        self.rows([image_id])
        return list(self._captions.get(composed(str(image_id)), []))

    def label(self, name: str, ids: Ids) -> np.ndarray:
        """Labels of these images, (len(ids),). An unknown name of a label is a `BrainDataError`."""
        if name not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise BrainDataError(f"expected one of the labels of this set ({known}), got {name!r}")
        return self.labels[name][self.rows(ids)]


def _as_uint8(pixels: np.ndarray, channels_first: bool, where: str) -> np.ndarray:
    pixels = np.moveaxis(pixels, 0, -1) if channels_first else pixels
    if pixels.dtype == np.uint8:
        return np.array(pixels, order="C")  # a copy, so that changes of a picture do not reach the source
    if not np.issubdtype(pixels.dtype, np.floating):
        raise AxisError(f"expected {where} as uint8 or as floats in [0, 1], got {pixels.dtype}")
    pixels = pixels.astype(np.float32)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise AxisError(f"expected {where} in [0, 1], got {pixels.min():.3g} to {pixels.max():.3g}")
    return (pixels * 255).round().astype(np.uint8)
