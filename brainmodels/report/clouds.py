"""Pictures of point clouds: single ones, turntables and sheets with rows of clouds.

    picture = render_cloud(cloud)                       # (160, 160, 3) uint8, on white
    turntable(cloud, "decoded.gif")                     # one turn in 24 frames
    cloud_grid([PictureRow("true", true), PictureRow("decoded", decoded)], "clouds.png")

The camera and the light are the same for all clouds. Each cloud is centred and divided by its root mean square radius.
So pictures of a true and of a decoded cloud compare. Files for other programs come from
`brainmodels.data.cloud_files.export_cloud`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import AxisError, BrainDataError
from .figures import PictureRow, picture_grid
from .splats import draw_splats, splats_of

__all__ = ["AZIMUTH", "ELEVATION", "PictureRow", "cloud_grid", "render_cloud", "turntable"]

AZIMUTH, ELEVATION = math.radians(30), math.radians(24)  # of the first picture of `veca.data.solids`
_SECONDS = 3.0  # of one turn


def render_cloud(
    cloud: np.ndarray,
    size: int = 160,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    radius: float | None = None,
) -> np.ndarray:
    """Draw a cloud as a solid surface on white. Nearer points hide farther ones.

    Args:
        cloud: (N, 3) Coordinates with y up, or (N, 6) coordinates and red, green and blue in [0, 1]. Clouds without
            colours are grey.
        size: Side of the picture in pixels.
        azimuth: Direction of the camera in radians, from the axis z to the axis x.
        elevation: Angle of the camera above the plane of x and z, in radians.
        radius: Radius of a splat in root mean square radii of the cloud. None takes it from the distance between
            points.

    Returns:
        uint8 (size, size, 3).

    Raises:
        AxisError: The cloud has another shape.
        BrainDataError: The cloud cannot be drawn, see `brainmodels.data.cloud_files.check_cloud`; or `size` is below 8.
        ImportError: scipy is not installed.
    """
    _check_size(size)
    return draw_splats(splats_of(cloud, radius), size, azimuth, elevation)


def turntable(
    cloud: np.ndarray,
    path: str | Path,
    frames: int = 24,
    size: int = 160,
    elevation: float = ELEVATION,
) -> Path:
    """Write a GIF in which the camera goes once around a cloud in three seconds, without an end.

    Args:
        cloud: (N, 3) Coordinates with y up, or (N, 6) coordinates and red, green and blue in [0, 1].
        path: File to write. Its folder is made where it does not exist.
        frames: Number of pictures of a turn. Frame 0 is `render_cloud(cloud, size)`, up to the 256 colours of a GIF.
        size: Side of the picture in pixels.
        elevation: Angle of the camera above the plane of x and z, in radians.

    Returns:
        The path.

    Raises:
        AxisError: The cloud has another shape.
        BrainDataError: The cloud cannot be drawn, `size` is below 8, or there are fewer than two frames.
        ImportError: scipy is not installed.
    """
    _check_size(size)
    if frames < 2:
        raise BrainDataError(f"expected two or more frames of a turn, got {frames}")
    splats, path = splats_of(cloud), Path(path)
    turns = [AZIMUTH + math.tau * k / frames for k in range(frames)]
    pictures = [draw_splats(splats, size, azimuth, elevation) for azimuth in turns]
    colors = Image.fromarray(np.concatenate(pictures)).quantize(256)  # the same colours for all frames: no flicker
    images = [Image.fromarray(picture).quantize(palette=colors, dither=Image.Dither.NONE) for picture in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 * _SECONDS / frames)
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)
    return path


def cloud_grid(rows: Sequence[PictureRow], path: str | Path, size: int = 240, **camera: float) -> None:
    """Draw a sheet of clouds, with the names of rows at the left and captions below.

    Args:
        rows: Rows of clouds (N, 3 or 6). Pictures (H, W, 3), uint8, may stand between them, such as what was shown.
        path: PNG file to write.
        size: Side of each drawn cloud in pixels.
        camera: Further arguments of `render_cloud`: azimuth, elevation, radius.

    Raises:
        AxisError: There is no cloud in a row, or one has another shape.
        BrainDataError: A cloud cannot be drawn.
        ImportError: scipy or matplotlib is not installed.
    """
    if not rows or not all(len(row.pictures) for row in rows):
        raise AxisError("expected rows of one or more clouds, got none")
    drawn = [
        row._replace(pictures=[x if np.ndim(x) == 3 else render_cloud(x, size, **camera) for x in row.pictures])
        for row in rows
    ]
    picture_grid([drawn], Path(path))


def _check_size(size: int) -> None:
    if size < 8:
        raise BrainDataError(f"expected a picture of 8 pixels or more on each side, got {size}")
