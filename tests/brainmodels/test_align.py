"""The alignment test on simulated subjects whose rows are right, wrong, or say nothing."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import Responses, TrialTable, VoxelSpace, check_alignment
from brainmodels.errors import AlignmentError, BrainDataError
from brainmodels.simulated import simulate
from tests.brainmodels.made import made_dataset


@pytest.fixture(scope="module")
def study():
    return simulate("tiny")


def _with_rows(study, subject, order):
    """The study with the responses of a subject in another order than its trials."""
    person = study.subject(subject)
    values = np.asarray(person.responses.values)[order]
    return study.with_subject(replace(person, responses=replace(person.responses, values=values)))


@pytest.mark.parametrize("subject", [pytest.param(f"sim0{i}", marks=[pytest.mark.slow] * (i > 1)) for i in (1, 2, 3)])
def test_aligned_rows_pass(study, subject):
    report = check_alignment(study, subject, "shared")
    assert report.z > 12 and report.score > 0.85
    assert abs(report.null_mean - 0.5) < 0.01
    assert sorted(report.session_z) == [1, 2, 3, 4, 5, 6] and min(report.session_z.values()) > 10
    assert f"responses of {subject} identify their images: two-way 0.9" in str(report)


def test_aligned_rows_pass_at_a_quarter_of_the_signal():
    report = check_alignment(simulate("tiny", snr_scale=0.25), "sim01", "shared")
    assert report.z > 7 and min(report.session_z.values()) > 5


def test_no_signal_raises():
    with pytest.raises(AlignmentError, match=r"at chance \(0.\d\d, null 0.50 \+- 0.0\d, z -?[0-3].\d, n 2\d\d\)"):
        check_alignment(simulate("tiny", snr_scale=0), "sim01", "shared")


@pytest.mark.parametrize("wrong", ["shuffled", "rolled by one", "rolled by a session"])
def test_wrong_rows_raise(study, wrong):
    trials = study.subject("sim02").responses.trials
    order = np.arange(len(trials))
    if wrong == "shuffled":
        order = np.random.default_rng(0).permutation(order)
    else:
        order = np.roll(order, 1 if wrong == "rolled by one" else (trials.session == 1).sum())
    with pytest.raises(AlignmentError, match="rows and images are probably misaligned, or the mask or scaling"):
        check_alignment(_with_rows(study, "sim02", order), "sim02", "shared")


@pytest.mark.slow
@pytest.mark.parametrize("session", [1, 4])
def test_the_one_bad_session_is_named(study, session):
    rows = np.flatnonzero(study.subject("sim03").responses.trials.session == session)
    order = np.arange(len(study.subject("sim03").responses))
    order[rows] = np.roll(rows, 1)
    with pytest.raises(AlignmentError, match=rf"got chance in session {session} \(z -?[0-2]\.\d\): its rows"):
        check_alignment(_with_rows(study, "sim03", order), "sim03", "shared")


def test_noise_does_not_hide_a_session_of_wrong_rows(study):
    """With axes from all sessions, the noise of 10,000 voxels told the wrong images of session 4 apart at z = 10."""
    person, rng = study.subject("sim01"), np.random.default_rng(0)
    values = np.asarray(person.responses.values)
    values = np.concatenate([values, values.std() * rng.standard_normal((len(values), 10_000), np.float32)], axis=1)
    index = np.stack([np.arange(values.shape[1])] * 3, axis=1)
    space = VoxelSpace("noisy", index, (values.shape[1],) * 3)
    noisy = study.with_subject(replace(person, responses=replace(person.responses, values=values), space=space))
    rows = np.flatnonzero(person.responses.trials.session == 4)
    order = np.arange(len(values))
    order[rows] = rng.permutation(rows)
    with pytest.raises(AlignmentError, match=r"median z [6-9].*got chance in session 4 \(z -?[01]\.\d\)"):
        check_alignment(_with_rows(noisy, "sim01", order), "sim01", "shared")


@pytest.mark.slow
def test_null_is_calibrated(study, monkeypatch):
    """Over shuffles z has the spread of a standard normal: a null without refits would give 1.5."""
    monkeypatch.setattr("brainmodels.data.align._PERMUTATIONS", 100)
    person, z = study.subject("sim02"), []
    few = frozenset(sorted(study.split("shared").train & set(person.responses.trials.image_id.tolist()))[:90])
    split = replace(study.split("shared"), train=few, train_of=None)  # 90 images: a warning, not an error
    for seed in range(25):
        order = np.random.default_rng(seed).permutation(len(person.responses))
        z.append(check_alignment(_with_rows(study, "sim02", order), "sim02", split, seed=seed).z)
    assert abs(np.mean(z)) < 0.7 and 0.6 < np.std(z) < 1.4


def test_few_images_only_warn(study, caplog):
    split = study.split("shared")
    few = frozenset(sorted(split.train_of["sim01"] if split.train_of else split.train)[:40])
    few = few & set(study.subject("sim01").responses.trials.image_id.tolist())
    split = replace(split, train=few, train_of=None)
    order = np.random.default_rng(1).permutation(len(study.subject("sim01").responses))
    report = check_alignment(_with_rows(study, "sim01", order), "sim01", split)
    assert report.z < 4 and f"{len(few)} images are too few to tell" in caplog.text
    assert "do not identify" in str(report)


@pytest.mark.slow
def test_test_images_take_no_part(study):
    """Wrong rows of test images alone change nothing."""
    trials = study.subject("sim01").responses.trials
    rows = study.split("shared").rows(trials, "test", "sim01")
    order = np.arange(len(trials))
    order[rows] = np.roll(rows, 5)
    first, second = (check_alignment(x, "sim01", "shared") for x in (study, _with_rows(study, "sim01", order)))
    assert first == second


def test_normalised_and_sessionless_responses_are_tested_too(study):
    person = study.subject("sim01")
    trials = TrialTable.of(person.responses.trials.image_id)
    sessionless = replace(person, normalizer="session_z", responses=Responses(person.responses.values, trials))
    report = check_alignment(study.with_subject(sessionless), "sim01", "shared")
    assert report.z > 4 and report.session_z == {}


def test_switching_it_off_is_said(study, caplog):
    report = check_alignment(study, "sim01", "shared", mode="off")
    assert np.isnan(report.z) and "was not tested" in str(report) and "was not tested" in caplog.text
    with pytest.raises(BrainDataError, match="'auto' or 'off'"):
        check_alignment(study, "sim01", "shared", mode="no")


def test_constant_responses_are_named():
    dataset = made_dataset(num_images=60)
    person = dataset.subject("subj01")
    flat = replace(person.responses, values=np.zeros_like(person.responses.values))
    with pytest.raises(AlignmentError, match="expected columns that vary in every session, got none"):
        check_alignment(dataset.with_subject(replace(person, responses=flat)), "subj01", "made")
    with pytest.raises(AlignmentError, match="expected 10 train images or more of subj01 to test, got 7"):
        check_alignment(made_dataset(), "subj01", "made")
