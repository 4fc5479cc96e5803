"""Coloured solids: any number of 3D objects with a known surface, class and colour, without a download.

    solid = make_solid(27, 3)              # object 3 of class 27, a torus with a handle
    cloud = solid.cloud(2048)              # (2048, 6) fp32, xyz on the surface and rgb in [0, 1]
    video = solid.frames(24, 96)           # (24, 96, 96, 3) uint8, one turn; frame 0 is the still picture
    source = SolidSource(["solid0:27_03"])

A class is a body with a part that touches it: 12 x 6 = 72 classes. Within a class, the objects differ in stretch,
proportions, size of the part and tone. The colour is one of six and does not depend on the class. The part has a darker
tone, so the points of an object do not all have its colour. An object depends only on (seed, class, object).
"""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from .solid_bodies import BODIES as BODY_SHAPES
from .solid_bodies import Piece
from .solid_drawing import Scene, draw_turn, gradient
from .solid_parts import PARTS as PART_SHAPES

__all__ = [
    "BODIES",
    "CLASSES",
    "COLORS",
    "PARTS",
    "STRETCHES",
    "Solid",
    "SolidSource",
    "make_solid",
    "parse_solid_id",
    "solid_id",
]

BODIES, PARTS = tuple(BODY_SHAPES), tuple(PART_SHAPES)
CLASSES = tuple(body if part == "none" else f"{body}_{part}" for body in BODIES for part in PARTS)
"""Names of the 72 classes. Class `body * 6 + part` has that body and part, such as "torus_ring", or "torus" alone."""

COLORS = {
    "red": (0.87, 0.16, 0.18),
    "yellow": (0.95, 0.77, 0.12),
    "green": (0.20, 0.66, 0.28),
    "cyan": (0.13, 0.72, 0.78),
    "blue": (0.16, 0.32, 0.86),
    "purple": (0.62, 0.22, 0.76),
}
"""Red, green and blue in [0, 1] of the six colours."""
STRETCHES = ("short", "middle", "long")
_ID = re.compile(r"solid(\d+):(\d\d)_(\d\d)", re.ASCII)
_OBJECTS = 100
_RANGES = ((0.93, 1.07), (0.88, 1.14), (0.9, 1.05))  # of width, size of the part, tone
_GREY, _GROUND = (0.55, 0.55, 0.55), (0.74, 0.74, 0.75)
_PART_TONE = 0.6
_REACH = 0.9  # half of the largest extent of a long solid
_SHELL, _EXACT = 0.015, 1e-3  # thickness of the shell to each side, and largest |d| of a cloud's points
_CELL = 0.08  # side of the cells in which the shell is looked for


@dataclass(frozen=True)
class Solid:
    """A coloured object whose surface is known.

    Its bounding box is centred on the origin. The corners are about 1 away from it, and the axis y points up.

    Attributes:
        body, part, color: Names from `BODIES`, `PARTS` and `COLORS`.
        stretch: Level of the main proportion of the body, 0 to 2. See `STRETCHES`.
        width: Factor of the body's extent across, about 1.
        part_size: Factor of the part's thickness or extent, about 1.
        tone: Factor of the brightness of the paint, about 1. Grey pictures do without it.
        noise: Seed that is mixed into those of clouds, so that no two objects share their draws.
    """

    body: str
    part: str
    color: str
    stretch: int
    width: float = 1.0
    part_size: float = 1.0
    tone: float = 1.0
    noise: int = 0

    def sdf(self, points: np.ndarray) -> np.ndarray:
        """Signed distance from the surface, below 0 inside.

        It is exact on the surface and right within a few percent near it. Farther away it may be too small.

        Args:
            points: (n, 3) Places, floats.

        Returns:
            (n,) Of the type of `points`.
        """
        return _distance(self, _columns(points))

    def colors(self, points: np.ndarray) -> np.ndarray:
        """Colours of points (n, 3) of the surface, fp32 (n, 3) in [0, 1]. The part is darker than the body."""
        return self._paints(False)[_surface(self, _columns(points))]

    def cloud(self, n: int, seed: int = 0, normals: bool = False) -> np.ndarray:
        """Points of the surface, independent and even in area.

        Places are drawn evenly from a thin shell around the surface. Two Newton steps take them to the surface.

        Args:
            n: Number of points.
            seed: Seed of the draws. Another one gives another sampling of the same surface.
            normals: Whether to return unit normals.

        Returns:
            fp32 (n, 6), xyz and rgb in [0, 1], or (n, 9) with the outward normals behind them.

        Raises:
            ValueError: `n` is below 1.
        """
        if n < 1:
            raise ValueError(f"expected a cloud of at least 1 point, got n={n}")
        points = _sample(self, n, np.random.default_rng(np.random.SeedSequence((self.noise, seed))))
        columns = [*points, *self._paints(False)[_surface(self, points)].T]
        if normals:
            slope = gradient(partial(_distance, self), points)
            columns += [*(slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-6))]
        return np.stack(columns, 1)

    def frames(self, n: int, size: int, grey: bool = False) -> np.ndarray:
        """Pictures of the turning object on grey ground. Picture 0 is the still picture.

        Picture k is at azimuth 2 pi k / n from it. All look down at the object, the still picture at two of its sides.

        Args:
            n: Number of pictures of a full turn.
            size: Side of a picture in pixels.
            grey: Whether to paint the object grey. Such pictures do not depend on colour and tone.

        Returns:
            uint8 (n, size, size, 3).

        Raises:
            ValueError: `n` or `size` is below 1.
        """
        if n < 1 or size < 1:
            raise ValueError(f"expected at least 1 frame of at least 1 pixel, got n={n} and size={size}")
        layers = _layers(replace(self, color=next(iter(COLORS)), tone=1.0), n, size)
        paints = np.concatenate((np.array([_GROUND], np.float32), self._paints(grey)))
        return (layers @ paints[: layers.shape[-1]] * 255).clip(0, 255).round().astype(np.uint8)

    def _paints(self, grey: bool) -> np.ndarray:
        """Colours of the body and of the part, fp32 (2, 3)."""
        paint = np.array(_GREY) if grey else np.array(COLORS[self.color]) * self.tone
        return np.stack((paint, paint * _PART_TONE)).clip(0, 1).astype(np.float32)


