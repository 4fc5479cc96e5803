import pytest
import torch
from torch.func import functional_call

from veca import VECA
from veca.model.cores import CoreBank, CoreStep, spread_points


def closest(points):
    distance = torch.cdist(points, points)
    return distance.fill_diagonal_(torch.inf).min()


def tiny(**options):
    return VECA(**(dict(embed_dim=16, depth=3, num_heads=1, num_cores=4) | options))


def test_points_start_at_the_centre_and_stay_inside():
    points = spread_points(64)
    assert points.abs().max() <= 0.95
    assert points[0].norm() == points.norm(dim=-1).min() and points[0].norm() < 0.06


@pytest.mark.parametrize("count", range(8, 65, 8))
def test_every_prefix_is_better_spread_than_random_points(count):
    generator = torch.Generator().manual_seed(1)
    best_random = max(closest(torch.rand(count, 2, generator=generator) * 1.9 - 0.95) for _ in range(50))
    assert closest(spread_points(64)[:count]) > 1.5 * best_random


def test_points_are_seeded_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = spread_points(16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, spread_points(16)) and torch.equal(first[:8], spread_points(8))
    assert not torch.equal(first, spread_points(16, seed=1))


def test_bank_starts_at_the_points_with_normal_tokens():
    torch.manual_seed(0)
    bank = CoreBank(64, 256)
    torch.testing.assert_close(bank.xy, spread_points(64), rtol=0, atol=1e-6)
    assert bank.xy.abs().max() < 1
    assert abs(bank.tokens.std().item() * 16 - 1) < 0.03 and abs(bank.tokens.mean().item()) < 0.002


def test_one_step_and_alpha_between_two_blocks():
    model = tiny()
    assert len(model.core_steps) == 2
    assert [step.alpha.item() for step in model.core_steps] == pytest.approx([0.01, 0.01])
    assert [tuple(step.head.weight.shape) for step in model.core_steps] == [(2, 16)] * 2


def test_step_golden():
    step = CoreStep(2)
    with torch.no_grad():
        step.head.weight.copy_(torch.tensor([[1.0, 2.0], [-3.0, 0.5]]))
        step.head.bias.copy_(torch.tensor([0.5, -1.0]))
        moved = step(torch.tensor([[0.1, 0.2]]), torch.tensor([[[2.0, 4.0]]]))
    torch.testing.assert_close(moved, torch.tensor([[[0.1 + 0.105, 0.2 - 0.05]]]))


def test_step_options():
    torch.manual_seed(0)
    tokens, raw = torch.randn(2, 3, 8), torch.zeros(3, 2)
    bounded = CoreStep(8, max_step=1e-3)
    assert bounded(raw, 100 * tokens).abs().max().item() == pytest.approx(1e-3)
    normed = CoreStep(8, norm=True)
    torch.testing.assert_close(normed(raw, 100 * tokens), normed(raw, tokens), rtol=1e-3, atol=1e-6)
    plain = CoreStep(8)
    assert not torch.allclose(plain(raw, 100 * tokens), plain(raw, tokens), rtol=0.1)


def test_cores_move_per_image_and_zero_heads_keep_them():
    torch.manual_seed(0)
    model, images = tiny(), torch.randn(2, 3, 32, 48)
    moved = model.forward_features(images).core_xy
    assert (moved[0] - moved[1]).abs().max() > 1e-6
    for step in model.core_steps:
        torch.nn.init.zeros_(step.head.weight)
        torch.nn.init.zeros_(step.head.bias)
    assert torch.equal(model.forward_features(images).core_xy, model.core_bank.xy.expand(2, -1, -1))


def test_first_block_uses_the_bank_and_the_second_one_step():
    torch.manual_seed(0)
    model, images = tiny(depth=2), torch.randn(1, 3, 32, 48)
    seen = []
    model.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    record = model.forward_features(images)
    assert torch.equal(model.attention_maps(images, block=0).core_xy[0], model.core_bank.xy)
    step = model.core_steps[0]
    raw = model.core_bank.raw_xy + 0.01 * (seen[0][:, :4] @ step.head.weight.T + step.head.bias)
    torch.testing.assert_close(record.core_xy, raw.tanh())


def test_gradients_reach_coordinates_heads_and_alphas():
    torch.manual_seed(0)
    model = tiny(depth=2, num_cores=3).double()
    images = torch.randn(1, 3, 16, 32, dtype=torch.float64)
    names = ["core_bank.raw_xy", "core_steps.0.head.weight", "core_steps.0.head.bias", "core_steps.0.alpha"]
    parameters = dict(model.named_parameters())
    probe = torch.randn(16, 4, dtype=torch.float64)

    def outputs(*values):
        out = functional_call(model, dict(zip(names, values, strict=True)), (images,))
        return out @ probe

    values = [parameters[name].detach().clone().requires_grad_() for name in names]
    with torch.no_grad():
        values[-1].fill_(0.5)  # an ordinary alpha leaves differences too small for finite differences
    assert torch.autograd.gradcheck(outputs, values, atol=1e-6)
    for gradient in torch.autograd.grad(outputs(*values).sum(), values):
        assert gradient.abs().max() > 1e-8
