"""A generator of pictures, given decoded tokens, what a reader makes of them, and the nearest picture of a bank.

A flow from noise to the code of a picture (Lipman et al., arXiv 2210.02747), by a U-Net of diffusers.
Shapes: n images, K components, p pooled features, g cells a side of the code, c its channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .reader import LEVELS

__all__ = ["Conditions", "FlowSize", "PictureFlow"]

EARLY = 0.1  # least 1 - t that a loss or a velocity is divided by


@dataclass(frozen=True)
class FlowSize:
    """Sizes of a `PictureFlow`.

    Attributes:
        grid: Cells a side g of the code.
        channels: Channels c of the code.
        cell_width: Features of a cell of the reduced tokens.
        token_width: Features of a token that are shown where tokens are whole.
        pooled: Number p of pooled features.
        levels: Number of reliabilities.
        widths: Channels at each scale; the grid is halved from one to the next.
    """

    grid: int
    channels: int
    cell_width: int
    token_width: int
    pooled: int
    levels: int = LEVELS
    widths: tuple[int, ...] = (64, 128, 192)

    @property
    def given(self) -> int:
        """Channels of the conditions that have a place."""
        return self.channels + self.cell_width + self.token_width


@dataclass(frozen=True)
class Conditions:
    """What a picture is drawn from.

    Attributes:
        placed: (n, given, g, g) The code of the nearest picture, the cells that are expected, and the whole tokens,
            zero where they are not known.
        told: (n, p + levels + 2) Reader's guess, reliabilities, and whether tokens are whole and a picture is there.
    """

    placed: Tensor
    told: Tensor

    def none(self) -> "Conditions":
        """Nothing known."""
        return Conditions(torch.zeros_like(self.placed), torch.zeros_like(self.told))

    def where(self, kept: Tensor) -> "Conditions":
        """Only the rows of a mask (n,) stay known."""
        return Conditions(self.placed * kept[:, None, None, None], self.told * kept[:, None])


class PictureFlow(nn.Module):
    """Network that finds the clean code from a noisy one, z = t x + (1 - t) noise, under conditions."""

    def __init__(self, size: FlowSize):
        from diffusers.models.unets.unet_2d import UNet2DModel  # takes seconds to import

        super().__init__()
        self.size = size
        plain = len(size.widths) - 1
        down, up = (*["DownBlock2D"] * plain, "AttnDownBlock2D"), ("AttnUpBlock2D", *["UpBlock2D"] * plain)
        time = 4 * size.widths[0]
        self.net = UNet2DModel(
            size.grid,
            size.channels + size.given,
            size.channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=size.widths,
            layers_per_block=1,
            attention_head_dim=min(64, size.widths[-1]),
            norm_num_groups=min(16, size.widths[0]),
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        self.told = nn.Sequential(nn.Linear(size.pooled + size.levels + 2, time), nn.SiLU(), nn.Linear(time, time))

    def forward(self, z: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """Clean codes (n, c, g, g) guessed from noisy ones at times t (n,) from 0, noise, to 1."""
        x = torch.cat([z, given.placed], 1).contiguous(memory_format=torch.channels_last)
        return self.net(x, 1000 * t, self.told(given.told)).sample

    def loss(self, x: Tensor, given: Conditions, rng: torch.Generator) -> Tensor:
        """Squared error of the velocity (n,) at random times, which are more often early than late.

        Args:
            x: (n, c, g, g) Codes of pictures.
            given: Their conditions.
            rng: Source of times and noise.
        """
        t = torch.sigmoid(torch.randn(len(x), generator=rng, device=rng.device) - 0.4).to(x.device)
        noise = torch.randn(x.shape, generator=rng, device=rng.device).to(x.device)
        z = t[:, None, None, None] * x + (1 - t)[:, None, None, None] * noise
        error = (self(z, t, given).float() - x).square().mean((1, 2, 3))
        return error / (1 - t).clamp(min=EARLY).square()

    @torch.no_grad()
    def draw(
        self,
        given: Conditions,
        noise: Tensor,
        *,
        steps: int = 16,
        guidance: float = 1.5,
        start: Tensor | None = None,
        since: float = 0.0,
    ) -> Tensor:
        """Codes (n, c, g, g) drawn under conditions, by steps of Euler.

        Args:
            given: Conditions.
            noise: (n, c, g, g) Standard normal numbers.
            steps: Number of steps from t = 0.
            guidance: Weight of the conditions against none (Ho and Salimans, arXiv 2207.12598); 1 is without.
            start, since: Codes from which drawing begins at time `since`, with noise; None begins from noise.
        """
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        z = noise
        if start is not None:
            z = since * start + (1 - since) * noise
        for sigma, step in zip(scheduler.sigmas[:-1].tolist(), scheduler.timesteps, strict=True):
            if start is not None and sigma > 1 - since + 1e-6:
                continue
            t = torch.full((len(z),), 1 - sigma, device=z.device)
            x = self(z, t, given)
            if guidance != 1:
                x = guidance * x + (1 - guidance) * self(z, t, given.none())
            z = scheduler.step((z - x.float()) / max(sigma, 1e-3), step, z).prev_sample
        return z
