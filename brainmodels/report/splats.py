"""Pictures of point clouds as solid surfaces, by numpy and scipy.

    splats = splats_of(cloud)
    picture = draw_splats(splats, 240, azimuth=0.5, elevation=0.4)  # (240, 240, 3)

Every point is drawn as a small ellipsoid. Its axes are those of the 12 nearest neighbours: flat where they lie in a
plane, long on a thin rod, round where points are noisy. Ellipsoids that overlap are mixed, so light and colour change
smoothly, as in surface splatting (Zwicker et al., 2001). A splat is about as large as the distance between points.

Coordinates are those of `veca.data.solids`: y up, azimuth from the axis z to the axis x.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.cloud_files import check_cloud
from ..errors import need
from ..metrics.shape3d import normalize_cloud

__all__ = ["Splats", "draw_splats", "splats_of"]

NEIGHBOURS = 12
DISTANCE, HALF_WIDTH = 8.0, 2.0  # of the camera, and of what a picture shows there; in root mean square radii
GREY = (0.66, 0.69, 0.72)  # of clouds without colours

_SHORT, _LONG, _FLAT = 1.1, 1.8, 0.1  # limits of the half axes, in distances between points
_SOFT = 0.8  # depth in which surfaces mix, in half axes
_LIGHT, _SKY = np.array([-0.42, 0.69, 0.59]), np.array([0.0, 0.99, 0.15])  # unit directions in the camera's axes
_FRAGMENTS = 1_000_000  # pixels of splats that are computed at a time


@dataclass(frozen=True)
class Splats:
    """A cloud that is ready to be drawn from any side. Lengths are in root mean square radii of the cloud.

    Attributes:
        centers: (N, 3) Centres of the ellipsoids.
        spreads: (N, 3, 3) Matrices S: x^T S^-1 x = 1 for a point x of the surface, seen from the centre.
        longest: (N,) Longest half axis of each.
        colors: (N, 3) Red, green and blue in [0, 1].
        spacing: Distance between neighbouring points, a median.
    """

    centers: np.ndarray
    spreads: np.ndarray
    longest: np.ndarray
    colors: np.ndarray
    spacing: float


class _Fragments(NamedTuple):
    """Pixels of splats, (fragments,) each; `normal` is (fragments, 3) and not of unit length."""

    pixel: np.ndarray
    depth: np.ndarray
    weight: np.ndarray
    row: np.ndarray
    normal: np.ndarray


def splats_of(cloud: np.ndarray, radius: float | None = None) -> Splats:
    """Ellipsoids of a cloud, after it was centred and divided by its root mean square radius.

    Each one is moved onto the plane of its neighbours, which takes away some noise.

    Args:
        cloud: (N, 3) Coordinates, or (N, 6) coordinates and red, green and blue in [0, 1].
        radius: Largest half axis of all splats, in root mean square radii. None takes it from the distance between the
            points at each place.

    Raises:
        AxisError: The cloud has another shape.
        BrainDataError: The cloud cannot be drawn, see `brainmodels.data.cloud_files.check_cloud`.
        ImportError: scipy is not installed.
    """
    cloud = normalize_cloud(check_cloud(cloud), "rms")
    points = cloud[:, :3] - np.quantile(cloud[:, :3], (0.02, 0.98), axis=0).mean(0)  # the middle of the picture
    colors = cloud[:, 3:] if cloud.shape[1] == 6 else np.tile(GREY, (len(points), 1))
    rows = np.unique(points, axis=0, return_index=True)[1]
    points, colors = points[np.sort(rows)], colors[np.sort(rows)]  # copies of a point would hide its neighbours

    lengths, near = _neighbours(points)  # (N, 13), itself first
    spacing = lengths[:, 6] / 1.38  # six points of an even sampling are within 1.38 times the side of its squares
    usual = float(np.median(spacing))
    spacing = spacing.clip(0.5 * usual, 1.3 * usual)[:, None]
    share = np.exp(-0.5 * np.square(lengths / (1.3 * spacing)))
    share /= share.sum(1, keepdims=True)
    mean = np.einsum("nk,nka->na", share, points[near])
    away = points[near] - mean[:, None]
    spread, axes = np.linalg.eigh(np.einsum("nk,nka,nkb->nab", share, away, away))  # axes (N, 3, axis)
    normal = axes[:, :, 0]
    shift = mean - points
    centers = points + 0.3 * shift + 0.7 * normal * (normal * shift).sum(1, keepdims=True)

    half = 1.8 * np.sqrt(spread.clip(0))
    half[:, 1:] = half[:, 1:].clip(_SHORT * spacing, _LONG * spacing)
    half[:, 0] = half[:, 0].clip(_FLAT * spacing[:, 0], spacing[:, 0])
    if radius is not None:
        half *= radius / half[:, 2:]
    spreads = np.einsum("nak,nk,nbk->nab", axes, np.square(half), axes)
    return Splats(centers, spreads, half[:, 2], colors, usual)


def draw_splats(splats: Splats, size: int, azimuth: float, elevation: float) -> np.ndarray:
    """A picture on white, drawn at twice the size and averaged.

    Args:
        splats: Cloud to draw.
        size: Side of the picture in pixels.
        azimuth: Direction of the camera in radians, from the axis z to the axis x.
        elevation: Angle of the camera above the plane of x and z, in radians.

    Returns:
        uint8 (size, size, 3).
    """
    side = 2 * size
    per_unit = side / (2 * HALF_WIDTH)  # pixels
    found = _fragments(splats, _camera(azimuth, elevation), side, per_unit)
    front = np.full(side * side, -np.inf, np.float32)
    np.maximum.at(front, found.pixel, found.depth)
    hidden = (front[found.pixel] - found.depth) / (_SOFT * splats.longest[found.row])
    weight = found.weight * np.exp(-hidden)
    total = np.bincount(found.pixel, weight, side * side)
    values = np.column_stack((splats.colors[found.row], found.normal, found.depth))  # (fragments, 7)
    planes = np.stack([np.bincount(found.pixel, weight * column, side * side) for column in values.T], axis=1)
    planes /= np.maximum(total, 1e-12)[:, None]

    planes, covered = _without_pits(planes.reshape(side, side, 7), total.reshape(side, side) > 0, splats, per_unit)
    normals = _blurred(planes[..., 3:6], max(1.5, 0.8 * splats.spacing * per_unit))[covered]
    light = _light(normals) * _open(planes[..., 6], covered)[covered]
    image = np.ones((side, side, 3))
    image[covered] = planes[covered, :3] * light[:, None]
    image = image.clip(0, 1).reshape(size, 2, size, 2, 3).mean((1, 3))
    return (255 * image).round().astype(np.uint8)


def _camera(azimuth: float, elevation: float) -> np.ndarray:
    """Rotation (3, 3) from the cloud's axes to those of the camera: right, up, towards the camera."""
    cos_a, sin_a, cos_e, sin_e = np.cos(azimuth), np.sin(azimuth), np.cos(elevation), np.sin(elevation)
    return np.array(
        [[cos_a, 0, -sin_a], [-sin_e * sin_a, cos_e, -sin_e * cos_a], [cos_e * sin_a, sin_e, cos_e * cos_a]]
    )


