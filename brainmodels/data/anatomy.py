"""Where a volume lies in the head: its axes, an anatomy below it, and its way to MNI.

upright(space.volume(values), space.affine)  # axes to the right, the front and the top
matrix = to_mni("identity", space)           # (4, 4) from millimetres of the space to those of MNI
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BrainDataError, LayoutError, need
from .spaces import VoxelSpace

__all__ = ["anatomy_of", "check_maps", "to_mni", "upright"]


def check_maps(space: Any, anatomy: Path | None, word: str) -> None:
    """Refuse what maps of a space cannot be drawn with, before anything is computed.

    Args:
        space: Space of the responses.
        anatomy: NIfTI image below the maps, or None.
        word: Setting `to_mni`.

    Raises:
        BrainDataError: An anatomy or a transform for a space that is no volume with an affine.
        LayoutError: A file that cannot be read, or an anatomy that does not cover the voxels.
    """
    volume = isinstance(space, VoxelSpace) and space.index.shape[1] == 3 and space.affine is not None
    if (anatomy is not None or word) and not volume:
        raise BrainDataError(
            "expected a volume with an affine for anatomy and to_mni, got "
            f"{getattr(space, 'name', type(space).__name__)!r}"
        )
    if anatomy is not None:
        anatomy_of(anatomy, space)
    if word:
        to_mni(word, space)


def anatomy_of(path: Path, space: VoxelSpace) -> Any:
    """A NIfTI image that maps of a space are drawn over.

    Args:
        path: File of the image.
        space: Space of the voxels, with an affine.

    Raises:
        LayoutError: No such file, an image that is not one volume, or one that does not cover the voxels.
    """
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise need("nibabel", "an anatomy below a map") from error
    try:
        image: Any = nibabel.load(path)
    except (OSError, ImageFileError) as error:
        raise LayoutError(f"expected a NIfTI image of the anatomy at {path}, got {error}") from error
    if len(image.shape) != 3:
        raise LayoutError(f"expected one volume (x, y, z) of the anatomy in {path}, got shape {image.shape}")
    places = np.column_stack((space.index, np.ones(len(space)))) @ (np.linalg.inv(image.affine) @ space.affine).T
    outside = ((places[:, :3] < -0.5) | (places[:, :3] > np.array(image.shape) - 0.5)).any(1)
    if outside.mean() > 0.05:
        raise LayoutError(
            f"expected an anatomy that covers the voxels of {space.name!r}, got {path}, outside of which "
            f"{int(outside.sum())} of {len(space)} voxels lie; it may be in another space"
        )
    return image


def upright(volume: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """The volume with axes that point to the right, the front and the top of the head, as nearly as its axes can."""
    if affine is None:
        return volume
    try:
        from nibabel.orientations import apply_orientation, io_orientation
    except ImportError as error:
        raise need("nibabel", "a picture of responses") from error
    return apply_orientation(volume, io_orientation(affine))


def to_mni(word: str, space: VoxelSpace) -> np.ndarray | None:
    """Matrix (4, 4) from millimetres of a space to millimetres of MNI; None where it is not known.

    Args:
        word: "identity", or a file with the matrix, .npy or text. "" is the identity where the name of the space has
            "MNI", as fMRIPrep names it, and otherwise not known.
        space: Space of the voxels.

    Raises:
        LayoutError: No such file, or no affine matrix in it.
    """
    if word == "identity" or (not word and "MNI" in space.name):
        return np.eye(4)
    if not word:
        return None
    file = Path(word)
    if not file.is_file():
        raise LayoutError(f"expected identity or a file with a matrix (4, 4) for to_mni, got no file at {word}")
    try:
        matrix = np.load(file) if file.suffix == ".npy" else np.loadtxt(file)
    except ValueError as error:
        raise LayoutError(f"expected a matrix (4, 4) of numbers in {file}, got {error}") from error
    if matrix.shape != (4, 4) or not np.allclose(matrix[3], (0, 0, 0, 1)) or abs(np.linalg.det(matrix)) < 1e-9:
        raise LayoutError(
            f"expected an affine matrix (4, 4) with the last row 0 0 0 1 in {file}, got shape {matrix.shape}"
        )
    return matrix
