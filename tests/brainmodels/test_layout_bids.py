"""BIDS folders: betas of every kind read back as they were written, and what the options choose."""

import logging
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from brainmodels.data import load_prepared, summarize
from brainmodels.errors import IdError, LayoutError
from brainmodels.layouts import bids, detect, prepare
from brainmodels.simulated import Preset, simulate
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.bids import SLOPE, as_int16, save, write_bids
from veca import cli

VOLUMES, SURFACES = ("nii.gz", "npy", "npz", "hdf5"), ("func.gii", "dtseries.nii", "dscalar.nii")


@pytest.fixture(scope="module")
def study():
    return simulate(Preset("study", (60,), (5, 5, 5), own=50, shared=10, sessions=3), seed=1)


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    """A folder that tests only read."""
    return write_bids(study, tmp_path_factory.mktemp("bids"), "sim01")


def loaded(written, **options):
    return bids.load(written.root, "01", **options)


@pytest.mark.parametrize("kind", [*VOLUMES, *SURFACES])
def test_round_trip(study, tmp_path, kind):
    files = write_bids(study, tmp_path, "sim01", betas=kind)
    litter(tmp_path)
    assert detect(tmp_path) == ["bids"]
    dataset = loaded(files, allow_pickle=kind == "npy")
    subject, meant = dataset.subject("sub-01"), study.subject("sim01")
    np.testing.assert_array_equal(subject.space.index, files.index)
    np.testing.assert_allclose(subject.responses.batch(range(180)), files.values, rtol=1e-6)
    trials, shown = subject.responses.trials, meant.responses.trials
    assert trials.image_id.tolist() == [files.ids[name] for name in shown.image_id.tolist()]
    np.testing.assert_array_equal(trials.session, shown.session)
    np.testing.assert_array_equal(trials.repeat, shown.repeat)
    np.testing.assert_array_equal(trials.run, np.tile(np.repeat([1, 2], 30), 3))
    assert set(subject.space.rois) == set(meant.space.rois)
    for name, region in meant.space.rois.items():
        np.testing.assert_array_equal(subject.space.rois[name], region[files.voxels], name)
    np.testing.assert_allclose(subject.space.ncsnr, meant.space.ncsnr[files.voxels], rtol=1e-6)
    for name, ours in list(files.ids.items())[:5]:
        np.testing.assert_array_equal(dataset.stimuli.image(ours), study.stimuli.image(name, 64))
    assert subject.space.name == "sub-01-T1w" and subject.provenance["events_left_out"] == 30
    assert (subject.space.affine is None) == (kind in SURFACES)
    psc = "percent signal change" if kind in VOLUMES[1:] else "unknown"
    assert subject.responses.unit == psc and summarize(dataset, "sub-01").sessions == 3


def test_int16_stays_int16_and_keeps_its_slope(written):
    responses = loaded(written).subject("sub-01").responses
    assert responses.values.dtype == np.int16 and responses.scale == pytest.approx(SLOPE)


