"""Raw EEG: recordings written as amplifiers store them, and read back trial by trial."""

import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError, UnitsError
from brainmodels.layouts import raw_eeg
from brainmodels.layouts.cnt import read_cnt_header
from brainmodels.simulated.eeg import simulate_eeg
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.raw_eeg import (
    write_bdf,
    write_brainvision,
    write_cnt,
    write_edf,
    write_fif,
    write_raw_eeg,
)

mne = pytest.importorskip("mne")

RECIPE = raw_eeg.EpochRecipe(-0.2, 0.796)  # 250 samples at 250 Hz
EVENT_ID = {"onset": 100}
VOLTS = 1e-5
CHANNELS = ("FP1", "FZ", "CZ", "M1", "OZ")


@pytest.fixture(scope="module")
def simulated():
    return simulate_eeg(n_subjects=1, n_chans=5, snr_db=0, n_train=9, n_test=4, repeats=2, test_repeats=3, seed=6)


@pytest.fixture(scope="module")
def written(simulated, tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    return root, write_raw_eeg(simulated, root)


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


def load(root, epochs=RECIPE, event_id=EVENT_ID, **options):
    return raw_eeg.load(root, "sim01", event_id=event_id, epochs=epochs, **options)


@pytest.mark.parametrize(
    ("form", "atol"),
    [
        ("fif", 1e-12),
        ("brainvision", 1e-12),
        ("edf", 80e-6 / (2**15 - 1) / 2),  # half a count of a range of at most 80 microvolts
        ("bdf", 80e-6 / (2**23 - 1) / 2),
        ("cnt32", 0.51e-6),
        ("cnt16", 0.51e-6),
    ],
)
def test_recordings_come_back(simulated, tmp_path, form, atol):
    ids = write_raw_eeg(simulated, tmp_path, form=form)
    litter(tmp_path)
    assert raw_eeg.detect(tmp_path) and not raw_eeg.detect(tmp_path / "sim01")
    loaded = load(tmp_path).subject("sim01")
    source = simulated.subject("sim01")
    trials = loaded.responses.trials
    assert trials.image_id.tolist() == [ids[name] for name in source.responses.trials.image_id.tolist()]
    np.testing.assert_array_equal(trials.repeat, source.responses.trials.repeat)
    assert np.bincount(trials.session).tolist() == [0, 15, 15]
    assert loaded.space.ch_names == source.space.ch_names
    np.testing.assert_allclose(loaded.space.times, source.space.times, atol=1e-9)
    np.testing.assert_allclose(loaded.responses.batch(range(30)), source.responses.values * VOLTS, rtol=1e-6, atol=atol)


def test_pictures_come_back(simulated, written):
    root, ids = written
    stimuli = load(root).stimuli
    for name, new in ids.items():
        np.testing.assert_array_equal(stimuli.image(new), simulated.stimuli.image(name, 64))


def test_codes_of_images_need_no_list(simulated, copied):
    """One code an image, with the ids of a set of stimuli that the user has."""
    for path in (copied / "sim01").iterdir():
        path.unlink()
    rng = np.random.default_rng(0)
    names = simulated.stimuli.ids[:3].tolist()
    write_fif(
        copied / "sim01" / "one", rng.normal(size=(5, 2000)) * VOLTS, CHANNELS, 250, [(300, 7), (700, 9), (1100, 7)]
    )
    loaded = load(copied, event_id=dict(zip(names, (7, 8, 9), strict=True)), stimuli=simulated.stimuli)
    assert loaded.subject("sim01").responses.trials.image_id.tolist() == [names[0], names[2], names[0]]


@pytest.mark.parametrize("width", [2, 4])
def test_cnt_reads_back_exactly(tmp_path, width):
    """Values in counts, names, rate and codes, with samples of events as they were written."""
    rng = np.random.default_rng(1)
    counts = rng.integers(-300, 300, (3, 997))
    events = [(5, 100), (10, 65535), (400, 255), (996, 1)]
    path = write_cnt(tmp_path / "one", counts * 1e-6, ["A", "CB1", "M2"], 500, events, width)
    header = read_cnt_header(path)
    assert (header.n_chans, header.n_samples, header.sfreq) == (3, 997, 500)
    assert header.data_format == {2: "int16", 4: "int32"}[width]
    raw = raw_eeg.read_raw(path)
    assert raw.ch_names == ["A", "CB1", "M2"] and raw.info["sfreq"] == 500
    np.testing.assert_array_equal(np.rint(raw.get_data() * 1e6), counts)
    assert raw_eeg.find_events(raw, RECIPE).tolist() == [list(event) for event in events]


@pytest.mark.parametrize(("write", "top"), [(write_edf, 2**15 - 1), (write_bdf, 2**23 - 1)], ids=["edf", "bdf"])
def test_edf_and_bdf_read_back_to_half_a_count(tmp_path, write, top):
    """Each channel has a range and so a step of its own; the extremes are reached with either sign."""
    rng = np.random.default_rng(13)
    data = rng.normal(size=(3, 2000)) * [[3e-6], [2e-5], [1e-4]]
    data[:, 10], data[:, 11] = data.max(1), -data.max(1)
    events = [(0, 65535), (7, 100), (124, 3), (125, 255), (1999, 1)]
    raw = raw_eeg.read_raw(write(tmp_path / "one", data, ["FP1", "CB1", "M2"], 250, events))
    assert raw.copy().pick("eeg").ch_names == ["FP1", "CB1", "M2"]
    assert raw.info["sfreq"] == 250 and raw.n_times == 2000
    step = np.ceil(np.abs(data).max(1, keepdims=True) * 1e6) / top * 1e-6
    error = np.abs(raw.get_data("eeg") - data) / step
    assert 0.49 < error.max(1).min() <= error.max() < 0.501
    expected = events if write is write_edf else events[1:]  # a code that is there at the start has no onset
    assert raw_eeg.find_events(raw, RECIPE).tolist() == [list(event) for event in expected]


@pytest.mark.parametrize("write", [write_edf, write_bdf])
def test_edf_and_bdf_that_are_not_what_their_header_says(tmp_path, write):
    data = np.random.default_rng(14).normal(size=(4, 2000)) * VOLTS
    path = write(tmp_path / "one", data, "ABCD", 250, [(500, 100)])
    content = path.read_bytes()
    record = (len(content) - 256 * 6) // 16
    for cut in (1, record, 5 * record):  # whole records are missed, too, which MNE infers away
        path.write_bytes(content[:-cut])
        with pytest.raises(LayoutError, match=rf"expected {len(content)} bytes .* 16 records .* truncated"):
            raw_eeg.read_raw(path)
    path.write_bytes(content + bytes(record))
    with pytest.raises(LayoutError, match="longer than its header says"):
        raw_eeg.read_raw(path)
    path.write_bytes(content[:236] + b"-1      " + content[244:])
    with pytest.raises(LayoutError, match=r"-1 records of 5 signals; .* not stopped properly"):
        raw_eeg.read_raw(path)
    path.write_bytes(content[:1000])
    with pytest.raises(LayoutError, match="expected the header of a finished EDF or BDF recording"):
        raw_eeg.read_raw(path)
    path.write_bytes(content[:192] + content[192:195].replace(b"24B", b"BDF") + b"+D" + content[197:])
    with pytest.raises(LayoutError, match=r"without gaps in .*DF\+D, whose records do not follow"):
        raw_eeg.read_raw(path)
    with pytest.raises(BrainDataError, match=r"whole records of 0\.5 s, got 1990 samples"):
        write(tmp_path / "two", data[:, :1990], "ABCD", 250, [])


def test_cnt_whose_header_is_wrong(tmp_path):
    rng = np.random.default_rng(2)
    path = write_cnt(tmp_path / "one", rng.normal(size=(4, 1000)) * VOLTS, "ABCD", 250, [(500, 100)])
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 864, 1081)  # samples
    path.write_bytes(content)
    with pytest.raises(LayoutError, match=r"bytes per sample = 3\.7 .*header or file truncated"):
        raw_eeg.read_raw(path)
    struct.pack_into("<i", content, 864, 0)
    path.write_bytes(content)
    with pytest.raises(LayoutError, match="expected channels, samples and a rate above 0"):
        raw_eeg.read_raw(path)
    struct.pack_into("<i", content, 864, 1000)
    path.write_bytes(content[:9000])
    with pytest.raises(LayoutError, match=r"expected events at byte 17200 .* got a file of 9000: it is truncated"):
        raw_eeg.read_raw(path)
    path.write_bytes(content[:100])
    with pytest.raises(LayoutError, match="expected a header of 900 bytes"):
        raw_eeg.read_raw(path)


