"""The published layout of the Natural Scenes Dataset: what was written is read back, contradictions are named."""

import csv
import re
import shutil

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from brainmodels.data import BrainDataset, Subject, VoxelSpace
from brainmodels.errors import AxisError, IdError, LayoutError
from brainmodels.layouts import detect, nsd_native
from tests.brainmodels.written.nsd_native import write_nsd_native

from .made import made_dataset
from .spoilt import litter, spoil

BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
ROI = "nsddata/ppdata/subj01/func1pt8mm/roi"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"


def made_nsd(box=(4, 3, 5), sessions=3, **options):
    """A subject in percent signal change, with regions, reliability and runs, of whom some images are shared."""
    made = made_dataset(num_images=14, repeats=3, box=box, sessions=sessions, dtype=np.int16, prefix="nsd:", **options)
    person = made.subject("subj01")
    count = len(person.space)
    at = np.arange(count)
    rois = {
        "V1v": at < 4,
        "V1d": (at >= 4) & (at < 6),
        "hV4": at == 7,
        "FFA-1": at % 5 == 2,
        "ventral": at > 8,
        "SEM": at % 3 == 0,
    }
    affine = np.array([[-1.8, 0, 0, 70.0], [0, 1.8, 0, -80.5], [0, 0, 1.8, -60.25], [0, 0, 0, 1]])
    space = VoxelSpace("made", person.space.index, person.space.shape, affine, rois, np.linspace(0.1, 0.9, count))
    trials = person.responses.trials
    half = np.concatenate([np.arange((trials.session == s).sum()) // 7 + 1 for s in range(1, sessions + 1)])
    trials = type(trials)(trials.image_id, trials.session, half, trials.repeat, trials.trial)
    responses = type(person.responses)(person.responses.values, trials, person.responses.scale)
    return BrainDataset([Subject("subj01", responses, space)], made.stimuli, made.splits)


@pytest.fixture(scope="module")
def made():
    return made_nsd()


@pytest.fixture
def root(made, tmp_path):
    write_nsd_native(made, tmp_path, "subj01", "made", suffixes=("nii.gz", "hdf5"))
    return tmp_path


def assert_same_trials(got, want):
    for column in ("image_id", "session", "run", "repeat", "trial"):
        np.testing.assert_array_equal(getattr(got, column), getattr(want, column))


def test_reads_what_was_written(made, root):
    litter(root)
    got = nsd_native.load(root, "subj01")
    person, truth = got.subject("subj01"), made.subject("subj01")
    assert_same_trials(person.responses.trials, truth.responses.trials)
    assert person.responses.values.dtype == np.int16 and person.responses.unit == "percent signal change"
    np.testing.assert_array_equal(person.responses.values, truth.responses.values)
    np.testing.assert_allclose(person.responses.batch([5]), truth.responses.values[5:6] / 300, rtol=1e-6)
    np.testing.assert_array_equal(person.space.index, truth.space.index)
    np.testing.assert_allclose(person.space.affine, truth.space.affine)
    np.testing.assert_allclose(person.space.ncsnr, truth.space.ncsnr, rtol=1e-6)
    assert got.stimuli.ids.tolist() == made.stimuli.ids.tolist()
    for image_id in made.stimuli.ids:
        np.testing.assert_array_equal(got.stimuli.image(image_id), made.stimuli.image(image_id))
        assert got.stimuli.captions(image_id) == made.stimuli.captions(image_id)
    assert got.stimuli.label("coco_id", ["nsd:00003"]) == [1003]
    split = got.split("shared1000")
    assert split.test == made.split("made").test
    assert split.train | split.val == made.split("made").train | made.split("made").val
    assert "5 of 5 shared images" in split.params["variant"]
    assert detect(root) == ["nsd_native"]


def test_regions_are_read_by_label(made, root):
    got, want = nsd_native.load(root, 1).subject("subj01").space.rois, made.subject("subj01").space.rois
    for name, key in {"V1v": "V1v", "V1d": "V1d", "FFA-1": "FFA-1", "streams:ventral": "ventral", "SEM": "SEM"}.items():
        np.testing.assert_array_equal(got[name], want[key])
    np.testing.assert_array_equal(got["V1"], want["V1v"] | want["V1d"])
    np.testing.assert_array_equal(got["V4"], want["hV4"])
    assert "V2" not in got and "OFA" not in got  # nobody has them
    some = nsd_native.load(root, 1, rois=["floc-faces"]).subject("subj01").space.rois
    assert list(some) == ["FFA-1"]


def test_label_tables_are_optional_but_may_not_miss_a_label(root):
    table = root / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab"
    with_table = nsd_native.load(root, 1).subject("subj01").space.rois
    table.unlink()
    without = nsd_native.load(root, 1).subject("subj01").space.rois
    assert list(without) == list(with_table)
    table.write_text("0 Unknown\n1 V1v\n")
    with pytest.raises(LayoutError, match=r"labels of .*V1v.* got 2"):
        nsd_native.load(root, 1)


def test_nifti_and_hdf5_are_identical(root):
    volumes = nsd_native.load(root, 1, suffix="nii.gz").subject("subj01").responses
    arrays = nsd_native.load(root, 1, suffix="hdf5").subject("subj01").responses
    np.testing.assert_array_equal(volumes.values, arrays.values)
    assert volumes.values.dtype == arrays.values.dtype == np.int16
    with h5py.File(root / BETAS / "betas_session01.hdf5") as file:  # reversed, as h5py shows what MATLAB wrote
        image = nibabel.load(root / BETAS / "betas_session01.nii.gz")
        assert file["betas"].shape == image.shape[::-1]
        np.testing.assert_array_equal(file["betas"][2, 4, 1, 3], np.asarray(image.dataobj)[3, 1, 4, 2])


def test_trials_follow_the_definition_of_the_design(root):
    """id = subjectim[s - 1, masterordering[k] - 1] - 1, one trial after the other."""
    design = loadmat(root / DESIGN)
    got = nsd_native.load(root, 1)
    for k, image_id in enumerate(got.subject("subj01").responses.trials.image_id):
        place = int(design["masterordering"][0, k])
        assert image_id == f"nsd:{int(design['subjectim'][0, place - 1]) - 1:05d}"
        assert (image_id in got.split("shared1000").test) == (place <= 1000)


def test_missing_session_is_named_and_the_others_keep_their_images(made, root):
    for path in (root / BETAS).glob("betas_session02.*"):
        path.unlink()
    with pytest.raises(LayoutError, match=re.escape("sessions [1, 2, 3]")) as error:
        nsd_native.load(root, 1)
    assert "got [1, 3], without [2]" in str(error.value) and "sessions=[1, 3]" in str(error.value)
    person, truth = nsd_native.load(root, 1, sessions=[3, 1]).subject("subj01"), made.subject("subj01")
    kept = np.flatnonzero(truth.responses.trials.session != 2)
    np.testing.assert_array_equal(person.responses.values, truth.responses.values[kept])
    assert_same_trials(
        person.responses.trials, truth.responses.trials[kept]
    )  # repeats count the session that is missing
    with pytest.raises(LayoutError, match=r"sessions \[2\] .* got \[1, 3\]"):
        nsd_native.load(root, 1, sessions=[2])
    with pytest.raises(LayoutError, match=r"sessions 1 to 3 of subj01, got \[4\]"):
        nsd_native.load(root, 1, sessions=[1, 4])


def test_missing_last_session(root):
    for path in (root / BETAS).glob("betas_session03.*"):
        path.unlink()
    with pytest.raises(LayoutError, match=re.escape("got [1, 2], without [3]")):
        nsd_native.load(root, 1)


def test_forty_sessions_are_cut_to_those_of_the_subject(tmp_path):
    """Without stimpattern a session has 750 trials; subject 4 did 30 of the 40 sessions that the design lists."""
    rng = np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(1, 10001), 3))[None]
    shared, *own = np.split(rng.permutation(73000) + 1, [1000])
    images = np.stack([np.concatenate([shared, rng.permutation(own[0])[:9000]]) for _ in range(8)])
    path = tmp_path / "nsd_expdesign.mat"
    savemat(path, {"masterordering": order, "subjectim": images, "sharedix": images[:1, :1000]})
    design = nsd_native.read_design(path, 4)
    assert design.num_sessions == 30 and len(design.image) == 30 * 750
    trials = design.trials([30])
    assert trials.trial.tolist() == list(range(29 * 750, 30 * 750)) and set(trials.session.tolist()) == {30}
    k = 29 * 750 + 17
    assert trials.image_id[17] == f"nsd:{images[3, order[0, k] - 1] - 1:05d}"
    assert trials.repeat[17] == (order[0, :k] == order[0, k]).sum()
    assert (trials.run == -1).all()


