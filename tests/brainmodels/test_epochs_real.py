"""A real recording through `prepare` and `evaluate`: pictures of faces, houses and checkerboards.

The recording is part of the wheel of pylossless 0.2.0 (MIT licence, 50 MB): pip install --no-deps pylossless==0.2.0
The pictures are not part of it. Drawn ones stand for them: disks for faces, squares for houses, and checkerboards.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainmodels import cli
from brainmodels.commands.evaluate import run_evaluation
from brainmodels.data import load_prepared
from brainmodels.evaluation import EvaluationSettings
from brainmodels.layouts import raw_eeg

mne = pytest.importorskip("mne")

RECORDING = "assets/test_data/sub-s01/eeg/sub-s01_task-faceO_eeg.edf"
SECONDS = (20.0, 400.0)
KINDS = {"face-upright": "face", "house-upright": "house", "checker-left": "checker"}


def drawn(kind, rng):
    """A picture of its kind, each a little different."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    shape = {
        "face": np.hypot(x, y) < 0.7,
        "house": np.maximum(np.abs(x), np.abs(y)) < 0.7,
        "checker": (np.floor(4 * x) + np.floor(4 * y)) % 2 == 0,
    }[kind]
    gray = np.where(shape, 200, 60) + rng.integers(-20, 20, (32, 32))
    return Image.fromarray(np.repeat(gray[..., None], 3, 2).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An EEG-BIDS folder with the recording, events of some minutes, and a picture for each event."""
    spec = importlib.util.find_spec("pylossless")
    path = Path(spec.origin).parent / RECORDING if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip("no recording of real EEG here: pip install --no-deps pylossless==0.2.0")
    root = tmp_path_factory.mktemp("real")
    place = root / "sub-s01/eeg"
    place.mkdir(parents=True)
    (root / "stimuli").mkdir()
    (place / path.name).symlink_to(path)
    raw, rng, lines = raw_eeg.read_raw(path), np.random.default_rng(0), []
    for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True):
        if text in KINDS and SECONDS[0] < onset < SECONDS[1]:
            name = f"{KINDS[text]}{len(lines):03d}.png"
            drawn(KINDS[text], rng).save(root / "stimuli" / name)
            lines.append(f"{onset}\t0.1\t{KINDS[text]}\t{name}")
    events = ["onset\tduration\ttrial_type\tstim_file", *lines, ""]
    (place / "sub-s01_task-faceO_events.tsv").write_text("\n".join(events))
    return root, len(lines)


def test_a_real_recording_goes_to_a_page(folder, tmp_path):
    root, count = folder
    words = "prepare --layout eeg_bids --subject s01 --image-size 32 --options tmin=-0.2 tmax=0.6 sfreq=64"
    more = ["baseline=-0.2,0", "highpass=0.3", "lowpass=30", "reference=average", "holdout=0.3", "montage=biosemi128"]
    cli.main([*words.split(), *more, "--root", str(root), "--out", str(tmp_path / "prepared")])
    subject = load_prepared(tmp_path / "prepared").subject("sub-s01")
    assert subject.responses.values.shape[0] == count > 100 and subject.space.unit == "V"
    assert 1e-6 < subject.responses.values.std() < 1e-4
    settings = {"features": ("pixels",), "resamples": 200, "shuffles": 5, "progress": False}
    evaluation = run_evaluation(EvaluationSettings(data=str(tmp_path / "prepared"), out=tmp_path / "out", **settings))
    course = evaluation.decoded[0].course
    assert course.onset is not None and 0.03 < course.onset < 0.2  # not before light can reach the cortex
    assert not course.significant[course.times < 0].any()
    assert evaluation.decoded[0].score("two_way[").value > 0.6 and not evaluation.decoded[0].score("two_way[").at_chance
    assert evaluation.classification is None  # no image was repeated
    page = (tmp_path / "out/report.html").read_text()
    assert "no image was repeated" in page and 'src="topography.png"' in page
    assert evaluation.occluded == []  # C3 of BioSemi is not that of the 10-20 system
