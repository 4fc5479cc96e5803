"""The cores are learned tokens at learned positions. A model also works with only the first C of them.

Shapes: B images, M cores in the bank, C active cores (a prefix), E embedding dim. Positions: (x, y).
"""

import torch
from torch import Tensor, nn

__all__ = ["CORE_WEIGHTS", "DEFAULT_CORES", "CoreBank", "CoreStep", "default_budgets", "spread_points"]

DEFAULT_CORES = 64
CORE_WEIGHTS = ("core_bank.tokens", "core_bank.raw_xy")  # the weights of a model with a row for each core
_CANDIDATES = 1000
_EXTENT = 0.95  # tanh would need infinite raw values at 1


class CoreBank(nn.Module):
    """All M cores, in order. A budget of C uses the first C.

    Args:
        num_cores: M.
        embed_dim: E.

    Attributes:
        tokens: core tokens (M, E), initially N(0, 1) / sqrt(E). No position is added to them.
        raw_xy: unbounded coordinates (M, 2); `xy` is their tanh.
    """

    def __init__(self, num_cores: int, embed_dim: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_cores, embed_dim))
        self.raw_xy = nn.Parameter(torch.empty(num_cores, 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        num_cores, embed_dim = self.tokens.shape
        self.tokens.copy_(torch.randn(num_cores, embed_dim, device=self.tokens.device) * embed_dim**-0.5)
        self.raw_xy.copy_(torch.atanh(spread_points(num_cores)))

    @property
    def xy(self) -> Tensor:
        """Positions before the first block, (M, 2) in (-1, 1)."""
        return self.raw_xy.tanh()

    def extra_repr(self) -> str:
        return f"num_cores={self.tokens.shape[0]}, embed_dim={self.tokens.shape[1]}"


class CoreStep(nn.Module):
    """Moves the cores between two blocks, separately for each image.

        raw <- raw + alpha * Linear(tokens)

    Args:
        embed_dim: E.
        norm: put a LayerNorm before the linear layer, which otherwise reads the raw residual stream.
        max_step: largest change of a raw coordinate in one step; None sets no limit.
        norm_eps: epsilon of that LayerNorm.
    """

    def __init__(self, embed_dim: int, norm: bool = False, max_step: float | None = None, norm_eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if norm else nn.Identity()
        self.head = nn.Linear(embed_dim, 2)
        # shape (1,) instead of a scalar, because FSDP2 refuses to shard scalars
        self.alpha = nn.Parameter(torch.empty(1))
        self.max_step = max_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha, 0.01)

    def forward(self, raw_xy: Tensor, tokens: Tensor) -> Tensor:
        """Move the cores.

        Args:
            raw_xy: raw coordinates (C, 2) or (B, C, 2), at least fp32.
            tokens: cores in the residual stream, (B, C, E).

        Returns:
            New raw coordinates (B, C, 2).
        """
        step = self.alpha * self.head(self.norm(tokens))  # (B, C, 2)
        if self.max_step is not None:
            step = step.clamp(-self.max_step, self.max_step)
        return raw_xy + step


def default_budgets(num_cores: int) -> list[int]:
    """The budgets that a model is trained with unless others are named: the multiples of 8, and M itself."""
    return sorted({*range(8, num_cores + 1, 8), num_cores})


def spread_points(count: int, seed: int = 0) -> Tensor:
    """Points spread over the square by farthest point sampling, so that the first n are spread too, for every n.

    The first point is the candidate nearest the centre. Each next point is the one farthest from all before it.

    Args:
        count: number of points.
        seed: seed of a private generator; the global generators are not used.

    Returns:
        Points (count, 2) in [-0.95, 0.95], fp32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.rand(max(_CANDIDATES, 4 * count), 2, generator=generator, device="cpu")
    candidates = _EXTENT * (2 * candidates - 1)
    chosen = [candidates.square().sum(-1).argmin()]
    distance = torch.full((len(candidates),), torch.inf, device="cpu")
    for _ in range(count - 1):
        distance = torch.minimum(distance, (candidates - candidates[chosen[-1]]).square().sum(-1))
        chosen.append(distance.argmax())
    return candidates[torch.stack(chosen)]  # (count, 2)
