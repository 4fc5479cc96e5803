"""This program measures time and peak memory of `veca.stream_features` on one large image.

    python -m benchmarks.streaming --size 8192
    python -m benchmarks.streaming --size 2048 --forward

With --forward, the ordinary forward of the same image is measured too.
"""

import argparse
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

import veca
from veca.large.streaming import stream_features

from .record import JsonLines, environment, markdown_table

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BAND = 512  # number of rows of noise, which the image repeats


class Noise:
    """An image of `size` x `size` random pixels, which are made when they are read."""

    def __init__(self, size: int):
        self.shape, self.dtype = (size, size, 3), np.dtype(np.uint8)
        self.band = np.random.default_rng(0).integers(0, 256, (_BAND, size, 3), dtype=np.uint8)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.band[np.arange(rows.start, rows.stop) % _BAND]


def measure(args: argparse.Namespace) -> dict[str, object]:
    """One row with seconds and peak bytes, and with `--forward` those of the ordinary forward too.

    The peak of a process never falls, so the streamed pass runs first.
    """
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = veca.create_model(args.model).eval().to(device, getattr(torch, args.dtype))
    image = Noise(args.size)
    stream_features(model, Noise(256), mean=_MEAN, std=_STD)  # libraries allocate on first use
    before, start = peak_bytes(device), time.perf_counter()
    features = stream_features(
        model,
        image,
        args.chunk_patches,
        mean=_MEAN,
        std=_STD,
        residual=args.residual,
        workdir=args.workdir,
        progress=True,
    )
    row = {
        "model": args.model,
        "size": args.size,
        "patches": math.prod(features.grid_size),
        "chunk_patches": args.chunk_patches,
        "dtype": args.dtype,
        "residual": "directory" if args.workdir else args.residual,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes(device),
        "peak_bytes_before": before,
        "residual_bytes": features.patches.shape[1] * model.embed_dim * model.core_bank.tokens.element_size(),
    }
    return row | (forward_row(model, image, features, device) if args.forward else {})


def forward_row(model: veca.VECA, image: Noise, streamed: veca.Features, device: torch.device) -> dict[str, object]:
    """The ordinary forward of the same image, and the relative difference of the streamed features from it."""
    weight = model.patch_embed.proj.weight
    start = time.perf_counter()
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (_MEAN, _STD))
    pixels = torch.from_numpy(image[slice(0, image.shape[0])]).to(device).permute(2, 0, 1)
    with torch.no_grad():
        whole = model.forward_features(((pixels / 255 - mean) / std)[None].to(weight.dtype))
    patches = whole.patches.cpu()
    return {
        "forward_seconds": time.perf_counter() - start,
        "forward_peak_bytes": peak_bytes(device),
        "relative_difference": ((streamed.patches.cpu() - patches).norm() / patches.norm()).item(),
    }


def peak_bytes(device: torch.device) -> int:
    """The most memory so far in bytes: allocated on a GPU, resident for the whole process on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(words: list[str] | None = None) -> None:
    args = _parser().parse_args(words)
    row = environment(torch.device(args.device).type) | measure(args)
    JsonLines(args.out).append(row)
    print(markdown_table([{"": name, "value": value} for name, value in row.items()], ("", "value")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", type=int, default=2048, help="side of the image in pixels")
    add("--model", default="veca_small_patch16")
    add("--chunk-patches", type=int, default=65536, help="number of patches in a chunk")
    add("--residual", choices=("host", "device"), default="host", help="memory of the residual stream")
    add("--workdir", type=Path, help="keep the residual stream in files of this folder")
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--threads", type=int, help="number of torch's threads on a CPU")
    add("--forward", action="store_true", help="also run the ordinary forward")
    add("--out", type=Path, help="append the row to this JSON lines file")
    return parser


if __name__ == "__main__":
    main()
