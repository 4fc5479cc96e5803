"""A transformer over tokens whose blocks depend on a time: SynBrain's mapper and NeuroFlow's flow.

    flow = SiT(num_tokens=256, token_width=1664, depth=8, num_heads=13)
    flow(tokens, time)  # (B, 256, 1664), all zeros in a new model

Each block computes

    x <- x + g1 * attention((1 + s1) * norm(x) + b1)
    x <- x + g2 * mlp((1 + s2) * norm(x) + b2)         (b1, s1, g1, b2, s2, g2) = linear(silu(c)),  c = embed(t)

This is the scalable interpolant transformer (Ma et al., arXiv 2401.08740), on tokens instead of image patches, and
without classes. The linear layer of the modulation and the last layer begin at zero, so a new model returns zeros.

Shapes: B batch, m tokens, d token width, W model width.
"""

from functools import partial
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from veca.model.modules import Modules

from ..errors import AxisError, BrainDataError

__all__ = ["SiT", "TimeEmbedding", "sincos_positions"]

BASE = 10_000.0  # longest period of the sinusoids, divided by 2 pi
TIME_SINUSOIDS = 256


class SiT(nn.Module):
    """Transformer from tokens (B, m, d) and a time to tokens (B, m, d).

    With m = 256, d = W = 1664 and 13 heads, the 0.43 M of the fixed position code included, its size is

    | depth | numbers |
    |---|---|
    | 8 | 410.86 M |
    | 12 | 610.32 M |

    Args:
        num_tokens: Number m of tokens.
        token_width: Width d of a token. If it is not W, a linear at either end changes one into the other.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        width: Model width W, even and divisible by `num_heads`. None is d.
        mlp_ratio: Hidden width of the MLPs divided by W.
        conditioning: "adaln" modulates by time. "plain" has no time, and its norms have weights, so it can express the
            same functions as "adaln" at one fixed time.

    Attributes:
        checkpointing: Whether to recompute each block in the backward pass instead of keeping its activations. Default:
            False.

    Raises:
        BrainDataError: W is odd or not divisible by the number of heads, or an unknown conditioning.
    """

    def __init__(
        self,
        num_tokens: int,
        token_width: int,
        depth: int,
        num_heads: int,
        width: int | None = None,
        mlp_ratio: float = 4.0,
        conditioning: str = "adaln",
    ):
        super().__init__()
        width = token_width if width is None else width
        if width % 2 or width % num_heads:
            raise BrainDataError(f"expected an even width divisible by num_heads={num_heads}, got {width}")
        if conditioning not in ("adaln", "plain"):
            raise BrainDataError(f"expected conditioning 'adaln' or 'plain', got {conditioning!r}")
        self.num_tokens, self.token_width = num_tokens, token_width
        self.conditioned = conditioning == "adaln"
        self.checkpointing = False
        self.embed = nn.Identity() if width == token_width else nn.Linear(token_width, width)
        self.register_buffer("positions", sincos_positions(num_tokens, width))
        self.time = TimeEmbedding(width) if self.conditioned else None
        self.blocks = Modules(_Block(width, num_heads, mlp_ratio, self.conditioned) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not self.conditioned)
        self.modulation = nn.Linear(width, 2 * width) if self.conditioned else None
        self.out = nn.Linear(width, token_width)
        self._initialise()

    def forward(self, tokens: Tensor, time: Tensor | None = None) -> Tensor:
        """Transform tokens at a time.

        Args:
            tokens: (B, m, d) Tokens.
            time: (B,) Times from 0 to 1, used as they are. None is time 0, the one step of SynBrain's mapper.

        Returns:
            (B, m, d).

        Raises:
            AxisError: Tokens or times have another shape.
            BrainDataError: A time for a model without one.
        """
        if tokens.ndim != 3 or tokens.shape[1:] != (self.num_tokens, self.token_width):
            expected = f"(B, {self.num_tokens}, {self.token_width})"
            raise AxisError(f"expected tokens {expected}, got {tuple(tokens.shape)}")
        condition = self._condition(tokens, time)
        x = self.embed(tokens) + self.positions  # (B, m, W)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, condition, use_reentrant=False)
            else:
                x = block(x, condition)
        x = self.norm(x)  # (B, m, W)
        if self.modulation is not None:
            shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, -1)  # (B, 1, W)
            x = (1 + scale) * x + shift
        return self.out(x)  # (B, m, d)

    def _condition(self, tokens: Tensor, time: Tensor | None) -> Tensor | None:
        if self.time is None:
            if time is not None:
                raise BrainDataError("expected no time for a SiT with conditioning='plain', got one; use 'adaln'")
            return None
        if time is None:
            time = tokens.new_zeros(len(tokens))
        if time.shape != tokens.shape[:1]:
            raise AxisError(f"expected time ({len(tokens)},), one for each sample, got {tuple(time.shape)}")
        return nn.functional.silu(self.time(time))  # (B, W)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.time is not None:
            for layer in self.time.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
            for layer in (self.modulation, *(block.modulation for block in self.blocks)):
                if layer is not None:
                    nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.out.weight)


class TimeEmbedding(nn.Module):
    """Embedding of times (B,) as vectors (B, W).

    128 cosines and 128 sines of geometric frequencies from 1 down are followed by an MLP with SiLU.

    Args:
        width: Width W of the vectors.
    """

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angles = _angles(time.to(torch.promote_types(time.dtype, torch.float32)), TIME_SINUSOIDS // 2)  # (B, 128)
        waves = torch.cat([angles.cos(), angles.sin()], -1)  # (B, 256)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))  # (B, W)


class _Block(nn.Module):
    """Residual attention and MLP behind norms; if `conditioned`, both are shifted, scaled and gated."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, conditioned: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not conditioned)
        self.attn = Attention(width, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not conditioned)
        gelu: Any = partial(nn.GELU, approximate="tanh")  # timm names classes only
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=gelu)
        self.modulation = nn.Linear(width, 6 * width) if conditioned else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.modulation is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        b1, s1, g1, b2, s2, g2 = self.modulation(condition).unsqueeze(1).chunk(6, -1)  # (B, 1, W)
        x = x + g1 * self.attn((1 + s1) * self.norm1(x) + b1)
        return x + g2 * self.mlp((1 + s2) * self.norm2(x) + b2)


def sincos_positions(num_tokens: int, width: int) -> Tensor:
    """Fixed code of the positions 0..m-1: W/2 sines, then W/2 cosines, of geometric frequencies from 1 down.

    Args:
        num_tokens: Number m of positions.
        width: Width W of the code, even.

    Returns:
        (m, W).
    """
    angles = _angles(torch.arange(num_tokens, dtype=torch.float64), width // 2)  # (m, W / 2)
    return torch.cat([angles.sin(), angles.cos()], -1).to(torch.get_default_dtype())  # (m, W)


def _angles(values: Tensor, count: int) -> Tensor:
    """Angles (n, count): values (n,) times frequencies 10000^(-i / count), for i < count."""
    steps = torch.arange(count, dtype=values.dtype, device=values.device)
    return values[:, None] * BASE ** (-steps / count)
