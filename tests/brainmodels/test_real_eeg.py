"""The way from a recording to a guess, on real EEG: a person who sees pictures of faces, houses and checkerboards.

The recording is part of the wheel of pylossless 0.2.0 (MIT licence, 50 MB): BioSemi, 128 channels, 256 Hz, 19 minutes.
Nothing of pylossless is imported, so it needs none of its dependencies: pip install --no-deps pylossless==0.2.0
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brainmodels.baselines.sensors import SensorRidge
from brainmodels.data.objects import ObjectTrials
from brainmodels.errors import BrainDataError
from brainmodels.evaluation.sensors import occlude, sliding_accuracy
from brainmodels.evaluation.time_controls import prestimulus_scores
from brainmodels.layouts import raw_eeg
from brainmodels.systems.neuro3d import EncoderSize, FusionEncoder, StreamShape

mne = pytest.importorskip("mne")

RECORDING = "assets/test_data/sub-s01/eeg/sub-s01_task-faceO_eeg.edf"
SECONDS = 560.0  # half of the recording
PICTURES = ("face-upright", "face-inverted", "house-upright", "house-inverted", "checker-left", "checker-right")
FACE, HOUSE, CHECKER = range(3)


@pytest.fixture(scope="module")
def seen():
    """Trials of a second in volts, and what was seen: 0 a face, 1 a house, 2 a checkerboard."""
    spec = importlib.util.find_spec("pylossless")
    path = Path(spec.origin).parent / RECORDING if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip("no recording of real EEG here: pip install --no-deps pylossless==0.2.0")
    raw = raw_eeg.read_raw(path)
    raw.crop(0, SECONDS)
    recipe = raw_eeg.EpochRecipe(
        -0.2, 0.8, sfreq=250.0, l_freq=0.3, h_freq=40.0, baseline=(None, 0.0), channels=raw.ch_names[::4]
    )
    codes = {name: code for code, name in enumerate(PICTURES, start=1)}
    events = mne.events_from_annotations(raw, codes, verbose="error")[0][:, [0, 2]]
    events = events[(events[:, 0] > 100) & (events[:, 0] < raw.n_times - 300)]
    space = raw_eeg.space_of(raw, recipe, path)
    values = raw_eeg.epoch(raw, events, recipe).astype(np.float32)
    assert (len(space), len(space.times), space.unit) == (32, 250, "V")
    ids = [f"faceO:{row:04d}" for row in range(len(events))]
    trials = ObjectTrials.from_arrays({"static": values}, ids, {"static": space}, "s01")
    return trials, np.array([FACE, FACE, HOUSE, HOUSE, CHECKER, CHECKER])[events[:, 1] - 1]


def halves(seen, *kinds):
    """The first two thirds of the trials of some kinds, in time, and the last third."""
    trials, kind = seen
    rows = np.flatnonzero(np.isin(kind, kinds))
    cut = 2 * len(rows) // 3
    first, last = rows[:cut], rows[cut:]
    return trials.take(first), kind[first], trials.take(last), kind[last]


def test_what_was_seen_is_read_from_single_trials(seen):
    train, labels, test, truth = halves(seen, FACE, HOUSE, CHECKER)
    assert len(train) > 350 and len(test) > 180 and 1e-6 < train.values()["static"].std() < 1e-4
    ridge = SensorRidge().fit(train, labels)
    found = ridge.classify(test)
    assert np.mean(found.shape.argmax(1) == truth) > 0.7  # chance is 1 / 3
    assert found.shape[np.arange(len(truth)), truth].mean() > 0.6
    with pytest.raises(BrainDataError, match="got 'A1'"):  # BioSemi's names of channels say nothing of regions
        occlude(ridge, test, truth)


def test_faces_differ_from_houses_at_the_n170(seen):
    """The response to faces differs most 0.13 to 0.2 s after the onset (Bentin et al., 1996), and not before it."""
    train, labels, test, truth = halves(seen, FACE, HOUSE)
    course = sliding_accuracy(train, labels, test, truth, resamples=100)
    when, most = course.peak
    assert 0.13 <= when <= 0.2 and most > 0.75
    assert abs(course.accuracy[course.times < 0].mean() - 0.5) < 0.08
    assert prestimulus_scores(train, labels, test, truth, resamples=200)[0].at_chance


def test_the_encoder_of_neuro3d_learns_from_it(seen):
    train, labels, test, truth = halves(seen, FACE, HOUSE)
    space = train.spaces["static"]
    scale = train.values()["static"].std()
    torch.manual_seed(0)
    shape = StreamShape(len(space), len(space.times), space.sfreq, float(space.times[0]))
    size = EncoderSize(streams=("static",), width=32, hidden=32, whiten=False)
    encoder = FusionEncoder({"static": shape}, size, 8, 2, 0)
    inputs, targets = torch.from_numpy(train.values()["static"] / scale), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(60):
        rows = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        F.cross_entropy(encoder({"static": inputs[rows]}).shape, targets[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        found = encoder.eval()({"static": torch.from_numpy(test.values()["static"] / scale)})
    assert found.geometry.shape == (len(test), 8) and torch.isfinite(found.geometry).all()
    assert (found.shape.argmax(1).numpy() == truth).mean() > 0.65  # chance is 1 / 2
