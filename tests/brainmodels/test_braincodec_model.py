"""BraInCoRL's and BrainCoDec's networks: published sizes, definitions in fp64, order, padding; and their recipes."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.braincodec.model import ContextDecoder, ContextEncoder, Layer, ResidualBlock
from brainmodels.systems.braincodec.recipes import LOGNS, BrainCoDecRecipe, InContextRecipe, in_context, named
from brainmodels.training.recipe import TrainingStage

E = 6  # embedding width
LENGTHS = (9, 4, 1)  # valid entries of the samples of a ragged batch


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module) -> nn.Module:
    """The module with all numbers moved, so that no bias is zero and no norm is plain."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter += 0.2 * normal(*parameter.shape, seed=seed)
    return module.eval()


def encoder(logn: str = "logits", **changes) -> ContextEncoder:
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 4, "hidden": 10, "registers": 3} | changes
    return stirred(ContextEncoder(E, logn=logn, **sizes))


def decoder(logn: str = "logits", **changes) -> ContextDecoder:
    torch.manual_seed(0)
    sizes = {"width": 12, "depth": 3, "heads": 2, "hidden": 10, "residual_hidden": 14, "registers": 5} | changes
    return stirred(ContextDecoder(E, logn=logn, **{"readout_tokens": 2, "noise_channel": True} | sizes))


def inputs(network: nn.Module, count: int = 3, length: int = 9, seed: int = 0) -> tuple[Tensor, ...]:
    """Embeddings and responses of an encoder, or tokens of a decoder."""
    if isinstance(network, ContextEncoder):
        return normal(count, length, E, seed=seed), normal(count, length, seed=seed + 1)
    return (normal(count, length, network.token_width, seed=seed),)


def norm_of(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def affine(linear: nn.Linear, x: Tensor) -> Tensor:
    return x @ linear.weight.T + linear.bias


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def block_of(block: ResidualBlock, x: Tensor) -> Tensor:
    first, _, _, one, second, _, _, two = block.body
    y = affine(two, leaky(norm_of(second, affine(one, leaky(norm_of(first, x))))))
    return y + (x if isinstance(block.bypass, nn.Identity) else affine(block.bypass, x))


def layer_of(layer: Layer, x: Tensor, logn: str) -> tuple[Tensor, Tensor]:
    """A layer by its definition, head by head, on the entries (S, D) of one sample; and its mean attention (S, S)."""
    h, n, width = norm_of(layer.norm1, x), len(x), x.shape[1]
    size = width // layer.heads
    key, value = affine(layer.key_value, h).split(width, -1)
    query = affine(layer.query, math.log(n) * h if logn == "query" else h)
    reads, shares = [], torch.zeros(n, n, dtype=x.dtype)
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        logits = query[:, part] @ key[:, part].T / math.sqrt(size)
        weights = (math.log(n) * logits if logn == "logits" else logits).exp()
        weights = weights / weights.sum(1, keepdim=True)
        reads.append(weights @ value[:, part])
        shares += weights / layer.heads
    x = x + affine(layer.out, torch.cat(reads, 1))
    gate, up = affine(layer.mlp.fc1, norm_of(layer.norm2, x)).chunk(2, -1)
    return x + affine(layer.mlp.fc2, gate / (1 + (-gate).exp()) * up), shares


def network_of(network: nn.Module, logn: str, *sample: Tensor) -> tuple[Tensor, Tensor]:
    """Output and rollout of a network for one sample without padding, by their definitions."""
    first = isinstance(network, ContextEncoder)
    entries = torch.cat([sample[0], sample[1][:, None]], 1) if first else sample[0]
    x = torch.cat([network.registers, block_of(network.embed, entries)])
    rollout = torch.eye(len(x), dtype=x.dtype)
    for layer in network.layers:
        x, shares = layer_of(layer, x, logn)
        rollout = (shares / 2 + torch.eye(len(x), dtype=x.dtype) / 2) @ rollout
    registers = len(network.registers)
    if first:
        return block_of(network.to_weights, x[0]), rollout[0, registers:]
    one, _, _, two = network.readout
    read = affine(two, leaky(affine(one, torch.cat([*x[: network.readout_tokens]]))))
    return block_of(network.to_embedding, read), rollout[: network.readout_tokens, registers:].mean(0)


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("embed_width", "width", "parameters"), [(512, 560, 97_074_852), (768, 800, 156_000_196), (1152, 1200, 277_044_132)]
)
def test_published_sizes_of_stage_one(embed_width, width, parameters):
    with torch.device("meta"):
        network = ContextEncoder.of(replace(in_context("paper"), width=width), embed_width)
    assert count(network) == parameters


