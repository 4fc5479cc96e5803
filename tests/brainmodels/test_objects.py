"""Studies of objects and their trials: what is joined, what is refused, and what comes back from written files."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data.dataset import BrainDataset, Split, Subject
from brainmodels.data.objects import ObjectStudy, ObjectTrials
from brainmodels.data.responses import Responses, TrialTable
from brainmodels.data.spaces import SensorSpace, VoxelSpace
from brainmodels.data.splits import class_holdout
from brainmodels.data.stimuli import StimulusSet
from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError, NormalizationError
from brainmodels.features.arrays import ArrayFeatures
from brainmodels.layouts import eeg3d
from brainmodels.metrics.cloud_duplicates import near_duplicates
from brainmodels.simulated.objects import ObjectPreset, simulate_objects
from tests.brainmodels.written.eeg3d import write_eeg3d

WORDS = ("bed", "lamp", "tree")
CHANNELS = ("FZ", "OZ", "PZ")
SIZES = {"static": (5, 250.0), "dynamic": (7, 100.0)}


class Clouds:
    """Clouds of random points. The colour of object i of a class is that of its label, and reads are counted."""

    def __init__(self, ids, colors, replaced=None):
        self.ids, self.colors, self.replaced, self.asked = list(ids), list(colors), replaced or {}, []

    def __len__(self):
        return len(self.ids)

    def read(self, index, size):
        raise AssertionError("nobody asked for pictures")

    def cloud(self, image_id):
        self.asked.append(image_id)
        if image_id in self.replaced:
            return self.replaced[image_id]
        row = self.ids.index(image_id)
        points = np.random.default_rng(row).normal(size=(40, 3))
        return np.column_stack([points, np.tile([self.colors[row] / 4, 0.5, row / 1000], (40, 1))])


def stimuli_of(words=WORDS, colors=2, **replaced):
    ids = [f"eeg3d:{word}_{number:02d}" for word in words for number in range(10)]
    labels = {
        "class": np.repeat(np.arange(len(words)), 10),
        "name": np.repeat(words, 10),
        "object": np.tile(np.arange(10), len(words)),
    }
    if colors:
        labels["color"] = np.arange(10 * len(words)) % colors
    clouds = {f"eeg3d:{name}": cloud for name, cloud in replaced.items()}
    return StimulusSet(ids, Clouds(ids, labels.get("color", np.zeros(len(ids)))), labels=labels), clouds


def split_of(stimuli, name="objects", val=()):
    objects = stimuli.labels["object"]
    train = frozenset(stimuli.ids[objects < 8].tolist()) - set(val)
    return Split(name, train, frozenset(val), frozenset(stimuli.ids[objects >= 8].tolist()))


def table_of(stimuli, seed=0):
    """Every train object twice, every test object four times, in random order."""
    shown = np.repeat(stimuli.ids, np.where(stimuli.labels["object"] < 8, 2, 4))
    shown = shown[np.random.default_rng(seed).permutation(len(shown))]
    return TrialTable.of(shown, session=np.arange(len(shown)) // 6 + 1)


def dataset_of(stimuli, stream, table=None, values=None, split=None, subject="sub01", **options):
    """Values tell object, presentation, channel and time, so that a wrong join is seen."""
    table = table_of(stimuli) if table is None else table
    num_times, sfreq = SIZES[stream]
    space = SensorSpace(CHANNELS, sfreq, np.arange(num_times) / sfreq - 0.2, unit="z")
    if values is None:
        base = stimuli.rows(table.image_id) * 10.0 + table.repeat
        values = base[:, None, None] + np.arange(3)[:, None] / 10 + np.arange(num_times) / 100
        values[:, 0] = base[:, None]  # the reference
    split = split_of(stimuli) if split is None else split
    person = Subject(subject, Responses(values.astype(np.float32), table), space, **options)
    return BrainDataset([person], stimuli, {split.name: split})


def study_of(static=None, dynamic=None, stimuli=None, **options):
    stimuli = stimuli_of()[0] if stimuli is None else stimuli
    return ObjectStudy(
        dataset_of(stimuli, "static") if static is None else static,
        dataset_of(stimuli, "dynamic") if dynamic is None else dynamic,
        **options,
    )


def changed(dataset, **responses):
    person = dataset.subject("sub01")
    return dataset.with_subject(replace(person, responses=replace(person.responses, **responses)))


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


@pytest.fixture(scope="module")
def solids():
    return simulate_objects(ObjectPreset(bodies=3, parts=3, n_chans=2, snr_db=-10.0))


def ellipsoid(row, seed):
    """Points of an ellipsoid whose axes belong to the row, and their colours."""
    axes = [1, 0.3 + 0.3 * (row % 5), 0.3 + 0.25 * (row // 5)]
    points = np.random.default_rng((row, seed)).normal(size=(1500, 3))
    return np.column_stack([points / np.linalg.norm(points, axis=1)[:, None] * axes, np.full((1500, 3), seed / 9)])


@pytest.mark.parametrize("kind", ["file", "sampling"])
def test_near_duplicates_are_found(kind):
    """A train object under the id of a test object of another class: its cloud, or another one moved and scaled."""
    stimuli, _ = stimuli_of()
    clouds = {name: ellipsoid(row, 0) for row, name in enumerate(stimuli.ids.tolist())}
    stimuli.source.replaced = clouds
    study = study_of(stimuli=stimuli)
    assert near_duplicates(study) == []
    again = ellipsoid(3, 1) * [2.5, 2.5, 2.5, 1, 1, 1] + [1, 2, 3, 0, 0, 0]
    clouds["eeg3d:tree_09"] = again if kind == "sampling" else clouds["eeg3d:bed_03"]
    found = near_duplicates(study, "objects")
    assert [(pair.test, pair.train) for pair in found] == [("eeg3d:tree_09", "eeg3d:bed_03")]
    assert 0.8 < found[0].distance / found[0].own < 1.15
    assert str(found[0]).startswith("eeg3d:tree_09 (test) and eeg3d:bed_03 (train): chamfer")


def features_of(study, seed):
    values = np.random.default_rng(seed).normal(size=(len(study.stimuli), 8)).astype(np.float32)
    return ArrayFeatures(values, study.stimuli.ids, name=str(seed))


@pytest.mark.parametrize("form", ["process", "split"])
def test_a_written_study_comes_back(solids, tmp_path, form):
    study = solids.with_targets(features_of(solids, 0), features_of(solids, 1))
    ids = write_eeg3d(study, tmp_path, form=form)
    read = eeg3d.open_objects(tmp_path, 1, ch_names=["FP1", "CB2"])
    assert read.streams == study.streams and read.subjects == ("sub01",)
    assert read.class_names == study.class_names and read.color_names is None
    names = study.stimuli.ids.tolist()
    assert set(read.stimuli.ids.tolist()) == set(ids.values())
    for label in ("class", "name", "object", "color"):
        mine = read.label(label, [ids[name] for name in names])
        np.testing.assert_array_equal(mine, study.label(label, names))
    for name in names[::17]:
        np.testing.assert_array_equal(read.cloud(ids[name]), study.cloud(name))
    for mine, theirs in ((read.targets, study.targets), (read.grey_targets, study.grey_targets)):
        np.testing.assert_array_equal(mine.get([ids[name] for name in names]), theirs.get(names))
    assert read.targets.fingerprint != read.grey_targets.fingerprint
    np.testing.assert_allclose(read.palette(), study.palette())
    for part, average in (("train+val", "none"), ("test", "none"), ("test", "repeats")):
        mine = ObjectTrials.of(read, "sub01", part, average=average)
        theirs = ObjectTrials.of(study, "sim01", part, average=average)
        at = {name: row for row, name in enumerate(zip(mine.ids.tolist(), mine.presentation.tolist(), strict=True))}
        keys = zip(theirs.ids.tolist(), theirs.presentation.tolist(), strict=True)
        rows = [at[ids[name], repeat] for name, repeat in keys]
        assert len(rows) == len(mine)
        for stream, values in mine.take(rows).values().items():
            np.testing.assert_array_equal(values, theirs.values()[stream])
        np.testing.assert_array_equal(mine.repeats[rows], theirs.repeats)
        if form == "process":
            np.testing.assert_array_equal(mine.order[rows], theirs.order)
    assert list(read.splits) == ["eeg3d_objects", "eeg3d_classes"]  # sessions are known of 1728 trials only


def test_a_folder_with_one_stream(solids, tmp_path):
    write_eeg3d(solids, tmp_path)
    folder = tmp_path / "EEGdata" / "sub01"
    (folder / "process_data_1s_250Hz.npy").unlink()
    read = eeg3d.open_objects(tmp_path, "sub01", ch_names=["FP1", "CB2"])
    assert read.streams == ("dynamic",) and read.targets is None and read.grey_targets is None
    (folder / "process_data_6s_100Hz.npy").unlink()
    with pytest.raises(LayoutError, match="sub01_train_data_1s_250Hz"):
        eeg3d.open_objects(tmp_path, "sub01")


def test_features_of_a_folder(solids, tmp_path):
    import torch

    ids = write_eeg3d(solids.with_targets(features_of(solids, 0)), tmp_path)
    path = tmp_path / "clip_feature.pth"
    first = eeg3d.open_objects(tmp_path, "sub01", ch_names=["FP1", "CB2"]).targets.fingerprint
    stored = torch.load(path)
    gone = next(iter(stored))
    torch.save({key: {"text": x["video"]} for key, x in stored.items()}, path)
    with pytest.raises(LayoutError, match="expected features named 'video' of every object"):
        eeg3d.open_objects(tmp_path, "sub01", ch_names=["FP1", "CB2"])
    torch.save({key: x for key, x in stored.items() if key != gone}, path)
    with pytest.raises(IdError, match=f"expected targets of {len(ids)} objects, got none of 1, such as eeg3d:{gone}"):
        eeg3d.open_objects(tmp_path, "sub01", ch_names=["FP1", "CB2"])
    torch.save({key: {"video": x["video"] + 1} for key, x in stored.items()}, path)
    assert eeg3d.open_objects(tmp_path, "sub01", ch_names=["FP1", "CB2"]).targets.fingerprint != first


def test_splits_of_the_whole_data_set(tmp_path):
    """72 classes of ten objects, 1728 trials: the real sizes."""
    words = [f"{a}{b}" for a in "abcdefgh" for b in "jklmnopqr"]
    stimuli, _ = stimuli_of(words)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1728, 1, 250)).astype(np.float32)
    space = SensorSpace(["OZ"], 250.0, np.arange(250) / 250 - 0.2, unit="z")
    person = Subject("sim01", Responses(values, table_of(stimuli)), space)
    write_eeg3d(ObjectStudy(BrainDataset([person], stimuli, {"objects": split_of(stimuli)})), tmp_path)
    study = eeg3d.open_objects(tmp_path, "sub01", ch_names=["OZ"])
    assert list(study.splits) == ["eeg3d_objects", "eeg3d_sessions", "eeg3d_classes"] and study.split() is not None
    table = study.static.subject("sub01").responses.trials
    assert np.bincount(table.session).tolist() == [0, *[72] * 24]

    objects, sessions, classes = (study.split(f"eeg3d_{name}") for name in ("objects", "sessions", "classes"))
    test = ObjectTrials.of(study, "sub01", "test", sessions)
    assert set(test.session.tolist()) == {21, 22, 23, 24}
    assert set(test.ids.tolist()) <= objects.test and len(objects.test) == 144
    expected = np.isin(table.image_id, sorted(objects.test)) & (table.session > 20)
    np.testing.assert_array_equal(np.sort(test.order), np.flatnonzero(expected))
    train = ObjectTrials.of(study, "sub01", "train+val", sessions)
    expected = ~np.isin(table.image_id, sorted(objects.test)) & (table.session <= 20)
    np.testing.assert_array_equal(np.sort(train.order), np.flatnonzero(expected))
    mean = ObjectTrials.of(study, "sub01", "test", sessions, "repeats")
    assert 1 <= mean.repeats.min() < mean.repeats.max() <= 4 and mean.repeats.sum() == len(test)

    held = {int(x) for x in study.label("class", sorted(classes.test))}
    assert len(held) == 12 and len(classes.test) == 120
    seen = {int(x) for x in study.label("class", sorted(classes.train | classes.val))}
    assert not held & seen and len(seen) == 60