def test_mask_is_above_zero(made, root):
    general = np.asarray(nibabel.load(root / ROI / "nsdgeneral.nii.gz").dataobj)
    assert set(np.unique(general)) == {-1, 0, 1}
    assert len(nsd_native.load(root, 1).subject("subj01").space) == (general > 0).sum()


def test_mask_of_the_user(tmp_path):
    made = made_nsd()
    person = made.subject("subj01")
    few = person.space.select(np.arange(len(person.space)) < 6)
    responses = type(person.responses)(person.responses.values[:, :6], person.responses.trials, person.responses.scale)
    write_nsd_native(
        BrainDataset([Subject("subj01", responses, few)], made.stimuli, made.splits), tmp_path, "subj01", "made"
    )
    volume = np.asarray(nibabel.load(tmp_path / ROI / "nsdgeneral.nii.gz").dataobj)
    with pytest.raises(LayoutError, match=r"about 6 voxels .* got 30; did you use != -1\?"):
        nsd_native.load(tmp_path, 1, mask=volume != -1)
    with pytest.raises(AxisError, match=r"volume \(4, 3, 5\) in mask=.* got \(4, 5, 3\)"):
        nsd_native.load(tmp_path, 1, mask=(volume > 0).transpose(0, 2, 1))
    mask = volume > 0
    mask[tuple(few.index[2])] = False
    got = nsd_native.load(tmp_path, 1, mask=mask).subject("subj01")
    np.testing.assert_array_equal(got.responses.values, np.delete(responses.values, 2, axis=1))


