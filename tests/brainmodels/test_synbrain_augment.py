"""Synthetic pairs: what is drawn for which image, what is refused, and that a decoder can be trained on them."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.baselines import LinearDecoder
from brainmodels.errors import AxisError, BrainDataError, IdError, LeakageError
from brainmodels.features import ArrayFeatures
from brainmodels.metrics.retrieval import image_given_brain, similarity
from brainmodels.simulated import simulate
from brainmodels.systems.neuroflow.estimator import NeuroFlow
from brainmodels.systems.neuroflow.recipes import tiny as neuroflow_tiny
from brainmodels.systems.synbrain.augment import SyntheticPool
from brainmodels.systems.synbrain.estimator import SynBrain
from brainmodels.systems.synbrain.recipes import tiny as synbrain_tiny

VOXELS, IMAGES = 30, 400
TRUE = np.random.default_rng(3).standard_normal((16, VOXELS)).astype(np.float32)
SOURCE = ArrayFeatures(
    np.random.default_rng(4).standard_normal((IMAGES, 2, 8)).astype(np.float32), [f"im{i:03d}" for i in range(IMAGES)]
)


class PlantedModel:
    """Responses are features times known weights, less their mean and at a tenth of the size, plus known noise."""

    scale = 0.1

    def predict(self, features, image_ids=None, subject=None, n_trials=1, noise="none", noise_scale=1.0, seed=None):
        values = features if image_ids is None else features.get(image_ids, "tokens")
        exact = self.scale * values.reshape(len(values), -1) @ TRUE
        if noise == "none":
            return exact
        rng = np.random.default_rng(seed)
        stack = exact[:, None] + noise_scale * rng.standard_normal((len(exact), n_trials, VOXELS)).astype(np.float32)
        return stack if n_trials > 1 else stack[:, 0]


def rows_of(ids):
    return SOURCE.get(ids, "tokens").reshape(len(ids), -1)


def measured(ids, noise=2.0, seed=5):
    rng = np.random.default_rng(seed)
    return (rows_of(ids) @ TRUE + noise * rng.standard_normal((len(ids), VOXELS)) + 7).astype(np.float32)


REAL, UNSEEN, TEST = SOURCE.ids[:40], SOURCE.ids[40:300], SOURCE.ids[300:]


def pool_of(ids=UNSEEN, **options):
    return SyntheticPool(PlantedModel(), SOURCE, ids, **options)


def test_pairs_are_the_models_responses_to_their_own_images():
    drawn = pool_of(noise="unit", n_trials=3, noise_scale=0.01, seed=1).pairs()
    assert drawn.image_ids.tolist() == [name for name in UNSEEN for _ in range(3)]
    np.testing.assert_allclose(drawn.responses, 0.1 * rows_of(drawn.image_ids) @ TRUE, atol=0.06)
    assert not np.array_equal(drawn.responses[0], drawn.responses[1])  # of one image


def test_an_array_of_features_is_in_the_order_of_its_images():
    ids = UNSEEN[::-1][:20]
    drawn = SyntheticPool(PlantedModel(), SOURCE.get(ids, "tokens"), ids).pairs()
    np.testing.assert_array_equal(drawn.responses, pool_of(ids).pairs().responses)
    with pytest.raises(IdError, match="each of 19 images, got 20"):
        SyntheticPool(PlantedModel(), SOURCE.get(ids, "tokens"), ids[1:])


def test_a_seed_decides_everything():
    def made(seed, choice=0):
        pool = pool_of(noise="unit", n_trials=2, seed=seed)
        return pool.mixed(measured(REAL), REAL, seed=choice)

    first, again, other, chosen = made(1), made(1), made(2), made(1, 1)
    np.testing.assert_array_equal(first.responses, again.responses)
    assert np.array_equal(first.image_ids, again.image_ids)
    assert not np.array_equal(first.responses, other.responses)
    assert not np.array_equal(first.image_ids, chosen.image_ids)


def test_mixed_marks_what_was_drawn_and_takes_as_many_as_were_measured():
    real, pool = measured(REAL), pool_of()
    mixed = pool.mixed(real, REAL)
    assert mixed.synthetic.tolist() == [False] * 40 + [True] * 40
    np.testing.assert_array_equal(mixed.responses[:40], real)
    assert mixed.image_ids[:40].tolist() == REAL.tolist()
    # a product of one batch size may round differently from that of another, by the CPU
    np.testing.assert_allclose(mixed.responses[40:], 0.1 * rows_of(mixed.image_ids[40:]) @ TRUE, atol=1e-6)
    more = pool.mixed(real, REAL, size=100)
    assert set(mixed.image_ids[40:]) < set(more.image_ids[40:])  # a larger draw holds a smaller one
    assert not pool.mixed(real, REAL, size=0).synthetic.any()


def test_scales_are_those_of_the_measured_rows():
    real, pool = measured(REAL), pool_of()
    mean, std = real.mean(0, dtype=np.float64), real.std(0, ddof=1, dtype=np.float64)
    plain = pool.mixed(real, REAL)
    scored = pool.mixed(real, REAL, scale="train_z")
    np.testing.assert_allclose(scored.responses, (plain.responses - mean) / std, atol=1e-5)
    matched = pool.mixed(real, REAL, scale="matched")
    np.testing.assert_array_equal(matched.responses[:40], real)
    np.testing.assert_allclose(matched.responses[40:].mean(0), mean, atol=1e-4)
    np.testing.assert_allclose(matched.responses[40:].std(0, ddof=1), std, rtol=1e-4)
    with pytest.raises(BrainDataError, match="scale"):
        pool.mixed(real, REAL, scale="z")
    still = real.copy()
    still[:, 4] = 1
    with pytest.raises(BrainDataError, match="measured pairs, got 1 that do not, such as 4"):
        pool.mixed(still, REAL, scale="train_z")


def test_every_batch_has_its_share_and_every_pair_its_turn():
    real = measured(REAL)
    batches = list(pool_of().batches(real, REAL, batch_size=10, share=0.3, steps=40, seed=2))
    assert [int(batch.synthetic.sum()) for batch in batches] == [3] * 40
    seen = np.concatenate([batch.image_ids[~batch.synthetic] for batch in batches])
    assert np.unique(seen, return_counts=True)[1].tolist() == [7] * 40  # 280 turns for 40 pairs
    drawn = np.concatenate([batch.image_ids[batch.synthetic] for batch in batches])
    assert np.unique(drawn, return_counts=True)[1].tolist() == [3] * 40
    exact = {name: row for name, row in zip(REAL, real, strict=True)}
    for batch in batches[:3]:
        for name, row, synthetic in zip(*[batch.image_ids, batch.responses, batch.synthetic], strict=True):
            if synthetic:
                np.testing.assert_allclose(row, (0.1 * rows_of([name]) @ TRUE)[0], atol=1e-6)
            else:
                np.testing.assert_array_equal(row, exact[name])
    again = list(pool_of().batches(real, REAL, batch_size=10, share=0.3, steps=2, seed=2))
    assert again[1].image_ids.tolist() == batches[1].image_ids.tolist()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_none_or_all(share):
    (batch,) = pool_of().batches(measured(REAL), REAL, batch_size=8, share=share, steps=1)
    assert batch.synthetic.mean() == share


def test_what_is_refused():
    split = replace(simulated().split("shared"), test=frozenset(TEST))
    real = measured(REAL)
    with pytest.raises(LeakageError, match="no synthetic pairs of images that split 'shared' tests on, got 1, such as"):
        pool_of([*UNSEEN, TEST[0]], split=split)
    with pytest.raises(LeakageError, match="no measured pairs"):
        pool_of(split=split).mixed(measured(TEST), TEST)
    with pytest.raises(IdError, match=r"got 2 that were, such as im000; allow_known=True"):
        pool_of([*UNSEEN, *REAL[:2]]).mixed(real, REAL)
    assert len(pool_of([*UNSEEN, *REAL[:2]]).mixed(real, REAL, allow_known=True).image_ids) == 80
    with pytest.raises(IdError, match=r"im040 2 times; n_trials repeats images"):
        pool_of([*UNSEEN, UNSEEN[0]])
    with pytest.raises(IdError, match="unique image ids of a pool, got none"):
        pool_of([])
    with pytest.raises(IdError, match="expected image_ids of the measured responses"):
        pool_of().mixed(real)
    with pytest.raises(BrainDataError, match="size from 0 to the 260 pairs of the pool, got 300"):
        pool_of().mixed(real, REAL, size=300)
    with pytest.raises(AxisError, match="of 30 voxels, as the model has, got 29"):
        pool_of().mixed(real[:, :-1], REAL)
    with pytest.raises(BrainDataError, match="share from 0 to 1"):
        next(pool_of().batches(real, REAL, batch_size=4, share=1.5, steps=1))
    with pytest.raises(BrainDataError, match="expected synthetic pairs for a share"):
        next(pool_of().batches(real, REAL, batch_size=4, share=0.5, steps=1, size=0))


def test_true_responses_of_more_images_make_a_better_decoder():
    """The planted model is right about images that nobody was shown: with it, decoding must improve."""
    real, test = measured(REAL, noise=8), measured(TEST, noise=8, seed=6)

    def top1(size):
        mixed = pool_of().mixed(real, REAL, size=size, scale="matched")
        decoder = LinearDecoder(device="cpu").fit(mixed.responses, rows_of(mixed.image_ids), groups=mixed.image_ids)
        return image_given_brain(similarity(decoder.predict(test), rows_of(TEST)))

    assert top1(260) > top1(0) + 0.1  # 0.31 and 0.13 of 100


def simulated():
    return simulate("tiny", seed=2, n_subjects=1)


@pytest.mark.parametrize("system", ["SynBrain", "NeuroFlow"])
def test_both_systems_draw_pairs_in_the_units_of_the_fit(system):
    dataset = simulated()
    ids = dataset.stimuli.ids
    tokens = np.random.default_rng(0).standard_normal((len(ids), 16, 32)).astype(np.float32)
    source, split = ArrayFeatures(tokens, ids), dataset.split("shared")
    train = dataset.pairs("sim01", split, "train")
    made = {"SynBrain": (SynBrain, synbrain_tiny()), "NeuroFlow": (NeuroFlow, neuroflow_tiny())}
    model_of, recipe = made[system]
    recipe = replace(recipe, stage1=replace(recipe.stage1, steps=2), stage2=replace(recipe.stage2, steps=2))
    model = model_of(recipe, device="cpu").fit(source, train, subject="sim01", validation=0.0, alignment="off")
    unseen = sorted(split.val)
    pool = SyntheticPool(model, source, unseen, "residual", n_trials=20, split=split)
    mixed = pool.mixed(train, size=len(pool))
    real, drawn = mixed.responses[~mixed.synthetic], mixed.responses[mixed.synthetic]
    assert len(real) == len(train) and len(drawn) == 20 * len(unseen)
    assert np.corrcoef(drawn.mean(0), real.mean(0))[0, 1] > 0.8  # voxels have means of their own
    within = drawn.reshape(len(unseen), 20, -1).var(1, ddof=1).mean(0)
    repeats = real.reshape(-1, 3, real.shape[1]).var(1, ddof=1).mean(0)
    assert abs(np.median(within / repeats) - 1) < 0.1
    with pytest.raises(LeakageError, match="those of 'test'"):
        pool.mixed(dataset.pairs("sim01", split, "test"))
    with pytest.raises(BrainDataError, match="exactly one trial without noise"):
        SyntheticPool(model, source, unseen, n_trials=2).pairs()
