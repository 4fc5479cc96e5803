"""Residual stacks, posteriors, shared losses and settings, each against its definition written out."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, group_norm, silu

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn import stack1d
from brainmodels.nn.gaussian import Posterior
from brainmodels.nn.losses import info_nce, softclip, softclip_floor, squared_error
from brainmodels.nn.stack1d import Attention1d, DownStack1d, ResBlock1d, UpStack1d
from brainmodels.records import from_json, plain, to_json
from brainmodels.training.recipe import TrainingStage


def count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_stacks_have_the_size_of_brainvae():
    with torch.device("meta"):
        down = [nn.Conv1d(1, 128, 7), DownStack1d(128, (256, 512, 512), 2, 1), nn.Conv1d(512, 256, 7)]
        up = [nn.Conv1d(256, 512, 7), UpStack1d((256, 512, 512), 3, 1), stack1d.group_norm(256), nn.Conv1d(256, 1, 7)]
    assert count(*down) == 12_347_904
    assert count(*up) == 17_927_681


def test_stacks_halve_and_double_after_their_first_levels():
    torch.manual_seed(0)
    down, up = DownStack1d(3, (2, 4, 8), 1, 2), UpStack1d((2, 4, 8), 2, 2)
    passed = []
    for layer in (*down, *up):
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
            layer.register_forward_hook(lambda module, args, out: passed.append((args[0].shape[1:], out.shape[1:])))
    assert up(down(torch.randn(1, 3, 12))).shape == (1, 2, 12)
    assert passed == [((2, 12), (2, 6)), ((4, 6), (4, 3)), ((8, 3), (8, 6)), ((4, 6), (4, 12))]


def test_residual_block_written_out():
    torch.manual_seed(0)
    block, x = ResBlock1d(3, 6).double(), normal(2, 3, 9)
    weights = dict(block.named_parameters())
    y = silu(group_norm(x, 3, weights["body.0.weight"], weights["body.0.bias"], 1e-6))
    y = conv1d(y, weights["body.2.weight"], weights["body.2.bias"], padding=1)
    y = silu(group_norm(y, 6, weights["body.3.weight"], weights["body.3.bias"], 1e-6))
    y = conv1d(y, weights["body.5.weight"], weights["body.5.bias"], padding=1)
    torch.testing.assert_close(block(x), block.shortcut(x) + y)
    assert isinstance(ResBlock1d(6, 6).shortcut, nn.Identity)


def test_attention_over_positions_written_out():
    torch.manual_seed(0)
    attention, x = Attention1d(4).double(), normal(2, 4, 5)
    expected = x.clone()
    for i in range(2):
        q, k, v = attention.qkv(attention.norm(x[i : i + 1]))[0].reshape(3, 4, 5)
        for position in range(5):
            weights = (torch.stack([q[:, position] @ k[:, j] for j in range(5)]) / math.sqrt(4)).softmax(0)
            mixed = sum(weight * v[:, j] for j, weight in enumerate(weights))
            expected[i, :, position] += attention.out(mixed[None, :, None])[0, :, 0]
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (31, 31), (32, 32), (48, 16), (256, 32), (33, 1)])
def test_groups_of_the_norm(channels, groups):
    norm = stack1d.group_norm(channels)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


def test_more_halvings_than_levels_allow_are_refused():
    with pytest.raises(BrainDataError, match=r"than the 2 levels \(4, 8\), got 2"):
        DownStack1d(1, (4, 8), 1, 2)


def test_kl_against_the_integral():
    posterior = Posterior.of(normal(2, 1, 2), normal(2, 1, 2, seed=1))
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    total = 0.0
    for mean, logvar in zip(posterior.mean.flatten(), posterior.logvar.flatten(), strict=True):
        log_p = -0.5 * ((x - mean) ** 2 / logvar.exp() + logvar)
        density = log_p.exp() / math.sqrt(2 * math.pi)
        total += float(torch.trapezoid(density * (log_p + 0.5 * x**2), x))
    assert float(posterior.kl()) == pytest.approx(total / 2, rel=1e-8)  # summed over the latent, mean over two trials
    assert float(Posterior.of(torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)).kl()) == 0


def test_posterior_samples_have_its_moments_and_its_variance_has_limits():
    posterior = Posterior.of(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[math.log(4.0), -50.0]]]))
    assert posterior.logvar[0, 0, 1] == -30
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([posterior.sample(generator) for _ in range(4000)])[:, 0, 0]
    assert draws.mean(0).tolist() == pytest.approx([1, -2], abs=0.1)
    assert float(draws[:, 0].std()) == pytest.approx(2, rel=0.05)
    assert torch.equal(posterior.sample(generator.manual_seed(7)), posterior.sample(generator.manual_seed(7)))


def loop_softclip(brain: torch.Tensor, image: torch.Tensor, temperature: float) -> float:
    size = len(brain)

    def row(first, seconds):
        cosines = [float(first.flatten() @ x.flatten() / (first.norm() * x.norm())) for x in seconds]
        exponentials = [math.exp(c / temperature) for c in cosines]
        return [e / sum(exponentials) for e in exponentials]

    total = 0.0
    for i in range(size):
        target = row(image[i], image)
        for predicted in (row(brain[i], image), row(image[i], brain)):
            total -= sum(p * math.log(q) for p, q in zip(target, predicted, strict=True))
    return total / (2 * size)


@pytest.mark.parametrize("temperature", [0.125, 0.5])
def test_softclip_against_loops(temperature):
    brain, image = normal(6, 3, 4), normal(6, 3, 4, seed=1)
    assert float(softclip(brain, image, temperature)) == pytest.approx(loop_softclip(brain, image, temperature), 1e-12)
    assert float(softclip(3 * brain, image / 2)) == pytest.approx(float(softclip(brain, image)))


def test_softclip_is_least_where_tokens_agree():
    image = normal(6, 3, 4) + 1
    brain = image.clone().requires_grad_()
    loss = softclip(brain, image)
    loss.backward()
    assert float(loss.detach()) == float(softclip_floor(image)) > 0.1
    assert brain.grad.abs().max() < 1e-14
    assert softclip(image + 0.1 * normal(6, 3, 4, seed=2), image) > softclip_floor(image)


def loop_info_nce(a: torch.Tensor, b: torch.Tensor, temperature: float, same: list[int]) -> float:
    total = 0.0
    for i in range(len(a)):
        for query, others in ((a[i], b), (b[i], a)):
            cosines = [float(query.flatten() @ x.flatten() / (query.norm() * x.norm())) for x in others]
            powers = [math.exp(c / temperature) for c in cosines]
            total -= math.log(powers[i] / sum(p for j, p in enumerate(powers) if j == i or same[j] != same[i]))
    return total / (2 * len(a))


@pytest.mark.parametrize("same", [None, [0, 1, 2, 0, 0, 5], [0] * 6], ids=["distinct", "repeats", "one image"])
def test_info_nce_against_loops(same):
    a, b = normal(6, 3, 4), normal(6, 3, 4, seed=1)
    labels = None if same is None else torch.tensor(same)
    expected = loop_info_nce(a, b, 0.2, same or list(range(6)))
    assert float(info_nce(a, b, 0.2, labels)) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert float(info_nce(b / 3, 2 * a, 0.2, labels)) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_info_nce_of_an_image_shown_twice_does_not_push_its_pair_apart():
    """Perfect pairs of orthogonal images, one shown twice: its rows lose log 2 each without labels, and 0 with them."""
    a = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]].requires_grad_()
    loss = info_nce(a, a.detach(), 0.02, torch.tensor([7, 7, 8, 9]))
    loss.backward()
    assert float(loss.detach()) < 1e-15 and a.grad.abs().max() < 1e-15
    assert float(info_nce(a, a, 0.02).detach()) == pytest.approx(2 * math.log(2) / 4, rel=1e-12)


def test_losses_are_computed_in_fp32_under_autocast():
    brain, image = normal(6, 3, 4).float(), normal(6, 3, 4, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found, contrast = softclip(brain, image), info_nce(brain, image, 0.2)
    assert torch.equal(found, softclip(brain, image)) and torch.equal(contrast, info_nce(brain, image, 0.2))
    assert float(found) == pytest.approx(loop_softclip(brain.double(), image.double(), 0.125), rel=1e-5)


def test_squared_error_is_a_sum_over_voxels():
    predicted, target = normal(3, 5), normal(3, 5, seed=1)
    total = sum(float((predicted[i, j] - target[i, j]) ** 2) for i in range(3) for j in range(5))
    assert float(squared_error(predicted, target)) == pytest.approx(total / 3, rel=1e-12)
    with pytest.raises(AxisError, match=r"\(3, 5\), as the target, got \(3, 4\)"):
        squared_error(predicted[:, :4], target)
    with pytest.raises(AxisError, match=r"\(3, 5\), as the image tokens, got \(2, 5\)"):
        softclip(predicted[:2], target)
    with pytest.raises(AxisError, match=r"pairs of one shape, got \(2, 5\) and \(3, 5\)"):
        info_nce(predicted[:2], target, 0.2)
    with pytest.raises(AxisError, match=r"one label for each of 3 rows, got shape \(2,\)"):
        info_nce(predicted, target, 0.2, torch.tensor([0, 1]))


@dataclass(frozen=True)
class Outer:
    name: str = "outer"
    sizes: tuple[int, ...] = (1, 2)
    stage: TrainingStage = field(default_factory=lambda: TrainingStage(steps=3))


def test_settings_to_json_and_back():
    outer = Outer("other", (4, 5, 6), TrainingStage(epochs=2, lr=0.5, clip_norm=None))
    content = to_json(outer)
    assert content["sizes"] == [4, 5, 6] and content["stage"]["epochs"] == 2
    assert from_json(Outer, content) == outer
    with pytest.raises(BrainDataError, match=r"keys of TrainingStage .* got 'epoch'; near: epochs"):
        from_json(Outer, {"stage": {"epoch": 3}})


def test_plain_values_are_those_of_json():
    given = {1: (np.float32(0.5), np.int64(2), np.bool_(True)), "a": np.arange(4).reshape(2, 2), "b": {"y", "x"}}
    assert plain(given) == {"1": [0.5, 2, True], "a": [[0, 1], [2, 3]], "b": ["x", "y"]}
    nested = plain([None, "text", (Path("a") / "b", {"k": frozenset({2, 1})})])
    assert nested == [None, "text", ["a/b", {"k": [1, 2]}]]
    json.dumps([plain(given), nested])


@pytest.mark.parametrize("lengths", [{}, {"steps": 1, "epochs": 1}])
def test_a_stage_has_one_length(lengths):
    with pytest.raises(BrainDataError, match="either steps or epochs"):
        TrainingStage(**lengths)
