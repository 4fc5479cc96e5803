"""Signed distances of the bodies that solids are made of.

    body = BODIES["torus"](2, 1.0)      # stretch and width
    d = body.piece.distance(x, y, z)    # below 0 inside

Coordinates have y up. Arrays keep their type. The distances are exact, except within crosses and that of ellipsoids,
which is right to first order. Edges are round. The formulas for boxes, tori and ellipsoids are well known (Hart 1996,
"Sphere tracing"; Quilez, "Distance functions").
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["BODIES", "ROUND", "Body", "Distance", "Piece", "Vector", "length"]

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Vector = tuple[float, float, float]

ROUND = 0.03  # radius of the edges


class Piece(NamedTuple):
    """A body or a part.

    Attributes:
        distance: Function of x, y and z: the signed distance, below 0 inside.
        low, high: Opposite corners of a box that contains it.
    """

    distance: Distance
    low: Vector
    high: Vector


class Body(NamedTuple):
    """A body, and the places where parts touch it.

    Attributes:
        piece: Its distance and box.
        top: Height of the flat side of a cap.
        dome: Radius of a cap.
        ring: Radius, height and axis of a ring.
        leg: Start and end of the leg at positive x and z. The others are its mirror images.
        handle: Middle between the ends of a handle, its direction away from the body, the direction from one end to the
            other, half the distance of the ends, and the length of its straight arms.
        twin: Scale of a twin, and the place of its centre as a function of that scale.
    """

    piece: Piece
    top: float
    dome: float
    ring: tuple[float, float, str]
    leg: tuple[Vector, Vector]
    handle: tuple[Vector, Vector, Vector, float, float]
    twin: tuple[float, Callable[[float], Vector]]


# Distances in two and three dimensions


def length(*parts: np.ndarray) -> np.ndarray:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return np.sqrt(total)


def _slab(*excess: np.ndarray) -> np.ndarray:
    """Distance to the set where every excess is negative, as of a box. Each excess is a distance along another axis."""
    inside = np.minimum(np.maximum.reduce(excess), 0)
    return inside + length(*(np.maximum(part, 0) for part in excess))


def _box(x: np.ndarray, y: np.ndarray, z: np.ndarray, half: Vector) -> np.ndarray:
    a, b, c = (max(side - ROUND, 0) for side in half)
    return _slab(np.abs(x) - a, np.abs(y) - b, np.abs(z) - c) - ROUND


def _plate(radius: np.ndarray, y: np.ndarray, reach: float, height: float) -> np.ndarray:
    """A solid of revolution with a rectangular profile: |radius| < reach and |y| < height."""
    return _slab(np.abs(radius) - (reach - ROUND), np.abs(y) - (height - ROUND)) - ROUND


def _segment(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Squared distance in the plane from a segment."""
    along = end[0] - start[0], end[1] - start[1]
    px, py = x - start[0], y - start[1]
    share = np.clip((px * along[0] + py * along[1]) * (1 / (along[0] ** 2 + along[1] ** 2)), 0, 1)
    px, py = px - share * along[0], py - share * along[1]
    return px * px + py * py


