"""Drawing filled polygons and strokes with one-pixel antialiasing. Everything is differentiable in the points.

    canvas = Canvas(background)  # (T, 3, size, size)
    canvas.paint(fill(points), color)
    picture = canvas.pixels

The coverage of a pixel is `clamp(0.5 - d, 0, 1)`, where d is the signed distance of its centre to the outline.
Only pixels near an edge need d, so distances are computed in a small window around each edge. The sign comes from the
crossings of each row of pixels. Shapes that are the same in all frames are drawn once.

Points are in pixels: x to the right and y down from the top left corner of the picture.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Canvas", "Patch", "fill", "glow", "smoothing", "stroke"]

_TINY = 1e-12


@dataclass(frozen=True)
class Patch:
    """Coverage of a shape in a rectangle of the picture.

    Attributes:
        alpha: (T or 1, h, w) Coverage in [0, 1].
        left, top: Place of the rectangle in the picture. The rectangle may reach beyond the picture.
    """

    alpha: Tensor
    left: int
    top: int

    def crop(self, left: int, top: int, right: int, bottom: int) -> Tensor:
        """Coverage in a rectangle of the picture that lies within the patch."""
        return self.alpha[:, top - self.top : bottom - self.top, left - self.left : right - self.left]

    def lowered(self, distance: float) -> "Patch":
        """The same shape further down by a number of pixels, for shadows."""
        whole = math.floor(distance)
        part = distance - whole
        padded = F.pad(self.alpha, (0, 0, 1, 1))
        return Patch((1 - part) * padded[:, 1:] + part * padded[:, :-1], self.left, self.top + whole)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the patch in the picture."""
        return self.left, self.top, self.left + self.alpha.shape[2], self.top + self.alpha.shape[1]


def smoothing(count: int, parts: int, closed: bool, corners: tuple[int, ...] = ()) -> Tensor:
    """Matrix that turns control points into the points of a smooth curve through them (Catmull-Rom).

    Args:
        count: Number of control points.
        parts: Number of edges between two control points.
        closed: Whether the last point is joined to the first.
        corners: Control points at which the curve may turn sharply.

    Returns:
        (count * parts, count), or ((count - 1) * parts + 1, count) for an open curve.
    """
    sharp = set(corners) if closed else set(corners) | {0, count - 1}
    unit, rows = torch.eye(count, dtype=torch.float64), []
    for i in range(count if closed else count - 1):
        j = (i + 1) % count
        before = 2 * unit[i] - unit[j] if i in sharp else unit[i - 1]
        after = 2 * unit[j] - unit[i] if j in sharp else unit[(j + 1) % count]
        for part in range(parts):
            u = part / parts
            rows.append(
                0.5
                * (
                    2 * unit[i]
                    + (unit[j] - before) * u
                    + (2 * before - 5 * unit[i] + 4 * unit[j] - after) * u**2
                    + (3 * unit[i] - before - 3 * unit[j] + after) * u**3
                )
            )
    if not closed:
        rows.append(unit[-1])
    return torch.stack(rows).float()


def fill(*outlines: Tensor) -> Patch:
    """Coverage of the inside of closed polygons that do not overlap.

    A shape thinner than a pixel is drawn paler, so that its sum over pixels stays near its area.

    Args:
        outlines: (T, N, 2) Corners of each polygon in pixels.
    """
    outlines = _still(outlines)
    start = torch.cat(outlines, 1)
    stop = torch.cat([points.roll(-1, 1) for points in outlines], 1)
    along, length = _directions(start, stop)
    area = 0.5 * (start[..., 0] * stop[..., 1] - start[..., 1] * stop[..., 0])
    area = torch.stack([part.sum(1).abs() for part in area.split([points.shape[1] for points in outlines], 1)]).sum(0)
    width = (2 * area / length.sum((1, 2)).clamp(min=1e-6)).clamp(max=1)
    windows = _windows(start, stop, 0.5)
    distance = _distances(windows, start, along, length)
    inside = _inside(windows, start.detach(), stop.detach())
    alpha = (0.5 + torch.where(inside, distance, -distance)).clamp(0, 1)
    return Patch(alpha * (4 * width / (1 + width).square())[:, None, None], windows.left, windows.top)


