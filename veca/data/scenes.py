"""Drawn scenes: any number of pictures with a label for every pixel, without a download.

    scenes = Scenes(10_000, size=128)                  # held-out scenes have another seed
    batch = render_scenes(range(32), size=224, seed=1)
    print(batch["caption"][0])                         # a large red striped circle at the top left, on a ...

A scene has one to four objects on a textured background. Each object has a shape, a colour, a size, a texture and a
place. They are drawn independently, so colour, place and area do not reveal the shape. A scene depends only on
(seed, index). It has no resolution: `size` says how finely the same picture is sampled.

In scene units the shorter side of the picture spans [-1, 1], x to the right, y down. A longer side shows more
background.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import ImageColor
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from .drawing import CIRCUMRADIUS, SHAPES, coverage, signed_distance, texture_share

__all__ = [
    "BACKGROUND_COLORS",
    "BACKGROUND_TEXTURES",
    "COLORS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Background",
    "Scene",
    "SceneObject",
    "Scenes",
    "patch_labels",
    "render_scenes",
    "sample_scene",
]

_PAINTS = {
    "red": "#d33f49",
    "orange": "#f08a3c",
    "yellow": "#f4ca4e",
    "green": "#4c9f62",
    "teal": "#2fa7a5",
    "blue": "#3b6fb6",
    "purple": "#7a52a3",
    "pink": "#ea8fb4",
}
_BACKGROUND_PAINTS = {
    "cream": "#f4ecdf",
    "grey": "#b9bec5",
    "sand": "#d8c3a0",
    "sage": "#b3c1aa",
    "slate": "#45515f",
    "plum": "#54435c",
}
COLORS, BACKGROUND_COLORS = tuple(_PAINTS), tuple(_BACKGROUND_PAINTS)
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "checkered", "dotted")
BACKGROUND_TEXTURES = ("plain", "shaded", "striped", "checkered", "dotted", "wavy")

_PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
_RADII = (0.16, 0.24, 0.34)  # radius of the disc of equal area, by size; any shape at any place is in the picture
_SPREADS = (0.67, 0.54, 0.37)  # distance from the centre to the outer places, by size
_JITTER = 0.04
_SPACING = 1.25  # least distance of two centres, in sums of their radii
_SHADOW = 0.07
_PERIOD = 0.62  # period of an object's texture, in radii


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        shape, color, size, texture: names from `SHAPES`, `COLORS`, `SIZES` and `TEXTURES`.
        place: "top left", "center" and so on.
        xy: centre in scene units.
        radius: radius in scene units of the disc with the object's area.
        rotation: angle of the object in radians, clockwise.
        texture_angle, texture_shift: angle in radians and shift in periods of the pattern within the object.
        tone: brightness of the paint, about 1.
    """

    shape: str
    color: str
    size: str
    texture: str
    place: str
    xy: tuple[float, float]
    radius: float
    rotation: float
    texture_angle: float
    texture_shift: tuple[float, float]
    tone: float


@dataclass(frozen=True)
class Background:
    """The background behind the objects.

    Attributes:
        color, texture: names from `BACKGROUND_COLORS` and `BACKGROUND_TEXTURES`.
        period: period of the pattern in scene units.
        angle, shift: angle in radians and shift in periods of the pattern.
        light: direction from which the light comes, in radians.
    """

    color: str
    texture: str
    period: float
    angle: float
    shift: tuple[float, float]
    light: float


