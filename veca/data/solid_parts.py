"""Signed distances of the parts that touch the bodies of solids.

part = PARTS["handle"](body, 1.0)    # a body of `solid_bodies` and the size of the part
d = part.distance(x, y, z)           # below 0 inside
"""

import numpy as np

from .solid_bodies import ROUND, Body, Piece, length

__all__ = ["PARTS"]


def _none(body: Body, size: float) -> None:
    return None


def _ring(body: Body, size: float) -> Piece:
    radius, height, axis = body.ring
    thick = 0.08 * size

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        y = y - height
        along, *around = {"x": (x, y, z), "y": (y, x, z), "z": (z, x, y)}[axis]
        return length(length(*around) - radius, along) - thick

    rx, ry, rz = (thick if axis == name else radius + thick for name in "xyz")
    return Piece(distance, (-rx, height - ry, -rz), (rx, height + ry, rz))


def _legs(body: Body, size: float) -> Piece:
    start, end = body.leg
    end = (end[0], start[1] + (end[1] - start[1]) * size, end[2])
    thick = 0.075 * size
    dx, dy, dz = (last - first for first, last in zip(start, end, strict=True))
    square = dx * dx + dy * dy + dz * dz

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = np.abs(x) - start[0], y - start[1], np.abs(z) - start[2]
        share = np.clip((x * dx + y * dy + z * dz) * (1 / square), 0, 1)
        return length(x - share * dx, y - share * dy, z - share * dz) - thick

    x, z = max(start[0], end[0]) + thick, max(start[2], end[2]) + thick
    return Piece(distance, (-x, end[1] - thick, -z), (x, start[1] + thick, z))


def _handle(body: Body, size: float) -> Piece:
    middle, away, along, apart, arms = body.handle
    thick = 0.065 * size
    across = tuple(np.cross(away, along).tolist())

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = x - middle[0], y - middle[1], z - middle[2]
        out, side, depth = (x * u + y * v + z * w for u, v, w in (away, along, across))
        out = np.where(out > 0, np.maximum(out - arms, 0), out)
        side = np.abs(side)
        bow = length(length(out, side) - apart, depth)
        return np.where(out >= 0, bow, length(out, side - apart, depth)) - thick

    angles = np.linspace(-np.pi / 2, np.pi / 2, 65)[:, None]
    bow = middle + np.multiply(away, arms + apart * np.cos(angles)) + np.multiply(along, apart * np.sin(angles))
    curve = np.concatenate((bow, bow[[0, -1]] - np.multiply(away, arms)))
    (lx, ly, lz), (hx, hy, hz) = (curve.min(0) - thick).tolist(), (curve.max(0) + thick).tolist()
    return Piece(distance, (lx, ly, lz), (hx, hy, hz))


def _cap(body: Body, size: float) -> Piece:
    radius, base = body.dome * size - ROUND, body.top + ROUND

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        around, y = length(x, z), y - base
        above = np.maximum(length(around, y) - radius, -y)
        below = length(np.maximum(around - radius, 0), y)
        return np.where(y >= 0, above, below) - ROUND

    reach = radius + ROUND
    return Piece(distance, (-reach, body.top, -reach), (reach, base + reach, reach))


def _twin(body: Body, size: float) -> Piece:
    scale, place = body.twin
    scale *= size
    x0, y0, z0 = place(scale)

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return body.piece.distance((x - x0) / scale, (y - y0) / scale, (z - z0) / scale) * scale

    (lx, ly, lz), (hx, hy, hz) = body.piece.low, body.piece.high
    low = x0 + scale * lx, y0 + scale * ly, z0 + scale * lz
    return Piece(distance, low, (x0 + scale * hx, y0 + scale * hy, z0 + scale * hz))


PARTS = {"none": _none, "ring": _ring, "legs": _legs, "handle": _handle, "cap": _cap, "twin": _twin}
