"""THINGS-fMRI tables: read back as written, in the blocks of pandas, and refused where the tables disagree."""

import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest

from brainmodels.data import ArrayImages, BrainDataset, Responses, Split, StimulusSet, Subject, TrialTable, VoxelSpace
from brainmodels.errors import AxisError, IdError, LayoutError
from brainmodels.layouts import things_fmri
from tests.brainmodels.same import assert_same
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written import things_fmri as write_things_fmri
from tests.brainmodels.written.flat import write_images, write_volume

CONCEPTS = ["dog", "mango", "candelabra", "ice_cream"]
TRAIN = [f"{concept}_{number:02d}b" for concept in CONCEPTS for number in range(3)]  # 12 images
TEST = ["candelabra_14s", "panda_12s"]  # 12 times each: 36 trials


def made(seed=0):
    """20 voxels, 12 training images once and two test images 12 times; candelabra is in both parts."""
    rng = np.random.default_rng(seed)
    ids = [f"things:{name}" for name in TRAIN + TEST]
    concepts = [name.rsplit("_", 1)[0] for name in TRAIN + TEST]
    images = ArrayImages(rng.integers(0, 256, (len(ids), 16, 16, 3), np.uint8))
    shown = rng.permutation(np.concatenate([np.arange(12), np.repeat([12, 13], 12)]))
    trials = TrialTable.of(np.array(ids)[shown], np.arange(36) // 12 + 1, np.arange(36) % 12 // 4 + 1)
    index = np.argwhere(np.ones((4, 3, 2), bool))[rng.permutation(24)[:20]]  # not sorted
    index[0] = 3, 2, 1
    index = np.unique(index, axis=0)
    rois = {"V1": np.arange(len(index)) % 3 == 1, "lFFA": np.arange(len(index)) == 5}
    ncsnr = np.linspace(0, 1.2, len(index)).astype(np.float32)
    space = VoxelSpace("things-sub-02-T1w", index, tuple(index.max(0) + 1), rois=rois, ncsnr=ncsnr)
    values = rng.normal(size=(36, len(index))).astype(np.float32)
    split = Split("things", frozenset(ids[:12]), frozenset(), frozenset(ids[12:]))
    stimuli = StimulusSet(ids, images, labels={"concept": concepts})
    return BrainDataset([Subject("sub-02", Responses(values, trials), space)], stimuli, {"things": split})


@pytest.fixture
def written(tmp_path):
    dataset = made()
    write_things_fmri.write(dataset, tmp_path)
    write_images(dataset.stimuli, tmp_path / "object_images")
    return dataset, tmp_path


def lines(root, name, function):
    """Rewrites the lines of a table of the subject."""
    path = root / f"sub-02_{name}.csv"
    path.write_text("\n".join(function(path.read_text().splitlines())) + "\n")


def test_round_trip(written):
    dataset, root = written
    litter(root)
    assert things_fmri.detect(root)
    loaded = things_fmri.load(root, 2, images="object_images")
    assert_same(loaded, dataset)
    np.testing.assert_array_equal(
        loaded.stimuli.label("concept", dataset.stimuli.ids), dataset.stimuli.labels["concept"]
    )
    split = loaded.split("things")
    assert split.test == dataset.split("things").test and split.train | split.val == dataset.split("things").train


def test_concepts_follow_from_names_where_there_is_no_column(written):
    dataset, root = written
    lines(root, "StimulusMetadata", lambda rows: [row.rsplit(",", 1)[0] for row in rows])
    loaded = things_fmri.load(root, 2)
    assert loaded.stimuli.label("concept", ["things:ice_cream_02b"]).tolist() == ["ice_cream"]
    np.testing.assert_array_equal(
        loaded.stimuli.label("concept", dataset.stimuli.ids), dataset.stimuli.labels["concept"]
    )


def test_zero_shot_does_not_train_on_tested_concepts(written):
    dataset, root = written
    split = things_fmri.load(root, 2).split("things_zero_shot")
    assert split.train | split.val == {f"things:{name}" for name in TRAIN if not name.startswith("candelabra")}
    assert split.test == dataset.split("things").test and split.params["dropped_train_images"] == 3


def test_ncsnr_from_the_published_noise_ceilings(written):
    """Two columns of one published voxel: 1.102513 % for single trials is 11.799193 % for means over 12 of them."""
    _, root = written

    def published(rows):
        fields = rows[4].split(",")
        fields[4:6] = "1.102513", "11.799193"
        return [*rows[:4], ",".join(fields), *rows[5:]]

    lines(root, "VoxelMetadata", published)
    squared = things_fmri.load(root, 2).subject("sub-02").space.ncsnr[3] ** 2
    assert 100 * squared / (squared + 1 / 12) == pytest.approx(11.799193, rel=1e-5)


def test_regions_and_noise_ceiling_choose_voxels(written):
    dataset, root = written
    person = dataset.subject("sub-02")
    squared = person.space.ncsnr.astype(float) ** 2
    kept = person.space.rois["V1"] & (100 * squared / (squared + 1 / 12) >= 60)
    assert 0 < kept.sum() < person.space.rois["V1"].sum()
    loaded = things_fmri.load(root, 2, rois=["V1"], min_noise_ceiling=60).subject("sub-02")
    np.testing.assert_array_equal(loaded.responses.values, person.responses.values[:, kept])
    np.testing.assert_array_equal(loaded.space.index, person.space.index[kept])


def test_region_that_is_empty_after_the_threshold(written):
    _, root = written
    with pytest.raises(
        LayoutError, match=r"expected voxels of lFFA in .*, got none of 1 with a noise ceiling of .* 99 per"
    ):
        things_fmri.load(root, 2, rois=["lFFA"], min_noise_ceiling=99)
    with pytest.raises(LayoutError, match=r"expected regions of .* \(V1, lFFA\), got 'rFFA'; near: lFFA"):
        things_fmri.load(root, 2, rois=["rFFA"])


def test_voxel_id_among_the_responses(tmp_path, caplog):
    dataset = made()
    write_things_fmri.write(dataset, tmp_path, voxel_id="column")
    with pytest.raises(LayoutError, match=r"expected 36 trials in .*, got 37 columns: voxel_id was saved as the first"):
        things_fmri.load(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        loaded = things_fmri.load(tmp_path, 2, drop_voxel_id=True)
    assert "the first column is voxel_id and was left out" in caplog.text
    np.testing.assert_array_equal(loaded.subject("sub-02").responses.values, dataset.subject("sub-02").responses.values)


def test_another_first_column_is_not_dropped(tmp_path):
    write_things_fmri.write(made(), tmp_path, voxel_id="column")
    with h5py.File(tmp_path / "sub-02_ResponseData.h5", "r+") as file:
        file["ResponseData/block0_values"][:, 0] = 0.5
    with pytest.raises(IdError, match=r"expected voxel_id of .* in the order of VoxelMetadata"):
        things_fmri.load(tmp_path, 2, drop_voxel_id=True)


@pytest.mark.parametrize("cut", [slice(0, 36), slice(0, 34)])
def test_table_of_stimuli_of_another_length(written, cut):
    _, root = written
    lines(root, "StimulusMetadata", lambda rows: rows[cut])
    with pytest.raises(
        LayoutError, match=rf"expected {cut.stop - 1} trials in .*, as StimulusMetadata .*, got 36 columns"
    ):
        things_fmri.load(root, 2)


def test_table_of_voxels_of_another_length(written):
    dataset, root = written
    lines(root, "VoxelMetadata", lambda rows: rows[:-1])
    count = len(dataset.subject("sub-02").space)
    with pytest.raises(LayoutError, match=rf"expected {count - 1} voxels in .*, got {count} rows of responses"):
        things_fmri.load(root, 2)


def test_voxels_in_another_order(written):
    _, root = written
    lines(root, "VoxelMetadata", lambda rows: [rows[0], rows[2], rows[1], *rows[3:]])
    with pytest.raises(IdError, match="other voxels or another order"):
        things_fmri.load(root, 2)


def test_sorted_stimuli_are_noticed(written):
    _, root = written
    lines(root, "StimulusMetadata", lambda rows: [rows[0], rows[5], *rows[1:5], *rows[6:]])
    with pytest.raises(IdError, match=r"expected rising trial_id .*, got another order"):
        things_fmri.load(root, 2)


def test_catch_trials_have_no_response(written):
    _, root = written
    lines(root, "StimulusMetadata", lambda rows: [row.replace("train", "catch") for row in rows])
    with pytest.raises(LayoutError, match=r"expected trial_type train or test in .*, got 'catch'"):
        things_fmri.load(root, 2)


def test_columns_that_are_missing(written):
    _, root = written
    lines(root, "VoxelMetadata", lambda rows: [rows[0].replace("nc_singletrial", "nc_single"), *rows[1:]])
    with pytest.raises(LayoutError, match=r"expected a column nc_singletrial in .*near: nc_single"):
        things_fmri.load(root, 2)


def test_mask_gives_shape_and_affine(written):
    dataset, root = written
    index, affine = dataset.subject("sub-02").space.index, np.diag([2.0, 2, 2, 1])
    brain = np.zeros((6, 5, 4), np.uint8)
    brain[tuple(index.T)] = 1
    write_volume(root / "brain.nii.gz", brain, affine)
    space = things_fmri.load(root, 2, mask="brain.nii.gz").subject("sub-02").space
    assert space.shape == (6, 5, 4)
    np.testing.assert_array_equal(space.affine, affine)
    brain[tuple(index[4])] = 0
    write_volume(root / "brain.nii.gz", brain, affine)
    with pytest.raises(AxisError, match="expected the voxels of sub-02 inside"):
        things_fmri.load(root, 2, mask="brain.nii.gz")


def test_missing_files_name_what_is_there(written):
    _, root = written
    with pytest.raises(
        LayoutError, match=r"one sub-03_ResponseData\.h5 in .*, got none; near: sub-02_ResponseData\.h5"
    ):
        things_fmri.load(root, 3)


def test_not_a_table_of_pandas(written):
    _, root = written
    with h5py.File(root / "sub-02_ResponseData.h5", "w") as file:
        file["betas"] = np.zeros((20, 36))
    with pytest.raises(LayoutError, match=r"expected /ResponseData with one block of floats .*, got betas"):
        things_fmri.load(root, 2)
    (root / "sub-02_ResponseData.h5").write_bytes(b"not HDF5")
    with pytest.raises(LayoutError, match="expected an HDF5 file at"):
        things_fmri.load(root, 2)


def test_missing_picture(written):
    _, root = written
    (root / "object_images" / "dog_01b.png").rename(root / "object_images" / "dog_01c.png")
    with pytest.raises(IdError, match=r"of each of 14 images.*such as 'dog_01b'; near: .*dog_01c"):
        things_fmri.load(root, 2, images="object_images")


def test_nan_is_named(written):
    dataset, root = written
    person = dataset.subject("sub-02")
    values = person.responses.values.copy()
    values[8, 3] = np.nan
    write_things_fmri.write(
        dataset.with_subject(replace(person, responses=replace(person.responses, values=values))), root
    )
    with pytest.raises(LayoutError, match=rf"nan at trial 8 \(image {person.responses.trials.image_id[8]}\), voxel 3"):
        things_fmri.load(root, 2)
