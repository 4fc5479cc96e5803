"""Core-periphery attention (arXiv 2605.12491) as a layer: one fused projection, the op, one output projection.

VECA's blocks use `CoreAttention`. `core_attention(num_cores)` makes the class that timm's models take as
`attn_layer`. Parameters are named as in timm's Attention, so timm's checkpoints load into both.

Shapes: B images, C cores, P patches, T = C + P tokens, H heads, D head dim, E = H D embedding dim.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from veca_kernels import (
    core_periphery_attention_qkvpacked,
    core_to_patch_attention,
    merge_attention_states,
    patch_to_core_attention,
    prefix_mask,
    residual_norm_linear,
    rotate_tokens,
)

from .linear import apply_linear, unobserved
from .rope import interleave_halves, rotate

__all__ = ["CoreAttention", "Read", "Tables", "core_attention", "layer_impl"]

Tables = tuple[Tensor, Tensor]
Read = tuple[Tensor, Tensor]  # what the cores gathered from some keys (B, H, C, D), its log-sum-exp (B, H, C)
_MAP_CHUNK = 4096  # patches whose values are projected at once for a map; this bounds memory to (B, 4096, H, E)


class CoreAttention(nn.Module):
    """Cores attend to every token, patches to the cores only; cores and patches share all weights.

        out = proj(attention(qkv(x)))

    Args:
        dim: E.
        num_heads: H, a divisor of E.
        qkv_bias, proj_bias: whether the two projections have biases.
        qk_norm: normalise q and k over each head with `norm_layer`. This copies qkv once.
        scale_norm: normalise the attention's output with `norm_layer`.
        attn_drop: must be 0; the op has no dropout.
        proj_drop: dropout rate after the output projection.
        norm_layer: builds a norm; called with a width, `device` and `dtype`.
        core_self: cores also attend to cores.
        patch_self: a patch also attends to itself.
        rope_layout: order of the rows of the q and k weights and of the weights of their norms, "interleaved" or
            "half" (see `veca.model.rope`).
        impl: implementation in `veca_kernels`: "auto", "triton", "sdpa" or "reference".
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: H does not divide E, `attn_drop` is not 0, or a norm is asked for without `norm_layer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[..., nn.Module] | None = None,
        core_self: bool = True,
        patch_self: bool = False,
        rope_layout: str = "interleaved",
        impl: str = "auto",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected dim to be a multiple of num_heads, got {dim} and {num_heads}")
        if attn_drop:
            raise ValueError(f"expected attn_drop=0, the attention has no dropout, got {attn_drop}")
        if norm_layer is None:
            if qk_norm or scale_norm:
                raise ValueError("expected a norm_layer with qk_norm or scale_norm, got None")
            norm_layer = nn.Identity
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.core_self = core_self
        self.patch_self = patch_self
        self.rope_layout = rope_layout
        self.impl = impl

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.q_norm = norm_layer(self.head_dim, **dd) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(self.head_dim, **dd) if qk_norm else nn.Identity()
        self.norm = norm_layer(dim, **dd) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        num_cores: int,
        core_rope: Tables | None = None,
        patch_rope: Tables | None = None,
        core_scale: Tensor | None = None,
        active_cores: Tensor | None = None,
        patch_lengths: Tensor | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """Attend from and to all tokens.

        Args:
            x: tokens (B, T, E); the first `num_cores` of them are the cores.
            num_cores: C.
            core_rope: (cos, sin) of the cores, each (C, D/2) or (B, C, D/2); gradients flow into them.
            patch_rope: (cos, sin) of the patches, each (P, D/2) or (B, P, D/2), constants. They are fp32, or fp16
                where `x` has 16 bits.
            core_scale: factor of the scores of the core read, a scalar or (B, 1, 1, 1).
            active_cores: number of active cores of each image, int32 (B,). No token attends to later cores.
            patch_lengths: number of valid patches of each image, int32 (B,). No token attends to later patches.
            norm: LayerNorm to apply to `x` first; see `project`.

        Returns:
            Tokens (B, T, E).
        """
        out = core_periphery_attention_qkvpacked(
            self.project(x, num_cores, core_rope, core_scale, norm),
            num_cores,
            active_cores=active_cores,
            patch_lengths=patch_lengths,
            patch_rope=patch_rope,
            core_self=self.core_self,
            patch_self=self.patch_self,
            impl=self.impl,
        )
        return self.output(out)

    def output(self, out: Tensor) -> Tensor:
        """Project the attention's output (B, N, H, D) to tokens (B, N, E)."""
        return self.proj_drop(apply_linear(self.proj, self.norm(out.flatten(2))))

    def attend_patches(
        self,
        core_qkv: Tensor,
        patch_qkv: Tensor,
        patch_rope: Tables | None = None,
        active_cores: Tensor | None = None,
        patch_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Read]:
        """Both halves of the attention for a piece of the patches. The read is a partial one.

        Neither half needs the other patches.

        Args:
            core_qkv: q, k and v of the cores (B, C, 3, H, D), from `project`.
            patch_qkv: q, k and v of n patches (B, n, 3, H, D), from `project`.
            patch_rope, active_cores, patch_lengths: as in `forward`, for these n patches.

        Returns:
            What the patches receive (B, n, H, D), and what the cores read from them.
        """
        core_q, core_k, core_v = (x.transpose(1, 2) for x in core_qkv.unbind(2))  # (B, H, C, D)
        qk, v = patch_qkv.split((2, 1), dim=2)  # (B, n, 2, H, D), (B, n, 1, H, D)
        if patch_rope is not None:
            qk = rotate_tokens(qk, *patch_rope)
        q, k, v = (x.transpose(1, 2) for x in (*qk.unbind(2), v.squeeze(2)))  # (B, H, n, D)
        read = patch_to_core_attention(core_q, k, v, key_lengths=patch_lengths, return_lse=True, impl=self.impl)
        if not self.patch_self:
            out = core_to_patch_attention(q, core_k, core_v, active_cores=active_cores, impl=self.impl)
            return out.transpose(1, 2), read  # (B, n, H, D)
        num_cores = core_qkv.shape[1]
        both = core_periphery_attention_qkvpacked(
            torch.cat((core_qkv, patch_qkv), 1),  # (B, C + n, 3, H, D)
            num_cores,
            active_cores=active_cores,
            patch_rope=patch_rope,
            patch_self=True,
            impl=self.impl,
        )
        return both[:, num_cores:], read

    def attend_cores(self, core_qkv: Tensor, read: Read, active_cores: Tensor | None = None) -> Tensor:
        """Join what the cores read from all patches with what they read from each other: (B, C, H, D)."""
        q, k, v = (x.transpose(1, 2) for x in core_qkv.unbind(2))  # (B, H, C, D)
        if self.core_self:
            clique = patch_to_core_attention(q, k, v, key_lengths=active_cores, return_lse=True, impl=self.impl)
            read = merge_attention_states(*zip(read, clique, strict=True))
        out = read[0].transpose(1, 2).to(v.dtype)  # (B, C, H, D)
        if active_cores is None:
            return out
        return out.masked_fill(~prefix_mask(active_cores, q.shape[2], q.device)[..., None, None], 0.0)

    def project(
        self,
        x: Tensor,
        num_cores: int,
        core_rope: Tables | None = None,
        core_scale: Tensor | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """q, k and v of all tokens, (B, T, 3, H, D), the cores' q and k rotated.

        With `norm`, x is normalised by it first. The backward pass then normalises again instead of keeping the
        normalised tokens.
        """
        if norm is None:
            qkv = apply_linear(self.qkv, x)
            own = unobserved((self.qkv, nn.Linear))  # whether nobody else can hold the buffer of qkv
        else:
            parameters = (norm.weight, norm.bias, self.qkv.weight, self.qkv.bias)
            _, qkv = residual_norm_linear(x, None, *parameters, eps=norm.eps, impl=layer_impl(self.impl))
            own = True
        shape = (3, self.num_heads, self.head_dim)
        if not isinstance(self.q_norm, nn.Identity):
            q, k, v = qkv.unflatten(-1, shape).unbind(2)  # each (B, T, H, D)
            qkv = torch.stack((self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v), 2).flatten(2)  # (B, T, 3E)
            own = True
        if self.rope_layout == "half":
            qkv, own = interleave_halves(qkv.unflatten(-1, shape)).flatten(2), True
        if core_rope is None and core_scale is None:
            return qkv.unflatten(-1, shape)  # (B, T, 3, H, D)
        # The rotation writes into the projection's buffer before any view of it exists. In inference it copies no
        # patch row; in training autograd copies the gradient. Where a hook may hold the buffer, all of it is copied.
        # Projection and rotation, forward and backward, B=4, P=4096, C=64, E=384, fp32, one core of an AMD EPYC,
        # torch 2.15, 2026-11-22:
        #     without rotation                                          0.51 s            104 MB
        #     in place, as here                                         0.56 s            166 MB
        #     concatenation, two projections, or write into the view    0.65 to 0.67 s    241 MB
        width = 2 * self.num_heads * self.head_dim
        core_qk = qkv[:, :num_cores, :width].clone().unflatten(-1, (2, *shape[1:]))  # (B, C, 2, H, D)
        if core_rope is not None:
            core_qk = rotate(core_qk, *core_rope)
        if core_scale is not None:
            core_qk[:, :, 0] *= core_scale
        qkv = qkv if own else qkv.clone()
        qkv[:, :num_cores, :width] = core_qk.flatten(2)
        return qkv.unflatten(-1, shape)  # (B, T, 3, H, D)

    def maps(
        self,
        x: Tensor,
        num_cores: int,
        core_rope: Tables,
        patch_rope: Tables,
        core_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention weights, and how strongly each patch moves each core. This is slow; `forward` never builds them.

            core_map_ij = ||sum_h A_ij^h v_j^h W_o^h||, divided by its sum over the patches j

        Args:
            x, num_cores, core_rope, patch_rope, core_scale: as in `forward`.

        Returns:
            core_read (B, H, C, T), patch_read (B, H, P, C) and core_map (B, C, P). Rows of the reads sum to 1. With
            `patch_self` a row of patch_read sums to 1 minus the weight of the patch's own key.
        """
        qkv = self.project(x, num_cores, core_rope, core_scale)
        q, k, v = (tokens.transpose(1, 2) for tokens in qkv.unbind(2))  # (B, H, T, D)
        core_q, core_k = q[:, :, :num_cores], k[:, :, :num_cores]
        patch_q, patch_k = (
            rotate(tokens[:, :, num_cores:].transpose(1, 2), *patch_rope).transpose(1, 2) for tokens in (q, k)
        )
        core_scores = self._scores(core_q, torch.cat((core_k, patch_k), 2))  # (B, H, C, T)
        if not self.core_self:
            core_scores[..., :num_cores] = -torch.inf
        core_read = core_scores.softmax(-1)
        patch_scores = self._scores(patch_q, core_k)  # (B, H, P, C)
        if self.patch_self:
            own = self._scores(patch_q[..., None, :], patch_k[..., None, :])[..., 0]  # (B, H, P, 1)
            patch_scores = torch.cat((patch_scores, own), -1)  # (B, H, P, C + 1)
        patch_read = patch_scores.softmax(-1)[..., :num_cores]
        return core_read, patch_read, self._value_weighted(core_read[..., num_cores:], v[:, :, num_cores:])

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores (..., queries, keys) in at least fp32, also under autocast."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            return self.head_dim**-0.5 * q.to(dtype) @ k.to(dtype).transpose(-2, -1)

    def _output_weight(self, like: Tensor) -> Tensor:
        """Weight (E, E) of the output projection. A module that replaces the projection is asked for its products."""
        if type(self.proj) is nn.Linear:
            return self.proj.weight
        unit = torch.eye(self.num_heads * self.head_dim, dtype=like.dtype, device=like.device)
        return (self.proj(unit) - self.proj(torch.zeros_like(unit[:1]))).T

    def _value_weighted(self, weights: Tensor, v: Tensor) -> Tensor:
        """||sum_h weights^h v^h W_o^h||, normalised over patches.

        The heads of a patch interact through the H x H Gram matrix of their projected values. No (B, C, P, E)
        tensor is needed.

        Args:
            weights: attention weights (B, H, C, P).
            v: values (B, H, P, D).

        Returns:
            (B, C, P).
        """
        out_weight = self._output_weight(v).to(weights.dtype).unflatten(1, (self.num_heads, -1))  # (E, H, D)
        norms = []
        for some_weights, some_v in zip(weights.split(_MAP_CHUNK, -1), v.split(_MAP_CHUNK, 2), strict=True):
            with torch.autocast(v.device.type, enabled=False):  # the sum over heads cancels
                values = torch.einsum("bhpd,ehd->bphe", some_v.to(weights.dtype), out_weight)  # (B, P, H, E)
                gram = values @ values.transpose(-2, -1)  # (B, P, H, H)
                squared = torch.einsum("bhcp,bphg,bgcp->bcp", some_weights, gram, some_weights)  # (B, C, P)
            norms.append(squared.clamp_min(0).sqrt())
        return F.normalize(torch.cat(norms, -1), p=1, dim=-1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, impl={self.impl!r}"


def core_attention(
    num_cores: int, *, core_self: bool = True, patch_self: bool = False, impl: str = "auto"
) -> type[CoreAttention]:
    """An attention class for timm's models, linear in the number of patches. The cores are the first tokens.

        timm.create_model("vit_small_patch16_224", class_token=False, global_pool="avg", reg_tokens=64,
                          no_embed_class=True, attn_layer=veca.core_attention(64))

    Args:
        num_cores: C, the number of prefix tokens of the model: register tokens, and a class token if it has one.
        core_self: cores also attend to cores.
        patch_self: a patch also attends to itself.
        impl: implementation in `veca_kernels`: "auto", "triton", "sdpa" or "reference".

    Returns:
        A class with the signature of timm's Attention and the same parameter names, so that checkpoints load. It
        does not rotate q and k; the model adds its positions itself. The same arguments give the same class.

    Raises:
        TypeError: `num_cores` is not an int.
        ValueError: `num_cores` is less than 1.
    """
    if isinstance(num_cores, bool) or not isinstance(num_cores, int):
        raise TypeError(f"expected num_cores to be an int, got {type(num_cores).__name__}")
    if num_cores < 1:
        raise ValueError(f"expected num_cores of at least 1, got {num_cores}")

    return _timm_layer(num_cores, core_self, patch_self, impl)


@lru_cache
def _timm_layer(num_cores: int, core_self: bool, patch_self: bool, impl: str) -> type[CoreAttention]:
    class TimmCoreAttention(CoreAttention):
        """timm's Attention with `num_cores` cores in front of the patches."""

        def __init__(
            self,
            dim: int,
            num_heads: int = 8,
            qkv_bias: bool = False,
            qk_norm: bool = False,
            scale_norm: bool = False,
            proj_bias: bool = True,
            attn_drop: float = 0.0,
            proj_drop: float = 0.0,
            norm_layer: Callable[..., nn.Module] | None = None,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
        ):
            super().__init__(
                dim,
                num_heads,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                scale_norm=scale_norm,
                proj_bias=proj_bias,
                attn_drop=attn_drop,
                proj_drop=proj_drop,
                norm_layer=norm_layer,
                core_self=core_self,
                patch_self=patch_self,
                impl=impl,
                device=device,
                dtype=dtype,
            )
            self.num_cores = num_cores

        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            """Tokens x (B, T, E), the cores first, to tokens (B, T, E)."""
            if attn_mask is not None:
                raise ValueError(f"expected attn_mask=None, got a mask of shape {tuple(attn_mask.shape)}")
            if is_causal:
                raise ValueError("expected is_causal=False, got True")
            if x.shape[1] < num_cores:
                raise ValueError(f"num_cores={num_cores} exceeds the {x.shape[1]} tokens")
            return super().forward(x, num_cores)

        def extra_repr(self) -> str:
            return f"num_cores={num_cores}, {super().extra_repr()}"

        def __reduce__(self):
            # a class made inside a function has no importable name, which torch.save of a whole model needs
            return _blank_timm_layer, (num_cores, core_self, patch_self, impl), self.__dict__

    return TimmCoreAttention


def _blank_timm_layer(*arguments: Any) -> CoreAttention:
    cls = _timm_layer(*arguments)
    return cls.__new__(cls)


def layer_impl(impl: str) -> str:
    """The `impl` of the other fused parts of a block: "auto", or "torch" where the attention must not use Triton."""
    return "auto" if impl in ("auto", "triton") else "torch"
