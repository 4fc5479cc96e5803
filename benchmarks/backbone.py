"""The published table of the backbone: `veca bench` with fixed cases.

    python -m benchmarks.backbone                                     # this machine's defaults
    python -m benchmarks.backbone --preset judged                     # the models of the required number, 4096 px
    python -m benchmarks.backbone --models veca_base_patch16 vit_base_patch16_224 --sizes 1024 4096 --passes train

VECA-small and VECA-base are compared with a plain ViT of their size, and with a ViT that rotates as in DINOv3.
VECA-small is also compared with the linear backbones of timm. Sizes go from 224 px, where VECA loses, to 4096 px.
Passes are inference and training steps. `veca.bench` measures and says how. A preset is a selection that fits a part of
the GPU suite.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from veca.bench import LINEAR_BACKBONES, BenchSettings, bench_table, run_bench

from .record import commit

__all__ = ["settings_of"]

SMALL = ("veca_small_patch16", "vit_small_patch16_224", "vit_small_patch16_dinov3", *LINEAR_BACKBONES)
BASE = ("veca_base_patch16", "vit_base_patch16_224", "vit_base_patch16_dinov3")
CPU = tuple(
    name for name in SMALL if not name.endswith("dinov3")
)  # the published table has the other ViT on a GPU only


@dataclass(frozen=True)
class Preset:
    """What the GPU suite measures in one job."""

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    passes: tuple[str, ...] = ("inference", "train")
    modes: tuple[str, ...] = ("eager",)


PRESETS = {
    "judged": Preset(BASE, (4096,), ("inference",), ("eager", "blocks")),
    "models": Preset((*SMALL, *BASE), (512, 1024, 2048, 4096)),
    "compiled-models": Preset((SMALL[0], SMALL[1], *BASE[:2]), (1024,), ("inference", "train"), ("compiled",)),
}


def settings_of(args: argparse.Namespace, cuda: bool) -> BenchSettings:
    """The cases of the table on this kind of device, changed by the command line."""
    default = Preset(CPU, (224, 256, 384, 512, 768), ("inference",))
    if cuda:
        sizes = (224, 256, 384, 512, 1024, 2048, 4096)
        default = Preset((*SMALL, *BASE), sizes, modes=("eager", "blocks", "compiled"))
    preset = PRESETS[args.preset] if args.preset else default
    return BenchSettings(
        models=tuple(args.models or preset.models),
        budgets=(args.cores,),
        sizes=tuple(args.sizes or preset.sizes),
        compiled_sizes=tuple(args.compiled_sizes or ()),
        passes=tuple(args.passes or preset.passes),
        modes=tuple(args.modes or preset.modes),
        device="cuda" if cuda else "cpu",
        runs=args.runs or (100 if cuda else 5),
        case_seconds=args.max_seconds,
        longest_run=args.longest_run or (3.0 if cuda else 20.0),
        time_limit=args.seconds or (3600.0 if cuda else 240.0),
        out=args.out.parent,
        name=args.out.stem,
        figure=args.figure,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    cuda = torch.cuda.is_available() if args.device is None else args.device == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = run_bench(settings_of(args, cuda), commit=commit())
    print(bench_table(rows))
    return 1 if any(row.get("status") == "error" for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--preset", choices=tuple(PRESETS), help="models, sizes, passes and modes of a job of the GPU suite")
    add("--models", nargs="+", help="default: small with its peers, on CUDA also base with its ViTs")
    add("--sizes", type=int, nargs="+", help="pixels a side; default 224 to 4096 on CUDA, to 768 on CPU")
    add("--compiled-sizes", type=int, nargs="+", help="sizes of the compiled modes; default: --sizes")
    add("--passes", nargs="+", choices=("inference", "train"), help="default: both on CUDA, inference on CPU")
    add("--modes", nargs="+", choices=("eager", "blocks", "compiled"), help="default: all on CUDA, eager on CPU")
    add("--cores", type=int, default=64, help="number of active cores of a VECA")
    add("--runs", type=int, help="runs of a case; default 100 on CUDA, 5 on CPU")
    add("--max-seconds", type=float, default=4.0, help="seconds for the runs of a case; slow cases get fewer runs")
    add("--longest-run", type=float, help="skip cases with a longer predicted run; default 3 s on CUDA, 20 s on CPU")
    add("--seconds", type=float, help="seconds for the whole run, then skip the rest; default CUDA 3600, CPU 240")
    add("--threads", type=int, help="number of CPU threads")
    add("--figure", action="store_true", help="also draw the curves, which needs matplotlib")
    add("--out", type=Path, default=Path("out/backbone.jsonl"), help="file of rows; the table goes beside it as .md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
