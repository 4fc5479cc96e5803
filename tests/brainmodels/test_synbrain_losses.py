"""SynBrain's losses and recipes against formulas in fp64."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn import Posterior
from brainmodels.systems.synbrain.losses import mapper_loss, stage_one_loss
from brainmodels.systems.synbrain.model import BrainVAEOutput
from brainmodels.systems.synbrain.recipes import SynBrainRecipe, named, paper, tiny, veca, veca_cores
from brainmodels.training.recipe import TrainingStage
from tests.brainmodels.synbrain_small import TOKENS, WIDTH


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


class TestRecipes:
    @pytest.mark.parametrize("name", ["paper", "veca", "veca_cores", "tiny"])
    def test_survive_json_and_have_names(self, name):
        recipe = named(name)
        assert recipe.name == name
        assert SynBrainRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe

    def test_paper(self):
        recipe = paper()
        assert recipe.contrast_weight_for(123.0) == 1000 and recipe.kl_weight == 0.001
        vae = TrainingStage(epochs=15, lr=1e-4, weight_decay=0.05, batch_size=24, seed=1024, stop_mse=350.0)
        mapper = TrainingStage(steps=50_000, lr=1e-4, batch_size=24, clip_norm=1.0, ema_decay=0.9999)
        assert (recipe.stage1, recipe.stage2) == (vae, mapper)
        assert (recipe.adapt1, recipe.adapt2) == (replace(vae, stop_mse=None), replace(mapper, steps=40_000))
        assert recipe.validation == 0 and recipe.tokens == "raw"

    def test_stages_of_the_others(self):
        """Those with validation images have patience; the bound stands in where no image can be held out."""
        for recipe in (veca(), veca_cores()):
            assert recipe.stage1 == replace(paper().stage1, stop_mse=None, stop_share=0.2, patience=3) == recipe.adapt1
            assert recipe.stage2 == replace(paper().stage2, patience=3) == replace(recipe.adapt2, steps=50_000)
            assert recipe.validation == 0.05 and recipe.adapt2.steps == 4_000
        recipe = tiny()
        assert recipe.stage1 == TrainingStage(steps=525, lr=1e-3, weight_decay=0.05, batch_size=32)
        assert recipe.stage2 == TrainingStage(steps=1_500, lr=1e-3, batch_size=32, clip_norm=1.0, ema_decay=0.999)
        assert (recipe.adapt1.steps, recipe.adapt2.steps) == (150, 300)

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
            ({"precision": "fp8"}, "precision to be one of auto, fp32, bf16, fp16, got 'fp8'"),
            ({"mapper": {"conditioning": "none"}}, "conditioning to be one of adaln, plain, got 'none'"),
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
