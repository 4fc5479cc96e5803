"""Linear heads: one on the global token, one on every patch.

Shapes: B images, P patches = rows * cols, E width.
"""

from einops import rearrange
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

__all__ = ["LinearHead", "PatchHead"]


class LinearHead(nn.Module):
    """Logits of an image from its global token.

    Args:
        embed_dim: E.
        num_classes: number of logits.
        norm: put a LayerNorm before the linear layer; useful for features that do not end in a norm.
    """

    def __init__(self, embed_dim: int, num_classes: int, norm: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()
        self.linear = nn.Linear(embed_dim, num_classes)
        trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., E) to logits (..., num_classes)."""
        return self.linear(self.norm(tokens))


class PatchHead(LinearHead):
    """Logits of every patch: a linear segmentation head.

    Args:
        embed_dim: E.
        num_classes: number of classes of a cell.
        norm: put a LayerNorm before the linear layer.
        cells: side of the grid of cells that a patch is cut into. Each cell has its own logits. The patch size in
            pixels segments pixels; 1 segments whole patches.
    """

    def __init__(self, embed_dim: int, num_classes: int, norm: bool = False, cells: int = 1):
        super().__init__(embed_dim, num_classes * cells**2, norm)
        self.cells = cells

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (B, P, E) to logits (B, P * cells * cells, num_classes), the cells of a patch row by row."""
        logits = super().forward(patches).unflatten(-1, (self.cells**2, -1))  # (B, P, cells^2, num_classes)
        return logits.flatten(1, 2)

    def as_map(self, patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Patches (B, P, E) to a map of logits, which `F.interpolate` can bring to any size.

        Args:
            patches: patch tokens (B, P, E), row by row.
            grid_size: (rows, cols) of the patches.

        Returns:
            Logits (B, num_classes, rows * cells, cols * cells).

        Raises:
            ValueError: P is not rows * cols.
        """
        rows, cols = grid_size
        if patches.shape[1] != rows * cols:
            raise ValueError(f"expected {rows} x {cols} = {rows * cols} patches, got {patches.shape[1]}")
        i = self.cells
        return rearrange(self(patches), "b (r c i j) n -> b n (r i) (c j)", r=rows, c=cols, i=i, j=i)
