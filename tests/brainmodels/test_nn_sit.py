"""The transformer over tokens: its size, its code of positions and times, and one block written out."""

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, silu

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.sit import SiT, TimeEmbedding, sincos_positions


def awake(model: SiT) -> SiT:
    """Random numbers in all weights, those that begin at zero too, in fp64."""
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.double()


@pytest.mark.parametrize(
    ("depth", "heads", "width", "parameters", "code"),
    [
        (8, 13, 1664, 410_856_576 - 425_984, 425_984),
        (12, 13, 1664, 610_316_928 - 425_984, 425_984),
        (12, 12, 768, 130_099_968, 196_608),
    ],
    ids=["synbrain", "neuroflow", "neuroflow_veca"],
)
def test_published_sizes(depth, heads, width, parameters, code):
    with torch.device("meta"):
        model = SiT(256, width, depth, heads)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.positions.numel() == code


def test_a_new_model_returns_zeros_and_its_modulation_learns_nothing_yet():
    torch.manual_seed(0)
    model = SiT(4, 8, depth=1, num_heads=2)
    assert not model(torch.randn(3, 4, 8), torch.rand(3)).any()
    assert all(not block.modulation.weight.any() for block in model.blocks)
    assert float(model.time.mlp[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    bound = math.sqrt(6 / (8 + 24))  # Xavier: of a linear from 8 to 3 * 8
    assert 0.9 * bound < model.blocks[0].attn.qkv.weight.abs().max() <= bound


def test_positions_and_times_are_sinusoids():
    code = sincos_positions(5, 6)
    embedding = TimeEmbedding(4).double()
    seen = []
    embedding.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedding(torch.tensor([0.0, 0.7], dtype=torch.float64))
    for i in range(3):
        frequency = 10_000 ** (-i / 3)
        assert float(code[4, i]) == pytest.approx(math.sin(4 * frequency), rel=1e-6)
        assert float(code[4, 3 + i]) == pytest.approx(math.cos(4 * frequency), rel=1e-6)
    for i in (0, 1, 127):
        angle = 0.7 * math.exp(-math.log(10_000) * i / 128)
        assert float(seen[0][1, i]) == pytest.approx(math.cos(angle), rel=1e-12)
        assert float(seen[0][1, 128 + i]) == pytest.approx(math.sin(angle), rel=1e-12)


def test_one_block_written_out():
    model = awake(SiT(3, 8, depth=1, num_heads=2))
    tokens, time = torch.randn(2, 3, 8, dtype=torch.float64), torch.tensor([0.2, 0.9], dtype=torch.float64)
    block, condition = model.blocks[0], silu(model.time(time))

    def norm(x):
        return layer_norm(x, (8,), eps=1e-6)

    expected = []
    for i in range(2):
        b1, s1, g1, b2, s2, g2 = linear(condition[i], block.modulation.weight, block.modulation.bias).reshape(6, 8)
        x = tokens[i] + model.positions
        q, k, v = block.attn.qkv((1 + s1) * norm(x) + b1).reshape(3, 3, 2, 4).permute(1, 2, 0, 3)
        mixed = (q @ k.mT / math.sqrt(4)).softmax(-1) @ v  # (heads, tokens, 4)
        x = x + g1 * block.attn.proj(mixed.transpose(0, 1).reshape(3, 8))
        x = x + g2 * block.mlp.fc2(gelu(block.mlp.fc1((1 + s2) * norm(x) + b2), approximate="tanh"))
        shift, scale = linear(condition[i], model.modulation.weight, model.modulation.bias).reshape(2, 8)
        expected.append(model.out((1 + scale) * norm(x) + shift))
    torch.testing.assert_close(model(tokens, time), torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_no_time_is_time_zero_and_other_times_differ():
    model = awake(SiT(3, 8, depth=2, num_heads=2, width=16))
    tokens = torch.randn(2, 3, 8, dtype=torch.float64)
    at_zero = model(tokens, torch.zeros(2))
    assert torch.equal(model(tokens), at_zero)
    assert (model(tokens, torch.tensor([0.0, 1.0]))[1] - at_zero[1]).abs().max() > 1e-3


def test_order_of_tokens_matters_only_through_their_positions():
    model = awake(SiT(4, 8, depth=2, num_heads=2))
    tokens, order = torch.randn(2, 4, 8, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    assert (model(tokens[:, order]) - model(tokens)[:, order]).abs().max() > 1e-3
    model.positions.zero_()
    torch.testing.assert_close(model(tokens[:, order]), model(tokens)[:, order])


def test_plain_conditioning_expresses_adaln_at_one_time():
    adaln, plain = awake(SiT(3, 8, 1, 2)), SiT(3, 8, 1, 2, conditioning="plain").double()
    condition = silu(adaln.time(torch.zeros(1, dtype=torch.float64)))
    state = {key: value for key, value in adaln.state_dict().items() if key.split(".")[0] in ("blocks", "out")}
    state = {key: value for key, value in state.items() if "modulation" not in key}
    b1, s1, g1, b2, s2, g2 = adaln.blocks[0].modulation(condition)[0].chunk(6)
    shift, scale = adaln.modulation(condition)[0].chunk(2)
    norms = {"blocks.0.norm1": (s1, b1), "blocks.0.norm2": (s2, b2), "norm": (scale, shift)}
    for name, (s, b) in norms.items():
        state |= {f"{name}.weight": 1 + s, f"{name}.bias": b}
    for layer, gate in (("attn.proj", g1), ("mlp.fc2", g2)):
        name = f"blocks.0.{layer}"
        state[f"{name}.weight"] = gate[:, None] * state[f"{name}.weight"]
        state[f"{name}.bias"] = gate * state[f"{name}.bias"]
    plain.load_state_dict(state | {"positions": adaln.positions})
    tokens = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(tokens), adaln(tokens), rtol=1e-10, atol=1e-10)
    with pytest.raises(BrainDataError, match="no time"):
        plain(tokens, torch.zeros(2))


def test_checkpointing_changes_no_gradient():
    model = awake(SiT(3, 8, depth=2, num_heads=2))
    tokens, time = torch.randn(2, 3, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    gradients = []
    for model.checkpointing in (False, True):
        model(tokens, time).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
        model.zero_grad()
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_mistakes_are_named():
    with pytest.raises(BrainDataError, match="divisible by num_heads=3, got 8"):
        SiT(3, 8, 1, 3)
    with pytest.raises(BrainDataError, match="even width divisible by num_heads=1, got 7"):
        SiT(3, 7, 1, 1)
    with pytest.raises(BrainDataError, match="got 'film'"):
        SiT(3, 8, 1, 2, conditioning="film")
    model = SiT(3, 8, 1, 2)
    with pytest.raises(AxisError, match=r"\(B, 3, 8\), got \(2, 4, 8\)"):
        model(torch.zeros(2, 4, 8))
    with pytest.raises(AxisError, match=r"time \(2,\)"):
        model(torch.zeros(2, 3, 8), torch.zeros(3))
