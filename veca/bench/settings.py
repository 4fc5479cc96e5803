"""What a benchmark is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .models import LINEAR_BACKBONES

__all__ = ["PATCH", "BenchSettings"]

PATCH = 16  # pixels a side of what is counted as a patch, in every model


@dataclass(frozen=True)
class BenchSettings:
    """Time and memory of vision backbones, dense features out, from small images to large ones.

    Args:
        models: names from `veca models` and from timm; each is compared with the VECA named last before it.
        budgets: numbers of active cores; every VECA runs with each.
        sizes: image sides, pixels, multiples of 16.
        compiled_sizes: sizes of the modes that compile; none given takes `sizes`.
        passes: "inference", or "train": forward, backward and AdamW.
        modes: "eager"; "blocks", every block under torch.compile; "compiled", the whole model.
        batch: images; None is 1 on a CPU and elsewhere as many as hold about 32768 patches, at most 64.
        device: where to run; "auto" is CUDA where there is one.
        dtype: of weights and images in inference; training has float32 weights under autocast. "auto" is
            bfloat16 on CUDA, float32 on a CPU.
        runs: timed runs of a case, fewer where they take longer than `case_seconds`, at least three.
        case_seconds: see `runs`.
        alone: on a CPU, time every eager case once more in a fresh process of its own. The tables then show ratios
            as a range: both models alone, and both after others have run.
        longest_run: seconds; a case whose run is predicted to take longer is skipped.
        time_limit: after this many, what is left is skipped.
        out: folder of the files.
        name: stem of the files.
        figure: draw the curves, which needs matplotlib.
    """

    models: tuple[str, ...] = ("veca_small_patch16", "vit_small_patch16_224", *LINEAR_BACKBONES)
    budgets: tuple[int, ...] = (64,)
    sizes: tuple[int, ...] = (256, 384, 512, 768, 1024)
    compiled_sizes: tuple[int, ...] = ()
    passes: tuple[Literal["inference", "train"], ...] = ("inference",)
    modes: tuple[Literal["eager", "blocks", "compiled"], ...] = ("eager",)
    batch: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    runs: int = 10
    case_seconds: float = 4.0
    alone: bool = True
    longest_run: float = 30.0
    time_limit: float = 600.0
    out: Path = Path("out/bench")
    name: str = "bench"
    figure: bool = True
