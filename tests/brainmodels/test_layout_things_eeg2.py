"""THINGS-EEG2 against a simulated subject that was written as such a folder, in every encoding."""

import pickle
import shutil

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, LayoutError, LeakageError, UnsafePickleError
from brainmodels.layouts import things_eeg2
from brainmodels.simulated.eeg import simulate_eeg
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.things_eeg2 import write_things_eeg2

PATH = "Preprocessed_data_250Hz/sub-01/preprocessed_eeg_{}.{}"


@pytest.fixture(scope="module")
def simulated():
    return simulate_eeg(n_subjects=1, n_chans=5, n_train=48, n_test=20, repeats=2, test_repeats=4, seed=5)


@pytest.fixture(scope="module")
def written(simulated, tmp_path_factory):
    root = tmp_path_factory.mktemp("things")
    return root, write_things_eeg2(simulated, root, images_per_concept=4)


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


def assert_same(loaded, simulated, ids):
    mine, theirs = loaded.subject("sub-01").responses, simulated.subject("sim01").responses
    assert len(mine) == sum(len(rows) for rows in theirs.rows_of(list(ids)))
    for rows, other in zip(mine.rows_of(list(ids.values())), theirs.rows_of(list(ids)), strict=True):
        np.testing.assert_array_equal(mine.batch(rows), theirs.batch(other))


@pytest.mark.parametrize("encoding", ["array", "pickle", "npz"])
def test_every_encoding_comes_back(simulated, tmp_path, encoding):
    ids = write_things_eeg2(simulated, tmp_path, encoding=encoding, images_per_concept=4)
    litter(tmp_path)
    assert things_eeg2.detect(tmp_path) and not things_eeg2.detect(tmp_path / "images")
    loaded = things_eeg2.load(tmp_path, "sub-01", allow_pickle=encoding != "npz")
    assert_same(loaded, simulated, ids)


def test_subject_and_split(simulated, written):
    root, ids = written
    loaded = things_eeg2.load(root, 1, allow_pickle=True)
    person, source = loaded.subject("sub-01"), simulated.subject("sim01").space
    np.testing.assert_allclose(person.space.times, source.times)  # 50 earlier ones were stored and dropped
    assert person.space.sfreq == 250 and tuple(person.space.ch_names) == source.ch_names
    assert person.normalizer == "none" and set(person.responses.trials.session) == {-1}
    test = loaded.pairs("sub-01", "eeg2", "test", average="repeats")
    assert len(test) == 20 and {len(rows) for rows in test.trials} == {4}
    split = loaded.split("eeg2")
    assert split.test == {ids[name] for name in simulated.split("scenes").test}
    assert len(split.train | split.val) % 4 == 0 and len(split.train | split.val) + 20 == len(ids)


def test_images_and_concepts_belong_to_the_responses(simulated, written):
    """JPEG changes pictures a little; another picture would differ by far more."""
    root, ids = written
    stimuli = things_eeg2.load(root, 1, allow_pickle=True).stimuli
    train = [name for name in ids if name in simulated.split("scenes").train]
    shapes = simulated.stimuli.label("shape", train)
    assert stimuli.label("concept", [ids[name] for name in train]).tolist() == shapes.tolist()
    errors = []
    for name in list(ids)[::7]:
        difference = stimuli.image(ids[name], 64).astype(int) - simulated.stimuli.image(name, 64)
        errors.append(np.abs(difference).mean())
    assert max(errors) < 6


def test_pickles_are_refused_and_converted(simulated, copied, written):
    with pytest.raises(UnsafePickleError, match=r"preprocessed_eeg_training.npy, got a pickle.*veca brain convert"):
        things_eeg2.load(copied, "sub-01")
    for part in ("training", "test"):
        path = copied / PATH.format(part, "npy")
        assert things_eeg2.convert_pickle(path, path.with_suffix(".npz")).is_file()
    assert_same(things_eeg2.load(copied, "sub-01"), simulated, written[1])
    with pytest.raises(LayoutError, match="which exists"):
        things_eeg2.convert_pickle(path, path.with_suffix(".npz"))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: np.array(x, dtype=object)], ids=["pickle", "array"])
def test_a_harmful_pickle_never_runs(tmp_path, wrap):
    path = tmp_path / "preprocessed_eeg_test.npy"
    content = wrap({"preprocessed_eeg_data": _Harmful()})
    if isinstance(content, dict):
        path.write_bytes(pickle.dumps(content))
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UnsafePickleError, match=r"asks for builtins.exec.*preprocessed_eeg_test"):
        things_eeg2.read_pickle(path, allow_pickle=True)
    with pytest.raises(UnsafePickleError, match="asks for"):
        things_eeg2.convert_pickle(path, tmp_path / "out.npz")
    assert not list(tmp_path.glob("out*"))


