"""Prepared arrays of the Natural Scenes Dataset: rows get their images, or the reader refuses."""

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from brainmodels.errors import AxisError, IdError, LayoutError, NormalizationError
from brainmodels.layouts import detect, nsd_prepared
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.nsd_prepared import write_nsd_prepared

from .made import made_dataset

NUM_IMAGES = 40
SCALES = {"fmriavg_nsdgeneral": 300, "fmri_scale": 300 / 2000, "fmri_all_scale": 300 / 2000}


@pytest.fixture(scope="module")
def made():
    return made_dataset(num_images=NUM_IMAGES, repeats=3, sessions=6, dtype=np.int16, prefix="nsd:")


def by_definition(made, kind):
    """Rows by image id and repeat, computed in fp64 from the single trials: averages, betas / 2000, z-scores."""
    responses = made.subject("subj01").responses
    psc, session = responses.values.astype(np.float64) / 300, responses.trials.session
    if kind == "fmri_zscore":
        parts = {s: psc[session == s] for s in np.unique(session)}
        z = {s: (part - part.mean(0)) / part.std(0, ddof=0) for s, part in parts.items()}
        psc = np.empty_like(psc)
        for s, part in z.items():
            psc[session == s] = part
    groups = {name: psc[responses.trials.image_id == name] for name in made.stimuli.ids}
    if kind == "fmriavg_nsdgeneral":
        return {name: group.mean(0, keepdims=True) for name, group in groups.items()}
    return {name: group * (0.15 if "scale" in kind else 1) for name, group in groups.items()}


