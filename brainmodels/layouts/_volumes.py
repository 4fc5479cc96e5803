"""Volumes in NIfTI files, read and checked in one place: masks, labels of regions, maps and betas.

    mask = read_labels(root / "mask.nii.gz")
    inside = roi_in_mask(read_labels(root / "V1.nii.gz"), mask)    # (V,) booleans

A file is read to its end, so that damage shows in its checksum. Volumes that are used together must lie on one grid:
their affines put every corner at the same place. The option `affines="ignore"` of a layout skips that comparison.
"""

import itertools
import logging
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ..errors import AxisError, LayoutError, check_choice, need
from ._files import read_table

if TYPE_CHECKING:
    from nibabel import Nifti1Image

__all__ = [
    "AFFINES",
    "VOLUME_SUFFIXES",
    "Stored",
    "Volume",
    "check_grid",
    "label_table",
    "open_volume",
    "read_labels",
    "read_series",
    "read_stored",
    "read_volume",
    "regions_of",
    "roi_in_mask",
]

_log = logging.getLogger(__name__)

VOLUME_SUFFIXES = (".nii.gz", ".nii")
AFFINES = ("compare", "ignore")  # choices of the option `affines` of layouts
_DAMAGE = (EOFError, OSError, ValueError, zlib.error)  # what readers raise on damaged files
_CHUNK_BYTES = 1 << 20
_SHIFT = 0.1  # voxels, largest distance between corners of volumes on one grid
_ROUNDING = 1e-3  # largest distance of a stored label from a whole number, apart from the slope of the file
_COARSEST = 0.1  # step between stored values above which they no longer tell which whole number was meant


class Volume(NamedTuple):
    """Values of a file with their place.

    Attributes:
        values: Values (x, y, z), or (x, y, z, volumes) of a series.
        affine: Matrix (4, 4) from voxel positions to millimetres.
        path: File of the values.
        placed: Whether the file says where the volume lies. Otherwise `affine` is a guess of the reader.
        step: Slope of the header, which is the step between stored values. 0 where floats are stored as they are.
    """

    values: np.ndarray
    affine: np.ndarray
    path: Path
    placed: bool
    step: float


class Stored(NamedTuple):
    """Values as a file has them, and what turns them into physical units: values * slope + intercept."""

    volume: Volume
    slope: float
    intercept: float


