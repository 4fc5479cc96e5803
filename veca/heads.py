"""Linear heads: one on the global token, one on every patch.

Shapes: B images, P patches = rows * cols, E width.
"""

from timm.layers import trunc_normal_
from torch import Tensor, nn

__all__ = ["LinearHead", "PatchHead"]


class LinearHead(nn.Module):
    """Logits of an image from its global token.

    Args:
        embed_dim: E.
        num_classes: number of logits.
        norm: a LayerNorm before the linear; useful on features that end in none.
    """

    def __init__(self, embed_dim: int, num_classes: int, norm: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()
        self.linear = nn.Linear(embed_dim, num_classes)
        trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (..., E) -> (..., num_classes)."""
        return self.linear(self.norm(tokens))


class PatchHead(LinearHead):
    """Logits of every patch: a linear segmentation head, at the resolution of the patches."""

    def as_map(self, patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """patches (B, P, E) -> logits (B, num_classes, rows, cols), for `F.interpolate` to any size."""
        rows, cols = grid_size
        if patches.shape[1] != rows * cols:
            raise ValueError(f"expected {rows} x {cols} = {rows * cols} patches, got {patches.shape[1]}")
        return self(patches).unflatten(1, grid_size).movedim(-1, 1)