def make_solid(cls: int, obj: int, seed: int = 0) -> Solid:
    """Object `obj` of class `cls`. The result is the same on every machine.

    Colours and stretches of the objects with one number form Latin squares of body and part. So each occurs equally
    often over six bodies or six parts. The colour is independent of the class. Three objects 3k to 3k + 2 of a class
    have the three stretches.

    Args:
        cls: Number of the class, an index of `CLASSES`.
        obj: Number of the object, 0 to 99.
        seed: Seed of all solids.

    Raises:
        ValueError: A number out of range.
    """
    cls, obj, seed = operator.index(cls), operator.index(obj), operator.index(seed)
    if not (0 <= cls < len(CLASSES) and 0 <= obj < _OBJECTS and seed >= 0):
        raise ValueError(
            f"expected a class from 0 to {len(CLASSES) - 1}, an object from 0 to {_OBJECTS - 1} and a seed of at least "
            f"0, got class {cls}, object {obj} and seed {seed}"
        )
    body, part = divmod(cls, len(PARTS))
    # NumPy promises that the words of a SeedSequence do not change, but not what a Generator makes of them
    words = np.random.SeedSequence((seed, cls, obj)).generate_state(4).tolist()
    width, part_size, tone = (
        low + (high - low) * word / 2**32 for word, (low, high) in zip(words[:3], _RANGES, strict=True)
    )
    color, stretch = _color_and_stretch(seed, obj, body, part)
    names = tuple(COLORS)[color], stretch
    return Solid(BODIES[body], PARTS[part], *names, width, part_size, tone, words[3])


def solid_id(seed: int, cls: int, obj: int) -> str:
    """The id of a solid: `solid{seed}:{class}_{object}`, with two digits of each."""
    return f"solid{seed}:{cls:02d}_{obj:02d}"


def parse_solid_id(image_id: str) -> tuple[int, int, int]:
    """Seed, class and object of a solid, from its id.

    Raises:
        ValueError: The text is no such id, or has a class that does not exist.
    """
    match = _ID.fullmatch(str(image_id))
    seed, cls, obj = map(int, match.groups()) if match else (0, 0, 0)
    if solid_id(seed, cls, obj) != str(image_id) or cls >= len(CLASSES):
        raise ValueError(
            f"expected the id of a solid, such as 'solid0:07_03' with a class from 0 to {len(CLASSES) - 1}, "
            f"got {str(image_id)!r}"
        )
    return seed, cls, obj


class SolidSource:
    """Pictures, turning videos and clouds of solids by id: a source of images for a set of stimuli.

    Args:
        ids: Ids of the solids, such as "solid0:07_03". Pictures are in this order.
        num_points: Number of points of a cloud.
        size: Side of a picture in pixels, where the caller names none.

    Raises:
        ValueError: An id that is none of a solid.
    """

    def __init__(self, ids: Sequence[str], num_points: int = 2048, size: int = 96):
        self.ids, self.num_points, self.size = [str(name) for name in ids], num_points, size
        for name in self.ids:
            parse_solid_id(name)
        self._clouds: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_clouds": {}}  # drawn again where they are needed

    def solid(self, image_id: str) -> Solid:
        """The solid with an id. Ids outside of `ids` are allowed, because an id defines its solid."""
        seed, cls, obj = parse_solid_id(image_id)
        return make_solid(cls, obj, seed)

    def read(self, index: int, size: int | None) -> np.ndarray:
        """The still picture of a solid, uint8 (size, size, 3)."""
        return self.frames(self.ids[index], 1, size or self.size)[0]

    def cloud(self, image_id: str) -> np.ndarray:
        """The cloud of a solid, fp32 (num_points, 6): xyz and rgb in [0, 1]. It is sampled once."""
        name = str(image_id)
        if name not in self._clouds:
            self._clouds[name] = self.solid(name).cloud(self.num_points)
        return self._clouds[name].copy()

    def frames(self, image_id: str, n: int, size: int, grey: bool = False) -> np.ndarray:
        """Pictures of a solid during one turn, uint8 (n, size, size, 3), as `Solid.frames`."""
        return self.solid(image_id).frames(n, size, grey)


