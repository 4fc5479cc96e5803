"""Paints the drawn face from its projected points: which shapes there are, their order and their colours."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .face import IDENTITY, NAMED
from .rendering import Canvas, Patch, fill, glow, smoothing, stroke

__all__ = ["MIDDLE", "SPAN", "paint_face"]

SPAN = 3.0
"""Height and width of the picture in units of the head."""
MIDDLE = (0.0, -0.14)
"""Middle of the picture in units of the head."""

_SKIN = ("#fbdcc6", "#f3c6a0", "#d99f72", "#a96f48", "#70452f")
_SHADE = ("#e9b394", "#dd9f76", "#b87a50", "#834f32", "#4f2e20")
_HAIR = ("#221d24", "#4b2e22", "#8c4526", "#c98b3f", "#ecd28c", "#b9b4ba")
_IRIS = ("#3b2417", "#7a5226", "#5c8a4a", "#3f7fb5", "#5a6f8f")
_BACK = ("#f7d9c4", "#f6e7b4", "#cdebd3", "#c7e3f6", "#ddd3f3")
_SHIRT = ("#2f6f8f", "#c8553d", "#7a4f9a", "#e0a030", "#3f8f6b")
_WHITE, _INK, _TEETH, _CAVE = "#fdfbf7", "#2a1c1c", "#fffdf8", "#54141c"


def _rgb(code: str) -> Tensor:
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _blend(codes: tuple[str, ...], place: Tensor) -> Tensor:
    """Colours (n, 3) between the stops of a palette, at places (n,) in [-1, 1]."""
    stops = torch.stack([_rgb(code) for code in codes])
    at = (place.clamp(-1, 1) + 1) / 2 * (len(codes) - 1)
    weight = (1 - (at[:, None] - torch.arange(len(codes))).abs()).clamp(min=0)
    return weight @ stops


@lru_cache(maxsize=256)
def _curve(count: int, parts: int, closed: bool, corners: tuple[int, ...]) -> np.ndarray:
    return smoothing(count, parts, closed, corners).numpy()


def _pair(name: str) -> tuple[str, str]:
    """Names of the left and the right part."""
    return f"{name}_left", f"{name}_right"


def _between(upper: Tensor, lower: Tensor) -> Tensor:
    """Outline of the area between two lines (T, n, 2) that run from left to right."""
    return torch.cat([upper, lower.flip(1)], 1)


class _Painter:
    """Shapes of one chunk of frames, in pixels."""

    def __init__(self, points: dict[str, Tensor], named: Tensor, identity: Tensor, size: int) -> None:
        self.points, self.named, self.size = points, named, size
        self.unit = size / SPAN
        self.parts = 2 if size <= 40 else 3 if size <= 100 else 6
        self.identity = {name: identity[:, i] for i, name in enumerate(IDENTITY)}
        self.canvas = Canvas(self._background())

    def strength(self, component: str) -> Tensor:
        """How much a component is used (T,), 0 to 1."""
        return self.named[:, NAMED.index(component)].clamp(0, 1)

    def smooth(self, points: Tensor, closed: bool = True, corners: tuple[int, ...] = ()) -> Tensor:
        """Points of a smooth curve through the control points (T, n, 2)."""
        return torch.from_numpy(_curve(points.shape[1], self.parts, closed, corners)) @ points

    def shape(self, *names: str, corners: tuple[int, ...] = ()) -> Patch:
        """Coverage of groups of points that are closed outlines."""
        return fill(*(self.smooth(self.points[name], True, corners) for name in names))

    def line(self, width: float, *names: str) -> Patch:
        """Coverage of groups of points that are lines, with the width in units of the head."""
        return stroke(width * self.unit, *(self.smooth(self.points[name], False) for name in names))

    def glow(self, center: Tensor, rx: float, ry: float) -> Patch:
        return glow(center, (rx * self.unit, ry * self.unit), self.size)

    def _background(self) -> Tensor:
        color = _blend(_BACK, self.identity["surroundings"])
        y = (torch.arange(self.size) + 0.5) / self.size
        fade = torch.stack([1.03 - 0.14 * y] * 3)
        return (color[:, :, None, None] * fade[None, :, :, None]).clamp(0, 1).expand(-1, -1, -1, self.size)

    def at(self, x: float, y: float) -> Tensor:
        """A fixed place of the picture in pixels, (1, 2), from units of the head."""
        return torch.tensor([[(x - MIDDLE[0]) / SPAN + 0.5, 0.5 - (y - MIDDLE[1]) / SPAN]]) * self.size


def paint_face(points: dict[str, Tensor], named: Tensor, identity: Tensor, size: int) -> Tensor:
    """Paint frames from back to front.

    Args:
        points: Points (T, n, 2) of each group in pixels.
        named: (T, 12) Named components, which set how deep the folds of the skin are.
        identity: (T or 1, 8) Identity numbers.
        size: Height and width in pixels.

    Returns:
        (T or 1, 3, size, size) Pictures in [0, 1].
    """
    painter = _Painter(points, named, identity, size)
    head = _paint_head(painter)
    _paint_cheeks(painter, head)
    _paint_eyes(painter)
    _paint_nose(painter)
    _paint_mouth(painter)
    _paint_hair(painter, head)
    hair = _blend(_HAIR, painter.identity["hair_color"])
    brows = painter.shape(*_pair("brow"), corners=(0, 4, 8))
    painter.canvas.paint(brows, hair * 0.42 + _rgb("#4a2f24") * 0.36)
    return painter.canvas.pixels.clamp(0, 1)


def _paint_head(p: _Painter) -> Patch:
    """Hair behind, clothes, neck, ears and the face without features. Returns the outline of the face."""
    paint, hair = p.canvas.paint, _blend(_HAIR, p.identity["hair_color"])
    skin, shade = _blend(_SKIN, p.identity["skin_tone"]), _blend(_SHADE, p.identity["skin_tone"])
    shirt = _blend(_SHIRT, p.identity["surroundings"])
    paint(p.glow(p.at(0, 0.1), 1.7, 1.7), torch.ones(1, 3), 0.45)
    back = p.shape("back")
    paint(back, hair * 0.72)
    torso = p.shape("torso")
    paint(torso, shirt)
    paint(p.glow(p.at(0.95, -1.85), 0.7, 0.7), shirt * 0.7, 0.5, torso)
    neck = p.shape("neck")
    paint(neck, skin)
    head = p.shape("head")
    paint(head.lowered(0.13 * p.unit), shade, 0.75, neck)
    paint(p.shape(*_pair("ear")), skin * 0.97)
    paint(p.line(0.03, *_pair("ear_line")), shade, 0.8)
    paint(head, skin)
    return head


def _paint_cheeks(p: _Painter, head: Patch) -> None:
    """Light and shade of the face, blush, and the folds that expressions make."""
    paint = p.canvas.paint
    shade = _blend(_SHADE, p.identity["skin_tone"])
    blush = shade * 0.55 + torch.tensor([0.95, 0.36, 0.36]) * 0.45
    center = p.points["tip"][:, 0]
    side = torch.tensor([[0.78, 0.12]]) * p.unit
    paint(p.glow(center + side * torch.tensor([1.0, 0.4]), 0.42, 1.15), shade, 0.55, head)
    paint(p.glow(center - side * torch.tensor([0.35, 6.3]), 0.5, 0.3), torch.ones(1, 3), 0.16, head)
    fold = 0.04 + 0.6 * p.strength("corner_up") + 0.3 * p.strength("nose_wrinkle")
    for name in _pair("cheek"):
        paint(p.glow(p.points[name][:, 0], 0.24, 0.19), blush, 0.5, head)
    paint(p.line(0.026, *_pair("fold")), shade * 0.86, fold)
    paint(p.line(0.022, *_pair("bag")), shade * 0.9, 0.22 + 0.5 * p.strength("cheek_raise"))
    paint(p.line(0.028, *_pair("furrow")), shade * 0.75, p.strength("brow_furrow") * 0.9)
    paint(p.line(0.026, *_pair("wrinkle")), shade * 0.8, p.strength("nose_wrinkle") * 0.9)
    paint(p.line(0.026, "forehead"), shade * 0.95, p.strength("brow_raise") * 0.6)
    paint(p.line(0.03, "chin"), shade, 0.4 + 0.4 * p.strength("press"))


def _paint_eyes(p: _Painter) -> None:
    paint, down = p.canvas.paint, torch.tensor([0.0, 1.0]) * p.unit
    shade = _blend(_SHADE, p.identity["skin_tone"])
    iris = _blend(_IRIS, p.identity["eyes"])
    lower = [p.smooth(p.points[name], False) for name in _pair("lid_lower")]
    upper = [p.smooth(p.points[name], False) for name in _pair("lid_upper")]
    for side, edge in enumerate(upper):  # a lid that is pushed too far stops at the other lid
        upper[side] = torch.stack([edge[..., 0], torch.minimum(edge[..., 1], lower[side][..., 1])], -1)
    crease = [p.smooth(p.points[name], False) for name in _pair("crease")]
    paint(fill(*map(_between, upper, crease)), shade, 0.55)
    opening = fill(*map(_between, upper, lower))
    paint(opening, _rgb(_WHITE)[None])
    paint(p.shape(*_pair("iris")), iris * 0.6, 1.0, opening)
    for name in _pair("pupil"):
        center = p.points[name].mean(1)
        paint(p.glow(center + 0.035 * down, 0.1, 0.09), iris * 1.25 + 0.06, 0.9, opening)
    paint(p.shape(*_pair("pupil")), _rgb("#120c0e")[None], 1.0, opening)
    for edge in upper:
        paint(p.glow(edge.mean(1) - 0.01 * down, 0.22, 0.06), _rgb(_INK)[None], 0.25, opening)
    paint(p.shape(*_pair("glint")), torch.ones(1, 3), 0.95, opening)
    paint(stroke(0.018 * p.unit, *lower), shade * 0.7, 0.7)
    paint(stroke(0.02 * p.unit, *crease), shade * 0.72, 0.8)
    paint(stroke(0.042 * p.unit, *upper), _rgb(_INK)[None])


def _paint_nose(p: _Painter) -> None:
    paint = p.canvas.paint
    shade = _blend(_SHADE, p.identity["skin_tone"])
    paint(p.glow(p.points["bridge"].mean(1), 0.12, 0.3), shade, 0.3)
    paint(p.glow(p.points["tip"][:, 0], 0.1, 0.09), torch.ones(1, 3), 0.22)
    paint(p.line(0.036, "nose"), shade * 0.78)
    paint(p.shape(*_pair("nostril")), shade * 0.5, 0.75)


def _paint_mouth(p: _Painter) -> None:
    paint, points = p.canvas.paint, p.points
    shade, skin = _blend(_SHADE, p.identity["skin_tone"]), _blend(_SKIN, p.identity["skin_tone"])
    lip = skin * 0.45 + torch.tensor([0.8, 0.26, 0.29]) * 0.55
    left, right = points["lips_corner"][:, :1], points["lips_corner"][:, 1:]

    def row(name: str) -> Tensor:
        return p.smooth(torch.cat([left, points[f"lips_{name}"], right], 1), False)

    top, upper, lower, bottom = (row(name) for name in ("upper_outer", "upper_inner", "lower_inner", "lower_outer"))
    gap = lower[..., 1] - upper[..., 1]
    middle = (lower + upper) / 2
    upper = torch.where(gap[..., None] < 0, middle, upper)
    lower = torch.where(gap[..., None] < 0, middle, lower)
    inside = fill(_between(upper, lower))
    paint(p.glow(bottom.mean(1) + torch.tensor([0.0, 0.06]) * p.unit, 0.24, 0.09), shade, 0.45)
    paint(inside, _rgb(_CAVE)[None])
    paint(p.shape("tongue"), torch.tensor([[0.86, 0.36, 0.4]]), 1.0, inside)
    lit = 1 - 0.75 * p.strength("round")  # round lips stand out and cast a shadow on the teeth
    paint(p.shape("teeth_lower"), _rgb(_TEETH)[None] * 0.93, lit, inside)
    paint(p.shape("teeth_upper"), _rgb(_TEETH)[None], lit, inside)
    paint(fill(_between(top, upper)), lip * 0.88)
    under = fill(_between(lower, bottom))
    paint(under, lip)
    paint(p.glow((lower + bottom).mean(1) / 2, 0.12, 0.035), torch.ones(1, 3), 0.3, under)
    paint(stroke(0.024 * p.unit, upper), lip * 0.42)
    paint(stroke(0.018 * p.unit, lower), lip * 0.5, 0.6)


def _paint_hair(p: _Painter, head: Patch) -> None:
    hair = _blend(_HAIR, p.identity["hair_color"])
    front = p.shape("front", corners=(5, 6, 16, 17))
    shade = _blend(_SHADE, p.identity["skin_tone"])
    p.canvas.paint(front.lowered(0.05 * p.unit), shade, 0.55, head)
    p.canvas.paint(front, hair)
    strands = p.line(0.03, "strand_a", "strand_b", "strand_c", "strand_d")
    p.canvas.paint(strands, hair * 0.68, 0.75, front)
    middle = p.points["front"].mean(1)
    p.canvas.paint(p.glow(middle - torch.tensor([0.25, 0.33]) * p.unit, 0.45, 0.16), hair * 0.6 + 0.4, 0.4, front)
