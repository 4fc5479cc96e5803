"""Volumes: values as they were meant, or an error that names the file."""

import nibabel
import numpy as np
import pytest

from brainmodels.errors import AxisError, LayoutError
from brainmodels.layouts._volumes import check_grid, read_labels, read_series, read_volume, roi_in_mask

from .spoilt import spoil

AFFINE = np.array([[-1.8, 0, 0, 70.0], [0, 1.8, 0, -80.5], [0, 0, 1.8, -60.25], [0, 0, 0, 1]])
LABELS = np.random.default_rng(0).integers(-1, 8, (4, 5, 3))


def save(path, values, affine=AFFINE, dtype=None):
    image = nibabel.Nifti1Image(values, affine)
    if dtype is not None:
        image.set_data_dtype(dtype)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("stored", [np.int16, np.uint8, np.float32, np.float64])
def test_labels_that_went_through_floats(tmp_path, stored):
    """Saved as integers with a slope, 0 comes back as 1.5e-5, which was taken for the inside of a mask."""
    meant = np.maximum(LABELS, 0) if stored is np.uint8 else LABELS
    first = save(tmp_path / "a.nii.gz", meant.astype(np.float64), dtype=stored)
    assert np.array_equal(read_labels(first).values, meant)
    again = (
        save(tmp_path / "b.nii", np.asarray(nibabel.load(first).dataobj, np.float32)) if stored is np.int16 else first
    )
    assert np.array_equal(read_labels(again).values, meant)


def test_labels_that_are_no_whole_numbers(tmp_path):
    path = save(tmp_path / "m.nii.gz", np.where(LABELS > 3, 0.3, 0.0))
    with pytest.raises(LayoutError, match=r"whole numbers in .*m\.nii\.gz, .*got 0.3; round"):
        read_labels(path)
    path = save(tmp_path / "m.nii.gz", np.linspace(0, 30000, 60).round().reshape(4, 5, 3), dtype=np.int16)
    with pytest.raises(LayoutError, match=r"whole numbers in .*m\.nii\.gz, .*at a slope of 0.45"):
        read_labels(path)
    some = LABELS.astype(np.float32)
    some[0, 0, 0] = np.nan
    assert read_labels(save(tmp_path / "m.nii.gz", some)).values[0, 0, 0] == 0
    some[0, 0, 0] = np.inf
    with pytest.raises(LayoutError, match="got inf"):
        read_labels(save(tmp_path / "m.nii.gz", some))


def test_last_axes_of_length_one(tmp_path):
    volume = LABELS.astype(np.int16)
    for extra in ((), (1,), (1, 1)):
        path = save(tmp_path / "m.nii.gz", volume.reshape(*volume.shape, *extra))
        assert np.array_equal(read_labels(path).values, volume) and np.array_equal(read_volume(path).values, volume)
    assert read_series(save(tmp_path / "m.nii.gz", volume)).values.shape == (4, 5, 3, 1)
    for shape in ((4, 5, 3, 2), (4, 15)):
        path = save(tmp_path / "m.nii.gz", np.zeros(shape, np.int16))
        with pytest.raises(AxisError, match=r"a volume \(x, y, z\) in .*m\.nii\.gz, got shape"):
            read_volume(path)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_flipped_bits_are_found_wherever_they_are(tmp_path, where):
    """Compressed bytes: whatever still decompresses must be found by the checksum."""
    values = np.random.default_rng(1).integers(0, 9, (12, 12, 12, 4)).astype(np.int16)
    path = save(tmp_path / "b.nii.gz", values)
    assert np.array_equal(read_series(path).values, values)
    content = bytearray(path.read_bytes())
    content[20 + int(where * (len(content) - 29))] ^= 4
    path.write_bytes(content)
    with pytest.raises(LayoutError, match=r"b\.nii\.gz, got: .*; copy it again"):
        read_series(path)
    save(path, values)
    spoil(path)
    with pytest.raises(LayoutError, match="CRC check failed"):
        read_series(path)


def test_grids(tmp_path, caplog):
    mask = read_labels(save(tmp_path / "mask.nii.gz", np.ones((4, 5, 3), np.uint8)))
    region = np.zeros((4, 5, 3), np.uint8)
    region[1, 2, 1] = 1
    rounded = AFFINE.astype(np.float32) + np.float32(1e-5)
    near = read_labels(save(tmp_path / "near.nii.gz", region, rounded))
    assert roi_in_mask(near, mask).sum() == 1
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.9
    far = read_labels(save(tmp_path / "far.nii.gz", region, shifted))
    with pytest.raises(AxisError, match=r"mask\.nii\.gz in .*far\.nii\.gz, got corners that lie up to 0.9 mm apart"):
        roi_in_mask(far, mask)
    assert roi_in_mask(far, mask, "ignore").sum() == 1
    with pytest.raises(ValueError, match="expected affines to be one of compare, ignore, got 'skip'"):
        check_grid(near, mask, "skip")
    assert not caplog.text
    check_grid(read_labels(save(tmp_path / "unplaced.nii.gz", region, None)), mask)  # there is nothing to compare
    assert "unplaced.nii.gz does not say where its voxels lie" in caplog.text
