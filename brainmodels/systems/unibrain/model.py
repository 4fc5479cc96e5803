"""The networks of UniBrain: a caption autoencoder, a text tower, and a denoiser with two outputs and two contexts.

Shapes: n samples, t tokens of a caption, m tokens of a latent, d token width, W width of the denoiser.

| name | what it is | after |
|---|---|---|
| `CaptionVAE` | BERT to a latent, GPT-2 back to words | Optimus (arXiv 2004.04092) |
| `TextTower` | CLIP's text model, whose tokens are the text context | CLIP (arXiv 2103.00020) |
| `DualContext` | two context blocks, whose outputs are mixed | Versatile Diffusion (arXiv 2211.08332) |
| `FourFlow` | denoiser of image and text latents | Versatile Diffusion, at the size of drawn scenes |
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import AxisError, BrainDataError, check_choice, need

try:
    from diffusers.models.attention import BasicTransformerBlock
    from transformers import (
        BertConfig,
        BertModel,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        GPT2Config,
        GPT2LMHeadModel,
    )
    from transformers.cache_utils import DynamicCache
except ImportError as error:
    raise need(error.name or "transformers", "brainmodels.systems.unibrain") from error

__all__ = ["OUTPUTS", "CaptionVAE", "DualContext", "FlowSize", "FourFlow", "TextSize", "TextTower"]

OUTPUTS = ("image", "text")


@dataclass(frozen=True)
class TextSize:
    """Sizes of a small caption autoencoder or text tower, which know one vocabulary.

    Attributes:
        vocabulary: Number of tokens of the vocabulary.
        length: Number of tokens of a caption.
        width: Width of a token.
        layers, heads: Number of layers, and of heads in each.
        latent: Width of the latent, or of the tokens of the context.
    """

    vocabulary: int
    length: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    latent: int = 64


class CaptionVAE(nn.Module):
    """Variational autoencoder of captions: BERT reads, GPT-2 writes, with the latent in both places of Optimus.

        mean, logvar = linear(pooled BERT)
        keys = values = memory(z), one more position before the caption in every layer
        tokens = embedding(word) + shift(z)

    Args:
        encoder: BERT model; with a pooler for `pooling="first"`.
        decoder: GPT-2 language model.
        latent: Width of the latent.
        pooling: "first" takes BERT's pooler, as Optimus does. "mean" averages the tokens of the caption. Small models
            need it: with "first" none of 200 captions came back after 1,200 steps, with "mean" nearly all do.
        first_logvar: Number that is added to the log-variance. Training begins with little noise if it is negative.

    Raises:
        BrainDataError: An unknown pooling.
    """

    def __init__(
        self,
        encoder: BertModel,
        decoder: GPT2LMHeadModel,
        latent: int,
        pooling: str = "first",
        first_logvar: float = 0.0,
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent, self.first_logvar = latent, first_logvar
        self.pooling = check_choice("pooling", pooling, ("first", "mean"))
        width, layers = decoder.config.n_embd, decoder.config.n_layer
        self.linear = nn.Linear(encoder.config.hidden_size, 2 * latent, bias=False)
        self.memory = nn.Linear(latent, layers * width, bias=False)
        self.shift = nn.Linear(latent, width, bias=False)

    @classmethod
    def small(cls, size: TextSize, end: int) -> "CaptionVAE":
        """An autoencoder with its own vocabulary, whose end token has the number `end`."""
        bert = BertConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=size.length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )
        gpt = GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=size.length + 1,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=end,
        )
        encoder = BertModel(bert, add_pooling_layer=False)
        return cls(encoder, GPT2LMHeadModel(gpt), size.latent, pooling="mean", first_logvar=-4.0)

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent of captions, (n, latent) each.

        Args:
            ids: (n, t) Numbers of the tokens.
            mask: (n, t) Which tokens belong to the caption; None takes those that are not 0.
        """
        mask = ids.ne(0) if mask is None else mask
        out = self.encoder(input_ids=ids, attention_mask=mask.long())
        if self.pooling == "first":
            pooled = out.pooler_output
        else:
            weights = mask[..., None].to(out.last_hidden_state.dtype)
            pooled = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
        mean, logvar = self.linear(pooled).chunk(2, -1)
        return mean, logvar + self.first_logvar

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (n, t, vocabulary) of the word after each token, given the latent.

        Args:
            z: (n, latent) Latents.
            ids: (n, t) Tokens, from the start token on.
        """
        return self._logits(z, ids, self._cache(z))

    @torch.no_grad()
    def write(
        self,
        z: Tensor,
        start: int,
        end: int,
        length: int,
        temperature: float = 0.0,
        generators: list[torch.Generator] | None = None,
    ) -> Tensor:
        """Write captions word by word: (n, at most length) tokens after the start, each row padded after its end.

        Args:
            z: (n, latent) Latents.
            start, end: Numbers of the start and the end token.
            length: Largest number of tokens to write.
            temperature: 0 takes the most likely word, otherwise words are drawn at this temperature.
            generators: One for each row on the CPU, where words are drawn.
        """
        ids = torch.full((len(z), 1), start, dtype=torch.long, device=z.device)
        cache, done, written = self._cache(z), torch.zeros(len(z), dtype=torch.bool, device=z.device), []
        for _ in range(length):
            logits = self._logits(z, ids, cache)[:, -1]
            if temperature:
                shares = (logits / temperature).softmax(-1).cpu()
                drawn = [
                    torch.multinomial(row, 1, generator=g) for row, g in zip(shares, generators or (), strict=True)
                ]
                ids = torch.stack(drawn).to(z.device)
            else:
                ids = logits.argmax(-1, keepdim=True)
            ids = torch.where(done[:, None], 0, ids)
            written.append(ids)
            done = done | (ids[:, 0] == end)
            if bool(done.all()):
                break
        return torch.cat(written, 1)

    def _logits(self, z: Tensor, ids: Tensor, cache: DynamicCache) -> Tensor:
        embedded = self.decoder.transformer.wte(ids) + self.shift(z)[:, None]
        return self.decoder(inputs_embeds=embedded, past_key_values=cache).logits

    def _cache(self, z: Tensor) -> DynamicCache:
        """The latent as one earlier position of every layer, whose key and value are equal."""
        config = self.decoder.config
        cache = DynamicCache(config=config)
        for layer, memory in enumerate(self.memory(z).chunk(config.n_layer, -1)):
            heads = memory.unflatten(-1, (config.n_head, 1, -1))  # (n, heads, 1, width / heads)
            cache.update(heads, heads, layer)
        return cache


class TextTower(nn.Module):
    """CLIP's text model. Its projected tokens, divided by the norm of the pooled vector, are the text context.

    Args:
        size: Sizes.
        end: Number of the end token, at which the pooled vector is taken.
        image_width: Width of the image features that it is trained against.
    """

    def __init__(self, size: TextSize, end: int, image_width: int):
        super().__init__()
        self.size, self.image_width = size, image_width
        config = CLIPTextConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=4 * size.width,
            projection_dim=size.latent,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=size.length,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=end,
        )
        self.text = CLIPTextModelWithProjection(config)
        self.image = nn.Linear(image_width, size.latent)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the context (n, t, d), and pooled vectors (n, d) of norm 1.

        Args:
            ids: (n, t) Numbers of the tokens.
        """
        out = self.text(input_ids=ids)
        norm = out.text_embeds.norm(dim=-1, keepdim=True)
        return self.text.text_projection(out.last_hidden_state) / norm[:, None], out.text_embeds / norm

    def images(self, features: Tensor) -> Tensor:
        """Image features (n, image_width) in the space of the pooled captions, (n, d) of norm 1."""
        return F.normalize(self.image(features), dim=-1)


