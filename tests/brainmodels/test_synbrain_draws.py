"""SynBrain's draws against planted noise, and what adaptation trains."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.noise import ResidualNoise
from brainmodels.systems.synbrain.losses import mapper_loss
from brainmodels.systems.synbrain.model import BrainVAE, adapt_parameters, build_mapper, synthesize
from tests.brainmodels.synbrain_small import SMALL, SMALL_MAPPER, TOKENS, WIDTH, small_mapper, small_vae


class LatentAsResponse:
    """Decodes a latent (n, m, d) to itself, flat, so that draws of responses show the noise of the latent."""

    def decode(self, latents, num_voxels):
        return latents.flatten(1)[:, :num_voxels]


class TestNoise:
    TRIALS = 4000

    def draws(self, noise, **options):
        latents = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        out = synthesize(
            LatentAsResponse(),
            nn.Identity(),
            latents,
            TOKENS * WIDTH,
            self.TRIALS,
            noise,
            generator=generator,
            **options,
        )
        return (out - latents.flatten(1)[:, None]).numpy()  # (2, trials, m * d)

    def check(self, draws, covariance):
        """Draws are independent over images, with this covariance of their entries; bounds of 5 standard errors."""
        spread = np.sqrt(np.diag(covariance))
        for image in draws / spread:
            assert np.abs(image.mean(0)).max() < 5 / math.sqrt(self.TRIALS)
            wanted = covariance / np.outer(spread, spread)
            assert np.abs(image.T @ image / self.TRIALS - wanted).max() < 5 * math.sqrt(2 / self.TRIALS)
        between = (draws[0] * draws[1]).mean(0) / spread**2
        assert np.abs(between).max() < 5 / math.sqrt(self.TRIALS)

    def test_unit(self):
        self.check(self.draws("unit", noise_scale=0.7), 0.49 * np.eye(TOKENS * WIDTH))

    def test_posterior(self):
        sigma = torch.linspace(0.1, 3, TOKENS * WIDTH).reshape(TOKENS, WIDTH)
        self.check(self.draws("posterior", noise_scale=2.0, sigma=sigma), np.diag(4 * sigma.flatten().numpy() ** 2))

    def test_residual(self):
        factors, spread = torch.randn(2, TOKENS * WIDTH), torch.linspace(0.5, 2, TOKENS * WIDTH)
        covariance = (factors.T @ factors + torch.diag(spread**2)).numpy()
        noise = ResidualNoise(factors, spread, "repeats")
        self.check(self.draws("residual", noise_scale=0.5, residual=noise), 0.25 * covariance)

    def test_none_is_the_decoded_prediction_and_draws_begin_alike(self):
        vae, mapper = small_vae(), small_mapper()  # in training mode, which must not matter
        tokens = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
        plain = synthesize(vae, mapper, tokens, 37)
        with torch.no_grad():
            assert torch.equal(plain[:, 0], vae.decode(mapper(tokens), 37))
        residual = ResidualNoise(torch.randn(2, 37), torch.rand(37), "repeats")
        for noise in ("unit", "posterior", "residual"):
            options = {"noise": noise, "sigma": torch.rand(TOKENS, WIDTH), "residual": residual}
            few, many = (
                synthesize(vae, mapper, tokens, 37, n, generator=torch.Generator().manual_seed(3), **options)
                for n in (2, 5)
            )
            assert torch.equal(many[:, :2], few)
            assert (many[:, 1:] - many[:, :-1]).abs().amax((0, 2)).min() > 1e-3
            options["noise_scale"] = 0.0
            torch.testing.assert_close(synthesize(vae, mapper, tokens, 37, **options), plain)

    def test_mistakes(self):
        vae, mapper, tokens = LatentAsResponse(), nn.Identity(), torch.zeros(2, TOKENS, WIDTH)
        for options, message in (
            ({"num_trials": 2}, "exactly one trial without noise, got num_trials=2"),
            ({"num_trials": 0, "noise": "unit"}, "at least one trial, got num_trials=0"),
            ({"noise": "posterior"}, "expected sigma, fitted to training trials"),
            ({"noise": "residual"}, "expected residual, fitted to training trials"),
            ({"noise": "posteriors"}, "got 'posteriors'; near: posterior"),
            ({"noise": "posterior", "sigma": torch.ones(WIDTH, TOKENS)}, r"sigma \(6, 10\), got \(10, 6\)"),
            (
                {"noise": "residual", "residual": ResidualNoise(torch.ones(1, 9), torch.ones(9), "repeats")},
                r"predicted responses \(n, 9\).*got \(2, 60\)",
            ),
        ):
            with pytest.raises(BrainDataError, match=message):
                synthesize(vae, mapper, tokens, 60, **options)


class TestResidualNoise:
    def planted(self, repeats=2, images=2000, voxels=30, seed=0):
        """Trials of images with strong effects, and the covariance of their noise: two patterns and unequal spreads."""
        rng = np.random.default_rng(seed)
        factors = rng.normal(size=(2, voxels)) * [[1.5], [0.8]]
        spread = rng.uniform(0.3, 2, voxels)
        effects = np.repeat(5 * rng.normal(size=(images, voxels)), repeats, 0)
        shape = (images * repeats, voxels)
        noise = rng.normal(size=(len(effects), 2)) @ factors + rng.normal(size=shape) * spread
        order = rng.permutation(len(effects))
        ids = np.repeat([f"made:{i}" for i in range(images)], repeats)[order]
        return (effects + noise)[order], ids, factors.T @ factors + np.diag(spread**2)

    @pytest.mark.parametrize("repeats", [2, 3])
    def test_recovers_planted_trial_noise(self, repeats):
        """Without the factor k / (k - 1) variances would come out half as large with two repeats."""
        responses, ids, covariance = self.planted(repeats)
        single = np.full((5, responses.shape[1]), 1e3)  # images with one trial say nothing about noise
        noise = ResidualNoise.fit(
            np.concatenate([responses, single]), [*ids, *(f"single:{i}" for i in range(5))], rank=2
        )
        assert noise.around == "repeats"
        found = (noise.factors.T @ noise.factors).double().numpy() + np.diag(noise.spread.double().numpy() ** 2)
        np.testing.assert_allclose(np.diag(found), np.diag(covariance), rtol=0.15)
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs((found - covariance) / scale).max() < 0.15
        predicted = torch.zeros(5_000, len(found), dtype=torch.float64)
        draws = noise.sample(predicted, torch.Generator().manual_seed(0)).numpy()
        np.testing.assert_allclose(draws.var(0), np.diag(covariance), rtol=0.15)

    def test_white_noise_gets_no_patterns(self):
        """The factors of probabilistic PCA, in which what noise alone would show is taken off."""
        rng = np.random.default_rng(1)
        responses = rng.normal(size=(8000, 20))
        noise = ResidualNoise.fit(responses, np.repeat([f"made:{i}" for i in range(4000)], 2), rank=3)
        assert noise.factors.square().sum(0).max() < 0.05
        np.testing.assert_allclose(noise.spread, 1, atol=0.05)

    def test_without_repeats_around_predictions(self):
        responses, ids, covariance = self.planted(repeats=1)
        effects = np.random.default_rng(5).normal(size=responses.shape)
        rng = np.random.default_rng(6)
        noise = rng.multivariate_normal(np.zeros(len(covariance)), covariance, size=len(responses))
        fitted = ResidualNoise.fit(effects + noise, ids, predictions=effects, rank=2)
        assert fitted.around == "predictions"
        found = fitted.factors.square().sum(0) + fitted.spread**2
        np.testing.assert_allclose(found, np.square(noise).mean(0), rtol=1e-4)

    def test_mistakes(self):
        responses, ids = np.random.default_rng(0).normal(size=(6, 4)), list("aabbcc")
        for arguments, message in (
            ((responses, ids[:5]), r"responses \(5, V\)"),
            ((responses, list("abcdef")), "repeats, or predictions"),
            ((responses, list("abcdef"), responses[:, :3]), r"predictions \(6, 4\)"),
        ):
            with pytest.raises(BrainDataError, match=message):
                ResidualNoise.fit(*arguments, rank=2)
        with pytest.raises(AxisError, match=r"rank of 1 to below 4 \(6 residuals\), got 4"):
            ResidualNoise.fit(responses, ids, rank=4)


class TestAdaptation:
    @pytest.mark.parametrize(("part", "millions"), [("mlp", 177.3), ("attn", 88.7), ("all", 410.4), ("none", 0)])
    def test_share_of_the_mapper_of_the_paper(self, part, millions):
        with torch.device("meta"):
            vae, mapper = BrainVAE(TOKENS, WIDTH, SMALL), build_mapper()
            chosen = adapt_parameters(vae, mapper, part)
        assert round(sum(p.numel() for p in chosen["mapper"].values()) / 1e6, 1) == millions
        assert set(chosen["vae"]) == {name for name, _ in vae.named_parameters()}

    @pytest.mark.parametrize(
        ("part", "names"),
        [
            ("mlp", {"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}),
            ("attn", {"attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"}),
            ("none", set()),
        ],
    )
    def test_only_what_is_named_moves(self, part, names):
        vae, mapper = small_vae(), small_mapper()
        before = {name: value.clone() for name, value in mapper.state_dict().items()}
        chosen = adapt_parameters(vae, mapper, part)
        assert set(chosen["mapper"]) == {f"blocks.{i}.{name}" for i in range(SMALL_MAPPER.depth) for name in names}
        own = dict(mapper.named_parameters())
        assert all(own[name] is parameter for name, parameter in chosen["mapper"].items())
        optimizer = torch.optim.AdamW([*chosen["vae"].values(), *chosen["mapper"].values()], lr=0.1)
        tokens, target = torch.randn(2, 3, TOKENS, WIDTH, dtype=torch.float64)
        mapper_loss(mapper(tokens), target).backward()
        optimizer.step()
        moved = {name for name, value in mapper.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == set(chosen["mapper"])

    def test_all_and_unknown_parts(self):
        vae, mapper = small_vae(), small_mapper()
        assert set(adapt_parameters(vae, mapper, "all")["mapper"]) == {name for name, _ in mapper.named_parameters()}
        with pytest.raises(BrainDataError, match="got 'blocks'"):
            adapt_parameters(vae, mapper, "blocks")