@pytest.mark.parametrize(
    ("embed_width", "width", "parameters"),
    [(512, 768, 55_697_668), (768, 1024, 88_758_276), (1152, 1440, 157_354_212)],
)
def test_published_sizes_of_stage_two(embed_width, width, parameters):
    with torch.device("meta"):
        network = ContextDecoder.of(replace(named("paper"), width=width), embed_width)
    assert count(network) == parameters


def test_registers_begin_small():
    torch.manual_seed(0)
    network = ContextEncoder(E, 400, 1, 4, 8, registers=50)
    assert float(network.registers.detach().std()) == pytest.approx(1 / math.sqrt(401), rel=0.02)


@pytest.mark.parametrize("logn", LOGNS)
def test_a_layer_equals_its_definition(logn):
    torch.manual_seed(0)
    layer = stirred(Layer(12, 3, 10, logn=logn)).double()
    x = normal(3, 9, 12).double()
    valid = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    whole, padded = layer(x), layer(x, valid)
    for sample, length in enumerate(LENGTHS):
        torch.testing.assert_close(whole[sample], layer_of(layer, x[sample], logn)[0], rtol=0, atol=1e-12)
        if length > 1:  # of one entry the definition takes the logarithm of 1, the layer that of 2
            expected, shares = layer_of(layer, x[sample, :length], logn)
            torch.testing.assert_close(padded[sample, :length], expected, rtol=0, atol=1e-12)
            found = layer.attention_map(x, valid)[sample, :length]
            torch.testing.assert_close(found[:, :length], shares, rtol=0, atol=1e-12)
            assert not found[:, length:].any()


