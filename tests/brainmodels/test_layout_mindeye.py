"""MindEye's two releases of the Natural Scenes Dataset: samples in tar archives, joined with betas by global trial."""

import io
import pickle
import tarfile

import h5py
import numpy as np
import pytest

from brainmodels.data import BrainDataset, Responses, Subject
from brainmodels.errors import IdError, LayoutError, LeakageError, NormalizationError, UnsafePickleError
from brainmodels.layouts import detect, mindeye1, mindeye2
from tests.brainmodels.written.mindeye1 import write_mindeye1
from tests.brainmodels.written.mindeye2 import add_sample, write_mindeye2

from .made import made_dataset
from .spoilt import litter


@pytest.fixture(scope="module")
def made():
    """20 images, 60 trials in two sessions, z-scored per session in fp64 here rather than by the writer."""
    plain = made_dataset(num_images=20, repeats=3, sessions=2, prefix="nsd:")
    person = plain.subject("subj01")
    values, session = person.responses.values.astype(np.float64), person.responses.trials.session
    for number in (1, 2):
        part = values[session == number]
        values[session == number] = (part - part.mean(0)) / part.std(0)
    responses = Responses(values.astype(np.float32), person.responses.trials, unit="z-scored per session")
    return BrainDataset([Subject("subj01", responses, person.space, "session_z")], plain.stimuli, plain.splits)


def rewrite(path, change):
    """An archive again, its members passed through `change(name, content)`; None leaves one out."""
    with tarfile.open(path) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive}
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = change(name, content)
            if content is not None:
                sample, _, kind = name.partition(".")
                add_sample(archive, sample, {kind: content})


def edit_first(kind, edit):
    """Changes the array of the first member of a kind."""
    done = []

    def change(name, content):
        if not name.endswith(f".{kind}") or done:
            return content
        done.append(name)
        array = np.load(io.BytesIO(content))
        array = edit(array)
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    return change


def set_column(column, value):
    def edit(array):
        array[0, mindeye2.COLUMNS.index(column)] = value
        return array

    return edit_first("behav.npy", edit)


