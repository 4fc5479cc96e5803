"""Retrieval and identification against plain loops, golden tables and planted pairs."""

import numpy as np
import pytest
from scipy.stats import rankdata

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics import retrieval
from brainmodels.metrics.retrieval import (
    brain_given_image,
    correlation_matrix,
    full_gallery,
    galleries_of_300,
    identification,
    image_given_brain,
    mindeye_compat,
    ranks,
    similarity,
    two_way,
    two_way_pairs,
)

GOLDEN = np.array([[0.9, 0.95, 0.1], [0.1, 0.98, 0.2], [0.3, 0.99, 0.6]])
GOLDEN_TWO_WAY = np.array([[0.9, 0.2, 0.8], [0.1, 0.5, 0.6], [0.3, 0.5, 0.7]])


def features(n=40, d=30, noise=3.0, seed=0):
    """Image features, and noisy brain features of the same images."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return image + noise * rng.normal(size=(n, d)), image


def by_name(scores):
    return {score.metric.name: score for score in scores}


def test_golden_retrieval():
    assert image_given_brain(GOLDEN) == pytest.approx(1 / 3)
    assert brain_given_image(GOLDEN) == pytest.approx(2 / 3)
    assert image_given_brain(GOLDEN, k=2) == 1
    assert image_given_brain(GOLDEN.T) == brain_given_image(GOLDEN)


def test_mindeye_names_are_the_other_way_round():
    assert mindeye_compat(GOLDEN) == {"fwd": pytest.approx(2 / 3), "bwd": pytest.approx(1 / 3)}


def test_golden_two_way():
    assert two_way(GOLDEN_TWO_WAY).mean() == pytest.approx(2 / 3)
    assert two_way(GOLDEN_TWO_WAY.T).mean() == pytest.approx(0.8333, abs=1e-4)  # along rows: another number


def test_similarity_against_loops(monkeypatch):
    brain, image = features(7, 24)
    monkeypatch.setattr(retrieval, "_BATCH_NUMBERS", 35)  # blocks of five features
    cosines = similarity(brain.reshape(7, 4, 6), image.reshape(7, 4, 6))
    correlations = correlation_matrix(brain + 5, image)
    for i in range(7):
        for j in range(7):
            expected = brain[i] @ image[j] / np.sqrt(brain[i] @ brain[i] * (image[j] @ image[j]))
            assert cosines[i, j] == pytest.approx(expected)
            assert correlations[i, j] == pytest.approx(np.corrcoef(brain[i], image[j])[0, 1])


def test_fp32_features_are_summed_in_fp64():
    rng = np.random.default_rng(1)
    brain, image = (rng.normal(size=(3, 5000)).astype(np.float32) + np.float32(3000) for _ in range(2))
    expected = np.corrcoef(np.concatenate([brain, image]).astype(np.float64))[:3, 3:]
    np.testing.assert_allclose(correlation_matrix(brain, image), expected, atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_against_loops(ties):
    table = np.random.default_rng(2).random((25, 25))
    table = np.round(table, 1) if ties else table
    for direction, queries in (("image_given_brain", table), ("brain_given_image", table.T)):
        expected = [rankdata(-queries[i])[i] for i in range(25)]  # the middle rank of ties
        np.testing.assert_array_equal(ranks(table, direction), expected)
        np.testing.assert_array_equal(np.diag(retrieval.rank_table(queries)), expected)
    every = np.stack([rankdata(-row) for row in table])
    np.testing.assert_array_equal(retrieval.rank_table(table), every)


@pytest.mark.parametrize("ties", [False, True])
def test_two_way_against_loops(ties):
    table = np.random.default_rng(3).random((15, 15))
    table = np.round(table, 1) if ties else table
    expected = np.empty((15, 15))
    for i in range(15):
        for j in range(15):
            expected[i, j] = sum(table[k, j] < table[i, j] for k in range(15) if k != i) / 14
    np.testing.assert_allclose(two_way_pairs(table), expected)
    np.testing.assert_allclose(two_way(table), np.diag(expected))


def test_a_decoder_that_always_says_the_same_is_not_above_chance():
    """Every candidate is tied in one direction; a last digit of the matrix product must not decide."""
    _, image = features(40, 500)
    same = np.tile(image[:1], (40, 1))
    table = similarity(same, image)
    assert brain_given_image(table) == 0 and (ranks(table, "brain_given_image") == 20.5).all()
    assert image_given_brain(table) == 1 / 40
    assert two_way(correlation_matrix(same, image)).max() == 0  # all real images equal: every comparison is a tie
    flat = correlation_matrix(image, np.full((40, 500), 0.1))
    assert (flat == 0).all() and two_way(flat).max() == 0
    assert (similarity(np.zeros((40, 500)), image) == 0).all()


def test_a_last_digit_does_not_break_a_tie():
    table = 0.3 + 1e-15 * np.random.default_rng(8).integers(-3, 4, (9, 9))
    assert (ranks(table, "image_given_brain") == 5).all() and (retrieval.rank_table(table) == 5).all()
    assert two_way(table).max() == 0


def test_directions_differ_on_a_hub():
    """One image that every brain resembles takes the top of all rows; columns do not mind."""
    table = np.eye(20) * 0.5
    table[:, 0] = 0.9
    table[0, 0] = 1.0
    assert image_given_brain(table) == 1 / 20 and brain_given_image(table) == 1
    found = by_name(full_gallery(table, top=(1,), resamples=20))
    assert found["image_given_brain_top1@20"].value == 1 / 20 and found["brain_given_image_top1@20"].value == 1


def test_full_gallery():
    brain, image = features()
    table = similarity(brain, image)
    found = by_name(full_gallery(table, resamples=300, seed=1, features="abc"))
    assert len(found) == 10
    rank = ranks(table, "image_given_brain")
    assert found["image_given_brain_top5@40"].value == pytest.approx(np.mean(rank <= 5))
    assert found["image_given_brain_median_rank@40"].value == np.median(rank)
    assert found["brain_given_image_mean_rank@40"].value == ranks(table, "brain_given_image").mean()
    assert found["image_given_brain_median_rank@40"].metric.direction == "down"
    for score in found.values():
        assert score.chance in score.chance_interval and not score.at_chance, score
        assert score.value in score.interval and (score.n, score.features) == (40, "abc")
    assert "image_given_brain_top10@5" not in by_name(full_gallery(table[:5, :5], resamples=20))


def test_shuffled_pairs_are_at_chance():
    """Good features of wrong pairs lie inside the chance interval 95 times of 100, whatever the score."""
    brain, image = features(noise=0.5)
    rng, inside = np.random.default_rng(4), {}
    for _ in range(25):
        table = similarity(brain[rng.permutation(40)], image)
        scores = full_gallery(table, top=(5,), resamples=100)
        for score in [*scores, *galleries_of_300(table, gallery=20, draws=5, permutations=60)]:
            inside.setdefault(score.metric.name, []).append(score.at_chance)
    assert len(inside) == 8 and all(np.mean(values) > 0.8 for values in inside.values()), inside


def test_exact_features_are_found():
    _, image = features()
    found = by_name(full_gallery(similarity(image, image), resamples=20))
    assert found["image_given_brain_top1@40"].value == 1 and found["brain_given_image_mean_rank@40"].value == 1
    assert identification(image, image, "grid", resamples=20).value == 1


def test_galleries_of_300_in_plain_loops():
    brain, image = features(60, 12, 1.5, seed=5)
    table = similarity(brain, image)
    found = by_name(galleries_of_300(table, gallery=30, draws=8, seed=6, permutations=50))
    rng = np.random.default_rng(6)
    tops = {"image_given_brain": [], "brain_given_image": []}
    for _ in range(8):
        pick = rng.choice(60, 30, replace=False)
        block = table[np.ix_(pick, pick)]
        tops["image_given_brain"].append(np.mean(block.argmax(1) == np.arange(30)))
        tops["brain_given_image"].append(np.mean(block.argmax(0) == np.arange(30)))
    for direction, values in tops.items():
        score = found[f"{direction}_top1@30"]
        assert score.value == pytest.approx(np.mean(values)) and score.chance == 1 / 30
        half = 1.96 * np.std(values, ddof=1) / np.sqrt(8)
        assert score.interval[:2] == pytest.approx((np.mean(values) - half, np.mean(values) + half))
        assert not score.at_chance and "30x8 from 60" in score.note
    with pytest.raises(BrainDataError, match="300 or more test images, got 60"):
        galleries_of_300(table)


def test_identification_as_a_score():
    decoded, real = features(50, 40, 6.0, seed=7)
    score = identification(real, decoded, "grid", resamples=300, subject="sim01")
    assert score.metric.name == "two_way[grid]" and score.chance == 0.5 and 0.5 in score.chance_interval
    assert score.value == pytest.approx(two_way(correlation_matrix(real, decoded)).mean())
    assert score.value in score.interval and score.subject == "sim01"
    with pytest.raises(AxisError, match="50 and 49"):
        identification(real, decoded[1:], "grid")


def test_bad_input():
    with pytest.raises(AxisError, match="pairs"):
        ranks(GOLDEN[:2], "image_given_brain")
    with pytest.raises(BrainDataError, match="direction"):
        ranks(GOLDEN, "fwd")
    with pytest.raises(BrainDataError, match="1 that are not"):
        image_given_brain(np.where(GOLDEN == 0.9, np.nan, GOLDEN))
    with pytest.raises(AxisError, match="one length"):
        similarity(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(BrainDataError, match="finite features"):
        similarity(np.full((3, 4), np.nan), np.ones((3, 4)))