def test_cnt_read_with_the_wrong_width(tmp_path):
    """Twice the samples makes two bytes of four; halves of numbers then differ in variance by orders of magnitude."""
    rng = np.random.default_rng(3)
    path = write_cnt(tmp_path / "one", rng.normal(size=(4, 1000)) * 1e-3, "ABCD", 250, [])
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 864, 2000)
    path.write_bytes(content)
    assert read_cnt_header(path).data_format == "int16"
    with pytest.raises(LayoutError, match=r"variances within a factor of 10000, got .*: samples are probably read"):
        raw_eeg.read_raw(path)


def test_cnt_positions_above_4_gib_wrap(tmp_path, monkeypatch):
    """64 channels at 1 kHz pass 2^32 bytes after five hours; the stored position is what is left."""
    n_samples = 20_000_000
    path = write_cnt(tmp_path / "one", np.ones((64, 10)) * VOLTS, [f"C{i}" for i in range(64)], 1000, [])
    content, true = bytearray(path.read_bytes()[:900]), 900 + 75 * 64 + 4 * 64 * n_samples
    struct.pack_into("<i", content, 864, n_samples)
    struct.pack_into("<I", content, 886, true % 2**32)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(true + 9)  # sparse
    header = read_cnt_header(path)
    assert (header.event_table, header.data_format) == (true, "int32")


