"""Prepared folders: read back as written, never half written, and never read where a file was changed."""

import json
import os
import types
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import (
    ArrayImages,
    BrainDataset,
    Responses,
    SensorSpace,
    Split,
    StimulusSet,
    Subject,
    TrialTable,
    load_prepared,
    save_prepared,
    summarize,
)
from brainmodels.data import prepared as module
from brainmodels.errors import LayoutError
from brainmodels.layouts import prepare
from tests.brainmodels.made import made_dataset
from tests.brainmodels.same import assert_same
from veca.files import sealed


def _labelled(dataset):
    stimuli = dataset.stimuli
    labels = {
        "shape": np.array(["ring", "star"] * (len(stimuli) // 2)),
        "area": np.linspace(0, 1, len(stimuli), dtype=np.float32),
    }
    captions = {name: stimuli.captions(name) for name in stimuli.ids}
    stimuli = StimulusSet(stimuli.ids, stimuli.source, captions, labels)
    return BrainDataset(list(dataset.subjects.values()), stimuli, dataset.splits)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_what_is_written_is_read_back(tmp_path, dtype):
    dataset = _labelled(made_dataset(dtype=dtype))
    person = dataset.subject("subj01")
    space = replace(person.space, ncsnr=np.linspace(0, 1, len(person.space)))
    facts = {"layout": "made", "numbers": np.arange(3), "path": tmp_path}
    person = replace(person, space=space, normalizer="session_z", design="block", provenance=facts)
    split = replace(dataset.split("made"), name="few", sessions={"train": frozenset([1])}, params={"n": np.int64(3)})
    dataset = dataset.with_subject(person).with_splits(split)
    summary = save_prepared(dataset, "subj01", tmp_path / "deep" / "subj01", image_size=32)
    loaded = load_prepared(tmp_path / "deep" / "subj01")
    assert_same(loaded, dataset)
    again = loaded.subject("subj01")
    assert again.responses.values.dtype == dtype and isinstance(again.responses.values, np.memmap)
    assert again.responses.scale == person.responses.scale
    assert (again.normalizer, again.design, again.space.name) == ("session_z", "block", "made")
    assert again.provenance == {"layout": "made", "numbers": [0, 1, 2], "path": str(tmp_path)}
    assert {name: s.hash for name, s in loaded.splits.items()} == {name: s.hash for name, s in dataset.splits.items()}
    for name, values in dataset.stimuli.labels.items():
        np.testing.assert_array_equal(loaded.stimuli.label(name, dataset.stimuli.ids), values)
        assert loaded.stimuli.labels[name].dtype == values.dtype
    assert all(loaded.stimuli.captions(x) == dataset.stimuli.captions(x) for x in dataset.stimuli.ids)
    for part in ("train", "val", "test"):
        first, second = (x.pairs("subj01", "few", part, average="repeats").array() for x in (dataset, loaded))
        np.testing.assert_array_equal(first, second)
    assert summary.path.endswith("subj01") and summary.layout == "made"


def test_only_the_subject_and_its_pictures_are_written(tmp_path):
    """A subset in another order, of a set with more images: the rest is left out; test images without trials stay."""
    dataset = made_dataset(num_images=12)
    person = dataset.subject("subj01")
    few = dataset.stimuli.ids[[9, 1, 5]]
    rows = np.concatenate(person.responses.rows_of(few))[::-1]
    person = replace(person, responses=person.responses.subset(rows))
    unseen = dataset.stimuli.ids[7]
    split = Split("challenge", frozenset(few), frozenset(), frozenset([unseen, "nsd:elsewhere"]))
    dataset = BrainDataset([person], dataset.stimuli, {"challenge": split})
    save_prepared(dataset, "subj01", tmp_path / "out", image_size=16)
    loaded = load_prepared(tmp_path / "out")
    assert loaded.stimuli.ids.tolist() == sorted([*few, unseen])
    for name in loaded.stimuli.ids:
        np.testing.assert_array_equal(loaded.stimuli.image(name), dataset.stimuli.image(name, 16))
    again = loaded.subject("subj01").responses
    np.testing.assert_array_equal(again.values, person.responses.batch(np.arange(len(rows))))
    np.testing.assert_array_equal(again.trials.trial, person.responses.trials.trial)
    assert loaded.split("challenge").hash == split.hash


def test_sensors_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    space = SensorSpace(["Fz", "Oz", "Cz"], 250.0, np.arange(20) / 250 - 0.02, "V", "standard_1005")
    ids = [f"e:{i}" for i in range(4)]
    responses = Responses(rng.normal(size=(8, 3, 20)), TrialTable.of(ids * 2), unit="V")
    stimuli = StimulusSet(ids, ArrayImages(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)))
    dataset = BrainDataset([Subject("sub-01", responses, space)], stimuli)
    summary = save_prepared(dataset, "sub-01", tmp_path / "eeg", image_size=None)
    loaded = load_prepared(tmp_path / "eeg")
    again = loaded.subject("sub-01")
    np.testing.assert_array_equal(again.responses.values, responses.values)
    assert (list(again.space.ch_names), again.space.sfreq) == (["Fz", "Oz", "Cz"], 250.0)
    assert (again.space.unit, again.space.montage) == ("V", "standard_1005")
    np.testing.assert_array_equal(again.space.times, space.times)
    assert summary.ceiling is None and "channels all 3" in str(summary) and "over time" in str(summary)
    with pytest.raises(LayoutError, match="was prepared without pictures; prepare it with an image_size"):
        loaded.stimuli.image("e:0")


@pytest.mark.parametrize("name", ["values.npy", "images.npy", "trials.npz", "space.npz", "stimuli.json", "splits.json"])
def test_truncated_changed_and_missing_files_are_named(tmp_path, name):
    save_prepared(made_dataset(), "subj01", tmp_path / "out", image_size=8)
    path = tmp_path / "out" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(LayoutError, match=rf"expected {len(content)} bytes of .*{name}, got .* truncated"):
        load_prepared(tmp_path / "out")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LayoutError, match=rf"{name} with SHA-256 .* got a changed file"):
        load_prepared(tmp_path / "out")
    if name == "values.npy":
        load_prepared(tmp_path / "out", verify=False)
    path.unlink()
    with pytest.raises(LayoutError, match=rf"expected a file at .*{name}, got none"):
        load_prepared(tmp_path / "out")


