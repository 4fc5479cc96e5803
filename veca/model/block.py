"""One VECA block: it applies core-periphery attention, then a SwiGLU, both pre-norm and residual.

Shapes: B images, C cores, T = C + P tokens, E embedding dim, h hidden width, D head dim.
"""

from functools import partial

import torch
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from veca_kernels import merge_attention_states, residual_norm_linear

from .attention import CoreAttention, Read, Tables, layer_impl
from .heap import keep_freed_memory
from .linear import SwiGLU, unobserved

__all__ = ["Block", "join"]

_PIECE = 1024  # tokens in a piece on a CPU; 256 are 7 % slower, 2,048 are 2 % faster (two Zen 1 cores, 2026-11-28)


class Block(nn.Module):
    """Cores and patches share one residual stream and all modules.

        x = x + attention(norm1(x))
        x = x + mlp(norm2(x))

    Args:
        dim: E.
        num_heads: H.
        hidden_dim: h of the SwiGLU: E -> 2h, SiLU of the first half times the second, h -> E.
        norm_eps: epsilon of the LayerNorms.
        qk_norm: apply a LayerNorm to q and k of each head.
        init_values: initial value of LayerScale; None has no LayerScale.
        drop_path: probability that an image skips a branch in training.
        update: "parallel" or "sequential". With "parallel", patches receive from the cores of the block's input.
            With "sequential", an ablation, they receive from cores that have already read. It runs the attention
            twice, so it costs twice as much.
        core_self, patch_self, rope_layout, impl: arguments of `CoreAttention`.
        fused_norm: compute residual, LayerScale, LayerNorm and the projection after it as one operator, with
            gradients and on CUDA. The operator normalises again in the backward pass. False keeps the normalised
            tokens for it.
        recompute: compute the gate of the SwiGLU again in the backward pass; see `SwiGLU`. Modules with hooks are
            always called one by one, whatever `fused_norm` and `recompute` are.
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
        """Tokens x (B, T, E), the cores first, to tokens (B, T, E).

        Without gradient, a CPU takes large inputs in pieces of the patches. The sums are the same, in another
        order. The other arguments are those of `CoreAttention.forward`.
        """
        keep_freed_memory(x)
        options = (core_rope, patch_rope, core_scale, active_cores, patch_lengths)
        if self._takes_pieces(x[:, num_cores:]):
            return self._forward_in_steps(x, num_cores, *options)
        if self.update == "parallel":
            parts = (self.norm1, nn.LayerNorm), (self.attn, CoreAttention)
            if self._fuses(x, *parts) and unobserved((self.attn.qkv, nn.Linear)):
                return self._finish(x, self.attn(x, num_cores, *options, norm=self.norm1))
            return self._finish(x, self.attn(self.norm1(x), num_cores, *options))
        cores, patches = x[:, :num_cores], x[:, num_cores:]  # (B, C, E), (B, P, E)
        cores = cores + self._branch(self.attn(self.norm1(x), num_cores, *options)[:, :num_cores])
        moved = self.norm1(torch.cat((cores, patches), 1))  # (B, T, E)
        patches = patches + self._branch(self.attn(moved, num_cores, *options)[:, num_cores:])
        x = torch.cat((cores, patches), 1)  # (B, T, E)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    # The next three methods run a block without all patches in memory at once. Both halves of the attention use
    # the block's input, so pieces of the patches do not depend on each other. Only the cores' partial reads are
    # joined.

    def project_cores(self, cores: Tensor, core_rope: Tables, core_scale: Tensor | None = None) -> Tensor:
        """q, k and v (B, C, 3, H, D) of the cores (B, C, E), rotated. Every piece of the patches needs them."""
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
        """Run some of the patches through the block.

        Args:
            patches: n patches of the block's input, (B, n, E).
            core_qkv: q, k and v of the cores, from `project_cores`.
            patch_rope, active_cores, patch_lengths: as in `CoreAttention.forward`, for these n patches.
            out: tensor (B, n, E) that takes the result, in inference only. It may be `patches` itself. None makes
                a new tensor.

        Returns:
            The patches after the block (B, n, E), and what the cores read from these patches.
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
            cos, sin = (table[..., piece, :] for table in patch_rope)
            out[:, piece], part = self._advance_piece(
                patches[:, piece],
                core_qkv,
                (cos, sin),
                active_cores,
                None if patch_lengths is None else patch_lengths - start,
            )
            read = join(read, part)
        assert read is not None  # there are at least two pieces
        return out, read

    def advance_cores(self, cores: Tensor, core_qkv: Tensor, read: Read, active_cores: Tensor | None = None) -> Tensor:
        """Run the cores (B, C, E) through the block, given what they read from all patches."""
        return self._finish(cores, self.attn.output(self.attn.attend_cores(core_qkv, read, active_cores)))

    def _branch(self, attended: Tensor) -> Tensor:
        return self.drop_path1(self.ls1(attended))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        scaled = type(self.ls1) is LayerScale
        parts = (self.ls1, LayerScale if scaled else nn.Identity), (self.norm2, nn.LayerNorm), (self.mlp, SwiGLU)
        if self._fuses(x, *parts) and unobserved((self.mlp.fc1, nn.Linear)):
            x, hidden = residual_norm_linear(
                x,
                self.drop_path1(attended),
                self.norm2.weight,
                self.norm2.bias,
                self.mlp.fc1.weight,
                self.mlp.fc1.bias,
                scale=self.ls1.gamma if isinstance(self.ls1, LayerScale) else None,
                eps=self.norm2.eps,
                impl=self.mlp.impl,
            )
            return x + self.drop_path2(self.ls2(self.mlp.contract(hidden)))
        x = x + self._branch(attended)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _fuses(self, x: Tensor, *modules: tuple[nn.Module, type[nn.Module]]) -> bool:
        """Whether one operator replaces these modules."""
        return self.fused_norm and (torch.is_grad_enabled() or x.is_cuda) and unobserved(*modules)

    def _takes_pieces(self, patches: Tensor) -> bool:
        """Whether pieces are faster and change no result: no gradient, no graph, no hook inside the block."""
        if torch.is_grad_enabled() or patches.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        if self.training or self.update != "parallel" or self.attn.impl not in ("auto", "sdpa"):
            return False
        if patches.shape[1] < 2 * _PIECE:
            return False
        return unobserved(*((m, type(m)) for m in self.modules() if m is not self))

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
        del qkv, out  # frees 4 n E numbers before the widest activation of the piece
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
    """Merge what the cores have read so far with one more part, in the precision of the log-sum-exp.

    That is at least fp32. In half precision the roundings of many parts would add up.
    """
    out, lse = part
    part = out.to(lse.dtype), lse
    return part if read is None else merge_attention_states(*zip(read, part, strict=True))
