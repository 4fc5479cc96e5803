"""GOD: both spellings of the file read back as written; stimuli from 13-digit numbers; wrong files are refused."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import ArrayImages, BrainDataset, Responses, Split, StimulusSet, Subject, TrialTable, VoxelSpace
from brainmodels.errors import AxisError, IdError, LayoutError
from brainmodels.layouts import god
from tests.brainmodels.same import assert_same
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written import god as write_god
from tests.brainmodels.written.flat import write_images

TRAIN = ["n01518878_10042", "n01518878_12028", "n01639765_52902", "n13111881_9170", "n02128385_3"] + [
    f"n0{1700000 + k}_{7 * k + 1}" for k in range(7)
]
TEST = ["n01443537_22563", "n03626115_19498", "n04507155_21299"]
IMAGINED = ["n01443537", "n03626115", "n04507155"]


def made(seed=0):
    """12 training images once, 3 test images four times, 3 categories imagined twice: 30 rows; three regions."""
    rng = np.random.default_rng(seed)
    names = TRAIN + TEST * 4 + IMAGINED * 2
    ids = sorted({f"god:{name}" for name in TRAIN + TEST})
    images = rng.integers(0, 256, (len(ids), 16, 16, 3), np.uint8)
    trials = TrialTable.of([f"god:{name}" for name in names], np.arange(30) // 10 + 1, np.arange(30) % 10 // 5 + 1)
    mask = rng.random((4, 5, 3)) < 0.6
    mask[0, 0, 0] = mask[1:, 1:, 1:] = True  # the grid of 3 mm is told by neighbours in every direction
    rois = {name: rng.random(mask.sum()) < share for name, share in (("VC", 0.7), ("V1", 0.3), ("FFA", 0.2))}
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -70.5, -96, 1.5
    space = VoxelSpace.from_mask("god-Subject3", mask, affine, rois=rois)
    values = rng.normal(size=(30, len(space))).astype(np.float32)
    split = Split("god", frozenset(f"god:{n}" for n in TRAIN), frozenset(), frozenset(f"god:{n}" for n in TEST))
    stimuli = StimulusSet(ids + [f"god:{n}" for n in IMAGINED], ArrayImages(np.concatenate([images, images[:3]])))
    return BrainDataset([Subject("Subject3", Responses(values, trials), space)], stimuli, {"god": split})


def perceived(dataset):
    """Without the imagined categories, as `load` gives it by default."""
    person, ids = dataset.subject("Subject3"), dataset.stimuli.ids[: len(TRAIN) + len(TEST)]
    person = replace(person, responses=person.responses.subset(np.arange(24)))
    images = ArrayImages(np.stack([dataset.stimuli.image(image_id) for image_id in ids]))
    return BrainDataset([person], StimulusSet(ids, images), dataset.splits)


@pytest.fixture
def written(tmp_path):
    dataset = made()
    write_god.write(dataset, tmp_path / "Subject3.h5")
    write_images(perceived(dataset).stimuli, tmp_path / "images" / "training")
    return dataset, tmp_path


def change(path, function):
    """Rewrites a file through (dataset, keys, metadata) -> the same."""
    import h5py

    with h5py.File(path, "r") as file:
        parts = file["dataset"][()], [key.decode() for key in file["metadata/key"][()]], file["metadata/value"][()]
    data, keys, values = function(*parts)
    with h5py.File(path, "w") as file:
        file["dataset"], file["metadata/value"] = data, values
        file["metadata/key"] = [key.encode() for key in keys]


@pytest.mark.parametrize("older", [False, True])
def test_round_trip_of_both_spellings(tmp_path, older):
    dataset = made()
    write_god.write(dataset, tmp_path / "Subject3.h5", older=older)
    write_images(perceived(dataset).stimuli, tmp_path / "images")
    litter(tmp_path)
    assert god.detect(tmp_path)
    loaded = god.load(tmp_path, 3, images="images")
    assert_same(loaded, perceived(dataset))
    split = loaded.split("god")
    assert split.test == dataset.split("god").test and split.train | split.val == dataset.split("god").train


def test_imagery_has_categories_and_no_pictures(written):
    dataset, root = written
    loaded = god.load(root, 3, imagery=True, images="images")
    whole, meant = loaded.subject("Subject3").responses, dataset.subject("Subject3").responses
    np.testing.assert_array_equal(whole.trials.image_id, meant.trials.image_id)
    np.testing.assert_array_equal(whole.values, meant.values)
    assert loaded.split("god_imagery").test == {f"god:{name}" for name in IMAGINED}
    assert loaded.stimuli.label("category", ["god:n01443537", "god:n01443537_22563"]).tolist() == ["n01443537"] * 2
    with pytest.raises(LayoutError, match="an imagined category has no picture"):
        loaded.stimuli.image("god:n01443537")


@pytest.mark.parametrize(
    "number, image_id",
    [(1518878.010042, "n01518878_10042"), (13111881.00917, "n13111881_9170"), (2128385.000003, "n02128385_3")],
)
def test_numbers_of_stimuli(number, image_id):
    assert god._image_id(np.float64(number), 1, 0, "file") == f"god:{image_id}"


def test_regions_keep_their_voxels(written):
    dataset, root = written
    meant, loaded = dataset.subject("Subject3"), god.load(root, 3, rois=["ROI_V1", "FFA"]).subject("Subject3")
    kept = meant.space.rois["V1"] | meant.space.rois["FFA"]
    np.testing.assert_array_equal(loaded.responses.values, meant.responses.values[:24, kept])
    np.testing.assert_array_equal(loaded.space.rois["V1"], meant.space.rois["V1"][kept])


def test_oblique_coordinates_are_no_grid(written):
    dataset, root = written

    def turn(data, keys, values):
        place = [keys.index(f"voxel_{axis}") for axis in "xyz"]
        values[place] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0.01], [0, 0.02, 1]]) @ values[place]
        return data, keys, values

    change(root / "Subject3.h5", turn)
    space = god.load(root, 3).subject("Subject3").space
    assert space.affine is None and space.shape == (len(dataset.subject("Subject3").space), 1, 1)


def test_no_data_type_is_no_god_file(written):
    _, root = written
    change(root / "Subject3.h5", lambda data, keys, values: (data, ["Kind", *keys[1:]], values))
    with pytest.raises(LayoutError, match=r"not a GOD file, keys found: Kind, stimulus_id, .*VoxelData"):
        god.load(root, 3)


def test_absent_region(written):
    _, root = written
    with pytest.raises(LayoutError, match=r"expected regions of .*Subject3\.h5 \(VC, V1, FFA\), got 'V2'; near: V"):
        god.load(root, 3, rois=["V2"])


def test_region_without_voxels(written):
    _, root = written

    def empty(data, keys, values):
        values[keys.index("ROI_V1"), 4:] = 0
        return data, keys, values

    change(root / "Subject3.h5", empty)
    with pytest.raises(AxisError, match=r"expected voxels of V1 in .*, got none"):
        god.load(root, 3, rois=["V1"])


def test_another_voxel_size_is_another_space(written):
    """Two releases of one subject differ in their voxels (KamitaniLab/DeepImageReconstruction#7)."""
    dataset, root = written
    person = dataset.subject("Subject3")
    fewer = np.arange(len(person.space)) < 20
    values = replace(person.responses, values=person.responses.values[:, fewer])
    coarse = dataset.with_subject(replace(person, responses=values, space=person.space.select(fewer)))
    write_god.write(coarse, root / "Subject3_2mm.h5")
    match = rf"got Subject3\.h5 with {len(person.space)} voxels, Subject3_2mm\.h5 with 20 voxels: another voxel size"
    with pytest.raises(LayoutError, match=match):
        god.load(root, 3)
    assert len(god.load(root, 3, file="Subject3_2mm.h5").subject("Subject3").space) == 20
    write_god.write(dataset, root / "Subject3_2mm.h5")
    with pytest.raises(LayoutError, match=r"expected one file of Subject3 .*; pass file="):
        god.load(root, 3)


def test_subject_that_is_not_there(written):
    _, root = written
    with pytest.raises(LayoutError, match=r"expected Subject4\.h5 in .*, got Subject3\.h5"):
        god.load(root, 4)


def test_numbers_that_float32_has_rounded(written):
    _, root = written
    change(root / "Subject3.h5", lambda data, keys, values: (data.astype(np.float32), keys, values))
    with pytest.raises(IdError, match=r"expected float64 stimulus numbers in .*, got float32"):
        god.load(root, 3)


@pytest.mark.parametrize("number", [1518878.0, np.nan, -3.0])
def test_category_or_nothing_where_an_image_is_due(written, number):
    _, root = written

    def spoil(data, keys, values):
        data[5, 1] = number
        return data, keys, values

    change(root / "Subject3.h5", spoil)
    with pytest.raises(IdError, match=rf"in row 5 of .*, got {number}"):
        god.load(root, 3)


def test_metadata_of_another_width(written):
    _, root = written
    change(root / "Subject3.h5", lambda data, keys, values: (data, keys, values[:, 1:]))
    with pytest.raises(AxisError, match=r"expected metadata/value \(\d+ keys, \d+ columns\) in .*, got \(\d+, \d+\)"):
        god.load(root, 3)


def test_neither_spelling(written):
    import h5py

    _, root = written
    with h5py.File(root / "Subject3.h5", "w") as file:
        file["betas"] = np.zeros(3)
    with pytest.raises(LayoutError, match=r"expected dataset and metadata in .*, got betas"):
        god.load(root, 3)
    assert not god.detect(root)


def test_nan_is_named(written):
    dataset, root = written

    def spoil(data, keys, values):
        data[14, 4 + 6] = np.nan
        return data, keys, values

    change(root / "Subject3.h5", spoil)
    image = dataset.subject("Subject3").responses.trials.image_id[14]
    with pytest.raises(LayoutError, match=rf"got nan at trial 14 \(image {image}\), voxel 6"):
        god.load(root, 3)