class _Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran code')",))


def test_damaged_files(copied):
    path = copied / PATH.format("test", "npy")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LayoutError, match="expected a complete pickle"):
        things_eeg2.load(copied, 1, allow_pickle=True)
    np.save(path, np.zeros(3))
    with pytest.raises(LayoutError, match=r"expected a dict .* got an array of float64"):
        things_eeg2.load(copied, 1, allow_pickle=True)
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(LayoutError, match=r"expected a complete .npz"):
        things_eeg2.load(copied, 1, allow_pickle=True)


def edit(root, part, **changes):
    path = root / PATH.format(part, "npy")
    content = things_eeg2.read_pickle(path, allow_pickle=True)
    np.save(path, np.array({**content, **changes}, dtype=object), allow_pickle=True)


def test_times_must_fit(copied):
    content = things_eeg2.read_pickle(copied / PATH.format("training", "npy"), allow_pickle=True)
    assert len(content["times"]) - content["preprocessed_eeg_data"].shape[-1] == 50
    edit(copied, "training", times=content["times"][7:])
    with pytest.raises(AxisError, match=r"expected 250 times .* or 300 .* got 293"):
        things_eeg2.load(copied, 1, allow_pickle=True)
    edit(copied, "training", times=content["times"][50:])
    things_eeg2.load(copied, 1, allow_pickle=True)


def test_images_and_rows_must_agree(copied):
    next((copied / "images" / "test_images").glob("*/*.jpg")).unlink()
    with pytest.raises(LayoutError, match=r"expected one image of test_images for each of 20 rows .* got 19 images"):
        things_eeg2.load(copied, 1, allow_pickle=True)


def test_channels_must_agree(copied):
    names = things_eeg2.read_pickle(copied / PATH.format("test", "npy"), allow_pickle=True)["ch_names"]
    edit(copied, "test", ch_names=names[::-1])
    with pytest.raises(AxisError, match="expected channels"):
        things_eeg2.load(copied, 1, allow_pickle=True)
    edit(copied, "test", ch_names=names[:-1])
    with pytest.raises(AxisError, match=r"expected 5 names of channels .* got 4"):
        things_eeg2.load(copied, 1, allow_pickle=True)


def test_nan_is_found(copied):
    data = things_eeg2.read_pickle(copied / PATH.format("test", "npy"), allow_pickle=True)["preprocessed_eeg_data"]
    data[3, 1, 2, 9] = np.inf
    edit(copied, "test", preprocessed_eeg_data=data)
    with pytest.raises(LayoutError, match=r"got inf at trial .*, channel 2, sample 9"):
        things_eeg2.load(copied, 1, allow_pickle=True)


def test_whitening_with_test_data_is_refused(simulated, tmp_path):
    write_things_eeg2(simulated, tmp_path, whitening=None, encoding="npz", images_per_concept=4)
    with pytest.raises(LeakageError, match=r"covariance of training and test together.*allow_transductive=True"):
        things_eeg2.load(tmp_path, 1)
    accepted = things_eeg2.load(tmp_path, 1, allow_transductive=True).subject("sub-01")
    assert accepted.normalizer == "mvnn_transductive"
    assert things_eeg2.load(tmp_path, 1, whitening="train").subject("sub-01").normalizer == "mvnn_train"


def test_what_a_file_says_of_its_whitening_counts(simulated, tmp_path):
    write_things_eeg2(simulated, tmp_path, whitening="both", encoding="npz", images_per_concept=4)
    with pytest.raises(LeakageError):
        things_eeg2.load(tmp_path, 1)
    with pytest.raises(BrainDataError, match=r"expected whitening 'train' .* the files say 'both'"):
        things_eeg2.load(tmp_path, 1, whitening="train")


def test_missing_files_are_named(copied):
    with pytest.raises(LayoutError, match=r"expected one folder .*sub-02 .* got .*sub-01"):
        things_eeg2.load(copied, "sub-02", allow_pickle=True)
    (copied / "images" / "test_images").rename(copied / "elsewhere")
    with pytest.raises(LayoutError, match=r"expected one folder test_images .* got 0; pass images="):
        things_eeg2.load(copied, 1, allow_pickle=True)
    (copied / PATH.format("test", "npy")).unlink()
    with pytest.raises(LayoutError, match=r"expected preprocessed_eeg_test\.npy or \.npz"):
        things_eeg2.load(copied, 1, allow_pickle=True)


def test_damage_that_only_the_checksum_shows(simulated, tmp_path):
    write_things_eeg2(simulated, tmp_path, encoding="npz", images_per_concept=4)
    path = next(tmp_path.rglob("preprocessed_eeg_training.npz"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LayoutError, match=r"a complete .npz file at .*training.npz, got: .*; copy it again"):
        things_eeg2.load(tmp_path, "sub-01")