def _rosette(x: np.ndarray, y: np.ndarray, count: int, outer: float, inner: float) -> np.ndarray:
    """Distance in the plane from a star. Its tips have radius `outer`, the first at angle 0, its notches `inner`."""
    half = math.pi / count
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)  # symmetry leaves half a tip
    radius = length(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    tip, notch = (outer, 0.0), (inner * math.cos(half), inner * math.sin(half))
    outside = (u - outer) * notch[1] - v * (notch[0] - outer) > 0
    gap = np.sqrt(_segment(u, v, tip, notch))
    return np.where(outside, gap, -gap)


def _extruded(outline: np.ndarray, z: np.ndarray, depth: float) -> np.ndarray:
    return _slab(outline + ROUND, np.abs(z) - (depth - ROUND)) - ROUND


def _centred(distance: Distance, half: Vector) -> Piece:
    x, y, z = half
    return Piece(distance, (-x, -y, -z), half)


# Bodies


def _sphere(stretch: int, width: float) -> Body:
    a = 0.58 * width
    b = a * (0.68, 1.0, 1.42)[stretch]

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        unit = length(x / a, y / b, z / a)
        slope = length(x / a**2, y / b**2, z / a**2)
        return unit * (unit - 1) / np.maximum(slope, 1e-6)  # first-order distance from the ellipsoid

    return Body(
        _centred(distance, (a, b, a)),
        top=0.86 * b,
        dome=0.38,
        ring=(a + 0.045, 0.0, "y"),
        leg=((0.45 * a, -0.65 * b, 0.45 * a), (0.62 * a, -b - 0.34, 0.62 * a)),
        handle=((0.84 * a, 0, 0), (1, 0, 0), (0, 1, 0), 0.46 * b, 0.06),
        twin=(0.55, lambda s: ((1 + s) * a - 0.07, (s - 1) * b, 0)),
    )


def _cube(stretch: int, width: float) -> Body:
    a = 0.48 * width
    b = 0.48 * (0.62, 1.0, 1.5)[stretch]
    return Body(
        _centred(lambda x, y, z: _box(x, y, z, (a, b, a)), (a, b, a)),
        top=b - 0.03,
        dome=0.4,
        ring=(1.15 * a, 0.0, "y"),
        leg=((0.82 * a, 0.07 - b, 0.82 * a), (0.84 * a, -b - 0.42, 0.84 * a)),
        handle=((a - 0.03, 0, 0), (1, 0, 0), (0, 1, 0), 0.56 * b, 0.06),
        twin=(0.5, lambda s: ((1 + s) * a - 0.06, (s - 1) * b, 0)),
    )


def _cylinder(stretch: int, width: float) -> Body:
    a, b = 0.4 * width, (0.4, 0.62, 0.9)[stretch]
    return Body(
        _centred(lambda x, y, z: _plate(length(x, z), y, a, b), (a, b, a)),
        top=b - 0.03,
        dome=0.5,
        ring=(a + 0.05, 0.0, "y"),
        leg=((0.55 * a, 0.07 - b, 0.55 * a), (0.85 * a, -b - 0.36, 0.85 * a)),
        handle=((a - 0.03, 0, 0), (1, 0, 0), (0, 1, 0), min(0.55 * b, 0.36), 0.06),
        twin=(0.55, lambda s: ((1 + s) * a - 0.06, (s - 1) * b, 0)),
    )


def _slope(across: float, height: float) -> tuple[Vector, Vector, Vector]:
    """Middle of the right side of a cone or pyramid, the direction away from it, and the direction to the tip."""
    n = math.hypot(across, 2 * height)
    away, up = (2 * height / n, across / n, 0.0), (-across / n, 2 * height / n, 0.0)
    return (0.6 * across - 0.04, -0.2 * height, 0.0), away, up


def _cone(stretch: int, width: float) -> Body:
    a, b = 0.5 * width, (0.42, 0.6, 0.82)[stretch]

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        radius = length(x, z)
        gap = np.sqrt(np.minimum(_segment(radius, y, (0, -b), (a, -b)), _segment(radius, y, (a, -b), (0, b))))
        inside = (y > -b) & (radius * (2 * b) + y * a < a * b)
        return np.where(inside, -gap, gap) - ROUND

    middle, away, up = _slope(a, b)
    return Body(
        _centred(distance, (a + ROUND, b + ROUND, a + ROUND)),
        top=b - 0.2,
        dome=0.34,
        ring=(0.6 * a + 0.06, -0.2 * b, "y"),
        leg=((0.52 * a, 0.06 - b, 0.52 * a), (0.8 * a, -b - 0.36, 0.8 * a)),
        handle=(middle, away, up, 0.26, 0.06),
        twin=(0.55, lambda s: ((1 + s) * a - 0.08, (s - 1) * (b + ROUND), 0)),
    )


def _torus(stretch: int, width: float) -> Body:
    major, minor = 0.45 * width, 0.15
    ex, ey = ((0.2, 0.0), (0.0, 0.0), (0.0, 0.26))[stretch]  # a stadium: half circles and straight pieces

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y = np.maximum(np.abs(x) - ex, 0), np.maximum(np.abs(y) - ey, 0)
        return length(length(x, y) - major, z) - minor

    reach, end = major + minor, 0.28
    across = ex + math.sqrt(major**2 - max(end - ey, 0) ** 2)
    return Body(
        _centred(distance, (reach + ex, reach + ey, minor)),
        top=reach + ey - 0.05,
        dome=0.34,
        ring=(major + ex, 0.0, "y"),
        leg=((ex + 0.64 * major, -ey - 0.77 * major, 0), (ex + 0.8 * major, -ey - reach - 0.28, 0.3)),
        handle=((across, 0, 0), (1, 0, 0), (0, 1, 0), end, 0.22),
        twin=(0.55, lambda s: ((1 + s) * (reach + ex) - 0.1, (s - 1) * (reach + ey), 0)),
    )


def _cross(stretch: int, width: float) -> Body:
    a, b, thick = 0.62 * width, (0.44, 0.62, 0.88)[stretch], 0.13

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        bars = (a, thick, thick), (thick, b, thick), (thick, thick, a)
        return np.minimum.reduce([_box(x, y, z, half) for half in bars])

    between = 0.5 * (min(a, b) - 0.08)
    diagonal = math.sqrt(0.5)
    return Body(
        _centred(distance, (a, b, a)),
        top=b - 0.03,
        dome=0.32,
        ring=(0.66 * a, 0.0, "y"),
        leg=((0.05, 0.08 - b, 0.05), (0.36, -b - 0.36, 0.36)),
        handle=((between, between, 0), (diagonal, diagonal, 0), (-diagonal, diagonal, 0), between / diagonal, 0.02),
        twin=(0.55, lambda s: ((1 + s) * a - 0.08, 0, 0)),
    )


def _capsule(stretch: int, width: float) -> Body:
    a, radius = (0.2, 0.42, 0.7)[stretch], 0.3 * width
    return Body(
        _centred(lambda x, y, z: length(np.maximum(np.abs(x) - a, 0), y, z) - radius, (a + radius, radius, radius)),
        top=0.84 * radius,
        dome=0.3,
        ring=(radius + 0.045, 0.0, "x"),
        leg=((0.75 * a, -0.6 * radius, 0.5 * radius), (0.85 * a + 0.08, -radius - 0.34, 0.5 * radius + 0.16)),
        handle=((0, 0.84 * radius, 0), (0, 1, 0), (1, 0, 0), min(0.7 * a + 0.1, 0.3), 0.06),
        twin=(0.55, lambda s: (0, (1 + s) * radius - 0.05, 0)),
    )


def _pyramid(stretch: int, width: float) -> Body:
    a, b = 0.58 * width, (0.27, 0.41, 0.61)[stretch]
    n = math.hypot(a, 2 * b)

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, z = np.abs(x), np.abs(z)
        across, beside = np.maximum(x, z), np.minimum(x, z)  # symmetry leaves half a side
        rise = ((a - across) * a + (y + b) * (2 * b)) * (1 / n)  # from the base to the tip, 0 to n
        above = ((across - a) * (2 * b) + (y + b) * a) * (1 / n)
        on_side = (rise >= 0) & (beside * n + rise * a <= a * n)
        side = above * above + np.where(on_side, 0, _segment(rise, beside, (0, a), (n, 0)))
        base = np.square(np.maximum(across - a, 0)) + np.square(np.maximum(beside - a, 0)) + np.square(y + b)
        gap = np.sqrt(np.minimum(side, base))
        return np.where((y > -b) & (above < 0), -gap, gap) - ROUND

    middle, away, up = _slope(a, b)
    return Body(
        _centred(distance, (a + ROUND, b + ROUND, a + ROUND)),
        top=b - 0.18,
        dome=0.32,
        ring=(0.8 * a, -0.35 * b, "y"),
        leg=((0.62 * a, 0.06 - b, 0.62 * a), (0.7 * a, -b - 0.4, 0.7 * a)),
        handle=(middle, away, up, 0.24, 0.06),
        twin=(0.55, lambda s: ((1 + s) * a - 0.08, (s - 1) * (b + ROUND), 0)),
    )


def _prism(stretch: int, width: float) -> Body:
    a, depth = 0.6 * width, (0.18, 0.34, 0.56)[stretch]
    b = a * math.sqrt(0.75)
    return Body(
        _centred(lambda x, y, z: _extruded(_rosette(x, y, 6, a, b), z, depth), (a, b, depth)),
        top=b - 0.03,
        dome=0.36,
        ring=(a + 0.02, 0.0, "y"),
        leg=((0.36 * a, 0.07 - b, 0.6 * depth), (0.6 * a, -b - 0.36, 0.6 * depth + 0.12)),
        handle=((0.74 * a, 0, 0), (1, 0, 0), (0, 1, 0), 0.22, 0.16),
        twin=(0.55, lambda s: (math.sqrt(0.75) * ((1 + s) * b - 0.05), 0.5 * ((1 + s) * b - 0.05), 0)),  # side to side
    )


def _disc(stretch: int, width: float) -> Body:
    radius, straight = ((0.64, 0.0), (0.54, 0.2), (0.44, 0.4))[stretch]
    radius, thick = radius * width, 0.075

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return _plate(length(np.maximum(np.abs(x) - straight, 0), z), y, radius, thick)

    a = radius + straight
    return Body(
        _centred(distance, (a, thick, radius)),
        top=0.05,
        dome=0.34,
        ring=(a, 0.0, "z"),
        leg=((straight + 0.6 * radius, -0.04, 0.6 * radius), (straight + 0.66 * radius, -0.56, 0.66 * radius)),
        handle=((straight + 0.84 * radius, 0, 0), (1, 0, 0), (0, 0, 1), 0.2, 0.22),
        twin=(0.55, lambda s: ((1 + s) * a - 0.08, (s - 1) * thick, 0)),
    )


def _tube(stretch: int, width: float) -> Body:
    a, b, wall = 0.5 * width, (0.28, 0.48, 0.76)[stretch], 0.06
    middle = a - wall
    return Body(
        _centred(lambda x, y, z: _plate(length(x, y) - middle, z, wall, b), (a, a, b)),
        top=a - 0.05,
        dome=0.32,
        ring=(a + 0.045, 0.0, "z"),
        leg=((0.55 * (middle + 0.03), -0.83 * (middle + 0.03), 0.6 * b), (0.75 * a, -a - 0.34, 0.6 * b + 0.1)),
        handle=((0.8 * middle, 0, 0), (1, 0, 0), (0, 1, 0), 0.6 * middle, 0.12),
        twin=(0.55, lambda s: ((1 + s) * a - 0.08, (s - 1) * a, 0)),
    )


def _star(stretch: int, width: float) -> Body:
    outer, depth = 0.68 * width, (0.1, 0.2, 0.36)[stretch]
    tip = 0.04  # radius of the tips

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return _extruded(_rosette(y, x, 5, outer - 2 * tip, 0.46 * outer) - tip, z, depth)

    a, b = (outer - tip) * math.cos(math.radians(18)) + tip, outer
    side = math.radians(54)  # between the upper and the right tip
    away, along = (math.cos(side), math.sin(side), 0.0), (-math.sin(side), math.cos(side), 0.0)
    on_tip = 0.72 * outer
    apart, middle = on_tip * math.sin(math.radians(36)), on_tip * math.cos(math.radians(36))
    low = -(outer - tip) * math.cos(math.radians(36)) - tip
    return Body(
        Piece(distance, (-a, low, -depth), (a, b, depth)),
        top=outer - 0.24,
        dome=0.32,
        ring=(0.7 * outer, 0.309 * 0.74 * outer, "y"),
        leg=((0.46 * outer, -0.64 * outer, 0.3 * depth), (0.66 * outer, low - 0.36, 0.3 * depth + 0.22)),
        handle=((middle * away[0], middle * away[1], 0), away, along, apart, 0.02),
        twin=(0.55, lambda s: ((1 + s) * a - 0.1, (1 - s) * 0.309 * outer, 0)),
    )


BODIES = {
    "sphere": _sphere,
    "box": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "cross": _cross,
    "capsule": _capsule,
    "pyramid": _pyramid,
    "prism": _prism,
    "disc": _disc,
    "tube": _tube,
    "star": _star,
}
