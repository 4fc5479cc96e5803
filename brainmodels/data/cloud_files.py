"""Point clouds as files that other programs open: PLY and GLB.

    export_cloud(cloud, "decoded.ply")                          # points with uchar colours
    export_cloud(cloud, "decoded.glb", points_as="octahedra")   # small solids, for viewers that draw tiny points

| mistake | error |
|---|---|
| not (N, 3) or (N, 6) | `AxisError` |
| points or colours that are not finite | `BrainDataError` |
| fewer than 16 distinct points | `BrainDataError` |
| colours outside [0, 1] | `BrainDataError` |
"""

from pathlib import Path

import numpy as np

from ..errors import AxisError, BrainDataError, check_choice, need

__all__ = ["FEWEST", "KINDS", "check_cloud", "export_cloud"]

FEWEST = 16  # distinct points of a cloud
KINDS = ("points", "octahedra")

_AROUND = 6  # neighbours of a point in an even sampling of a surface
_CORNERS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=np.float64)
_FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


def check_cloud(cloud: np.ndarray, what: str = "a cloud") -> np.ndarray:
    """The cloud in fp64, if it can be drawn and stored.

    Args:
        cloud: (N, 3) Coordinates, or (N, 6) coordinates and red, green and blue in [0, 1].
        what: What the cloud is, for the message, such as "the decoded cloud of 'solid0:07_03'".

    Raises:
        AxisError: Another shape.
        BrainDataError: Values that are not finite, fewer than 16 distinct points, or colours outside [0, 1].
    """
    cloud = np.asarray(cloud, dtype=np.float64)
    if cloud.ndim != 2 or cloud.shape[1] not in (3, 6):
        raise AxisError(f"expected {what} of shape (N, 3) or (N, 6), got {cloud.shape}")
    undefined = int((~np.isfinite(cloud)).any(1).sum())
    if undefined:
        raise BrainDataError(f"expected {what} of finite points, got {undefined} of {len(cloud)} that are not")
    distinct = len(np.unique(cloud[:, :3], axis=0))
    if distinct < FEWEST:
        raise BrainDataError(f"expected {what} of {FEWEST} or more distinct points, got {distinct}")
    colors = cloud[:, 3:]
    if colors.size and not (colors.min() >= 0 and colors.max() <= 1):
        raise BrainDataError(f"expected {what} with colours in [0, 1], got {colors.min():.3g} to {colors.max():.3g}")
    return cloud


def export_cloud(cloud: np.ndarray, path: str | Path, points_as: str = "points") -> Path:
    """Write a cloud as a PLY or GLB file, with colours of 8 bits where it has colours.

    Many viewers draw points one pixel wide, and some lose their colours (KhronosGroup/glTF-Blender-IO#2452, #2744).
    Octahedra are triangles, which all viewers draw. They are 6 vertices and 8 triangles for each point.

    Args:
        cloud: (N, 3) Coordinates, or (N, 6) coordinates and red, green and blue in [0, 1]. Coordinates are written as
            they are, in fp32. Colours are written as they are, in steps of 1 / 255.
        path: File to write; the suffix is ".ply" or ".glb". Its folder is made where it does not exist.
        points_as: "points", or "octahedra" whose radius is half the median distance to the sixth neighbour.

    Returns:
        The path.

    Raises:
        AxisError: The cloud has another shape.
        BrainDataError: The cloud cannot be stored, see `check_cloud`; another suffix; `points_as` is unknown.
        ImportError: trimesh is not installed, or scipy, which octahedra need.
    """
    cloud, path = check_cloud(cloud), Path(path)
    check_choice("points_as", points_as, KINDS)
    check_choice("the suffix of a cloud's file", path.suffix.lower(), (".ply", ".glb"))
    try:
        import trimesh
    except ImportError as error:
        raise need("trimesh", "a file of a point cloud") from error
    points, colors = cloud[:, :3], None
    if cloud.shape[1] == 6:
        opaque = np.ones((len(cloud), 1))
        colors = (255 * np.hstack((cloud[:, 3:], opaque))).round().astype(np.uint8)  # (N, 4)
    if points_as == "points":
        shape = trimesh.PointCloud(points, colors)
    else:
        vertices, faces = _octahedra(points)
        corners = None if colors is None else colors.repeat(len(_CORNERS), 0)
        shape = trimesh.Trimesh(vertices, faces, vertex_colors=corners, process=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape.export(path, file_type=path.suffix.lower()[1:])
    return path


def _octahedra(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (6 N, 3) and triangles (8 N, 3) of an octahedron around each of N points."""
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise need("scipy", "the size of octahedra") from error
    distinct = np.unique(points, axis=0)
    apart = KDTree(distinct).query(distinct, _AROUND + 1)[0][:, -1]
    vertices = points[:, None] + 0.5 * np.median(apart) * _CORNERS  # (N, 6, 3)
    faces = _FACES + len(_CORNERS) * np.arange(len(points))[:, None, None]  # (N, 8, 3)
    return vertices.reshape(-1, 3), faces.reshape(-1, 3)