@dataclass(frozen=True)
class Scene:
    """The content of a picture. The main object comes first and is larger than all others."""

    seed: int
    index: int
    objects: tuple[SceneObject, ...]
    background: Background

    @property
    def label(self) -> int:
        """The main object's shape, as an index of `SHAPES`."""
        return SHAPES.index(self.objects[0].shape)

    @property
    def color_label(self) -> int:
        """The main object's colour, as an index of `COLORS`."""
        return COLORS.index(self.objects[0].color)

    @property
    def caption(self) -> str:
        """Description of all objects and the background in words."""
        *others, last = (
            " ".join(x for x in ("a", o.size, o.color, o.texture, o.shape, "at the", o.place) if x != "plain")
            for o in self.objects
        )
        objects = f"{', '.join(others)} and {last}" if others else last
        texture = "" if self.background.texture == "plain" else f"{self.background.texture} "
        return f"{objects}, on a {self.background.color} {texture}background"

    def render(self, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sample the scene.

        Args:
            size: (height, width) in pixels, or one number for a square.

        Returns:
            The image, (3, height, width) fp32 in [0, 1], and the mask, (height, width) int64. The mask is 0 for
            background, and 1 + the index in `SHAPES` where the centre of the pixel is in an object.
        """
        height, width = _check_size(size)
        pixel = 2 / min(height, width)
        x, y = (((np.arange(n) + 0.5 - n / 2) * pixel).astype(np.float32) for n in (width, height))
        image = _paint_background(self.background, x, y[:, None], pixel)
        mask = np.zeros((height, width), np.int64)
        for item in reversed(self.objects):
            reach = CIRCUMRADIUS[item.shape] * item.radius + _SHADOW + pixel
            columns, rows = (_window(*along, reach) for along in zip((x, y), item.xy, strict=True))
            _paint_object(item, x[columns], y[rows, None], pixel, image[:, rows, columns], mask[rows, columns])
        return torch.from_numpy(np.clip(image, 0, 1)), torch.from_numpy(mask)


def sample_scene(index: int, seed: int = 0, max_objects: int = 3) -> Scene:
    """Draw the content of scene `index` of a seed. The result is the same on every machine.

    If there are several objects, the main one is medium or large, the second is smaller than it, and the others are
    small. Objects keep a distance, so that at most the tip of one is behind another. All other choices are uniform and
    independent.

    Args:
        index: number of the scene, at least 0.
        seed: seed of the scenes, at least 0.
        max_objects: largest number of objects, 1 to 4.

    Raises:
        ValueError: a number out of range.
    """
    if not 1 <= max_objects <= 4:
        raise ValueError(f"expected max_objects from 1 to 4, got {max_objects}")
    index, seed = operator.index(index), operator.index(seed)
    if index < 0 or seed < 0:
        raise ValueError(f"expected index and seed of at least 0, got index={index} and seed={seed}")
    # NumPy promises that the words of a SeedSequence do not change, but not what a Generator makes of them
    words = iter(np.random.SeedSequence((seed, index)).generate_state(64).tolist())

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(words) / 2**32

    def choose(options: Sequence) -> Any:
        return options[next(words) * len(options) >> 32]

    background = Background(
        color=choose(BACKGROUND_COLORS),
        texture=choose(BACKGROUND_TEXTURES),
        period=uniform(0.22, 0.4),
        angle=uniform(0, math.tau),
        shift=(uniform(0, 1), uniform(0, 1)),
        light=uniform(0, math.tau),
    )
    objects: list[SceneObject] = []
    for number in range(count := choose(range(1, max_objects + 1))):
        if number == 0:
            size = choose((0, 1, 2) if count == 1 else (1, 2))
        else:
            size = choose(range(SIZES.index(objects[0].size)) if number == 1 else (0,))
        place = choose(_free_places(size, objects))
        across, down = ((part - 1) * _SPREADS[size] for part in (place % 3, place // 3))
        item = SceneObject(
            shape=choose(SHAPES),
            color=choose(COLORS),
            size=SIZES[size],
            texture=choose(TEXTURES),
            place=_PLACES[place],
            xy=(across + uniform(-_JITTER, _JITTER), down + uniform(-_JITTER, _JITTER)),
            radius=_RADII[size],
            rotation=uniform(-0.4, 0.4),
            texture_angle=uniform(0, math.tau),
            texture_shift=(uniform(0, 1), uniform(0, 1)),
            tone=uniform(0.94, 1.04),
        )
        objects.append(item)
    return Scene(seed, index, tuple(objects), background)


def render_scenes(indices: Iterable[int], size: int | tuple[int, int], seed: int = 0, max_objects: int = 3) -> dict:
    """Render a batch of scenes, bit-equal to what a DataLoader over `Scenes` collates.

    Args:
        indices: numbers of the scenes.
        size, seed, max_objects: as in `Scenes`.

    Returns:
        The dict of `Scenes` with a batch dimension in front: image (B, 3, height, width), mask (B, height, width),
        label, color and index (B,), and a list of B captions.
    """
    return default_collate([_sample(sample_scene(index, seed, max_objects), size) for index in indices])


class Scenes(Dataset):
    """A data set of drawn scenes. Samples have image, label, color, mask, caption and index (see `veca.data`).

    Args:
        count: number of scenes; sample i is scene i of the seed.
        size: (height, width) in pixels, or one number for a square.
        seed: seed of the scenes. Train and held-out sets need different seeds.
        max_objects: largest number of objects, 1 to 4.
        transform: function applied to each image, such as `imagenet_normalize`. It must not move pixels, because the
            mask does not change.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        count: int,
        size: int | tuple[int, int],
        seed: int = 0,
        max_objects: int = 3,
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        if count < 1:
            raise ValueError(f"expected count of at least 1, got {count}")
        self.count = count
        self.size = _check_size(size)
        self.seed = seed
        self.max_objects = max_objects
        self.transform = transform
        self.classes = SHAPES
        sample_scene(0, seed, max_objects)  # checks seed and max_objects

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        sample = _sample(self.scene(index), self.size)
        if self.transform is not None:
            sample["image"] = self.transform(sample["image"])
        return sample

    def scene(self, index: int) -> Scene:
        """The content of sample `index`: every object with all its attributes."""
        return sample_scene(range(self.count)[index], self.seed, self.max_objects)


def patch_labels(mask: Tensor, patch_size: int, num_classes: int = 1 + len(SHAPES)) -> Tensor:
    """The class with the most pixels in each patch; of equal ones the smallest number.

    Args:
        mask: class of each pixel (..., height, width), integers from 0 to num_classes - 1.
        patch_size: side of a patch in pixels. In a last row or column of patches that the mask fills only in part,
            the pixels of the mask count, as for a backbone that pads.
        num_classes: number of classes; default: that of `Scenes`.

    Returns:
        int64 (..., rows, cols).

    Raises:
        TypeError: a floating mask.
        ValueError: a patch size below 1, or classes out of range.
    """
    if mask.is_floating_point():
        raise TypeError(f"expected a mask of integers, got {mask.dtype}")
    if patch_size < 1:
        raise ValueError(f"expected a patch_size of at least 1, got {patch_size}")
    if mask.numel() and not 0 <= int(mask.min()) <= int(mask.max()) < num_classes:
        raise ValueError(f"expected classes from 0 to {num_classes - 1}, got {int(mask.min())} to {int(mask.max())}")
    height, width = mask.shape[-2:]
    ones = mask[..., None] == torch.arange(num_classes, device=mask.device)
    ones = F.pad(ones, (0, 0, 0, -width % patch_size, 0, -height % patch_size))
    counts = reduce(ones, "... (r p) (c q) n -> ... r c n", "sum", p=patch_size, q=patch_size)
    return counts.argmax(-1)


def _sample(scene: Scene, size: int | tuple[int, int]) -> dict:
    image, mask = scene.render(size)
    return {
        "image": image,
        "label": scene.label,
        "color": scene.color_label,
        "mask": mask,
        "caption": scene.caption,
        "index": scene.index,
    }


def _free_places(size: int, objects: list[SceneObject]) -> list[int]:
    """Places where an object of this size does not overlap the others, except for the tips of long shapes."""
    free = []
    for place in range(len(_PLACES)):
        x, y = (place % 3 - 1) * _SPREADS[size], (place // 3 - 1) * _SPREADS[size]
        if all(math.dist((x, y), o.xy) >= _SPACING * (_RADII[size] + o.radius) for o in objects):
            free.append(place)
    return free


def _paint_background(background: Background, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    """The background as fp32 (3, height, width)."""
    paint = _rgb(_BACKGROUND_PAINTS[background.color])
    second = paint * np.float32(0.87) if paint.mean() > 0.5 else paint + np.float32(0.09)
    fade = background.texture == "shaded"
    period = 1.0 if fade else background.period
    u, v = _turn(x, y, background.angle)
    shift = (0.0, 0.0) if fade else background.shift
    share = texture_share(background.texture, *_in_periods(u, v, period, shift), pixel / period)
    light = _turn(x, y, background.light)[0] * np.float32(0.05) + np.float32(1)
    return _mix(paint, second, share) * light


def _paint_object(
    item: SceneObject, x: np.ndarray, y: np.ndarray, pixel: float, image: np.ndarray, mask: np.ndarray
) -> None:
    """Draw an object over a window of the image (3, rows, cols) and of the mask (rows, cols), in place."""
    x, y = ((z - np.float32(c)) / np.float32(item.radius) for z, c in zip((x, y), item.xy, strict=True))
    pixel = pixel / item.radius
    distance = signed_distance(item.shape, *_turn(x, y, item.rotation))
    shadow = np.clip(np.float32(1) - distance * np.float32(item.radius / _SHADOW), 0, 1)
    image *= np.float32(1) - np.float32(0.3) * shadow * shadow

    paint = _rgb(_PAINTS[item.color]) * np.float32(item.tone)
    second = paint + (np.float32(1) - paint) * np.float32(0.45)
    u, v = _turn(x, y, item.rotation + item.texture_angle)
    share = texture_share(item.texture, *_in_periods(u, v, _PERIOD, item.texture_shift), pixel / _PERIOD)
    tones = _mix(paint, second, share) * (np.float32(1) - np.float32(0.07) * y)
    image += coverage(distance, pixel) * (tones - image)
    mask[distance < 0] = 1 + SHAPES.index(item.shape)


def _window(pixels: np.ndarray, center: float, reach: float) -> slice:
    return slice(*np.searchsorted(pixels, (center - reach, center + reach)))


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray | np.float32) -> np.ndarray:
    return first[:, None, None] + rearrange(second - first, "c -> c 1 1") * share


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along axes turned clockwise by `angle`."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _in_periods(
    x: np.ndarray, y: np.ndarray, period: float, shift: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    factor = np.float32(1 / period)
    return x * factor + np.float32(shift[0]), y * factor + np.float32(shift[1])


@functools.cache
def _rgb(paint: str) -> np.ndarray:
    return np.array(ImageColor.getrgb(paint), np.float32) / np.float32(255)


def _check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"expected a size of at least 1 pixel or (height, width), got {size!r}")
    return sides
