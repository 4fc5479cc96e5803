"""The run: it builds models, measures, and draws pictures, within the time asked for."""

import copy
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import imagenet_normalize, list_photographs, load_photograph, photograph
from ..inspect.cost import break_even_side, counted_flops, forward_cost, num_patches
from ..model.backbone import VECA
from ..report.machine import OtherPrograms, describe_machine
from ..zoo.registry import create_model, list_models
from ..zoo.sizes import VARIANTS
from .agreement import Agreement, compare_implementations
from .conclusions import busy, headline, ratio_rows, slopes, summarise_agreement, timing_notes
from .report import write_html
from .schedule import Case, Measured, Schedule
from .settings import DemoSettings

__all__ = ["check_request", "run_demo"]

_DEFAULT_PHOTOGRAPHS = 8
_VITS = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
}
# ends of the parts, as shares of the time
_EARLY_END, _PICTURES_END, _LATE_END = 0.27, 0.6, 0.97
_GRACE, _LEAST_REPEAT = 0.2, 0.04  # shares: see Schedule.run; repetitions always get _LEAST_REPEAT
_REFERENCE_TOKENS = 1200  # the dense reference holds H T^2 scores, in fp64 here


def run_demo(settings: DemoSettings, progress: bool = True) -> dict[str, Any]:
    """Compare VECA with a ViT, and write report.html and report.json to the folder `settings.out`.

    Args:
        settings: Settings of the run.
        progress: Show a progress bar on stderr.

    Returns:
        The content of `report.json`.
    """
    check_request(settings)
    from .pictures import draw_curves  # imports matplotlib

    started = time.monotonic()
    names = list(settings.photographs) or list_photographs()[:_DEFAULT_PHOTOGRAPHS]
    device, dtype = _device(settings.device), getattr(torch, settings.dtype)
    machine = describe_machine(device, dtype)
    settings.out.mkdir(parents=True, exist_ok=True)
    veca, vit = _models(settings, device, dtype)

    with _progress(settings.time_limit, progress) as report:
        others = OtherPrograms()
        parts = _measure(settings, names, veca, vit, started, report)
        report("writing the report")
        record = {
            "machine": machine,
            "settings": dataclasses.asdict(settings) | {"out": str(settings.out), "photographs": names},
            "models": [_describe("VECA", settings.model, veca), _describe("ViT", _VITS[veca.embed_dim], vit)],
            **parts,
        }
        record["notes"] = record["notes"] + timing_notes(record["timings"], record["flops"])
        record["ratios"] = ratio_rows(record["timings"], record["flops"])
        record["headline"] = headline(record["ratios"])
        record["busy"] = busy(others.cores(), machine)
        record["slopes"] = slopes(record["timings"], record["flops"])
        record["equal_flops_px"] = {str(cores): break_even_side(veca, vit, cores) for cores in settings.budgets}
        record["figures"] = draw_curves(record, settings.out)
        record["seconds"] = time.monotonic() - started
        (settings.out / "report.json").write_text(json.dumps(record, indent=1))
        write_html(record, settings.out)
    return record