@pytest.mark.parametrize("kind", list(nsd_prepared.KINDS))
@pytest.mark.parametrize("source", ["expdesign", "ids"])
def test_reads_what_was_written(made, tmp_path, kind, source):
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind=kind, source=source)
    litter(tmp_path)
    got = nsd_prepared.load(tmp_path, "subj01")
    responses, truth = got.subject("subj01").responses, by_definition(made, kind)
    assert responses.values.dtype == np.float32
    for name in made.stimuli.ids:
        rows = responses.rows_of([name])[0]
        np.testing.assert_allclose(responses.batch(rows), truth[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got.stimuli.image(name), made.stimuli.image(name))
        assert got.stimuli.captions(name) == made.stimuli.captions(name)
    split = got.split("shared1000")
    assert split.test == made.split("made").test and len(split.train | split.val) == NUM_IMAGES - len(split.test)
    assert got.subject("subj01").normalizer == nsd_prepared.KINDS[kind].normalizer
    assert detect(tmp_path) == ["nsd_prepared"]


def test_values_lie_on_the_disk_in_the_scale_of_their_name(made, tmp_path):
    for kind, factor in SCALES.items():
        write_nsd_prepared(made, tmp_path / kind, "subj01", "made", kind=kind)
        stored = np.load(tmp_path / kind / f"nsd_train_{kind}_sub1.npy")
        first = made.subject("subj01").responses.trials.image_id[0]
        part = "train" if first not in made.split("made").test else "test"
        psc = made.subject("subj01").responses.values[made.subject("subj01").responses.trials.image_id == first] / 300
        stored = np.load(tmp_path / kind / f"nsd_{part}_{kind}_sub1.npy")
        got = stored[0] if kind != "fmri_all_scale" else stored[:3]
        np.testing.assert_allclose(got, (psc.mean(0) if kind == "fmriavg_nsdgeneral" else psc) * factor)
        assert stored.dtype == np.float64


def test_single_repeats_are_placed_in_time(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind="fmri_scale")
    trials = nsd_prepared.load(tmp_path, 1).subject("subj01").responses.trials
    truth = made.subject("subj01").responses.trials
    order = np.argsort(trials.trial)
    for column in ("image_id", "session", "run", "repeat", "trial"):
        np.testing.assert_array_equal(getattr(trials, column)[order], getattr(truth, column))


def test_row_order_is_first_appearance(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made")
    shown = made.subject("subj01").responses.trials.image_id
    got = nsd_prepared.load(tmp_path, 1)
    train = [name for name in dict.fromkeys(shown.tolist()) if name not in made.split("made").test]
    assert got.stimuli.ids[: len(train)].tolist() == train != sorted(train)
    other = nsd_prepared.load(tmp_path, 1, order="sorted_id")
    assert other.stimuli.ids[: len(train)].tolist() == sorted(train)
    with pytest.raises(IdError, match="'first_appearance' or 'sorted_id', got 'file'"):
        nsd_prepared.load(tmp_path, 1, order="file")


def test_unknown_row_order(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made", source=None)
    with pytest.raises(IdError, match=r"row order unknown: .*nsd_train_fmriavg.* pass ids= or expdesign="):
        nsd_prepared.load(tmp_path, 1)
    shown = list(dict.fromkeys(made.subject("subj01").responses.trials.image_id.tolist()))
    test = made.split("made").test
    ids = {"train": [name for name in shown if name not in test], "test": [name for name in shown if name in test]}
    got = nsd_prepared.load(tmp_path, 1, ids=ids)
    np.testing.assert_array_equal(got.stimuli.image("nsd:00005"), made.stimuli.image("nsd:00005"))
    with pytest.raises(IdError, match=r"14 different ids in ids\['test'\].* got 13"):
        nsd_prepared.load(tmp_path, 1, ids=ids | {"test": ids["test"][1:]})
    with pytest.raises(IdError, match=r"26 different ids .* got 26, 25 of them different"):
        nsd_prepared.load(tmp_path, 1, ids=ids | {"train": [ids["train"][1], *ids["train"][1:]]})
    with pytest.raises(IdError, match="none of 'test'"):
        nsd_prepared.load(tmp_path, 1, ids={"train": ids["train"]})
    with pytest.raises(IdError, match="73k ids from 0"):
        nsd_prepared.load(tmp_path, 1, ids=ids | {"test": [name.replace("nsd", "god") for name in ids["test"]]})


def test_rows_of_neither_release(made, tmp_path):
    """Without the last three of six sessions fewer images were seen: both numbers are legal, others are not."""
    write_nsd_prepared(made, tmp_path, "subj01", "made")
    responses, test = made.subject("subj01").responses, made.split("made").test
    early = list(dict.fromkeys(responses.trials.image_id[responses.trials.session <= 3].tolist()))
    counts = {"train": sum(name not in test for name in early), "test": sum(name in test for name in early)}
    assert counts["train"] < 26  # seen by nobody before session 4
    paths = {part: tmp_path / f"nsd_{part}_fmriavg_nsdgeneral_sub1.npy" for part in counts}
    whole = {part: np.load(path) for part, path in paths.items()}
    for part in counts:
        for name in ("stim", "cap"):
            (tmp_path / f"nsd_{part}_{name}_sub1.npy").unlink()
        np.save(paths[part], whole[part][: counts[part]])
    assert nsd_prepared.load(tmp_path, 1).stimuli.ids.tolist() == [
        *(name for name in early if name not in test),
        *(name for name in early if name in test),
    ]
    np.save(paths["train"], whole["train"][: counts["train"] - 1])
    expected = rf"26 and 14 \(6 sessions\) or {counts['train']} and {counts['test']} \(3 sessions\) .* got"
    with pytest.raises(LayoutError, match=rf"{expected} {counts['train'] - 1} and {counts['test']}"):
        nsd_prepared.load(tmp_path, 1)


def test_rows_not_by_threes(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind="fmri_all_scale")
    path = tmp_path / "nsd_train_fmri_all_scale_sub1.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(LayoutError, match=r"groups of three rows .* got 77"):
        nsd_prepared.load(tmp_path, 1)


def test_two_repeats_cannot_have_three_rows(made, tmp_path):
    """The design says how often each image was shown."""
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind="fmri_scale")
    path = tmp_path / "nsd_expdesign.mat"
    design = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    order = design["masterordering"].copy()
    once = np.flatnonzero(order[0] == order[0, -1])
    other = next(k for k in range(1, len(order[0])) if order[0, k] not in (order[0, 0], order[0, -1]))
    order[0, once[-1]] = order[0, other]
    savemat(path, design | {"masterordering": order})
    with pytest.raises(LayoutError, match=r"3 presentations of every image in 6 sessions, .* got [24] of nsd:"):
        nsd_prepared.load(tmp_path, 1)


def test_values_that_contradict_their_name(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind="fmri_zscore")
    path = tmp_path / "nsd_train_fmri_zscore_sub1.npy"
    np.save(path, np.load(path) + 0.8)
    with pytest.raises(NormalizationError, match=r"zscore in its name says, got a mean of \|voxel mean\| of 0\.8"):
        nsd_prepared.load(tmp_path, 1)
    write_nsd_prepared(made, tmp_path / "other", "subj01", "made")
    for part in ("train", "test"):
        path = tmp_path / "other" / f"nsd_{part}_fmriavg_nsdgeneral_sub1.npy"
        np.save(path, np.load(path) / 300)
    with pytest.raises(LayoutError, match="already percent signal change"):
        nsd_prepared.load(tmp_path / "other", 1)
    got = nsd_prepared.load(tmp_path / "other", 1, scale="psc").subject("subj01").responses
    truth = by_definition(made, "fmriavg_nsdgeneral")["nsd:00007"]
    np.testing.assert_allclose(got.batch(got.rows_of(["nsd:00007"])[0]), truth, rtol=1e-5)


def test_zscores_return_to_the_scale_of_betas(made, tmp_path):
    """NeuroFlow's two files of statistics are those of the train trials as betas / 2000."""
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind="fmri_zscore")
    responses = made.subject("subj01").responses
    train = responses.values[~np.isin(responses.trials.image_id, sorted(made.split("made").test))] / 2000
    np.testing.assert_allclose(np.load(tmp_path / "nsd_train_global_mean_scaled_sub1.npy"), train.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "nsd_train_global_std_scaled_sub1.npy"), train.std(0), rtol=1e-5)


