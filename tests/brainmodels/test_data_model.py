"""Stimuli, responses, splits and pairs: joined by id whatever the order of rows, and never copied as a whole."""

import json
import multiprocessing
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import (
    ArrayImages,
    BrainDataset,
    HDF5Images,
    Normalizer,
    Responses,
    SensorSpace,
    Split,
    StimulusSet,
    Subject,
    TrialTable,
    VoxelSpace,
)
from brainmodels.errors import AxisError, BrainDataError, IdError, LeakageError
from tests.brainmodels.made import made_dataset


def _brute_force(dataset, wanted, sessions=None):
    """Mean response of each image, in plain loops."""
    responses = dataset.subject("subj01").responses
    means = {}
    for name in sorted(wanted):
        rows = [
            np.asarray(responses.values[row], np.float64) * responses.scale
            for row in range(len(responses))
            if responses.trials.image_id[row] == name
            and (sessions is None or responses.trials.session[row] in sessions)
        ]
        if rows:
            means[name] = np.mean(rows, axis=0)
    return means


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_pairs_are_the_mean_over_trials_of_each_image(dtype):
    dataset = made_dataset(dtype=dtype)
    split = dataset.split("made")
    pairs = dataset.pairs("subj01", split, "train", average="repeats")
    expected = _brute_force(dataset, split.train)
    assert set(pairs.image_ids) == set(expected)
    array = pairs.array(batch_size=3)
    for row, name in enumerate(pairs.image_ids):
        np.testing.assert_allclose(array[row], expected[name], rtol=1e-5, atol=1e-5)


def test_rows_in_any_order_give_the_same_pairs():
    dataset = made_dataset()
    person = dataset.subject("subj01")
    order = np.random.default_rng(3).permutation(len(person.responses))
    mixed = Responses(person.responses.values[order], person.responses.trials[order])
    mixed = dataset.with_subject(replace(person, responses=mixed))
    for average in ("none", "repeats"):
        first, second = (x.pairs("subj01", "made", "test", average=average) for x in (dataset, mixed))
        assert first.image_ids.tolist() == second.image_ids.tolist()
        np.testing.assert_array_equal(first.array(), second.array())


def test_single_trials_follow_their_repeats():
    dataset = made_dataset(repeats=3)
    responses = dataset.subject("subj01").responses
    pairs = dataset.pairs("subj01", "made", "test")
    rows = np.concatenate(pairs.trials)
    assert responses.trials.image_id[rows].tolist() == pairs.image_ids.tolist()
    assert responses.trials.repeat[rows].tolist() == [0, 1, 2] * 4
    np.testing.assert_array_equal(pairs.array(), responses.values[rows])


def test_repeats_count_presentations_in_the_order_of_time():
    trials = TrialTable.of(["a", "b", "a", "a", "b"], trial=[4, 1, 0, 2, 3])
    assert trials.repeat.tolist() == [2, 0, 0, 1, 1]
    assert trials.session.tolist() == [-1] * 5  # unknown, not invented


def test_region_keeps_its_voxels():
    dataset = made_dataset()
    mask = dataset.subject("subj01").space.roi("V1")
    whole = dataset.pairs("subj01", "made", "train").array()
    np.testing.assert_array_equal(dataset.pairs("subj01", "made", "train", roi="V1").array(), whole[:, mask])
    with pytest.raises(BrainDataError, match="expected a region of made"):
        dataset.pairs("subj01", "made", "train", roi="V2")


def test_subset_shares_the_memory_of_the_whole(tmp_path):
    np.save(tmp_path / "values.npy", np.arange(60, dtype=np.float32).reshape(12, 5))
    values = np.load(tmp_path / "values.npy", mmap_mode="r")
    whole = Responses(values, TrialTable.of([str(i) for i in range(12)]), scale=0.5)
    part = whole.subset(whole.trials.trial % 2 == 1).subset([4, 0])
    assert np.shares_memory(part.values, whole.values)
    assert part.trials.image_id.tolist() == ["9", "1"]
    np.testing.assert_array_equal(part.batch([0, 1]), np.array([values[9], values[1]]) * 0.5)


def _read_elsewhere(responses, stimuli, rows, queue):
    queue.put((responses.batch(rows), stimuli.image("5"), isinstance(responses.values, np.memmap)))


@pytest.mark.slow
def test_another_process_maps_the_file_instead_of_receiving_it(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "values.npy", rng.normal(size=(400, 500)).astype(np.float32))
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (400, 8, 8, 3), np.uint8))
    values, images = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("values", "images"))
    ids = [str(i) for i in range(400)]
    responses = Responses(values, TrialTable.of(ids)).subset(np.arange(399, -1, -1))
    stimuli = StimulusSet(ids, ArrayImages(images))
    assert len(pickle.dumps(responses)) < 60_000 < values.nbytes
    assert len(pickle.dumps(stimuli.source)) < 2_000 < images.nbytes
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_read_elsewhere, args=(responses, stimuli, [0, 7], queue))
    worker.start()
    batch, picture, mapped = queue.get(timeout=300)
    worker.join()
    assert mapped
    np.testing.assert_array_equal(batch, values[[399, 392]])
    np.testing.assert_array_equal(picture, images[5])