def test_a_recording_without_events(simulated, tmp_path):
    (tmp_path / "sim01").mkdir()
    write_cnt(tmp_path / "sim01" / "one", np.random.default_rng(4).normal(size=(5, 2000)) * VOLTS, CHANNELS, 250, [])
    assert raw_eeg.read_raw(tmp_path / "sim01" / "one.cnt").n_times == 2000
    with pytest.raises(LayoutError, match=r"expected events with codes \[100\] in .*one.cnt, got no events at all"):
        load(tmp_path, stimuli=simulated.stimuli)


def test_codes_that_do_not_occur(copied):
    with pytest.raises(LayoutError, match=r"expected events with codes \[120\] .* got 100 \(15 times\)"):
        load(copied, event_id={"onset": 120})
    with pytest.raises(BrainDataError, match="a different code for each name"):
        load(copied, event_id={"a": 100, "b": 100})


def test_amplitudes_in_microvolts_are_refused(tmp_path):
    data = np.random.default_rng(5).normal(size=(5, 2000)) * 10 + 40_000
    path = write_fif(tmp_path / "one", data, CHANNELS, 250, [(500, 100)])
    with pytest.raises(UnitsError, match=r"expected .* 1e-07 to 0\.001 V .* got 6\.\d"):
        raw_eeg.read_raw(path)
    offset = write_fif(tmp_path / "two", data * 1e-6, CHANNELS, 250, [(500, 100)])
    assert raw_eeg.read_raw(offset).n_times == 2000  # 40 mV of offset, as electrodes have, is no error


def test_list_and_events_must_agree(copied):
    path = copied / "sim01" / "session02.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(IdError, match=r"session02.txt for each of 15 events .* got 14; .*repairs.json"):
        load(copied)
    path.write_text("\n".join([*lines[:-1], "sim6_999999"]))
    with pytest.raises(IdError, match="none of 1, such as 'sim6_999999'"):
        load(copied)


def test_lost_and_doubled_triggers_are_repaired_by_a_table(simulated, copied):
    """Session 1 lost its second trigger and has one that nobody sent."""
    folder = copied / "sim01"
    path = folder / "session01.fif"
    raw = mne.io.read_raw_fif(path, preload=True, verbose="error")
    events = raw_eeg.find_events(raw, RECIPE)
    raw.apply_function(lambda x: 0 * x, picks=["STI"], verbose="error")
    kept = [(events[0, 0], 100), (events[0, 0] + 60, 100), *((sample, 100) for sample in events[2:, 0])]
    write_fif(folder / "session01", raw.get_data(picks="eeg"), raw.ch_names[:-1], 250, kept)
    repairs = {"add": [[int(events[1, 0]), 100]], "drop": [int(events[0, 0]) + 60]}
    (folder / "repairs.json").write_text(json.dumps({"session01": repairs}))
    loaded, source = load(copied).subject("sim01").responses, simulated.subject("sim01").responses
    np.testing.assert_allclose(loaded.batch(range(30)), source.values * VOLTS, rtol=1e-6, atol=1e-12)
    (folder / "repairs.json").write_text(json.dumps({"session01": {"drop": [3]}}))
    with pytest.raises(LayoutError, match=r"expected events to drop at samples \[3\]"):
        load(copied)
    (folder / "repairs.json").write_text(json.dumps({"session1": repairs}))
    with pytest.raises(LayoutError, match=r"expected names of recordings .* got 'session1'"):
        load(copied)


