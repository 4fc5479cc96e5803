"""Photographs that scikit-image and scikit-learn ship in their wheels, so that nothing is downloaded.

    image = load_photograph("astronaut", 512)   # (3, 512, 512) in [0, 1]
    model(imagenet_normalize(image)[None])

The packages must be installed but are not imported.
"""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Photograph", "Photographs", "imagenet_normalize", "list_photographs", "load_photograph", "photograph"]


class Photograph(NamedTuple):
    """A photograph on this machine.

    Attributes:
        name: name for `load_photograph`.
        path: the file.
        package: package that ships it, under pip's name.
        native_size: (height, width) of the file in pixels; larger sizes are interpolated.
        credit: author and licence, as the package states them.
        caption: what it shows, in our words.
    """

    name: str
    path: Path
    package: str
    native_size: tuple[int, int]
    credit: str
    caption: str


class _Entry(NamedTuple):
    file: str
    package: str
    credit: str


_SKIMAGE, _SKLEARN = "scikit-image", "scikit-learn"
_FOLDERS = {_SKIMAGE: ("skimage", "data"), _SKLEARN: ("sklearn", "datasets/images")}
_PHOTOGRAPHS = {
    "astronaut": _Entry("astronaut.png", _SKIMAGE, "Eileen Collins, by NASA, public domain"),
    "chelsea": _Entry("chelsea.png", _SKIMAGE, "Chelsea the cat, by Stefan van der Walt, CC0"),
    "coffee": _Entry("coffee.png", _SKIMAGE, "Pikolo Espresso Bar, by Rachel Michetti, CC0"),
    "rocket": _Entry("rocket.jpg", _SKIMAGE, "launch of DSCOVR, by SpaceX, public domain"),
    "hubble_deep_field": _Entry("hubble_deep_field.jpg", _SKIMAGE, "Hubble eXtreme Deep Field, by NASA"),
    "retina": _Entry("retina.jpg", _SKIMAGE, "fundus of a left eye, by Mikael Häggström, CC0"),
    "china": _Entry("china.jpg", _SKLEARN, "temple, by danielbuechele (Flickr), CC BY 2.0"),
    "flower": _Entry("flower.jpg", _SKLEARN, "flower, by vultilion (Flickr), CC BY 2.0"),
    "ihc": _Entry("ihc.png", _SKIMAGE, "stained colon glands, by CMMI, no known restrictions"),
    "motorcycle": _Entry("motorcycle_left.png", _SKIMAGE, "motorcycle, by D. Scharstein, Middlebury 2014"),
}
_CAPTIONS = {
    "astronaut": "an astronaut in an orange suit, a model of the space shuttle behind her",
    "chelsea": "the face of a tabby cat, close up",
    "coffee": "an espresso in a brown cup with a spoon on the saucer",
    "rocket": "a rocket on its launch pad at dusk",
    "hubble_deep_field": "thousands of distant galaxies on a black sky",
    "retina": "the retina of an eye with its blood vessels",
    "china": "a Chinese temple of three storeys above a lake",
    "flower": "an orange dahlia on a dark background",
    "ihc": "colon glands stained brown, their nuclei blue, under a microscope",
    "motorcycle": "a red motorcycle in a workshop",
}


def list_photographs() -> list[str]:
    """Names of the photographs whose files are on this machine, always in the same order.

    Raises:
        ImportError: neither scikit-image nor scikit-learn is installed.
    """
    folders = {package: _folder(package) for package in _FOLDERS}
    if not any(folders.values()):
        raise ImportError(_install(" and ".join(_FOLDERS)))
    return [
        name
        for name, entry in _PHOTOGRAPHS.items()
        if (folder := folders[entry.package]) and (folder / entry.file).is_file()
    ]


def photograph(name: str) -> Photograph:
    """The source of a photograph, and its native size.

    Args:
        name: one of `list_photographs()`.

    Raises:
        ValueError: an unknown name.
        ImportError: the package that ships it is not installed.
        FileNotFoundError: the package is installed without the file.
    """
    if name not in _PHOTOGRAPHS:
        near = difflib.get_close_matches(name, _PHOTOGRAPHS, n=3) or list(_PHOTOGRAPHS)
        raise ValueError(f"expected a photograph's name, got {name!r}; did you mean {', '.join(near)}?")
    entry = _PHOTOGRAPHS[name]
    folder = _folder(entry.package)
    if folder is None:
        raise ImportError(_install(entry.package))
    path = folder / entry.file
    if not path.is_file():
        raise FileNotFoundError(f"expected {entry.file} in the wheel of {entry.package}, found none at {path}")
    with Image.open(path) as file:
        width, height = file.size
    return Photograph(name, path, entry.package, (height, width), entry.credit, _CAPTIONS[name])


def load_photograph(name: str, size: int | tuple[int, int] | None = None, crop: str = "center") -> Tensor:
    """Load a photograph as a tensor. Sizes larger than `photograph(name).native_size` add pixels but no detail.

    Args:
        name: one of `list_photographs()`.
        size: (height, width) in pixels, or one number for a square. None keeps the pixels of the file.
        crop: "center" cuts the largest centred rectangle of the wanted shape before resizing, a square if `size` is
            None. "none" cuts nothing. With "none", (height, width) may change the aspect ratio, and one number is
            the shorter side.

    Returns:
        (3, height, width), fp32 in [0, 1], RGB. Resizing is Pillow's bicubic, which smooths before it shrinks.

    Raises:
        ValueError: an unknown name or crop, or a size below 1.
        ImportError: the package that ships it is not installed.
    """
    if crop not in ("center", "none"):
        raise ValueError(f"expected crop 'center' or 'none', got {crop!r}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"expected a size of at least 1 pixel or (height, width), got {size!r}")
    with Image.open(photograph(name).path) as file:
        image = file.convert("RGB")
    width, height = image.size
    if crop == "center":
        image = image.crop(_center_box(height, width, sides or (1, 1)))
    elif isinstance(size, int):
        shorter = min(height, width)
        sides = (round(height * size / shorter), round(width * size / shorter))
    if sides is not None and sides != image.size[::-1]:
        image = image.resize((sides[1], sides[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


class Photographs(Dataset):
    """Photographs as a data set. Samples: image, name, caption, index, as `veca.data` describes them.

    Args:
        size, crop: as in `load_photograph`. With `crop="none"`, one number gives images of different sizes.
        names: names of the photographs, in this order; None takes all of `list_photographs()`.
        transform: function applied to each image, such as `imagenet_normalize`.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None,
        names: Sequence[str] | None = None,
        crop: str = "center",
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        self.size = size
        self.names = list_photographs() if names is None else list(names)
        self.crop = crop
        self.transform = transform
        self._captions = [photograph(name).caption for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        image = load_photograph(self.names[index], self.size, self.crop)
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, "name": self.names[index], "caption": self._captions[index], "index": index}


def imagenet_normalize(images: Tensor) -> Tensor:
    """Normalise images (..., 3, H, W) in [0, 1] with ImageNet's mean and standard deviation."""
    mean, std = (images.new_tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (images - mean) / std


def _center_box(height: int, width: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred box (left, top, right, bottom) with the proportions of `shape` (height, width)."""
    ratio = min(height / shape[0], width / shape[1])
    box_height, box_width = round(shape[0] * ratio), round(shape[1] * ratio)
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _folder(package: str) -> Path | None:
    """The folder of photographs of a package, found without importing it; None where it is not installed."""
    module, folder = _FOLDERS[package]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / folder


def _install(package: str) -> str:
    return f'the photographs come with {package}, which is not installed; pip install "veca[brain]"'
