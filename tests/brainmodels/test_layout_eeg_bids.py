"""EEG-BIDS and MEG-BIDS folders: trials come back, both commands work, and every damage is named."""

import shutil

import numpy as np
import pytest
from PIL import Image

from brainmodels import cli
from brainmodels.data import load_prepared
from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError, UnitsError
from brainmodels.layouts import detect, eeg_bids, raw_eeg
from brainmodels.layouts.raw_eeg import EpochRecipe
from brainmodels.simulated import simulate_eeg
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.eeg_bids import write_eeg_bids
from tests.brainmodels.written.raw_eeg import VOLTS, write_fif

mne = pytest.importorskip("mne")
RECIPE = EpochRecipe(-0.2, 0.796)


@pytest.fixture(scope="module")
def source():
    return simulate_eeg(n_subjects=1, n_chans=6, snr_db=0, n_train=30, n_test=12, repeats=1, test_repeats=3, seed=6)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    return root, write_eeg_bids(source, root, sessions=2, runs=2)


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


def load(root, **options):
    return eeg_bids.load(root, "01", **({"epochs": RECIPE} | options))


def events_of(root, session=1, run=1):
    return root / f"sub-01/ses-{session:02d}/eeg/sub-01_ses-{session:02d}_task-see_run-{run}_events.tsv"


@pytest.mark.parametrize(("form", "atol"), [("vhdr", 1e-12), ("fif", 1e-12), ("edf", 130e-6 / (2**15 - 1) / 2)])
def test_trials_come_back(source, tmp_path, form, atol):
    ids = write_eeg_bids(source, tmp_path, form=form)
    litter(tmp_path)
    assert "eeg_bids" in detect(tmp_path) and not eeg_bids.detect(tmp_path / "stimuli")
    loaded = load(tmp_path)
    person, original = loaded.subject("sub-01"), source.subject("sim01")
    shown = original.responses.trials.image_id.tolist()
    assert person.responses.trials.image_id.tolist() == [ids[name] for name in shown]
    values = original.responses.values * VOLTS
    np.testing.assert_allclose(person.responses.batch(range(len(values))), values, rtol=1e-6, atol=atol)
    np.testing.assert_allclose(person.space.times, original.space.times, atol=1e-9)
    assert list(person.space.ch_names) == list(original.space.ch_names) and person.space.unit == "V"
    assert np.bincount(person.responses.trials.run).tolist() == [0, 33, 33]
    assert loaded.split("repeated").test == {ids[name] for name in source.split("scenes").test}
    assert loaded.stimuli.image(ids[shown[0]], 64).shape == (64, 64, 3)


def test_sessions_and_trial_types_are_chosen(written):
    root, _ = written
    both = load(root).subject("sub-01").responses.trials
    assert np.bincount(both.session).tolist() == [0, 34, 32]
    second = load(root, sessions="02", trial_type="image", namespace="mine", holdout=0.3)
    trials = second.subject("sub-01").responses.trials
    assert set(trials.session.tolist()) == {2} and trials.image_id[0].startswith("mine:scenes/")
    assert second.split("holdout_image").test
    with pytest.raises(LayoutError, match=r"trial_type 'picture' .*got image, rest"):
        load(root, trial_type="picture")
    with pytest.raises(LayoutError, match=r"an image of each trial in the column stim_file .* got 'n/a' in line 2"):
        load(root, trial_type=["image", "rest"])


def test_from_a_folder_to_a_page_in_two_commands(written, tmp_path, capsys):
    root, _ = written
    prepared, out = tmp_path / "prepared", tmp_path / "report"
    words = "prepare --layout eeg_bids --subject 01 --image-size 32 --options tmin=-0.2 tmax=0.796 sfreq=50"
    cli.main([*words.split(), "--root", str(root), "--out", str(prepared)])
    words = "evaluate --features grid --no-progress --resamples 100 --shuffles 2"
    cli.main([*words.split(), "--data", str(prepared), "--out", str(out)])
    assert load_prepared(prepared).subject("sub-01").responses.values.shape == (66, 6, 50)
    page = (out / "report.html").read_text()
    assert "sub-01" in page and "layout eeg_bids" in page and "repeats of each test image" in page
    assert "decoding of amplitude into grid" in capsys.readouterr().out


def test_channels_of_other_types_are_no_responses(source, tmp_path):
    write_eeg_bids(source, tmp_path, eog=("FP1",))
    assert "FP1" not in load(tmp_path).subject("sub-01").space.ch_names
    table = tmp_path / "sub-01/eeg/sub-01_task-see_run-1_channels.tsv"
    whole = table.read_text()
    table.write_text(whole.replace("FP2\tEEG", "FP2\tBRAIN"))
    with pytest.raises(LayoutError, match=r"expected a type of EEG, EOG.* in line 4 of .*_channels.tsv, got 'BRAIN'"):
        load(tmp_path)
    table.write_text(whole.replace("FP2\tEEG", "FP3\tEEG"))
    with pytest.raises(LayoutError, match=r"in the column name of .*run-1_channels.tsv, got 'FP3' .*near: FP"):
        load(tmp_path)
    table.write_text("\n".join(line for line in whole.splitlines() if "FP2" not in line) + "\n")
    with pytest.raises(LayoutError, match=r"every channel of .*vhdr in .*channels.tsv, got none of FP2"):
        load(tmp_path)
    table.write_text(whole.replace("FP1\tEOG", "FP1\tEEG"))
    with pytest.raises(AxisError, match=r"expected 6 channels and 250 Hz of .*run-1_eeg.vhdr in .*run-2.*, got 5"):
        load(tmp_path)


