"""Rate of feature extraction at several sizes, of VECA-small and of timm's ViT-S/16, by the same extractor and cache.

    python -m benchmarks.extraction
    python -m benchmarks.extraction --sizes 512 1024 --images 4 --passes 5

Weights are random, which does not change the time. Each pass reads the pictures, resizes them, runs the backbone and
writes fp16 features to the disk, as a study does. Passes of the two models alternate in one process. Rates are medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from brainmodels.data import ArrayImages, StimulusSet
from brainmodels.features import Extractor, FeatureCache, extractor

from .record import JsonLines, environment, markdown_table

__all__ = ["main"]

COLUMNS = ("size", "VECA-S images/s", "ViT-S images/s", "ratio")


def pair(size: int) -> tuple[Extractor, Extractor]:
    """VECA-small with 64 cores and the ViT for pictures of one size."""
    vit = {"img_size": size, "num_classes": 0}
    return (
        extractor("veca_small_patch16", weights="random", size=size, num_cores=64),
        extractor("vit_small_patch16_224", weights="random", model_options=vit),
    )


def seconds(model: Extractor, stimuli: StimulusSet, device: str) -> float:
    """Seconds that one extraction of all stimuli into a new cache takes."""
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, model, stimuli)
        start = time.perf_counter()
        cache.extract(batch_size=len(stimuli), device=device, progress=False)
        return time.perf_counter() - start


def compare(size: int, args: argparse.Namespace) -> dict[str, object]:
    """A row with the images a second of both models, and VECA's rate divided by the ViT's."""
    pictures = np.random.default_rng(0).integers(0, 256, (args.images, size, size, 3), np.uint8)
    stimuli = StimulusSet([f"noise:{number}" for number in range(args.images)], ArrayImages(pictures))
    models = pair(size)
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(args.passes + 1):
        for model, times in zip(models, taken, strict=True):
            elapsed = seconds(model, stimuli, args.device)
            if number:  # the first pass of each allocates
                times.append(elapsed)
    ours, theirs = (args.images / statistics.median(times) for times in taken)
    return {"size": size, "VECA-S images/s": ours, "ViT-S images/s": theirs, "ratio": ours / theirs}


def main(words: list[str] | None = None) -> None:
    args = _parser().parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    record, log, rows = environment(args.device, args.threads), JsonLines(args.out), []
    for size in args.sizes:
        rows.append(compare(size, args))
        log.append(record | {"benchmark": "extraction", "images": args.images} | rows[-1])
    print(f"{record['device']}, {record.get('threads', '')} threads, torch {record['torch']}, {record['date']}\n")
    print(markdown_table(rows, COLUMNS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=(256, 512, 768, 1024), help="sides of the pictures in pixels")
    add("--images", type=int, default=4, help="number of pictures")
    add("--passes", type=int, default=3, help="number of timed passes")
    add("--device", default="cpu")
    add("--threads", type=int, help="number of torch's threads on a CPU")
    add("--out", type=Path, help="append the rows to this JSON lines file")
    return parser


if __name__ == "__main__":
    main()
