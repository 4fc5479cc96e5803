"""Studies of objects and their trials: what is joined, and what is refused."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data.dataset import BrainDataset, Subject
from brainmodels.data.objects import ObjectStudy, ObjectTrials
from brainmodels.data.responses import Responses
from brainmodels.data.spaces import SensorSpace, VoxelSpace
from brainmodels.data.splits import class_holdout
from brainmodels.errors import AxisError, BrainDataError, IdError, NormalizationError
from brainmodels.features.arrays import ArrayFeatures
from tests.brainmodels.object_data import (
    CHANNELS,
    SIZES,
    WORDS,
    changed,
    dataset_of,
    split_of,
    stimuli_of,
    study_of,
    table_of,
)


def test_streams_are_joined_by_object_and_presentation():
    """The rows of one table are shuffled, with their times."""
    stimuli, _ = stimuli_of()
    dynamic = dataset_of(stimuli, "dynamic")
    responses = dynamic.subject("sub01").responses
    order = np.random.default_rng(1).permutation(len(responses))
    dynamic = changed(dynamic, values=responses.values[order], trials=responses.trials[order])
    study = study_of(dynamic=dynamic, stimuli=stimuli)
    for part, count, repeats in (("train", 48, 2), ("test", 24, 4), ("train+val", 48, 2)):
        trials = ObjectTrials.of(study, "sub01", part)
        assert len(trials) == count and trials.streams == ("static", "dynamic")
        expected = stimuli.rows(trials.ids) * 10 + np.tile(np.arange(repeats), count // repeats)
        found = trials.values()
        np.testing.assert_array_equal(found["static"][:, 0, 0], expected)
        np.testing.assert_array_equal(found["dynamic"][:, 0, 0], expected)
        table = study.static.subject("sub01").responses.trials
        np.testing.assert_array_equal(table.image_id[trials.order], trials.ids)
        np.testing.assert_array_equal(table.session[trials.order], trials.session)
        assert trials.presentation.tolist() == [*range(repeats)] * (count // repeats)
    mean = ObjectTrials.of(study, "sub01", "test", average="repeats").values(["dynamic"])
    np.testing.assert_allclose(mean["dynamic"][:, 0, 0], [10 * row + 1.5 for row in (8, 9, 18, 19, 28, 29)])


def test_a_missing_presentation_is_named():
    stimuli, _ = stimuli_of()
    dynamic = dataset_of(stimuli, "dynamic")
    table = dynamic.subject("sub01").responses.trials
    left = np.flatnonzero((table.image_id != "eeg3d:lamp_08") | (table.repeat != 2))
    dynamic = dynamic.with_subject(
        replace(dynamic.subject("sub01"), responses=dynamic.subject("sub01").responses.subset(left))
    )
    study = study_of(dynamic=dynamic, stimuli=stimuli)
    with pytest.raises(
        IdError, match="got 24 static, 23 dynamic; presentation 2 of eeg3d:lamp_08 is missing in the dynamic stream"
    ):
        ObjectTrials.of(study, "sub01", "test")
    assert len(ObjectTrials.of(study, "sub01", "train")) == 48


def test_streams_that_disagree_about_time():
    stimuli, _ = stimuli_of()
    table = table_of(stimuli)
    late = replace(table, trial=np.where(table.image_id == "eeg3d:bed_03", table.trial + 100, table.trial))
    study = study_of(dynamic=dataset_of(stimuli, "dynamic", late), stimuli=stimuli)
    with pytest.raises(IdError, match=r"presentation 0 of eeg3d:bed_03 at the same trial .* 2 of 48 differ"):
        ObjectTrials.of(study, "sub01", "train")
    other = replace(table, session=table.session + 1)
    study = study_of(dynamic=dataset_of(stimuli, "dynamic", other), stimuli=stimuli)
    with pytest.raises(IdError, match="at the same session in both streams"):
        ObjectTrials.of(study, "sub01", "test")
    unknown = replace(table, trial=np.full(len(table), -1), session=np.full(len(table), -1))
    study = study_of(dynamic=dataset_of(stimuli, "dynamic", unknown), stimuli=stimuli)
    trials = ObjectTrials.of(study, "sub01", "test")  # the other stream knows
    np.testing.assert_array_equal(table.image_id[trials.order], trials.ids)


def test_a_presentation_twice():
    stimuli, _ = stimuli_of()
    table = table_of(stimuli)
    twice = replace(table, repeat=np.where(table.image_id == "eeg3d:bed_00", 0, table.repeat))
    study = study_of(static=dataset_of(stimuli, "static", twice), stimuli=stimuli)
    with pytest.raises(IdError, match="got presentation 0 of eeg3d:bed_00 twice"):
        ObjectTrials.of(study, "sub01", "train")


def test_means_over_presentations():
    study = study_of()
    single = ObjectTrials.of(study, "sub01", "test")
    mean = ObjectTrials.of(study, "sub01", "test", average="repeats")
    assert mean.ids.tolist() == list(dict.fromkeys(single.ids.tolist())) and mean.repeats.tolist() == [4] * 6
    for name, values in single.values().items():
        expected = values.astype(np.float64).reshape(6, 4, *values.shape[1:]).mean(1)
        np.testing.assert_allclose(mean.values()[name], expected, rtol=1e-6)
        np.testing.assert_array_equal(single.averaged().values()[name], mean.values()[name])
        np.testing.assert_array_equal(mean.averaged().values()[name], mean.values()[name])
    assert (mean.order == -1).all() and (mean.presentation == -1).all()
    shuffled = single.take(np.random.default_rng(0).permutation(24)).averaged()
    for name in shuffled.streams:
        at = [mean.ids.tolist().index(image_id) for image_id in shuffled.ids]
        np.testing.assert_allclose(shuffled.values()[name], mean.values()[name][at], rtol=1e-6)
    pair = single.take([0, 1]).averaged()
    mixed = replace(single.take([0, 2]), repeats=np.array([2, 1]))
    assert pair.repeats.tolist() == [2]
    with pytest.raises(BrainDataError, match=r"expected rows of eeg3d:bed_08 with equal repeats, got \[2, 1\]"):
        mixed.averaged()


def test_rows_of_other_parts_are_not_read():
    """Values of test trials that are not finite neither matter to the training nor pass unseen in the test."""
    stimuli, _ = stimuli_of()
    study = study_of(stimuli=stimuli)
    spoilt = {}
    for name in study.streams:
        responses = study.dataset(name).subject("sub01").responses
        values = responses.values.copy()
        values[study.split().rows(responses.trials, "test")] = np.nan
        spoilt[name] = changed(study.dataset(name), values=values)
    other = ObjectStudy(**spoilt)
    for average in ("none", "repeats"):
        clean, found = (ObjectTrials.of(x, "sub01", "train", average=average) for x in (study, other))
        assert clean.signature() == found.signature()
        for name, values in found.values().items():
            np.testing.assert_array_equal(values, clean.values()[name])
    with pytest.raises(BrainDataError, match=r"got values that are not finite, at channel FZ of trial \d+ "):
        ObjectTrials.of(other, "sub01", "test")


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(fault):
    stimuli, _ = stimuli_of()
    dynamic = dataset_of(stimuli, "dynamic")
    table, values = table_of(stimuli), dynamic.subject("sub01").responses.values.copy()
    trial = int(np.flatnonzero(table.image_id == "eeg3d:tree_07")[1])
    values[trial, 2, 6] = fault
    study = study_of(dynamic=changed(dynamic, values=values), stimuli=stimuli)
    with pytest.raises(
        BrainDataError,
        match=rf"every dynamic channel, .* not finite, at channel PZ of trial {trial} \(object eeg3d:tree_07\)",
    ):
        ObjectTrials.of(study, "sub01", "train")


def test_a_constant_channel_is_named(monkeypatch):
    """FZ is the reference and constant in every trial; another channel is not, not even in the last trial."""
    monkeypatch.setattr("brainmodels.data.objects._BLOCK_BYTES", 4 * 3 * 5 * 7)  # blocks of 7 trials
    stimuli, _ = stimuli_of()
    static = dataset_of(stimuli, "static")
    values = static.subject("sub01").responses.values.copy()
    trial = int(np.flatnonzero(table_of(stimuli).image_id == "eeg3d:tree_07")[1])
    values[trial, 1] = 0.25
    study = study_of(static=changed(static, values=values), stimuli=stimuli)
    with pytest.raises(
        BrainDataError,
        match=rf"got the constant 0.25 .*, at channel OZ of trial {trial} \(object eeg3d:tree",
    ):
        ObjectTrials.of(study, "sub01", "train")
    assert len(ObjectTrials.of(study, "sub01", "test")) == 24


def test_only_asked_rows_and_streams_are_read():
    study = study_of()
    trials = ObjectTrials.of(study, "sub01", "train")
    batch = trials.batch([5, 3, 5], ["dynamic"])
    assert list(batch) == ["dynamic"] and batch["dynamic"].dtype == np.float32
    np.testing.assert_array_equal(batch["dynamic"], trials.values()["dynamic"][[5, 3, 5]])
    assert trials.batch([])["static"].shape == (0, 3, 5)
    mask = trials.ids == "eeg3d:lamp_02"
    np.testing.assert_array_equal(trials.take(mask).values()["static"], trials.batch(np.flatnonzero(mask))["static"])
    one = trials.with_streams("static")
    assert one.streams == ("static",) and list(one.values()) == list(one.units) == ["static"]
    with pytest.raises(BrainDataError, match="expected stream to be one of static, got 'dynamic'"):
        one.batch([0], ["dynamic"])
    with pytest.raises(AxisError, match="expected positions from 0 to 47, got 48"):
        trials.batch([48])
    copy = pickle.loads(pickle.dumps(trials))
    np.testing.assert_array_equal(copy.values()["dynamic"], trials.values()["dynamic"])


def test_replaced_values():
    trials = ObjectTrials.of(study_of(), "sub01", "test", average="repeats")
    values = trials.values()["static"]
    values[:, 1] = 0
    other = trials.with_values({"static": values})
    np.testing.assert_array_equal(other.values()["static"], values)
    np.testing.assert_array_equal(other.values()["dynamic"], trials.values()["dynamic"])
    np.testing.assert_array_equal(other.take([2, 1]).values()["static"], values[[2, 1]])
    assert other.repeats.tolist() == [4] * 6 and other.signature() == trials.signature()
    with pytest.raises(AxisError, match=r"expected static values \(6, 3, 5\) as ids and sensors say, got \(6, 3, 4\)"):
        trials.with_values({"static": values[..., :4]})


def test_signature_says_which_rows():
    study = study_of()
    trials = ObjectTrials.of(study, "sub01", "train")
    facts = trials.signature()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["rows"], facts["objects"], facts["presentations"]) == (48, 24, 48)
    assert facts["streams"]["dynamic"] == {
        "channels": list(CHANNELS),
        "sfreq": 100.0,
        "times": 7,
        "first_time": -0.2,
        "unit": "z",
    }
    hashes = {x.signature()["rows_hash"] for x in (trials, trials.averaged(), trials.take([0]), trials.take([1]))}
    assert len(hashes) == 4
    assert facts["split_hash"] == study.split().hash == trials.split_hash


def test_trials_from_arrays():
    rng = np.random.default_rng(0)
    spaces = {name: SensorSpace(CHANNELS, sfreq, np.arange(n) / sfreq) for name, (n, sfreq) in SIZES.items()}
    values = {name: rng.normal(size=(4, 3, n)) for name, (n, _) in SIZES.items()}
    trials = ObjectTrials.from_arrays(values, ["a", "b", "a", "b"], spaces)
    assert trials.presentation.tolist() == [0, 0, 1, 1] and (trials.part, trials.split) == ("", "")
    np.testing.assert_allclose(trials.averaged().values()["static"][0], values["static"][[0, 2]].mean(0), rtol=1e-5)
    with pytest.raises(AxisError, match=r"expected dynamic values \(3, 3, 7\) .* got \(4, 3, 7\)"):
        ObjectTrials.from_arrays({"dynamic": values["dynamic"]}, ["a", "b", "c"], spaces)
    with pytest.raises(BrainDataError, match="expected stream to be one of static, dynamic, got 'video'"):
        ObjectTrials.from_arrays({"video": values["static"]}, ["a", "b", "a", "b"], spaces)
    with pytest.raises(BrainDataError, match="expected values of at least one stream"):
        ObjectTrials.from_arrays({}, [], spaces)
    with pytest.raises(BrainDataError, match="expected the sensors of stream 'static', got those of dynamic"):
        ObjectTrials.from_arrays(values, ["a", "b", "a", "b"], {"dynamic": spaces["dynamic"]})
    values["static"][2, 1] = 3
    with pytest.raises(BrainDataError, match=r"got the constant 3 .* at channel OZ of trial 2"):
        ObjectTrials.from_arrays(values, ["a", "b", "a", "b"], spaces)


def test_streams_of_other_people_and_objects():
    stimuli, _ = stimuli_of()
    static = dataset_of(stimuli, "static")
    with pytest.raises(IdError, match=r"expected the same subjects .* 'sub02' is not in the static stream"):
        ObjectStudy(static, dataset_of(stimuli, "dynamic", subject="sub02"))
    more, _ = stimuli_of((*WORDS, "vase"))
    with pytest.raises(IdError, match=r"expected the same objects .* got 30 static and 40 dynamic; 'eeg3d:vase_00'"):
        ObjectStudy(static, dataset_of(more, "dynamic"))
    other = split_of(stimuli, val=["eeg3d:bed_00"])
    with pytest.raises(IdError, match="expected the same split 'objects' in both streams"):
        ObjectStudy(static, dataset_of(stimuli, "dynamic", split=other))
    recolored, _ = stimuli_of(colors=3)
    with pytest.raises(IdError, match="expected the same labels 'color' in both streams, got others of eeg3d:bed_02"):
        ObjectStudy(static, dataset_of(recolored, "dynamic"))
    with pytest.raises(IdError, match=r"expected the same labels .* 'color' is not in the dynamic stream"):
        ObjectStudy(static, dataset_of(stimuli_of(colors=0)[0], "dynamic"))
    study = ObjectStudy(static, dataset_of(stimuli, "dynamic", normalizer="trial_z"))
    with pytest.raises(NormalizationError, match="expected one normalizer of both streams, got none and trial_z"):
        ObjectTrials.of(study, "sub01", "train")


def test_unknown_arguments():
    study = study_of()
    with pytest.raises(IdError, match="expected a subject of sub01, got 'sub10'; near: sub01"):
        ObjectTrials.of(study, "sub10", "train")
    with pytest.raises(BrainDataError, match="expected part to be one of train, val, test, train\\+val, got 'all'"):
        ObjectTrials.of(study, "sub01", "all")
    with pytest.raises(BrainDataError, match="expected average to be one of none, repeats, got 'mean'"):
        ObjectTrials.of(study, "sub01", "train", average="mean")
    with pytest.raises(BrainDataError, match=r"expected a split of this data set \(objects\), got 'sessions'"):
        ObjectTrials.of(study, "sub01", "train", "sessions")
    stimuli, _ = stimuli_of()
    space = VoxelSpace("func", np.zeros((3, 3), int), (1, 1, 1))
    person = Subject("sub01", Responses(np.zeros((72, 3)), table_of(stimuli)), space)
    voxels = BrainDataset([person], stimuli, {"objects": split_of(stimuli)})
    with pytest.raises(BrainDataError, match="expected responses of sensors of sub01, got VoxelSpace"):
        ObjectTrials.of(ObjectStudy(voxels), "sub01", "train")


def test_a_study_of_one_stream():
    stimuli, _ = stimuli_of()
    study = ObjectStudy(dynamic=dataset_of(stimuli, "dynamic"))
    assert study.streams == ("dynamic",) and study.subjects == ("sub01",)
    assert ObjectTrials.of(study, "sub01", "train").streams == ("dynamic",)
    with pytest.raises(BrainDataError, match="expected stream to be one of dynamic, got 'static'"):
        study.dataset("static")
    with pytest.raises(BrainDataError, match="expected a data set of at least one stream"):
        ObjectStudy()


def test_labels_and_names():
    study = study_of(color_names=("red", "blue"))
    assert study.class_names == WORDS and study.color_names == ("red", "blue")
    assert study.label("class", ["eeg3d:tree_01", "eeg3d:bed_09"]).tolist() == [2, 0]
    assert study_of(stimuli=stimuli_of(colors=0)[0], color_names=("red", "blue")).color_names is None
    stimuli, _ = stimuli_of()
    stimuli.labels["class"] = stimuli.labels["class"] * 2
    with pytest.raises(BrainDataError, match="expected classes numbered from 0 without gaps, got 0, 2, 4"):
        study_of(stimuli=stimuli)


def test_every_object_has_targets():
    stimuli, _ = stimuli_of()
    ids = stimuli.ids
    targets, short = ArrayFeatures(np.ones((30, 2)), ids), ArrayFeatures(np.ones((29, 2)), ids[:-1])
    study = study_of(stimuli=stimuli, targets=targets)
    assert study.targets is targets and study.grey_targets is None
    assert study.with_targets(None, targets).grey_targets is targets
    for options in ({"targets": short}, {"targets": targets, "grey_targets": short}):
        name = list(options)[-1]
        message = f"expected {name} of 30 objects, got none of 1, such as eeg3d:tree_09"
        with pytest.raises(IdError, match=message):
            study_of(stimuli=stimuli, **options)
        with pytest.raises(IdError, match=message):
            study.with_targets(**{"targets": None} | options)


def test_clouds_are_checked():
    good = np.random.default_rng(0).uniform(size=(40, 6))
    few, bright, broken = good.copy(), good.copy(), good.copy()
    few[:, :3] = few[np.arange(40) % 15, :3]
    bright[3, 4], broken[2, 1] = 1.5, np.nan
    many = np.tile(good[:1], (100, 1))
    many[80:, :3] = good[:20, :3]  # the first points are equal, and the cloud is sound
    stimuli, _ = stimuli_of()
    names = ("few", "narrow", "bright", "broken", "many")
    clouds = dict(zip(names, (few, good[:, :5], bright, broken, many), strict=True))
    stimuli.source.replaced = {f"eeg3d:bed_{i:02d}": clouds[name] for i, name in enumerate(names)}
    study = study_of(stimuli=stimuli)
    assert study.cloud("eeg3d:bed_04").dtype == np.float32
    for number, error, message in (
        (0, BrainDataError, "expected at least 16 distinct points of eeg3d:bed_00, got 15"),
        (1, AxisError, r"expected a point cloud \(points, 6\) of eeg3d:bed_01, got \(40, 5\)"),
        (2, BrainDataError, r"expected colours in \[0, 1\] of eeg3d:bed_02, got .* to 1.5"),
        (3, BrainDataError, "expected finite points of eeg3d:bed_03, got 1 that are not"),
    ):
        with pytest.raises(error, match=message):
            study.cloud(f"eeg3d:bed_{number:02d}")
    with pytest.raises(IdError, match="got 'eeg3d:bad_00'; near"):
        study.cloud("eeg3d:bad_00")
    stimuli.source = np.zeros(30)
    with pytest.raises(BrainDataError, match="expected stimuli whose source has point clouds, got ndarray"):
        study_of(stimuli=stimuli)


def test_palette_is_of_train_objects():
    stimuli, _ = stimuli_of()
    study = study_of(stimuli=stimuli)
    palette = study.palette()
    labels, objects = stimuli.labels["color"], stimuli.labels["object"]
    rows = np.arange(30)
    expected = [[color / 4, 0.5, (rows[(labels == color) & (objects < 8)] / 1000).mean()] for color in range(2)]
    np.testing.assert_allclose(palette, expected, rtol=1e-6)
    assert set(stimuli.source.asked) == set(study.split().train)
    count = len(stimuli.source.asked)
    palette[:] = 0  # does not reach what is kept
    np.testing.assert_allclose(study.palette("objects"), expected, rtol=1e-6)
    assert len(stimuli.source.asked) == count
    assert study_of(stimuli=stimuli_of(colors=0)[0]).palette() is None
    stimuli, _ = stimuli_of()
    stimuli.labels["color"] = np.where(objects < 8, 0, 1)
    with pytest.raises(IdError, match="expected train objects of 2 colours in split 'objects', got none of 1"):
        study_of(stimuli=stimuli).palette()


def test_class_holdout_takes_one_train_object_of_each_class():
    stimuli, _ = stimuli_of()
    before = split_of(stimuli, val=["eeg3d:bed_00", "eeg3d:bed_01"])
    labels = dict(zip(stimuli.ids.tolist(), stimuli.labels["class"].tolist(), strict=True))
    split = class_holdout(before, labels)
    assert split.test == before.test and not split.val & before.test
    assert split.train | split.val == before.train | before.val
    assert sorted(labels[name] for name in split.val) == [0, 1, 2]
    assert (split.name, split.params["val_per_class"]) == ("objects_val1", 1)
    assert class_holdout(before, dict(reversed(labels.items()))) == split
    more, _ = stimuli_of(("arch", *WORDS))  # another class changes no choice
    numbers = dict(zip(more.ids.tolist(), more.labels["class"].tolist(), strict=True))
    assert split.val < class_holdout(split_of(more), numbers).val
    three = class_holdout(before, labels, 3)
    assert split.val < three.val and len(three.val) == 9
    with pytest.raises(BrainDataError, match=r"expected more than 8 train images of class . in 'objects', got 8"):
        class_holdout(before, labels, 8)
    with pytest.raises(BrainDataError, match="expected at least 1 validation image of each class, got 0"):
        class_holdout(before, labels, 0)
    with pytest.raises(IdError, match="expected a class of each of 24 images, got none of eeg3d:tree_07"):
        class_holdout(before, {name: label for name, label in labels.items() if name != "eeg3d:tree_07"})
    with pytest.raises(BrainDataError, match="expected one train part for all subjects"):
        class_holdout(replace(before, train_of={"sub01": before.train}), labels)