def open_volume(path: Path) -> "Nifti1Image":
    """A NIfTI image whose values are not read yet. A missing or damaged file is a `LayoutError`."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise need("nibabel", f"reading {path.name}") from error
    if not path.is_file():
        raise LayoutError(f"expected a NIfTI image at {path}, got no such file")
    try:
        return cast("Nifti1Image", nibabel.load(path))
    except (*_DAMAGE, ImageFileError, HeaderDataError) as error:
        raise LayoutError(f"expected a NIfTI image at {path}, got: {error}; copy it again") from None


def read_volume(path: Path) -> Volume:
    """One volume (x, y, z), scaled as the header says. A last axis of length 1 is left out.

    Raises:
        LayoutError: The file is missing or damaged.
        AxisError: The file holds something else than one volume.
    """
    volume = _read(path)
    values = volume.values
    if values.ndim < 3 or any(length != 1 for length in values.shape[3:]):
        raise AxisError(f"expected a volume (x, y, z) in {path}, got shape {values.shape}")
    return volume._replace(values=values.reshape(values.shape[:3]))


def read_series(path: Path) -> Volume:
    """Volumes (x, y, z, volumes), scaled as the header says. A single volume has a last axis of length 1.

    Raises:
        LayoutError: The file is missing or damaged.
        AxisError: The file holds something else than volumes.
    """
    volume = _read(path)
    values = volume.values[..., None] if volume.values.ndim == 3 else volume.values
    if values.ndim != 4:
        raise AxisError(f"expected volumes (x, y, z, volumes) in {path}, got shape {values.shape}")
    return volume._replace(values=values)


def read_stored(path: Path) -> Stored:
    """Volumes (x, y, z, volumes) as they are stored, without the slope and intercept of the header.

    An int16 series takes a quarter of the memory that `read_series` needs for it.

    Raises:
        LayoutError: The file is missing or damaged.
        AxisError: The file holds something else than volumes.
    """
    volume = _read(path, scaled=False)
    if volume.values.ndim != 4:
        raise AxisError(f"expected volumes (x, y, z, volumes) in {path}, got shape {volume.values.shape}")
    proxy: Any = open_volume(path).dataobj
    return Stored(volume, float(proxy.slope), float(proxy.inter))


def read_labels(path: Path) -> Volume:
    """One volume (x, y, z) of whole numbers, such as a mask or the labels of regions. NaN becomes 0, which is outside.

    Programs store whole numbers as floats, or with a slope that gives 1.5e-5 in place of 0. Such values are rounded.

    Raises:
        LayoutError: The file is missing or damaged, or its values are not whole numbers.
        AxisError: The file holds something else than one volume.
    """
    volume = read_volume(path)
    values = volume.values
    if values.dtype.kind in "iub":
        return volume
    values = np.where(np.isnan(values), 0, values)
    whole = np.rint(np.where(np.isfinite(values), values, 0))
    allowed = max(_ROUNDING, 0.51 * volume.step if volume.step <= _COARSEST else 0.0)
    wrong = ~(np.abs(values - whole) <= allowed + 4 * np.finfo(np.float32).eps * np.abs(whole))
    if wrong.any():
        slope = f", at a slope of {volume.step:g} in the header" if volume.step else ""
        raise LayoutError(
            f"expected whole numbers in {path}, such as 0 outside and 1 inside, got {values[wrong].flat[0]:g}{slope}; "
            "round the values or set a threshold, and save them as integers without a slope"
        )
    return volume._replace(values=whole.astype(np.int64))


def check_grid(volume: Volume, other: Volume, affines: str = "compare") -> None:
    """Check that two volumes have one shape, and that their affines put the same voxel at the same place.

    Args:
        volume: Volume to check.
        other: Volume that has the grid.
        affines: "compare", or "ignore" to compare shapes only. Files that do not say where they lie are not compared.

    Raises:
        AxisError: Shapes differ, or a corner lies more than a tenth of a voxel away.
    """
    check_choice("affines", affines, AFFINES)
    shape, got = other.values.shape[:3], volume.values.shape
    if got[:3] != shape:
        raise AxisError(
            f"expected a volume {(*shape, *got[3:])} in {volume.path}, on the grid of {other.path}, got {got}; is it "
            "another subject's?"
        )
    if affines == "ignore":
        return
    if not (volume.placed and other.placed):
        where = other.path if volume.placed else volume.path
        _log.warning("%s does not say where its voxels lie, so its place was not compared", where)
        return
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, length - 1) for length in shape))])
    apart = np.linalg.norm(corners @ (volume.affine - other.affine).T, axis=1).max()
    voxel = np.linalg.norm(other.affine[:3, :3], axis=0).min()
    if not apart <= _SHIFT * voxel:
        raise AxisError(
            f"expected the grid of {other.path} in {volume.path}, got corners that lie up to {apart:.3g} mm apart; "
            "resample it to that grid, or pass affines='ignore' if its header is wrong and the voxels are the same"
        )


def roi_in_mask(roi: Volume, mask: Volume, affines: str = "compare") -> np.ndarray:
    """The mask of a region over the voxels of a brain mask, booleans (V,).

    Args:
        roi: Volume of the region, > 0 inside.
        mask: Volume of the brain mask, > 0 inside.
        affines: As for `check_grid`.

    Raises:
        AxisError: The grids differ, or no voxel of the region is in the mask.
    """
    check_grid(roi, mask, affines)
    inside = (roi.values > 0)[mask.values > 0]
    if not inside.any():
        raise AxisError(f"expected voxels of {roi.path} inside the mask, got none of {int((roi.values > 0).sum())}")
    return inside


def label_table(path: Path) -> dict[int, str]:
    """Names of regions by label, from the columns `index` and `name` of a `.tsv` or `.csv` file.

    Raises:
        LayoutError: The file or a column is missing, a label is no whole number, or labels or names repeat.
    """
    table, names = read_table(path, ("index", "name")), {}
    for line, (index, name) in enumerate(zip(table["index"], table["name"], strict=True), 2):
        try:
            label = int(index)
        except ValueError:
            raise LayoutError(f"expected a whole number of index in line {line} of {path}, got {index!r}") from None
        if label in names or (label > 0 and name in names.values()):
            raise LayoutError(f"expected labels and names that differ in {path}, got {label} {name!r} again")
        names[label] = name
    return names


def regions_of(labels: np.ndarray, name: str, path: Path, table: Path | None = None) -> dict[str, np.ndarray]:
    """One mask for each label above 0, by the name of the region.

    Args:
        labels: Whole numbers (V,) of the voxels of a mask.
        name: Name of the atlas.
        path: File of the labels, for messages.
        table: Table of the names of the labels, see `label_table`. Without one a single label is the region `name`, and
            several are "NAME:1", "NAME:2" and so on.

    Returns:
        Booleans (V,) by region. Labels of the table without a voxel are left out.

    Raises:
        LayoutError: A label is not in the table.
        AxisError: No voxel has a label.
    """
    present = np.unique(labels[labels > 0]).astype(int).tolist()
    if not present:
        raise AxisError(f"expected voxels of {path} inside the mask, got none with a label above 0")
    if table is None:
        names = {label: name if len(present) == 1 else f"{name}:{label}" for label in present}
    else:
        names = label_table(table)
    unnamed = [label for label in present if label not in names]
    if unnamed:
        raise LayoutError(
            f"expected every label of {path} in the column index of {table}, got {', '.join(map(str, unnamed[:5]))} "
            f"without a name; the table has {len(names)} labels"
        )
    return {names[label]: labels == label for label in present}


def _read(path: Path, scaled: bool = True) -> Volume:
    image = open_volume(path)
    try:
        values = _values(image, path, scaled)
    except _DAMAGE as error:
        raise LayoutError(f"expected values {image.shape} in {path}, got: {error}; copy it again") from None
    codes = [int(image.header[key]) for key in ("qform_code", "sform_code") if key in image.header]
    stored: Any = image.dataobj
    step = abs(float(stored.slope)) if np.dtype(image.get_data_dtype()).kind in "iu" else 0.0
    if image.affine is None:
        raise LayoutError(f"expected an affine in {path}, got none")
    return Volume(values, image.affine, path, any(codes) or not codes, step)


def _values(image: "Nifti1Image", path: Path, scaled: bool = True) -> np.ndarray:
    """Values of an image, scaled or as stored. A compressed file is read to its end, where its checksum is."""
    from nibabel.fileholders import FileHolder
    from nibabel.openers import ImageOpener

    if path.suffix.lower() not in ImageOpener.compress_ext_map:
        return _unpacked(image, scaled)
    with ImageOpener(str(path)) as opened:
        stream: Any = opened
        holders = {**image.file_map, "image": FileHolder(fileobj=stream)}
        values = _unpacked(type(image).from_file_map(holders), scaled)
        while stream.read(_CHUNK_BYTES):
            pass
    return values


def _unpacked(image: "Nifti1Image", scaled: bool) -> np.ndarray:
    proxy: Any = image.dataobj
    return np.asarray(proxy) if scaled else np.asarray(proxy.get_unscaled())