def stroke(width: float, *lines: Tensor) -> Patch:
    """Coverage of open lines with round ends. Lines thinner than a pixel are drawn one pixel wide and paler.

    Args:
        width: Width of the lines in pixels.
        lines: (T, N, 2) Points of each line in pixels.
    """
    lines = _still(lines)
    start, stop = torch.cat([points[:, :-1] for points in lines], 1), torch.cat([points[:, 1:] for points in lines], 1)
    along, length = _directions(start, stop)
    half = max(width, 1.0) / 2
    windows = _windows(start, stop, half + 0.5)
    distance = _distances(windows, start, along, length, half + 1.0)
    return Patch((0.5 + half - distance).clamp(0, 1) * min(width, 1.0), windows.left, windows.top)


def glow(center: Tensor, radius: tuple[float, float], size: int) -> Patch:
    """A soft spot, `exp(-2 r^2)` with r the distance from the centre in radii.

    Args:
        center: (T, 2) Centres in pixels.
        radius: Radius along x and along y in pixels.
        size: Height and width of the picture in pixels.
    """
    (center,) = _still((center,))
    low, high = center.detach().amin(0), center.detach().amax(0)
    left, right = (_inside_picture(v, size) for v in (low[0] - 1.6 * radius[0], high[0] + 1.6 * radius[0] + 1))
    top, bottom = (_inside_picture(v, size) for v in (low[1] - 1.6 * radius[1], high[1] + 1.6 * radius[1] + 1))
    x = (torch.arange(left, right) + 0.5 - center[:, :1]) / radius[0]
    y = (torch.arange(top, bottom) + 0.5 - center[:, 1:]) / radius[1]
    return Patch((-2 * y.square()).exp()[:, :, None] * (-2 * x.square()).exp()[:, None, :], left, top)


class Canvas:
    """A picture that is painted from back to front.

    Args:
        pixels: (T or 1, 3, size, size) The background, in [0, 1].
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels.clone()

    def paint(self, patch: Patch, color: Tensor, opacity: Tensor | float = 1.0, within: Patch | None = None) -> None:
        """Paint a shape over the picture.

        Args:
            patch: Coverage of the shape.
            color: (T or 1, 3) Colour in [0, 1].
            opacity: (T or 1,) Opacity in [0, 1], or one number.
            within: Shape that cuts off what lies outside it.
        """
        boxes = [patch.box, (0, 0, self.pixels.shape[3], self.pixels.shape[2])] + ([within.box] if within else [])
        left, top = (max(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (min(box[i] for box in boxes) for i in (2, 3))
        if left >= right or top >= bottom:
            return
        alpha = patch.crop(left, top, right, bottom)
        if within is not None:
            alpha = alpha * within.crop(left, top, right, bottom)
        alpha = alpha * (opacity[:, None, None] if isinstance(opacity, Tensor) else opacity)
        frames = max(len(alpha), len(color), len(self.pixels))
        if frames > len(self.pixels):
            self.pixels = self.pixels.expand(frames, -1, -1, -1).contiguous()
        elif torch.is_grad_enabled():
            self.pixels = self.pixels.clone()
        behind = self.pixels[:, :, top:bottom, left:right]
        mixed = behind + alpha[:, None] * (color[:, :, None, None] - behind)
        self.pixels[:, :, top:bottom, left:right] = mixed


@dataclass(frozen=True)
class _Windows:
    """Windows of pixels around edges, and the rectangle that holds them all.

    `column` (T, N, kx) and `row` (T, N, ky) are pixel numbers within the rectangle.
    """

    column: Tensor
    row: Tensor
    left: int
    top: int
    width: int
    height: int


def _still(shapes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One frame instead of many, where all frames are the same and no gradient is asked for."""
    if len(shapes[0]) > 1 and not any(points.requires_grad for points in shapes):
        if all(bool((points == points[:1]).all()) for points in shapes):
            return tuple(points[:1] for points in shapes)
    return shapes