def test_settling_triggers_and_dropped_codes(tmp_path):
    """A trigger 1 ms before the real one is noise of the cable, whatever its code; 255 is not an event."""
    events = [(100, 36), (101, 100), (500, 100), (502, 120), (900, 255)]
    data = np.random.default_rng(7).normal(size=(5, 1500)) * VOLTS
    path = write_cnt(tmp_path / "one", data, CHANNELS, 1000, events)
    raw = raw_eeg.read_raw(path)
    recipe = replace(RECIPE, drop_codes=(255,), min_gap=0.002)
    assert raw_eeg.find_events(raw, recipe).tolist() == [[101, 100], [500, 100], [502, 120]]


def test_responses_of_the_subject_are_no_stimuli(tmp_path):
    data = np.random.default_rng(8).normal(size=(5, 1500)) * VOLTS
    path = write_brainvision(tmp_path / "one", data, CHANNELS, 250, [(300, 1), (700, 100)])
    marker = tmp_path / "one.vmrk"
    marker.write_text(marker.read_text() + "Mk4=Response,R  1,901,1,0\n")
    assert raw_eeg.find_events(raw_eeg.read_raw(path), RECIPE).tolist() == [[300, 1], [700, 100]]


def test_epochs_beyond_the_end_are_not_dropped_silently(tmp_path):
    data = np.random.default_rng(9).normal(size=(5, 1000)) * VOLTS
    raw = raw_eeg.read_raw(write_fif(tmp_path / "one", data, CHANNELS, 250, [(300, 100), (900, 100)]))
    with pytest.raises(LayoutError, match=r"expected 2 epochs .* got 1: those at samples \[900\]"):
        raw_eeg.epoch(raw, raw_eeg.find_events(raw, RECIPE), RECIPE)


def test_channels_are_picked_in_order_and_referenced(tmp_path):
    data = np.random.default_rng(10).normal(size=(5, 1000)) * VOLTS
    raw = raw_eeg.read_raw(write_fif(tmp_path / "one", data, CHANNELS, 250, [(300, 100)]))
    recipe = replace(RECIPE, channels=("OZ", "FZ", "FP1"), reference=("FZ",), baseline=(None, 0.0))
    epochs = raw_eeg.epoch(raw, raw_eeg.find_events(raw, recipe), recipe)
    expected = (data[[4, 1, 0]] - data[1])[:, 250:500]
    expected = expected - expected[:, :51].mean(1, keepdims=True)
    np.testing.assert_allclose(epochs[0], expected, rtol=1e-4, atol=1e-10)
    assert not epochs[0, 1].any()
    with pytest.raises(AxisError, match="expected channels O1, QZ"):
        raw_eeg.epoch(raw, np.array([[300, 100]]), replace(recipe, channels=("FZ", "O1", "QZ")))


@pytest.mark.parametrize(("recipe", "num_times"), [(raw_eeg.EEG3D_STATIC, 250), (raw_eeg.EEG3D_DYNAMIC, 600)])
def test_the_presets_of_eeg3d(tmp_path, recipe, num_times):
    """At 1 kHz, a 10 Hz tone survives the filter in phase; a 200 Hz tone and an offset do not."""
    assert recipe.num_times(1000.0) == num_times
    times = np.arange(40_000) / 1000
    data = np.outer([0, 1, 2], np.sin(2 * np.pi * 10 * times) + np.sin(2 * np.pi * 200 * times) + 5) * 1e-4
    path = write_cnt(tmp_path / "one", data, ("FZ", "CZ", "OZ"), 1000, [(20_000, 100)])
    raw = raw_eeg.read_raw(path)
    epochs = raw_eeg.epoch(raw, raw_eeg.find_events(raw, recipe), replace(recipe, channels=("OZ", "CZ", "FZ")))
    assert epochs.shape == (1, 3, num_times) and not epochs[0, 2].any()
    at = 20 - 0.2 + np.arange(num_times) / recipe.sfreq
    middle = slice(num_times // 5, -num_times // 5)  # the resampled ends ring
    expected = 2e-4 * np.sin(2 * np.pi * 10 * at)
    np.testing.assert_allclose(epochs[0, 0, middle], expected[middle], rtol=0, atol=4e-6)


def test_recordings_must_share_their_channels(copied):
    data = np.random.default_rng(12).normal(size=(4, 2000)) * VOLTS
    write_fif(copied / "sim01" / "session03", data, CHANNELS[:4], 250, [(500, 100)])
    name = (copied / "sim01" / "session01.txt").read_text().splitlines()[0]
    (copied / "sim01" / "session03.txt").write_text(name)
    with pytest.raises(AxisError, match=r"expected 5 channels and 250 Hz .* got 4 and 250 Hz"):
        load(copied)


def test_no_recordings_and_unknown_suffix(copied):
    with pytest.raises(LayoutError, match=r"expected recordings ending in \.fif.*near: sim01"):
        raw_eeg.load(copied, "sim02", event_id=EVENT_ID, epochs=RECIPE)
    with pytest.raises(LayoutError, match="expected a recording ending in"):
        raw_eeg.read_raw(copied / "sim01" / "session01.txt")
    path = copied / "sim01" / "session01.fif"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LayoutError, match="expected a complete recording"):
        raw_eeg.read_raw(path)


