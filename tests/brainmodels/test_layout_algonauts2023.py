"""The Algonauts 2023 folder: read back as written, and refused where its numbers do not fit each other."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import ArrayImages, BrainDataset, Responses, StimulusSet, Subject, TrialTable, VoxelSpace
from brainmodels.data.normalize import fit_normalizer
from brainmodels.errors import AxisError, LayoutError, NormalizationError
from brainmodels.layouts import algonauts2023
from tests.brainmodels.same import assert_same
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written import algonauts2023 as write_algonauts2023

LEFT, RIGHT, IMAGES, TEST = 50, 60, 30, 4
SESSIONS = np.ones(IMAGES, np.int64)
FUSIFORM = ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces")


def made(fsaverage=True, seed=0):
    """30 training and 4 test images, 50 + 60 vertices, two classes of regions; one trial for each training image."""
    rng = np.random.default_rng(seed)
    numbers = np.sort(rng.choice(73000, IMAGES + TEST, replace=False))
    rng.shuffle(numbers)  # the order of the files is not that of the numbers
    ids = [f"nsd:{number:05d}" for number in numbers]
    stimuli = StimulusSet(ids, ArrayImages(rng.integers(0, 256, (len(ids), 16, 16, 3), np.uint8)))
    hemisphere = np.repeat([0, 1], [LEFT, RIGHT])
    vertex = np.concatenate([np.arange(LEFT), np.arange(RIGHT)])
    if fsaverage:
        vertex = np.concatenate([np.sort(rng.choice(163842, count, replace=False)) for count in (LEFT, RIGHT)])
    visual, faces = rng.integers(0, 8, LEFT + RIGHT), rng.integers(0, 6, LEFT + RIGHT)
    rois = {name: visual == k for k, name in enumerate(("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"), 1)}
    rois |= {name: faces == k for k, name in enumerate(FUSIFORM, 1)}
    rois |= {
        "V1": (visual == 1) | (visual == 2),
        "V2": (visual == 3) | (visual == 4),
        "V3": (visual == 5) | (visual == 6),
    }
    shape = (163842, 163842) if fsaverage else (LEFT, RIGHT)
    space = VoxelSpace("challenge-fsaverage", np.stack([hemisphere, vertex], 1), shape, rois=rois)
    values = rng.normal(size=(IMAGES, LEFT + RIGHT)).astype(np.float32)
    trials = TrialTable.of(ids[:IMAGES], repeat=0, trial=-1)
    return BrainDataset([Subject("subj03", Responses(values, trials), space, "session_z")], stimuli)


@pytest.fixture
def written(tmp_path):
    dataset = made()
    write_algonauts2023.write(dataset, tmp_path)
    return dataset, tmp_path


@pytest.mark.parametrize("fsaverage", [True, False])
def test_round_trip(tmp_path, fsaverage):
    dataset = made(fsaverage)
    write_algonauts2023.write(dataset, tmp_path)
    litter(tmp_path)
    assert algonauts2023.detect(tmp_path) and not algonauts2023.detect(tmp_path / "subj03")
    loaded = algonauts2023.load(tmp_path, 3)
    assert_same(loaded, dataset)
    partition = loaded.stimuli.label("partition", dataset.stimuli.ids)
    assert partition.tolist() == ["train"] * IMAGES + ["test"] * TEST


def test_split_holds_out_training_images_only(written):
    dataset, root = written
    split = algonauts2023.load(root, "subj03", holdout=0.3).split("algonauts")
    trained = set(dataset.stimuli.ids[:IMAGES].tolist())
    assert split.train | split.val | split.test == trained
    assert len(split.test) == 9
    again = algonauts2023.load(root, "subj03", holdout=0.3).split("algonauts")
    other = algonauts2023.load(root, "subj03", holdout=0.3, seed=1).split("algonauts")
    assert split.hash == again.hash != other.hash
    challenge = algonauts2023.load(root, "subj03").split("algonauts_challenge")
    assert challenge.test == set(dataset.stimuli.ids[IMAGES:].tolist()) and challenge.train | challenge.val == trained


def test_values_come_into_the_memory_that_is_given(written):
    dataset, root = written
    given = {}

    def allocate(shape, dtype):
        given["array"] = np.full(shape, np.nan, dtype)
        return given["array"]

    values = algonauts2023.load(root, 3, allocate=allocate).subject("subj03").responses.values
    assert values is given["array"] and values.dtype == np.float32
    np.testing.assert_array_equal(values, dataset.subject("subj03").responses.values)


@pytest.mark.parametrize("name", ["session_z_train", "train_z"])
def test_a_second_normaliser_is_refused(written, name):
    dataset = algonauts2023.load(written[1], 3)
    person = dataset.subject("subj03")
    known = replace(
        person, responses=replace(person.responses, trials=replace(person.responses.trials, session=SESSIONS))
    )
    with pytest.raises(NormalizationError, match="subj03 as measured, got values that went through 'session_z'"):
        fit_normalizer(name, known, dataset.split("algonauts"))


def test_missing_subject_names_the_near_ones(written):
    _, root = written
    with pytest.raises(LayoutError, match=r"folder of a subject at .*subj04, got no such folder; near: subj03"):
        algonauts2023.load(root, 4)


@pytest.mark.parametrize("part", ["training_split/training_images", "test_split/test_images"])
def test_gap_in_the_numbers(written, part):
    _, root = written
    sorted((root / "subj03" / part).glob("*"))[1].unlink()
    with pytest.raises(LayoutError, match=r"numbered from 1 without gaps in .*, got \d+ pictures without \[2\]"):
        algonauts2023.load(root, 3)


def test_two_pictures_of_one_number(written):
    _, root = written
    folder = root / "subj03" / "training_split" / "training_images"
    first = min(folder.glob("*"))
    (folder / "train-0001_nsd-72999.png").write_bytes(first.read_bytes())
    with pytest.raises(LayoutError, match=r"one picture of number 1 in .*, got train-0001_nsd-\d+\.png as well"):
        algonauts2023.load(root, 3)


def test_foreign_picture(written):
    _, root = written
    (root / "subj03" / "training_split" / "training_images" / "cat.png").write_bytes(b"")
    with pytest.raises(LayoutError, match=r"expected train-0001_nsd-00013\.png and the like in .*, got cat\.png"):
        algonauts2023.load(root, 3)


def rewrite(root, name, change):
    path = root / "subj03" / name
    np.save(path, change(np.load(path)))


def test_hemispheres_of_different_length(written):
    _, root = written
    rewrite(root, "training_split/training_fmri/rh_training_fmri.npy", lambda values: values[:-1])
    with pytest.raises(AxisError, match=r"as many rows in both hemispheres of .*, got 30 left and 29 right"):
        algonauts2023.load(root, 3)


def test_fewer_rows_than_images(written):
    _, root = written
    for side in ("lh", "rh"):
        rewrite(root, f"training_split/training_fmri/{side}_training_fmri.npy", lambda values: values[:-1])
    with pytest.raises(AxisError, match=r"expected 30 rows in .*, one for each training image, got 29"):
        algonauts2023.load(root, 3)


@pytest.mark.parametrize("side, width", [("lh", LEFT), ("rh", RIGHT)])
def test_mask_of_another_length(written, side, width):
    _, root = written
    rewrite(root, f"roi_masks/{side}.floc-faces_challenge_space.npy", lambda labels: labels[1:])
    with pytest.raises(
        AxisError, match=rf"labels of {width} vertices in .*{side}\.floc-faces.*got shape \({width - 1},\)"
    ):
        algonauts2023.load(root, 3)


def test_label_that_the_class_does_not_have(written):
    _, root = written
    rewrite(root, "roi_masks/rh.floc-faces_challenge_space.npy", lambda labels: np.where(labels == 1, 9, labels))
    with pytest.raises(LayoutError, match=r"expected labels 0 to 5 in .*floc-faces.*, got 0 to 9"):
        algonauts2023.load(root, 3)


def test_unknown_class_of_regions(written):
    _, root = written
    folder = root / "subj03" / "roi_masks"
    np.save(folder / "lh.floc-face_challenge_space.npy", np.zeros(LEFT))
    with pytest.raises(LayoutError, match=r"expected a class of regions of .*; near: floc-faces"):
        algonauts2023.load(root, 3)


def test_vertices_that_do_not_fit_the_columns(written):
    _, root = written

    def one_more(vertices):
        vertices[np.flatnonzero(vertices == 0)[0]] = 1
        return vertices

    rewrite(root, "roi_masks/lh.all-vertices_fsaverage_space.npy", one_more)
    with pytest.raises(AxisError, match=r"expected 50 vertices of .*, as many as columns, got 51"):
        algonauts2023.load(root, 3)


def test_nan_is_named(written):
    _, root = written

    def spoil(values):
        values[3, 9] = np.nan
        return values

    rewrite(root, "training_split/training_fmri/lh_training_fmri.npy", spoil)
    with pytest.raises(LayoutError, match=r"finite values in .*lh_training_fmri\.npy, got nan at trial 3, voxel 9"):
        algonauts2023.load(root, 3)
