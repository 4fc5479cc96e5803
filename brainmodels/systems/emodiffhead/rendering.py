"""The loss of the renderer on chunks of clips, and the frames it makes of a motion, chunk after chunk.

    task = RenderTask(denoiser, recipe)
    terms = task(batch, generator)                  # "loss", "mse", "mouth"
    frames = render_frames(denoiser, recipe, reference, expression, audio, True, portrait, seed=0)

In training a row is a window of a clip. A chunk, a reference frame and the frames before the chunk are drawn from it.
The noise of a rendered chunk depends on the seed and on the number of the chunk alone. A longer recording therefore
leaves the chunks before its end as they are.

Shapes: B clips, T frames, F frames of a chunk, m frames before it, (c, h, w) a frame in the space of the diffusion.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import AxisError, BrainDataError
from ...nn.diffusion import TIMES, Levels, convert, denoise, guided, levels, new_scheduler, target
from .denoiser import Conditions, HeadDenoiser, audio_windows
from .reader import PortraitReader
from .recipes import EmoDiffHeadRecipe

__all__ = ["Announced", "RenderBatch", "RenderTask", "pixels", "render_batch", "render_frames", "render_loss"]

_TIMED = 3  # steps after which the log says how long a video will take
_log = logging.getLogger(__name__)


class RenderBatch(NamedTuple):
    """Windows of clips.

    Attributes:
        subject, rows: As in `Batch`.
        frames: uint8 (B, T, H, W, 3) Pictures.
        full: (B, T, E + J) Whitened coefficients.
        hidden: (B, T, E + J) The same with the mouth part hidden.
        audio: (B, T, S, D) Scaled sound.
        references: uint8 (B, R, H, W, 3) Other pictures of the same people, of which the task draws one.
        portraits: (B, R, 1 + C, g) What was read from these pictures, or pictures uint8 (B, R, h, w, 3) to read.
        box: (B, T, 4) Left, top, right and bottom of the mouth in pixels; zeros where it is not known.
    """

    subject: str
    rows: np.ndarray
    frames: Tensor
    full: Tensor
    hidden: Tensor
    audio: Tensor
    references: Tensor
    portraits: Tensor
    box: Tensor


def pixels(frames: Tensor) -> Tensor:
    """Pictures uint8 (..., H, W, 3) as fp32 (..., 3, H, W) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


