"""BraInCoRL's protocol computed by hand, image by image and voxel by voxel."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.metrics.published import scores_as_in_braincorl
from brainmodels.metrics.statistics import bootstrap
from tests.brainmodels.made import made_dataset


@pytest.fixture(scope="module")
def study():
    """30 test images of three trials, and six noisy predictions, rows in another order."""
    dataset = made_dataset(num_images=90, seed=3)
    test = dataset.pairs("subj01", "made", "test", average="repeats")
    clean = test.array().astype(np.float64)
    rng = np.random.default_rng(0)
    draws = [clean + (0.5 + 0.1 * draw) * rng.normal(size=clean.shape) + 4 for draw in range(6)]
    return dataset, test, test.image_ids[::-1], [draw[::-1] for draw in draws]


def by_hand(y, p):
    """1 - var(y - p) / var(y) of each voxel, mean over voxels, in loops."""
    values = []
    for v in range(y.shape[1]):
        a, d = y[:, v].tolist(), (y[:, v] - p[:, v]).tolist()
        mean_a, mean_d = sum(a) / len(a), sum(d) / len(d)
        values.append(1 - sum((x - mean_d) ** 2 for x in d) / sum((x - mean_a) ** 2 for x in a))
    return sum(values) / len(values)


def test_by_hand(study):
    _, test, ids, draws = study
    (score,) = scores_as_in_braincorl(test, draws[:5], ids, resamples=200, seed=1, decoder="refit", note="simulated")
    y = test.array().astype(float)
    values = [by_hand(y, draw[::-1]) for draw in draws[:5]]
    assert score.value == pytest.approx(np.mean(values), rel=1e-9) and 0.2 < score.value < 0.8
    assert (score.metric.name, score.n, score.n_of, score.seed) == ("ev_mean", 30, "images", 1)
    assert (score.decoder, score.part, score.repeats) == ("refit", "test", "avg_voxels")
    assert f"mean over 5 context draws, sd {np.std(values, ddof=1):.3g};" in score.note
    for words in ("protocol braincorl", "intercept penalised", "intercept free", "ncsnr unknown", "; simulated"):
        assert words in score.note
    more = scores_as_in_braincorl(test, draws, ids, resamples=20)[0]
    assert more.value == pytest.approx(np.mean([by_hand(y, draw[::-1]) for draw in draws]), rel=1e-9)


def test_the_interval_draws_the_same_images_for_all_draws(study):
    _, test, ids, draws = study
    y = test.array().astype(float)
    (score,) = scores_as_in_braincorl(test, draws[:5], ids, resamples=200, seed=1)

    def again(rows):
        return np.mean([by_hand(y[rows], draw[::-1][rows]) for draw in draws[:5]])

    expected = bootstrap(again, 30, resamples=200, seed=1)
    assert score.interval.high - score.interval.low == pytest.approx(expected.high - expected.low, rel=1e-4)
    assert score.value in score.interval


def test_the_ceiling_is_the_mean_over_voxels(study):
    dataset, _, ids, draws = study
    person = dataset.subject("subj01")
    ncsnr = np.linspace(0, 2, len(person.space))
    known = dataset.with_subject(replace(person, space=replace(person.space, ncsnr=ncsnr)))
    pairs = known.pairs("subj01", "made", "test", average="repeats")
    (score,) = scores_as_in_braincorl(pairs, draws[:5], ids, resamples=20)
    assert score.ceiling == pytest.approx(np.mean(ncsnr**2 / (ncsnr**2 + 1 / 3)))
    assert "ncsnr" not in score.note


def test_bad_input(study):
    dataset, test, ids, draws = study
    with pytest.raises(BrainDataError, match="5 context draws or more, got 4"):
        scores_as_in_braincorl(test, draws[:4], ids)
    with pytest.raises(BrainDataError, match="repeats averaged"):
        scores_as_in_braincorl(dataset.pairs("subj01", "made", "test"), draws, ids)
    with pytest.raises(IdError, match="got none"):
        scores_as_in_braincorl(test, [draw[1:] for draw in draws], ids[1:])
    with pytest.raises(AxisError, match="predictions"):
        scores_as_in_braincorl(test, [*draws[:4], draws[4][:, 1:]], ids)