def test_float_betas(made, tmp_path):
    write_nsd_native(made, tmp_path, "subj01", "made", dtype="float32")
    with pytest.raises(
        LayoutError, match=r"floats of median size 0\.\d+; already percent signal change\? pass scale='psc'"
    ):
        nsd_native.load(tmp_path, 1)
    person, truth = nsd_native.load(tmp_path, 1, scale="psc").subject("subj01"), made.subject("subj01")
    assert person.responses.scale == 1 and person.responses.values.dtype == np.float32
    np.testing.assert_allclose(person.responses.values, truth.responses.values / 300, rtol=1e-6)


def test_integers_are_not_percent_signal_change(root):
    with pytest.raises(LayoutError, match=r"floats in .* as scale='psc' says, got int16"):
        nsd_native.load(root, 1, scale="psc")


def test_volumes_of_another_shape(root):
    path = root / BETAS / "betas_session02.nii.gz"
    image = nibabel.load(path)
    values = np.asarray(image.dataobj)
    nibabel.save(nibabel.Nifti1Image(values[:, :, :4], image.affine), path)
    with pytest.raises(AxisError, match=r"volume \(4, 3, 5, 14\) .*session02.* got \(4, 3, 4, 14\)"):
        nsd_native.load(root, 1)
    nibabel.save(nibabel.Nifti1Image(values[..., :9], image.affine), path)
    with pytest.raises(LayoutError, match=r"14 trials in .*session02.* got 9"):
        nsd_native.load(root, 1)
    with h5py.File(root / BETAS / "betas_session01.hdf5", "r+") as file:
        betas = file["betas"][:]
        del file["betas"]
        file["betas"] = betas.transpose(0, 2, 1, 3)
    with pytest.raises(AxisError, match=r"betas \(14, 5, 3, 4\) .* got \(14, 3, 5, 4\)"):
        nsd_native.load(root, 1, suffix="hdf5")


def test_truncated_files(root):
    for suffix in ("nii.gz", "hdf5"):
        path = root / BETAS / f"betas_session01.{suffix}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(LayoutError, match=r"session01.*copy it again"):
            nsd_native.load(root, 1, suffix=suffix)


@pytest.mark.parametrize("file", ["betas_session02", "nsdgeneral", "floc-faces"])
def test_damage_that_only_the_checksum_shows(root, file):
    """The reader stopped before the checksum, and loaded other numbers in silence."""
    path = next(root.rglob(f"{file}.nii.gz"))
    spoil(path)
    with pytest.raises(LayoutError, match=rf"{file}\.nii\.gz, got: .*; copy it again"):
        nsd_native.load(root, 1)


