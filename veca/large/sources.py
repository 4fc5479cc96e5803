"""Images too large for memory as floats: their rows are read and normalised a strip at a time."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.images import IMAGE_FORMATS
from ..hashes import hex_digest

__all__ = ["StripReader", "open_image"]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> PIL's mode
_ORIENTATION = 0x0112  # the tag of EXIF
_MINISWHITE, _MINISBLACK, _RGB, _YCBCR = 0, 1, 2, 6  # what the numbers of a TIFF file mean
_JPEG = (6, 7)  # compressions of a TIFF file
_READ_BYTES = 2**24  # bytes of a TIFF file that are read at once


class StripReader:
    """One image, read by strips of rows.

    Attributes:
        height, width: size in pixels.
        dtype: dtype of the pixels as they are stored.
        zero_is_white: whether the stored integers are dark where they are large.
        mean, std: mean and deviation of each channel; None where the pixels are already normalised.
    """

    height: int
    width: int
    dtype: np.dtype
    zero_is_white: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def strips(self, rows: int) -> Iterator[Tensor]:
        """Yield the pixels as stored, from top to bottom, in tensors (channels, n, width).

        n is `rows`, except in the last strip, which may have fewer.
        """
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Plain values that change with the pixels, or with the file that holds them."""
        strips = self.strips(max(1, _READ_BYTES // self.width))
        digest = hex_digest(strips, hasher=hashlib.blake2b(digest_size=16))
        return {"pixels": digest, "height": self.height, "width": self.width, "dtype": str(self.dtype)}

    def normalised_strips(self, rows: int, like: Tensor) -> Iterator[Tensor]:
        """Yield `strips`, normalised as in `stream_features`, on the device and in the dtype of `like`."""
        whole = torch.promote_types(like.dtype, torch.float32)
        levels = 1 if self.dtype.kind == "f" else np.iinfo(self.dtype).max
        for strip in self.strips(rows):
            strip = strip.to(like.device).to(whole)
            if self.zero_is_white:
                strip = levels - strip
            if self.mean is not None:
                mean, std = (strip.new_tensor(x)[:, None, None] for x in (self.mean, self.std))
                strip = (strip / levels - mean) / std
            yield strip.to(like.dtype)


class _ArrayReader(StripReader):
    """A tensor, or any object with shape, dtype and slices: numpy, memmap, zarr, h5py."""

    def __init__(self, array: Any, channels_last: bool, dtype: np.dtype):
        self.array = array
        self.channels_last = channels_last
        self.dtype = dtype
        self.height, self.width = array.shape[:2] if channels_last else array.shape[1:]

    def strips(self, rows: int) -> Iterator[Tensor]:
        for top in range(0, self.height, rows):
            lines = slice(top, min(top + rows, self.height))
            strip = self.array[lines] if self.channels_last else self.array[:, lines]
            strip = strip if isinstance(strip, Tensor) else _to_tensor(strip)
            yield strip.permute(2, 0, 1) if self.channels_last else strip


class _TiffReader(StripReader):
    """The first page of a TIFF file, decoded tile row by tile row."""

    def __init__(self, path: Path, page: Any):
        self.path = path
        self.dtype = page.dtype
        self.height, self.width = page.imagelength, page.imagewidth

    def strips(self, rows: int) -> Iterator[Tensor]:
        with _tifffile().TiffFile(self.path) as file:
            for strip in _regroup(_tile_rows(file.pages.first), rows):
                yield _to_tensor(strip).permute(2, 0, 1)

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path)


class _FileReader(_ArrayReader):
    """The pixels of a file, identified by its name, size and date."""

    def __init__(self, path: Path, array: np.ndarray):
        super().__init__(array, channels_last=True, dtype=array.dtype)
        self.path = path

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path)


