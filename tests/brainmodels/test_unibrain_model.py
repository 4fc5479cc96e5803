"""The networks of UniBrain against written-out arithmetic."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.unibrain.components import Components
from brainmodels.systems.unibrain.losses import kl_divergence
from brainmodels.systems.unibrain.model import CaptionVAE, DualContext, FlowSize, FourFlow, TextSize, TextTower

SIZE = FlowSize(image=(4, 6), text=(3, 5), image_context=(5, 8), text_context=(7, 9), width=16, heads=2, depth=2)
TEXT = TextSize(vocabulary=20, length=10, width=16, layers=2, heads=2, latent=6)


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    model = FourFlow(SIZE).eval()
    for head in model.out.values():  # new ones are zero
        nn.init.normal_(head.weight)
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return {"image": draw(3, 4, 6), "text": draw(3, 3, 5)}, torch.tensor([1, 500, 999]), draw(3, 5, 8), draw(3, 7, 9)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize(("weight", "other"), [(1.0, "text"), (0.0, "image")])
def test_one_context_alone_is_a_network_without_the_other(flow, inputs, kind, weight, other):
    z, time, c_image, c_text = inputs
    alone = deepcopy(flow)
    for block in alone.mixed:
        for parameter in getattr(block, other).parameters():
            parameter.data.fill_(torch.nan)
    contexts = {"image": c_image, "text": c_text} | {
        other: torch.full_like(c_text if other == "text" else c_image, 9.0)
    }
    whole = flow(kind, z[kind], time, c_image, c_text, weight)
    assert torch.equal(whole, alone(kind, z[kind], time, contexts["image"], contexts["text"], weight))
    near = flow(kind, z[kind], time, c_image, c_text, abs(weight - 1e-6))  # the mixture ends where the shortcut begins
    torch.testing.assert_close(near, whole, atol=1e-4, rtol=1e-4)


def test_one_block_is_linear_in_the_weight(flow, inputs):
    block, h = flow.mixed[0], torch.randn(3, 4, 16)
    c_image, c_text = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    ends = [block(h, c_image, c_text, weight) for weight in (0.0, 1.0)]
    torch.testing.assert_close(block(h, c_image, c_text, 0.3), 0.7 * ends[0] + 0.3 * ends[1])
    assert not torch.allclose(*ends)


def test_context_blocks_are_shared_between_outputs_and_data_blocks_are_not(flow, inputs):
    z, time, c_image, c_text = inputs

    def outputs(model):
        return {kind: model(kind, z[kind], time, c_image, c_text, 0.5) for kind in ("image", "text")}

    before = outputs(flow)
    for name, changed in {"context": ["image", "text"], "data": ["image"]}.items():
        other = deepcopy(flow)
        block = other.mixed[1].text if name == "context" else other.data[1]["image"]
        next(p for p in block.parameters() if p.ndim > 1).data.add_(0.5)
        after = outputs(other)
        assert [kind for kind in after if not torch.equal(after[kind], before[kind])] == changed


def test_a_flow_refuses_other_shapes(flow, inputs):
    z, time, c_image, c_text = inputs
    with pytest.raises(AxisError, match="c_text of text"):
        flow("text", z["text"], time, c_image, c_text[:, :3], 0.5)
    with pytest.raises(BrainDataError, match="heads divide"):
        FlowSize(width=10, heads=4)


def written_out(vae, z, ids):
    """Logits of GPT-2 with the latent as a first key and value and as a part of every embedding."""
    gpt, config = vae.decoder.transformer, vae.decoder.config
    places = torch.arange(1, ids.shape[1] + 1)
    h = gpt.wte.weight[ids] + (z @ vae.shift.weight.T)[:, None] + gpt.wpe.weight[places]
    memories = (z @ vae.memory.weight.T).chunk(config.n_layer, -1)
    for block, memory in zip(gpt.h, memories, strict=True):
        x = F.layer_norm(h, h.shape[-1:], block.ln_1.weight, block.ln_1.bias, config.layer_norm_epsilon)
        q, k, v = (x @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
        k, v = (torch.cat([memory[:, None], y], 1) for y in (k, v))
        q, k, v = (y.unflatten(-1, (config.n_head, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        count = ids.shape[1]
        seen = torch.arange(count + 1)[None] <= torch.arange(count)[:, None] + 1
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        h = h + mixed.transpose(1, 2).flatten(2) @ block.attn.c_proj.weight + block.attn.c_proj.bias
        x = F.layer_norm(h, h.shape[-1:], block.ln_2.weight, block.ln_2.bias, config.layer_norm_epsilon)
        inner = F.gelu(x @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
        h = h + inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    h = F.layer_norm(h, h.shape[-1:], gpt.ln_f.weight, gpt.ln_f.bias, config.layer_norm_epsilon)
    return h @ gpt.wte.weight.T


def test_the_caption_autoencoder_is_the_arithmetic_of_optimus():
    torch.manual_seed(0)
    vae = CaptionVAE.small(TEXT, end=19).eval()
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.3)
    z, ids = torch.randn(4, 6), torch.randint(2, 19, (4, 7))
    torch.testing.assert_close(vae(z, ids), written_out(vae, z, ids), atol=1e-5, rtol=1e-5)
    written = vae.write(z, start=1, end=19, length=9)
    rows = torch.cat([torch.ones(4, 1, dtype=torch.long), written], 1)
    for row in rows:  # word by word equals all words at once
        count = len(row) if 19 not in row else row.tolist().index(19) + 1
        told = vae(z[: len(rows)], rows)[(rows == row).all(1)][0].argmax(-1)
        assert torch.equal(told[: count - 1], row[1:count])


def test_the_mean_pooling_does_not_see_padding():
    torch.manual_seed(0)
    vae = CaptionVAE.small(TEXT, end=19).eval()
    ids = torch.tensor([[1, 5, 6, 19]])
    padded = F.pad(ids, (0, 4))
    torch.testing.assert_close(vae.encode(ids), vae.encode(padded), atol=1e-5, rtol=1e-5)


def test_tokens_of_the_tower_are_divided_by_the_norm_of_the_pooled_vector():
    torch.manual_seed(0)
    tower = TextTower(TEXT, end=19, image_width=5).eval()
    ids = torch.tensor([[1, 5, 6, 19, 0, 0], [1, 7, 8, 9, 19, 0]])
    tokens, pooled = tower(ids)
    ends = torch.stack([tokens[0, 3], tokens[1, 4]])
    torch.testing.assert_close(ends, pooled)
    torch.testing.assert_close(pooled.norm(dim=-1), torch.ones(2))


def test_components_are_those_of_a_singular_value_decomposition():
    values = torch.randn(50, 6, dtype=torch.float64) @ torch.diag(torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])).double() + 4
    fitted = Components.fit(values.float(), 3, standardise=False, whiten=True)
    found = fitted(values.float())
    torch.testing.assert_close(found.square().mean(0), torch.ones(3), atol=1e-4, rtol=1e-4)
    u, s, v = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    best = (u[:, :3] * s[:3]) @ v[:3] + values.mean(0)
    torch.testing.assert_close(fitted.inverse(found).double(), best, atol=1e-4, rtol=1e-4)
    assert Components.fit(values.float(), 3, standardise=True, whiten=False).spread.unique().numel() == 1


def test_the_kl_is_that_of_torch():
    mean, logvar = torch.randn(5, 4), torch.randn(5, 4)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    true = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, logvar), true.sum(-1))
    torch.testing.assert_close(kl_divergence(mean, logvar, 0.7), true.clamp_min(0.7).sum(-1))


def test_dual_context_passes_the_contexts_to_their_blocks():
    class Block(nn.Module):
        def forward(self, h, encoder_hidden_states):
            return h + encoder_hidden_states

    h = torch.zeros(1)
    assert DualContext(Block(), Block())(h, torch.ones(1), 10 * torch.ones(1), 0.25).item() == 0.25 + 7.5