@pytest.mark.parametrize("file", ["betas_session02", "ncsnr", "floc-faces", "own"])
def test_volumes_on_another_grid(root, made, file):
    """Only shapes were compared, so a volume with x the other way gave other voxels."""
    path = root / ROI / "nsdgeneral.nii.gz" if file == "own" else next(root.rglob(f"{file}.nii.gz"))
    image = nibabel.load(path)
    values = np.asarray(image.dataobj)
    turned = image.affine @ np.array([[-1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # the same places
    options, target = ({"mask": root / "own.nii.gz"}, root / "own.nii.gz") if file == "own" else ({}, path)
    nibabel.save(nibabel.Nifti1Image(values[::-1], turned), target)
    with pytest.raises(AxisError, match=rf"in .*{file}\.nii\.gz, got corners that lie up to .* mm apart; .*affines="):
        nsd_native.load(root, 1, **options)
    nibabel.save(nibabel.Nifti1Image(values, turned), target)  # right values with a wrong header
    got = nsd_native.load(root, 1, affines="ignore", **options).subject("subj01")
    np.testing.assert_array_equal(got.responses.values, made.subject("subj01").responses.values)
    nibabel.save(nibabel.Nifti1Image(values, image.affine + 1e-4), target)  # rounding of headers
    nsd_native.load(root, 1, **options)


def test_two_files_of_one_session(root):
    shutil.copy(root / BETAS / "betas_session01.nii.gz", root / BETAS / "betas_session1.nii.gz")
    (root / BETAS / "._betas_session01.nii.gz").write_bytes(b"\0\5\x16\7")
    with pytest.raises(LayoutError, match=r"number 1 in .*, got betas_session0?1.nii.gz and betas_session0?1.nii.gz"):
        nsd_native.load(root, 1)


def test_cubic_volume_is_ambiguous_in_hdf5_only(tmp_path):
    made = made_nsd(box=(4, 4, 4))
    write_nsd_native(made, tmp_path, "subj01", "made", suffixes=("nii.gz", "hdf5"))
    with pytest.raises(AxisError, match=r"mask \(4, 4, 4\) and betas \(14, 4, 4, 4\): their order is ambiguous"):
        nsd_native.load(tmp_path, 1, suffix="hdf5")
    got = nsd_native.load(tmp_path, 1).subject("subj01").responses
    np.testing.assert_array_equal(got.values, made.subject("subj01").responses.values)


def test_ncsnr_of_another_subject(root):
    path = root / BETAS / "ncsnr.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:3], image.affine), path)
    with pytest.raises(AxisError, match=r"\(4, 3, 5\) in .*ncsnr.* got \(3, 3, 5\); is it another subject's\?"):
        nsd_native.load(root, 1)


def test_design_that_contradicts_itself_or_the_table(root):
    path = root / DESIGN
    content = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    own = content["subjectim"].copy()
    own[0, 1000:1002] = own[0, [1001, 1000]]
    savemat(path, content | {"subjectim": own})
    with pytest.raises(
        IdError, match=r"expected trial \d+ of subject 1 to show nsd:\d+, .* got nsd:\d+ in .*merged.csv"
    ):
        nsd_native.load(root, 1)
    savemat(path, content | {"sharedix": content["sharedix"][:, 1:]})
    with pytest.raises(LayoutError, match=r"to be those of sharedix .* got another for nsd:"):
        nsd_native.load(root, 1)
    savemat(path, {key: value for key, value in content.items() if key != "masterordering"})
    with pytest.raises(LayoutError, match="array 'masterordering'"):
        nsd_native.load(root, 1)
    savemat(path, content)
    with pytest.raises(LayoutError, match=r"subjectim .* got none for some of its trials"):
        nsd_native.read_design(path, 2)


def test_table_has_the_columns_of_the_release(root):
    with (root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shared = [row for row in rows if row["shared1000"] == "True"]
    assert len(rows) == 14 and len(shared) == 5
    assert all(int(row["subject1_rep0"]) < int(row["subject1_rep1"]) < int(row["subject1_rep2"]) for row in rows)
    assert all(row["subject2_rep0"] == "0" for row in rows)


def test_pictures_are_needed_only_when_they_are_looked_at(root):
    (root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5").unlink()
    (root / "COCO_73k_annots_curated.npy").unlink()
    got = nsd_native.load(root, 1)
    assert got.stimuli.captions("nsd:00003") == []
    with pytest.raises(LayoutError, match=r"there is no .*nsd_stimuli\.hdf5"):
        got.stimuli.image("nsd:00003")


def test_memory_is_allocated_once_and_given_by_the_user(made, root, tmp_path):
    asked = []

    def allocate(shape, dtype):
        asked.append((shape, dtype))
        return np.lib.format.open_memmap(tmp_path / "values.npy", "w+", dtype, shape)

    got = nsd_native.load(root, 1, allocate=allocate).subject("subj01").responses
    truth = made.subject("subj01").responses.values
    assert asked == [(truth.shape, np.dtype(np.int16))] and isinstance(got.values, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), truth)


def test_ids_of_other_data_are_numbered(tmp_path):
    made = made_dataset(num_images=6, dtype=np.int16, prefix="sim:")
    names = write_nsd_native(made, tmp_path, "subj01", "made", number=3)
    got = nsd_native.load(tmp_path, 3)
    assert names["sim:00004"] == "nsd:00004"
    want = [names[image_id] for image_id in made.subject("subj01").responses.trials.image_id]
    assert got.subject("subj03").responses.trials.image_id.tolist() == want
    np.testing.assert_array_equal(got.subject("subj03").space.roi("V1"), made.subject("subj01").space.roi("V1"))
    with pytest.raises(IdError, match="from 1 to 8, got 9"):
        nsd_native.load(tmp_path, 9)
    with pytest.raises(LayoutError, match="betas_session01"):
        nsd_native.load(tmp_path, 3, betas="betas_assumehrf")
