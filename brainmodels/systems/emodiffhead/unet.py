"""The two halves of the U-Net of a talking head, composed of diffusers' blocks.

A level is a residual block, spatial attention at some sides, and attention over time at the lowest level or at all. The
residual block takes one signal for each frame, which diffusers' own video networks do not.

Shapes: B chunks of F frames, (c, h, w) a map, d width of signals and tokens, L tokens of a frame.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import need
from .recipes import DenoiserSize

__all__ = ["Decoder", "Encoder", "blocks", "level_widths"]


@lru_cache(1)
def blocks() -> Any:
    """The blocks of diffusers by name.

    Raises:
        ImportError: diffusers is not installed.
    """
    try:
        from diffusers.models import attention, attention_processor, downsampling, embeddings, resnet, upsampling
        from diffusers.models.transformers import transformer_temporal
    except ImportError as error:
        raise need("diffusers", "the renderer of talking heads") from error
    return SimpleNamespace(
        BasicTransformerBlock=attention.BasicTransformerBlock,
        AttnProcessor2_0=attention_processor.AttnProcessor2_0,
        Downsample2D=downsampling.Downsample2D,
        TimestepEmbedding=embeddings.TimestepEmbedding,
        Timesteps=embeddings.Timesteps,
        ResnetBlock2D=resnet.ResnetBlock2D,
        TransformerTemporalModel=transformer_temporal.TransformerTemporalModel,
        Upsample2D=upsampling.Upsample2D,
    )


def level_widths(size: DenoiserSize) -> list[tuple[int, int]]:
    """Channels and side of the maps of each level."""
    return [(size.width * factor, size.side // 2**level) for level, factor in enumerate(size.multipliers)]


class Encoder(nn.Module):
    """The way down.

    Args:
        size: Sizes.
        channels: Channels of a frame.
        tokens: Whether there are tokens to attend to, and time. Without them it reads reference frames.
    """

    def __init__(self, size: DenoiserSize, channels: int, tokens: bool):
        super().__init__()
        widths = level_widths(size)
        self.enter = nn.Conv2d(channels, size.width, 3, padding=1)
        into = [size.width, *(width for width, _ in widths)]
        self.levels = nn.ModuleList(
            _Level(size, before, width, side, tokens) for before, (width, side) in zip(into, widths, strict=False)
        )
        down = blocks().Downsample2D
        self.down = nn.ModuleList(down(width, use_conv=True, name="op") for width, _ in widths[:-1])

    def forward(
        self,
        x: Tensor,
        signal: Tensor,
        tokens: Tensor | None,
        joined: Sequence[Tensor],
        at_entry: Tensor | None = None,
    ) -> list[Tensor]:
        """Maps (B, F, c, h, w) of all levels.

        Args:
            x: (B, F, c, h, w) Frames.
            signal: (B, F, d) What scales and shifts the residual blocks.
            tokens: (B, F, L, d) Tokens to attend to, or None.
            joined: Tokens (B, n, c) that join the spatial self-attention, of each level that has it; or nothing.
            at_entry: (B, F, c, h, w), or 1 for B or F: maps that are added to the frames of the first level.
        """
        batch, left = x.shape[:2], list(joined)
        y = self.enter(x.flatten(0, 1))
        if at_entry is not None:
            y = (y.unflatten(0, batch) + at_entry).flatten(0, 1)
        found = []
        for level, down in zip(self.levels, [*self.down, None], strict=True):
            more = left.pop(0) if left and level.attention is not None else None
            y = level(y, signal, tokens, more)
            found.append(y.unflatten(0, batch))
            y = y if down is None else down(y)
        return found


class Decoder(nn.Module):
    """The way up, which begins with one more level at the lowest side.

    Args:
        size: Sizes.
    """

    def __init__(self, size: DenoiserSize):
        super().__init__()
        widths = level_widths(size)
        lowest, side = widths[-1]
        over_time = size.time == "all"
        self.middle = _Level(size, lowest, lowest, side, True, over_time)
        above = [*(width for width, _ in widths[1:]), lowest]
        self.levels = nn.ModuleList(
            _Level(size, under + width, width, side, True, over_time)
            for under, (width, side) in reversed(list(zip(above, widths, strict=True)))
        )
        up = blocks().Upsample2D
        self.up = nn.ModuleList(up(width, use_conv=True) for width, _ in reversed(widths[1:]))
        self.norm = nn.GroupNorm(_groups(size.width), size.width)
        self.leave = nn.Conv2d(size.width, size.channels, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, levels: list[Tensor], signal: Tensor, tokens: Tensor | None, joined: Sequence[Tensor]) -> Tensor:
        """Frames (B, F, c, h, w) from the maps of an `Encoder`, with its other arguments."""
        batch, left = levels[0].shape[:2], list(joined)
        skips = [y.flatten(0, 1) for y in levels]
        attended = self.middle.attention is not None
        y = self.middle(skips[-1], signal, tokens, left[-1] if left and attended else None)
        for level, skip, up in zip(self.levels, reversed(skips), [*self.up, None], strict=True):
            more = left.pop() if left and level.attention is not None else None
            y = level(torch.cat((y, skip), 1), signal, tokens, more)
            y = y if up is None else up(y)
        return self.leave(nn.functional.silu(self.norm(y))).unflatten(0, batch)


class _Level(nn.Module):
    """A residual block, and where wanted attention in space and over time."""

    def __init__(
        self, size: DenoiserSize, into: int, width: int, side: int, tokens: bool, over_time: bool | None = None
    ):
        super().__init__()
        made, d = blocks(), 4 * size.width
        self.residual = made.ResnetBlock2D(
            in_channels=into,
            out_channels=width,
            temb_channels=d,
            groups=_groups(into),
            groups_out=_groups(width),
            time_embedding_norm="scale_shift",
        )
        heads = {"num_attention_heads": size.heads, "attention_head_dim": width // size.heads}
        self.attention = self.temporal = None
        if side in size.attention:
            known = {"cross_attention_dim": d if tokens else None}
            attention: Any = made.BasicTransformerBlock(width, **heads, **known)
            attention.attn1.set_processor(_JoinedAttention())
            if tokens:
                attention.attn2.set_processor(_JoinedAttention())
            self.attention = attention
        lowest = side == level_widths(size)[-1][1]
        if tokens and (size.time == "all" or (size.time == "lowest" and lowest) if over_time is None else over_time):
            temporal: Any = made.TransformerTemporalModel(
                **heads,
                in_channels=width,
                norm_num_groups=_groups(width),
                positional_embeddings="sinusoidal",
                num_positional_embeddings=size.motion + size.frames,
            )
            nn.init.zeros_(temporal.proj_out.weight)
            nn.init.zeros_(temporal.proj_out.bias)
            self.temporal = temporal

    def forward(self, x: Tensor, signal: Tensor, tokens: Tensor | None, joined: Tensor | None) -> Tensor:
        """Maps (B F, c, h, w) to maps, with a signal (B, F, d), tokens (B, F, L, d) and joined tokens (B, n, c)."""
        frames = signal.shape[1]
        x = self.residual(x, signal.flatten(0, 1))
        if self.attention is not None:
            more = None if joined is None else joined.repeat_interleave(frames, 0)
            y = self.attention(
                x.flatten(2).transpose(1, 2),  # (B F, h w, c)
                encoder_hidden_states=None if tokens is None else tokens.flatten(0, 1),
                cross_attention_kwargs={"joined": more},
            )
            x = y.transpose(1, 2).reshape(x.shape)
        if self.temporal is not None:
            x = self.temporal(x, num_frames=frames, return_dict=False)[0]
        return x


class _JoinedAttention:
    """diffusers' attention, with tokens that join the keys and values of a self-attention."""

    def __init__(self):
        self.plain = blocks().AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        joined: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states is None and joined is not None:
            encoder_hidden_states = torch.cat((hidden_states, joined), 1)
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask)


def _groups(width: int) -> int:
    """Groups of a norm, of four channels or more. Norms of single channels would forget a uniform colour."""
    return math.gcd(32, max(width // 4, 1))
