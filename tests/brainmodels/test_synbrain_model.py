"""SynBrain's networks, losses and draws against definitions in fp64, brute force and planted noise."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn import Posterior
from brainmodels.synbrain.losses import mapper_loss, stage_one_loss, total_variance
from brainmodels.synbrain.model import (
    BrainVAE,
    BrainVAEOutput,
    ResidualNoise,
    adapt_parameters,
    build_mapper,
    mean_posterior_sigma,
    synthesize,
)
from brainmodels.synbrain.recipes import (
    MapperSize,
    Stage,
    SynBrainRecipe,
    VAESize,
    named,
    paper,
    tiny,
    veca,
    veca_cores,
)

SMALL = VAESize(stem=16, channels=(64, 64), blocks=1, pool=32, hidden=16)
TOKENS, WIDTH = 6, 10
SMALL_MAPPER = MapperSize(width=12, depth=2, heads=3)


def small_vae(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return BrainVAE(TOKENS, WIDTH, SMALL).to(dtype)


def small_mapper(seed=0, conditioning="adaln", trained=True):
    """A mapper in fp64; `trained` fills in what begins at zero."""
    torch.manual_seed(seed)
    mapper = build_mapper(TOKENS, WIDTH, replace(SMALL_MAPPER, conditioning=conditioning)).double()
    if trained:
        for parameter in mapper.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return mapper


def numbers(module, buffers=False):
    parts = [*module.parameters(), *(module.buffers() if buffers else [])]
    return sum(part.numel() for part in parts)


class TestSizes:
    def test_vae_of_the_paper(self):
        with torch.device("meta"):
            vae = BrainVAE()
        assert numbers(vae) == 78_311_937
        assert numbers(vae.stem) + numbers(vae.down) + numbers(vae.to_tokens) == 12_347_904
        assert numbers(vae.from_tokens) + numbers(vae.up) + numbers(vae.head) == 17_927_681
        assert numbers(vae.mean) == numbers(vae.logvar) == 16_012_928
        assert not list(vae.buffers())

    @pytest.mark.parametrize(
        ("tokens", "width", "size", "millions"),
        [
            (256, 768, VAESize(), 72.8),
            (256, 768, VAESize(pool=4096, hidden=1024), 42.1),
            (64, 768, VAESize(), 71.4),
            (16, 32, tiny().vae, 0.2),
        ],
    )
    def test_other_vaes(self, tokens, width, size, millions):
        with torch.device("meta"):
            assert round(numbers(BrainVAE(tokens, width, size)) / 1e6, 1) == millions

    @pytest.mark.parametrize(
        ("recipe", "depth", "count"), [(paper(), 8, 410_856_576), (paper(), 12, 610_316_928), (tiny(), 3, 258_208)]
    )
    def test_mappers_with_their_position_code(self, recipe, depth, count):
        with torch.device("meta"):
            mapper = build_mapper(recipe.num_tokens, recipe.token_width, replace(recipe.mapper, depth=depth))
        assert numbers(mapper, buffers=True) == count
        assert numbers(mapper) == count - recipe.num_tokens * recipe.mapper.width

    def test_mapper_of_veca(self):
        with torch.device("meta"):
            assert round(numbers(build_mapper(256, 768, veca().mapper)) / 1e6, 1) == 87.6

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (VAESize(pool=100, num_down=2, channels=(8, 8, 8)), None),
            (VAESize(pool=90, num_down=2, channels=(8, 8, 8)), r"pool divisible by 2\^num_down = 4, got pool=90"),
            (VAESize(stem_kernel=4), "odd stem_kernel.*got 4"),
            (VAESize(channels=(8, 8), num_down=2, pool=64), r"than the 2 levels \(8, 8\), got 2"),
        ],
    )
    def test_size_rules(self, size, message):
        with torch.device("meta"):
            if message is None:
                assert BrainVAE(8, 8, size).from_latent[-1].out_features == 25
            else:
                with pytest.raises(BrainDataError, match=message):
                    BrainVAE(8, 8, size)

    def test_mapper_rule(self):
        with pytest.raises(BrainDataError, match="divisible by num_heads=5, got 12"):
            build_mapper(4, 4, MapperSize(width=12, depth=1, heads=5))


class TestVoxels:
    @pytest.mark.parametrize("voxels", [1, 2, 31, 32, 33, 97, 1000])
    def test_any_number_by_the_definitions_of_pooling_and_interpolation(self, voxels):
        vae = small_vae().eval()
        seen = {}
        vae.stem.register_forward_hook(lambda m, args, out: seen.update(stem=out))
        vae.down.register_forward_pre_hook(lambda m, args: seen.update(pooled=args[0]))
        vae.up.register_forward_hook(lambda m, args, out: seen.update(up=out))
        vae.head.register_forward_pre_hook(lambda m, args: seen.update(stretched=args[0]))
        with torch.no_grad():
            out = vae(torch.randn(2, voxels, dtype=torch.float64))
        assert out.reconstruction.shape == (2, voxels)

        stem, length = seen["stem"].numpy(), SMALL.pool
        bins = [slice(i * voxels // length, -(-(i + 1) * voxels // length)) for i in range(length)]
        np.testing.assert_array_equal(seen["pooled"], np.stack([stem[..., b].max(-1) for b in bins], -1))
        up = seen["up"].numpy().reshape(-1, length)
        places = np.linspace(0, length - 1, voxels)
        wanted = np.stack([np.interp(places, np.arange(length), row) for row in up])
        np.testing.assert_allclose(seen["stretched"].numpy().reshape(-1, voxels), wanted, atol=1e-12)

    def test_the_channel_axis_is_optional_and_others_are_refused(self):
        vae = small_vae().eval()
        responses = torch.randn(3, 41, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(vae.encode(responses[:, None]).mean, vae.encode(responses).mean, rtol=0, atol=0)
        for shape in ((41,), (3, 2, 41), (3, 0)):
            with pytest.raises(AxisError, match=r"expected responses \(B, V\)"):
                vae.encode(torch.zeros(shape, dtype=torch.float64))
        with pytest.raises(AxisError, match=r"latents \(B, 6, 10\), got \(2, 10, 6\)"):
            vae.decode(torch.zeros(2, 10, 6), 41)
        with pytest.raises(AxisError, match="num_voxels=0"):
            vae.decode(torch.zeros(2, 6, 10), 0)


class TestBrainVAE:
    def test_posterior_by_its_formula(self):
        """Three times LayerNorm, GELU, Linear along the length of each token; log variances are clamped."""
        vae = small_vae().eval()
        vae.logvar[-1].bias.data += torch.linspace(-60, 60, WIDTH, dtype=torch.float64)
        seen = {}
        vae.to_tokens.register_forward_hook(lambda m, args, out: seen.update(tokens=out))
        with torch.no_grad():
            posterior = vae.encode(torch.randn(2, 50, dtype=torch.float64))
        for branch, found in ((vae.mean, posterior.mean), (vae.logvar, posterior.logvar)):
            x = seen["tokens"].detach().numpy()
            for norm, linear in ((branch[0], branch[2]), (branch[3], branch[5]), (branch[6], branch[8])):
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
                x = x * np.vectorize(lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2))))(x)
                x = x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
            x = x if branch is vae.mean else x.clip(-30, 20)
            np.testing.assert_allclose(found, x, atol=1e-10)
        assert posterior.logvar.min() == -30 and posterior.logvar.max() == 20

    def test_only_the_direction_of_a_token_is_decoded(self):
        vae = small_vae().eval()
        latents = 100 * torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
        moved = 3 * latents + torch.randn(2, TOKENS, 1, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(vae.decode(moved, 30), vae.decode(latents, 30), rtol=0, atol=1e-7)
            assert (vae.decode(latents.flip(-1), 30) - vae.decode(latents, 30)).abs().max() > 1e-3

    def test_samples_in_training_and_the_mean_in_use(self):
        vae = small_vae()
        responses = torch.randn(2, 29, dtype=torch.float64)
        with torch.no_grad():
            drawn = vae.train()(responses, torch.Generator().manual_seed(5))
            noise = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            wanted = drawn.posterior.mean + (drawn.posterior.logvar / 2).exp() * noise
            torch.testing.assert_close(drawn.latents, wanted)
            torch.testing.assert_close(drawn.reconstruction, vae.decode(wanted, 29))
            used = vae.eval()(responses)
        assert torch.equal(used.latents, used.posterior.mean)

    def test_gradient_reaches_every_parameter_also_when_recomputed(self):
        responses = torch.randn(4, 53, dtype=torch.float64)
        tokens = torch.randn(4, TOKENS, WIDTH, dtype=torch.float64)
        gradients = []
        for checkpointing in (False, True):
            vae = small_vae()
            vae.checkpointing = checkpointing
            output = vae(responses, torch.Generator().manual_seed(0))
            stage_one_loss(output, responses, tokens, 0.1, 10.0).total.backward()
            gradients.append({name: parameter.grad for name, parameter in vae.named_parameters()})
        # a constant added to a token is removed by the LayerNorm of `mean` and `logvar`: exactly no gradient
        assert gradients[0]["to_tokens.bias"].abs().max() < 1e-12
        for name, gradient in gradients[0].items():
            assert name == "to_tokens.bias" or gradient.abs().max() > 1e-7, name
            torch.testing.assert_close(gradients[1][name], gradient)

    def test_mean_posterior_sigma_counts_trials_not_batches(self):
        vae = small_vae().eval()
        responses = torch.randn(7, 20, dtype=torch.float64)
        with torch.no_grad():
            wanted = torch.stack([(vae.encode(row[None]).logvar[0] / 2).exp() for row in responses]).mean(0)
        found = mean_posterior_sigma(vae, responses.split([1, 4, 2]))
        torch.testing.assert_close(found, wanted.float())
        with pytest.raises(AxisError, match="at least one trial"):
            mean_posterior_sigma(vae, [])


class TestMapper:
    def test_a_new_one_returns_zeros(self):
        tokens = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
        assert not small_mapper(trained=False)(tokens).any()
        assert small_mapper()(tokens).abs().min() > 0

    @pytest.mark.parametrize("conditioning", ["adaln", "plain"])
    def test_gradient_reaches_every_parameter(self, conditioning):
        mapper = small_mapper(conditioning=conditioning)
        tokens, target = torch.randn(2, 3, TOKENS, WIDTH, dtype=torch.float64)
        mapper_loss(mapper(tokens), target).backward()
        for name, parameter in mapper.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, name

    @torch.no_grad()
    def test_plain_conditioning_expresses_the_same_function(self):
        """At time 0 the modulation is constant: scales and shifts fold into the norms, gates into what they gate."""
        adaln, plain = small_mapper(), small_mapper(1, "plain")
        plain.load_state_dict(adaln.state_dict(), strict=False)
        condition = nn.functional.silu(adaln.time(torch.zeros(1, dtype=torch.float64)))
        for source, block in zip(adaln.blocks, plain.blocks, strict=True):
            b1, s1, g1, b2, s2, g2 = source.modulation(condition)[0].chunk(6)
            folded = ((block.norm1, b1, s1, g1, block.attn.proj), (block.norm2, b2, s2, g2, block.mlp.fc2))
            for norm, shift, scale, gate, last in folded:
                norm.weight.copy_(1 + scale)
                norm.bias.copy_(shift)
                last.weight.mul_(gate[:, None])
                last.bias.mul_(gate)
        shift, scale = adaln.modulation(condition)[0].chunk(2)
        plain.norm.weight.copy_(1 + scale)
        plain.norm.bias.copy_(shift)
        tokens = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(plain(tokens), adaln(tokens), rtol=1e-10, atol=1e-10)


class TestLosses:
    B, V = 5, 7

    def made(self, seed=0):
        torch.manual_seed(seed)
        mean, logvar, tokens = torch.randn(3, self.B, TOKENS, WIDTH, dtype=torch.float64)
        latents = mean + (logvar / 2).exp() * torch.randn_like(mean)
        responses, predicted = torch.randn(2, self.B, self.V, dtype=torch.float64)
        return BrainVAEOutput(predicted, latents, Posterior(mean, logvar)), responses, tokens

    def contrast(self, brain, image, temperature):
        """SoftCLIP of lists of vectors, by loops."""
        brain, image = ([x / math.sqrt((x**2).sum()) for x in side.flatten(1).numpy()] for side in (brain, image))
        total = 0.0
        for i in range(len(image)):
            target = np.exp([image[i] @ other / temperature for other in image])
            for logits in ([brain[i] @ x for x in image], [image[i] @ x for x in brain]):
                logits = np.array(logits) / temperature
                total -= (target / target.sum()) @ (logits - np.log(np.exp(logits).sum())) / 2
        return total / len(image)

    def test_stage_one_by_loops(self):
        output, responses, tokens = self.made()
        loss = stage_one_loss(output, responses[:, None], tokens, 0.3, 7.0, temperature=0.2)
        mean, logvar = output.posterior.mean, output.posterior.logvar
        mse = sum(float(e) ** 2 for e in (output.reconstruction - responses).flatten()) / self.B
        kl = sum(
            (float(m) ** 2 + math.exp(v) - 1 - float(v)) / 2
            for m, v in zip(mean.flatten(), logvar.flatten(), strict=True)
        )
        contrast = self.contrast(output.latents, tokens, 0.2)
        assert loss.mse.item() == pytest.approx(mse, rel=1e-12)
        assert loss.kl.item() == pytest.approx(kl / self.B, rel=1e-12)
        assert loss.soft_clip.item() == pytest.approx(contrast, rel=1e-12)
        assert loss.soft_clip_floor.item() == pytest.approx(self.contrast(tokens, tokens, 0.2), rel=1e-12)
        assert loss.total.item() == pytest.approx(mse + 0.3 * kl / self.B + 7 * contrast, rel=1e-12)
        assert loss.sigma.item() == pytest.approx(np.exp(logvar.numpy() / 2).mean(), rel=1e-12)

    def test_kl_is_that_of_torch_distributions(self):
        output, responses, tokens = self.made()
        mean, std = output.posterior.mean, output.posterior.std
        normal = torch.distributions.Normal
        wanted = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum((1, 2)).mean()
        torch.testing.assert_close(stage_one_loss(output, responses, tokens, 1, 1).kl, wanted)
        prior = BrainVAEOutput(responses, tokens, Posterior(torch.zeros_like(mean), torch.zeros_like(mean)))
        assert stage_one_loss(prior, responses, tokens, 1, 1).kl == 0

    @pytest.mark.parametrize("group", [2, 3, 5])
    def test_contrast_within_groups(self, group):
        output, responses, tokens = self.made()
        loss = stage_one_loss(output, responses, tokens, 0.0, 1.0, contrast_group=group)
        parts = list(zip(output.latents.split(group), tokens.split(group), strict=True))
        wanted = sum(self.contrast(z, x, 0.125) * len(x) for z, x in parts) / self.B
        assert loss.soft_clip.item() == pytest.approx(wanted, rel=1e-12)
        assert loss.soft_clip_floor.item() == pytest.approx(
            sum(self.contrast(x, x, 0.125) * len(x) for _, x in parts) / self.B, rel=1e-12
        )

    def test_contrast_of_equals_is_the_floor_without_gradient(self):
        output, responses, tokens = self.made()
        latents = (2 * tokens).requires_grad_()
        loss = stage_one_loss(replace(output, latents=latents), responses, tokens, 0.0, 1.0)
        assert loss.soft_clip.item() == pytest.approx(loss.soft_clip_floor.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(loss.total, latents)
        assert gradient.abs().max() < 1e-15
        assert stage_one_loss(output, responses, tokens, 0.0, 1.0).soft_clip > loss.soft_clip + 0.01

    def test_parts_have_no_gradient_and_half_precision_is_summed_in_fp32(self):
        output, responses, tokens = self.made()
        output.reconstruction.requires_grad_()
        loss = stage_one_loss(output, responses, tokens, 1.0, 1.0)
        assert loss.total.requires_grad
        assert not any(part.requires_grad for name, part in vars(loss).items() if name != "total")
        wide = torch.full((2, 70_000), 3.0, dtype=torch.float16)
        half = BrainVAEOutput(0 * wide, tokens[:2].half(), Posterior(tokens[:2].half(), tokens[:2].half()))
        assert stage_one_loss(half, wide, tokens[:2].half(), 1.0, 1.0).mse == 630_000

    def test_mistakes(self):
        output, responses, tokens = self.made()
        with pytest.raises(AxisError, match=r"\(5, 6\)"):
            stage_one_loss(output, responses[:, :6], tokens, 1.0, 1.0)
        with pytest.raises(AxisError, match=r"brain tokens \(5, 6, 9\)"):
            stage_one_loss(output, responses, tokens[..., :9], 1.0, 1.0)
        with pytest.raises(BrainDataError, match="at least 2 trials, got 1"):
            stage_one_loss(output, responses, tokens, 1.0, 1.0, contrast_group=1)

    def test_mapper_loss_is_a_mean_and_leaves_the_target_alone(self):
        predicted, target = torch.randn(2, 3, TOKENS, WIDTH, dtype=torch.float64).requires_grad_()
        loss = mapper_loss(predicted, target)
        assert loss.item() == pytest.approx(((predicted - target).detach().numpy() ** 2).mean(), rel=1e-12)
        assert torch.autograd.grad(loss, target, allow_unused=True) == (None,)

    def test_total_variance(self):
        responses = (100 + np.random.default_rng(0).normal(size=(50, 2500))).astype(np.float32)
        assert total_variance(responses) == pytest.approx(responses.astype(float).var(0).sum(), rel=1e-9)
        error = np.square(responses - responses.mean(0, dtype=float)).sum(1).mean()
        assert total_variance(responses) == pytest.approx(error, rel=1e-6)
        with pytest.raises(AxisError, match="trials, voxels"):
            total_variance(responses[0])


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


@pytest.mark.slow
def test_short_training_finds_a_planted_linear_encoding():
    """Half of the variance of 101 voxels is linear in the tokens: a model without them has correlation 0 with it."""
    recipe, voxels = tiny(), 101
    generator = torch.Generator().manual_seed(0)
    shape = (recipe.num_tokens, recipe.token_width)
    codes = torch.randn(700, 12, generator=generator)
    tokens = torch.einsum("nk,kmd->nmd", codes, torch.randn(12, *shape, generator=generator)) / 12**0.5
    signal = codes @ torch.randn(12, voxels, generator=generator) / 12**0.5
    responses = (signal + torch.randn(signal.shape, generator=generator)) / 2**0.5
    weight = recipe.contrast_weight_for(total_variance(responses[:600].numpy()))

    torch.manual_seed(0)
    vae, mapper = BrainVAE(*shape, recipe.vae), build_mapper(*shape, recipe.mapper)
    for module, steps in ((vae, 150), (mapper, 200)):
        optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.stage1.lr)
        for _ in range(steps):
            rows = torch.randint(600, (recipe.stage1.batch_size,), generator=generator)
            if module is vae:
                loss = stage_one_loss(
                    vae(responses[rows], generator), responses[rows], tokens[rows], recipe.kl_weight, weight
                ).total
            else:
                with torch.no_grad():
                    target = vae.eval().encode(responses[rows]).mean
                loss = mapper_loss(mapper(tokens[rows]), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    predicted = synthesize(vae, mapper, tokens[600:], voxels)[:, 0]
    r = [np.corrcoef(predicted[:, v], signal[600:, v])[0, 1] for v in range(voxels)]
    assert np.mean(r) > 0.6


class TestRecipes:
    @pytest.mark.parametrize("name", ["paper", "veca", "veca_cores", "tiny"])
    def test_survive_json_and_have_names(self, name):
        recipe = named(name)
        assert recipe.name == name
        assert SynBrainRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe

    def test_paper(self):
        recipe = paper()
        assert recipe.contrast_weight_for(123.0) == 1000 and recipe.kl_weight == 0.001
        assert (recipe.stage1.epochs, recipe.stage1.stop_mse, recipe.stage1.patience) == (15, 350, None)
        assert (recipe.stage2.steps, recipe.stage2.weight_decay, recipe.stage2.ema_decay) == (50_000, 0, 0.9999)
        assert recipe.validation == 0 and recipe.tokens == "raw" and recipe.adapt2.steps == 40_000

    def test_weights_of_other_scales(self):
        assert tiny().contrast_weight_for(400.0) == pytest.approx(80)
        shares = [
            recipe.kl_weight * recipe.num_tokens * recipe.token_width / variance
            for recipe, variance in ((paper(), 2000), (veca(), 15724), (veca_cores(), 15724))
        ]
        assert max(shares) / min(shares) < 1.01

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"kl_wieght": 1}, "recipe.*got 'kl_wieght'; near: kl_weight"),
            ({"vae": {"pools": 8}}, r"recipe\.vae.*got 'pools'; near: pool"),
            ({"precision": "fp8"}, "precision of auto, fp32, bf16, fp16, got 'fp8'"),
            ({"mapper": {"conditioning": "none"}}, "conditioning of adaln, plain, got 'none'"),
            ({"validation": 1.0}, "below 1, got 1.0"),
            ({"stage1": {"steps": 3, "epochs": 2}}, "either steps or epochs, got steps=3 and epochs=2"),
        ],
    )
    def test_mistakes(self, content, message):
        with pytest.raises(BrainDataError, match=message):
            SynBrainRecipe.from_json(content)

    def test_unknown_names(self):
        with pytest.raises(BrainDataError, match="got 'tinny'; near: tiny"):
            named("tinny")
        with pytest.raises(BrainDataError, match="either steps or epochs"):
            Stage()