def _inside_picture(value: Tensor, size: int) -> int:
    return int(min(max(math.floor(float(value)), 0), size))


def _directions(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (T, N, 2) and lengths (T, N, 1) of edges. Edges of no length get any direction."""
    edge = stop - start
    length = (edge.square().sum(-1, keepdim=True) + _TINY).sqrt()
    return torch.where(length > 1e-4, edge / length, edge.new_tensor([1.0, 0.0])), length


def _windows(start: Tensor, stop: Tensor, margin: float) -> _Windows:
    start, stop = start.detach(), stop.detach()
    low = torch.minimum(start, stop) - margin
    first = (low - 0.5).ceil().long()
    reach = ((start - stop).abs().amax((0, 1)) + 2 * margin).floor().long() + 1
    left, top = (first[..., axis].min() for axis in (0, 1))
    width, height = (int(first[..., axis].max() + reach[axis] + 1 - first[..., axis].min()) for axis in (0, 1))
    column = (first[..., 0] - left)[..., None] + torch.arange(int(reach[0]))
    row = (first[..., 1] - top)[..., None] + torch.arange(int(reach[1]))
    return _Windows(column, row, int(left), int(top), width, height)


def _distances(windows: _Windows, start: Tensor, along: Tensor, length: Tensor, far: float = 1.0) -> Tensor:
    """Distance of each pixel of the rectangle to the nearest edge, (T, h, w). Beyond the windows it is `far`.

    Edges have start points (T, N, 2), directions `along` (T, N, 2) of length one, and lengths (T, N, 1).
    """
    x = windows.column + (windows.left + 0.5) - start[..., :1]
    y = windows.row + (windows.top + 0.5) - start[..., 1:]
    ahead = (x * along[..., :1])[:, :, None, :] + (y * along[..., 1:])[:, :, :, None]
    aside = (y * along[..., :1])[:, :, :, None] - (x * along[..., 1:])[:, :, None, :]
    beyond = ahead - torch.minimum(ahead.clamp(min=0), length[..., None])
    square = torch.addcmul(beyond.square(), aside, aside)
    frames, area = len(start), windows.width * windows.height
    place = (windows.row * windows.width)[:, :, :, None] + windows.column[:, :, None, :]
    place = place + torch.arange(frames)[:, None, None, None] * area
    flat = square.new_full((frames * area,), far**2)
    nearest = flat.scatter_reduce(0, place.reshape(-1), square.reshape(-1), "amin")
    return (nearest + _TINY).sqrt().view(frames, windows.height, windows.width)


def _inside(windows: _Windows, start: Tensor, stop: Tensor) -> Tensor:
    """Whether the centre of each pixel lies inside the polygon (T, h, w), by the winding number of its row."""
    y = windows.row + (windows.top + 0.5)
    above, below = start[..., 1:] <= y, stop[..., 1:] <= y
    rise = stop[..., 1:] - start[..., 1:]
    slope = (stop[..., :1] - start[..., :1]) / torch.where(rise == 0, torch.ones_like(rise), rise)
    crossing = start[..., :1] + (y - start[..., 1:]) * slope - (windows.left + 0.5)
    column = crossing.ceil().long().clamp(0, windows.width - 1)
    turn = above.to(torch.float32) - below.to(torch.float32)
    frames, area = len(start), windows.width * windows.height
    place = windows.row * windows.width + column + torch.arange(frames)[:, None, None] * area
    flat = torch.zeros(frames * area).scatter_add_(0, place.reshape(-1), turn.reshape(-1))
    return flat.view(frames, windows.height, windows.width).cumsum(-1).abs() > 0.5
