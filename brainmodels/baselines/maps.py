"""Convert scores of voxels to brain images.

to_nifti(scores, masker).to_filename("r2.nii.gz")
"""

from typing import Any

import numpy as np

from ..data.spaces import VoxelSpace
from ..errors import AxisError, BrainDataError

__all__ = ["to_nifti"]


def to_nifti(scores: np.ndarray, where: Any, fill: float = 0.0) -> Any:
    """Scores as an image, to save or to plot.

    Args:
        scores: (V,) Score of each voxel, or (maps, V) for several maps. NaN stays NaN.
        where: Fitted nilearn masker, whose `transform` made the responses, or a `VoxelSpace`.
        fill: Value of voxels outside a `VoxelSpace`. A masker fills with 0.

    Returns:
        A nibabel Nifti1Image (x, y, z) or (x, y, z, maps), or a SurfaceImage from a surface masker.

    Raises:
        AxisError: Scores of another number of voxels.
        BrainDataError: `where` is neither a masker nor a `VoxelSpace`.

    Example:
        >>> Y = masker.transform(betas)  # (trials, V)  # doctest: +SKIP
        >>> scores = Ridge().fit(X, Y).score(X_test, masker.transform(betas_test))  # doctest: +SKIP
        >>> to_nifti(scores, masker).to_filename("sub-01_task-nsd_stat-r2_statmap.nii.gz")  # doctest: +SKIP
    """
    scores = np.asarray(scores, np.float32)
    if scores.ndim not in (1, 2):
        raise AxisError(f"expected scores (voxels,) or (maps, voxels), got {scores.shape}")
    if isinstance(where, VoxelSpace):
        return where.to_image(scores.T, fill)
    if not hasattr(where, "inverse_transform"):
        raise BrainDataError(f"expected a fitted nilearn masker or a VoxelSpace, got {type(where).__name__}")
    count = getattr(where, "n_elements_", scores.shape[-1])
    if count != scores.shape[-1]:
        raise AxisError(f"expected scores of {count} voxels, as the masker has, got {scores.shape[-1]}")
    return where.inverse_transform(scores)
