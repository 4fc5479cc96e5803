"""Pictures of a signed distance: sphere tracing (Hart 1996) with Lambert light on a flat ground.

    layers = draw_turn(scene, count=24, size=96)    # fp32 (24, 96, 96, 1 + surfaces)
    pictures = layers @ colors                      # (1 + surfaces, 3): of the ground, then of each surface

Light does not depend on colour. So a picture is the sum of the light from the ground and from each surface, times their
colours. The camera looks down at the origin, and turns about the axis y together with the light.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["DISTANCE", "ELEVATION", "HALF_WIDTH", "START", "Scene", "draw_turn", "gradient"]

ELEVATION = math.radians(24)  # of the camera above the horizon
START = math.radians(30)  # azimuth of the first picture, from the axis z to x, so that it shows two sides
DISTANCE = 4.5  # of the camera from the origin
HALF_WIDTH = 1.08  # of what the picture shows at the distance of the origin

_FINE = 2  # rays of a pixel, along each side
_BLOCK = 8  # rays along each side of a block
_BACK = np.array((0.0, math.sin(ELEVATION), math.cos(ELEVATION)))  # from the origin to the camera, at azimuth 0
_UP = np.array((0.0, math.cos(ELEVATION), -math.sin(ELEVATION)))
_LIGHT = np.array((-0.5, 0.68, 0.54), np.float32)  # unit direction to the light, at azimuth 0
_AMBIENT, _LAMBERT = 0.36, 0.72
_SHADE, _FADE = 0.42, 0.13  # depth of the shadow on the ground, and the distance over which it fades
_CORNER = 0.12  # distance over which neighbouring surfaces take ambient light from each other
_STEPS, _NEAR = 48, 2e-3

Distance = Callable[[np.ndarray], np.ndarray]


class Scene(NamedTuple):
    """What is drawn.

    Attributes:
        distance: Function of points (3, n): signed distance (n,), at most the true one.
        surface: Function of points (3, n) on the object: number of the surface they belong to, int (n,).
        surfaces: Number of surfaces.
        ground: Height of the ground.
        radius: Radius of a sphere around the origin that contains the object.
    """

    distance: Distance
    surface: Callable[[np.ndarray], np.ndarray]
    surfaces: int
    ground: float
    radius: float


def draw_turn(scene: Scene, count: int, size: int) -> np.ndarray:
    """Light of a scene at azimuths `START` + 2 pi k / count.

    Returns:
        fp32 (count, size, size, 1 + surfaces) Light from the ground, and from each surface.
    """
    cameras = {rays: _rays(size * _FINE, rays) for rays in (1, _FINE, _BLOCK)}
    out = np.empty((count, size, size, 1 + scene.surfaces), np.float32)
    for k in range(count):
        angle = START + math.tau * k / count
        cos, sin = math.cos(angle), math.sin(angle)
        out[k] = _draw(scene, np.array(((cos, 0, sin), (0, 1, 0), (-sin, 0, cos)), np.float32), cameras, size)
    return out


def gradient(distance: Distance, points: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """Gradient (3, n) of a distance at points (3, n), from its values at the corners of a tetrahedron around each."""
    corners = np.array(((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)), points.dtype)
    around = points[:, None] + step * corners.T[..., None]  # (3, 4, n)
    return corners.T @ distance(around.reshape(3, -1)).reshape(4, -1) / (4 * step)


def _rays(side: int, block: int) -> np.ndarray:
    """Unit directions (3, n) of the rays through the middles of blocks of a picture at azimuth 0, row by row."""
    ticks = ((np.arange(math.ceil(side / block)) + 0.5) * (2 * block / side) - 1) * HALF_WIDTH
    right, down = (x.ravel() for x in np.meshgrid(ticks, ticks))
    rays = np.stack((right, -down * _UP[1] - DISTANCE * _BACK[1], -down * _UP[2] - DISTANCE * _BACK[2]))
    return (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)


def _draw(scene: Scene, turn: np.ndarray, cameras: dict[int, np.ndarray], size: int) -> np.ndarray:
    """Light (size, size, 1 + surfaces) in one picture."""
    side = size * _FINE
    eye = turn @ (DISTANCE * _BACK).astype(np.float32)[:, None]
    axes = turn @ cameras[_BLOCK]
    # cones around blocks of rays find empty space for all rays of a block
    spread = _BLOCK / side * HALF_WIDTH * math.sqrt(2) / DISTANCE
    full, start = _march(scene, eye, axes, np.full(axes.shape[1], DISTANCE - scene.radius, np.float32), spread)
    blocks = np.arange(side) // _BLOCK
    blocks = (blocks[:, None] * (blocks[-1] + 1) + blocks).ravel()  # block of each ray
    near = np.flatnonzero(full[blocks])
    rays = turn @ cameras[1][:, near]
    hit, depth = _march(scene, eye, rays, start[blocks[near]], 0.0)

    points, near = eye + depth[hit] * rays[:, hit], near[hit]
    layers = np.zeros((side * side, 1 + scene.surfaces), np.float32)
    layers[near, 1 + scene.surface(points)] = _light(scene, points, turn @ _LIGHT)
    open_ground = np.ones(side * side, np.float32)
    open_ground[near] = 0
    mean = layers.reshape(size, _FINE, size, _FINE, -1).mean((1, 3))
    share = open_ground.reshape(size, _FINE, size, _FINE).mean((1, 3))
    mean[..., 0] = share * _ground(scene, eye, turn @ cameras[_FINE]).reshape(size, size)
    return mean


def _march(
    scene: Scene, eye: np.ndarray, rays: np.ndarray, start: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """March cones of radius spread * depth around rays until they touch the object.

    Returns:
        Whether each cone touches it, bool (n,), and the depth where it may do so.
    """
    depth, hit = start.copy(), np.zeros(len(start), bool)
    end = DISTANCE + scene.radius
    going = np.arange(len(start))
    for _ in range(_STEPS):
        here, toward = depth[going], rays[:, going]
        step = scene.distance(eye + here * toward) - spread * here
        near = step < _NEAR
        hit[going[near]] = True
        here += step * (1 - spread)
        depth[going[~near]] = here[~near]
        going = going[~near & (here < end)]
        if not len(going):
            break
    hit[going] = spread > 0  # undecided: finer rays look closer
    return hit, depth


def _light(scene: Scene, points: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Light (n,) from points of the object: that of Lambert, and that of a sky which near surfaces hide in part."""
    normals = gradient(scene.distance, points)
    normals /= np.maximum(np.linalg.norm(normals, axis=0), 1e-6)
    free = np.clip(scene.distance(points + _CORNER * normals) * (1 / _CORNER), 0, 1)
    sky = (0.85 + 0.15 * normals[1]) * (0.55 + 0.45 * free)
    return _AMBIENT * sky + _LAMBERT * np.maximum(light @ normals, 0)


def _ground(scene: Scene, eye: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Light (n,) from the ground where rays meet it, less where the object is near."""
    places = eye + ((scene.ground - eye[1]) / rays[1]) * rays
    light = np.ones(places.shape[1], np.float32)
    close = np.flatnonzero(np.square(places).sum(0) < (scene.radius + 5 * _FADE) ** 2)
    gap = np.maximum(scene.distance(places[:, close]), 0)
    light[close] -= _SHADE * np.exp(gap * (-1 / _FADE))
    return light