def _color_and_stretch(seed: int, obj: int, body: int, part: int) -> tuple[int, int]:
    """Levels from Latin squares of six bodies and six parts. Three objects share the square of the stretch."""
    block = len(CLASSES) + body // len(PARTS)  # a number that no class has
    color = _latin(seed, block, obj, body, part)
    stretch = _latin(seed, block, _OBJECTS + obj // len(STRETCHES), body, part) + obj
    return color % len(COLORS), stretch % len(STRETCHES)


def _latin(seed: int, block: int, square: int, body: int, part: int) -> int:
    side = len(PARTS)
    rows, columns = np.random.SeedSequence((seed, block, square)).generate_state(2 * side).reshape(2, side).argsort(1)
    return int(rows[body % side] + columns[part])


def _columns(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind != "f":
        raise ValueError(f"expected points (n, 3) of floats, got {points.dtype} {points.shape}")
    return np.ascontiguousarray(points.T)


@lru_cache(maxsize=128)
def _placed(solid: Solid) -> tuple[list[Piece], np.ndarray, float, np.ndarray]:
    """Pieces of a solid, where their common centre is, their scale, and the half sides of the box after both."""
    body = BODY_SHAPES[solid.body](solid.stretch, solid.width)
    part = PART_SHAPES[solid.part](body, solid.part_size)
    pieces = [body.piece] if part is None else [body.piece, part]
    low, high = np.min([piece.low for piece in pieces], 0), np.max([piece.high for piece in pieces], 0)
    half = (high - low) / 2
    # between the largest extent and the farthest corner, so that balls do not look small beside boxes
    scale = float(_REACH / np.cbrt(half.max() * np.square(half).sum()))
    return pieces, (low + high)[:, None] / 2, scale, half * scale


def _distances(solid: Solid, points: np.ndarray) -> list[np.ndarray]:
    """Distances (n,) of points (3, n) from the body, and from the part if there is one."""
    pieces, centre, scale, _ = _placed(solid)
    x, y, z = points * (1 / scale) + centre.astype(points.dtype)
    return [piece.distance(x, y, z) * scale for piece in pieces]


def _distance(solid: Solid, points: np.ndarray) -> np.ndarray:
    return np.minimum.reduce(_distances(solid, points))


def _surface(solid: Solid, points: np.ndarray) -> np.ndarray:
    """0 for points of the body, 1 for those of the part."""
    body, *part = _distances(solid, points)
    return (part[0] < body).astype(int) if part else np.zeros(len(body), int)


@lru_cache(maxsize=4)
def _layers(solid: Solid, n: int, size: int) -> np.ndarray:
    """Light from the ground, the body and the part. It is kept because coloured and grey pictures share it."""
    pieces, *_, half = _placed(solid)
    distance, surface = partial(_distance, solid), partial(_surface, solid)
    return draw_turn(Scene(distance, surface, len(pieces), -float(half[1]), float(np.linalg.norm(half))), n, size)


def _sample(solid: Solid, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points (3, n) of the surface, even in area, fp32."""
    distance = partial(_distance, solid)
    low = -_placed(solid)[-1] - _SHELL
    cells = np.indices(np.ceil(-2 * low / _CELL).astype(int).tolist()).reshape(3, -1)
    corners = (cells * _CELL + low[:, None]).astype(np.float32)
    corners = corners[:, np.abs(distance(corners + _CELL / 2)) < _CELL * 3**0.5 / 2 + _SHELL]
    found = np.empty((3, 0), np.float32)
    while (missing := n - found.shape[1]) > 0:
        draws = 8 * missing + 64
        points = corners[:, rng.integers(corners.shape[1], size=draws)] + _CELL * rng.random((3, draws), np.float32)
        d = distance(points)
        points, d = points[:, (near := np.abs(d) < _SHELL)], d[near]
        slope = gradient(distance, points)
        square = np.square(slope).sum(0)
        # d / |slope| is the distance to first order, also where d grows slower than that
        even = d * d < _SHELL**2 * square
        points = points[:, even] - d[even] / square[even] * slope[:, even]
        slope, d = gradient(distance, points), distance(points)
        points -= d / np.maximum(np.square(slope).sum(0), 1e-6) * slope
        found = np.concatenate((found, points[:, np.abs(distance(points)) < _EXACT]), 1)
    return found[:, :n]