def _measure(
    settings: DemoSettings,
    names: Sequence[str],
    veca: VECA,
    vit: nn.Module,
    started: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """The parts of the record that take time: FLOPs, agreement, times and pictures."""
    from .pictures import picture_photographs

    weight = next(veca.parameters())
    num_cores = max(settings.budgets)
    seconds = settings.time_limit

    @lru_cache(maxsize=6)
    def image_of(size: int, index: int) -> Tensor:
        image = imagenet_normalize(load_photograph(names[index % len(names)], size))
        return image[None].to(weight.device, weight.dtype)

    def flops_of(case: Case) -> int:
        model = vit if case.num_cores is None else veca
        return forward_cost(model, case.size, case.size, case.num_cores).model

    report("counting FLOPs")
    flops = _flops(veca, vit, settings.sizes, settings.budgets)
    agreement = _agreement(veca, names, settings.sizes, num_cores, image_of, report)
    split = max(len(settings.sizes) - 1, 1)
    schedule = Schedule(veca, vit, image_of, flops_of, weight.device, started + _EARLY_END * seconds, report)
    schedule.run(settings.sizes[:split], settings.budgets, grace=_GRACE * seconds)
    schedule.deadline = max(schedule.deadline, time.monotonic() + _LEAST_REPEAT * seconds)
    schedule.repeat()
    rate = max(flops_of(m.case) / m.median for m in schedule.measured if m.median is not None and m.case.num_cores)
    photographs, notes = picture_photographs(
        veca, names, settings.sizes, num_cores, rate, settings.out, started + _PICTURES_END * seconds, report
    )
    # the largest size comes last and gets the time that is left
    schedule.deadline = started + _LATE_END * seconds
    schedule.run(settings.sizes[split:], settings.budgets)
    schedule.deadline = max(schedule.deadline, time.monotonic() + _LEAST_REPEAT * seconds)
    schedule.repeat()

    extra = sorted({m.case.size for m in schedule.measured} - set(settings.sizes))
    return {
        "photographs": photographs,
        "flops": flops + _flops(veca, vit, extra, settings.budgets),
        "timings": [_timing_row(m) for m in schedule.measured],
        "agreement": summarise_agreement(agreement, weight.dtype),
        "agreement_blocks": [row._asdict() for row in agreement],
        "notes": notes,
    }


def check_request(settings: DemoSettings) -> None:
    """Check the settings before anything runs.

    Raises:
        ImportError: A package of the extra `brain` is missing.
        ValueError: The model or a photograph is unknown, or there is no CUDA device.
    """
    for package in ("matplotlib", "skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'the demo needs {package}, which is missing; pip install "veca[brain]"')
    for name in settings.photographs:
        photograph(name)
    _device(settings.device)
    choices = [name for name in list_models() if "patch_size" not in VARIANTS[name]]  # the ViTs have patch 16
    if settings.model not in choices:
        raise ValueError(f"expected model to be one of {', '.join(choices)}, got {settings.model!r}")


def _device(name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("expected a CUDA device for device='cuda', but torch sees none")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def _models(settings: DemoSettings, device: torch.device, dtype: torch.dtype) -> tuple[VECA, nn.Module]:
    """Both models with random weights and equal width, depth and number of heads."""
    torch.manual_seed(0)
    veca = create_model(settings.model, num_cores=max(64, *settings.budgets))
    vit = timm.create_model(_VITS[veca.embed_dim], depth=len(veca.blocks), dynamic_img_size=True, num_classes=0)
    return veca.to(device, dtype).eval(), vit.to(device, dtype).eval()


def _describe(role: str, name: str, model: Any) -> dict[str, Any]:
    return {
        "role": role,
        "name": name,
        "width": model.embed_dim,
        "depth": len(model.blocks),
        "heads": model.blocks[0].attn.num_heads,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _flops(veca: VECA, vit: nn.Module, sizes: Sequence[int], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """FLOPs of one image by formula. At the smallest and largest sizes and budgets, torch counts them too."""
    veca, vit = copy.deepcopy(veca).to("meta"), copy.deepcopy(vit).to("meta")
    rows = []
    for size in sizes:
        for num_cores in (None, *budgets):
            model, options = (vit, {}) if num_cores is None else (veca, {"num_cores": num_cores})
            row = {"size": size, "num_cores": num_cores, "patches": num_patches(veca, size, size)}
            row |= forward_cost(model, size, size, num_cores)._asdict() | {"model_counted": None}
            if size in (sizes[0], sizes[-1]) and num_cores in (None, budgets[0], budgets[-1]):
                row["model_counted"] = counted_flops(model, size, size, **options)
            rows.append(row)
    return rows


def _agreement(
    veca: VECA,
    names: Sequence[str],
    sizes: Sequence[int],
    num_cores: int,
    image_of: Callable[[int, int], Tensor],
    report: Callable[[str], None],
) -> list[Agreement]:
    """Compare every block of all photographs at the smallest size.

    The first photograph is also compared with sharpened scores, at the smallest size and at a larger one.
    """
    depth = len(veca.blocks)
    every, some = range(depth), sorted({0, depth // 2, depth - 1})

    def compare(count: int, size: int, blocks: Sequence[int], sharpened: bool) -> list[Agreement]:
        report(f"comparing implementations at {size} px")
        images = torch.cat([image_of(size, index) for index in range(count)])
        return compare_implementations(veca, names[:count], images, num_cores, blocks, sharpened)

    rows = compare(len(names), sizes[0], every, False) + compare(1, sizes[0], every, True)
    larger = [size for size in sizes[1:] if num_cores + num_patches(veca, size, size) <= _REFERENCE_TOKENS]
    for size in larger[-1:]:
        rows += compare(1, size, some, True)
    return rows


def _timing_row(measured: Measured) -> dict[str, Any]:
    return {
        "size": measured.case.size,
        "num_cores": measured.case.num_cores,
        "median_s": measured.median,
        "low_s": min(measured.seconds, default=None),
        "high_s": max(measured.seconds, default=None),
        "times_s": measured.seconds,
        "peak_bytes": measured.peak_bytes,
        "warm": measured.warm,
        "predicted_s": measured.predicted,
        "note": measured.note,
    }


@contextmanager
def _progress(time_limit: float, show: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar of the time used, and yield a function that shows a message beside it."""
    started = time.monotonic()
    layout = "{desc:<44.44} {bar} {n:3.0f} of at most {total:.0f} s"
    interval = 0.1 if sys.stderr.isatty() else 15.0
    with tqdm(total=time_limit, bar_format=layout, mininterval=interval, disable=not show) as bar:

        def report(text: str) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(min(time.monotonic() - started, time_limit) - bar.n)
            if sys.stderr.isatty():
                bar.refresh()

        yield report
        report("done")