class TestMindEye2:
    @pytest.fixture
    def root(self, made, tmp_path):
        write_mindeye2(made, tmp_path, "subj01", "made", size=32)
        return tmp_path

    def test_reads_what_was_written(self, made, root):
        litter(root)
        with tarfile.open(root / "wds/subj01/train/0.tar", "a") as archive:  # packed on macOS
            add_sample(archive, "._sample000000000", {"behav.npy": bytes(9)})
        got = mindeye2.load(root, 1)
        person, truth = got.subject("subj01"), made.subject("subj01")
        np.testing.assert_array_equal(person.responses.values, truth.responses.values)
        assert person.responses.rows is None
        for column in ("image_id", "session", "run", "repeat", "trial"):
            np.testing.assert_array_equal(
                getattr(person.responses.trials, column), getattr(truth.responses.trials, column)
            )
        for name in made.stimuli.ids:
            np.testing.assert_array_equal(got.stimuli.image(name), made.stimuli.image(name))  # 8 bits survive fp16
            assert got.stimuli.captions(name) == made.stimuli.captions(name)
        split = got.split("shared1000")
        assert split.test == made.split("made").test and "7 test images" in split.params["variant"]
        assert person.normalizer == "session_z" and detect(root) == ["mindeye2"]

    def test_writer_normalises_what_was_measured(self, made, tmp_path):
        plain = made_dataset(num_images=20, repeats=3, sessions=2, dtype=np.int16, prefix="nsd:")
        write_mindeye2(plain, tmp_path, "subj01", "made", size=32)
        values, session = (
            plain.subject("subj01").responses.values / 300,
            plain.subject("subj01").responses.trials.session,
        )
        got = mindeye2.load(tmp_path, 1).subject("subj01").responses.values
        for number in (1, 2):
            part = values[session == number]
            want = (part - part.mean(0)) / part.std(0)
            np.testing.assert_allclose(got[session == number], want, rtol=1e-5, atol=1e-5)

    def test_some_sessions(self, made, root):
        responses = mindeye2.load(root, 1, sessions=[2]).subject("subj01").responses
        truth, test = made.subject("subj01").responses, sorted(made.split("made").test)
        kept = np.flatnonzero((truth.trials.session == 2) | np.isin(truth.trials.image_id, test))
        np.testing.assert_array_equal(responses.rows, kept)
        np.testing.assert_array_equal(responses.trials.image_id, truth.trials.image_id[kept])
        np.testing.assert_array_equal(responses.batch(np.arange(len(kept))), truth.values[kept])
        assert (responses.trials.repeat == -1).all()  # earlier sessions were not read
        with pytest.raises(LayoutError, match=r"archives 4\.tar .* got \[0, 1\] without \[4\]"):
            mindeye2.load(root, 1, sessions=[5])

    def test_missing_trials_around_a_trial_are_no_matter(self, root):
        with tarfile.open(root / "wds/subj01/train/0.tar") as archive:
            first = min(name for name in archive.getnames() if name.endswith("past_behav.npy"))
            past = np.load(io.BytesIO(archive.extractfile(first).read()))
        assert past.shape == (15, 17) and (past[0] == -1).all()
        assert len(mindeye2.load(root, 1).subject("subj01").responses) == 60

    def test_missing_archive_between_others(self, root):
        (root / "wds/subj01/train/0.tar").unlink()
        with pytest.raises(LayoutError, match=r"archives 0\.tar, 1\.tar .* got \[1\] without \[0\]"):
            mindeye2.load(root, 1)

    def test_unused_rows_are_counted(self, root, caplog):
        (root / "wds/subj01/train/1.tar").unlink()
        responses = mindeye2.load(root, 1).subject("subj01").responses
        assert f"{60 - len(responses)} of 60 rows belong to no sample" in caplog.text
        np.testing.assert_array_equal(responses.rows, responses.trials.trial)

    def test_global_trial_beyond_the_betas(self, root):
        rewrite(root / "wds/subj01/train/0.tar", set_column("global_trial", 60))
        with pytest.raises(LayoutError, match=r"global trials below 60, the rows of .* got 60"):
            mindeye2.load(root, 1)

    def test_two_samples_of_one_row(self, root):
        rewrite(root / "wds/subj01/train/0.tar", set_column("global_trial", 59))
        with pytest.raises(IdError, match="got 2 of row 59"):
            mindeye2.load(root, 1)

    def test_missing_own_trial(self, root):
        rewrite(root / "wds/subj01/train/1.tar", set_column("global_trial", -1))
        with pytest.raises(LayoutError, match=r"global_trial of sample 'sample\d+' in .*1\.tar from 0, got -1"):
            mindeye2.load(root, 1)

    @pytest.mark.parametrize(("archive", "flag"), [("train/0.tar", 1), ("new_test/0.tar", 0)])
    def test_shared_flag_that_contradicts_the_split(self, root, archive, flag):
        rewrite(root / "wds/subj01" / archive, set_column("shared", flag))
        with pytest.raises(LayoutError, match=rf"shared flag {1 - flag} of sample 'sample\d+' .* got {flag}"):
            mindeye2.load(root, 1)

    def test_incomplete_sample_is_named(self, root):
        path = root / "wds/subj01/train/1.tar"
        with tarfile.open(path) as archive:
            sample = archive.getnames()[5].split(".")[0]
        rewrite(path, lambda name, content: None if name == f"{sample}.olds_behav.npy" else content)
        with pytest.raises(LayoutError, match=f"olds_behav.npy of sample '{sample}' .* got only behav.npy, past"):
            mindeye2.load(root, 1)

    def test_image_beyond_the_pictures(self, root):
        rewrite(root / "wds/subj01/train/0.tar", set_column("image", 72999))
        (root / "COCO_73k_annots_curated.npy").unlink()
        with pytest.raises(IdError, match=r"picture of nsd:72999 .* got 20 rows"):
            mindeye2.load(root, 1)

    def test_older_test_set(self, root):
        (root / "wds/subj01/new_test").rename(root / "wds/subj01/test")
        with pytest.raises(LayoutError, match=r"test/0\.tar is of an older release"):
            mindeye2.load(root, 1)

    def test_values_that_are_not_z_scored(self, root):
        with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5", "r+") as file:
            file["betas"][...] += 2
        with pytest.raises(NormalizationError, match=r"mean of \|voxel mean\| of 2\.00"):
            mindeye2.load(root, 1)

    def test_truncated_archive_and_pickles(self, root):
        path = root / "wds/subj01/train/0.tar"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2 - 300])
        with pytest.raises(LayoutError, match=r"0\.tar"):
            mindeye2.load(root, 1)
        path.write_bytes(whole)
        file = io.BytesIO()
        np.save(file, np.array([{"image": 3}], dtype=object), allow_pickle=True)
        for content in (file.getvalue(), pickle.dumps([1, 2])):
            path.write_bytes(whole)
            rewrite(path, lambda name, old, new=content: new if name.endswith(".behav.npy") else old)
            with pytest.raises(UnsafePickleError, match=r"behav\.npy"):
                mindeye2.load(root, 1)


