"""Settings of a benchmark run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .models import LINEAR_BACKBONES

__all__ = ["PATCH", "BenchSettings"]

PATCH = 16  # side in pixels of what counts as a patch, in every model


@dataclass(frozen=True)
class BenchSettings:
    """Measure time and memory of vision backbones with dense features, from small images to large ones.

    Args:
        models: Names from `veca models` and from timm. Each is compared with the last VECA before it.
        budgets: Numbers of active cores. Every VECA runs with each of them.
        sizes: Sides of the images in pixels, multiples of 16.
        compiled_sizes: Sizes of the modes that compile. Default: `sizes`.
        passes: "inference", or "train" for a step of forward, backward and AdamW.
        modes: "eager", "blocks" (every block under torch.compile) or "compiled" (the whole model).
        batch: Number of images in a batch. Default: 1 on a CPU. On a GPU, as many as have about 32768 patches, at most
            64.
        device: Device to run on. "auto" is CUDA if there is a GPU.
        dtype: Dtype of weights and images in inference. Training has float32 weights under autocast. "auto" is
            bfloat16 on CUDA and float32 on a CPU.
        runs: Timed runs of a case. There are fewer, but at least three, if they take longer than `case_seconds`.
        case_seconds: Seconds for the runs of a case; see `runs`.
        alone: On a CPU, time every eager case again in a fresh process. The tables then show ratios as a range: both
            models alone, and both after others have run.
        longest_run: Longest predicted run in seconds. Cases with longer runs are skipped.
        time_limit: Seconds for the whole benchmark. Cases that have not started by then are skipped.
        out: Folder of the files.
        name: Stem of the file names.
        figure: Draw the curves. This needs matplotlib.
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
