"""Studies of objects written as EEG-3D and read back, their splits, and near duplicates."""

import numpy as np
import pytest

from brainmodels.data.dataset import BrainDataset, Subject
from brainmodels.data.objects import ObjectStudy, ObjectTrials
from brainmodels.data.responses import Responses
from brainmodels.data.spaces import SensorSpace
from brainmodels.errors import IdError, LayoutError
from brainmodels.features.arrays import ArrayFeatures
from brainmodels.layouts import eeg3d
from brainmodels.metrics.cloud_duplicates import near_duplicates
from brainmodels.simulated.objects import ObjectPreset, simulate_objects
from tests.brainmodels.object_data import split_of, stimuli_of, study_of, table_of
from tests.brainmodels.written.eeg3d import write_eeg3d


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
