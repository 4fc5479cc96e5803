"""Controls take the brain away and nothing else; a curve over components tells a prior from a decoder."""

import json

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics import Interval, Score, controls, metric
from brainmodels.metrics.encoding import voxel_r


@pytest.fixture(scope="module")
def linear():
    """Features decoded linearly from noisy responses; ridge is optimal."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(260, 12))
    weights = rng.normal(size=(12, 40)) * np.linspace(2, 0.3, 12)[:, None]
    responses = features @ weights + rng.normal(size=(260, 40))
    return features[:200], responses[:200], features[200:], responses[200:]


def ridge(inputs, targets, test_inputs):
    """Ridge with a mean, penalty 1."""
    mean, centre = inputs.mean(0), targets.mean(0)
    x = inputs - mean
    gram = x.T @ x + np.eye(x.shape[1])
    return (test_inputs - mean) @ np.linalg.solve(gram, x.T @ (targets - centre)) + centre


def test_shuffled_pairing_trains_on_wrong_pairs(linear):
    features, responses, test_features, test_responses = linear
    orders = []

    def refit(order):
        orders.append(order)
        predicted = ridge(responses[order], features, test_responses)
        return {"voxel_r_mean": voxel_r(test_features, predicted).mean()}

    runs = controls.shuffled_pairing(refit, 200, seeds=(0, 1, 2, 3))
    assert abs(runs.mean("voxel_r_mean")) < 0.1
    assert refit(np.arange(200))["voxel_r_mean"] > 0.8
    assert all((np.sort(order) == np.arange(200)).all() for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert json.loads(json.dumps(runs.to_json()))["settings"] == [0, 1, 2, 3]


def test_noise_input_has_the_moments_of_training_voxels(linear):
    responses = linear[1] * np.linspace(1, 4, 40) + np.arange(40)
    seen = []

    def evaluate(noise):
        seen.append(noise)
        return {"mean": noise.mean()}

    controls.noise_input(evaluate, responses, 3000, seeds=(5, 6))
    np.testing.assert_allclose(seen[0].mean(0), responses.mean(0), atol=0.12 * responses.std(0).max())
    np.testing.assert_allclose(seen[0].std(0), responses.std(0), rtol=0.06)
    assert seen[0].shape == (3000, 40) and (seen[0] != seen[1]).any()


def test_bottleneck_rises_for_a_decoder_and_is_flat_for_a_prior(linear):
    features, responses, test_features, test_responses = linear

    def decode(train, test):
        assert train.shape == responses.shape and test.shape == test_responses.shape
        return {"voxel_r_mean": voxel_r(test_features, ridge(train, features, test)).mean()}

    curve = controls.bottleneck_curve(decode, responses, test_responses)
    assert curve.settings == (1, 2, 5, 10, 20, 30, "full") and curve.over == "components"
    values = np.array(curve.values["voxel_r_mean"])
    assert (np.diff(values) > -0.02).all() and values[-1] > values[0] + 0.4

    def ignore(train, test):
        prior = np.random.default_rng(0).normal(size=test_features.shape)
        return {"voxel_r_mean": voxel_r(test_features, prior).mean()}

    flat = controls.bottleneck_curve(ignore, responses, test_responses).values["voxel_r_mean"]
    assert np.ptp(flat) == 0 and abs(flat[0]) < 0.1


def test_bottleneck_knows_the_training_responses_alone(linear):
    """Rank k after the training mean is taken away, the best such approximation, whatever the test responses are."""
    _, responses, _, test_responses = linear
    seen = {}

    def refit(train, test):
        seen[len(seen)] = train, test
        return {"x": 0.0}

    controls.bottleneck_curve(refit, responses, test_responses, components=(3,))
    controls.bottleneck_curve(refit, responses, test_responses * 100 + 7, components=(3,))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    centred = seen[0][0] - responses.mean(0)
    assert np.linalg.matrix_rank(centred, tol=1e-6) == 3
    u, s, v = np.linalg.svd(responses - responses.mean(0), full_matrices=False)
    np.testing.assert_allclose(centred, u[:, :3] * s[:3] @ v[:3], atol=1e-8)
    np.testing.assert_allclose(
        seen[0][1] - responses.mean(0), (test_responses - responses.mean(0)) @ v[:3].T @ v[:3], atol=1e-8
    )


def test_full_is_the_input_itself(linear):
    _, responses, _, test_responses = linear
    seen = []
    controls.bottleneck_curve(lambda a, b: seen.append((a, b)) or {"x": 0}, responses, test_responses, ("full",))
    assert seen[0][0] is responses and seen[0][1] is test_responses


def test_prior_only_runs_each_seed():
    runs = controls.prior_only(lambda seed: {"a": seed * 2.0, "b": 1.0}, seeds=(3, 4))
    assert runs.values == {"a": (6.0, 8.0), "b": (1.0, 1.0)} and runs.settings == (3, 4)


def test_block_shuffle_keeps_blocks_whole():
    labels = np.repeat([0, 1, 2, 0, 1, 2], 4)
    shuffled = controls.block_shuffle(labels, seed=3)
    blocks = shuffled.reshape(6, 4)
    assert (blocks == blocks[:, :1]).all()
    assert sorted(blocks[:, 0]) == [0, 0, 1, 1, 2, 2] and blocks[:, 0].tolist() != [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(shuffled, controls.block_shuffle(labels, np.repeat(np.arange(6), 4), seed=3))
    with pytest.raises(BrainDataError, match="several in block 7"):
        controls.block_shuffle([0, 1], blocks=[7, 7])
    with pytest.raises(AxisError, match="one block for each of 2 labels"):
        controls.block_shuffle([0, 1], blocks=[7])


def test_block_shuffle_unmasks_a_decoder_of_time():
    """Responses that drift and know nothing of the class: the nearest trial in time decodes "class" in blocks."""
    labels, noise = np.repeat(np.arange(8).repeat(3), 10), np.random.default_rng(0).normal(0, 0.01, 240)
    labels = labels.reshape(24, 10)[np.random.default_rng(1).permutation(24)].ravel()
    drift = np.linspace(0, 1, 240) + noise / 10

    def accuracy(labels):
        train, test = np.arange(0, 240, 2), np.arange(1, 240, 2)
        nearest = np.abs(drift[test][:, None] - drift[train]).argmin(1)
        return (labels[train][nearest] == labels[test]).mean()

    assert accuracy(labels) > 0.8 and accuracy(controls.block_shuffle(labels, np.arange(240) // 10)) > 0.8


def test_all_at_chance_is_said_in_words():
    inside = Score(metric("voxel_r"), 0.01, n=9, chance_interval=Interval(-0.1, 0.1))
    outside = Score(metric("two_way[grid]"), 0.9, n=9, chance_interval=Interval(0.4, 0.6))
    unknown = Score(metric("mse"), 0.1, n=9)
    text = controls.all_at_chance([inside, unknown])
    assert "All 1 scores" in text and "voxel_r" in text and "alignment" in text
    assert controls.all_at_chance([inside, outside]) is None
    assert controls.all_at_chance([unknown]) is None and controls.all_at_chance([]) is None


def test_bad_input(linear):
    _, responses, _, test_responses = linear
    with pytest.raises(AxisError, match="equal voxels"):
        controls.bottleneck_curve(lambda a, b: {}, responses, test_responses[:, 1:])
    with pytest.raises(BrainDataError, match="components above 0"):
        controls.bottleneck_curve(lambda a, b: {}, responses, test_responses, (0, 5))
    with pytest.raises(BrainDataError, match="expected one run or more"):
        controls.prior_only(lambda seed: {}, seeds=())
    with pytest.raises(BrainDataError, match="of every run"):
        controls.prior_only(lambda seed: {"a" if seed else "b": 1.0}, seeds=(0, 1))
