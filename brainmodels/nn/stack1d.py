"""Residual convolutions along one axis, down and up: the body of BrainVAE (SynBrain) and NeuroVAE (NeuroFlow).

Both follow the autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752) with one spatial axis. The channels
are tokens, the length is their width. Shapes: B batch, C channels, L length.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..errors import BrainDataError

__all__ = ["Attention1d", "DownStack1d", "ResBlock1d", "UpStack1d", "group_norm"]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of gcd(C, 32) groups, or of one channel a group below 32 channels; eps 1e-6."""
    return nn.GroupNorm(channels if channels < 32 else math.gcd(channels, 32), channels, eps=1e-6)


class ResBlock1d(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), kernels of 3; a 1 x 1 shortcut where the channels change."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv1d(in_channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
        )
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv1d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Attention1d(nn.Module):
    """x plus attention of one head over its positions, (B, C, L) to the same; scores are scaled by C^-0.5."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).mT.unsqueeze(1).chunk(3, -1)  # (B, 1, L, C)
        return x + self.out(scaled_dot_product_attention(q, k, v).squeeze(1).mT)


class DownStack1d(nn.Sequential):
    """Levels of residual blocks that shorten the signal, the middle with attention, GroupNorm and SiLU.

    (B, in_channels, L) to (B, channels[-1], L / 2^num_down). After each of the first `num_down` levels, a convolution
    with kernel 7 and stride 2 halves the length.

    Args:
        in_channels: of the input.
        channels: of each level.
        num_blocks: residual blocks a level.
        num_down: levels that are followed by halving; fewer than levels.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], num_blocks: int, num_down: int):
        _check_levels(channels, num_down)
        layers = []
        for level, width in enumerate(channels):
            layers += _level(in_channels, width, num_blocks)
            if level < num_down:
                layers.append(nn.Conv1d(width, width, 7, stride=2, padding=3))
            in_channels = width
        super().__init__(*layers, *_middle(in_channels), group_norm(in_channels), nn.SiLU())


class UpStack1d(nn.Sequential):
    """The way back: the middle, then the levels in reverse, the first `num_up` of which are followed by doubling.

    (B, channels[-1], L) to (B, channels[0], L * 2^num_up).

    Args:
        channels: of the levels, in the order of the stack that goes down.
        num_blocks: residual blocks a level, one more than on the way down in both papers.
        num_up: levels that are followed by a transposed convolution with kernel 7 and stride 2; fewer than levels.
    """

    def __init__(self, channels: Sequence[int], num_blocks: int, num_up: int):
        _check_levels(channels, num_up)
        in_channels = channels[-1]
        layers = _middle(in_channels)
        for level, width in enumerate(reversed(channels)):
            layers += _level(in_channels, width, num_blocks)
            if level < num_up:
                layers.append(nn.ConvTranspose1d(width, width, 7, stride=2, padding=3, output_padding=1))
            in_channels = width
        super().__init__(*layers)


def _level(in_channels: int, channels: int, num_blocks: int) -> list[nn.Module]:
    return [ResBlock1d(in_channels if block == 0 else channels, channels) for block in range(num_blocks)]


def _middle(channels: int) -> list[nn.Module]:
    return [ResBlock1d(channels, channels), Attention1d(channels), ResBlock1d(channels, channels)]


def _check_levels(channels: Sequence[int], num_halvings: int) -> None:
    if not 0 <= num_halvings < len(channels):
        raise BrainDataError(
            f"expected fewer halvings of the length than the {len(channels)} levels {tuple(channels)}, "
            f"got {num_halvings}"
        )