@pytest.mark.parametrize("logn", LOGNS)
@pytest.mark.parametrize("make", [encoder, decoder])
def test_a_ragged_batch_equals_the_definition_for_each_sample(make, logn):
    network = make(logn).double()
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    batch = [x.double().masked_fill(~mask if x.ndim == 2 else ~mask[..., None], math.nan) for x in inputs(network)]
    output, rollout = network(*batch, mask=mask, attention=True)
    assert torch.equal(network(*batch, mask=mask), output)
    for sample, length in enumerate(LENGTHS):
        expected, shares = network_of(network, logn, *(x[sample, :length] for x in batch))
        torch.testing.assert_close(output[sample], expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(rollout[sample, :length], shares, rtol=0, atol=1e-12)
        assert 0 < shares.sum() < 1 and not rollout[sample, length:].any()


@pytest.mark.parametrize("logn", LOGNS)
@pytest.mark.parametrize("make", [encoder, decoder])
def test_padding_changes_nothing_in_fp32(make, logn):
    network = make(logn)
    batch = inputs(network)
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    output = network(*batch, mask=mask)
    for sample, length in enumerate(LENGTHS):
        alone = network(*(x[sample : sample + 1, :length] for x in batch))
        torch.testing.assert_close(output[sample], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logn", LOGNS)
@pytest.mark.parametrize("make", [encoder, decoder])
def test_the_order_of_entries_does_not_matter(make, logn):
    network = make(logn)
    batch = inputs(network, length=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    output, rollout = network(*batch, attention=True)
    turned, moved = network(*(x[:, order] for x in batch), attention=True)
    torch.testing.assert_close(turned, output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved, rollout[:, order], rtol=1e-5, atol=1e-7)
    assert rollout.std(1).min() > 1e-4  # a map of equal shares would pass as well
    other = network(*(x.flip(0) for x in batch))
    assert (other[0] - output[0]).abs().max() > 1e-2  # and so would an output that reads nothing


def test_the_released_scaling_leaves_the_bias_of_queries():
    """q(s h) = s (q(h) - b) + b, so scaled logits agree where the bias is b / s, or zero."""
    layers = {logn: stirred(Layer(12, 3, 10, logn=logn)).double() for logn in ("logits", "query")}
    layers["logits"].load_state_dict(layers["query"].state_dict())
    x = normal(2, 9, 12).double()
    released = layers["query"](x)
    assert (layers["logits"](x) - released).abs().max() > 1e-3
    with torch.no_grad():
        layers["logits"].query.bias /= math.log(9)
    torch.testing.assert_close(layers["logits"](x), released, rtol=0, atol=1e-12)
    for layer in layers.values():
        nn.init.zeros_(layer.query.bias)
    torch.testing.assert_close(layers["logits"](x), layers["query"](x), rtol=0, atol=1e-12)


def test_voxels_can_share_their_context_images():
    network = encoder()
    images, responses = normal(1, 9, E), normal(5, 9, seed=1)
    shared, rollout = network(images, responses, attention=True)
    alone = [network(images, responses[i : i + 1], attention=True) for i in range(5)]
    torch.testing.assert_close(shared, torch.cat([weights for weights, _ in alone]))
    torch.testing.assert_close(rollout, torch.cat([shares for _, shares in alone]))


@pytest.mark.parametrize("make", [encoder, decoder])
def test_checkpointing_changes_no_gradient(make):
    network = make(dropout=0.3).train()
    batch = inputs(network)
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    runs, gradients = [], []
    network.layers[0].register_forward_pre_hook(lambda *_: runs.append(network.checkpointing))
    for network.checkpointing in (False, True):
        torch.manual_seed(1)
        network(*batch, mask=mask).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
        network.zero_grad()
    assert runs == [False, True, True]
    for first, second in zip(*gradients, strict=True):
        assert first.any() and torch.equal(first, second)


@pytest.mark.parametrize("make", [encoder, decoder])
def test_bfloat16_stays_near_fp32(make):
    network = make()
    batch = inputs(network)
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    expected, rollout = network(*batch, mask=mask, attention=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, shares = network(*batch, mask=mask, attention=True)
    half = network.bfloat16()(*(x.bfloat16() for x in batch), mask=mask)
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert 0 < (found.float() - expected).norm() / expected.norm() < 0.03
    assert shares.dtype == torch.float32 and (shares - rollout).abs().max() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "divisible by heads=3 into heads of at least 4, got 16"),
        ({"heads": 8}, "divisible by heads=8 into heads of at least 4, got 16"),
        ({"width": 4, "heads": 1}, "at least embed_width . 1 = 7, got 4"),
        ({"registers": 0}, "readout_tokens from 1 to registers=0, .*got 1"),
        ({"depth": 0}, "at least one layer, got 0"),
        ({"logn": "log"}, "logn to be one of logits, query, none, got 'log'"),
    ],
)
def test_sizes_of_an_encoder_that_do_not_fit_are_named(changes, message):
    with pytest.raises(BrainDataError, match=message):
        encoder(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readout_tokens": 6}, "readout_tokens from 1 to registers=5, .*got 6"),
        ({"readout_tokens": 0}, "readout_tokens from 1 to registers=5, .*got 0"),
        ({"heads": 4}, "heads of at least 4, got 12"),
    ],
)
def test_sizes_of_a_decoder_that_do_not_fit_are_named(changes, message):
    with pytest.raises(BrainDataError, match=message):
        decoder(**changes)
    for kind in (ContextEncoder.of, ContextDecoder.of):
        with pytest.raises(BrainDataError, match="embed_width of at least 2, got 1"):
            kind(in_context("tiny") if kind == ContextEncoder.of else named("tiny"), 1)


def test_inputs_that_do_not_fit_are_named():
    first, second = encoder(), decoder()
    with pytest.raises(AxisError, match=r"embeddings \(3, 9, 6\), or 1 in front, .*\(3, 9\), got \(2, 9, 6\)"):
        first(normal(2, 9, E), normal(3, 9))
    with pytest.raises(AxisError, match=r"got \(3, 9, 5\)"):
        first(normal(3, 9, 5), normal(3, 9))
    with pytest.raises(AxisError, match=r"at least one image, got \(3, 0\)"):
        first(normal(1, 0, E), normal(3, 0))
    with pytest.raises(AxisError, match=r"tokens \(B, V, 9\) of at least one voxel, got \(3, 9, 8\)"):
        second(normal(3, 9, 8))
    with pytest.raises(AxisError, match=r"mask \(3, 9\) of torch.bool, got \(3, 9\) of torch.float32"):
        second(normal(3, 9, 9), torch.ones(3, 9))
    with pytest.raises(AxisError, match=r"mask \(3, 9\) of torch.bool, got \(1, 9\) of torch.bool"):
        first(normal(3, 9, E), normal(3, 9), torch.ones(1, 9, dtype=torch.bool))