def test_folder_that_is_not_a_prepared_one(tmp_path):
    with pytest.raises(LayoutError, match=r"expected a prepared folder with meta.json"):
        load_prepared(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": ')
    with pytest.raises(LayoutError, match="the file is truncated or was edited"):
        load_prepared(tmp_path)
    (tmp_path / "meta.json").write_text(sealed({"format": 99}))
    with pytest.raises(LayoutError, match=r"of format 1 at .*, got 99"):
        load_prepared(tmp_path)
    for edited in ('{"format": 1}', sealed({"format": 1}).replace("1", "2", 1), "[1]"):
        (tmp_path / "meta.json").write_text(edited)
        with pytest.raises(LayoutError, match=r"meta\.json as it was written, got another digest"):
            load_prepared(tmp_path)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    dataset = made_dataset()

    class Broken(ArrayImages):
        def read(self, index, size):
            if index == 7:
                raise OSError("disk gone")
            return super().read(index, size)

    broken = StimulusSet(dataset.stimuli.ids, Broken(dataset.stimuli.source.array))
    with pytest.raises(OSError, match="disk gone"):
        save_prepared(BrainDataset(list(dataset.subjects.values()), broken), "subj01", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    save_prepared(dataset, "subj01", tmp_path / "out")
    with pytest.raises(LayoutError, match="expected a folder that does not exist yet"):
        save_prepared(dataset, "subj01", tmp_path / "out")


def test_nothing_is_written_to_the_folder_of_the_data(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    with pytest.raises(LayoutError, match="expected a folder outside of"):
        prepare("flat", root, "subj01", tmp_path / "elsewhere" / ".." / "source" / "prepared")
    assert os.listdir(tmp_path) == ["source"] and os.listdir(root) == []


def _layout(monkeypatch, dataset, use):
    """A layout that fills the memory it is given, or does not."""
    person = dataset.subject("subj01")
    seen = {}

    def load(root, subject, *, allocate=np.empty, scratch=False):
        unused = allocate((2, 2), np.float64) if scratch else None
        values = allocate(person.responses.values.shape, person.responses.values.dtype)
        values[...] = person.responses.values
        values = values if use else values.copy()
        seen.update(file=getattr(values, "filename", None), unused=unused)
        facts = {"layout": "made", "root": str(root), "files": {"betas.bin": 4, "gone.bin": 1}}
        responses = Responses(values, person.responses.trials, person.responses.scale)
        return dataset.with_subject(replace(person, responses=responses, provenance=facts))

    monkeypatch.setattr("brainmodels.layouts.preparing.find_layout", lambda name: types.SimpleNamespace(load=load))
    return seen


@pytest.mark.parametrize(("use", "scratch"), [(True, False), (True, True), (False, False), (False, True)])
def test_layout_writes_into_the_prepared_file(tmp_path, monkeypatch, use, scratch):
    dataset = made_dataset(dtype=np.int16)
    seen = _layout(monkeypatch, dataset, use)
    root = tmp_path / "source"
    root.mkdir()
    (root / "betas.bin").write_bytes(b"1234")
    made = []
    original = np.lib.format.open_memmap

    def spy(path, *args, **options):
        made.append(os.path.basename(path))
        return original(path, *args, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", spy)
    summary = prepare("made", root, "subj01", tmp_path / "out", image_size=32, scratch=scratch)
    assert made.count("values.npy") == (0 if use else 1)  # what was allocated is renamed, not copied
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*module._FILES, "images.npy", "meta.json"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert_same(load_prepared(tmp_path / "out"), dataset)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    digest = "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4"  # sha256sum of 1234
    assert meta["source_sha256"] == {"betas.bin": digest} and meta["source"]["files"]["gone.bin"] == 1
    assert meta["command"].startswith("prepare('made', ") and f"scratch={scratch}" in meta["command"]
    assert os.listdir(root) == ["betas.bin"]
    assert seen["file"] is None or "out" in str(seen["file"])
    assert summary.trials == 36


def test_a_real_layout_is_prepared_end_to_end(tmp_path):
    pytest.importorskip("nibabel")
    pytest.importorskip("scipy")
    from tests.brainmodels.written.nsd_native import write_nsd_native

    dataset = made_dataset(num_images=20, sessions=3, dtype=np.int16)
    person = dataset.subject("subj01")
    person = replace(person, responses=replace(person.responses, unit="percent signal change"))
    names = write_nsd_native(dataset.with_subject(person), tmp_path / "nsd", "subj01", "made")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "nsd").rglob("*"))
    summary = prepare("nsd_native", tmp_path / "nsd", "subj01", tmp_path / "out", image_size=32)
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "nsd").rglob("*")) == before
    loaded = load_prepared(tmp_path / "out")
    again = loaded.subject("subj01").responses
    np.testing.assert_array_equal(again.values, person.responses.values)
    assert again.values.dtype == np.int16 and again.scale == person.responses.scale
    assert again.trials.image_id.tolist() == [names[name] for name in person.responses.trials.image_id]
    assert loaded.split("shared1000").test == {names[name] for name in dataset.split("made").test}
    assert (summary.trials, summary.sessions, summary.repeats) == (60, 3, {3: 20})