def noise(seconds=8, seed=15):
    return np.random.default_rng(seed).normal(size=(4, 250 * seconds)) * VOLTS


def recording(folder, name, stim, data=None, bads=()):
    """A FIF file of four channels whose channel of triggers holds what `stim` says."""
    folder.mkdir(exist_ok=True)
    data = noise(len(stim) // 250) if data is None else data
    info = mne.create_info([*"WXYZ", "STI"], 250.0, ["eeg"] * 4 + ["stim"])
    info["bads"] = list(bads)
    mne.io.RawArray(np.vstack([data, stim]), info, first_samp=700, verbose="error").save(
        folder / f"{name}.fif", verbose="error"
    )
    return folder / f"{name}.fif"


def held(*codes, every=250):
    """Codes that last until the next one."""
    return np.repeat([0, *codes], every).astype(float)


@pytest.mark.parametrize("gap", [0, 1, 250])
def test_codes_with_and_without_a_return_to_zero(tmp_path, caplog, gap):
    """Codes that fell to a lower one without a return to 0 were lost, and the last one if it was held to the end."""
    stim = held(11, 9, 7, 12, 12)
    for place in range(2, 6):
        stim[250 * place - gap : 250 * place] = 0
    raw = raw_eeg.read_raw(recording(tmp_path, "one", stim))
    found = [[250, 11], [500, 9], [750, 7], [1000, 12]] + ([[1250, 12]] if 0 < gap < 250 else [])
    assert raw_eeg.find_events(raw, RECIPE).tolist() == (found if gap < 250 else [[1250, 12]])
    assert ("2 of 4 codes follow a higher one without a return to 0, the first is 9 after 11 at sample 500" in
            caplog.text) == (gap == 0)  # fmt: skip


def test_a_trigger_that_settles_on_its_way_down(tmp_path, caplog):
    """The bits of 11 fall one after the other: 8 for a sample is no event. A code at the start is none either."""
    stim = held(11, 0, 8)
    stim[500], stim[:3] = 8, 5
    raw = raw_eeg.read_raw(recording(tmp_path, "one", stim))
    assert raw_eeg.find_events(raw, replace(RECIPE, min_gap=0.008)).tolist() == [[250, 11], [750, 8]]
    assert "starts with code 5, which is no event" in caplog.text and "follow a higher one" not in caplog.text
    assert raw_eeg.find_events(raw, RECIPE).tolist() == [[250, 11], [500, 8], [750, 8]]
    assert "1 of 3 codes follow a higher one" in caplog.text


def test_high_bits_of_codes_are_masked(simulated, tmp_path):
    """BioSemi stores its state in bits 16 and above; 65536 is its 0."""
    recording(tmp_path / "sim01", "one", held(0, 11, 0, 7, 0, 0, 0) + 65536)
    event_id = dict(zip(simulated.stimuli.ids[:2].tolist(), (7, 11), strict=True))
    with pytest.raises(LayoutError, match=r"got .*65547 \(1 times\); their low bits fit, pass mask=0xFF"):
        load(tmp_path, event_id=event_id, stimuli=simulated.stimuli)
    loaded = load(tmp_path, replace(RECIPE, mask=0xFF), event_id, stimuli=simulated.stimuli)
    assert loaded.subject("sim01").responses.trials.image_id.tolist() == [*event_id][::-1]


def test_runs_follow_each_other_as_numbers(simulated, tmp_path):
    """run-10 came before run-2: sessions, order in time and repeats were wrong."""
    for run in (1, 2, 9, 10, 11):
        stim = np.zeros(250 * 8)
        stim[300 : 300 + 50 * run : 50] = 11  # as many trials as the run's number
        recording(tmp_path / "sim01", f"run-{run}", stim)
    (tmp_path / "sim01" / "._run-1.fif").write_bytes(b"\0\5\x16\7")
    trials = load(tmp_path, event_id={simulated.stimuli.ids[0]: 11}, stimuli=simulated.stimuli).subject("sim01")
    assert np.bincount(trials.responses.trials.session)[1:].tolist() == [1, 2, 9, 10, 11]
    shutil.copy(tmp_path / "sim01" / "run-1.fif", tmp_path / "sim01" / "run-1.edf")
    with pytest.raises(LayoutError, match=r"one file of 'run-1' in .*, got run-1.edf and run-1.fif"):
        load(tmp_path, event_id={simulated.stimuli.ids[0]: 11}, stimuli=simulated.stimuli)


@pytest.mark.parametrize("edges", [(None, None), (1.0, 40.0)])
def test_gaps_far_from_trials(tmp_path, edges):
    """Pauses of NaN, one of them the whole middle: the amplitude is that of the rest, filters stop at the gap."""
    recipe = replace(RECIPE, l_freq=edges[0], h_freq=edges[1])
    data, stim = noise(120), np.zeros(120 * 250)
    events = np.array([[3000, 11], [29000, 11]])
    stim[events[:, 0]] = 11
    whole = raw_eeg.read_raw(recording(tmp_path, "whole", stim, data))
    data[:, 6000:26000] = np.nan
    raw = raw_eeg.read_raw(recording(tmp_path, "gap", stim, data))
    assert raw_eeg.find_events(raw, recipe).tolist() == events.tolist()
    np.testing.assert_allclose(raw_eeg.epoch(raw, events, recipe), raw_eeg.epoch(whole, events, recipe), atol=1e-8)
    inside = raw_eeg.epoch(raw, np.array([[6100, 11]]), recipe)
    assert np.isnan(inside).any()  # which `load` refuses by trial, channel and sample
    with pytest.raises(LayoutError, match="4 channels without a finite value"):
        raw_eeg.read_raw(recording(tmp_path, "nothing", stim, np.full_like(data, np.nan)))


def test_markers_of_other_kinds_and_two_at_one_sample(simulated, tmp_path):
    path = tmp_path / "sim01" / "rec"
    path.parent.mkdir()
    write_brainvision(path, noise(), list("WXYZ"), 250, [(300, 11), (600, 9)])
    event_id = dict(zip(simulated.stimuli.ids[:2].tolist(), (9, 11), strict=True))
    markers = path.with_suffix(".vmrk")
    text = markers.read_text()
    markers.write_text(text.replace("Stimulus,S", "Optic,O"))
    with pytest.raises(LayoutError, match=r"rec.vhdr, got no events at all; .* are .*Optic/O +11 \(1 times\)"):
        load(tmp_path, event_id=event_id, stimuli=simulated.stimuli)
    markers.write_text(text + "Mk9=Stimulus,S  9,301,1,0\n")
    with pytest.raises(LayoutError, match=r"one event at a sample of .*rec.vhdr, got codes 11, 9 at sample 300"):
        load(tmp_path, event_id=event_id, stimuli=simulated.stimuli)
    assert load(tmp_path, event_id={[*event_id][1]: 11}, stimuli=simulated.stimuli).subjects  # the other is not cut


def test_bad_channels_are_named(tmp_path, caplog):
    raw = raw_eeg.read_raw(recording(tmp_path, "one", held(11, 0, 0), bads=["X", "Z"]))
    raw_eeg.epoch(raw, np.array([[250, 11]]), replace(RECIPE, channels=("Y", "X")))
    assert "one.fif: channels marked as bad are used like the others: X; name" in caplog.text
    caplog.clear()
    raw_eeg.epoch(raw, np.array([[250, 11]]), replace(RECIPE, channels=("Y", "W")))
    assert not caplog.text


def test_a_list_with_a_byte_order_mark_or_in_another_encoding(copied):
    path = copied / "sim01" / "session01.txt"
    text, meant = path.read_text(), load(copied).subject("sim01").responses.trials.image_id
    path.write_text(text, encoding="utf-8-sig")
    np.testing.assert_array_equal(load(copied).subject("sim01").responses.trials.image_id, meant)
    path.write_text(text, encoding="utf-16")
    with pytest.raises(LayoutError, match=r"expected text in UTF-8 in .*session01.txt, got other bytes"):
        load(copied)
