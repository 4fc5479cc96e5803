"""Fused core-periphery attention: C cores attend to all tokens, P patches attend to the cores only.

The package needs torch alone. The first call that launches a kernel imports Triton.
"""

from .api import (
    IMPLEMENTATIONS,
    core_periphery_attention,
    core_periphery_attention_qkvpacked,
    core_to_patch_attention,
    merge_attention_states,
    patch_to_core_attention,
)
from .layer import residual_norm_linear, swiglu
from .masks import prefix_mask, rotate_pairs, rotate_tokens

__all__ = [
    "IMPLEMENTATIONS",
    "core_periphery_attention",
    "core_periphery_attention_qkvpacked",
    "core_to_patch_attention",
    "merge_attention_states",
    "patch_to_core_attention",
    "prefix_mask",
    "residual_norm_linear",
    "rotate_pairs",
    "rotate_tokens",
    "swiglu",
]
