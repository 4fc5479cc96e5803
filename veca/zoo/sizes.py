"""The sizes of the models, one row for each. The head dim is always 64.

`small`, `small_plus`, `base` and `large` with patch 16 are the paper's (arXiv 2605.12491), shaped after DINOv3's.
`nano` and `tiny` are ours, for tests and for CPUs. Patch 8 is ours too. It has four times the patches and four times
the cost, for maps of twice the resolution. The counts are parameters with the bank of 64 cores and without classifier.

`large` has a hidden width of 2730, which is not a multiple of 8. This slows its SwiGLU on tensor cores.
`multiple_of=8` avoids it for 0.15 % more parameters.
"""

from typing import Any

__all__ = ["VARIANTS"]

VARIANTS: dict[str, dict[str, Any]] = {
    "veca_nano_patch16": dict(embed_dim=192, depth=6, num_heads=3, mlp_ratio=2.66667),
    "veca_nano_patch8": dict(embed_dim=192, depth=6, num_heads=3, mlp_ratio=2.66667, patch_size=8),
    "veca_tiny_patch16": dict(embed_dim=192, depth=12, num_heads=3, mlp_ratio=2.66667),
    "veca_small_patch16": dict(embed_dim=384, depth=12, num_heads=6, mlp_ratio=2.66667),  # 21.63 M
    "veca_small_patch8": dict(embed_dim=384, depth=12, num_heads=6, mlp_ratio=2.66667, patch_size=8),
    "veca_small_plus_patch16": dict(embed_dim=384, depth=12, num_heads=6, mlp_ratio=4.0),  # 28.72 M
    "veca_base_patch16": dict(embed_dim=768, depth=12, num_heads=12, mlp_ratio=2.66667),  # 85.73 M
    "veca_large_patch16": dict(embed_dim=1024, depth=24, num_heads=16, mlp_ratio=2.66667),  # 303.20 M
}