@pytest.mark.parametrize("name", ["paper", "released", "nano", "tiny"])
def test_recipes_are_named_and_survive_json(name):
    for recipe, kind in [(named(name), BrainCoDecRecipe), (in_context(name), InContextRecipe)]:
        assert recipe.name == name and (recipe.what, recipe.tokens) == ("pooled", "embedding")
        assert kind.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        with pytest.raises(BrainDataError, match="got 'widht'; near: width"):
            kind.from_json({"widht": 3})
    assert named(name).stage1 == in_context(name)
    content = json.loads(json.dumps(named(name).to_json()))
    with pytest.raises(BrainDataError, match=r"keys of recipe.stage1.finetune .*got 'stepz'; near: steps"):
        content["stage1"]["finetune"]["stepz"] = 3
        BrainCoDecRecipe.from_json(content)


def test_recipes_have_their_published_values():
    paper, released = named("paper"), named("released")
    plateau = {"lr": 1e-3, "least_lr": 1e-5, "weight_decay": 0.01, "batch_size": 80, "schedule": "plateau"}
    assert paper.stage1.pretrain == paper.stage1.extend == TrainingStage(steps=50_000, **plateau)
    assert paper.stage1.finetune == TrainingStage(epochs=100, patience=5, **plateau)
    cosine = {"least_lr": 1e-6, "weight_decay": 0.01, "batch_size": 32, "schedule": "cosine"}
    assert paper.synthetic == paper.extend == TrainingStage(steps=20_000, lr=1e-4, **cosine)
    assert paper.finetune == released.finetune == TrainingStage(epochs=100, lr=1e-5, weight_decay=0.01, batch_size=32)
    assert released.synthetic == TrainingStage(epochs=1, lr=1e-5, **cosine)
    changed = {"lr": 1e-4, "weight_decay": 0.1, "batch_size": 64}
    assert released.stage1.finetune == TrainingStage(epochs=100, **plateau | changed)
    assert released.extend is released.stage1.pretrain is released.stage1.extend is None
    switches = [(x.stage1.logn, x.logn, x.legacy_sim, x.cross_fit, x.readout_tokens) for x in (paper, released)]
    assert switches == [("logits", "logits", False, "nested", 4), ("query", "query", True, "single", 4)]


def test_the_recipe_for_veca_base_has_the_published_sizes_for_768_features():
    recipe = named("veca")
    with torch.device("meta"):
        networks = ContextEncoder.of(recipe.stage1, 768), ContextDecoder.of(recipe, 768)
    assert [count(network) for network in networks] == [156_000_196, 88_758_276]
    assert in_context("veca") == recipe.stage1


def test_tiny_is_tiny():
    tiny, nano = named("tiny"), named("nano")
    assert replace(nano, name="tiny", stage1=tiny.stage1) == tiny
    same = {"name": "tiny", "extend": tiny.stage1.extend, "finetune": tiny.stage1.finetune}
    assert replace(nano.stage1, **same) == tiny.stage1  # the longer training is the only difference
    assert (nano.stage1.extend.steps, nano.stage1.finetune.lr) == (8_000, 5e-4)
    assert tiny.stage1.pretrain is tiny.extend is None
    stages = (tiny.stage1.extend, tiny.stage1.finetune, tiny.synthetic, tiny.finetune)
    assert [(stage.steps, stage.lr) for stage in stages] == [(4_000, 3e-3), (300, 3e-3), (2_000, 3e-3), (400, 5e-4)]
    assert 35_000 < count(ContextEncoder.of(tiny.stage1, 16)) < 45_000


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (InContextRecipe, {"logn": "log"}, "logn to be one of logits, query, none"),
        (InContextRecipe, {"prior": "rigde"}, "got 'rigde'; near: ridge"),
        (InContextRecipe, {"context": (0, 5)}, "context from 1 up, the lowest first, got 0 to 5"),
        (InContextRecipe, {"queries": 0}, "queries of at least 1, got 0"),
        (BrainCoDecRecipe, {"cross_fit": "nest"}, "got 'nest'; near: nested"),
        (BrainCoDecRecipe, {"extend_voxels": (9, 5)}, "extend_voxels from 1 up, the lowest first, got 9 to 5"),
        (BrainCoDecRecipe, {"runs": ()}, r"runs of 2 context images or more .*got \(\) and 5"),
    ],
)
def test_mistakes_in_recipes_are_named(kind, changes, message):
    with pytest.raises(BrainDataError, match=message):
        kind(**changes)