class DualContext(nn.Module):
    """A context block for images and one for captions, whose outputs are mixed whole.

        w image(h, c_image) + (1 - w) text(h, c_text)

    With w = 1 and w = 0 only one block is computed, so the result is exactly that of the single-context network.

    Args:
        image, text: Blocks that are called as block(h, encoder_hidden_states=c) and return a tensor like h.
    """

    def __init__(self, image: nn.Module, text: nn.Module):
        super().__init__()
        self.image, self.text = image, text

    def forward(self, h: Tensor, c_image: Tensor, c_text: Tensor, image_weight: float) -> Tensor:
        """The mixture, shaped as h.

        Args:
            h: (n, m, W) Hidden tokens.
            c_image, c_text: Contexts (n, tokens, d).
            image_weight: Weight w of the image context, 0 to 1.
        """
        if image_weight == 1:
            return self.image(h, encoder_hidden_states=c_image)
        if image_weight == 0:
            return self.text(h, encoder_hidden_states=c_text)
        image = self.image(h, encoder_hidden_states=c_image)
        return image_weight * image + (1 - image_weight) * self.text(h, encoder_hidden_states=c_text)


@dataclass(frozen=True)
class FlowSize:
    """Sizes of a `FourFlow`.

    Attributes:
        image: (tokens, width) of the image latent, as the denoiser sees it.
        text: The same of the text latent.
        image_context, text_context: (tokens, width) of the contexts.
        width, heads, depth: Width W, heads of an attention, and number of levels.
    """

    image: tuple[int, int] = (16, 32)
    text: tuple[int, int] = (4, 16)
    image_context: tuple[int, int] = (17, 64)
    text_context: tuple[int, int] = (24, 64)
    width: int = 96
    heads: int = 4
    depth: int = 3

    def __post_init__(self):
        if self.width % self.heads or self.width % 2 or self.depth < 1:
            raise BrainDataError(
                f"expected an even width that {self.heads} heads divide, and a level, got {self.width}, {self.depth}"
            )


