"""Pictures of a run: the curves, and for each photograph what cores read and what patches become."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import imagenet_normalize, load_photograph, photograph
from ..inspect.cost import forward_cost
from ..inspect.visualize import fit_patch_pca, pca_rgb
from ..model.backbone import VECA
from .figures import draw_memory, draw_photograph, draw_times

__all__ = ["draw_curves", "picture_photographs"]

_SHOWN_CORES = (0, 1, 2, 5, 9, 17, 33, 63)
_MAP_SIZE = 512  # pixels; maps need memory for every pair, and 32 x 32 patches can be told apart by eye
_EVERY_PHOTOGRAPH = 1024  # pixels; larger sizes are shown for the photograph with the most pixels alone
_DRAWING = 2.0  # seconds of a picture beyond its features: maps and matplotlib, on one slow core


@torch.inference_mode()
def picture_photographs(
    model: VECA,
    names: Sequence[str],
    sizes: Sequence[int],
    num_cores: int,
    flops_per_second: float,
    out: Path,
    deadline: float,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw a picture of each photograph; as time runs short with fewer sizes, then none.

    Args:
        model: on its device.
        names: of photographs.
        sizes: image sides, pixels, ascending.
        num_cores: C.
        flops_per_second: rate that the model has reached, to plan with.
        out: folder.
        deadline: `time.monotonic()` at which the last one should be done; the first is always drawn.
        report: called with a few words before each.

    Returns:
        (a row for each photograph, with "figure" None where none was drawn; notes for the reader).
    """
    richest = max(names, key=lambda name: min(photograph(name).native_size))
    rows, missing, reduced, slowness = [], [], [], 1.0

    def seconds(shown: Sequence[int]) -> float:
        flops = sum(forward_cost(model, size, size, num_cores).model for size in shown)
        return slowness * (_DRAWING + flops / flops_per_second)

    for index, name in enumerate(names):
        info = photograph(name)
        height, width = info.native_size
        row = {"name": name, "native_height": height, "native_width": width}
        row |= {"package": info.package, "credit": info.credit, "figure": None, "sizes": []}
        rows.append(row)
        left = deadline - time.monotonic()
        if index and seconds(sizes[:1]) > left:
            missing.append(name)
            continue
        share = left / (len(names) - index) * (3 if name == richest else 1)
        wanted = [size for size in sizes if size <= _EVERY_PHOTOGRAPH or name == richest or size == sizes[0]]
        shown = list(wanted)
        while len(shown) > 1 and seconds(shown) > share:
            shown.pop()
        if shown[-1] < min(wanted[-1], _EVERY_PHOTOGRAPH):
            reduced.append(name)
        row |= {"figure": f"photograph_{name}.png", "sizes": shown}
        report(f"pictures of {name}")
        started, planned = time.monotonic(), seconds(shown) / slowness
        _picture(model, name, shown, num_cores, out / row["figure"])
        slowness = (slowness + (time.monotonic() - started) / planned) / 2
    notes = [f"no pictures of {', '.join(missing)}: the time was too short"] if missing else []
    if reduced:
        notes.append(f"pictures of {', '.join(reduced)} without the larger sizes: the time was too short")
    return rows, notes


def _picture(model: VECA, name: str, sizes: Sequence[int], num_cores: int, path: Path) -> None:
    weight = next(model.parameters())
    map_size = max([size for size in sizes if size <= _MAP_SIZE], default=sizes[0])
    depth = len(model.blocks)
    blocks = sorted({max(depth // 2, 1), depth})
    patches = {}  # size -> (rows, cols, E)
    for size in sizes:
        image = load_photograph(name, size)
        images = imagenet_normalize(image)[None].to(weight.device, weight.dtype)
        if size == map_size:
            shown = image
            features, maps = model.forward_maps(images, num_cores, [block - 1 for block in blocks])
        else:
            features = model.forward_features(images, num_cores)
        patches[size] = features.patches[0].unflatten(0, features.grid_size)
    pca = fit_patch_pca(patches[map_size].flatten(0, 1))
    colors = {size: pca_rgb(features, pca) for size, features in patches.items()}
    cores = [core for core in _SHOWN_CORES if core < num_cores]
    draw_photograph(path, shown, dict(zip(blocks, maps, strict=True)), cores, colors)


def draw_curves(record: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Time and memory against resolution.

    Args:
        record: with the rows of report.json.
        out: folder.

    Returns:
        File names by what they show.
    """
    machine = record["machine"]
    caption = f"{machine['device']}, {machine['dtype']}, batch 1, one process, torch {machine['torch']}"
    if machine["device_type"] == "cpu":
        caption += f", {machine['torch_threads']} thread{'s' * (machine['torch_threads'] != 1)}"

    def lines(key: str) -> tuple[dict[int, float], dict[int, dict[int, float]]]:
        every: dict[int | None, dict[int, float]] = {}
        for row in record["timings"]:
            if row[key]:
                every.setdefault(row["num_cores"], {})[row["size"]] = row[key]
        return every.pop(None, {}), every

    exponents = {row["num_cores"]: row["exponent"] for row in record["slopes"]}
    predicted = {
        row["size"]: row["predicted_s"]
        for row in record["timings"]
        if row["num_cores"] is None and not row["times_s"] and row["predicted_s"]
    }
    draw_times(out / "times.png", *lines("median_s"), exponents, predicted, caption)
    draw_memory(out / "memory.png", *lines("peak_bytes"), caption)
    return {"times": "times.png", "memory": "memory.png"}