def test_part_of_a_mapped_file_travels_whole(tmp_path):
    np.save(tmp_path / "values.npy", np.arange(30.0).reshape(10, 3))
    part = np.load(tmp_path / "values.npy", mmap_mode="r")[4:]
    responses = Responses(part, TrialTable.of(list("abcdef")))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(responses)).values, part)


def test_parts_that_share_an_image_are_refused():
    a, b, c = frozenset("a"), frozenset("b"), frozenset("c")
    for parts in ((a, b, a), (a, b, b), (a, a, c)):
        with pytest.raises(LeakageError, match="to share no image, got 1, such as"):
            Split("bad", *parts)
    with pytest.raises(LeakageError, match="train images of subj01 within those of the split, got c"):
        Split("bad", a, b, c, train_of={"subj01": c})
    with pytest.raises(LeakageError, match="val images of subj01"):
        Split("bad", a, b, c, val_of={"subj01": a})


def test_split_gives_a_subject_its_own_images_and_sessions():
    dataset = made_dataset(num_images=12, repeats=4, sessions=3)
    whole = dataset.split("made")
    few = frozenset(sorted(whole.train)[:2])
    split = replace(whole, train_of={"subj01": few}, val_of={"subj01": frozenset()}, sessions={"train": frozenset([2])})
    trials = dataset.subject("subj01").responses.trials
    rows = split.rows(trials, "train", "subj01")
    assert rows.tolist() == [i for i in range(len(trials)) if trials.image_id[i] in few and trials.session[i] == 2]
    assert len(split.rows(trials, "val", "subj01")) == 0 < len(split.rows(trials, "val", "another"))
    pairs = dataset.pairs("subj01", split, "train", average="repeats")
    expected = _brute_force(dataset, few, sessions={2})
    assert set(pairs.image_ids) == set(expected)
    np.testing.assert_allclose(pairs.array(), [expected[name] for name in pairs.image_ids], rtol=1e-5, atol=1e-5)
    assert len(dataset.pairs("subj01", split, "test")) == 16  # all sessions


def test_hash_changes_with_every_id_and_session():
    split = Split("x", frozenset("ab"), frozenset("c"), frozenset("d"))
    others = [
        replace(split, train=frozenset("a")),
        replace(split, val=frozenset()),
        replace(split, test=frozenset("de")),
        replace(split, train_of={"subj01": frozenset("a")}),
        replace(split, val_of={"subj01": frozenset()}),
        replace(split, sessions={"train": frozenset([1])}),
    ]
    assert len({split.hash, *(other.hash for other in others)}) == 7
    assert replace(split, name="y", params={"seed": 1}).hash == split.hash
    for one in others:
        again = Split.from_json(json.loads(json.dumps(one.to_json())))
        assert again == one


def test_unknown_ids_name_the_nearest():
    dataset = made_dataset()
    with pytest.raises(IdError, match=r"got 'sim:00099'; near: sim:0000"):
        dataset.stimuli.image("sim:00099")
    with pytest.raises(IdError, match="got 'subj1'; near: subj01"):
        dataset.subject("subj1")
    with pytest.raises(IdError, match="without a trial"):
        dataset.subject("subj01").responses.rows_of(["sim:00099"])
    stimuli = StimulusSet(["other"], ArrayImages(np.zeros((1, 4, 4, 3), np.uint8)))
    with pytest.raises(IdError, match="expected ids of this set of 1 images, got 'sim:"):
        BrainDataset(list(dataset.subjects.values()), stimuli)


def test_wrong_shapes_are_named():
    space = VoxelSpace.from_mask("box", np.ones((2, 2, 1), bool))
    trials = TrialTable.of(["a", "b"])
    with pytest.raises(AxisError, match="expected 4 voxels of subj01, as its space has, got 3"):
        Subject("subj01", Responses(np.zeros((2, 3), np.float32), trials), space)
    with pytest.raises(AxisError, match="expected one trial for each of 3 rows, got 2"):
        Responses(np.zeros((3, 4), np.float32), trials)
    with pytest.raises(AxisError, match=r"at least one voxel, or channel and time, got shape \(2, 0\)"):
        Responses(np.zeros((2, 0), np.float32), trials)
    with pytest.raises(AxisError, match=r"got shape \(2, 1, 3, 4\)"):
        Responses(np.zeros((2, 1, 3, 4), np.float32), trials)
    with pytest.raises(AxisError, match="got int64"):
        Responses(np.zeros((2, 4), np.int64), trials)


def test_volume_puts_voxels_back():
    mask = np.random.default_rng(1).random((4, 3, 5)) < 0.5
    space = VoxelSpace.from_mask("box", mask, np.eye(4))
    values = np.random.default_rng(2).normal(size=mask.sum()).astype(np.float32)
    volume = space.volume(values)
    np.testing.assert_array_equal(volume[mask], values)
    assert np.isnan(volume[~mask]).all()


