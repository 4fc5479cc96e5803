"""Core attention in timm's Eva models, such as DINOv3. They rotate q and k of the patches, not of the cores."""

from typing import Any

import torch
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from ..model.attention import CoreAttention, Tables

__all__ = ["RotaryCoreAttention", "fused_qkv"]


class RotaryCoreAttention(CoreAttention):
    """A `CoreAttention` that is called as timm's EvaAttention and AttentionRope are.

    Args:
        dim, num_heads: E and H.
        num_cores: C, the number of prefix tokens of the model.
        options: arguments of `CoreAttention`. `rope_layout` is "half" where timm's `rotate_half` is True.
    """

    def __init__(self, dim: int, num_heads: int, *, num_cores: int, **options: Any):
        super().__init__(dim, num_heads, **options)
        self.num_cores = num_cores

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Tokens x (B, T, E), the cores first, to tokens (B, T, E).

        Args:
            x: tokens.
            rope: timm's table of the patches, (P, 2 D) or (B, 1, P, 2 D): sines, then cosines, each angle twice.
            attn_mask, is_causal: must be None and False.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("expected attn_mask=None and is_causal=False, got a mask")
        return super().forward(x, self.num_cores, patch_rope=None if rope is None else self._tables(rope))

    def _tables(self, rope: Tensor) -> Tables:
        rope = rope.squeeze(1) if rope.ndim == 4 else rope  # (B, P, 2 D) where patches are dropped
        sin, cos = rope.float().chunk(2, -1)  # (..., P, D)
        once = slice(self.head_dim // 2) if self.rope_layout == "half" else slice(None, None, 2)
        return cos[..., once], sin[..., once]

    def extra_repr(self) -> str:
        return f"num_cores={self.num_cores}, {super().extra_repr()}"


def fused_qkv(attention: Any) -> Any:
    """The layer of q, k and v of a timm attention, or one with the weights of its three.

    Eva models have no bias of k. The part of the fused bias for it is zero.
    """
    qkv = attention.qkv
    if qkv is not None and not isinstance(attention, EvaAttention):
        return qkv
    if qkv is not None:
        weight, biases = qkv.weight, [attention.q_bias, attention.k_bias, attention.v_bias]
    else:
        layers: Any = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, biases = _joined([layer.weight for layer in layers]), [layer.bias for layer in layers]
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    fused.weight = weight
    if biases[0] is not None:
        fused.bias = _joined([torch.zeros_like(biases[0]) if bias is None else bias for bias in biases])
    return fused


def _joined(parts: list[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), parts[0].requires_grad)
