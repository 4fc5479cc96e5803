"""What a run of the demo is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["PATCH", "DemoSettings"]

PATCH = 16


@dataclass(frozen=True)
class DemoSettings:
    """Run VECA beside a ViT of the same width and depth on photographs, and write a report.

    Args:
        out: folder for report.html, report.json and the pictures.
        sizes: image sides, pixels, multiples of 16 from 32 on.
        budgets: numbers of active cores.
        photographs: names from `veca.data.list_photographs`; none given takes eight of them.
        budget_seconds: about how long everything may take; what does not fit is left out or made smaller, and
            the report says so.
        model: one of `veca models`; the ViT is timm's of the same width, cut to the same depth.
        device: where to run; "auto" is CUDA where there is one.
        dtype: of weights and images, on both sides.
    """

    out: Path = Path("out/demo")
    sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    budgets: tuple[int, ...] = (8, 16, 32, 64)
    photographs: tuple[str, ...] = ()
    budget_seconds: float = 240.0
    model: str = "veca_small_patch16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not self.sizes or any(size < 2 * PATCH or size % PATCH for size in self.sizes):
            raise ValueError(f"expected sizes in multiples of {PATCH} pixels from {2 * PATCH} on, got {self.sizes}")
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"expected budgets of at least 1 core, got {self.budgets}")
        if self.budget_seconds <= 0:
            raise ValueError(f"expected budget_seconds above 0, got {self.budget_seconds}")
        # order and repetition mean nothing
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