def test_block_design_is_warned_about(caplog):
    person = made_dataset().subject("subj01")
    replace(person, design="block")
    assert "block-shuffle control" in caplog.text


def test_masks_choose_trials_and_nothing_wraps_around():
    dataset = made_dataset()
    responses, pairs = dataset.subject("subj01").responses, dataset.pairs("subj01", "made", "train")
    mask = np.arange(len(responses)) % 3 == 1
    np.testing.assert_array_equal(responses.batch(mask), responses.values[mask])
    np.testing.assert_array_equal(responses.subset(mask).batch([0, 2]), responses.values[mask][[0, 2]])
    names = np.unique(responses.trials.image_id[mask]).tolist()
    assert sorted(np.concatenate(responses.rows_of(names, mask))) == np.flatnonzero(mask).tolist()
    kept = np.arange(len(pairs)) < 3
    np.testing.assert_array_equal(pairs.batch(kept), pairs.batch([0, 1, 2]))
    for read in (responses.batch, responses.subset, pairs.batch):
        for wrong in ([-1], [10_000], [0.5], mask[:5], np.zeros((2, 2), int)):
            with pytest.raises(AxisError, match=r"expected (positions|integers)"):
                read(wrong)


def test_no_trial_among_those_that_count_is_an_id_error():
    responses = made_dataset().subject("subj01").responses
    with pytest.raises(IdError, match="without a trial"):
        responses.rows_of(responses.trials.image_id[:1], np.array([], int))


def test_columns_of_a_table_have_one_length():
    with pytest.raises(AxisError, match="one length"):
        TrialTable(np.array(["a", "b"]), *[np.zeros(n, int) for n in (2, 2, 1, 2)])


def test_a_picture_is_a_copy():
    stimuli = made_dataset().stimuli
    name = stimuli.ids[0]
    before = stimuli.image(name).copy()
    stimuli.image(name)[:] = 0
    np.testing.assert_array_equal(stimuli.image(name), before)


def test_hdf5_pictures_are_opened_anew_in_a_forked_process(tmp_path, monkeypatch):
    """A forked worker that read through the inherited handle would share the place in the file with its parent."""
    h5py = pytest.importorskip("h5py")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["imgBrick"] = pixels
    images = HDF5Images(tmp_path / "images.h5", "imgBrick", rows=[2, 0])
    assert images._file is None  # nothing is open that a fork could inherit
    np.testing.assert_array_equal(images.read(0, None), pixels[2])
    inherited = images._file
    monkeypatch.setattr(os, "getpid", lambda: -5)
    np.testing.assert_array_equal(images.read(1, None), pixels[0])
    assert images._file is not inherited


def test_a_space_holds_its_voxels():
    with pytest.raises(AxisError, match=r"within \(2, 2, 2\), got one at \[0, -1, 1\]"):
        VoxelSpace("made", np.array([[0, 1, 1], [0, -1, 1]]), (2, 2, 2))
    with pytest.raises(AxisError, match=r"within \(4, 3\), got one at \[1, 3\]"):
        VoxelSpace("made", np.array([[0, 3], [1, 3]]), (4, 3))


def test_sensors_have_the_times_of_their_responses():
    times, trials = np.arange(5) / 100, TrialTable.of(["a", "b"])
    space = SensorSpace(("Oz", "Pz"), 100.0, times)
    for shape in ((2, 2), (2, 2, 4)):
        with pytest.raises(AxisError, match=r"\(trials, channels, times\) with 5 times"):
            Subject("one", Responses(np.zeros(shape, np.float32), trials), space)
    person = Subject("one", Responses(np.zeros((2, 2, 5), np.float32), trials), space)
    dataset = BrainDataset([person], StimulusSet(["a", "b"], ArrayImages(np.zeros((2, 4, 4, 3), np.uint8))))
    split = Split("made", frozenset("a"), frozenset(), frozenset("b"))
    with pytest.raises(BrainDataError, match="responses are of sensors"):
        dataset.pairs("one", split, "train", roi="V1")
    voxels = VoxelSpace.from_mask("made", np.ones((2, 1, 1), bool))
    with pytest.raises(AxisError, match=r"\(trials, voxels\) of one"):
        Subject("one", person.responses, voxels)


def test_pairs_say_all_that_values_went_through():
    """Data that were released z-scored over test trials too stay transductive, whatever is done to them afterwards."""
    dataset = made_dataset()
    stored = dataset.with_subject(replace(dataset.subject("subj01"), normalizer="session_z"))
    plain, released = (x.pairs("subj01", "made", "test") for x in (dataset, stored))
    assert (plain.normalizer, plain.transductive) == ("none", False)
    assert (released.normalizer, released.transductive) == ("session_z", True)
    for name, expected in (("none", "session_z"), ("train_z", "session_z > train_z")):
        again = Normalizer(name, over="session_z").fit(dataset.subject("subj01").responses, stored.split("made").train)
        pairs = stored.pairs("subj01", "made", "test", transform=again)
        assert (pairs.normalizer, pairs.transductive) == (expected, True)
