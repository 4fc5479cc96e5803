"""One VECA block: core-periphery attention, then a SwiGLU, both pre-norm and residual.

Shapes: B images, C cores, T = C + P tokens, E embedding dim, h hidden width, D head dim.
"""

from functools import partial

import torch
from timm.layers import DropPath, LayerScale, SwiGLUPacked
from torch import Tensor, nn

from .attention import CoreAttention, Tables

__all__ = ["Block"]


class Block(nn.Module):
    """Cores and patches in one residual stream, through the same modules.

        x = x + attention(norm1(x))
        x = x + mlp(norm2(x))

    Args:
        dim: E.
        num_heads: H.
        hidden_dim: h of the SwiGLU: E -> 2h, SiLU of the first half times the second, h -> E.
        norm_eps: epsilon of the LayerNorms.
        qk_norm: LayerNorm on q and k of each head.
        init_values: initial LayerScale; None has no LayerScale.
        drop_path: probability that an image skips a branch in training.
        update: "parallel", patches read the cores of the block's input; "sequential", they read cores that
            have already read. The latter is an ablation, composed of two passes through the attention at
            twice its cost.
        core_self, patch_self, rope_layout, impl: of `CoreAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        norm_eps: float = 1e-5,
        qk_norm: bool = False,
        init_values: float | None = None,
        drop_path: float = 0.0,
        update: str = "parallel",
        core_self: bool = True,
        patch_self: bool = False,
        rope_layout: str = "interleaved",
        impl: str = "auto",
    ):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=norm_eps)
        self.update = update
        self.norm1 = norm_layer(dim)
        self.attn = CoreAttention(
            dim,
            num_heads,
            qk_norm=qk_norm,
            norm_layer=norm_layer,
            core_self=core_self,
            patch_self=patch_self,
            rope_layout=rope_layout,
            impl=impl,
        )
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = SwiGLUPacked(dim, 2 * hidden_dim)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        num_cores: int,
        core_rope: Tables,
        patch_rope: Tables,
        core_scale: Tensor | None = None,
        active_cores: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, E), cores first -> (B, T, E); the other arguments as in `CoreAttention.forward`."""

        def branch(x: Tensor) -> Tensor:
            out = self.attn(self.norm1(x), num_cores, core_rope, patch_rope, core_scale, active_cores)
            return self.drop_path1(self.ls1(out))

        if self.update == "sequential":
            cores, patches = x[:, :num_cores], x[:, num_cores:]
            cores = cores + branch(x)[:, :num_cores]
            patches = patches + branch(torch.cat((cores, patches), 1))[:, num_cores:]
            x = torch.cat((cores, patches), 1)
        else:
            x = x + branch(x)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