class RenderTask(nn.Module):
    """The loss of a denoiser on windows of clips.

    Args:
        denoiser: The network.
        recipe: Recipe of the model.
        reader: Reads portraits where the batches hold pictures of them. It is trained if it says so.
        encode: Brings pictures uint8 (B, T, H, W, 3) into the space of the diffusion, (B, T, c, h, w). Default: as
            `pixels` does.
    """

    def __init__(
        self,
        denoiser: HeadDenoiser,
        recipe: EmoDiffHeadRecipe,
        reader: PortraitReader | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.denoiser, self.recipe, self.reader, self.encode = denoiser, recipe, reader, encode or pixels
        self.scheduler = new_scheduler("ddpm", recipe.prediction, recipe.autoencoder is not None)
        self._told = False

    def forward(self, batch: RenderBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms "loss", "mse" of what is predicted, and "mouth", the error of the clean frames in the mouth box."""
        self._tell(batch.box)
        size, drawn = self.recipe.denoiser_size, _Draws(generator, len(batch.rows))
        motion_drop = drawn.chance(self.recipe.motion_dropout) if size.motion else drawn.chance(1.0)
        start = drawn.starts(batch.frames.shape[1], size.frames, size.motion, motion_drop)
        chunk = start[:, None] + torch.arange(size.frames, device=start.device)
        before = (start[:, None] + torch.arange(-size.motion, 0, device=start.device)).clamp(min=0)
        chosen = drawn.integers(batch.references.shape[1])[:, None]
        shown = torch.cat((_taken(batch.frames, torch.cat((before, chunk), 1)), _taken(batch.references, chosen)), 1)
        with torch.no_grad():
            frames = self.encode(shown)  # (B, m + F + 1, c, h, w)
        motion, clean, picture = frames.split((size.motion, size.frames, 1), 1)
        level = self.recipe.motion_noise * drawn.uniform()
        motion = motion + level[:, None, None, None, None] * drawn.normal(motion)
        portrait = self._portrait(_taken(batch.portraits, chosen)[:, 0])
        given = self._conditions(batch, chunk, (picture[:, 0], motion, ~motion_drop, level, portrait), drawn)
        time = drawn.times(self.recipe.noise_bias)
        at, noise = levels(self.scheduler, time, clean.ndim), drawn.normal(clean)
        noisy = at.signal * clean + at.noise * noise
        predicted = self.denoiser(noisy, time, given).float()
        return render_loss(predicted, clean, noise, at, _taken(batch.box, chunk), batch.frames.shape[2], self.recipe)

    def _conditions(
        self,
        batch: RenderBatch,
        chunk: Tensor,
        known: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        drawn: "_Draws",
    ) -> Conditions:
        """What the denoiser is told: frames and portrait as they are; of the rest, something is hidden or left out."""
        recipe = self.recipe
        half = drawn.chance(0.5)
        hidden = {"flagged": half, "never": torch.zeros_like(half)}.get(recipe.hide, torch.ones_like(half))
        expression = torch.where(hidden[:, None, None], _taken(batch.hidden, chunk), _taken(batch.full, chunk))
        sound = _taken(audio_windows(batch.audio, recipe.generator_size.reach), chunk)
        shares = torch.tensor(recipe.dropout, device=chunk.device).cumsum(0)
        pattern = torch.bucketize(drawn.uniform(), shares, right=True)  # 4 leaves nothing out
        without = [(pattern == alone) | (pattern == 2) | (pattern == 3) for alone in (0, 1)]
        return Conditions(expression, hidden, sound, *known, without[0], without[1], pattern == 3)

    def _portrait(self, portrait: Tensor) -> Tensor:
        if portrait.ndim == 3:
            return portrait
        if self.reader is None:
            raise BrainDataError("expected tokens of portraits, or a reader for pictures of them; got pictures alone")
        return self.reader(portrait.movedim(-1, -3).float() / 255)

    def _tell(self, box: Tensor) -> None:
        if not self._told and not box.any():
            _log.info("no mouth boxes: the loss has no term of the mouth")
        self._told = True


def render_loss(
    predicted: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: Levels,
    box: Tensor,
    side: int,
    recipe: EmoDiffHeadRecipe,
) -> dict[str, Tensor]:
    """Mean squared error of what is predicted, plus that of the clean frames within the mouth.

    The clean frame that a predicted noise stands for has errors without bound at low signal. For "epsilon" its squared
    error is therefore multiplied by the squared signal.

    Args:
        predicted: (B, F, c, h, w) What the network says.
        clean, noise: Of the same shape.
        level: Signal and noise.
        box: (B, F, 4) Left, top, right and bottom in pixels; frames whose box is empty have no mouth.
        side: Height of the pictures in pixels, which the boxes refer to.
        recipe: Recipe of the model.
    """
    noisy = level.signal * clean + level.noise * noise
    mse = (predicted - target(clean, noise, recipe.prediction, level)).square().mean()
    if recipe.prediction == "epsilon":
        squared = (level.noise * (predicted - noise)).square()
    else:
        squared = (convert(predicted, noisy, level, recipe.prediction, "sample") - clean).square()
    height, width = clean.shape[-2:]
    y = (torch.arange(height, device=box.device) + 0.5) * (side / height)  # centres of cells in pixels
    x = (torch.arange(width, device=box.device) + 0.5) * (side / width)
    left, top, right, bottom = box.unsqueeze(-1).unbind(2)  # (B, F, 1)
    rows, cols = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside = (rows[..., None] & cols[..., None, :]).to(squared.dtype)[:, :, None]  # (B, F, 1, h, w)
    mouth = (squared * inside).sum() / (inside.sum() * clean.shape[2]).clamp(min=1)
    return {"loss": mse + recipe.mouth_weight * mouth, "mse": mse, "mouth": mouth}


def render_frames(
    denoiser: HeadDenoiser,
    recipe: EmoDiffHeadRecipe,
    reference: Tensor,
    expression: Tensor,
    audio: Tensor,
    hidden: bool,
    portrait: Tensor,
    *,
    first: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Frames (T, c, h, w) of one clip. The arguments are those of `render_batch` without the axis of clips."""
    ahead = None if first is None else first[None]
    flag, told = torch.tensor([hidden], device=reference.device), (expression[None], audio[None])
    return render_batch(denoiser, recipe, reference[None], *told, flag, portrait[None], first=ahead, **options)[0]


@torch.no_grad()
def render_batch(
    denoiser: HeadDenoiser,
    recipe: EmoDiffHeadRecipe,
    reference: Tensor,
    expression: Tensor,
    audio: Tensor,
    hidden: Tensor,
    portrait: Tensor,
    *,
    steps: int | None = None,
    audio_scale: float = 1.0,
    emotion_scale: float = 1.0,
    seed: int = 0,
    first: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    sampler: str = "ddim",
    every: int = 1,
) -> Tensor:
    """Frames of several clips of equal length, chunk after chunk.

    Args:
        denoiser: The network; it is set to evaluation mode.
        recipe: Recipe of the model.
        reference: (B, c, h, w) A frame of each person.
        expression: (B, T, E + J) Whitened coefficients, with the mouth hidden where `hidden` says so.
        audio: (B, T, S, D) Scaled sound.
        hidden: (B,) bool.
        portrait: (B, 1 + C, g) What was read from the portraits.
        steps: Denoising steps of a chunk. Default: those of the recipe.
        audio_scale, emotion_scale: Weights of nested guidance. Where both are 1, there is one evaluation a step.
        seed: Seed of the noise, 0 or more. Clips of a batch start from the same noise.
        first: (B, m, c, h, w) Clean frames before the first one.
        progress: Called with the numbers of evaluated and of all steps.
        sampler: "ddim", "ddpm" or "dpmsolver++".
        every: Render every so many frames only, each with the sound around it.

    Returns:
        (B, T, c, h, w), fp32, with T / every frames, rounded up. Pixels lie in [-1, 1].

    Raises:
        AxisError: Series of unequal length, or frames of another shape.
        BrainDataError: `steps`, `seed` or `every` out of range, or another sampler.
    """
    denoiser.eval()
    size, total = recipe.denoiser_size, expression.shape[1]
    if audio.shape[1] != total or not total:
        raise AxisError(f"expected sound of {total} frames as the expression has, got {audio.shape[1]}")
    if seed < 0 or every < 1:
        raise BrainDataError(f"expected a seed of 0 or more and every >= 1, got {seed} and {every}")
    steps = recipe.steps if steps is None else steps
    windows = audio_windows(audio, recipe.generator_size.reach)
    series, total = [_whole_chunks(x[:, ::every], size.frames) for x in (expression, windows)], -(-total // every)
    starts = range(0, total, size.frames)
    nothing = reference.new_zeros(len(reference), size.motion, *reference.shape[1:])
    if first is not None and first.shape != nothing.shape:
        raise AxisError(f"expected first {tuple(nothing.shape)}, got {tuple(first.shape)}")
    no, level = torch.zeros_like(hidden), reference.new_zeros(len(reference))
    context = (reference, nothing, no, level, portrait, no, no, no)
    fixed = denoiser.prepared(Conditions(series[0][:, :1], hidden, series[1][:, :1], *context))
    scheduler = new_scheduler(sampler, recipe.prediction, recipe.autoencoder is not None)
    made: list[Tensor] = []
    for index, start in enumerate(starts):
        own = [x[:, start : start + size.frames] for x in series]
        given = fixed._replace(expression=own[0], audio=own[1])
        generator = torch.Generator().manual_seed(_chunk_seed(seed, index))
        if (made or first is not None) and size.motion:
            given = _after([] if first is None else [first], made, given, recipe.motion_noise / 2, generator)
        ask = _Asked(denoiser, given, audio_scale, emotion_scale, progress, index * steps, len(starts) * steps)
        noise = torch.randn(1, size.frames, *reference.shape[1:], generator=generator).to(reference.device)
        made.append(denoise(scheduler, ask, noise.expand(len(reference), -1, -1, -1, -1), steps, generator))
    return torch.cat(made, 1)[:, :total]


def _whole_chunks(x: Tensor, frames: int) -> Tensor:
    """A series (B, T, ...) whose last frame is repeated to whole chunks, so that all chunks take the same path."""
    return torch.cat((x, x[:, -1:].expand(-1, -x.shape[1] % frames, *x.shape[2:])), 1)


class _Asked:
    """Guided predictions for one chunk."""

    def __init__(
        self,
        denoiser: HeadDenoiser,
        given: Conditions,
        audio_scale: float,
        emotion_scale: float,
        progress: Callable[[int, int], None] | None,
        done: int,
        total: int,
    ):
        self.denoiser, self.scales, self.progress = denoiser, (audio_scale, emotion_scale), progress
        self.done, self.total, self.plain = done, total, audio_scale == emotion_scale == 1
        all_off = torch.ones_like(given.no_audio)
        alone = given._replace(no_expression=all_off, no_audio=all_off)
        parts = [alone, given._replace(no_expression=all_off), given]
        self.given = given if self.plain else Conditions.stacked(parts)

    def __call__(self, noisy: Tensor, time: int) -> Tensor:
        x = noisy if self.plain else noisy.repeat(3, *(1,) * (noisy.ndim - 1))
        predicted = self.denoiser(x, torch.full((len(x),), time, device=x.device), self.given).float()
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        if self.plain:
            return predicted
        reference, with_audio, with_all = predicted.chunk(3)
        return guided(reference, with_audio, with_all, *self.scales)


class Announced:
    """Logs after a few steps how long a video will take."""

    def __init__(self, device: torch.device):
        self.device, self.begun = device, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        if done == _TIMED:
            each = (time.perf_counter() - self.begun) / done
            _log.info("rendering on %s: %.3g s a step, about %.0f s in all", self.device, each, each * total)


class _Draws:
    """Random numbers for B clips."""

    def __init__(self, generator: torch.Generator, batch: int):
        self.batch, self.options = batch, {"device": generator.device, "generator": generator}

    def uniform(self) -> Tensor:
        return torch.rand(self.batch, **self.options)

    def chance(self, rate: float) -> Tensor:
        return self.uniform() < rate

    def integers(self, stop: int) -> Tensor:
        return torch.randint(stop, (self.batch,), **self.options)

    def times(self, bias: float) -> Tensor:
        """Times whose density grows as the power bias - 1 of the time."""
        return (TIMES * self.uniform() ** (1 / bias)).long().clamp(max=TIMES - 1)

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, **self.options)

    def starts(self, total: int, frames: int, motion: int, motion_drop: Tensor) -> Tensor:
        """First frames (B,) of chunks that have room before them where they follow others."""
        least = torch.where(motion_drop, 0, motion)
        if total < frames + motion:
            raise AxisError(f"expected windows of {frames + motion} frames or more, got {total}")
        return least + (self.uniform() * (total - frames - least + 1)).long().clamp(max=total - frames - least)


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """Frames (B, n, ...) of a series (B, T, ...) by their numbers (B, n)."""
    return values[torch.arange(len(values), device=values.device)[:, None], rows]


def _chunk_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def _after(
    first: list[Tensor], made: list[Tensor], given: Conditions, level: float, generator: torch.Generator
) -> Conditions:
    """The conditions of a chunk after other frames, of which the last ones are told with some noise."""
    count = given.motion.shape[1]
    frames = torch.cat([*first, *made], 1)[:, -count:]
    missing = count - frames.shape[1]  # a chunk may be shorter than what the next one is told
    frames = torch.cat((frames[:, :1].expand(-1, missing, -1, -1, -1), frames), 1)
    noise = torch.randn(1, *frames.shape[1:], generator=generator).to(frames.device)
    known = {
        "has_motion": torch.ones_like(given.has_motion),
        "motion_level": torch.full_like(given.motion_level, level),
    }
    return given._replace(motion=frames + level * noise, **known)