def _fragments(splats: Splats, turn: np.ndarray, side: int, per_unit: float) -> _Fragments:
    """Pixels of all splats but those that are clearly hidden.

    A ray at (x, y) from the centre meets the ellipsoid where M33 z^2 + 2 (M13 x + M23 y) z = 1 - (M11 x^2 + 2 M12 x y +
    M22 y^2), with M = S^-1. The larger root z is in front. An ellipsoid is at least about as thick as a pixel, or rays
    could miss it.
    """
    centers = splats.centers @ turn.T
    order = np.argsort(-centers[:, 2], kind="stable")  # near ones first: what they hide is dropped at once
    order = order[centers[order, 2] < DISTANCE / 2]
    centers = centers[order]
    zoom = per_unit * DISTANCE / (DISTANCE - centers[:, 2])  # pixels per unit at each splat
    wider = np.square(0.45 / zoom)[:, None, None] * np.eye(3)
    forms = np.linalg.inv(turn @ splats.spreads[order] @ turn.T + wider).astype(np.float32)  # M
    middle = side / 2 + centers[:, :2] * zoom[:, None] * (1, -1)
    reach = int(np.ceil((splats.longest[order] * zoom).max())) + 1
    steps = np.arange(-reach, reach + 1)
    down, across = (x.ravel() for x in np.meshgrid(steps, steps, indexing="ij"))
    front = np.full(side * side, -np.inf, np.float32)
    kept, count = [], max(1, _FRAGMENTS // len(down))
    for start in range(0, len(order), count):
        here = slice(start, start + count)
        form, first = forms[here, :, :, None], np.floor(middle[here]).astype(int)
        column, line = first[:, :1] + across, first[:, 1:] + down  # (count, window)
        x = ((column + 0.5 - middle[here, :1]) / zoom[here, None]).astype(np.float32)
        y = ((middle[here, 1:] - line - 0.5) / zoom[here, None]).astype(np.float32)
        slope = form[:, 0, 2] * x + form[:, 1, 2] * y
        rest = 1 - (form[:, 0, 0] * x + 2 * form[:, 0, 1] * y) * x - form[:, 1, 1] * y * y
        root = slope * slope + form[:, 2, 2] * rest
        inside = (root > 0) & (column >= 0) & (column < side) & (line >= 0) & (line < side)
        pixel, local = (line * side + column)[inside], np.nonzero(inside)[0]
        root, x, y, form = root[inside], x[inside], y[inside], forms[here][local]
        up = (np.sqrt(root) - slope[inside]) / form[:, 2, 2]
        depth = centers[here, 2].astype(np.float32)[local] + up
        np.maximum.at(front, pixel, depth)
        row = order[here][local]
        seen = depth > front[pixel] - 4 * _SOFT * splats.longest[row]
        normal = np.stack([form[:, a, 0] * x + form[:, a, 1] * y + form[:, a, 2] * up for a in range(3)], axis=1)[seen]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        weight = (root[seen] / form[seen, 2, 2]) ** 0.8 + 1e-4  # 1 in the middle of an ellipse, 0 at its rim
        kept.append(_Fragments(pixel[seen], depth[seen], weight, row[seen], normal))
    return _Fragments(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))