class _DataBlock(nn.Module):
    """Residual block of one output: norm, linear, plus time, SiLU, linear."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.into = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.time, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return h + self.out(F.silu(self.into(self.norm(h)) + self.time(time)[:, None]))


class FourFlow(nn.Module):
    """Predicts the noise in an image latent or a text latent, under an image context and a text context.

    Every level has a data block for each output and a context block for each condition. Context blocks are shared
    between the outputs, data blocks between the contexts.

    Args:
        size: Sizes.
    """

    def __init__(self, size: FlowSize):
        super().__init__()
        self.size = size
        W = size.width
        latents = {"image": size.image, "text": size.text}
        contexts = {"image": size.image_context, "text": size.text_context}
        self.into = nn.ModuleDict({kind: nn.Linear(width, W) for kind, (_, width) in latents.items()})
        self.place = nn.ParameterDict(
            {kind: nn.Parameter(0.02 * torch.randn(m, W)) for kind, (m, _) in latents.items()}
        )
        self.context = nn.ModuleDict({kind: nn.Linear(width, W) for kind, (_, width) in contexts.items()})
        self.context_place = nn.ParameterDict(
            {kind: nn.Parameter(0.02 * torch.randn(m, W)) for kind, (m, _) in contexts.items()}
        )
        self.time = nn.Sequential(nn.Linear(W, W), nn.SiLU(), nn.Linear(W, W))
        self.data = nn.ModuleList(nn.ModuleDict({kind: _DataBlock(W) for kind in OUTPUTS}) for _ in range(size.depth))
        self.mixed = nn.ModuleList(DualContext(_context_block(size), _context_block(size)) for _ in range(size.depth))
        self.norm = nn.LayerNorm(W)
        self.out = nn.ModuleDict({kind: nn.Linear(W, width) for kind, (_, width) in latents.items()})
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, kind: str, z: Tensor, time: Tensor, c_image: Tensor, c_text: Tensor, image_weight: float
    ) -> Tensor:
        """Predicted noise, shaped as z.

        Args:
            kind: "image" or "text", the latent that is denoised.
            z: (n, m, width) Noisy latents, as tokens of `size`.
            time: (n,) Times of the schedule, 0 to 999.
            c_image, c_text: Contexts (n, tokens, d).
            image_weight: Weight of the image context, 0 to 1.

        Raises:
            AxisError: A latent or a context has another shape than in `size`.
        """
        wanted = {"z": self.size.image if kind == "image" else self.size.text}
        wanted |= {"c_image": self.size.image_context, "c_text": self.size.text_context}
        for name, tensor in {"z": z, "c_image": c_image, "c_text": c_text}.items():
            if tuple(tensor.shape[1:]) != tuple(wanted[name]):
                raise AxisError(f"expected {name} of {kind} (n, {wanted[name]}), got {tuple(tensor.shape)}")
        h = self.into[kind](z) + self.place[kind]
        moment = self.time(_waves(time, self.size.width))
        contexts = [
            self.context[name](c) + self.context_place[name] for name, c in (("image", c_image), ("text", c_text))
        ]
        levels: Any = zip(self.data, self.mixed, strict=True)
        for data, mixed in levels:
            h = mixed(data[kind](h, moment), *contexts, image_weight)
        return self.out[kind](self.norm(h))


def _context_block(size: FlowSize) -> BasicTransformerBlock:
    """Self-attention, cross-attention to a context, and a gated feed-forward."""
    inner = 2 * size.width
    width, heads = size.width, size.heads
    return BasicTransformerBlock(
        width, heads, width // heads, cross_attention_dim=width, activation_fn="geglu", ff_inner_dim=inner
    )


def _waves(time: Tensor, width: int) -> Tensor:
    """Sines and cosines (n, width) of times, with periods from 2 pi to 20,000 pi."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = time.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
