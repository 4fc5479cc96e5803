"""Normalisers against their definitions in fp64, and what they must refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import Bridge, Normalizer, Responses, TrialTable, fit_normalizer, loso, register_normalizer
from brainmodels.data.scalings import SCALINGS
from brainmodels.errors import AxisError, BrainDataError, LeakageError, NormalizationError, UnitsError
from tests.brainmodels.made import made_dataset


def _dataset(**options):
    return made_dataset(**{"num_images": 60, "repeats": 3, "sessions": 4, **options})


def _drifting(dataset):
    """The same with a gain and an offset of each session and voxel, and a mean of 1000."""
    person = dataset.subject("subj01")
    rng, trials = np.random.default_rng(5), person.responses.trials
    gain, offset = np.exp(0.5 * rng.normal(size=(5, len(person.space)))), rng.normal(size=(5, len(person.space)))
    values = np.asarray(person.responses.values) * gain[trials.session] + offset[trials.session] + 1000
    return dataset.with_subject(replace(person, responses=Responses(values.astype(np.float32), trials)))


def _eeg(num_images=12, repeats=6, channels=5, times=20, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"e:{i}" for i in range(num_images)], repeats)
    mixing = rng.normal(size=(channels, channels))
    signal = np.repeat(rng.normal(size=(num_images, channels, times)), repeats, 0)
    noise = np.einsum("cd,ndt->nct", mixing, rng.normal(size=signal.shape))
    return Responses(((signal + noise) * 1e-6).astype(np.float32), TrialTable.of(ids), unit="V")


def _truth_by_session(dataset, ids, ddof):
    """Plain loops in fp64 over the sessions, statistics of the trials of `ids`."""
    responses = dataset.subject("subj01").responses
    values, trials = np.asarray(responses.values, np.float64), responses.trials
    out = np.empty(values.shape)
    for session in np.unique(trials.session):
        here = trials.session == session
        known = here & np.isin(trials.image_id, sorted(ids))
        out[here] = (values[here] - values[known].mean(0)) / values[known].std(0, ddof=ddof)
    return out


@pytest.mark.parametrize("batch", [7, 512])
@pytest.mark.parametrize("name", ["session_z_train", "session_z"])
def test_session_scaling_is_its_definition(name, batch, monkeypatch):
    monkeypatch.setattr("brainmodels.data.scalings._BATCH", batch)
    dataset = _drifting(_dataset())
    person, split = dataset.subject("subj01"), dataset.split("made")
    normalizer = fit_normalizer(name, person, split)
    ids = split.train if name == "session_z_train" else set(person.responses.trials.image_id.tolist())
    rows = np.arange(len(person.responses))
    got = normalizer.transform(person.responses.batch(rows), person.responses.trials)
    np.testing.assert_allclose(got, _truth_by_session(dataset, ids, 0), atol=2e-3)  # fp32 values near 1000
    assert normalizer.fitted_ids == ids
    assert normalizer.transductive == (name == "session_z")


def test_train_z_is_its_definition():
    dataset = _drifting(_dataset())
    person, split = dataset.subject("subj01"), dataset.split("made")
    normalizer = fit_normalizer("train_z", person, split)
    values = np.asarray(person.responses.values, np.float64)
    train = values[np.isin(person.responses.trials.image_id, sorted(split.train))]
    truth = (values - train.mean(0)) / train.std(0, ddof=1)
    got = normalizer.transform(person.responses.batch(np.arange(len(values))), person.responses.trials)
    np.testing.assert_allclose(got, truth, atol=2e-3)


def test_statistics_survive_a_large_mean():
    rng = np.random.default_rng(0)
    values = 1e6 + rng.normal(size=(3000, 4))
    responses = Responses(values, TrialTable.of([f"a{i}" for i in range(3000)], session=1))
    normalizer = Normalizer("train_z").fit(responses, responses.trials.image_id)
    std = np.asarray(values, np.float32).astype(np.float64).std(0, ddof=1)
    np.testing.assert_allclose(normalizer.arrays["std"][0], std, rtol=1e-5)


@pytest.mark.parametrize("name", ["none", "session_z", "session_z_train", "train_z"])
def test_inverse_undoes_the_transform(name):
    dataset = _drifting(_dataset())
    person, split = dataset.subject("subj01"), dataset.split("made")
    normalizer = fit_normalizer(name, person, split)
    rows = np.random.default_rng(0).permutation(len(person.responses))[:50]
    values, trials = person.responses.batch(rows), person.responses.trials[rows]
    back = normalizer.inverse_transform(normalizer.transform(values, trials), trials)
    np.testing.assert_allclose(back, values, rtol=1e-6)
    content = json.loads(json.dumps({k: v for k, v in normalizer.state_dict().items() if k != "arrays"}))
    again = Normalizer.from_state_dict({**content, "arrays": normalizer.state_dict()["arrays"]})
    np.testing.assert_array_equal(again.transform(values, trials), normalizer.transform(values, trials))
    assert (again.fitted_ids, again.subject, again.name) == (normalizer.fitted_ids, "subj01", name)


@pytest.mark.parametrize("name", ["session_z_train", "train_z", "session_z"])
def test_test_trials_change_no_train_output(name):
    """The one that is transductive does change: the test would notice."""
    dataset = _drifting(_dataset())
    person, split = dataset.subject("subj01"), dataset.split("made")
    values = np.array(person.responses.values)
    values[split.rows(person.responses.trials, "test")] *= 1.5
    other = dataset.with_subject(replace(person, responses=replace(person.responses, values=values)))
    first, second = (
        x.pairs("subj01", split, "train", transform=fit_normalizer(name, x.subject("subj01"), split)).array()
        for x in (dataset, other)
    )
    assert np.array_equal(first, second) == (name != "session_z")


def test_statistics_of_test_images_are_refused():
    dataset = _dataset()
    person, split = dataset.subject("subj01"), dataset.split("made")
    all_ids = person.responses.trials.image_id
    leaky = Normalizer("train_z").fit(person.responses, all_ids)
    with pytest.raises(LeakageError, match=r"expected 'train_z' fitted without test images of 'made', got 20 of them"):
        dataset.pairs("subj01", split, "train", transform=leaky)
    declared = Normalizer("session_z").fit(person.responses)
    assert declared.transductive and "transductive" in repr(declared)
    dataset.pairs("subj01", split, "test", transform=declared)  # legal, and flagged


def test_statistics_beyond_the_context_are_refused():
    dataset = _dataset(num_images=60)
    person = dataset.subject("subj01")
    dataset = dataset.with_subject(replace(person, id="subj02"))
    split = loso(dataset, "subj01", "made", n_context=20, draws=1)
    context = fit_normalizer("train_z", person, split)
    assert context.fitted_ids == split.ids("train", "subj01") and len(context.fitted_ids) == 20
    dataset.pairs("subj01", split, "test", transform=context)
    broad = Normalizer("train_z").fit(person.responses, dataset.split("made").train)
    with pytest.raises(LeakageError, match="fitted on the images that 'loso-subj01' gives subj01"):
        dataset.pairs("subj01", split, "test", transform=broad)
    with pytest.raises(NormalizationError, match="expected statistics of subj02, got those of subj01"):
        dataset.pairs("subj02", split, "test", transform=context)


def test_unlabelled_trials_scale_a_subject_with_a_small_context():
    dataset = _dataset(num_images=60)
    person = dataset.subject("subj01")
    dataset = dataset.with_subject(replace(person, id="subj02"))
    split = loso(dataset, "subj01", "made", n_context=7, draws=1)
    with pytest.raises(NormalizationError, match="expected 20 train trials or more"):
        fit_normalizer("session_z_train", person, split)
    found = fit_normalizer("session_z_unlabelled", person, split)
    ids = set(person.responses.trials.image_id.tolist()) - split.test
    got = found.transform(person.responses.batch(np.arange(len(person.responses))), person.responses.trials)
    np.testing.assert_allclose(got, _truth_by_session(dataset, ids, 0), atol=2e-3)
    assert found.num_trials == np.isin(person.responses.trials.image_id, sorted(ids)).sum() > 7 * 3
    dataset.pairs("subj01", split, "test", transform=found)  # no leak: no test image, and no label was used
    again = Normalizer.from_state_dict(found.state_dict())
    assert (again.num_trials, again.unlabelled) == (found.num_trials, True)
    with pytest.raises(LeakageError, match="fitted without test images"):
        dataset.pairs(
            "subj01",
            dataset.split("made"),
            "test",
            transform=Normalizer("session_z_unlabelled").fit(person.responses, ids | split.test),
        )


def test_two_normalisers_in_a_row_are_refused():
    dataset = _dataset()
    person, split = replace(dataset.subject("subj01"), normalizer="session_z"), dataset.split("made")
    with pytest.raises(NormalizationError, match=r"through 'session_z': 'train_z' would scale them twice"):
        fit_normalizer("train_z", person, split)
    declared = fit_normalizer("train_z", person, split, over="session_z")
    dataset.with_subject(person).pairs("subj01", split, "train", transform=declared)
    with pytest.raises(NormalizationError, match="expected values of subj01 through 'session_z', got 'none'"):
        dataset.pairs("subj01", split, "train", transform=declared)
    fit_normalizer("none", person, split)
    units = replace(person, normalizer="div2000")
    fit_normalizer("train_z", units, split)  # a unit, not a normalisation
    with pytest.raises(NormalizationError, match="scale them twice"):
        Normalizer("div2000").fit(replace(units.responses, unit="percent signal change")).check(units, split)


def test_few_trials_of_a_session_are_refused():
    dataset = _dataset(num_images=30, sessions=4)  # 90 trials, 19 train images of which 57 trials
    person, split = dataset.subject("subj01"), dataset.split("made")
    with pytest.raises(NormalizationError, match=r"expected 20 train trials or more in every session, got \d+ in"):
        fit_normalizer("session_z_train", person, split)
    few = Normalizer("session_z_train", min_trials=2).fit(person.responses, split.train)
    some = person.responses.subset(person.responses.trials.session < 3)
    partly = Normalizer("session_z_train", min_trials=2).fit(some, split.train)
    rows = np.arange(len(person.responses))
    few.transform(person.responses.batch(rows), person.responses.trials)
    with pytest.raises(NormalizationError, match="2 sessions that were fitted, got session 3"):
        partly.transform(person.responses.batch(rows), person.responses.trials)
    with pytest.raises(NormalizationError, match="expected the trials, whose sessions"):
        few.inverse_transform(person.responses.batch(rows))
    unknown = Responses(person.responses.values, TrialTable.of(person.responses.trials.image_id))
    with pytest.raises(NormalizationError, match=r"got \d+ of unknown session; use 'train_z'"):
        Normalizer("session_z_train").fit(unknown, split.train)


def test_voxels_without_variance_become_nan_and_are_counted(caplog):
    dataset = _dataset()
    person, split = dataset.subject("subj01"), dataset.split("made")
    values, trials = np.array(person.responses.values), person.responses.trials
    values[:, 1] = 0.1  # constant
    values[trials.session == 2, 3] = -7.3  # constant in one session
    values[5, 4] = np.nan
    person = replace(person, responses=Responses(values, trials))
    normalizer = Normalizer("session_z").fit(person.responses)
    assert normalizer.num_constant == 3 and "3 of" in caplog.text
    got = normalizer.transform(person.responses.batch(np.arange(len(values))), trials)
    nan = np.zeros(got.shape, bool)
    nan[:, 1] = nan[trials.session == 2, 3] = nan[trials.session == trials.session[5], 4] = True
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert fit_normalizer("train_z", person, split).num_constant in (1, 2)  # row 5 may show a test image


def test_units_of_the_natural_scenes_dataset():
    stored = np.random.default_rng(0).integers(-3000, 3000, (20, 6)).astype(np.int16)
    trials = TrialTable.of([f"a{i}" for i in range(20)])
    for scale, unit in ((1 / 300, "percent signal change"), (1.0, "unknown")):
        responses = Responses(stored, trials, scale, unit=unit)
        for name, divisor in (("psc", 300), ("div2000", 2000)):
            normalizer = Normalizer(name).fit(responses)
            got = normalizer.transform(responses.batch(np.arange(20)), trials)
            np.testing.assert_allclose(got, stored / divisor, rtol=1e-5)
            np.testing.assert_allclose(normalizer.inverse_transform(got), stored * scale, rtol=1e-5)
            assert not normalizer.fitted_ids
    with pytest.raises(UnitsError, match="expected betas in percent signal change or as the stored int16, got float32"):
        Normalizer("div2000").fit(Responses(stored.astype(np.float32), trials))
    with pytest.raises(NormalizationError, match="'div2000' before fit"):
        Normalizer("div2000").transform(stored, trials)


def test_trial_z_and_channel_z_of_eeg_in_volts():
    responses = _eeg()
    rows, values = np.arange(len(responses)), np.asarray(responses.values, np.float64)
    got = Normalizer("trial_z").fit(responses).transform(responses.batch(rows), responses.trials)
    truth = (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)
    np.testing.assert_allclose(got, truth, atol=1e-5)
    normalizer = Normalizer("channel_z").fit(responses, ["e:0", "e:3"])
    train = values[np.isin(responses.trials.image_id, ["e:0", "e:3"])]
    truth = (values - train.mean((0, 2))[:, None]) / train.std((0, 2))[:, None]
    got = normalizer.transform(responses.batch(rows), responses.trials)
    np.testing.assert_allclose(got, truth, atol=1e-4)
    np.testing.assert_allclose(normalizer.inverse_transform(got), values, rtol=1e-4, atol=1e-11)
    with pytest.raises(AxisError, match=r"\(trials, channels, times\)"):
        Normalizer("channel_z").fit(_dataset().subject("subj01").responses, ["sim:00000"])
    with pytest.raises(NormalizationError, match="undo 'trial_z'"):
        Normalizer("trial_z").inverse_transform(got)


def test_noise_whitening_is_the_inverse_root_of_the_shrunk_covariance():
    sklearn = pytest.importorskip("sklearn.covariance")
    responses = _eeg()
    values = np.asarray(responses.values, np.float64).reshape(12, 6, 5, 20)[:8]
    noise = np.moveaxis(values - values.mean(1, keepdims=True), 2, 3).reshape(-1, 5)
    covariance, _ = sklearn.ledoit_wolf(noise / 1e-6, assume_centered=True)  # it takes volts for zeros
    covariance = covariance * 6 / 5  # six trials less the mean of each
    normalizer = Normalizer("mvnn").fit(responses, [f"e:{i}" for i in range(8)])
    matrix = normalizer.arrays["matrix"] * 1e-6
    np.testing.assert_allclose(matrix @ covariance @ matrix.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    rows = np.arange(len(responses))
    white = normalizer.transform(responses.batch(rows), responses.trials)
    np.testing.assert_allclose(normalizer.inverse_transform(white), responses.values, rtol=1e-3, atol=1e-10)
    with pytest.raises(NormalizationError, match="expected images shown several times"):
        Normalizer("mvnn").fit(responses.subset(np.arange(0, 72, 6)), [f"e:{i}" for i in range(8)])


def test_silent_channel_is_nan_and_spoils_no_other():
    responses = _eeg()
    values = np.array(responses.values)
    values[:, 2] = 0  # the reference
    silent = replace(responses, values=values)
    normalizer = Normalizer("mvnn").fit(silent, [f"e:{i}" for i in range(12)])
    white = normalizer.transform(silent.batch(np.arange(72)), silent.trials)
    assert normalizer.num_constant == 1
    assert np.isnan(white[:, 2]).all() and np.isfinite(np.delete(white, 2, 1)).all()


def test_unknown_names_and_new_ones():
    with pytest.raises(NormalizationError, match=r"got 'sesion_z'; near: session_z"):
        Normalizer("sesion_z")
    with pytest.raises(BrainDataError, match="expected a new name"):
        register_normalizer("train_z")(SCALINGS["train_z"])
    register_normalizer("twice")(type("Twice", (SCALINGS["none"],), {"forward": lambda self, a, v, t: 2 * v}))
    try:
        assert Normalizer("twice").fit(_eeg()).transform(np.ones((1, 2)), None).tolist() == [[2, 2]]
    finally:
        del SCALINGS["twice"]


def test_bridge_leads_from_one_space_to_the_other_and_back():
    dataset = _drifting(_dataset())
    person, split = dataset.subject("subj01"), dataset.split("made")
    target = dataset.pairs("subj01", split, "train", transform=fit_normalizer("train_z", person, split))
    source = dataset.pairs("subj01", split, "train")
    bridge = Bridge().fit(source, target)
    np.testing.assert_allclose(bridge.transform(source.array()), target.array(), atol=1e-3)
    np.testing.assert_allclose(bridge.inverse_transform(target.array()), source.array(), rtol=1e-5)
    again = Bridge.from_state_dict(bridge.state_dict())
    np.testing.assert_array_equal(again.transform(source.array()), bridge.transform(source.array()))
    assert (bridge.source, bridge.target, bridge.fitted_ids) == ("none", "train_z", split.train)


def test_bridge_from_standard_scores():
    """The protocol of NeuroFlow: z times the standard deviation, plus the mean, of repeat-averaged train responses."""
    dataset = _dataset()
    pairs = dataset.pairs("subj01", "made", "train", average="repeats")
    z = np.random.default_rng(0).normal(size=(5, pairs.array().shape[1]))
    averaged = pairs.array().astype(np.float64)
    expected = z * averaged.std(0) + averaged.mean(0)
    np.testing.assert_allclose(Bridge().fit(None, pairs).transform(z), expected, atol=1e-5)
    with pytest.raises(LeakageError, match="got the part 'test'"):
        Bridge().fit(None, dataset.pairs("subj01", "made", "test"))
