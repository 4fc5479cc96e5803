"""Pictures that are found among many by their latents, where the generator's own are not good enough.

    bank = shipped_bank(generator)                        # 8,000 drawn scenes
    pictures = bank(z_image, c_image, c_text, 0.4)        # (n, 3, H, W) in [0, 1]

The image context knows the object and the text context what was said of it, size and background included. The image
latent knows where things are. What is found is a picture that exists: it shows what was found, not what was seen.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.ids import Ids
from ...drawing.patch_code import pixels_of
from ...drawing.scenes import PIXELS, shipped_nearest
from ...errors import BrainDataError
from ...simulated.scenes import scene_captions, scene_pictures
from .nano import NanoGenerator

__all__ = ["LatentBank", "shipped_bank"]

BLOCK = 256
LATENT_SHARE = 0.1  # of the image latent; chosen on a simulated subject of seed 2


@dataclass(frozen=True)
class LatentBank:
    """Pictures with the latents by which they are found.

        w cos(c_image) + (1 - w) cos(c_text) + LATENT_SHARE cos(z_image), of vectors without the bank's mean

    Of the image context its first token counts, which is that of the whole picture; of the text context the mean.

    Attributes:
        ids: (N,) Ids.
        z_image: (N, ...) Image latents.
        c_image: (N, d) First tokens of image contexts.
        c_text: (N, d) Mean tokens of text contexts.
        images: Function from ids to pictures (n, H, W, 3) uint8.
    """

    ids: np.ndarray
    z_image: Tensor
    c_image: Tensor
    c_text: Tensor
    images: Callable[[Ids], np.ndarray]

    @property
    def name(self) -> str:
        """Name that is printed with scores of the pictures."""
        return f"nearest_of_{len(self.ids)}"

    def __call__(
        self, z_image: np.ndarray | None, c_image: np.ndarray | None, c_text: np.ndarray | None, image_weight: float
    ) -> np.ndarray:
        """Nearest pictures (n, 3, H, W) fp32 in [0, 1]. Arguments as in `rows_of`."""
        rows = self.rows_of(z_image, c_image, c_text, image_weight)
        return pixels_of(self.images(self.ids[rows])).numpy()

    def rows_of(
        self, z_image: np.ndarray | None, c_image: np.ndarray | None, c_text: np.ndarray | None, image_weight: float
    ) -> np.ndarray:
        """Rows (n,) of the bank.

        Args:
            z_image: (n, ...) Image latents; None leaves them out.
            c_image, c_text: (n, tokens, d) Contexts; None leaves one out.
            image_weight: Weight w of the image context.

        Raises:
            BrainDataError: Nothing is given.
        """
        parts = [
            (LATENT_SHARE, z_image, self.z_image),
            (image_weight, None if c_image is None else c_image[:, 0], self.c_image),
            (1 - image_weight, None if c_text is None else c_text.mean(1), self.c_text),
        ]
        terms = [weight * _cosines(x, keys) for weight, x, keys in parts if x is not None]
        if not terms:
            raise BrainDataError("expected a latent or a context to find a picture by, got none")
        return torch.stack(terms).sum(0).argmax(1).numpy()


def shipped_bank(generator: NanoGenerator, caption: int = 1, count: int | None = None) -> LatentBank:
    """The drawn scenes that ship with `brainmodels.drawing`, or the first of them, with their latents.

    Args:
        generator: Whose latents; their contexts must be features of the VECA that ships.
        caption: Number of the caption that the text contexts are of.
        count: Number of scenes; None takes all 8,000, whose latents take 15 seconds.

    Raises:
        BrainDataError: The contexts of the generator are not features of the VECA that ships.
    """
    nearest = shipped_nearest(generator.context)
    if nearest is None:
        raise BrainDataError(
            f"expected a generator whose contexts are of the VECA that ships, got {generator.context.name}; take "
            "drawer='denoised'"
        )
    ids, pooled = nearest.bank.ids[:count], nearest.bank.pooled[:count]

    images = functools.partial(scene_pictures, size=PIXELS)
    with torch.no_grad():
        rows = generator.vocabulary.encode(scene_captions(ids, caption)).to(generator.device)
        text = torch.cat([generator.text_context(part).mean(1) for part in rows.split(BLOCK)])
        parts = [pixels_of(images(ids[at : at + BLOCK])) for at in range(0, len(ids), BLOCK)]
        latents = torch.cat([generator.patch_latent(part.to(generator.device)) for part in parts])
        whole = generator.global_token(pooled.to(generator.device))
    return LatentBank(ids, latents.cpu(), whole.cpu(), text.cpu(), images)


def _cosines(x: Any, keys: Tensor) -> Tensor:
    """Cosines (n, N) of vectors and keys without the mean of the keys."""
    mean = keys.flatten(1).mean(0)
    found = torch.from_numpy(np.ascontiguousarray(x, np.float32)).flatten(1)
    return F.normalize(found - mean, dim=1) @ F.normalize(keys.flatten(1) - mean, dim=1).T
