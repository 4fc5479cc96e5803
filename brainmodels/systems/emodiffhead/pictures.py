"""Pictures as the networks see them: frames in the space of the diffusion, and what a VECA reads from the portrait."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.clips import TalkingClip
from ...errors import AxisError, BrainDataError, need
from .reader import MOST_PIXELS, PortraitReader, portrait_model
from .recipes import EmoDiffHeadRecipe
from .rendering import pixels

__all__ = ["FrameSpace", "PortraitFeatures", "frames_of", "resized"]

_TOGETHER = 32  # pictures that are read or decoded at a time


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Square pictures uint8 (T, H, H, 3) at another size, averaged over what a pixel covers.

    Raises:
        AxisError: The pictures are not square.
    """
    if pictures.shape[1] != pictures.shape[2]:
        raise AxisError(f"expected square pictures, got {pictures.shape[1]} x {pictures.shape[2]} px; crop them")
    if pictures.shape[1] == size:
        return pictures
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return x.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()


def frames_of(clip: TalkingClip, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (T, size, size, 3) of a clip, and its mouth boxes (T, 4) in their pixels, zeros where unknown."""
    pictures = clip.pictures()
    box = np.zeros((clip.num_frames, 4), np.float32) if clip.mouth_box is None else clip.mouth_box
    return resized(pictures, size), box * np.float32(size / pictures.shape[1])


class FrameSpace:
    """The space of the diffusion: pixels in [-1, 1], or latents of a diffusers `AutoencoderKL`.

    Args:
        recipe: Its `autoencoder` is a folder, or None for pixels.

    Raises:
        BrainDataError: The latents have other channels or another side than the denoiser.
        ImportError: diffusers is not installed.
        OSError: The folder holds no autoencoder.
    """

    def __init__(self, recipe: EmoDiffHeadRecipe):
        self.model: Any = None
        if recipe.autoencoder is None:
            return
        try:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        except ImportError as error:
            raise need("diffusers", "an autoencoder") from error
        self.model = AutoencoderKL.from_pretrained(recipe.autoencoder, local_files_only=True).requires_grad_(False)
        self.model.eval()
        size = recipe.denoiser_size
        wanted, shape = (size.channels, size.side, size.side), self._latents(recipe.size)
        if shape != wanted:
            raise BrainDataError(f"expected latents {wanted}, as the denoiser has them, got {shape}")

    def _latents(self, size: int) -> tuple[int, int, int]:
        shape = self.encode(torch.zeros(1, 1, size, size, 3, dtype=torch.uint8)).shape
        return int(shape[2]), int(shape[3]), int(shape[4])

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames uint8 (B, T, H, W, 3) to (B, T, c, h, w)."""
        x = pixels(frames)
        if self.model is None:
            return x
        self.model.to(x.device)
        parts = [self.model.encode(part).latent_dist.mean for part in x.flatten(0, 1).split(_TOGETHER)]
        return (torch.cat(parts) * self.model.config.scaling_factor).unflatten(0, x.shape[:2])

    @torch.no_grad()
    def decode(self, frames: Tensor) -> np.ndarray:
        """Frames (T, c, h, w) to uint8 (T, H, W, 3)."""
        if self.model is not None:
            self.model.to(frames.device)
            parts = [
                self.model.decode(part).sample for part in (frames / self.model.config.scaling_factor).split(_TOGETHER)
            ]
            frames = torch.cat(parts)
        x = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        return x.permute(0, 2, 3, 1).cpu().numpy()


class PortraitFeatures:
    """What a VECA reads from portraits: tokens (1 + C, g), the global token first.

    Args:
        recipe: Its `portrait_model` is read with the weights that ship, or those of a folder.

    Attributes:
        reader: The network; it is trained where the recipe says so.
        width: Width g.
    """

    def __init__(self, recipe: EmoDiffHeadRecipe):
        size, trained = recipe.denoiser_size, recipe.portrait == "train"
        self.side = recipe.portrait_size or (recipe.size if trained else None)
        model = portrait_model(recipe.portrait_model)
        self.reader = PortraitReader(model, size.cores, size.reference == "veca", trained)
        self.width = self.reader.width

    @torch.no_grad()
    def of(self, picture: np.ndarray, device: torch.device) -> Tensor:
        """Tokens (1 + C, g) of a square picture uint8 (H, H, 3)."""
        return self.reader.to(device)(self.read(picture)[None].to(device))[0]

    def read(self, picture: np.ndarray) -> Tensor:
        """The picture at the size that the network reads, (3, h, h) in [0, 1]."""
        side = self.side or min(picture.shape[0], MOST_PIXELS)
        return torch.from_numpy(resized(picture[None], side)[0]).permute(2, 0, 1).float() / 255