def test_slopes_that_differ_give_floats(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", slopes=(0.004, 0.002))
    responses = loaded(files).subject("sub-01").responses
    assert responses.values.dtype == np.float32 and responses.scale == 1
    np.testing.assert_allclose(responses.batch(range(180)), files.values, rtol=1e-6)


def test_dead_voxels_are_left_out_counted_and_named(study, tmp_path, caplog):
    files = write_bids(study, tmp_path, "sim01", betas="hdf5", dead=7)
    with caplog.at_level(logging.WARNING):
        subject = loaded(files).subject("sub-01")
    dead = subject.provenance["dead"]
    assert (dead["of"], dead["constant"], dead["not_finite"]) == (67, 3, 4) and len(subject.space) == 60
    assert (
        f"7 of 67 voxels are dead: 3 constant, 4 not finite, and are left out. The first is at {dead['first'][0]}"
        in (caplog.text)
    )
    assert not (subject.space.index[:, None] == np.array(dead["first"])).all(-1).any()
    assert np.isfinite(subject.responses.values).all() and subject.space.rois["V1"].shape == (60,)


def test_a_voxel_that_is_dead_in_one_session_is_dead(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", dead=0)
    (path,) = files.betas[2]
    image = nibabel.load(path)
    stored = np.asarray(image.dataobj.get_unscaled()).copy()
    stored[tuple(files.index[11])] = 0
    save(path, stored, image.affine, SLOPE)
    subject = loaded(files).subject("sub-01")
    np.testing.assert_array_equal(subject.space.index, np.delete(files.index, 11, 0))
    assert subject.provenance["dead"]["first"] == [files.index[11].tolist()]


def test_lab_with_its_dead_voxels(tmp_path):
    """The untidy preset: dead voxels are found as they were planted, and unequal repeats make the test part."""
    lab = pytest.importorskip("brainmodels.simulated.presets").PRESETS.get("lab")
    if lab is None:
        pytest.skip("there is no preset lab")
    dataset = simulate(lab, n_subjects=1)
    person, truth = dataset.subject("sim01"), dataset.truth["sim01"]
    files = write_bids(dataset, tmp_path, "sim01", dead=0)
    subject = loaded(files).subject("sub-01")
    assert subject.provenance["dead"]["constant"] == truth.dead.sum() > 0
    np.testing.assert_array_equal(subject.space.index, files.index[~truth.dead[files.voxels]])
    np.testing.assert_array_equal(subject.responses.trials.run, person.responses.trials.run)
    assert len(subject.responses) == len(person.responses)


def test_the_same_name_in_two_folders_is_two_images(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", dead=0)
    first, second = sorted(files.ids.values())[:2]
    (tmp_path / "stimuli/other").mkdir()
    (tmp_path / "stimuli" / second).rename(tmp_path / "stimuli/other" / first.split("/")[1])
    renamed = f"other/{first.split('/')[1]}"
    for path in files.events.values():
        path.write_text(path.read_text().replace(second, renamed))
    dataset = loaded(files)
    assert {first, renamed} <= set(dataset.stimuli.ids.tolist()) and len(dataset.stimuli) == 60
    assert not np.array_equal(dataset.stimuli.image(first), dataset.stimuli.image(renamed))


def test_trial_types_choose_trials(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01")
    (path,) = files.betas[1]
    assert len(loaded(files, trial_type="image").subject("sub-01").responses) == 180
    events = files.events[1, 1]
    lines = events.read_text().splitlines()
    shown = [number for number, line in enumerate(lines) if "\timage\t" in line]
    lines[shown[4]] = lines[shown[4]].replace("\timage\t", "\tcatch\t")
    events.write_text("\n".join(lines) + "\n")
    image = nibabel.load(path)
    save(path, np.delete(np.asarray(image.dataobj.get_unscaled()), 4, -1), image.affine, SLOPE)
    responses = loaded(files, trial_type="image").subject("sub-01").responses
    np.testing.assert_allclose(responses.batch(range(179)), np.delete(files.values, 4, 0), rtol=1e-6)
    with pytest.raises(LayoutError, match=r"expected 60 betas in .*_betas.nii.gz, one for each trial of .*, got 59"):
        loaded(files, trial_type="image,catch")
    with pytest.raises(LayoutError, match=r"expected 60 betas .*, got 59; 10 lines of the events were left out"):
        loaded(files)


def test_sessions_can_be_chosen(written):
    whole = loaded(written).subject("sub-01").responses
    for sessions in ("03", 3, ["3"], "3"):
        some = loaded(written, sessions=sessions).subject("sub-01")
        np.testing.assert_array_equal(some.responses.batch(range(60)), whole.batch(range(120, 180)))
        assert set(some.responses.trials.session.tolist()) == {3} and some.provenance["sessions"] == {"03": 3}


def test_betas_over_all_sessions_and_by_run(study, tmp_path):
    """What the name of a file does not say, it covers: a file of the subject all runs, one of a run that run."""
    files = write_bids(study, tmp_path, "sim01", dead=0)
    parts = [nibabel.load(files.betas[session][0]) for session in (1, 2, 3)]
    stored = [np.asarray(image.dataobj.get_unscaled()) for image in parts]
    folder = tmp_path / "derivatives/glmsingle/sub-01"
    for session in (1, 2, 3):
        files.betas[session][0].unlink()
    save(folder / "sub-01_space-T1w_betas.nii.gz", np.concatenate(stored, -1), parts[0].affine, SLOPE)
    np.testing.assert_allclose(loaded(files).subject("sub-01").responses.batch(range(180)), files.values, rtol=1e-6)
    (folder / "sub-01_space-T1w_betas.nii.gz").unlink()
    for (session, run), _ in files.events.items():
        part = stored[session - 1][..., 30 * (run - 1) : 30 * run]
        name = f"sub-01_ses-{session}_task-scenes_run-0{run}_space-T1w_betas.nii"
        save(folder / name, part, parts[0].affine, SLOPE)
    np.testing.assert_allclose(loaded(files).subject("sub-01").responses.batch(range(180)), files.values, rtol=1e-6)


def test_options_name_files(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", dead=0)
    folder = tmp_path / "derivatives/glmsingle/sub-01"
    for session in (1, 2, 3):
        (path,) = files.betas[session]
        image = nibabel.load(path)
        zero = np.asarray(image.dataobj.get_unscaled()) * 2
        save(path.with_name(path.name.replace("desc-glmsingle", "desc-other")), zero, image.affine, SLOPE)
    with pytest.raises(LayoutError, match=r"one file of betas for session 01, run 1, got .* and .*; choose by betas="):
        loaded(files)
    doubled = loaded(files, betas="*_desc-other_betas.nii.gz").subject("sub-01")
    np.testing.assert_allclose(doubled.responses.batch(range(180)), 2 * files.values, rtol=1e-5)
    half = np.zeros(study.subject("sim01").space.shape, np.uint8)
    half[tuple(files.index[:30].T)] = 1
    save(tmp_path / "half.nii.gz", half, study.subject("sim01").space.affine)
    options = {"betas": "*_desc-other_betas.nii.gz", "mask": "half.nii.gz", "atlas": "none"}
    small = loaded(files, **options).subject("sub-01")
    np.testing.assert_array_equal(small.space.index, files.index[:30])
    assert not small.space.rois
    everything = loaded(files, betas="*_desc-other_betas.nii.gz", mask="all").subject("sub-01")
    np.testing.assert_array_equal(everything.space.index, files.index)  # all others are constant
    assert everything.provenance["dead"] == {**everything.provenance["dead"], "of": 125, "constant": 65}
    for name in ("sub-01_space-MNI_atlas-sim_dseg.nii.gz", "sub-01_space-MNI_stat-ncsnr_statmap.nii.gz"):
        save(folder / name, np.ones((3, 3, 3), np.uint8), np.eye(4))  # of another space: passed over
    assert len(loaded(files, betas="*_desc-other_betas.nii.gz").subject("sub-01").space.rois) == 6


def test_labels_without_a_table_and_labels_of_two_atlases(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", dead=0)
    folder = tmp_path / "derivatives/glmsingle/sub-01"
    rois = study.subject("sim01").space.rois
    (folder / "sub-01_space-T1w_atlas-sim_dseg.nii.gz").rename(folder / "sub-01_space-T1w_seg-wang15_dseg.nii.gz")
    found = loaded(files).subject("sub-01").space.rois
    assert list(found) == [f"wang15:{label}" for label in range(1, 7)]
    np.testing.assert_array_equal(found["wang15:2"], rois["V4"][files.voxels])
    table = "index\tname\tcolor\n" + "".join(f"{label}\t{name}\t#fff\n" for label, name in enumerate(rois, 1))
    (folder / "sub-01_space-T1w_seg-wang15_dseg.tsv").write_text(table)
    assert list(loaded(files).subject("sub-01").space.rois) == list(rois)
    volume = np.zeros(study.subject("sim01").space.shape, np.uint8)
    volume[tuple(files.index[:4].T)] = 1
    save(folder / "sub-01_space-T1w_atlas-kastner_dseg.nii.gz", volume, study.subject("sim01").space.affine)
    (folder / "sub-01_space-T1w_atlas-kastner_dseg.tsv").write_text("index\tname\n1\tV1\n")
    found = loaded(files).subject("sub-01").space.rois
    assert {"kastner:V1", "wang15:V1", "V4"} <= set(found) and "V1" not in found
    np.testing.assert_array_equal(np.flatnonzero(found["kastner:V1"]), range(4))


def test_r2_leaves_voxels_out(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", betas="hdf5", dead=0)  # R2 counts the voxels: 0, 1, 2 and so on
    subject = loaded(files, r2_min=20).subject("sub-01")
    np.testing.assert_array_equal(subject.space.index, files.index[20:])
    assert subject.provenance["below_r2_min"] == 20 and subject.provenance["r2"] == pytest.approx(39.5)
    ratio = study.subject("sim01").space.volume(np.ones(60, np.float32), 0)
    save(tmp_path / "derivatives/glmsingle/sub-01/sub-01_space-T1w_R2.nii.gz", ratio, np.eye(4))
    with pytest.raises(ValueError, match="expected the grid of"):
        loaded(files)
    path = tmp_path / "derivatives/glmsingle/sub-01/sub-01_space-T1w_R2.nii.gz"
    save(path, ratio, study.subject("sim01").space.affine)
    assert loaded(files).subject("sub-01").provenance["r2"] == 1


def test_repeated_images_are_the_test_part(study, tmp_path):
    """Shared images are shown six times and others twice: the former are tested on, whatever the seed."""
    person = study.subject("sim01")
    shared = study.split("shared").test
    trials = person.responses.trials
    rows = np.flatnonzero(np.isin(trials.image_id, sorted(shared)) | (trials.repeat < 1))
    some = study.with_subject(replace(person, responses=person.responses.subset(rows)))
    files = write_bids(some, tmp_path, "sim01")
    split = loaded(files).split("repeated")
    assert split.test == {files.ids[name] for name in shared}
    assert split.params["rule"].startswith("10 of 60 images that were shown clearly more often")
    assert loaded(files, seed=3).split("repeated").test == split.test
    assert len(loaded(files, by="session", holdout=0.3).split("holdout_session").sessions["test"]) == 1


def test_equal_repeats_are_split_by_hash(written):
    split = loaded(written, holdout=0.25).split("holdout_image")
    assert len(split.test) == 15
    assert loaded(written, holdout=0.25, seed=1).split("holdout_image").test != split.test


def test_concepts_are_folders(written):
    split = loaded(written, by="concept", holdout=0.3).split("holdout_concept")
    (held,) = {name.split("/")[0] for name in split.test}
    assert held not in {name.split("/")[0] for name in split.train | split.val} and split.params["held_out"] == [held]
    assert len(split.test) == sum(name.startswith(held) for name in written.ids.values())


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".txt"])
def test_test_images_in_a_file(study, tmp_path, suffix):
    files = write_bids(study, tmp_path, "sim01")
    test = sorted(files.ids.values())[::7]
    header = [] if suffix == ".txt" else ["image_id"]
    (tmp_path / f"held_out{suffix}").write_text("\n".join([*header, *test]) + "\n")
    assert loaded(files, test=f"held_out{suffix}").split("given").test == set(test)
    named = loaded(files, test=f"held_out{suffix}", namespace="lab")
    assert named.split("given").test == {f"lab:{name}" for name in test} and f"lab:{test[0]}" in named.stimuli


def test_test_images_in_a_column(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01")
    test = set(sorted(files.ids.values())[::7])
    for path in files.events.values():
        head, *lines = path.read_text().splitlines()
        marked = [f"{line}\t{'test' if line.split(chr(9))[3] in test else 'train'}" for line in lines]
        path.write_text("\n".join([f"{head}\tpart", *marked]) + "\n")
    assert loaded(files, test="part").split("given").test == test
    path = files.events[3, 2]
    content = path.read_text()
    path.write_text(content.replace("\ttest\n", "\ttrain\n"))
    with pytest.raises(
        LayoutError, match=r"one mark of 'set.*' in the column part, got test and train, .*run-2_events"
    ):
        loaded(files, test="part")
    path.write_text(content.replace("\ttest\n", "\tmaybe\n"))
    with pytest.raises(LayoutError, match=r"test, true, .* in the column part, line \d+ of .*, got 'maybe'"):
        loaded(files, test="part")


def test_converted_pickles_take_the_place_of_pickles(study, tmp_path, caplog):
    """`veca brain convert` writes a .npz beside GLMsingle's file, and then no flag is needed."""
    files = write_bids(study, tmp_path, "sim01", betas="npy")
    for (path,) in files.betas.values():
        content = np.load(path, allow_pickle=True).item()
        content["pcregressors"] = [np.zeros((5, 2)), np.zeros((6, 2))]  # of runs of different lengths
        np.save(path, content, allow_pickle=True)
        cli.main(["brain", "convert", "--file", str(path), "--out", str(path.with_suffix(".npz"))])
    assert "rrbadness, pcregressors of" in caplog.text and "were left out" in caplog.text
    with np.load(path.with_suffix(".npz")) as content:
        assert set(content.files) == {"HRFindex", "betasmd", "R2", "pcnum"}
    responses = loaded(files).subject("sub-01").responses
    np.testing.assert_allclose(responses.batch(range(180)), files.values, rtol=1e-6)


def test_betas_of_the_voxels_of_the_mask(study, tmp_path):
    """GLMsingle keeps (voxels, 1, 1, trials) where it was given (voxels, time)."""
    files = write_bids(study, tmp_path, "sim01", betas="hdf5", dead=0)
    folder = tmp_path / "derivatives/glmsingle/sub-01"
    for session, (path,) in files.betas.items():
        path.unlink()
        rows = slice(60 * (session - 1), 60 * session)
        shape = (60, 1, 1, 60) if session == 1 else (60, 60)
        np.save(folder / f"sub-01_ses-{session}_betas.npy", files.values[rows].T.reshape(shape))
    np.testing.assert_array_equal(loaded(files).subject("sub-01").responses.batch(range(180)), files.values)


def test_a_study_without_sessions_and_runs(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01", runs=1, dead=0)
    image, func = nibabel.load(files.betas[1][0]), tmp_path / "sub-01/func"
    stored = np.asarray(image.dataobj.get_unscaled())
    func.mkdir()
    files.events[1, 1].rename(func / "sub-01_task-scenes_events.tsv")
    for session in (1, 2, 3):
        files.betas[session][0].unlink()
        (tmp_path / f"sub-01/ses-0{session}/func").rename(tmp_path / f"old{session}")
    folder = tmp_path / "derivatives/glmsingle/sub-01"
    save(folder / "sub-01_task-scenes_space-T1w_betas.nii.gz", stored, image.affine, SLOPE)
    masks = sorted((tmp_path / "derivatives/fmriprep").rglob("*ses-01*brain_mask.nii.gz"))
    masks[0].rename(folder / "sub-01_task-scenes_space-T1w_desc-brain_mask.nii.gz")
    assert bids.detect(tmp_path)
    subject = loaded(files).subject("sub-01")
    np.testing.assert_allclose(subject.responses.batch(range(60)), files.values[:60], rtol=1e-6)
    assert set(subject.responses.trials.session.tolist()) == {1}


def test_voxels_keep_their_side(study, tmp_path):
    """One planted voxel, at a known place in millimetres, through a left-handed affine."""
    person = study.subject("sim01")
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 6, -4, 0
    turned = study.with_subject(replace(person, space=replace(person.space, affine=affine)))
    subject = loaded(write_bids(turned, tmp_path, "sim01", dead=0)).subject("sub-01")
    scores = np.zeros(60, np.float32)
    scores[17] = 1
    image = subject.space.to_image(scores)
    (place,) = np.argwhere(image.get_fdata())
    np.testing.assert_array_equal(place, subject.space.index[17])
    assert (image.affine @ [*place, 1])[0] == 6 - 2 * place[0]


def test_prepare_from_the_command_line(written, tmp_path, capsys):
    out = tmp_path / "sub-01"
    words = ["brain", "prepare", "--layout", "bids", "--root", written.root, "--subject", "01", "--out", out]
    options = ["--options", "task=scenes", "trial_type=image", "sessions=1,3", "by=concept"]
    cli.main([*map(str, words), "--image-size", "32", *options])
    printed = capsys.readouterr().out
    assert "sub-01 (bids)" in printed and "120 in 2 sessions" in printed and "V4" in printed
    dataset = load_prepared(out)
    subject = dataset.subject("sub-01")
    rows = [*range(60), *range(120, 180)]
    np.testing.assert_allclose(subject.responses.batch(range(120)), written.values[rows], rtol=1e-6)
    assert subject.responses.values.dtype == np.int16 and subject.provenance["dead"]["constant"] == 3
    assert (
        dataset.split("holdout_concept") and sorted(path.name for path in out.iterdir() if "alloc" in path.name) == []
    )
    with pytest.raises(SystemExit, match=r"expected a subject of .* \(sub-01\), got '1'; near: sub-01"):
        cli.main([*map(str, words[:6]), "--out", str(tmp_path / "other")])


def test_as_prepared_by_a_function(written, tmp_path):
    summary = prepare("bids", written.root, "sub-01", tmp_path / "prepared", image_size=16, test=None)
    assert summary.voxels["all"] == 60 and summary.layout == "bids" and summary.repeats == {3: 60}


def test_values_are_rounded_as_int16_has_them(written, study):
    found = loaded(written).subject("sub-01").responses.values
    meant = as_int16(study.subject("sim01").responses.batch(range(180)), SLOPE)[:, written.voxels]
    np.testing.assert_array_equal(found, meant)


def test_unknown_ids_of_test_images(study, tmp_path):
    files = write_bids(study, tmp_path, "sim01")
    (tmp_path / "test.txt").write_text("set1/nothing.png\n")
    with pytest.raises(IdError, match=r"test images that were shown in .*test.txt, got 'set1/nothing.png'"):
        loaded(files, test="test.txt")
