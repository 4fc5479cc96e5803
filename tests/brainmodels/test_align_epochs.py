"""The alignment test on simulated epochs: weak and intact ones are not refused, and strong ones in wrong rows are."""

import functools
import re
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import check_alignment
from brainmodels.errors import AlignmentError
from brainmodels.simulated import simulate_eeg


@functools.cache
def epochs(snr_db):
    return simulate_eeg(n_subjects=1, n_chans=16, snr_db=snr_db, n_train=200, n_test=10, seed=0)


def with_rows(study, order):
    """The study with the responses in another order than their trials."""
    person = study.subject("sim01")
    values = np.asarray(person.responses.values)[order]
    return study.with_subject(replace(person, responses=replace(person.responses, values=values)))


def permuted(study, seed=0):
    return with_rows(study, np.random.default_rng(seed).permutation(len(study.subject("sim01").responses)))


def of_other_images(study):
    """All trials of an image are called another: repeats fit each other, but no picture."""
    person, split = study.subject("sim01"), study.split("scenes")
    train = sorted(split.ids("train", "sim01"))
    other = dict(zip(train, np.random.default_rng(0).permutation(train).tolist(), strict=True))
    trials = person.responses.trials
    names = np.array([other.get(name, name) for name in trials.image_id.tolist()])
    responses = replace(person.responses, trials=replace(trials, image_id=names))
    return study.with_subject(replace(person, responses=responses))


def test_strong_epochs_pass_and_wrong_rows_of_them_are_refused():
    study = epochs(-3.0)
    report = check_alignment(study, "sim01", "scenes")
    assert report.z > 4 and report.doubt == "" and "identify their images" in str(report)
    count = len(study.subject("sim01").responses)
    for wrong in (permuted(study), with_rows(study, np.roll(np.arange(count), 1)), of_other_images(study)):
        with pytest.raises(AlignmentError, match="rows and images are probably misaligned"):
            check_alignment(wrong, "sim01", "scenes")


@pytest.mark.parametrize(
    ("snr_db", "told"),
    [(-15.0, r"trials of one image identify each other with 0\.[5-7]"), (-26.0, r"the mean response has 0\.00\d\d of")],
)
def test_weak_epochs_are_not_refused_and_the_report_says_that_nothing_can_be_told(snr_db, told, caplog):
    report = check_alignment(epochs(snr_db), "sim01", "scenes")
    assert report.z < 4 and report.n >= 100
    for text in (str(report), caplog.text):
        assert "do not identify" in text and "too weak to tell whether rows and images are aligned" in text
    assert re.search(told, report.doubt)


def test_weak_epochs_in_wrong_rows_are_told_to_be_uncertain_too():
    """Nothing can tell them from intact ones, and the report does not call them aligned."""
    report = check_alignment(permuted(epochs(-26.0)), "sim01", "scenes")
    assert "too weak to tell" in report.doubt and "do not identify" in str(report)
