"""The denoiser of points: one block written out, what the order and the number of points change, and drawn clouds."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, silu

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn import points as module
from brainmodels.nn.point_judge import PointNetJudge
from brainmodels.nn.points import PointTransformer, points_loss, sample_points

NANO = {"width": 64, "depth": 4, "num_heads": 4, "num_latents": 16, "cond_width": 24}
SMALL = {"width": 16, "depth": 2, "num_heads": 2, "num_latents": 3, "cond_width": 5}
CHUNKS = (1, 7, 32, 36, 37, 1000)


def awake(net: PointTransformer) -> PointTransformer:
    """Random numbers in all weights, those that begin at zero too, in fp64."""
    torch.manual_seed(0)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    return net.double()


def inputs(net: PointTransformer, batch: int = 2, points: int = 37) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    options = {"dtype": torch.float64, "generator": generator}
    return {
        "points": torch.randn(batch, points, net.in_features, **options),
        "time": torch.rand(batch, **options),
        "condition": torch.randn(batch, net.cond_width, **options),
    }


# the network


def test_size_of_nano():
    """Four blocks have 298,752 numbers, and 24 conditions as four cores 6,400."""
    net = PointTransformer(**NANO)
    assert sum(weight.numel() for weight in net.parameters()) == 339_483
    assert sum(weight.numel() for weight in net.blocks.parameters()) == 298_752


def test_a_new_net_returns_zeros():
    net = PointTransformer(**NANO)
    assert not net(torch.randn(3, 20, 3), torch.rand(3), torch.randn(3, 24)).any()
    painter = PointTransformer(**NANO, in_features=6, out_features=2, timed=False)
    assert painter(torch.randn(3, 20, 6)).shape == (3, 20, 2)


def test_one_block_written_out():
    net = awake(PointTransformer(**SMALL | {"depth": 1}, octaves=2, cond_tokens=2))
    given = inputs(net)
    block, frequencies = net.blocks[0], net.frequencies
    assert frequencies.tolist() == pytest.approx([math.pi / 4, math.pi / 2], 1e-7)

    def norm(x):
        return layer_norm(x, (16,), eps=1e-6)

    expected = []
    for points, time, condition in zip(*given.values(), strict=True):
        angles = [points * frequencies[0], points * frequencies[1]]
        waves = [torch.stack([wave(x) for x in angles], -1).flatten(1) for wave in (torch.sin, torch.cos)]
        patches = linear(torch.cat([points, *waves], 1), net.embed.weight, net.embed.bias)
        at = net.time(1000 * time[None])[0]
        cores = torch.cat([at[None], net.tokens(condition).reshape(2, 16), net.latents])
        signal = silu(at + net.condition(condition))
        b1, s1, g1, b2, s2, g2 = linear(signal, block.modulation.weight, block.modulation.bias).reshape(6, 16)
        x = torch.cat([cores, patches])
        q, k, v = block.attn.qkv((1 + s1) * norm(x) + b1).reshape(len(x), 3, 2, 8).permute(1, 2, 0, 3)
        scores = q @ k.mT / math.sqrt(8)
        scores[:, len(cores) :, len(cores) :] = -math.inf  # points do not see points, not even themselves
        x = x + g1 * block.attn.proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), 16))
        x = x + g2 * block.mlp.fc2(gelu(block.mlp.fc1((1 + s2) * norm(x) + b2)))
        shift, scale = net.modulation(signal).reshape(2, 16)
        expected.append(net.out((1 + scale) * norm(x[len(cores) :]) + shift))
    torch.testing.assert_close(net(**given), torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_points_in_another_order_give_the_same_in_that_order():
    net, order = awake(PointTransformer(**SMALL)).float(), torch.randperm(37)
    given = {name: value.float() for name, value in inputs(net).items()}
    moved = net(**given | {"points": given["points"][:, order]})
    torch.testing.assert_close(moved, net(**given)[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_points", CHUNKS)
def test_pieces_give_what_the_whole_gives(chunk_points):
    net = awake(PointTransformer(**SMALL))
    given = inputs(net)
    torch.testing.assert_close(net(**given, chunk_points=chunk_points), net(**given), rtol=1e-10, atol=1e-10)
    net.float()
    given = {name: value.float() for name, value in given.items()}
    with torch.no_grad():
        torch.testing.assert_close(net(**given, chunk_points=chunk_points), net(**given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("chunk_points", "recompute"), [(None, True), (10, False), (10, True)])
def test_gradients_are_those_of_the_whole(chunk_points, recompute):
    net = awake(PointTransformer(**SMALL)).train()
    given = inputs(net)
    found = []
    for net.grad_checkpointing, chunk in ((False, None), (recompute, chunk_points)):
        net(**given, num_latents=2, chunk_points=chunk).square().sum().backward()
        found.append({name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None})
        net.zero_grad()
    assert found[0].keys() == found[1].keys() and all(value.any() for name, value in found[0].items() if name != "null")
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-8, atol=1e-10, msg=name)


def test_no_layer_sees_more_points_than_a_piece_has():
    net, seen = PointTransformer(**SMALL), []
    for layer in (net.embed, net.out, *(part for block in net.blocks for part in (block.norm1, block.mlp))):
        layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape[1]))
    net(torch.randn(1, 500, 3), torch.rand(1), chunk_points=20)
    assert sum(seen) > 6 * 500 and max(seen) == 20


def test_dropped_conditions_are_the_null_condition():
    net = awake(PointTransformer(**SMALL))
    given = inputs(net)
    nothing = net(**given | {"condition": None})
    dropped = net(**given, drop=torch.tensor([True, False]))
    assert torch.equal(dropped[0], nothing[0])
    assert torch.equal(dropped[1], net(**given)[1]) and (dropped[1] - nothing[1]).abs().max() > 1e-3
    poisoned = given["condition"].clone()
    poisoned[0] = math.nan
    assert torch.equal(net(**given | {"condition": poisoned}, drop=torch.tensor([True, False])), dropped)
    assert net(**given | {"condition": poisoned})[0].isnan().all()  # the training loop then stops


def test_first_latents_are_a_net_of_their_own():
    net = awake(PointTransformer(**SMALL))
    given = inputs(net)
    small = PointTransformer(**SMALL | {"num_latents": 2}).double()
    small.load_state_dict(net.state_dict() | {"latents": net.latents[:2]})
    assert torch.equal(net(**given, num_latents=2), small(**given))
    assert (net(**given) - small(**given)).abs().max() > 1e-3


def test_budgets_are_drawn_in_the_training():
    net, clouds = awake(PointTransformer(**SMALL)), torch.randn(2, 20, 3, dtype=torch.float64)
    with torch.no_grad():
        net.latents[2] = math.nan
    condition = torch.randn(2, 5, dtype=torch.float64)
    assert all(points_loss(net, clouds, condition, budgets=(1, 2)).isfinite() for _ in range(8))
    assert len({bool(points_loss(net, clouds, condition, budgets=(2, 3)).isfinite()) for _ in range(16)}) == 2


def test_mistakes_are_named():
    with pytest.raises(BrainDataError, match="even width divisible by num_heads=3, got 16"):
        PointTransformer(**SMALL | {"num_heads": 3})
    with pytest.raises(BrainDataError, match="even width divisible by num_heads=1, got 7"):
        PointTransformer(**SMALL | {"width": 7, "num_heads": 1})
    with pytest.raises(BrainDataError, match="num_latents of at least 1, got 0"):
        PointTransformer(**SMALL | {"num_latents": 0})
    net, points, time, condition = PointTransformer(**SMALL), torch.zeros(2, 9, 3), torch.zeros(2), torch.zeros(2, 5)
    with pytest.raises(AxisError, match=r"points \(B, N, 3\), got \(2, 9, 6\)"):
        net(torch.zeros(2, 9, 6), time)
    with pytest.raises(AxisError, match=r"time \(2,\), .* got \(3,\)"):
        net(points, torch.zeros(3))
    with pytest.raises(AxisError, match=r"condition \(2, 5\), got \(2, 4\)"):
        net(points, time, torch.zeros(2, 4))
    with pytest.raises(AxisError, match=r"drop \(2,\) of bools, got \(2,\) of torch.float32"):
        net(points, time, condition, torch.zeros(2))
    with pytest.raises(BrainDataError, match="expected a time"):
        net(points, None, condition)
    with pytest.raises(BrainDataError, match="expected no time"):
        PointTransformer(**SMALL, timed=False)(points, time)
    for count in (0, 4):
        with pytest.raises(BrainDataError, match=f"num_latents from 1 to 3, got {count}"):
            net(points, time, condition, num_latents=count)
    with pytest.raises(BrainDataError, match="chunk_points of at least 1, got 0"):
        net(points, time, condition, chunk_points=0)
    with pytest.raises(BrainDataError, match="'score'"):
        points_loss(net, points, condition, "score")
    with pytest.raises(BrainDataError, match="'score'"):
        sample_points(net, condition, 9, "score")
    with pytest.raises(BrainDataError, match="num_points of at least 1, got 0"):
        sample_points(net, condition, 0)
    with pytest.raises(BrainDataError, match="1 to 1000 steps for 'ddpm', got 1001"):
        sample_points(net, condition, 9, "ddpm", steps=1001)
    condition[1, 2] = math.nan
    with pytest.raises(BrainDataError, match=r"finite conditions, got others in rows \[1\]"):
        sample_points(net, condition, 9)


# losses and sampling


class Oracle(nn.Module):
    """The best answer for points that are independent draws from N(mean, sd^2), whatever the condition."""

    in_features = 3

    def __init__(self, objective: str, mean: float = 0.7, sd: float = 0.4):
        super().__init__()
        self.objective, self.mean, self.sd = objective, mean, sd

    def forward(self, points, time, condition, drop, num_latents, chunk_points=None):
        time = time.double()[:, None, None]
        if self.objective == "flow":
            a, b, da, db = module.PATH.coefficients(time)
            gain = (a * da + b * db * self.sd**2) / (a**2 + b**2 * self.sd**2)
            return db * self.mean + gain * (points - b * self.mean)
        left = torch.cumprod(1 - torch.linspace(1e-5, 8e-3, 1000, dtype=torch.float64), 0)
        at = left[(time * 1000).round().long()]
        return (1 - at).sqrt() * (points - at.sqrt() * self.mean) / (1 - at + at * self.sd**2)


@pytest.mark.parametrize(
    ("objective", "steps", "bias"),
    [("flow", 24, 2e-3), ("ddpm", 1000, 5e-3), ("ddpm", 100, 0.05)],  # 13 % of the points are left in the last noise
    ids=["heun", "ddpm", "ddim"],
)
def test_the_best_answers_lead_to_the_points(objective, steps, bias):
    condition, generator = torch.zeros(2, 1, dtype=torch.float64), torch.Generator().manual_seed(0)
    made = sample_points(Oracle(objective), condition, 3000, objective, steps, generator=generator)
    error = bias + 4 * 0.4 / math.sqrt(made.numel())
    assert made.shape == (2, 3000, 3) and abs(float(made.mean()) - 0.7) < error
    assert abs(float(made.std()) - 0.4) < error
    again = sample_points(Oracle(objective), condition, 3000, objective, steps, generator=generator.manual_seed(0))
    assert torch.equal(again, made)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_loss_is_lowest_at_the_best_answers(objective):
    clouds = 0.7 + 0.4 * torch.randn(2000, 20, 3, dtype=torch.float64)
    condition = torch.zeros(2000, 1, dtype=torch.float64)
    losses = {}
    for mean, sd in ((0.7, 0.4), (0.8, 0.4), (0.7, 0.5)):
        net = Oracle(objective, mean, sd)
        losses[mean, sd] = float(points_loss(net, clouds, condition, objective, torch.Generator().manual_seed(0)))
    assert min(losses, key=losses.get) == (0.7, 0.4) and 0 < losses[0.7, 0.4]


class Pushes(nn.Module):
    """Moves points by its condition, or by 1 where there is none."""

    in_features = 3

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, points, time, condition, drop, num_latents, chunk_points):
        self.calls += 1
        push = torch.ones(len(points)) if condition is None else condition[:, 0]
        if drop is not None:
            push = push.where(~drop, 1.0)
        return push[:, None, None].expand_as(points)


def test_guidance_leads_from_the_null_condition_past_the_condition():
    net, condition = Pushes(), torch.tensor([[3.0], [5.0]])
    start = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    for guidance, ends in {0: (1, 1), 1: (3, 5), 2: (5, 9), 0.5: (2, 3)}.items():
        generator = torch.Generator().manual_seed(0)
        made = sample_points(net, condition, 9, steps=3, guidance=guidance, generator=generator)
        torch.testing.assert_close(made - start, torch.tensor(ends)[:, None, None].expand(2, 9, 3) * 1.0)
    assert net.calls == 4 * 6  # both answers come from one call


def two_clusters(classes: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """Clouds with half of their points near either end of the x axis (class 0) or of the z axis (class 1)."""
    signs = torch.randint(2, (len(classes), points), generator=generator) * 2 - 1
    clouds = 0.15 * torch.randn(len(classes), points, 3, generator=generator)
    clouds[torch.arange(len(classes)), :, 2 * classes] += 1.6 * signs
    return clouds


@pytest.fixture(scope="module", params=["flow", "ddpm"])
def trained(request):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = PointTransformer(32, 2, 2, num_latents=4, cond_width=2)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for step in range(200):
        classes = torch.randint(2, (32,), generator=generator)
        clouds = two_clusters(classes, 64, generator)
        loss = points_loss(net, clouds, torch.eye(2)[classes], request.param, generator)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 200)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net, request.param


def shares(clouds: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Shares of the points of each cloud that are near either end of an axis."""
    ends = torch.zeros(2, 3)
    ends[0, axis], ends[1, axis] = -1.6, 1.6
    near = torch.cdist(clouds, ends.expand(len(clouds), 2, 3)) < 0.6
    return near[..., 0].float().mean(1), near[..., 1].float().mean(1)


