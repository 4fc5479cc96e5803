"""Fused core-periphery attention: C cores attend to everything, P patches attend to the cores only.

Needs torch alone. Triton is imported by the first call that launches a kernel.
"""

from .api import (
    core_periphery_attention,
    core_periphery_attention_qkvpacked,
    core_to_patch_attention,
    merge_attention_states,
    patch_to_core_attention,
)
from .layer import residual_norm_linear, swiglu

__all__ = [
    "core_periphery_attention",
    "core_periphery_attention_qkvpacked",
    "core_to_patch_attention",
    "merge_attention_states",
    "patch_to_core_attention",
    "residual_norm_linear",
    "swiglu",
]
