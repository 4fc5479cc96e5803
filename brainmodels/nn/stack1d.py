"""Residual convolutions along one axis, down and up: the body of BrainVAE (SynBrain) and NeuroVAE (NeuroFlow).

    down = DownStack1d(1, channels=(64, 128), num_blocks=2, num_down=1)
    down(x)  # (B, 1, 1024) to (B, 128, 512)

Both stacks follow the autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752), with one spatial axis. The
channels are tokens, and the length is the width of a token. Shapes: B batch, C channels, L length.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..errors import BrainDataError

__all__ = ["Attention1d", "DownStack1d", "ResBlock1d", "UpStack1d", "group_norm"]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6.

    Args:
        channels: Number C of channels. There are gcd(C, 32) groups, or C groups below 32 channels.
    """
    return nn.GroupNorm(channels if channels < 32 else math.gcd(channels, 32), channels, eps=1e-6)


class ResBlock1d(nn.Module):
    """Residual block: x + conv(silu(norm(conv(silu(norm(x)))))), with kernels of 3.

    It maps (B, in_channels, L) to (B, channels, L), with a 1 x 1 shortcut if the channels change.

    Args:
        in_channels: Number of input channels.
        channels: Number of output channels.
    """

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
        return self.shortcut(x) + self.body(x)  # (B, channels, L)


class Attention1d(nn.Module):
    """Residual attention of one head over positions, (B, C, L) to the same; scores are scaled by C^-0.5.

    Args:
        channels: Number C of channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).mT.unsqueeze(1).chunk(3, -1)  # (B, 1, L, C)
        return x + self.out(scaled_dot_product_attention(q, k, v).squeeze(1).mT)  # (B, C, L)


class DownStack1d(nn.Sequential):
    """Levels of residual blocks that shorten the signal, then a middle with attention, GroupNorm and SiLU.

    It maps (B, in_channels, L) to (B, channels[-1], L / 2^num_down). After each of the first `num_down` levels, a
    convolution with kernel 7 and stride 2 halves the length.

    Args:
        in_channels: Number of input channels.
        channels: Number of channels of each level.
        num_blocks: Number of residual blocks in a level.
        num_down: Number of levels that are followed by halving, less than the number of levels.

    Raises:
        BrainDataError: Not fewer halvings than levels.
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
    """The reverse of `DownStack1d`: the middle, then the levels in reverse, of which the first `num_up` double the
    length.

    It maps (B, channels[-1], L) to (B, channels[0], L * 2^num_up).

    Args:
        channels: Number of channels of each level, in the order of the downward stack.
        num_blocks: Number of residual blocks in a level. In both papers it is one more than on the way down.
        num_up: Number of levels that are followed by a transposed convolution with kernel 7 and stride 2. Less than the
            number of levels.

    Raises:
        BrainDataError: Not fewer doublings than levels.
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