def open_image(
    source: Any,
    channels: int,
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StripReader:
    """Open an image to be read by strips.

    Args:
        source: a tensor, an array, a PIL image or the name of an image file, as in `stream_features`.
        channels: number of channels that the image must have.
        layout, mean, std: as in `stream_features`.

    Raises:
        TypeError: an unknown kind of source, or pixels that are neither unsigned integers nor floats.
        ValueError: another shape, layout or number of channels, or a missing or wrong mean or std.
        FileNotFoundError: no such file.
        ImportError: a TIFF file without tifffile installed.
    """
    image = _open(source, channels, layout)
    if (mean is None) != (std is None):
        raise ValueError(f"expected mean and std, or neither, got mean={mean} and std={std}")
    if mean is None and image.dtype.kind != "f":
        raise ValueError(
            f"expected mean and std for pixels of dtype {image.dtype}, got None; pass model.mean and model.std"
        )
    if (
        mean is not None
        and std is not None
        and (len(mean) != channels or len(std) != channels or not all(map(isfinite, [*mean, *std])) or min(std) <= 0)
    ):
        raise ValueError(
            f"expected {channels} finite means and {channels} positive stds, got mean={mean} and std={std}"
        )
    image.mean, image.std = mean, std
    return image


def _open(source: Any, channels: int, layout: str | None) -> StripReader:
    if layout not in (None, "CHW", "HWC"):
        raise ValueError(f"expected layout 'CHW', 'HWC' or None, got {layout!r}")
    if isinstance(source, str | os.PathLike):
        if layout is not None:
            raise ValueError(f"expected layout=None for a file, which knows its own, got {layout!r}")
        return _open_file(Path(source), channels)
    if isinstance(source, Image.Image):
        return _ArrayReader(_pil_pixels(source, channels), True, np.dtype(np.uint8))
    if not all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__")):
        raise TypeError(f"expected a tensor, an array, a PIL image or a file name, got {type(source).__name__}")
    dtype = _numpy_dtype(source.dtype)
    if dtype.kind not in "uf":
        raise TypeError(f"expected pixels as unsigned integers or floats, got {source.dtype}")
    if isinstance(source, Tensor):
        source = source[0] if source.ndim == 4 and len(source) == 1 else source
        layout = layout or "CHW"
    layout = layout or ("CHW" if dtype.kind == "f" else "HWC")
    shape = tuple(source.shape)
    if len(shape) != 3 or shape[layout.index("C")] != channels or 0 in shape:
        raise ValueError(f"expected one image of {channels} channels in layout {layout!r}, got shape {shape}")
    return _ArrayReader(source, layout == "HWC", dtype)


def _open_file(path: Path, channels: int) -> StripReader:
    if not path.is_file():
        raise FileNotFoundError(f"expected an image file, found none at {path}")
    if path.suffix.lower() not in (".tif", ".tiff"):
        try:
            with _pictures_of_any_size(), Image.open(path, formats=IMAGE_FORMATS) as image:
                return _FileReader(path, _pil_pixels(image, channels))
        except OSError as error:
            raise ValueError(f"expected a readable image, got {path}: {type(error).__name__}: {error}") from error
    tifffile = _tifffile()
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        memmappable = page.is_memmappable  # reads the open file
    if page.axes not in ("YXS", "YX") or page.samplesperpixel != channels:
        raise ValueError(
            f"expected {path.name} to hold pixels (Y, X, {channels} samples) in its first page, got axes "
            f"{page.axes} of shape {page.shape}"
        )
    if page.dtype is None or page.dtype.kind not in "uf":
        raise TypeError(f"expected {path.name} to hold unsigned integers or floats, got {page.dtype}")
    _check_meaning(path, page)
    if memmappable:
        pixels = tifffile.memmap(path, page=0, mode="r")
        image = _FileReader(path, pixels.reshape(*pixels.shape[:2], channels))
    else:
        image = _TiffReader(path, page)
    image.zero_is_white = page.photometric == _MINISWHITE
    return image


def _check_meaning(path: Path, page: Any) -> None:
    """Raise a ValueError if the numbers of a TIFF page are no intensities, or not upright."""
    kind = getattr(page.photometric, "name", page.photometric)
    decoded = page.photometric == _YCBCR and page.compression in _JPEG  # tifffile decodes these to RGB
    if not decoded and page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB):
        raise ValueError(f"expected {path.name} to hold grey or RGB values, got {kind}; convert it")
    if page.photometric == _MINISWHITE and page.dtype.kind == "f":
        raise ValueError(f"expected {path.name} to hold integers where zero is white, got {page.dtype}")
    if page.dtype.kind == "u" and page.bitspersample != 8 * page.dtype.itemsize:
        raise ValueError(f"expected {path.name} to use all bits of {page.dtype}, got {page.bitspersample} a sample")
    orientation = page.tags.valueof("Orientation", 1)
    if orientation != 1:
        raise ValueError(f"expected {path.name} to be stored upright, orientation 1, got {orientation}; turn it")


@contextmanager
def _pictures_of_any_size() -> Iterator[None]:
    """Lift Pillow's limit of pixels, which is meant for small memories, while a file is opened.

    The limit is global: other threads have none in the meantime.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pil_pixels(image: Image.Image, channels: int) -> np.ndarray:
    """(height, width, channels), uint8, upright."""
    wanted = _MODES.get(channels)
    if image.mode != wanted:
        raise ValueError(f"expected a PIL image of mode {wanted} for {channels} channels, got {image.mode}; convert it")
    if image.getexif().get(_ORIENTATION, 1) != 1:  # turning copies the pixels
        image = ImageOps.exif_transpose(image)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _tifffile() -> ModuleType:
    try:
        import tifffile
    except ImportError as error:
        raise ImportError("reading TIFF files by tiles needs tifffile: pip install tifffile") from error
    return tifffile


def _tile_rows(page: Any) -> Iterator[np.ndarray]:
    """Yield the pixels of a page by rows of tiles, (n, width, channels)."""
    height, width = page.imagelength, page.imagewidth
    band, band_top = None, 0
    for tile, (_, _, top, left, _), _ in page.segments(buffersize=_READ_BYTES):
        if band is None or top != band_top:
            if band is not None:
                yield band
            rows = min(page.tilelength if page.is_tiled else page.rowsperstrip, height - top)
            band, band_top = np.zeros((rows, width, page.samplesperpixel), page.dtype), top
        if tile is not None:  # tiles that are absent from a sparse file are zeros
            tile = tile[0, : len(band), : width - left]
            band[: len(tile), left : left + tile.shape[1]] = tile
    if band is not None:
        yield band


def _regroup(bands: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield the same rows in strips of `rows`; the last strip may have fewer."""
    held, count = [], 0
    for band in bands:
        while len(band):
            head, band = band[: rows - count], band[rows - count :]
            held.append(head)
            count += len(head)
            if count == rows:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _to_tensor(pixels: Any) -> Tensor:
    """A copy, in native byte order."""
    pixels = np.asarray(pixels)
    return torch.from_numpy(np.array(pixels, dtype=pixels.dtype.newbyteorder("=")))


def _numpy_dtype(dtype: Any) -> np.dtype:
    if not isinstance(dtype, torch.dtype):
        return np.dtype(dtype)
    return np.dtype(np.float32) if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype


def _file_identity(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"file": str(path.resolve()), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