def spoil_onset(root):
    path = events_of(root)
    path.write_text(path.read_text().replace("0.700000", "700000", 1))


def spoil_image(root):
    path = events_of(root)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].rpartition("\t")[0] + "\tscenes/none.png"
    path.write_text("\n".join(lines) + "\n")


def spoil_column(root):
    path = events_of(root)
    path.write_text(path.read_text().replace("stim_file", "picture"))


def spoil_electrodes(root):
    path = root / "sub-01/ses-01/eeg/sub-01_ses-01_electrodes.tsv"
    path.write_text("name\tx\ty\tz\nA1\t0\t0\t0\n")


def spoil_recording(root):
    for path in (root / "sub-01/ses-02/eeg").glob("*run-2_eeg.*"):
        path.unlink()


def spoil_formats(root):
    path = root / "sub-01/ses-01/eeg/sub-01_ses-01_task-see_run-1_eeg"
    shutil.copy(path.with_suffix(".vhdr"), path.with_suffix(".edf"))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_onset, LayoutError, r"onsets that ascend in .*run-1_events.tsv"),
        (spoil_image, IdError, r"'scenes/none.png', which stim_file names in line 3 of .*run-1_events.tsv"),
        (spoil_column, LayoutError, r"stim_file.*run-1_events.tsv"),
        (spoil_electrodes, LayoutError, r"in the column name of .*electrodes.tsv, got A1"),
        (
            spoil_recording,
            LayoutError,
            r"one recording .*run-2_eeg with one of .fif.* beside .*_events.tsv, got none",
        ),
        (spoil_formats, LayoutError, r"got .*run-1_eeg.(edf|vhdr), .*; keep one format"),
    ],
)
def test_damage_is_named(copied, spoil, error, message):
    spoil(copied)
    with pytest.raises(error, match=message):
        load(copied)


def test_an_onset_in_samples_is_named(copied):
    path = events_of(copied)
    lines = path.read_text().splitlines()
    lines[-1] = "5000\t" + lines[-1].partition("\t")[2]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LayoutError, match=r"got 5000 in line 19; onsets are seconds, not samples"):
        load(copied)


def test_unknown_subjects_and_folders_are_named(written, tmp_path):
    with pytest.raises(IdError, match=r"expected a subject of .* \(sub-01\), got '02'"):
        eeg_bids.load(written[0], "02", epochs=RECIPE)
    with pytest.raises(LayoutError, match=r"expected recordings in .*sub-01/meg"):
        load(written[0], epochs=EpochRecipe(-0.2, 0.5, kind="mag"))
    with pytest.raises(BrainDataError, match=r"expected epochs of 'eeg_bids', got none; pass them as options: tmin"):
        from brainmodels.layouts import prepare

        prepare("eeg_bids", written[0], "01", tmp_path / "out")


def test_magnetometers_are_read_in_tesla(tmp_path):
    """One image is shown 12 times and 11 others once; a pulse of 1 pT follows 100 ms later."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "sub-01/meg"
    folder.mkdir(parents=True)
    (tmp_path / "stimuli").mkdir()
    data = 1e-13 * rng.normal(size=(4, 6000))
    onsets = 200 + 240 * np.arange(23)
    for onset in onsets:
        data[0, onset + 25] += 1e-12
    info = mne.create_info([f"MEG{number:04d}" for number in range(4)], 250.0, "mag")
    mne.io.RawArray(data, info, verbose="error").save(folder / "sub-01_task-see_meg.fif", verbose="error")
    images = [f"{max(0, number - 11):02d}.png" for number in range(23)]
    for name in set(images):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "stimuli" / name)
    lines = [f"{onset / 250}\t0.1\t{name}" for onset, name in zip(onsets, images, strict=True)]
    (folder / "sub-01_task-see_events.tsv").write_text("\n".join(["onset\tduration\tstim_file", *lines, ""]))
    person = load(tmp_path, epochs=EpochRecipe(-0.1, 0.3, kind="mag")).subject("sub-01")
    mean = person.responses.values.mean(0)
    assert person.space.unit == person.responses.unit == "T" and mean.shape == (4, 101)
    assert person.space.times[mean[0].argmax()] == pytest.approx(0.1) and mean[0].max() == pytest.approx(1e-12, rel=0.1)
    with pytest.raises(LayoutError, match=r"expected EEG channels in .*meg.fif, got types \['mag'\]"):
        raw_eeg.read_raw(folder / "sub-01_task-see_meg.fif")
    femto = write_fif(tmp_path / "femto", data * 1e15, info.ch_names, 250, [])
    with pytest.raises(UnitsError, match=r"1e-07 to 0.001 V"):
        raw_eeg.read_raw(femto)