def test_large_source_files_are_known_by_their_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WHOLE", 100)
    monkeypatch.setattr(module, "_END", 10)
    facts = {"root": str(tmp_path), "files": {"big.bin": 300}}
    hashes = []
    for middle, last in ((b"a", b"b"), (b"c", b"b"), (b"a", b"d")):
        (tmp_path / "big.bin").write_bytes(b"x" * 50 + middle * 200 + last * 50)
        hashes.append(module._source_hashes(facts)["big.bin"])
    assert hashes[0] == hashes[1] != hashes[2] and hashes[0].startswith("ends:")


def test_summary_counts_and_recovers_the_noise_ceiling():
    """Planted: every voxel has ncsnr 1, so NC(3) = 3/4, under session gains and offsets that have to be undone."""
    rng = np.random.default_rng(0)
    dataset = made_dataset(num_images=300, repeats=3, box=(6, 6, 6), sessions=6)
    person = dataset.subject("subj01")
    trials, voxels = person.responses.trials, len(person.space)
    codes = dict(zip(dataset.stimuli.ids.tolist(), rng.normal(size=(300, voxels)), strict=True))
    values = np.array([codes[name] for name in trials.image_id]) + rng.normal(size=(len(trials), voxels))
    values = (
        values * np.exp(0.3 * rng.normal(size=(7, 1)))[trials.session] + rng.normal(size=(7, voxels))[trials.session]
    )
    person = replace(person, responses=Responses(values, trials, unit="made up"), provenance={"layout": "made"})
    summary = summarize(dataset.with_subject(person), "subj01")
    assert (summary.trials, summary.images, summary.sessions) == (900, 300, 6)
    assert summary.repeats == {3: 300} and summary.voxels == {"all": voxels, "V1": 3}
    assert abs(summary.ceiling.ncsnr - 1) < 0.05 and abs(summary.ceiling.ceiling - 0.75) < 0.02
    assert summary.ceiling.share == 1 and summary.ceiling.normalizer == "session_z_train"
    text = str(summary)
    for expected in ("900 in 6 sessions", "300: 300 shown 3 x", "V1 3", "unit made up", "made: 199 train, 1 val, 100"):
        assert expected in text


def test_summary_without_sessions_or_repeats(caplog):
    dataset = made_dataset(num_images=30, repeats=2)
    person = dataset.subject("subj01")
    trials = TrialTable.of(person.responses.trials.image_id)
    unknown = dataset.with_subject(replace(person, responses=Responses(person.responses.values, trials)))
    assert summarize(unknown, "subj01").ceiling.normalizer == "train_z"
    assert summarize(unknown, "subj01").sessions is None
    scaled = dataset.with_subject(replace(person, normalizer="session_z"))
    assert summarize(scaled, "subj01").ceiling.normalizer == "session_z"
    once = person.responses.subset(person.responses.trials.repeat == 0)
    assert summarize(dataset.with_subject(replace(person, responses=once)), "subj01").ceiling is None


def test_reading_needs_no_pickle(tmp_path):
    save_prepared(_labelled(made_dataset()), "subj01", tmp_path / "out")
    for path in (tmp_path / "out").glob("*.np*"):
        loaded = np.load(path, allow_pickle=False)
        arrays = loaded.values() if hasattr(loaded, "values") else [loaded]
        assert all(array.dtype != object for array in arrays)