class TestMindEye1:
    @pytest.fixture
    def root(self, made, tmp_path):
        write_mindeye1(made, tmp_path, "subj01", "made", per_archive=6, picture="png")
        return tmp_path

    def test_reads_what_was_written(self, made, root):
        litter(root)
        got = mindeye1.load(root, "subj01")
        responses, truth = got.subject("subj01").responses, made.subject("subj01").responses
        assert len(responses) == 60
        for name in made.stimuli.ids:
            mine, theirs = responses.rows_of([name])[0], truth.rows_of([name])[0]
            np.testing.assert_array_equal(responses.batch(mine), truth.batch(theirs))
            np.testing.assert_array_equal(responses.trials.repeat[mine], [0, 1, 2])
            np.testing.assert_array_equal(got.stimuli.image(name), made.stimuli.image(name))
            assert got.stimuli.captions(name) == made.stimuli.captions(name)
        assert (responses.trials.trial == -1).all() and (responses.trials.session == -1).all()
        released, want = got.split("released"), made.split("made")
        assert (released.train, released.val, released.test) == (want.train, want.val, want.test)
        assert got.split("shared1000").train | got.split("shared1000").val == want.train | want.val
        assert detect(root) == ["mindeye1"] == detect(root / "webdataset_avg_split")

    def test_fewer_repeats_are_not_counted_twice(self, made, tmp_path):
        person = made.subject("subj01")
        keep = np.flatnonzero((person.responses.trials.image_id != "nsd:00004") | (person.responses.trials.repeat < 2))
        trials = person.responses.trials[keep]
        trials = type(trials)(trials.image_id, trials.session, trials.run, trials.repeat, np.arange(len(keep)))
        responses = Responses(person.responses.values[keep], trials, unit=person.responses.unit)
        fewer = BrainDataset([Subject("subj01", responses, person.space, "session_z")], made.stimuli, made.splits)
        write_mindeye1(fewer, tmp_path, "subj01", "made")
        got = mindeye1.load(tmp_path, 1).subject("subj01").responses
        assert len(got) == 59
        np.testing.assert_array_equal(
            got.batch(got.rows_of(["nsd:00004"])[0]), responses.batch(responses.rows_of(["nsd:00004"])[0])
        )

    def test_pictures_in_jpeg_are_close(self, made, tmp_path):
        write_mindeye1(made, tmp_path, "subj01", "made")
        got = mindeye1.load(tmp_path, 1)
        errors = [np.abs(got.stimuli.image(n).astype(int) - made.stimuli.image(n)).mean() for n in made.stimuli.ids]
        swapped = np.abs(got.stimuli.image("nsd:00001").astype(int) - made.stimuli.image("nsd:00002")).mean()
        assert max(errors) < 0.75 * swapped  # noise pictures compress badly, but each is still itself

    def test_incomplete_sample_is_named(self, root):
        path = root / "webdataset_avg_split/train/train_subj01_1.tar"
        with tarfile.open(path) as archive:
            sample = archive.getnames()[0].split(".")[0]
        rewrite(path, lambda name, content: None if name == f"{sample}.coco73k.npy" else content)
        with pytest.raises(LayoutError, match=f"coco73k.npy of sample '{sample}' .* got only png"):
            mindeye1.load(root, 1)

    def test_repeats_that_contradict_their_number(self, root):
        path = root / "webdataset_avg_split/test/test_subj01_0.tar"
        rewrite(path, edit_first("num_uniques.npy", lambda array: array - 1))
        with pytest.raises(LayoutError, match=r"2 different repeats in .* as num_uniques says, got 3"):
            mindeye1.load(root, 1)

    def test_image_in_two_parts(self, made, root):
        base = root / "webdataset_avg_split"
        leaked = int(min(made.split("made").test)[4:])
        rewrite(base / "train/train_subj01_0.tar", edit_first("coco73k.npy", lambda array: array * 0 + leaked))
        with pytest.raises(LeakageError, match=rf"one sample of nsd:{leaked:05d} .*\(train\) and .*\(test\)"):
            mindeye1.load(root, 1)
        (base / "train/train_subj01_0.tar").unlink()
        with pytest.raises(LayoutError, match=r"train_subj01_0\.tar .* got \[1\] without \[0\]"):
            mindeye1.load(root, 1)
