"""Shapes and textures as signed distances, which can be sampled at any resolution without jagged edges.

Arrays are fp32. Pixels are computed only with + - * / sqrt floor min max, which IEEE 754 rounds the same on every
machine. So a picture depends neither on the machine nor on the other objects in it. Sines are computed in fp64, once
for each object.
"""

import math

import numpy as np

__all__ = ["CIRCUMRADIUS", "SHAPES", "coverage", "signed_distance", "texture_share"]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "hexagon", "ellipse")

_POLYGONS = {"triangle": (3, 1), "square": (4, 1), "hexagon": (6, 1), "star": (5, 2)}  # sides, step between corners
_RING_HOLE = 0.5  # inner radius / outer radius
_CROSS_ARM = 0.36  # width of an arm / whole length
_ELLIPSE_ASPECT = 0.5


def _polygon_radii(sides: int, step: int) -> tuple[float, float]:
    """Distances of the edges' lines and of the corners from the centre, at area pi. Star polygons have step 2."""
    tip = math.cos(step * math.pi / sides)
    area = sides * math.tan(math.pi / sides) / (1 if step == 1 else tip)
    inner = math.sqrt(math.pi / area)
    return inner, inner / tip


_RING_OUTER = 1 / math.sqrt(1 - _RING_HOLE**2)
_CROSS_REACH = math.sqrt(math.pi / (4 * (2 * _CROSS_ARM - _CROSS_ARM**2)))
_ELLIPSE_LONG = 1 / math.sqrt(_ELLIPSE_ASPECT)

CIRCUMRADIUS = {
    "circle": 1.0,
    "ring": _RING_OUTER,
    "cross": math.hypot(_CROSS_REACH, _CROSS_REACH * _CROSS_ARM),
    "ellipse": _ELLIPSE_LONG,
    **{shape: _polygon_radii(*polygon)[1] for shape, polygon in _POLYGONS.items()},
}


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The signed distance to the outline of a shape of area pi around the origin is negative inside.

    Near an edge it is the distance to that edge. Near a corner it is an estimate with the right sign. Every shape has
    the area of the unit disc, so that the area does not reveal the shape.

    Args:
        shape: one of `SHAPES`.
        x, y: fp32 coordinates to the right and down, in radii of the unit disc; broadcastable.

    Returns:
        fp32, in the broadcast shape of `x` and `y`.
    """
    if shape in _POLYGONS:
        return _polygon_distance(x, y, *_POLYGONS[shape])
    if shape == "cross":
        across, along = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
        return _box_distance(along - _f32(_CROSS_REACH), across - _f32(_CROSS_REACH * _CROSS_ARM))
    if shape == "ellipse":
        x, y = x / _f32(_ELLIPSE_LONG), y * _f32(_ELLIPSE_LONG)
        level = np.sqrt(x * x + y * y)
        slope = np.sqrt((x / _f32(_ELLIPSE_LONG)) ** 2 + (y * _f32(_ELLIPSE_LONG)) ** 2)
        return (level - _f32(1)) * level / np.maximum(slope, _f32(1e-3))
    radius = np.sqrt(x * x + y * y)
    if shape == "circle":
        return radius - _f32(1)
    middle, half_width = _RING_OUTER * (1 + _RING_HOLE) / 2, _RING_OUTER * (1 - _RING_HOLE) / 2
    return abs(radius - _f32(middle)) - _f32(half_width)


def _polygon_distance(x: np.ndarray, y: np.ndarray, sides: int, step: int) -> np.ndarray:
    """Signed distance to a polygon. A point is inside if it is behind all edges; for a star, behind all but one."""
    inner, outer = _polygon_radii(sides, step)
    first = second = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf, np.float32)
    for side in range(sides):
        angle = math.pi * (step - 0.5 + 2 * side / sides)  # a flat bottom, or a tip at the top
        ahead = x * _f32(math.cos(angle)) + y * _f32(math.sin(angle))
        if step == 2:
            second = np.maximum(second, np.minimum(first, ahead))
        first = np.maximum(first, ahead)
    edges = (first if step == 1 else second) - _f32(inner)
    return np.maximum(edges, np.sqrt(x * x + y * y) - _f32(outer))  # the edges' lines alone go far past a sharp tip


def _box_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    outside_x, outside_y = np.maximum(x, _f32(0)), np.maximum(y, _f32(0))
    return np.sqrt(outside_x * outside_x + outside_y * outside_y) + np.minimum(np.maximum(x, y), _f32(0))


def coverage(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of a pixel of side `pixel` that lies inside an edge at signed `distance` from its centre."""
    return np.clip(_f32(0.5) - distance * _f32(1 / pixel), _f32(0), _f32(1))


def texture_share(texture: str, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray | np.float32:
    """Compute the share of the second tone in each pixel, in [0, 1]. The pattern repeats with period 1.

    Args:
        texture: "plain", "striped", "checkered", "dotted", "wavy", or "shaded". The last does not repeat. It fades
            along x from 0 at -2 to 1 at 2.
        x, y: fp32 coordinates in periods; broadcastable.
        pixel: side of a pixel in periods. A pattern finer than a pixel fades to its mean.

    Raises:
        ValueError: an unknown texture.
    """
    if texture == "plain":
        return _f32(0)
    if texture == "shaded":
        return np.clip(_f32(0.5) + x * _f32(0.25), _f32(0), _f32(1)) + _f32(0) * y
    if texture == "striped":
        return coverage(_band(x), pixel) + _f32(0) * y
    if texture == "wavy":
        half = y - np.floor(y) - _f32(0.5)  # two parabolas in each period replace a sine
        return coverage(_band(x + half * (_f32(0.5) - abs(half)) * _f32(2.5)), pixel)
    if texture == "checkered":
        across, down = (_f32(2) * coverage(_band(z), pixel) - _f32(1) for z in (x, y))
        return _f32(0.5) + _f32(0.5) * across * down
    if texture == "dotted":
        down, right = (z - np.floor(z) - _f32(0.5) for z in (y, x + _f32(0.5) * np.floor(y)))
        return coverage(np.sqrt(right * right + down * down) - _f32(0.3), pixel)
    raise ValueError(f"expected a texture, got {texture!r}")


def _band(x: np.ndarray) -> np.ndarray:
    """Signed distance to the edges of bands half a period wide."""
    return abs(x - np.floor(x) - _f32(0.5)) - _f32(0.25)


def _f32(value: float) -> np.float32:
    """An fp32 scalar, which keeps arithmetic in fp32 under any rule of NumPy promotion."""
    return np.float32(value)
