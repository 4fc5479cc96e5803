"""Raw THINGS-EEG2: four sessions of a simulated subject, written as recordings and read back trial by trial."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError, UnitsError, UnsafePickleError
from brainmodels.layouts import things_eeg2
from brainmodels.layouts.raw_eeg import EpochRecipe, find_events
from brainmodels.layouts.things_eeg2_raw import EPOCHS, read_recording
from brainmodels.simulated.eeg import simulate_eeg
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.things_eeg2 import write_things_eeg2, write_things_eeg2_raw

pytest.importorskip("mne")

AS_STORED = EpochRecipe(-0.2, 0.799)  # 1000 samples at 1 kHz, no baseline
VOLTS = 1e-5
PATH = "raw_data/sub-01/ses-{:02d}/raw_eeg_{}.npz"


@pytest.fixture(scope="module")
def simulated():
    return simulate_eeg(n_subjects=1, n_chans=5, snr_db=0, n_train=40, n_test=6, repeats=2, test_repeats=4, seed=8)


@pytest.fixture(scope="module")
def written(simulated, tmp_path_factory):
    root = tmp_path_factory.mktemp("things_raw")
    return root, write_things_eeg2_raw(simulated, root, images_per_concept=4, image_size=16)


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


def load(root, epochs=AS_STORED, **options):
    return things_eeg2.load(root, 1, form="raw", epochs=epochs, **options)


def edit(path, **changes):
    with np.load(path) as content:
        np.savez(path, **{**content, **changes})


def expected_trials(simulated, ids):
    """(image id, session, row of the simulation) of each trial, as the writer deals them out."""
    shown = simulated.subject("sim01").responses.trials.image_id
    test = simulated.split("scenes").test
    parts = [np.array([row for row, name in enumerate(shown) if name in ids and (name in test) == of]) for of in (0, 1)]
    for session in range(4):
        for rows in parts:
            for row in np.array_split(rows, 4)[session]:
                yield ids[shown[row]], session + 1, row


@pytest.mark.parametrize("encoding", ["npz", "array", "pickle"])
def test_trials_come_back_with_their_sessions(simulated, tmp_path, encoding):
    ids = write_things_eeg2_raw(simulated, tmp_path, encoding=encoding, images_per_concept=4, image_size=16)
    litter(tmp_path)  # files beside the pictures gave every trial another image
    assert things_eeg2.detect(tmp_path)
    if encoding != "npz":
        with pytest.raises(UnsafePickleError, match=r"ses-01/raw_eeg_training.npy, got a pickle.*veca brain convert"):
            load(tmp_path)
    loaded = load(tmp_path, allow_pickle=encoding != "npz")
    person, source = loaded.subject("sub-01"), simulated.subject("sim01").responses
    names, sessions, rows = zip(*expected_trials(simulated, ids), strict=True)
    trials = person.responses.trials
    assert trials.image_id.tolist() == list(names) and trials.session.tolist() == list(sessions)
    assert trials.repeat.tolist() == [names[:row].count(name) for row, name in enumerate(names)]
    values = person.responses.batch(range(len(names)))
    assert values.shape == (len(names), 5, 1000)
    for sample in (0, 3):  # the first and the last millisecond of each of the simulation's
        np.testing.assert_allclose(values[..., sample::4], source.batch(list(rows)) * VOLTS, rtol=1e-6, atol=0)
    np.testing.assert_allclose(person.space.times, np.arange(-200, 800) / 1000, atol=1e-12)
    assert (person.space.unit, person.normalizer, person.space.sfreq) == ("V", "none", 1000)


def test_converted_pickles_are_the_same(simulated, written, tmp_path):
    write_things_eeg2_raw(simulated, tmp_path, encoding="pickle", images_per_concept=4, image_size=16)
    for path in tmp_path.glob("raw_data/*/*/*.npy"):
        things_eeg2.convert_pickle(path, path.with_suffix(".npz"))
        path.write_bytes(b"")  # a .npz file is preferred
    mine, other = (load(root).subject("sub-01").responses for root in (tmp_path, written[0]))
    np.testing.assert_array_equal(mine.values, other.values)
    assert mine.trials.image_id.tolist() == other.trials.image_id.tolist()


def test_parts_sessions_and_images(simulated, written):
    root, ids = written
    loaded = load(root)
    split = loaded.split("eeg2")
    assert split.test == {ids[name] for name in simulated.split("scenes").test}
    assert split.train | split.val == set(ids.values()) - split.test
    test = loaded.pairs("sub-01", "eeg2", "test", average="repeats")
    assert len(test) == 6 and {len(rows) for rows in test.trials} == {4}
    assert set(loaded.subject("sub-01").responses.trials.session) == {1, 2, 3, 4}


def test_both_forms_agree_on_ids_and_split(simulated, written, tmp_path):
    loaded = load(written[0])
    assert write_things_eeg2(simulated, tmp_path, encoding="npz", images_per_concept=4, image_size=16) == written[1]
    other = things_eeg2.load(tmp_path, 1)
    assert other.stimuli.ids.tolist() == loaded.stimuli.ids.tolist() and other.split("eeg2") == loaded.split("eeg2")


def test_events_lie_at_the_samples_that_were_written(simulated, written):
    """A pause, the 200 ms before an onset, then trials and pauses in turn; targets half way through a pause."""
    raw = read_recording(written[0] / PATH.format(2, "test"))
    assert raw.info["sfreq"] == 1000 and raw.get_channel_types()[-1] == "stim"
    onsets = 700 + 1500 * np.arange(6)
    found = find_events(raw, EPOCHS)
    assert found[::2, 0].tolist() == onsets.tolist()
    assert found[1::2].tolist() == [[sample, 99999] for sample in onsets + 1050]
    kept = find_events(raw, replace(EPOCHS, drop_codes=(99999,)))
    rows = np.flatnonzero([name in simulated.split("scenes").test for name in shown_of(simulated)])[6:12]
    ordered = sorted(simulated.split("scenes").test, key=lambda name: written[1][name][-4:])  # ends in its number
    assert kept[:, 1].tolist() == [ordered.index(shown_of(simulated)[row]) + 1 for row in rows]


def shown_of(simulated):
    return simulated.subject("sim01").responses.trials.image_id.tolist()


def test_the_published_window(simulated, written):
    """Baseline and 250 Hz: what was simulated at that rate, less its mean over the 200 ms before the onset."""
    root, ids = written
    person = things_eeg2.load(root, "sub-01", form="raw").subject("sub-01")
    assert person.space.sfreq == 250 and len(person.space.times) == 250
    truth = simulated.subject("sim01").responses.batch([row for *_, row in expected_trials(simulated, ids)]) * VOLTS
    truth = truth - truth[..., :50].mean(-1, keepdims=True)
    values = person.responses.batch(range(len(truth)))
    inner = slice(10, 240)
    correlation = np.corrcoef(values[..., inner].ravel(), truth[..., inner].ravel())[0, 1]
    assert correlation > 0.975  # the antialiasing filter takes the rest
    for shift in (-1, 1):
        shifted = np.corrcoef(values[..., inner].ravel(), truth[..., 10 + shift : 240 + shift].ravel())[0, 1]
        assert shifted < correlation - 0.02


def test_missing_sessions_are_named(copied):
    shutil.rmtree(copied / "raw_data/sub-01/ses-03")
    with pytest.raises(LayoutError, match=r"expected sessions 1, 2, 3, 4 .* got 1, 2, 4; pass sessions="):
        load(copied)
    trials = load(copied, sessions=[4, 1]).subject("sub-01").responses.trials
    assert np.flatnonzero(np.diff(trials.session)).size == 1 and set(trials.session) == {1, 4}
    with pytest.raises(LayoutError, match=r"expected sessions 2, 3 .* got 1, 2, 4"):
        load(copied, sessions=[2, 3])
    (copied / PATH.format(4, "test")).unlink()
    with pytest.raises(LayoutError, match=r"expected raw_eeg_test.npy or .npz in .*ses-04, got neither"):
        load(copied, sessions=[1, 4])
    with pytest.raises(LayoutError, match=r"sub-02, got none"):
        things_eeg2.load(copied, 2, form="raw")


def test_a_session_more_than_expected_is_not_left_out(copied):
    shutil.copytree(copied / "raw_data/sub-01/ses-04", copied / "raw_data/sub-01/ses-05")
    with pytest.raises(LayoutError, match=r"expected sessions 1, 2, 3, 4 .* got 1, 2, 3, 4, 5"):
        load(copied)


def test_codes_without_an_image(copied):
    path = copied / PATH.format(3, "test")
    with np.load(path) as content:
        data = content["raw_eeg_data"]
    data[-1, 700] = 7
    edit(path, raw_eeg_data=data)
    with pytest.raises(
        IdError, match=r"expected codes 1 to 6 in .*ses-03/raw_eeg_test.npz.* got 7 1 times and 0 other"
    ):
        load(copied)
    data[-1] = 0
    edit(path, raw_eeg_data=data)
    with pytest.raises(LayoutError, match=r"expected triggers of images .* got none"):
        load(copied)


@pytest.mark.parametrize("pattern", ["training_images/00001_*/*.jpg", "test_images/00002_*/*.jpg"])
def test_a_missing_image_does_not_rename_the_others(copied, pattern):
    """Half the sessions lack the last code, so that a code above the number of images does not tell."""
    path = next((copied / "images").glob(pattern))
    path.unlink()
    with pytest.raises(LayoutError, match=r"expected folder 0000[12] with [14] images in .*, got 0000[13]_"):
        load(copied, sessions=[1])


def test_rate_channels_and_units(copied):
    path = copied / PATH.format(2, "training")
    with np.load(path) as content:
        stored = dict(content)
    edit(path, sfreq=250)
    with pytest.raises(UnitsError, match=r"expected sfreq 1000 Hz in .*ses-02.* got 250"):
        load(copied)
    edit(path, sfreq=1000, raw_eeg_data=stored["raw_eeg_data"] * 1e6)
    with pytest.raises(UnitsError, match=r"0\.001 V in .*ses-02.* probably not volts"):
        load(copied)
    edit(path, raw_eeg_data=stored["raw_eeg_data"], ch_names=stored["ch_names"][[1, 0, 2, 3, 4, 5]])
    with pytest.raises(AxisError, match=r"expected channels FP1, .* in .*ses-02.* as in .*ses-01"):
        load(copied)
    edit(path, ch_names=stored["ch_names"][:-1])
    with pytest.raises(AxisError, match=r"5 names and 6 types"):
        load(copied)
    edit(path, ch_names=stored["ch_names"], ch_types=["eeg"] * 6)
    with pytest.raises(LayoutError, match=r"expected one channel of type 'stim' in .* got 0"):
        load(copied)
    np.savez(path, **{key: value for key, value in stored.items() if key != "sfreq"})
    with pytest.raises(LayoutError, match="expected a key 'sfreq'"):
        load(copied)


def test_damaged_and_cut_recordings(copied):
    path = copied / PATH.format(2, "training")
    with np.load(path) as content:
        data = content["raw_eeg_data"]
    last = int(np.flatnonzero((data[-1] > 0) & (data[-1] < 99999))[-1])
    edit(path, raw_eeg_data=data[:, : last + 300])
    with pytest.raises(
        LayoutError, match=rf"in .*ses-02/raw_eeg_training.npz, got .* at samples \[{last}\] reach beyond"
    ):
        load(copied)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(LayoutError, match=r"expected a complete .npz file at .*ses-02"):
        load(copied)


def test_nan_is_found(copied):
    path = copied / PATH.format(1, "training")
    with np.load(path) as content:
        data = content["raw_eeg_data"]
    data[2, 700] = np.nan
    edit(path, raw_eeg_data=data)
    with pytest.raises(LayoutError, match=r"ses-01/raw_eeg_training.npz, got nan at trial 0, channel 2, sample 200"):
        load(copied)


def test_options_of_the_other_form(written):
    with pytest.raises(BrainDataError, match="expected no whitening="):
        things_eeg2.load(written[0], 1, form="raw", whitening="none")
    with pytest.raises(
        BrainDataError, match=r"expected form 'preprocessed', or 'raw' for sessions= and epochs=, got 'p"
    ):
        things_eeg2.load(written[0], 1, sessions=[1])
    with pytest.raises(LayoutError, match="got none; pass form='raw'"):
        things_eeg2.load(written[0], 1)
    assert "raw_data/sub-XX/ses-YY/raw_eeg_training.npy" in things_eeg2.describe()
