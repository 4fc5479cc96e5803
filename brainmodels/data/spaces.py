"""What the columns of responses stand for: voxels of a volume or surface, or sensors on a scalp.

    space = VoxelSpace.from_mask("func1pt8mm", mask, affine, rois={"V1": v1})
    space.to_image(scores).to_filename("scores.nii.gz")  # one value for each voxel, as NIfTI

The columns of the responses have the order of the voxels or sensors of their space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AxisError, BrainDataError, near_names, need

if TYPE_CHECKING:
    from nibabel import Nifti1Image

__all__ = ["SensorSpace", "VoxelSpace"]


@dataclass(frozen=True)
class VoxelSpace:
    """Voxels or vertices in the order of the columns of the responses.

    The same region in another acquisition is another space, with another name. Spaces are never joined silently.

    Attributes:
        name: Name of the acquisition and resolution, such as "func1pt8mm" or "challenge-fsaverage".
        index: Positions in a volume of `shape`, (V, 3), or hemisphere (0 left, 1 right) and vertex, (V, 2).
        shape: Shape of the volume, or numbers of vertices (left, right).
        affine: Matrix (4, 4) from voxel positions to millimetres. None on a surface, and where it is not known.
        rois: Masks (V,) of booleans by the name of the region.
        ncsnr: Standard deviation of the signal over that of the noise, for one presentation, (V,), as published. None
            where it was not published.

    Raises:
        AxisError: A position lies outside of `shape`, or an array has another shape.
    """

    name: str
    index: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray | None = None
    rois: Mapping[str, np.ndarray] = field(default_factory=dict)
    ncsnr: np.ndarray | None = None

    def __post_init__(self):
        if self.index.ndim != 2 or self.index.shape[1] not in (2, 3):
            raise AxisError(f"expected index (voxels, 3) or (vertices, 2), got {self.index.shape}")
        sizes = np.array(self.shape)
        if self.index.shape[1] == 2:  # vertices of each hemisphere
            sizes = np.stack([np.full(len(self), len(sizes)), sizes.take(self.index[:, 0], mode="clip")], 1)
        outside = ((self.index < 0) | (self.index >= sizes)).any(1)
        if outside.any():
            place = self.index[outside][0].tolist()
            raise AxisError(f"expected voxels of {self.name!r} within {tuple(self.shape)}, got one at {place}")
        for name, mask in self.rois.items():
            if mask.shape != (len(self),) or mask.dtype != bool:
                raise AxisError(f"expected mask {name!r} of {len(self)} booleans, got {mask.dtype} {mask.shape}")
        if self.ncsnr is not None and self.ncsnr.shape != (len(self),):
            raise AxisError(f"expected ncsnr of {len(self)} voxels, got shape {self.ncsnr.shape}")

    @classmethod
    def from_mask(cls, name: str, mask: np.ndarray, affine: np.ndarray | None = None, **options) -> "VoxelSpace":
        """The voxels of a boolean volume (x, y, z), in C order. `options` are further attributes."""
        if mask.dtype != bool or mask.ndim != 3:
            raise AxisError(f"expected a boolean volume, got {mask.dtype} of shape {mask.shape}")
        return cls(name, np.argwhere(mask), mask.shape, affine, **options)

    def __len__(self) -> int:
        return len(self.index)

    def roi(self, name: str) -> np.ndarray:
        """The mask (V,) of a region. An unknown name is a `BrainDataError`."""
        if name not in self.rois:
            known = ", ".join(self.rois) or "none"
            raise BrainDataError(
                f"expected a region of {self.name} ({known}), got {name!r}{near_names(name, list(self.rois))}"
            )
        return self.rois[name]

    def select(self, mask: np.ndarray) -> "VoxelSpace":
        """The space of the voxels in a mask (V,), with their regions and reliability."""
        rois = {name: roi[mask] for name, roi in self.rois.items()}
        ncsnr = None if self.ncsnr is None else self.ncsnr[mask]
        return replace(self, index=self.index[mask], rois=rois, ncsnr=ncsnr)

    def volume(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """Values (V,) or (V, ...) in the volume, (x, y, z) or (x, y, z, ...). Other voxels get `fill`.

        Raises:
            BrainDataError: The space is a surface.
            AxisError: There is not one value for each voxel.
        """
        if self.index.shape[1] != 3:
            raise BrainDataError(f"expected a volume, got the surface space {self.name!r}")
        if len(values) != len(self):
            raise AxisError(f"expected values of {len(self)} voxels, got {len(values)}")
        out = np.full((*self.shape, *values.shape[1:]), fill, dtype=np.result_type(values.dtype, np.float32))
        out[tuple(self.index.T)] = values
        return out

    def to_image(self, values: np.ndarray, fill: float = 0.0) -> "Nifti1Image":
        """Values (V,) as a NIfTI image, to save or to plot. A space without an affine is a `BrainDataError`."""
        try:
            import nibabel
        except ImportError as error:
            raise need("nibabel", "a NIfTI image") from error
        if self.affine is None:
            raise BrainDataError(f"expected a space with an affine, got {self.name!r} without")
        return nibabel.Nifti1Image(self.volume(np.asarray(values, np.float32), fill), self.affine)


@dataclass(frozen=True)
class SensorSpace:
    """EEG or MEG channels in the order of the responses. A model learns this order.

    Attributes:
        ch_names: Names of the channels, all different.
        sfreq: Sampling rate in hertz.
        times: Times of the samples, (T,), in seconds from the onset of the stimulus.
        unit: "V", or "z" where values were standardised.
        montage: Name of the electrode layout in MNE. None where it is not known.

    Raises:
        AxisError: Names repeat, the rate is not positive, or the steps between times do not fit the rate.
    """

    ch_names: Sequence[str]
    sfreq: float
    times: np.ndarray
    unit: str = "V"
    montage: str | None = None

    def __post_init__(self):
        if len(set(self.ch_names)) != len(self.ch_names):
            raise AxisError(f"expected distinct channel names, got {list(self.ch_names)}")
        if self.sfreq <= 0:
            raise AxisError(f"expected sfreq above 0 Hz, got {self.sfreq}")
        steps = np.diff(self.times) * self.sfreq
        if len(steps) and np.abs(steps - 1).max() > 0.01:
            raise AxisError(f"expected times {1 / self.sfreq:.6g} s apart at {self.sfreq:g} Hz, got other steps")

    def __len__(self) -> int:
        return len(self.ch_names)