def test_several_kinds_need_a_name(made, tmp_path):
    folder = tmp_path / "nsd" / "subj01"
    for kind in ("fmri_scale", "fmri_all_scale"):
        write_nsd_prepared(made, folder, "subj01", "made", kind=kind)
    design = folder / "nsd_expdesign.mat"
    with pytest.raises(LayoutError, match="got fmri_scale, fmri_all_scale; pass kind="):
        nsd_prepared.load(tmp_path, 1, expdesign=design)
    three = nsd_prepared.load(tmp_path, 1, kind="fmri_scale", expdesign=design).subject("subj01").responses
    flat = nsd_prepared.load(tmp_path, 1, kind="fmri_all_scale", expdesign=design).subject("subj01").responses
    np.testing.assert_array_equal(three.values, flat.values)
    with pytest.raises(LayoutError, match=r"nsd_train_fmri_zscore_sub1\.npy .* got fmri_scale"):
        nsd_prepared.load(tmp_path, 1, kind="fmri_zscore", expdesign=design)


def test_arrays_of_other_shapes(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made", kind="fmri_scale")
    train, test = (tmp_path / f"nsd_{part}_fmri_scale_sub1.npy" for part in ("train", "test"))
    whole = np.load(train)
    np.save(train, whole[:, :2])
    with pytest.raises(AxisError, match=r"\(images, 3, voxels\) .* got float64 \(26, 2, "):
        nsd_prepared.load(tmp_path, 1)
    np.save(train, whole[..., 1:])
    with pytest.raises(AxisError, match="as many voxels"):
        nsd_prepared.load(tmp_path, 1)
    bad = whole.copy()
    bad[4, 1, 2] = np.nan
    np.save(train, bad)
    with pytest.raises(LayoutError, match="got nan at trial 13, voxel 2"):
        nsd_prepared.load(tmp_path, 1)
    np.save(train, whole)
    test.unlink()
    with pytest.raises(LayoutError, match=r"nsd_test_fmri_scale_sub1\.npy, got no such file"):
        nsd_prepared.load(tmp_path, 1)


def test_pictures_saved_as_floats(made, tmp_path):
    """Brain-Diffuser's script fills an array of zeros, so that 0 to 255 are stored as fp64."""
    write_nsd_prepared(made, tmp_path, "subj01", "made", pixels="float64")
    got = nsd_prepared.load(tmp_path, 1)
    for name in got.stimuli.ids[[0, 25, 26, 39]]:  # both sides of the border between the two arrays
        np.testing.assert_array_equal(got.stimuli.image(name), made.stimuli.image(name))
    path = tmp_path / "nsd_train_stim_sub1.npy"
    np.save(path, np.load(path) / 255)
    with pytest.raises(AxisError, match="whole numbers from 0 to 255"):
        nsd_prepared.load(tmp_path, 1).stimuli.image(got.stimuli.ids[0])


def test_positions_of_voxels_come_from_a_mask(made, tmp_path):
    write_nsd_prepared(made, tmp_path, "subj01", "made")
    space = made.subject("subj01").space
    volume = np.zeros(space.shape)
    volume[tuple(space.index.T)] = 1
    got = nsd_prepared.load(tmp_path, 1, mask=volume).subject("subj01").space
    np.testing.assert_array_equal(got.index, space.index)
    assert nsd_prepared.load(tmp_path, 1).subject("subj01").space.shape == (len(space), 1, 1)
    volume[0, 0, 0] = 0
    with pytest.raises(AxisError, match=f"expected {len(space)} voxels > 0 .* got {len(space) - 1}"):
        nsd_prepared.load(tmp_path, 1, mask=volume)
