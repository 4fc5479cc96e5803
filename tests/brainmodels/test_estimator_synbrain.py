"""SynBrain fitted to simulated subjects: noise, latents, adaptation to another subject, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainmodels.baselines import Ridge
from brainmodels.errors import BrainDataError
from brainmodels.features import ArrayFeatures
from brainmodels.metrics.encoding import r2, voxel_r
from brainmodels.simulated import Preset, planted_features, simulate
from brainmodels.systems.synbrain import SynBrain
from brainmodels.training.linear import LinearMap
from tests.brainmodels.fitted import (
    LEARNING,
    SYNBRAIN,
    features,
    fitted,
    learned,
    learned_from,
    pairing_z,
    pairs,
    saved,
    small,
    tiny_features,
    tiny_study,
    with_values,
)

BOTH = pytest.mark.parametrize("system", ["neuroflow", "synbrain"])
IDS = [f"sim1:{number:06d}" for number in range(7)]


def drawn(system, **options):
    return fitted(system).predict(features(), image_ids=IDS, **options)


class TestNoise:
    @BOTH
    def test_without_noise_nothing_is_drawn(self, system):
        fitted(system)
        state = torch.get_rng_state()
        plain = drawn(system)
        assert plain.shape == (7, 24) and plain.dtype == np.float32
        for options in ({}, {"seed": 1}, {"noise": "residual", "noise_scale": 0.0, "seed": 4}):
            np.testing.assert_allclose(drawn(system, **options), plain, atol=1e-6)
        assert torch.equal(torch.get_rng_state(), state)
        tokens = features().get(IDS, "tokens")
        np.testing.assert_array_equal(fitted(system).predict(tokens), plain)
        np.testing.assert_array_equal(fitted(system).predict(torch.from_numpy(tokens)), plain)

    @BOTH
    @pytest.mark.parametrize("noise", ["unit", "posterior", "residual"])
    def test_a_seed_draws_the_same(self, system, noise):
        stack = drawn(system, noise=noise, n_trials=3, seed=5)
        assert stack.shape == (7, 3, 24)
        np.testing.assert_array_equal(drawn(system, noise=noise, n_trials=3, seed=5), stack)
        np.testing.assert_array_equal(drawn(system, noise=noise, seed=5), stack[:, 0])
        assert np.abs(drawn(system, noise=noise, n_trials=3, seed=6) - stack).max() > 1e-3
        assert np.abs(drawn(system, noise=noise, n_trials=3) - drawn(system, noise=noise, n_trials=3)).max() > 1e-3
        assert np.abs(np.diff(stack, axis=1)).max() > 1e-3

    @BOTH
    def test_trials_without_noise_are_refused(self, system):
        with pytest.raises(BrainDataError, match="exactly one trial without noise, got num_trials=2"):
            drawn(system, n_trials=2)
        with pytest.raises(BrainDataError, match="got 'residuals'; near: residual"):
            drawn(system, noise="residuals")

    @BOTH
    def test_draws_of_the_latent_reach_the_units_of_the_caller(self, system):
        """Noise of a recording in units 1000 times larger is 1000 times larger."""
        large = with_values(lambda values: 1000 * values)
        model = small(system).fit(features(), pairs(dataset=large), subject="sim01")
        for noise in ("posterior", "residual"):
            options = {"image_ids": IDS, "noise": noise, "n_trials": 300, "seed": 1}
            spread = model.predict(features(), **options).std(1).mean()
            assert spread == pytest.approx(1000 * fitted(system).predict(features(), **options).std(1).mean(), rel=3e-2)

    @BOTH
    def test_sigma_is_the_mean_over_training_trials(self, system):
        model, scale = fitted(system), fitted(system).scales_["sim01"]
        data = small(system)._join(features(), pairs(), "sim01", None, None, None, False)
        total, count = 0.0, 0
        with torch.no_grad():
            for row in data.rows["train"]["sim01"]:
                response = torch.from_numpy((pairs().batch([row]) - scale.mean) / scale.std)
                total, count = total + model._posterior(response, "sim01").std[0].double(), count + 1
        assert count == data.sizes("train")["sim01"] < len(pairs())
        np.testing.assert_allclose(model.sigma_, total / count, rtol=1e-5)

    def test_residual_draws_have_the_variance_of_planted_trials(self):
        """A trial is (n x + eps) / sqrt(1 + n^2): of a voxel with mean square 1, noise has 1 / (1 + n^2)."""
        dataset = simulate(Preset("noise", (40,), (5, 5, 5), own=200, shared=20, sessions=2), seed=3, drift=False)
        tokens = planted_features(dataset, dataset.stimuli.ids)[:, :24].reshape(-1, 4, 6)
        source = ArrayFeatures(tokens, dataset.stimuli.ids)
        model = small("synbrain").fit(source, pairs(dataset=dataset), subject="sim01")
        assert model.residual_["sim01"].around == "repeats"
        ids = pairs("test", dataset=dataset, average="repeats").image_ids
        draws = model.predict(source, image_ids=ids, noise="residual", n_trials=400, seed=0)
        planted = 1 / (1 + dataset.truth["sim01"].ncsnr ** 2)
        found = draws.var(1, ddof=1).mean(0)
        assert abs(found.mean() / planted.mean() - 1) < 0.05
        assert np.abs(found / planted - 1).max() < 0.3  # 570 residuals of a voxel
        assert np.mean(np.abs(found / planted - 1) < 0.15) > 0.9
        plain = model.predict(source, image_ids=ids)
        np.testing.assert_allclose(draws.mean(1), plain, atol=0.3)

    def test_few_repeats_give_no_covariance_but_no_error(self):
        """One image with two trials among 40: two residuals are no estimate."""
        rows = np.unique(pairs().image_ids, return_index=True)[1][:40]
        rows = np.append(rows, np.flatnonzero(pairs().image_ids == pairs().image_ids[rows[0]])[1])
        model = small("synbrain").fit(
            features(),
            pairs().batch(rows),
            image_ids=pairs().image_ids[rows],
            validation=0.0,
            alignment="off",
        )
        assert model.residual_ == {}
        with pytest.raises(BrainDataError, match="expected residual, fitted to training trials"):
            model.predict(features(), image_ids=IDS, noise="residual")


def test_latents_are_the_mean_of_the_posterior():
    model, test = fitted("synbrain"), pairs("test")
    mean, std = model.posterior(test)
    scale = model.scales_["sim01"]
    with torch.no_grad():
        truth = model.vae_.encode(torch.from_numpy((test.array() - scale.mean) / scale.std))
    np.testing.assert_allclose(mean, truth.mean, atol=1e-5)
    np.testing.assert_allclose(std, truth.std, atol=1e-5)
    np.testing.assert_array_equal(model.latents(test), mean)


@BOTH
def test_score_is_r2_of_each_voxel(system):
    test = pairs("test")
    measured, predicted = test.array(), fitted(system).predict(features(), image_ids=test.image_ids)
    found = fitted(system).score(features(), test, image_ids=test.image_ids)
    exact = measured.astype(np.float64)
    residual = np.square(exact - predicted).sum(0)
    np.testing.assert_allclose(found, 1 - residual / np.square(exact - exact.mean(0)).sum(0), rtol=1e-9)
    np.testing.assert_array_equal(found, r2(measured, predicted, axis=0))


@BOTH
def test_fit_starts_afresh(system, tmp_path):
    model = small(system).fit(features(), pairs(subject="sim02"), subject="other")
    model.fit(features(), pairs(), subject="sim01")
    assert saved(model, tmp_path / "a") == saved(fitted(system), tmp_path / "b")
    assert model.subjects_ == ("sim01",)


class TestReadout:
    """Ridge from latents to voxels in place of the decoder."""

    def test_linear_is_ridge_on_the_latents_of_training_images(self, tmp_path):
        model = small("synbrain", readout="linear", validation=0.0).fit(features(), pairs(), subject="sim01")
        train, ids, scale = pairs(average="repeats"), pairs("test").image_ids, model.scales_["sim01"]
        order = np.argsort(train.image_ids)
        with torch.no_grad():
            X, X_test = (
                model.mapper_(torch.from_numpy(model.tokens(features(), x))).flatten(1).numpy()
                for x in (train.image_ids[order], ids)
            )
        mean, std = X.mean(0), X.std(0)
        fitted = Ridge().fit((X - mean) / std, (train.array()[order] - scale.mean) / scale.std)
        expected = fitted.predict((X_test - mean) / std) * scale.std + scale.mean
        got = model.predict(features(), image_ids=ids)
        np.testing.assert_allclose(got, expected, atol=1e-3 * scale.std.max())
        again = SynBrain.load(model.save(tmp_path / "model"))
        draws = {"n_trials": 2, "noise": "posterior", "seed": 1, "image_ids": ids}
        np.testing.assert_array_equal(again.predict(features(), **draws), model.predict(features(), **draws))

    def test_the_better_one_on_validation_images_is_chosen(self, monkeypatch):
        model = small("synbrain", readout="chosen", validation=0.2).fit(features(), pairs(), subject="sim01")
        assert list(model.readouts_) == ["sim01"]  # six steps train no decoder
        monkeypatch.setattr(LinearMap, "__call__", lambda self, X: np.full((len(X), 24), 1e3, np.float32))
        model = small("synbrain", readout="chosen", validation=0.2).fit(features(), pairs(), subject="sim01")
        assert not model.readouts_
        with pytest.raises(BrainDataError, match="expected readout to be one of decoder, linear, chosen, got 'best'"):
            small("synbrain", readout="best")


class TestAdaptation:
    def adapted(self, **options):
        options = {"subject": "sim02", "steps": (3, 3)} | options
        return fitted("synbrain").adapt(features(), pairs(subject="sim02"), **options)

    def test_another_number_of_voxels_and_the_source_stays(self, tmp_path):
        before, plain = saved(fitted("synbrain"), tmp_path / "before"), drawn("synbrain")
        meta = dict(fitted("synbrain").meta_)
        model = self.adapted()
        assert model.subjects_ == ("sim02",) and list(model.scales_) == ["sim02"]
        assert model.predict(features(), image_ids=IDS).shape == (7, 30)
        train = pairs(subject="sim02").array()
        np.testing.assert_allclose(model.scales_["sim02"].mean, train.mean(0), atol=0.1)
        assert model.scaler_ is fitted("synbrain").scaler_
        assert model.meta_["adapted_from"] == {"subjects": ["sim01"], "train_images": meta["train_images"]}
        assert [stage["steps"] for stage in model.meta_["stages"]] == [3, 3]
        assert saved(fitted("synbrain"), tmp_path / "after") == before and fitted("synbrain").meta_ == meta
        np.testing.assert_array_equal(drawn("synbrain"), plain)
        loaded = type(model).load(model.save(tmp_path / "model"))
        assert saved(loaded, tmp_path / "b") == saved(model, tmp_path / "a")

    @pytest.mark.parametrize("part", ["mlp", "attn", "all", "none", None])
    def test_only_what_is_named_moves(self, part):
        source, model = fitted("synbrain"), self.adapted(train_mapper=part)
        before, after = source.mapper_.state_dict(), model.mapper_.state_dict()
        found = {name for name in before if not torch.equal(before[name], after[name])}
        names = [name for name, _ in source.mapper_.named_parameters()]
        inner = {"mlp": ".mlp.", "attn": ".attn.", "none": "nothing", None: ".mlp."}.get(part, "")
        expected = {name for name in names if part == "all" or (name.startswith("blocks.") and inner in name)}
        idle = {name for name in expected if not torch.count_nonzero(dict(model.mapper_.named_parameters())[name])}
        assert found == expected - idle and len(idle) <= 1
        before, after = source.vae_.state_dict(), model.vae_.state_dict()
        assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
        assert len(model.meta_["stages"]) == (1 if part == "none" else 2)

    def test_length_of_the_stages_is_the_recipe_s(self):
        recipe = replace(SYNBRAIN, adapt1=replace(SYNBRAIN.adapt1, steps=2), adapt2=replace(SYNBRAIN.adapt2, steps=4))
        source = small("synbrain", recipe).fit(features(), pairs())
        model = source.adapt(features(), pairs(subject="sim02"))
        assert [stage["steps"] for stage in model.meta_["stages"]] == [2, 4]
        with pytest.raises(BrainDataError, match="got 'mpl'"):
            source.adapt(features(), pairs(subject="sim02"), train_mapper="mpl")

    @pytest.mark.slow
    def test_it_beats_the_same_steps_from_scratch(self):
        """60 images of another subject with three trials each."""
        dataset, steps = tiny_study(), (60, 120)
        train = pairs(subject="sim02", dataset=dataset)
        rows = np.flatnonzero(np.isin(train.image_ids, np.unique(train.image_ids)[:60]))
        given = {"image_ids": train.image_ids[rows], "subject": "sim02", "alignment": "off"}
        values = train.batch(rows)
        recipe = LEARNING["synbrain"]
        stages = {
            name: replace(getattr(recipe, name), steps=count)
            for name, count in zip(("stage1", "stage2"), steps, strict=True)
        }
        scratch = small("synbrain", recipe, **stages).fit(tiny_features(), values, **given)
        adapted = {
            part: learned("synbrain").adapt(tiny_features(), values, steps=steps, train_mapper=part, **given)
            for part in ("none", "mlp", "all")
        }
        test = pairs("test", "sim02", dataset, average="repeats")

        def score(model):
            return voxel_r(test.array(), model.predict(tiny_features(), image_ids=test.image_ids)).mean()

        scores = {part: score(model) for part, model in adapted.items()} | {"scratch": score(scratch)}
        assert min(scores["mlp"], scores["all"]) > scores["scratch"] + 0.03, scores
        assert scores["mlp"] > scores["none"], scores


class TestLearning:
    def test_it_beats_the_mean_map_and_noise_costs(self):
        test = pairs("test", dataset=tiny_study(), average="repeats")
        scores = {}
        for noise in ("none", "posterior", "unit"):
            options = {"noise": noise, "noise_scale": 1.0, "seed": 0}
            found = learned("synbrain").predict(tiny_features(), image_ids=test.image_ids, **options)
            scores[noise] = voxel_r(test.array(), found).mean()
        assert scores["none"] > 0.25
        assert pairing_z(test.array(), learned("synbrain").predict(tiny_features(), image_ids=test.image_ids)) > 6
        assert scores["none"] >= scores["posterior"] - 0.02 >= scores["unit"] - 0.04
        assert scores["none"] > scores["unit"] + 0.02
        model = learned("synbrain")
        assert np.nanmean(model.score(tiny_features(), test, image_ids=test.image_ids)) > 0.03  # the mean map has 0

    @pytest.mark.slow
    def test_shuffled_ids_give_chance(self):
        train = pairs(dataset=tiny_study())
        wrong = np.random.default_rng(0).permutation(train.image_ids)
        model = learned_from("synbrain", train.array(), image_ids=wrong, alignment="off")
        test = pairs("test", dataset=tiny_study(), average="repeats")
        found = model.predict(tiny_features(), image_ids=test.image_ids)
        assert abs(pairing_z(test.array(), found)) < 4
