"""The networks of BraInCoRL and BrainCoDec: transformers over a set, whose entries have no order.

    encoder = ContextEncoder.of(recipe.stage1, embed_width=16)
    weights = encoder(images, responses)      # (1, n, E) and (V, n) to (V, E + 1), a linear encoder for each voxel
    decoder = ContextDecoder.of(recipe, embed_width=16)
    embeddings = decoder(tokens)              # (B, V, E + 2) to (B, E): encoder and response of each voxel to an image

Learned registers stand before the set and read it by self-attention. The output is made from the first registers.

Shapes: B samples (voxels in stage 1, images in stage 2), S entries of the set (context images in stage 1, voxels in
stage 2), R registers, E embedding width, D model width, H heads of width d.
"""

import math
from typing import Any, Self

import torch
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from veca.model.modules import Modules

from ...errors import AxisError, BrainDataError, check_choice
from .recipes import LOGNS, BrainCoDecRecipe, InContextRecipe

__all__ = ["ContextDecoder", "ContextEncoder", "Layer", "ResidualBlock", "attention_rollout"]

SLOPE = 0.1  # of LeakyReLU below zero
LEAST_HEAD = 4  # smallest width of an attention head


class ResidualBlock(nn.Module):
    """Two linear layers behind norms, plus a linear map of the input itself.

        y = L2(drop(leaky(norm(L1(drop(leaky(norm(x)))))))) + bypass(x)

    The norm removes the scale of its input, which the bypass keeps. The bypass is the identity if the widths agree.

    Args:
        in_width, out_width: Widths of input and output.
        hidden: Width between the linear layers.
        dropout: Share of dropout before each linear layer.
    """

    def __init__(self, in_width: int, out_width: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(in_width),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
            nn.Linear(in_width, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
            nn.Linear(hidden, out_width),
        )
        self.bypass = nn.Identity() if in_width == out_width else nn.Linear(in_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.bypass(x)  # (..., out_width)


class Layer(nn.Module):
    """Pre-norm self-attention with log-n scaling, then SwiGLU; both are residual, and there is no norm at the end.

    Here h = norm(x), n is the number of valid entries of a sample, registers included, and the logarithm is natural.

    | logn | logits of one head of width d |
    |---|---|
    | "logits" | log(n) q(h) k(h)' / sqrt(d) |
    | "query" | q(log(n) h) k(h)' / sqrt(d), as released: the bias of q is not scaled |
    | "none" | q(h) k(h)' / sqrt(d) |

    Without the factor, attention spreads over more entries as their number grows.

    Args:
        width: Model width D, divisible by the number of heads.
        heads: Number H of attention heads.
        hidden: Hidden width of the SwiGLU.
        dropout: Share of dropout on the output of the attention.
        logn: Kind of scaling, see above.

    Raises:
        BrainDataError: D is not divisible by H, heads are narrower than 4, or an unknown scaling.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0, logn: str = "logits"):
        super().__init__()
        check_choice("logn", logn, LOGNS)
        if heads < 1 or width % heads or width // heads < LEAST_HEAD:
            raise BrainDataError(
                f"expected a width that is divisible by heads={heads} into heads of at least {LEAST_HEAD}, got {width}"
            )
        self.heads, self.logn = heads, logn
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = SwiGLUPacked(width, 2 * hidden)
        for linear in (self.query, self.key_value, self.out):  # as torch's MultiheadAttention begins
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Transform the entries of each sample.

        Args:
            x: (B, S, D) Entries, registers included.
            valid: (B, S) Whether an entry is there, bool. The others are not attended to. None is all.

        Returns:
            (B, S, D).
        """
        query, key, value = self._heads(x, valid)
        mask = None if valid is None else valid[:, None, None]  # (B, 1, 1, S)
        read = F.scaled_dot_product_attention(query, key, value, mask)  # (B, H, S, d)
        x = x + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        return x + self.mlp(self.norm2(x))

    @torch.no_grad()
    def attention_map(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Shares of attention, averaged over heads and computed in fp32 at least.

        Args:
            x, valid: Inputs of `forward`.

        Returns:
            (B, S, S). Row i says how much entry i takes from each entry.
        """
        query, key, _ = self._heads(x, valid)
        dtype = torch.promote_types(query.dtype, torch.float32)
        shares: Any = 0.0
        with torch.autocast(x.device.type, enabled=False):
            for head in range(self.heads):  # one at a time, because a map of 4000 voxels takes 64 MB
                logits = query[:, head].to(dtype) @ key[:, head].to(dtype).mT / math.sqrt(query.shape[-1])
                if valid is not None:
                    logits = logits.masked_fill(~valid[:, None], -math.inf)
                shares = shares + logits.softmax(-1) / self.heads
        return shares

    def _heads(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, each (B, H, S, d)."""
        h = self.norm1(x)
        if self.logn == "query":
            query = self.query(_log_scaled(h, valid))
        elif self.logn == "logits":
            query = _log_scaled(self.query(h), valid)
        else:
            query = self.query(h)
        key, value = self.key_value(h).chunk(2, -1)  # (B, S, D)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return query, key, value


def _log_scaled(x: Tensor, valid: Tensor | None) -> Tensor:
    """Entries (B, S, D) times the logarithm of the number of valid ones, at least 2, in the dtype of x."""
    if valid is None:
        return x * math.log(max(2, x.shape[1]))
    count = valid.sum(1).clamp(min=2).to(torch.promote_types(x.dtype, torch.float32))  # (B,)
    return (x * count.log()[:, None, None]).to(x.dtype)


def attention_rollout(maps: list[Tensor], readout: int = 1) -> Tensor:
    """How much the first entries take from each entry of the input, through all layers.

    The map of a layer is averaged with the identity, which stands for its residual path, and the maps are multiplied
    (Abnar and Zuidema, arXiv 2005.00928). It follows attention alone: a large share need not mean a large effect.

    Args:
        maps: (B, S, S) Shares of attention of each layer, the first layer first.
        readout: Number of first entries whose shares are averaged.

    Returns:
        (B, S). Each row has sum 1.
    """
    size = maps[0].shape[-1]
    share = maps[0].new_zeros(len(maps[0]), 1, size)
    share[..., :readout] = 1 / readout
    for shares in reversed(maps):
        share = (share + share @ shares) / 2
    return share.squeeze(1)


class _SetReader(nn.Module):
    """Embedding, registers and layers, which both networks have.

    Attributes:
        checkpointing: Whether to compute the embedding and each layer again in the backward pass instead of keeping
            their activations. Default: False.
    """

    def __init__(
        self,
        entry_width: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        residual_hidden: int,
        registers: int,
        readout_tokens: int,
        dropout: float,
        logn: str,
    ):
        super().__init__()
        if not 1 <= readout_tokens <= registers:
            raise BrainDataError(
                f"expected readout_tokens from 1 to registers={registers}, of which they are the first, "
                f"got {readout_tokens}"
            )
        if depth < 1:
            raise BrainDataError(f"expected a depth of at least one layer, got {depth}")
        self.readout_tokens = readout_tokens
        self.checkpointing = False
        self.embed = ResidualBlock(entry_width, width, residual_hidden, dropout)
        self.registers = nn.Parameter(torch.randn(registers, width) / math.sqrt(width + 1))
        self.layers = Modules(Layer(width, heads, hidden, dropout, logn) for _ in range(depth))

    def _read(self, entries: Tensor, mask: Tensor | None, attention: bool) -> tuple[Tensor, Tensor | None]:
        """The first registers (B, readout_tokens, D) after all layers, and their rollout (B, S) if asked for."""
        registers, valid = len(self.registers), None
        if mask is not None:
            entries = entries.masked_fill(~mask.unsqueeze(-1), 0)  # attention gives 0 * NaN where padding is NaN
            valid = F.pad(mask, (registers, 0), value=True)  # (B, R + S)
        x = torch.cat([self.registers.expand(len(entries), -1, -1), self._run(self.embed, entries)], 1)  # (B, R + S, D)
        maps = []
        for layer in self.layers:
            if attention:
                maps.append(layer.attention_map(x, valid))
            x = self._run(layer, x, valid)
        rollout = attention_rollout(maps, self.readout_tokens)[:, registers:] if attention else None
        return x[:, : self.readout_tokens], rollout

    def _run(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)


class ContextEncoder(_SetReader):
    """The linear encoder of a voxel, read from images and the voxel's responses to them (BraInCoRL, stage 1).

    The response to an embedding x is predicted as x . w + b. The order of the context images does not matter.

    | E | D | parameters at the paper's depth |
    |---|---|---|
    | 512 | 560 | 97,074,852 |
    | 768 | 800 | 156,000,196 |
    | 1152 | 1200 | 277,044,132 |

    Args:
        embed_width: Embedding width E, at least 2.
        width: Model width D, at least E + 1, because a narrower one would lose a part of each pair.
        depth, heads: Number of layers, and of heads in each.
        hidden: Hidden width of the SwiGLU layers. Residual blocks have 2 D.
        registers: Number R of registers. The first is read.
        dropout: Share of dropout.
        logn: Log-n scaling of the layers, see `Layer`.

    Attributes:
        embed_width: E.
        checkpointing: Whether to compute activations again in the backward pass. Default: False.

    Raises:
        BrainDataError: Sizes that do not fit together, or an unknown scaling.
    """

    def __init__(
        self,
        embed_width: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        registers: int = 4,
        dropout: float = 0.0,
        logn: str = "logits",
    ):
        _check_embed_width(embed_width)
        if width < embed_width + 1:
            raise BrainDataError(f"expected a width of at least embed_width + 1 = {embed_width + 1}, got {width}")
        super().__init__(embed_width + 1, width, depth, heads, hidden, 2 * width, registers, 1, dropout, logn)
        self.embed_width = embed_width
        self.to_weights = ResidualBlock(width, embed_width + 1, 2 * width, dropout)

    @classmethod
    def of(cls, recipe: InContextRecipe, embed_width: int) -> Self:
        """The untrained network of a recipe for embeddings of width E."""
        sizes = (recipe.width, recipe.depth, recipe.heads, recipe.hidden, recipe.registers)
        return cls(embed_width, *sizes, recipe.dropout, recipe.logn)

    def forward(
        self, x: Tensor, y: Tensor, mask: Tensor | None = None, attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Read the encoders of B voxels from their contexts.

        Args:
            x: (B, S, E) Embeddings of the context images, or (1, S, E) where all voxels share them.
            y: (B, S) Responses of the voxels to these images.
            mask: (B, S) Whether an image is there, bool. What x and y hold at the others does not matter. None is all.
            attention: Whether to return as well how much the read register takes from each image.

        Returns:
            (B, E + 1) weights w, then the intercept b. With `attention` also the rollout (B, S), see
            `attention_rollout`; its rows have less than sum 1, because registers have the rest.

        Raises:
            AxisError: Shapes that do not match, or no context image.
        """
        if y.ndim != 2 or not y.shape[1]:
            raise AxisError(f"expected responses (B, S) to at least one image, got {tuple(y.shape)}")
        if x.ndim != 3 or len(x) not in (1, len(y)) or x.shape[1:] != (y.shape[1], self.embed_width):
            expected = f"({len(y)}, {y.shape[1]}, {self.embed_width}), or 1 in front,"
            raise AxisError(f"expected embeddings {expected} for responses {tuple(y.shape)}, got {tuple(x.shape)}")
        _check_mask(mask, tuple(y.shape))
        pairs = torch.cat([x.expand(len(y), -1, -1), y.unsqueeze(-1)], -1)  # (B, S, E + 1)
        read, rollout = self._read(pairs, mask, attention)
        weights = self.to_weights(read[:, 0])  # (B, E + 1)
        return weights if rollout is None else (weights, rollout)


class ContextDecoder(_SetReader):
    """The embedding of an image, read from the encoders of voxels and their responses to it (BrainCoDec, stage 2).

    The token of a voxel is [w (E), b, response], and with `noise_channel` also the logarithm of the standard deviation
    of its noise. The order of the voxels does not matter. The output is not normalised: the loss takes its cosine, and
    `BrainCoDec.decode` returns it with length 1.

    | E | D | parameters at the paper's depth |
    |---|---|---|
    | 512 | 768 | 55,697,668 |
    | 768 | 1024 | 88,758,276 |
    | 1152 | 1440 | 157,354,212 |

    Args:
        embed_width: Embedding width E, at least 2.
        width: Model width D.
        depth, heads: Number of layers, and of heads in each.
        hidden, residual_hidden: Hidden width of the SwiGLU layers, and of the residual blocks at both ends.
        registers: Number R of registers.
        readout_tokens: Number of first registers that are read, 1 to R.
        dropout: Share of dropout.
        logn: Log-n scaling of the layers, see `Layer`.
        noise_channel: Whether tokens have a number for the noise of the voxel.
        evidence_channel: Whether tokens end with E numbers for what the voxel says about the image.

    Attributes:
        embed_width: E.
        token_width: Width of a token, E + 2, with one more for the noise and E more for the evidence.
        checkpointing: Whether to compute activations again in the backward pass. Default: False.

    Raises:
        BrainDataError: Sizes that do not fit together, or an unknown scaling.
    """

    def __init__(
        self,
        embed_width: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        residual_hidden: int,
        registers: int = 32,
        readout_tokens: int = 4,
        dropout: float = 0.0,
        logn: str = "logits",
        noise_channel: bool = False,
        evidence_channel: bool = False,
    ):
        _check_embed_width(embed_width)
        token_width = embed_width * (1 + evidence_channel) + 2 + noise_channel
        sizes = (width, depth, heads, hidden, residual_hidden, registers, readout_tokens)
        super().__init__(token_width, *sizes, dropout, logn)
        self.embed_width, self.token_width = embed_width, token_width
        together = readout_tokens * width
        self.readout = nn.Sequential(
            nn.Linear(together, together), nn.LeakyReLU(SLOPE), nn.Dropout(dropout), nn.Linear(together, width)
        )
        self.to_embedding = ResidualBlock(width, embed_width, residual_hidden, dropout)

    @classmethod
    def of(cls, recipe: BrainCoDecRecipe, embed_width: int) -> Self:
        """The untrained network of a recipe for embeddings of width E."""
        sizes = (recipe.width, recipe.depth, recipe.heads, recipe.hidden, recipe.residual_hidden)
        registers = (recipe.registers, recipe.readout_tokens)
        return cls(
            embed_width, *sizes, *registers, recipe.dropout, recipe.logn, recipe.noise_channel, recipe.evidence_channel
        )

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Read the embeddings of B images from tokens of V voxels.

        Args:
            tokens: (B, V, token_width) Tokens of the voxels for each image.
            mask: (B, V) Whether a voxel is there, bool. What tokens hold at the others does not matter. None is all.
            attention: Whether to return as well how much the read registers take from each voxel.

        Returns:
            (B, E) embeddings of any length. With `attention` also the rollout (B, V), see `attention_rollout`; its rows
            have less than sum 1, because registers have the rest.

        Raises:
            AxisError: Shapes that do not match, or no voxel.
        """
        if tokens.ndim != 3 or not tokens.shape[1] or tokens.shape[2] != self.token_width:
            expected = f"(B, V, {self.token_width}) of at least one voxel"
            raise AxisError(f"expected tokens {expected}, got {tuple(tokens.shape)}")
        _check_mask(mask, tuple(tokens.shape[:2]))
        read, rollout = self._read(tokens, mask, attention)
        embeddings = self.to_embedding(self.readout(read.flatten(1)))  # (B, E)
        return embeddings if rollout is None else (embeddings, rollout)


def _check_embed_width(embed_width: int) -> None:
    if embed_width < 2:
        raise BrainDataError(f"expected an embed_width of at least 2, got {embed_width}")


def _check_mask(mask: Tensor | None, shape: tuple[int, ...]) -> None:
    if mask is not None and (tuple(mask.shape) != shape or mask.dtype != torch.bool):
        raise AxisError(f"expected a mask {shape} of torch.bool, got {tuple(mask.shape)} of {mask.dtype}")
