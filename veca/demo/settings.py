"""Settings of the demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["PATCH", "DemoSettings"]

PATCH = 16


@dataclass(frozen=True)
class DemoSettings:
    """Compare VECA with a ViT of the same width and depth on photographs, and write a report.

    Args:
        out: Folder for report.html, report.json and the pictures.
        sizes: Image sides in pixels, multiples of 16, at least 32.
        budgets: Numbers of active cores.
        photographs: Names from `veca.data.list_photographs`. Default: eight of them.
        time_limit: Approximate time limit of the run. The report says what was left out or made smaller.
        model: One of `veca models`. The ViT is timm's of the same width, cut to the same depth.
        device: Device to run on. "auto" takes CUDA if there is a device.
        dtype: Precision of weights and images of both models.
    """

    out: Path = Path("out/demo")
    sizes: tuple[int, ...] = (256, 512, 1024, 1536)
    budgets: tuple[int, ...] = (8, 16, 32, 64)
    photographs: tuple[str, ...] = ()
    time_limit: float = 240.0
    model: str = "veca_small_patch16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not self.sizes or any(size < 2 * PATCH or size % PATCH for size in self.sizes):
            raise ValueError(f"expected sizes in multiples of {PATCH} pixels, at least {2 * PATCH}, got {self.sizes}")
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"expected budgets of at least 1 core, got {self.budgets}")
        if self.time_limit <= 0:
            raise ValueError(f"expected time_limit above 0, got {self.time_limit}")
        # order and duplicates do not matter
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
