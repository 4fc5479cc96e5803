"""NeuroFlow's networks and losses: published sizes, exact algebra, gradients, and the way there and back."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn import Posterior, flow_matching_loss, softclip
from brainmodels.nn.flow import PATHS
from brainmodels.systems.neuroflow import model, recipes
from brainmodels.systems.neuroflow.losses import LossWeights, stage_one_loss, stage_two_loss
from brainmodels.systems.neuroflow.model import XFM, NeuroVAE, project_stem, round_trip
from brainmodels.systems.neuroflow.recipes import FlowSize, NeuroFlowRecipe, VAESize
from brainmodels.training.recipe import TrainingStage

VOXELS = 15_724  # of NSD subject 1
SMALL = VAESize(channels=(2, 4), blocks=1, num_down=1, hidden=8)


def small_vae(**changes) -> NeuroVAE:
    """Four tokens of width 6, subjects of 9 and 11 voxels."""
    torch.manual_seed(0)
    return NeuroVAE(4, 6, replace(SMALL, **changes), {"subj01": 9, "subj02": 11})


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("tokens", "width", "size", "parameters"),
    [
        (256, 1664, recipes.paper().vae, 59_756_334),
        (256, 1664, VAESize(), 51_434_670),
    ],
    ids=["with_head", "without_head"],
)
def test_published_sizes_of_the_vae(tokens, width, size, parameters):
    with torch.device("meta"):
        assert count(NeuroVAE(tokens, width, size, {"subj01": VOXELS})) == parameters


@pytest.mark.parametrize(
    ("recipe", "head", "millions"), [(recipes.veca(), True, 45.9), (recipes.veca_cores(), True, 40.6)]
)
def test_sizes_on_veca_tokens(recipe, head, millions):
    size = replace(recipe.vae, retrieval_head=head)
    with torch.device("meta"):
        vae = NeuroVAE(recipe.num_tokens, recipe.token_width, size, {"subj01": VOXELS})
    assert round(count(vae) / 1e6, 1) == millions


def test_published_size_of_the_flow():
    paper = recipes.paper()
    with torch.device("meta"):
        flow = XFM(paper.num_tokens, paper.token_width, paper.flow)
        vae = NeuroVAE(paper.num_tokens, paper.token_width, VAESize(), {"subj01": VOXELS})
    assert count(flow) + flow.net.positions.numel() == 610_316_928
    assert round((count(flow) + flow.net.positions.numel() + count(vae)) / 1e6, 1) == 661.8


def test_stem_shortcut_equals_the_plain_layers_in_values_and_gradients():
    torch.manual_seed(0)
    stem, projection = nn.Conv1d(1, 5, 1).double(), nn.Linear(13, 7).double()
    x, weights = normal(3, 13).double().requires_grad_(), normal(3, 5, 7, seed=1).double()
    leaves = [x, *stem.parameters(), *projection.parameters()]
    plain = projection(stem(x.unsqueeze(1)))
    short = project_stem(x, stem, projection)
    torch.testing.assert_close(short, plain, rtol=0, atol=3e-15)
    expected = torch.autograd.grad((plain * weights).sum(), leaves)
    found = torch.autograd.grad((short * weights).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_only_the_compact_token_reaches_the_response_decoder():
    vae = small_vae().double()
    latents = normal(2, 4, 6).double()
    mixing = vae.compact.weight[0, :, 0]  # (m,)
    hidden = normal(4, 6, seed=1).double()
    hidden -= mixing[:, None] * (mixing @ hidden) / (mixing @ mixing)  # what the compact token does not see
    torch.testing.assert_close(vae.decode(latents + hidden, "subj01"), vae.decode(latents, "subj01"))
    seen = latents + mixing[:, None] * normal(6, seed=2).double()
    assert (vae.decode(seen, "subj01") - vae.decode(latents, "subj01")).abs().max() > 1e-3


def test_subjects_share_all_but_their_projections():
    vae = small_vae(retrieval_head=True)
    assert vae.voxels == {"subj01": 9, "subj02": 11}
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    optimiser = torch.optim.SGD(vae.subject_parameters("subj02"), lr=1.0)
    stage_one_loss(vae, normal(5, 11), normal(5, 4, 6, seed=1), LossWeights(), "subj02").total.backward()
    optimiser.step()
    moved = {name for name, weight in vae.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {f"voxels_{end}.subj02.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}


def test_a_new_subject_changes_nothing_for_the_others():
    vae = small_vae().double()
    responses = normal(3, 9).double()
    before = vae(responses, "subj01")
    vae.add_subject("subj07", 5)
    assert torch.equal(vae(responses, "subj01"), before)
    assert vae(normal(3, 5).double(), "subj07").shape == (3, 5)
    for subject, voxels, message in [
        ("subj01", 9, "'subj01' again"),
        ("subj.8", 9, "got 'subj.8'"),
        ("keys", 9, "got 'keys'"),
        ("subj08", 0, "at least one voxel of subj08, got 0"),
    ]:
        with pytest.raises(BrainDataError, match=message):
            vae.add_subject(subject, voxels)


def test_mistakes_in_sizes_and_shapes_are_named():
    with pytest.raises(BrainDataError, match=r"channels=\(2, 4\) to be num_tokens=3, got 4; .*token_projection=True"):
        NeuroVAE(3, 6, SMALL, {"subj01": 9})
    with pytest.raises(BrainDataError, match="at least one subject"):
        NeuroVAE(4, 6, SMALL, {})
    vae = small_vae()
    with pytest.raises(BrainDataError, match="subject of subj01, subj02, got None"):
        vae.encode(normal(2, 9))
    with pytest.raises(BrainDataError, match="got 'sub01'; near: subj01"):
        vae.encode(normal(2, 9), "sub01")
    with pytest.raises(AxisError, match=r"\(B, 11\) of subj02, got \(2, 9\)"):
        vae.encode(normal(2, 9), "subj02")
    with pytest.raises(AxisError, match=r"latents \(B, 4, 6\), got \(2, 4, 5\)"):
        vae.decode(normal(2, 4, 5), "subj01")


def test_other_numbers_of_tokens_take_a_projection():
    torch.manual_seed(0)
    vae = NeuroVAE(3, 6, replace(SMALL, token_projection=True), {"subj01": 9})
    encoding = vae.encode(normal(2, 9))
    assert encoding.posterior.mean.shape == (2, 3, 6) and encoding.retrieval is None
    vae.decode(encoding.posterior.mean).sum().backward()
    assert vae.to_tokens.weight.grad.abs().sum() > 0


def test_checkpointing_changes_no_gradient():
    vae, responses = small_vae(), normal(3, 9)
    gradients = []
    for vae.checkpointing in (False, True):
        vae(responses, "subj01").square().sum().backward()
        gradients.append([weight.grad.clone() for weight in vae.parameters() if weight.grad is not None])
        vae.zero_grad()
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def loop_stage_one(vae: NeuroVAE, responses, tokens, weights: LossWeights, generator) -> float:
    """The definition, term by term and trial by trial, in fp64."""
    encoding = vae.encode(responses, "subj01")
    mean, logvar = encoding.posterior.mean, encoding.posterior.logvar
    z = mean + (logvar / 2).exp() * torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
    reconstruction = vae.decode(z, "subj01")
    again = vae.encode(reconstruction, "subj01")
    size, mse, kl = len(responses), 0.0, 0.0
    for i in range(size):
        mse += sum(float(reconstruction[i, v] - responses[i, v]) ** 2 for v in range(responses.shape[1])) / size
        for mu, log in zip(mean[i].flatten().tolist(), logvar[i].flatten().tolist(), strict=True):
            kl += 0.5 * (mu**2 + math.exp(log) - 1 - log) / size

    def contrast(first) -> float:
        a, b = normalize(first.flatten(1)), normalize(tokens.flatten(1))
        total = 0.0
        for i in range(size):
            target = (b @ b[i] / weights.temperature).softmax(0)
            for logits in (b @ a[i], a @ b[i]):
                total -= float(target @ (logits / weights.temperature).log_softmax(0)) / (2 * size)
        return total

    first, second = [z], [again.posterior.mean]
    if encoding.retrieval is not None:
        first.append(encoding.retrieval)
        second.append(again.retrieval)
    return (
        mse
        + weights.kl * kl
        + weights.contrast * sum(map(contrast, first))
        + weights.cycle * sum(map(contrast, second))
    )


@pytest.mark.parametrize("head", [False, True], ids=["without_head", "with_head"])
def test_stage_one_loss_against_loops(head):
    vae = small_vae(retrieval_head=head).double()
    responses, tokens = normal(5, 9).double(), normal(5, 4, 6, seed=1).double() + 0.5
    weights = LossWeights(kl=0.3, contrast=7.0, cycle=11.0, temperature=0.25)
    found = stage_one_loss(vae, responses, tokens, weights, "subj01", torch.Generator().manual_seed(3))
    assert found.total.requires_grad and not found.floor.requires_grad
    with torch.no_grad():
        found = stage_one_loss(vae, responses, tokens, weights, "subj01", torch.Generator().manual_seed(3))
        expected = loop_stage_one(vae, responses, tokens, weights, torch.Generator().manual_seed(3))
    assert float(found.total) == pytest.approx(expected, rel=1e-10)
    total = found.mse + 0.3 * found.kl + 7 * found.contrast + 11 * found.cycle
    assert float(found.total) == pytest.approx(float(total))
    assert float(found.floor) == pytest.approx((1 + head) * float(softclip(tokens, tokens, 0.25)))
    assert found.contrast > found.floor and found.cycle > found.floor and 0 < found.sigma < 10


def test_cycle_sends_gradient_to_decoder_and_encoder():
    vae = small_vae()
    responses, tokens = normal(5, 9), normal(5, 4, 6, seed=1)
    loss = stage_one_loss(vae, responses, tokens, LossWeights(), "subj01")
    reached = [vae.stem.weight, vae.voxels_in["subj01"].weight, vae.up[0].body[2].weight, vae.out[2].weight]
    gradients = torch.autograd.grad(loss.cycle, reached)
    assert all(gradient.abs().max() > 1e-9 for gradient in gradients)
    without = stage_one_loss(vae, responses, tokens, LossWeights(cycle=0.0), "subj01")
    assert without.cycle.item() == 0
    expected = without.mse + 0.001 * without.kl + 1000 * without.contrast
    assert without.total.item() == pytest.approx(expected.item())


def test_weights_follow_the_variance_unless_given():
    paper, tiny = recipes.paper(), recipes.tiny()
    assert LossWeights.of(paper, 123.0) == LossWeights(0.001, 1000.0, 1000.0, 0.125) == LossWeights()
    assert LossWeights.of(tiny, 400.0) == LossWeights(0.02, 25.6, 25.6, 0.125)
    assert LossWeights.of(replace(tiny, contrast_share=0.1, cycle_weight=3.0), 50.0) == LossWeights(0.02, 5.0, 3.0)
    assert LossWeights.of(recipes.veca(), VOXELS).contrast == pytest.approx(1000, rel=0.01)
    with pytest.raises(BrainDataError, match="positive, finite total variance of the responses, got nan"):
        LossWeights.of(tiny, float("nan"))


def random_flow(path: str, tokens: int = 4, width: int = 6) -> XFM:
    """An untrained flow whose velocities are of the size of its points; a new one would stand still."""
    torch.manual_seed(0)
    flow = XFM(tokens, width, FlowSize(width=16, depth=2, heads=2, path=path))
    for layer in (flow.net.out, flow.net.modulation, *(block.modulation for block in flow.net.blocks)):
        nn.init.normal_(layer.weight, std=0.2)
    return flow


def test_stage_two_ends_at_a_sample_or_at_the_mean():
    flow, tokens = random_flow("cos_sin"), normal(5, 4, 6)
    mean, logvar = normal(5, 4, 6, seed=1).requires_grad_(), normal(5, 4, 6, seed=2).requires_grad_()
    posterior = Posterior.of(mean, logvar)
    for target in ("sample", "mean"):
        found = stage_two_loss(flow, tokens, posterior, target, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        z_1 = mean
        if target == "sample":
            z_1 = mean + (logvar / 2).exp() * torch.randn(5, 4, 6, generator=generator)
        expected = float(flow_matching_loss(flow, flow.path, tokens, z_1.detach(), generator).detach())
        assert float(found.detach()) == pytest.approx(expected)
        found.backward()
        assert mean.grad is None and logvar.grad is None
    with pytest.raises(BrainDataError, match="target to be one of sample, mean, got 'mode'"):
        stage_two_loss(flow, tokens, posterior, "mode")


def trained_flow(path: str) -> tuple[XFM, torch.Tensor, torch.Tensor]:
    """A small flow fitted to latents that are a turned, noisy copy of the tokens; 64 pairs it has not seen.

    Latents and tokens have a mean cosine of 0.5: the flow follows a stage that has aligned them.
    """
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(6, 6, generator=generator)
    turn = torch.linalg.matrix_exp(0.3 * (skew - skew.T))
    tokens = torch.randn(512, 4, 6, generator=generator)
    latents = tokens @ turn + 0.3 * torch.randn(512, 4, 6, generator=generator)
    torch.manual_seed(0)
    flow = XFM(4, 6, FlowSize(width=16, depth=2, heads=2, path=path))
    optimiser = torch.optim.AdamW(flow.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(150):
        rows = torch.randint(448, (64,), generator=generator)
        loss = flow_matching_loss(flow, flow.path, tokens[rows], latents[rows], generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / 150)
        optimiser.step()
    return flow.eval(), tokens[448:], latents[448:]


@pytest.mark.parametrize("path", PATHS)
def test_untrained_flow_comes_back(path):
    flow, vae = random_flow(path), small_vae()
    tokens, responses = normal(8, 4, 6), normal(8, 9)
    for start in ({"tokens": tokens}, {"responses": responses}):
        trip = round_trip(vae, flow, **start, subject="subj01", solver="heun", steps=20)
        assert (trip.forward - trip.start).norm() > 0.1 * trip.start.norm()
        assert 0 < trip.relative_error < 0.01
        assert trip.function_evaluations == 80


@pytest.mark.parametrize("path", [pytest.param(path, marks=[pytest.mark.slow] * (path != "linear")) for path in PATHS])
def test_trained_flow_comes_back_and_goes_where_it_was_taught(path):
    flow, tokens, latents = trained_flow(path)
    vae = small_vae()
    errors = {}
    for solver in ("euler", "heun_euler_last", "heun"):
        trip = round_trip(vae, flow, tokens=tokens, subject="subj01", solver=solver, steps=20)
        errors[solver] = trip.relative_error
    assert errors["heun"] < 0.01 and errors["heun"] < errors["heun_euler_last"] < errors["euler"] < 0.2
    cosine = torch.cosine_similarity(flow.encode(tokens).flatten(1), latents.flatten(1)).mean()
    wrong_way = torch.cosine_similarity(flow.decode(tokens).flatten(1), latents.flatten(1)).mean()
    assert cosine > 0.85 > 0.3 > wrong_way
    found = flow.decode(latents)
    assert torch.cosine_similarity(found.flatten(1), tokens.flatten(1)).mean() > 0.85


def test_round_trips_are_made_of_encode_and_decode():
    vae, flow = small_vae(), random_flow("linear")
    settings = {"subject": "subj02", "solver": "rk4", "steps": 3}
    tokens, responses = normal(3, 4, 6), normal(3, 11)
    trip = round_trip(vae, flow, tokens=tokens, through="response", **settings)
    assert torch.equal(trip.forward, vae.decode(flow.encode(tokens, "rk4", 3), "subj02"))
    assert torch.equal(trip.back, model.decode(vae, flow, trip.forward, **settings))
    trip = round_trip(vae, flow, responses=responses, through="response", **settings)
    mean = vae.encode(responses, "subj02").posterior.mean
    assert torch.equal(trip.forward, flow.decode(mean, "rk4", 3))
    assert torch.equal(trip.back, model.encode(vae, flow, trip.forward, **settings))
    assert trip.relative_error == pytest.approx(float((trip.back - responses).norm() / responses.norm()), rel=1e-5)
    trip = round_trip(vae, flow, responses=responses, **settings)
    assert torch.equal(trip.start, mean)
    for wrong in ({}, {"tokens": tokens, "responses": responses}):
        with pytest.raises(BrainDataError, match="neither" if not wrong else "both"):
            round_trip(vae, flow, **wrong)
    with pytest.raises(BrainDataError, match="through to be one of latent, response, got 'voxels'"):
        round_trip(vae, flow, tokens=tokens, through="voxels")


def test_networks_of_a_half_precision_flow_keep_the_state_of_the_solver():
    flow, tokens = random_flow("linear"), normal(3, 4, 6)
    full = flow.encode(tokens)
    half = flow.bfloat16().encode(tokens)
    assert half.dtype == torch.float32
    assert 0 < (half - full).norm() / full.norm() < 0.02
    # a state kept in bfloat16 would land on numbers with eight bits
    assert not torch.equal(half, half.bfloat16().float())


@pytest.mark.parametrize("name", ["paper", "veca", "veca_cores", "tiny"])
def test_recipes_are_named_and_survive_json(name):
    recipe = recipes.named(name)
    assert recipe.name == name and NeuroFlowRecipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(BrainDataError, match="got 'stepz'; near: steps"):
        NeuroFlowRecipe.from_json({"name": name, "stepz": 3})


def test_recipes_have_their_published_stages():
    paper, tiny = recipes.paper(), recipes.tiny()
    assert paper.stage1 == TrainingStage(epochs=30, lr=1e-4, weight_decay=0.05, batch_size=64, seed=1024)
    assert paper.stage2 == TrainingStage(steps=50_000, lr=1e-4, batch_size=24, clip_norm=1.0, ema_decay=0.9999)
    assert (paper.contrast_weight, paper.cycle_weight, paper.kl_weight) == (1000, 1000, 0.001)
    assert (paper.tokens, paper.response_scale, paper.validation) == ("raw", "as_is", 0)
    assert tiny.stage1 == TrainingStage(steps=500, lr=1e-3, weight_decay=0.05, batch_size=64)
    assert tiny.stage2 == TrainingStage(steps=1_200, lr=1e-3, batch_size=64, clip_norm=1.0, ema_decay=0.999)
    for recipe in (recipes.veca(), recipes.veca_cores()):  # with validation images, patience
        assert recipe.validation == 0.05
        assert recipe.stage1 == replace(paper.stage1, patience=3) and recipe.stage2 == replace(paper.stage2, patience=3)


def test_tiny_recipe_has_its_published_sizes_and_paper_its_settings():
    tiny, paper = recipes.tiny(), recipes.paper()
    vae = NeuroVAE(tiny.num_tokens, tiny.token_width, tiny.vae, {"subj01": 400})
    flow = XFM(tiny.num_tokens, tiny.token_width, tiny.flow)
    assert round(count(vae) / 1e6, 2) == 0.16 and round(count(flow) / 1e6, 2) == 0.33
    assert (paper.solver, paper.steps, paper.flow.path) == ("euler", 20, "cos_sin")
    assert (tiny.solver, tiny.steps, tiny.flow.path) == ("heun", 20, "linear")
    with pytest.raises(BrainDataError, match=r"a recipe to be one of .* got 'papr'; near: paper"):
        recipes.named("papr")
    for change in ({"solver": "dopri5"}, {"tokens": "whitened"}, {"validation": 1.0}, {"flow_target": "mode"}):
        with pytest.raises(BrainDataError, match=str(next(iter(change.values())))):
            replace(tiny, **change)
    with pytest.raises(BrainDataError, match="got 'arc'"):
        FlowSize(path="arc")
