"""Image files from a tree of folders or an index file, and the usual transforms.

    train = Images("photos/train", training_transform(256))
    held_out = Images("photos/held_out.csv", inference_transform(256), classes=train.classes)

A listed file that is missing or broken is always named in an error or in the log.
"""

import csv
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

from .names import composed, existing, natural_key, open_text, walk

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "BadImage",
    "Images",
    "inference_transform",
    "load_image",
    "training_transform",
    "upright_rgb",
]

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow's names of these formats. It knows some that start other programs, such as PostScript
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
if find_spec("PIL.AvifImagePlugin") is not None:  # since Pillow 11.3
    IMAGE_FORMATS += ("AVIF",)
_INDEX_SUFFIXES = (".csv", ".tsv", ".jsonl")
_PHOTOMETRIC = 262  # the tag of a TIFF file that says what its numbers mean; 0 is grey whose zero is white
_COLUMNS = ("path", "label", "caption")


class BadImage(NamedTuple):
    """A file that could not be read, and the reason."""

    path: Path
    reason: str


class _Entry(NamedTuple):
    name: str  # the path, relative to the folder or to that of the index
    label: str | int | None = None
    caption: str | None = None


class Images(Dataset):
    """A data set of image files. Samples have image, name, index, and where known label and caption (see `veca.data`).

    Files are opened when a sample is asked for. `verify` opens all of them at once.

    Args:
        source: a folder or an index file.
            In a folder with sub-folders, each sub-folder is a class with all images below it. A folder without
            sub-folders has no labels. Files without the suffix of an image are counted in the log. Names that begin
            with a dot are ignored. Links are followed, but each folder is searched once.
            An index is a .csv or .tsv with a header, or a .jsonl, in UTF-8. It has the column path and may have label
            and caption. Paths are relative to the folder of the index. If all labels are whole numbers, they are class
            numbers, unless `classes` is given.
        transform: function from a PIL image (RGB) to a tensor. None keeps the size of the file and gives
            (3, height, width) fp32 in [0, 1].
        on_error: what a missing or broken file does: "raise", or "skip". With "skip" the next good file replaces it,
            `bad` records path and reason, and the log names it with the count so far.
        classes: class names in the order of their numbers, for a held-out set that must agree with the training set.
            Default: the names in `source`, sorted.

    Attributes:
        paths: paths of all files: sorted for a folder, with numbers as numbers, and in the order of the list for an
            index.
        labels: class number of each file, or None.
        classes: class names; None without labels, or if labels are class numbers.
        bad: files found unreadable so far. Each worker of a DataLoader has a separate list.

    Raises:
        ValueError: `source` is neither a folder nor an index, has no images, mixes images with class folders, is in
            another encoding, or has wrong columns, values or classes.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        transform: Callable[[Image.Image], Any] | None = None,
        on_error: str = "raise",
        classes: Sequence[str] | None = None,
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"expected on_error 'raise' or 'skip', got {on_error!r}")
        source = Path(source)
        if source.is_dir():
            self._folder, self._entries = source, _read_folder(source)
        elif source.is_file() and source.suffix.lower() in _INDEX_SUFFIXES:
            self._folder, self._entries = source.parent, _read_index(source)
        else:
            found = "a file of another kind" if source.exists() else "nothing"
            raise ValueError(f"expected a folder or an index ({', '.join(_INDEX_SUFFIXES)}), got {found} at {source}")
        if not self._entries:
            raise ValueError(f"expected at least one image, got none in {source}")
        self.source = source
        self.transform = _to_tensor if transform is None else transform
        self.on_error = on_error
        self.labels, self.classes = _number_classes(self._entries, classes, source)
        self._bad: dict[int, BadImage] = {}

    @property
    def paths(self) -> list[Path]:
        return [existing(self._folder / entry.name) for entry in self._entries]

    @property
    def bad(self) -> tuple[BadImage, ...]:
        return tuple(self._bad.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            image = self._read(candidate)
            if image is not None:
                break
        else:
            raise ValueError(f"expected a readable image, got {len(self)} bad ones in {self.source}, {self.bad[0]}")
        entry = self._entries[candidate]
        sample = {"image": self.transform(image), "name": entry.name, "index": candidate}
        if self.labels is not None:
            sample["label"] = self.labels[candidate]
        if entry.caption is not None:
            sample["caption"] = entry.caption
        return sample

    def verify(self) -> tuple[BadImage, ...]:
        """Decode every file. Returns all that cannot be read, and records them in `bad`, whatever `on_error` is."""
        for index in range(len(self)):
            self._try(index)
        return self.bad

    def _read(self, index: int) -> Image.Image | None:
        """The image, or None for a bad one that must be skipped."""
        if self.on_error == "raise":
            return load_image(existing(self._folder / self._entries[index].name))
        return self._try(index)

    def _try(self, index: int) -> Image.Image | None:
        if index in self._bad:
            return None
        path = existing(self._folder / self._entries[index].name)
        try:
            return load_image(path)
        except (OSError, ValueError) as error:
            self._bad[index] = BadImage(path, str(error))
            _log.warning("bad image %d of %d files so far: %s", len(self._bad), len(self), error)
            return None


def load_image(path: str | os.PathLike) -> Image.Image:
    """Load an image file as upright RGB with 8 bits a channel.

    The image is converted by `upright_rgb`. The first frame of an animation is read.

    Args:
        path: the file.

    Returns:
        A PIL image of mode RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of none of `IMAGE_FORMATS`, cannot be decoded to its end, has 32 bits a channel, or has
            more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million unless you change it. Pillow warns above
            half of that. The message names the path and the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an image file, got nothing at {path}")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            return upright_rgb(file)
    except Exception as error:  # on broken files, Pillow's decoders raise nearly anything
        raise ValueError(f"expected a readable image, got {path}: {type(error).__name__}: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring an opened image of any mode to upright RGB with 8 bits a channel.

    The EXIF orientation is applied. Transparent pixels are laid over white. Grey values of 16 bits are divided by 257.
    Of 16-bit colours Pillow returns the high bytes. CMYK is converted without its colour profile.

    Args:
        image: a PIL image.

    Returns:
        A PIL image of mode RGB.

    Raises:
        TypeError: not a PIL image.
        ValueError: 32 bits a channel.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a PIL image, got {type(image).__name__}")
    zero_is_white = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # Pillow undoes it for 8 bits, not for 16
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, got mode {image.mode} with 32")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float32) / 257
        levels = 255 - levels if zero_is_white else levels
        image = Image.fromarray(levels.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def training_transform(size: int, margin: float = 1.125, augment: bool = True) -> Callable[[Image.Image], Tensor]:
    """The augmentation of the published models (arXiv 2605.12491).

    It resizes the shorter side to `margin * size`, crops and flips at random, and applies TrivialAugmentWide. Random
    numbers come from torch, so the crops of a seeded DataLoader repeat.

    Args:
        size: side of the resulting square in pixels.
        margin: shorter side before the crop, divided by `size`. The published models used 1.125.
        augment: False leaves out TrivialAugmentWide.

    Returns:
        A function from a PIL image to a tensor (3, size, size), fp32, normalised with ImageNet's mean and standard
        deviation. Resizing is bicubic.

    Raises:
        ValueError: a size or margin below 1.
    """
    from torchvision.transforms import v2

    steps = [_resize(size, margin), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    if augment:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose([*steps, *_normalized()])


def inference_transform(size: int, margin: float = 1.0) -> Callable[[Image.Image], Tensor]:
    """A transform that resizes the shorter side to `margin * size` and cuts out the central square.

    Args:
        size: side of the resulting square in pixels.
        margin: shorter side before the crop, divided by `size`. With 1, only the ends of the longer side are cut.

    Returns:
        A function as from `training_transform`.

    Raises:
        ValueError: a size or margin below 1.
    """
    from torchvision.transforms import v2

    return v2.Compose([_resize(size, margin), v2.CenterCrop(size), *_normalized()])


def _resize(size: int, margin: float) -> Callable:
    from torchvision.transforms import v2

    if size < 1 or margin < 1:
        raise ValueError(f"expected a size of at least 1 pixel and a margin of at least 1, got {size} and {margin}")
    return v2.Resize(round(margin * size), interpolation=v2.InterpolationMode.BICUBIC)


def _normalized() -> list[Callable]:
    from torchvision.transforms import v2

    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return [*to_float, v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), v2.ToPureTensor()]


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def _read_folder(folder: Path) -> list[_Entry]:
    """List the images of a folder: without labels if it is flat, else with the sub-folder as the class."""
    files, classes, others = [], [], []
    for here, names in walk(folder):
        base = here.relative_to(folder)
        if len(base.parts) == 1:
            classes.append(base.name)
        for name in names:
            (files if name.lower().endswith(IMAGE_SUFFIXES) else others).append((base / name).as_posix())
    if others:
        _log.warning("%d files in %s lack the suffix of an image, such as %s", len(others), folder, min(others))
    files.sort(key=natural_key)
    if not classes:
        return [_Entry(name) for name in files]
    entries = [_Entry(name, name.split("/")[0]) for name in files]
    strays = [name for name in files if "/" not in name]
    if strays:
        raise ValueError(f"expected either images or a sub-folder per class, got {strays[0]} beside {min(classes)}/")
    empty = set(classes) - {entry.label for entry in entries}
    if empty:
        raise ValueError(f"expected images in every class folder, got none in {folder / min(empty)}")
    return entries


def _read_index(index: Path) -> list[_Entry]:
    rows = _json_rows(index) if index.suffix.lower() == ".jsonl" else _table_rows(index)
    entries, columns = [], None
    for line, row in rows:
        columns = columns or row.keys()
        if "path" not in columns or not columns <= set(_COLUMNS):
            raise ValueError(f"expected the columns path[, label][, caption], got {_listed(columns)} in {index}")
        if row.keys() != columns or any(not _is_value(key, value) for key, value in row.items()):
            raise ValueError(f"expected values for {_listed(columns)}, got {row} in line {line} of {index}")
        entries.append(_Entry(row["path"], row.get("label"), row.get("caption")))
    return entries


def _is_value(column: str, value: Any) -> bool:
    """Whether a value is text that is not empty, or a whole number as a label."""
    whole_number = column == "label" and isinstance(value, int) and not isinstance(value, bool)
    return whole_number or (isinstance(value, str) and value != "")


def _listed(columns: Iterable) -> str:
    return ", ".join(map(str, columns))


def _table_rows(index: Path) -> Iterator[tuple[int, dict]]:
    with open_text(index) as file:
        reader = csv.DictReader(file, delimiter="\t" if index.suffix.lower() == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, row


def _json_rows(index: Path) -> Iterator[tuple[int, dict]]:
    with open_text(index) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"expected a JSON object a line, got {error} in line {line} of {index}") from error
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object a line, got {text.strip()[:80]} in line {line} of {index}")
            yield line, row


def _number_classes(
    entries: list[_Entry], classes: Sequence[str] | None, source: Path
) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """The class number of each entry, and the names of the classes; None for each if there are none."""
    labels: list[Any] = [entry.label for entry in entries]  # all None, or none
    if labels[0] is None:
        if classes is not None:
            raise ValueError(f"expected labels for the {len(classes)} classes, got none in {source}")
        return None, None
    of_index = not source.is_dir()
    if classes is None and of_index and all(isinstance(label, int) or label.isdecimal() for label in labels):
        return _class_numbers(labels, source), None
    names = [composed(str(label)) for label in labels]
    order = sorted(set(names)) if classes is None else map(composed, classes)
    numbers = {name: number for number, name in enumerate(order)}
    unknown = [entry for entry, name in zip(entries, names, strict=True) if name not in numbers]
    if unknown:
        raise ValueError(
            f"expected one of {len(numbers)} classes, got {unknown[0].label!r} for {unknown[0].name} in {source}"
        )
    return [numbers[name] for name in names], tuple(numbers)


def _class_numbers(labels: list[str | int], source: Path) -> list[int]:
    """Labels as numbers. Two spellings of one number are refused, since they may be names of two classes."""
    spelt: dict[int, str] = {}
    for label in map(str, dict.fromkeys(labels)):
        other = spelt.setdefault(int(label), label)
        if other != label:
            raise ValueError(
                f"expected one spelling of each class number, got {other!r} and {label!r} in {source}; write them "
                "alike, or pass classes= with the names of all classes"
            )
    return [int(label) for label in labels]