def _without_pits(
    planes: np.ndarray, covered: np.ndarray, splats: Splats, per_unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Planes with gaps between points filled from around, and what is covered then.

    A gap is narrower than the distance between points and deeper than that distance.
    """
    ndimage = _ndimage()
    width = int(np.clip(1.5 * splats.spacing * per_unit, 7, max(7, len(covered) // 32))) | 1
    depth = np.where(covered, planes[..., 6], -DISTANCE)
    pits = ndimage.grey_closing(depth, size=(width, width)) > depth + splats.spacing
    around = (covered & ~pits).astype(np.float64)
    share = _blurred(around, width / 4)
    pits &= share > 1e-3
    filled = planes.copy()
    filled[pits] = _blurred(planes * around[..., None], width / 4)[pits] / share[pits, None]
    return filled, covered | pits


def _light(normals: np.ndarray) -> np.ndarray:
    """Light (n,) on surfaces with normals (n, 3) of any length: a lamp at the upper left, a sky, and an even part."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return 0.56 + 0.16 * normals @ _SKY + 0.48 * (normals @ _LIGHT).clip(0)


def _open(depth: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Share of light that reaches each pixel: less where the surface around it is nearer to the camera."""
    share_of_light, known = np.ones_like(depth), covered.astype(np.float64)
    for sigma, strength in ((len(depth) / 50, 1.2), (len(depth) / 16, 0.5)):
        share = _blurred(known, sigma)
        mean = _blurred(np.where(covered, depth, 0), sigma) / np.maximum(share, 1e-6)
        share_of_light *= 1 - strength * share * (mean - depth).clip(0, 0.35)
    return share_of_light


def _blurred(planes: np.ndarray, sigma: float) -> np.ndarray:
    """Planes (H, W) or (H, W, k), convolved with a Gaussian of `sigma` pixels."""
    return _ndimage().gaussian_filter(planes, (sigma, sigma, 0)[: planes.ndim], truncate=2.5)


def _neighbours(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows (N, 13) of each point and its nearest neighbours."""
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise need("scipy", "a picture of a point cloud") from error
    lengths, rows = KDTree(points).query(points, NEIGHBOURS + 1)
    return lengths, np.asarray(rows)


def _ndimage():
    try:
        from scipy import ndimage
    except ImportError as error:
        raise need("scipy", "a picture of a point cloud") from error
    return ndimage
