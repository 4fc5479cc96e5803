"""One VECA block: core-periphery attention, then a SwiGLU, both pre-norm and residual.

Shapes: B images, C cores, T = C + P tokens, E embedding dim, h hidden width, D head dim.
"""

from functools import partial

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from veca_kernels import merge_attention_states, residual_norm_linear

from .attention import CoreAttention, Read, Tables, layer_impl
from .heap import keep_freed_memory
from .linear import Linear, SwiGLU, unobserved

__all__ = ["Block", "join"]

_PIECE = 1024  # tokens a piece on a CPU: 256 multiply 7 % slower, 2,048 only 2 % faster (two Zen 1 cores, 2026-11-28)


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
        fused_norm: take residual, LayerScale, LayerNorm and the projection after it as one operator with
            gradients and on CUDA. It normalises again in the backward pass, where False keeps the normalised tokens.
        recompute: compute the gate of the SwiGLU again in the backward pass; see there. Modules with hooks are
            called one by one whatever these two say.
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
        fused_norm: bool = True,
        recompute: bool = True,
    ):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=norm_eps)
        self.update = update
        self.fused_norm = fused_norm
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
        self.mlp = SwiGLU(dim, hidden_dim, recompute, layer_impl(impl))
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
        patch_lengths: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, E), cores first -> (B, T, E); the other arguments as in `CoreAttention.forward`.

        Large inputs on a CPU go through in pieces of the patches where no gradient is wanted: the same sums
        in another order.
        """
        keep_freed_memory(x)
        options = (core_rope, patch_rope, core_scale, active_cores, patch_lengths)
        if self._takes_pieces(x[:, num_cores:]):
            return self._forward_in_steps(x, num_cores, *options)
        if self.update == "parallel":
            parts = (self.norm1, nn.LayerNorm), (self.attn, CoreAttention)
            if self._fuses(x, *parts) and unobserved((self.attn.qkv, Linear)):
                return self._finish(x, self.attn(x, num_cores, *options, norm=self.norm1))
            return self._finish(x, self.attn(self.norm1(x), num_cores, *options))
        cores, patches = x[:, :num_cores], x[:, num_cores:]
        cores = cores + self._branch(self.attn(self.norm1(x), num_cores, *options)[:, :num_cores])
        moved = self.norm1(torch.cat((cores, patches), 1))
        patches = patches + self._branch(self.attn(moved, num_cores, *options)[:, num_cores:])
        x = torch.cat((cores, patches), 1)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    # A block in three steps, for whoever does not hold all patches at once. Both halves of the attention use
    # the block's input, so that pieces of the patches need nothing from each other: only the cores' partial
    # reads are joined.

    def project_cores(self, cores: Tensor, core_rope: Tables, core_scale: Tensor | None = None) -> Tensor:
        """q, k and v of the cores (B, C, E): (B, C, 3, H, D), rotated. Every piece of the patches needs them."""
        return self.attn.project(self.norm1(cores), cores.shape[1], core_rope, core_scale)

    def advance_patches(
        self,
        patches: Tensor,
        core_qkv: Tensor,
        patch_rope: Tables,
        active_cores: Tensor | None = None,
        patch_lengths: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Read]:
        """Some of the patches (B, n, E) through the block, and what the cores read from them.

        Args:
            patches: any of them, in the block's input.
            core_qkv: from `project_cores`.
            patch_rope, active_cores, patch_lengths: as in `CoreAttention.forward`, of these n patches.
            out: (B, n, E), takes the advanced patches, in inference only; may be `patches` itself. None makes
                a new tensor.
        """
        keep_freed_memory(patches)
        if not self._takes_pieces(patches):
            advanced, read = self._advance_piece(patches, core_qkv, patch_rope, active_cores, patch_lengths)
            return (advanced if out is None else out.copy_(advanced)), read
        out = torch.empty_like(patches) if out is None else out
        size = max(_PIECE // len(patches), 64)
        read = None
        for start in range(0, patches.shape[1], size):
            piece = slice(start, start + size)
            out[:, piece], part = self._advance_piece(
                patches[:, piece],
                core_qkv,
                tuple(table[..., piece, :] for table in patch_rope),
                active_cores,
                None if patch_lengths is None else patch_lengths - start,
            )
            read = join(read, part)
        return out, read

    def advance_cores(self, cores: Tensor, core_qkv: Tensor, read: Read, active_cores: Tensor | None = None) -> Tensor:
        """The cores (B, C, E) through the block, given what they read from all patches."""
        return self._finish(cores, self.attn.output(self.attn.attend_cores(core_qkv, read, active_cores)))

    def _branch(self, attended: Tensor) -> Tensor:
        return self.drop_path1(self.ls1(attended))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        scaled = type(self.ls1) is LayerScale
        parts = (self.ls1, LayerScale if scaled else nn.Identity), (self.norm2, nn.LayerNorm), (self.mlp, SwiGLU)
        if self._fuses(x, *parts) and unobserved((self.mlp.fc1, Linear)):
            x, hidden = residual_norm_linear(
                x,
                self.drop_path1(attended),
                self.norm2.weight,
                self.norm2.bias,
                self.mlp.fc1.weight,
                self.mlp.fc1.bias,
                scale=self.ls1.gamma if scaled else None,
                eps=self.norm2.eps,
                impl=self.mlp.impl,
            )
            return x + self.drop_path2(self.ls2(self.mlp.contract(hidden)))
        x = x + self._branch(attended)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _fuses(self, x: Tensor, *modules: tuple[nn.Module, type[nn.Module]]) -> bool:
        """Whether one operator takes the place of these modules."""
        return self.fused_norm and (torch.is_grad_enabled() or x.is_cuda) and unobserved(*modules)

    def _takes_pieces(self, patches: Tensor) -> bool:
        """Whether pieces are faster and nobody could tell: no gradient, no graph, no hook inside the block."""
        if torch.is_grad_enabled() or patches.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        if self.training or self.update != "parallel" or self.attn.impl not in ("auto", "sdpa"):
            return False
        if patches.shape[1] < 2 * _PIECE:
            return False
        return not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules() if m is not self)

    def _advance_piece(
        self,
        patches: Tensor,
        core_qkv: Tensor,
        patch_rope: Tables,
        active_cores: Tensor | None,
        patch_lengths: Tensor | None,
    ) -> tuple[Tensor, Read]:
        qkv = self.attn.project(self.norm1(patches), 0)
        out, read = self.attn.attend_patches(core_qkv, qkv, patch_rope, active_cores, patch_lengths)
        attended = self.attn.output(out)
        del qkv, out  # 4 n E numbers, before the widest activation of the piece
        return self._finish(patches, attended), read

    def _forward_in_steps(
        self,
        x: Tensor,
        num_cores: int,
        core_rope: Tables,
        patch_rope: Tables,
        core_scale: Tensor | None,
        active_cores: Tensor | None,
        patch_lengths: Tensor | None,
    ) -> Tensor:
        out = torch.empty_like(x)
        (cores, patches), (new_cores, new_patches) = (tokens.tensor_split((num_cores,), 1) for tokens in (x, out))
        core_qkv = self.project_cores(cores, core_rope, core_scale)
        _, read = self.advance_patches(patches, core_qkv, patch_rope, active_cores, patch_lengths, out=new_patches)
        new_cores.copy_(self.advance_cores(cores, core_qkv, read, active_cores))
        return out


def join(read: Read | None, part: Read) -> Read:
    """What the cores have read so far, and one part more, in the precision of the log-sum-exp.

    At least fp32, so that the roundings of many parts do not add up to one of half precision.
    """
    out, lse = part
    part = out.to(lse.dtype), lse
    return part if read is None else merge_attention_states(*zip(read, part, strict=True))
