"""Betas, maps and labels of a BIDS subject in the voxels of a brain mask.

    place = VolumePlace.from_masks([path], affines="compare")
    betas = place.read(unit, allow_pickle=False)         # (trials, voxels) as stored

Betas are NIfTI series, or arrays of GLMsingle, whose voxels have the order of the mask's volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import AxisError, LayoutError
from ._bids_betas import Unit
from ._glmsingle import BETAS, R2, read_betas
from ._volumes import VOLUME_SUFFIXES, Volume, check_grid, read_labels, read_stored, read_volume, regions_of

__all__ = ["Betas", "VolumePlace"]


@dataclass(frozen=True)
class Betas:
    """Betas of a file as stored. Multiplied by `slope`, and `intercept` added, they are in physical units.

    Attributes:
        values: (trials, voxels) float32, or int16 as stored.
        slope, intercept: Scale of the values.
        r2: Variance that the model of GLMsingle explains in each voxel, (voxels,), in percent. None where the file has
            none.
    """

    values: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    r2: np.ndarray | None = None


@dataclass(frozen=True)
class VolumePlace:
    """The voxels of a brain mask.

    Attributes:
        mask: Booleans (x, y, z) with their affine.
        affines: "compare" or "ignore", see `check_grid`.
        left_out: Text about what the files hold beside these voxels.
    """

    mask: Volume
    affines: str
    left_out: str = ""

    @classmethod
    def from_masks(cls, paths: Sequence[Path], affines: str) -> "VolumePlace":
        """The voxels that all masks share.

        Raises:
            AxisError: Masks lie on different grids, or share no voxel.
        """
        volumes = [read_labels(path) for path in paths]
        first = volumes[0]
        inside = first.values > 0
        for volume in volumes[1:]:
            check_grid(volume, first, affines)
            inside &= volume.values > 0
        if not inside.any():
            common = f" in common with {len(paths) - 1} further masks" if len(paths) > 1 else ""
            raise AxisError(f"expected voxels > 0 in the mask {paths[0]}, got none of {inside.size}{common}")
        return cls(first._replace(values=inside), affines)

    @classmethod
    def whole(cls, path: Path, affines: str) -> "VolumePlace":
        """All voxels of a series.

        Raises:
            LayoutError: The file is no NIfTI series, so that it does not say where its voxels lie.
        """
        if not path.name.endswith(VOLUME_SUFFIXES):
            raise LayoutError(f"expected a mask beside the betas {path}, which have no affine, got mask='all'")
        volume = read_stored(path).volume
        return cls(volume._replace(values=np.ones(volume.values.shape[:3], bool)), affines)

    @property
    def index(self) -> np.ndarray:
        """Positions of the voxels, (V, 3)."""
        return np.argwhere(self.mask.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the volume."""
        return self.mask.values.shape

    @property
    def affine(self) -> np.ndarray:
        """Matrix (4, 4) from voxel positions to millimetres."""
        return self.mask.affine

    def read(self, unit: Unit, allow_pickle: bool) -> Betas:
        """The betas of a file.

        Raises:
            AxisError: The file lies on another grid than the mask.
            LayoutError: The file is damaged or of another kind.
            UnsafePickleError: The file is a pickle, and these are not allowed.
        """
        path = unit.path
        if unit.names[0].extension in VOLUME_SUFFIXES:
            stored = read_stored(path)
            check_grid(stored.volume, self.mask, self.affines)
            values = stored.volume.values[self.mask.values].T
            small = values.dtype == np.int16
            return Betas(values if small else values.astype(np.float32), stored.slope, stored.intercept)
        return self._of_array(*read_betas(path, allow_pickle), path)

    def map(self, path: Path) -> np.ndarray:
        """One number for each voxel, (V,), such as ncsnr."""
        volume = read_volume(path)
        check_grid(volume, self.mask, self.affines)
        return volume.values[self.mask.values].astype(np.float32)

    def regions(self, paths: Sequence[Path], name: str, table: Path | None) -> dict[str, np.ndarray]:
        """The regions of an atlas, one for each label, booleans (V,)."""
        volume = read_labels(paths[0])
        check_grid(volume, self.mask, self.affines)
        return regions_of(volume.values[self.mask.values], name, paths[0], table)

    def _of_array(self, betas: np.ndarray, ratio: np.ndarray | None, path: Path) -> Betas:
        """Betas (x, y, z, trials) of the volume, or (voxels, ..., trials) of the mask."""
        count, shape = int(self.mask.values.sum()), self.mask.values.shape
        if betas.ndim == 4 and betas.shape[:3] == shape:
            values = betas[self.mask.values]
        elif betas.ndim >= 2 and betas.size == betas.shape[0] * betas.shape[-1] and betas.shape[0] == count:
            values = betas.reshape(count, -1)
        else:
            turned = betas.ndim == 4 and betas.shape[::-1][:3] == shape
            remedy = "; its axes are reversed, as MATLAB writes them: transpose it" if turned else ""
            raise AxisError(
                f"expected {BETAS} {(*shape, 'trials')} in {path}, on the grid of {self.mask.path}, or "
                f"({count}, trials) for the voxels of the mask, got {betas.shape}{remedy}"
            )
        return Betas(values.T.astype(np.float32), r2=self._ratio(ratio, betas.shape, path))

    def _ratio(self, ratio: np.ndarray | None, shape: tuple[int, ...], path: Path) -> np.ndarray | None:
        """R2 of each voxel."""
        if ratio is None:
            return None
        ratio = np.asarray(ratio)
        if ratio.dtype.kind not in "fiu" or ratio.size != np.prod(shape[:-1]):
            raise AxisError(f"expected {R2} {shape[:-1]} in {path}, as the betas have, got {ratio.dtype} {ratio.shape}")
        whole = ratio.shape == self.mask.values.shape
        return (ratio[self.mask.values] if whole else ratio.ravel()).astype(np.float32)
