"""The denoiser of a chunk of frames: a U-Net of diffusers' blocks, told of sound, expression, portrait and reference.

    denoiser = HeadDenoiser(recipe.denoiser_size, exp_width=15, audio_width=80, subframes=4, portrait_width=192)
    predicted = denoiser(noisy, time, given)         # (B, F, c, h, w)

| condition | enters as |
|---|---|
| time, flag of a hidden mouth, global token of the portrait, expression, sound | scale and shift of residual blocks |
| expression, sound around a frame, cores of the portrait | tokens of the cross-attention, each frame its own |
| expression, sound | maps that are added at the entry, where the sizes have any |
| reference frame | channels, or keys and values of the spatial self-attention |
| frames before the chunk | frames at the front of the time axis, with their own noise level and a mask |

Sound as tokens alone is learned slowly: drawn mouths of 16 px follow it with r = .49 after 150 steps, and with r = .93
where it scales and shifts as well.

A condition that is left out is replaced by a learned embedding and never by zeros: zero expression is a neutral face.

Shapes: B chunks, F frames, m frames before them, (c, h, w) a frame, N = (2 reach + 1) S audio sub-frames around a frame
of width D, C cores of width g, d = 4 width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import AxisError, BrainDataError
from .model import audio_windows
from .reader import PortraitReader
from .recipes import DenoiserSize
from .unet import Decoder, Encoder, blocks, level_widths

__all__ = ["Conditions", "HeadDenoiser", "PortraitReader", "audio_windows"]

_MAP_SIDE = 16  # most pixels of the side of a map that is made of expression and sound
_TIMES = 1000.0  # factor of noise levels from 0 to 1, as the frequencies of the embedding are made for 1,000 times


class Conditions(NamedTuple):
    """What the denoiser is told of B chunks.

    Attributes:
        expression: (B, F, E + J) Whitened coefficients, of which the mouth part may be hidden.
        hidden: (B,) bool, whether it is hidden.
        audio: (B, F, N, D) Scaled sound around each frame; see `audio_windows`.
        reference: (B, c, h, w) A frame of the same person.
        motion: (B, m, c, h, w) The frames before the chunk, perhaps with noise.
        has_motion: (B,) bool, whether there are such frames. Values of `motion` elsewhere are not read.
        motion_level: (B,) Standard deviation of the noise on them.
        portrait: (B, 1 + C, g) Global token and cores of the portrait. With `reference="veca"` its P patches follow.
        no_expression, no_audio, no_reference: (B,) bool, what is left out. Without reference there is no portrait.
        maps: What `HeadDenoiser.prepared` made of the reference; None makes it in every call.
    """

    expression: Tensor
    hidden: Tensor
    audio: Tensor
    reference: Tensor
    motion: Tensor
    has_motion: Tensor
    motion_level: Tensor
    portrait: Tensor
    no_expression: Tensor
    no_audio: Tensor
    no_reference: Tensor
    maps: tuple[Tensor, ...] | None = None

    @staticmethod
    def stacked(parts: "Sequence[Conditions]") -> "Conditions":
        """Several conditions as one of more chunks."""
        *columns, maps = zip(*parts, strict=True)
        whole = None if maps[0] is None else tuple(torch.cat(column) for column in zip(*maps, strict=True))
        return Conditions(*[torch.cat(column) for column in columns], maps=whole)


def _gentle(x: Tensor) -> Tensor:
    """Values (..., n) over the root of n.

    A step of Adam moves a sum over n values of size 1 by n times the learning rate. Sound has a thousand values and the
    expression fifteen, so without this the sound drowns the expression.
    """
    return x / x.shape[-1] ** 0.5


class HeadDenoiser(nn.Module):
    """Predicts the clean frames of a chunk, their noise or their velocity; which one, the training decides.

    Args:
        size: Sizes.
        exp_width: Number E + J of coefficients.
        audio_width: Width D of the sound.
        subframes: Number S of sub-frames of the sound in a frame.
        portrait_width: Width g of the tokens of the portrait.
        reach: Number of frames before and after a frame whose sound it is told.

    Raises:
        BrainDataError: Patches of the portrait are the reference, and `size.cores` does not say where they begin.
        ImportError: diffusers is not installed.
    """

    def __init__(
        self,
        size: DenoiserSize,
        exp_width: int,
        audio_width: int,
        subframes: int,
        portrait_width: int,
        reach: int = 2,
    ):
        super().__init__()
        if size.reference == "veca" and size.cores is None:
            raise BrainDataError("expected a number of cores with reference='veca', got None")
        made, d, c = blocks(), 4 * size.width, size.channels
        self.size, self.exp_width, self.portrait_width = size, exp_width, portrait_width
        self.times = made.Timesteps(size.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = made.TimestepEmbedding(size.width, d)
        self.motion_level = made.TimestepEmbedding(size.width, d)
        self.flag = nn.Embedding(2, d)
        self.expression = nn.Sequential(nn.Linear(exp_width, d), nn.SiLU(), nn.Linear(d, d))
        self.audio_shape = (2 * reach + 1) * subframes, audio_width
        self.audio_signal = nn.Sequential(nn.Linear(math.prod(self.audio_shape), d), nn.SiLU(), nn.Linear(d, d))
        self.portrait_norm = nn.LayerNorm(portrait_width)
        self.portrait_global = nn.Linear(portrait_width, d)
        self.no_expression = nn.Parameter(0.02 * torch.randn(2, d))  # in the embedding, and as a token
        self.no_audio = nn.Parameter(0.02 * torch.randn(1 + self.audio_shape[0], d))
        self.no_reference = nn.Parameter(0.02 * torch.randn(c, 1, 1))
        self.no_portrait = nn.Parameter(0.02 * torch.randn(portrait_width))
        self.no_motion = nn.Parameter(0.02 * torch.randn(c, 1, 1))
        self.no_motion_level = nn.Parameter(0.02 * torch.randn(d))
        self.places = nn.Parameter(0.1 * torch.randn(1, size.width, size.side, size.side))  # faces are aligned
        if size.attention:
            self.expression_token = nn.Linear(exp_width, d)
            self.audio = nn.Linear(audio_width, d)
            self.audio_places = nn.Parameter(0.02 * torch.randn(self.audio_shape[0], d))
            self.portrait_tokens = nn.Linear(portrait_width, d)
        if size.maps:
            self._map_shape = (min(size.side, _MAP_SIDE),) * 2
            self.told_maps = nn.Linear(d, size.maps * math.prod(self._map_shape), bias=False)
            self.enter_maps = nn.Conv2d(size.maps, size.width, 1)
        self._build_reference()
        self.encoder = Encoder(size, c + 1, tokens=True)
        self.decoder = Decoder(size)

    def _build_reference(self) -> None:
        size, attended = self.size, [w for w, side in level_widths(self.size) if side in self.size.attention]
        if size.reference == "concat":  # a convolution of more channels is a sum of convolutions
            self.reference = nn.Conv2d(size.channels, size.width, 3, padding=1, bias=False)
            return
        if size.reference == "unet":
            self.reference = Encoder(size, size.channels, tokens=False)
        else:
            self.reference = nn.ModuleList(nn.Linear(self.portrait_width, width) for width in attended)
        self.reference_norms = nn.ModuleList(nn.LayerNorm(width) for width in attended)

    def forward(self, noisy: Tensor, time: Tensor, given: Conditions) -> Tensor:
        """Predict.

        Args:
            noisy: (B, F, c, h, w) Noisy frames, with F up to that of the sizes.
            time: (B,) Times, 0 to 999.
            given: Conditions.

        Returns:
            (B, F, c, h, w).

        Raises:
            AxisError: Frames or conditions of another shape.
        """
        self._check(noisy, given)
        batch, frames = noisy.shape[:2]
        if given.maps is None:
            given = self.prepared(given)
        x = self._entered(noisy, given)  # (B, m + F, c + 1, h, w)
        told = self._told(given)
        signal = self._signal(time, given, told)
        tokens = self._tokens(given, x.shape[1]) if self.size.attention else None
        joined = tuple(given.maps or ())
        at_entry = self.places[:, None] + self._maps(told)
        if self.size.reference == "concat":
            at_entry, joined = at_entry + joined[0][:, None], ()
        levels = self.encoder(x, signal, tokens, joined, at_entry)
        if self.size.time != "all":  # time attention is over: frames before the chunk have said what they know
            m = self.size.motion
            levels, signal = [y[:, m:] for y in levels], signal[:, m:]
            tokens = None if tokens is None else tokens[:, m:]
        made = self.decoder(levels, signal, tokens, joined)[:, -frames:].reshape(batch, frames, *noisy.shape[2:])
        return made + self._picture(given)[:, None] if self.size.residual else made

    def prepared(self, given: Conditions) -> Conditions:
        """The same conditions with what is made of the reference, which does not depend on time or frames."""
        if self.size.reference == "veca":
            return given._replace(maps=self._patch_maps(self._portrait(given)))
        picture = self._picture(given)
        if self.size.reference == "concat":
            return given._replace(maps=(self.reference(picture),))
        zero = torch.zeros(len(picture), device=picture.device)
        signal = self.time(self.times(zero).to(picture.dtype))[:, None]  # (B, 1, d)
        levels = self.reference(picture[:, None], signal, None, ())
        attended = [y[:, 0] for y in levels if y.shape[-1] in self.size.attention]
        tokens = [y.flatten(2).transpose(1, 2) for y in attended]
        return given._replace(maps=tuple(norm(x) for norm, x in zip(self.reference_norms, tokens, strict=True)))

    def _picture(self, given: Conditions) -> Tensor:
        """The reference frame (B, c, h, w), or what stands for none."""
        drop = given.no_reference[:, None, None, None]
        return torch.where(drop, self.no_reference.to(given.reference.dtype), given.reference)

    def _patch_maps(self, portrait: Tensor) -> tuple[Tensor, ...]:
        """Patches of the portrait as tokens (B, side^2, width) of each level with attention."""
        patches = portrait[:, 1 + (self.size.cores or 0) :]  # (B, P, g)
        side = math.isqrt(patches.shape[1])
        if not side or side**2 != patches.shape[1]:
            raise AxisError(f"expected the patches of a square portrait after the cores, got {patches.shape[1]}")
        square = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, g, rows, cols)
        found = []
        sides = [side for _, side in level_widths(self.size) if side in self.size.attention]
        for side, into, norm in zip(sides, self.reference.children(), self.reference_norms, strict=True):
            resized = functional.interpolate(square, size=(side, side), mode="area")
            found.append(norm(into(resized.flatten(2).transpose(1, 2))))
        return tuple(found)

    def _portrait(self, given: Conditions) -> Tensor:
        """Normed tokens of the portrait (B, 1 + C + P, g), or those that say there is none."""
        portrait = self.portrait_norm(given.portrait)
        return torch.where(given.no_reference[:, None, None], self.no_portrait.to(portrait.dtype), portrait)

    def _entered(self, noisy: Tensor, given: Conditions) -> Tensor:
        """Frames before the chunk and noisy frames, with a channel that marks the former."""
        drop = ~given.has_motion[:, None, None, None, None]
        motion = torch.where(drop, self.no_motion.to(noisy.dtype), given.motion.to(noisy.dtype))
        mark = (~drop).to(noisy.dtype).expand(-1, motion.shape[1], 1, *noisy.shape[3:])
        chunk = torch.cat((noisy, torch.zeros_like(noisy[:, :, :1])), 2)
        return torch.cat((torch.cat((motion, mark), 2), chunk), 1)

    def _told(self, given: Conditions) -> Tensor:
        """Expression and sound of each frame, (B, m + F, d). Those of frames before the chunk are not told."""
        told = self.expression(given.expression)  # (B, F, d)
        told = torch.where(given.no_expression[:, None, None], self.no_expression[0].to(told), told)
        audio = self.audio_signal(_gentle(given.audio.flatten(2)))
        told = told + torch.where(given.no_audio[:, None, None], self.no_audio[0].to(told), audio)
        none = (self.no_expression[0] + self.no_audio[0]).to(told)
        return torch.cat((none.expand(len(told), self.size.motion, -1), told), 1)

    def _signal(self, time: Tensor, given: Conditions, told: Tensor) -> Tensor:
        """What scales and shifts the residual blocks, (B, m + F, d)."""
        common = self.flag(given.hidden.long()) + self.portrait_global(_gentle(self._portrait(given)[:, 0]))
        by_time = self.time(self.times(time).to(told.dtype))  # (B, d)
        level = self.motion_level(self.times(_TIMES * given.motion_level).to(told.dtype))
        level = torch.where(given.has_motion[:, None], level, self.no_motion_level.to(level))
        count = told.shape[1] - self.size.motion
        levels = torch.cat((level[:, None].expand(-1, self.size.motion, -1), by_time[:, None].expand(-1, count, -1)), 1)
        return levels + common[:, None] + told

    def _maps(self, told: Tensor) -> Tensor:
        """Maps (B, m + F, c, h, w) that are linear in expression and sound, or 0."""
        if not self.size.maps:
            return told.new_zeros(())
        made = self.told_maps(told.flatten(0, 1)).unflatten(1, (self.size.maps, *self._map_shape))
        if made.shape[-1] != self.size.side:
            made = functional.interpolate(made, size=self.size.side, mode="bilinear", align_corners=False)
        return self.enter_maps(made).unflatten(0, told.shape[:2])

    def _tokens(self, given: Conditions, frames: int) -> Tensor:
        """Tokens of the cross-attention (B, m + F, 1 + N + C, d). Frames before the chunk have no sound."""
        expression = self.expression_token(given.expression)  # (B, F, d)
        expression = torch.where(given.no_expression[:, None, None], self.no_expression[1].to(expression), expression)
        audio = self.audio(_gentle(given.audio)) + self.audio_places  # (B, F, N, d)
        audio = torch.where(given.no_audio[:, None, None, None], self.no_audio[1:].to(audio), audio)
        own = torch.cat((expression[:, :, None], audio), 2)
        none = torch.cat((self.no_expression[1:], self.no_audio[1:])).to(own)
        own = torch.cat((none.expand(len(own), self.size.motion, -1, -1), own), 1)
        last = None if self.size.cores is None else 1 + self.size.cores
        cores = self.portrait_tokens(_gentle(self._portrait(given)[:, 1:last]))  # (B, C, d)
        return torch.cat((own, cores[:, None].expand(-1, frames, -1, -1)), 2)

    def _check(self, noisy: Tensor, given: Conditions) -> None:
        size, batch = self.size, len(noisy)
        frame = (size.channels, size.side, size.side)
        if noisy.ndim != 5 or noisy.shape[2:] != frame or not 1 <= noisy.shape[1] <= size.frames:
            raise AxisError(f"expected up to {size.frames} frames (B, F, {frame}), got {tuple(noisy.shape)}")
        frames = noisy.shape[1]
        wanted: dict[str, tuple[Any, ...]] = {
            "expression": (batch, frames, self.exp_width),
            "audio": (batch, frames, *self.audio_shape),
            "reference": (batch, *frame),
            "motion": (batch, size.motion, *frame),
            "portrait": (batch, given.portrait.shape[1], self.portrait_width),
        }
        for name, shape in wanted.items():
            if tuple(getattr(given, name).shape) != shape:
                raise AxisError(f"expected {name} {shape}, got {tuple(getattr(given, name).shape)}")
