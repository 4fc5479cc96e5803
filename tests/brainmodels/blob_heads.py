"""Faces of three blobs: the person's colour behind, an eye that moves, and a mouth that opens with the sound."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from brainmodels.systems.emodiffhead.recipes import DenoiserSize, EmoDiffHeadRecipe, GeneratorSize
from brainmodels.systems.emodiffhead.rendering import RenderBatch

SUBFRAMES, AUDIO, EXPRESSION, PORTRAIT, CORES = 2, 3, 3, 6, 2


def blob_recipe(side: int = 16, **changes) -> EmoDiffHeadRecipe:
    """A recipe for these faces; changes that are names of sizes go there."""
    names = DenoiserSize.__dataclass_fields__
    sizes = {name: changes.pop(name) for name in list(changes) if name in names}
    size = DenoiserSize(**{"side": side, "width": 16, "multipliers": (1, 2), "attention": (side // 2,)} | sizes)
    size = replace(size, frames=sizes.get("frames", 4))
    return EmoDiffHeadRecipe(
        denoiser_size=size, generator_size=GeneratorSize(reach=1), size=side, window=8, steps=4, **changes
    )


def draw_faces(look: Tensor, opening: Tensor, color: Tensor, side: int) -> Tensor:
    """uint8 (B, T, side, side, 3) of where the eye looks and how far the mouth opens (B, T), and of colours (B, 3)."""
    place = (torch.arange(side) + 0.5) / side
    y, x = place[:, None], place[None, :]
    look, opening = look[..., None, None], opening[..., None, None]
    eye = torch.exp(-((x - 0.5 - 0.25 * look) ** 2 + (y - 0.25) ** 2) / 0.01)
    mouth = torch.sigmoid(4 * side * (0.05 + 0.15 * opening - (y - 0.7).abs())) * ((x - 0.5).abs() < 0.25)
    picture = color[:, None, None, None].expand(*eye.shape, 3) * (1 - eye[..., None]) + eye[..., None]
    return (255 * picture * (1 - mouth[..., None])).round().to(torch.uint8)


def mouth_of(frames: Tensor) -> Tensor:
    """Share of dark pixels (..., ) in the lower half of frames (..., 3, h, w) in [-1, 1]."""
    return (frames.mean(-3)[..., frames.shape[-2] // 2 :, :] < -0.6).float().mean((-2, -1))


def draw_series(clips: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Eye and mouth (B, T) of clips, and their colours (B, 3)."""
    time = np.arange(frames) / frames
    phase, speed = rng.uniform(0, 1, (clips, 1)), rng.uniform(1, 3, (clips, 1))
    look = np.sin(2 * np.pi * (time * speed / 2 + phase))
    opening = rng.uniform(0, 1, (clips, frames))
    made = (look, opening, rng.uniform(0.5, 0.9, (clips, 3)))
    return tuple(torch.from_numpy(x).float() for x in made)  # pyright: ignore[reportReturnType]


def series_of(look: Tensor, opening: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Full and hidden expression (B, T, 3) and sound (B, T, S, D)."""
    mouth = 3.4 * (opening - 0.5)
    full = torch.stack((1.4 * look, mouth, torch.zeros_like(look)), -1)
    hidden = torch.stack((1.4 * look, mouth.mean(1, keepdim=True).expand_as(mouth), torch.zeros_like(look)), -1)
    sound = torch.stack((mouth, -mouth, torch.ones_like(mouth)), -1)
    return full, hidden, sound[:, :, None].expand(-1, -1, SUBFRAMES, -1).contiguous()


def blob_batch(clips: int, frames: int, side: int = 16, seed: int = 0) -> RenderBatch:
    """A batch of such clips."""
    rng = np.random.default_rng(seed)
    look, opening, color = draw_series(clips, frames, rng)
    portraits = torch.zeros(clips, 2, 1 + CORES, PORTRAIT)
    portraits[..., :3] = color[:, None, None]
    references = draw_faces(*(x.flip(1)[:, :2] for x in (look, opening)), color, side)
    box = torch.tensor([0.25, 0.5, 0.75, 0.9]).mul(side).expand(clips, frames, 4)
    frames_of_clips = draw_faces(look, opening, color, side)
    known = (*series_of(look, opening), references, portraits, box)
    return RenderBatch("blobs", np.arange(clips), frames_of_clips, *known)
