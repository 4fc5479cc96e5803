"""SynBrain's networks against definitions in fp64 and brute force; a planted linear encoding is found."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.noise import mean_sigma
from brainmodels.systems.synbrain.losses import mapper_loss, stage_one_loss
from brainmodels.systems.synbrain.model import BrainVAE, build_mapper, synthesize
from brainmodels.systems.synbrain.recipes import MapperSize, VAESize, paper, tiny, veca
from tests.brainmodels.synbrain_small import SMALL, TOKENS, WIDTH, numbers, small_mapper, small_vae


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

    def test_mean_sigma_counts_trials_not_batches(self):
        vae = small_vae().eval()
        responses = torch.randn(7, 20, dtype=torch.float64)
        with torch.no_grad():
            wanted = torch.stack([(vae.encode(row[None]).logvar[0] / 2).exp() for row in responses]).mean(0)
        found = mean_sigma(vae.encode(part) for part in responses.split([1, 4, 2]))
        torch.testing.assert_close(found, wanted.float())
        with pytest.raises(AxisError, match="at least one trial"):
            mean_sigma([])


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
    weight = recipe.contrast_weight_for(float(responses[:600].double().var(0, correction=0).sum()))

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
