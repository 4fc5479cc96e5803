"""Pictures of a run: the curves, and what cores and patches make of each photograph."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import imagenet_normalize, load_photograph, photograph
from ..inspect.cost import forward_cost
from ..inspect.visualize import fit_patch_pca, pca_rgb
from ..model.backbone import VECA
from ..model.features import single
from .figures import draw_memory, draw_photograph, draw_times

__all__ = ["draw_curves", "picture_photographs"]

_SHOWN_CORES = (0, 1, 2, 5, 9, 17, 33, 63)
_MAP_SIZE = 512  # pixels; maps store every pair of tokens, and 32 x 32 patches are visible by eye
_EVERY_PHOTOGRAPH = 1024  # pixels; only the photograph with the most pixels is shown at larger sizes
_DRAWING = 2.0  # seconds of a picture for maps and matplotlib, on one slow core


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
    """Draw a picture of each photograph. When time is short, pictures have fewer sizes or are left out.

    Args:
        model: VECA, on its device.
        names: Names of the photographs.
        sizes: Image sides in pixels, ascending.
        num_cores: Number C of active cores.
        flops_per_second: Rate that the model has reached, used to plan.
        out: Folder to write to.
        deadline: Time on `time.monotonic()` at which the last picture should be done. The first is always drawn.
        report: Function that receives a short message before each picture.

    Returns:
        A row for each photograph and a list of notes. A row without a picture has None for "figure".
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
    notes = [f"There was no time for pictures of {', '.join(missing)}."] if missing else []
    if reduced:
        notes.append(f"There was no time for the larger sizes in the pictures of {', '.join(reduced)}.")
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
        patches[size] = features.patches[0].unflatten(0, single(features.grid_size))
    pca = fit_patch_pca(patches[map_size].flatten(0, 1))
    colors = {size: pca_rgb(features, pca) for size, features in patches.items()}
    cores = [core for core in _SHOWN_CORES if core < num_cores]
    draw_photograph(path, shown, dict(zip(blocks, maps, strict=True)), cores, colors)


def draw_curves(record: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Draw time and memory against resolution.

    Args:
        record: Content of report.json.
        out: Folder to write to.

    Returns:
        File names of the figures "times" and "memory".
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
        vit = every.pop(None, {})
        return vit, {cores: line for cores, line in every.items() if cores is not None}

    exponents = {row["num_cores"]: row["exponent"] for row in record["slopes"]}
    predicted = {
        row["size"]: row["predicted_s"]
        for row in record["timings"]
        if row["num_cores"] is None and not row["times_s"] and row["predicted_s"]
    }
    draw_times(out / "times.png", *lines("median_s"), exponents, predicted, caption)
    draw_memory(out / "memory.png", *lines("peak_bytes"), caption)
    return {"times": "times.png", "memory": "memory.png"}