@pytest.mark.parametrize("num_points", [64, 512])
def test_drawn_clouds_have_the_clusters_of_their_class(trained, num_points):
    net, objective = trained
    generator = torch.Generator()
    for axis, other in ((0, 2), (2, 0)):
        condition = torch.eye(2)[[axis // 2] * 4]
        steps = 12 if objective == "flow" else 50
        made = sample_points(net, condition, num_points, objective, steps, generator=generator.manual_seed(0))
        low, high = shares(made, axis)
        assert (low + high).min() > 0.85 and min(low.min(), high.min()) > 0.25
        assert sum(shares(made, other)).max() < 0.05


def shell(radii: tuple[float, float, float], points: int, rng: np.random.Generator) -> np.ndarray:
    directions = rng.normal(size=(points, 3))
    return radii * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def shells(count: int, points: int, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Balls, discs and rods of random size and place, in turn, with colours that say nothing."""
    kinds, labels = ((1, 1, 1), (1, 1, 0.3), (0.3, 0.3, 1)), np.arange(count) % 3
    sizes = rng.uniform(0.5, 20, count)
    clouds = [size * (shell(kinds[k], points, rng) + rng.normal(size=3)) for size, k in zip(sizes, labels, strict=True)]
    return [np.hstack([cloud, rng.random((points, 3))]) for cloud in clouds], labels


# the judge


def test_the_judge_names_shapes_whatever_their_size_place_and_number_of_points():
    rng = np.random.default_rng(0)
    judge = PointNetJudge(width=64, num_points=64).fit(*shells(60, 200, rng), seed=1, steps=80)
    for points in (64, 150, 1000):
        clouds, labels = shells(60, points, rng)
        found = judge.predict_proba(clouds)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
        assert (found.argmax(1) == labels).mean() > 0.95
    again = PointNetJudge(width=64, num_points=64).fit(*shells(60, 200, np.random.default_rng(0)), seed=1, steps=80)
    np.testing.assert_array_equal(again.predict_proba(clouds), found)


def test_the_judge_is_at_chance_after_labels_without_a_relation():
    rng = np.random.default_rng(0)
    clouds, labels = shells(60, 100, rng)
    judge = PointNetJudge(width=64, num_points=64).fit(clouds, rng.permutation(labels), steps=80)
    others, truth = shells(150, 100, rng)
    assert (judge.predict_proba(others).argmax(1) == truth).mean() < 0.55


def test_mistakes_of_the_judge_are_named():
    clouds, labels = shells(6, 20, np.random.default_rng(0))
    judge = PointNetJudge(width=8)
    with pytest.raises(BrainDataError, match="call fit first"):
        judge.predict_proba(clouds)
    with pytest.raises(AxisError, match=r"labels \(6,\), .* got \(5,\)"):
        judge.fit(clouds, labels[:5])
    with pytest.raises(BrainDataError, match="at least two classes, got \\[1\\]"):
        judge.fit(clouds, np.ones(6, dtype=int))
    with pytest.raises(BrainDataError, match="integer labels"):
        judge.fit(clouds, labels / 2)
    with pytest.raises(BrainDataError, match="below num_classes=2, got 2"):
        judge.fit(clouds, labels, num_classes=2)
    with pytest.raises(AxisError, match=r"cloud 1 to be \(N, 3 or more\), got \(20, 2\)"):
        judge.fit([clouds[0], clouds[1][:, :2]], [0, 1])
    with pytest.raises(BrainDataError, match="16 finite points in cloud 0, got 15"):
        judge.fit([clouds[0][:15], clouds[1]], [0, 1])
    with pytest.raises(BrainDataError, match="cloud 0, got 20, 1 of them not"):
        judge.fit([np.where(np.arange(20)[:, None] == 3, np.nan, clouds[0]), clouds[1]], [0, 1])
    with pytest.raises(BrainDataError, match="distinct points in cloud 1"):
        judge.fit([clouds[0], np.ones((20, 3))], [0, 1])
    assert judge.fit(clouds, labels, steps=1, num_classes=5).predict_proba(clouds).shape == (6, 5)
    assert judge.predict_proba([]).shape == (0, 5)
