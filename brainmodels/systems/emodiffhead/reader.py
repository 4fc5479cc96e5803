"""What a VECA reads from the portrait: a global token, cores that stand for the identity, and patches where wanted."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import veca
from veca.zoo.sizes import VARIANTS

from ...errors import AxisError, BrainDataError

__all__ = ["MOST_PIXELS", "PortraitReader", "portrait_model"]

MOST_PIXELS = 1024  # of a side


class PortraitReader(nn.Module):
    """Tokens of portraits.

    The last block of a VECA is trained through its first core alone. The cores are therefore those of the block before.

    Args:
        model: The VECA.
        cores: Number C of cores, or None for the model's own.
        patches: Whether the patches of the last block follow, for `reference="veca"`.
        train: Whether the weights of the model are trained. Else it stays in evaluation mode and gets no gradients.

    Raises:
        BrainDataError: The model has no such number of cores, or a single block.
    """

    def __init__(self, model: veca.VECA, cores: int | None = None, patches: bool = False, train: bool = False):
        super().__init__()
        if len(model.blocks) < 2:
            raise BrainDataError("expected a VECA of two blocks or more, got one")
        try:
            self.cores = model.check_budget(cores)
        except (TypeError, ValueError) as error:
            raise BrainDataError(f"the portrait's cores: {error}") from error
        self.model, self.patches, self.trained = model, patches, train
        self.width: int = model.embed_dim
        model.requires_grad_(train)
        self.train(train)

    def train(self, mode: bool = True) -> "PortraitReader":
        """Set the mode; a frozen model stays in evaluation mode."""
        return super().train(mode and self.trained)

    def forward(self, pictures: Tensor) -> Tensor:
        """Tokens (B, 1 + C, g), or (B, 1 + C + P, g) with patches: the global token, the cores, the patches.

        Args:
            pictures: (B, 3, H, W) RGB in [0, 1], of any size up to 1,024 px.

        Raises:
            AxisError: Pictures of another shape.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or max(pictures.shape[2:]) > MOST_PIXELS:
            raise AxisError(f"expected pictures (B, 3, H, W) of at most {MOST_PIXELS} px, got {tuple(pictures.shape)}")
        mean, std = (torch.tensor(x, device=pictures.device)[:, None, None] for x in (self.model.mean, self.model.std))
        blocks = len(self.model.blocks)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            found: Any = self.model.forward_intermediates(
                (pictures - mean) / std,
                [blocks - 2],
                return_prefix_tokens=True,
                norm=True,
                output_fmt="NLC",
                num_cores=self.cores,
            )
        last, ((_, cores),) = found
        parts = [last.global_token[:, None], cores]
        return torch.cat([*parts, self._square(last)] if self.patches else parts, 1)

    def _square(self, last: veca.Features) -> Tensor:
        rows, cols = cast(tuple[int, int], last.grid_size)
        if rows != cols or math.isqrt(rows * cols) != rows:
            raise AxisError(f"expected a square portrait, got {rows} x {cols} patches")
        return last.patches


def portrait_model(name: str) -> veca.VECA:
    """A VECA with weights: a shipped one by its name, or one from the folder of `save_pretrained`.

    Raises:
        BrainDataError: No such folder, and no such shipped model.
    """
    if not Path(name).is_dir() and name not in VARIANTS:
        raise BrainDataError(f"expected a folder or one of {', '.join(VARIANTS)} as portrait_model, got {name!r}")
    return veca.load(name)[0]
