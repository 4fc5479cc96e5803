"""The figures of README and documentation, in docs/images.

    python docs/figure.py            # time.png, from the rows of benchmarks/results that `veca bench` wrote
    python docs/figure.py decoded    # decoded.png: what the page of `make demo` opens with, made smaller

Needs matplotlib and Pillow.
"""

import json
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from veca.report.curves import STYLE

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks/results/amd-epyc-2-cores-inference-2026-11-22.jsonl"
GREY = "#8d949b"
# model -> name, colour, width of the line, factor between the last point and the name
LINES = {
    "xcit_small_12_p16_224": ("", GREY, 1.2, 1.0),
    "davit_tiny": ("XCiT-S12, DaViT-T, PVT v2-B2", GREY, 1.2, 1.42),
    "pvt_v2_b2_li": ("", GREY, 1.2, 1.0),
    "mambaout_tiny": ("MambaOut-T", GREY, 1.2, 1.2),
    "efficientvit_b2": ("EfficientViT-B2", "#c45a93", 1.6, 0.85),
    "vit_small_patch16_224": ("ViT-S/16, full attention", "#d55e00", 2.4, 1.0),
    "veca_small_patch16": ("VECA-S/16, 64 cores", "#0b3c6f", 2.4, 1.0),
}


def seconds() -> dict[str, dict[int, float]]:
    """Median seconds of a forward pass, by model and image side in pixels."""
    found: dict[str, dict[int, float]] = {}
    for row in map(json.loads, ROWS.read_text().splitlines()):
        if row["kind"] == "backbone" and row["pass"] == "inference" and row["status"] == "ok":
            found.setdefault(row["model"], {})[row["size"]] = row["median_s"]
    return found


def draw(path: Path) -> None:
    """Time against the side of the image, both axes logarithmic."""
    measured = seconds()
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.subplots()
        for model, (name, color, width, place) in LINES.items():
            sides = sorted(measured[model])
            times = [measured[model][side] for side in sides]
            axes.plot(sides, times, c=color, lw=width, marker="o", ms=2.5 * width)
            axes.annotate(name, (sides[-1] * 1.08, times[-1] * place), color=color, va="center", annotation_clip=False)
        axes.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel="seconds for one image")
        axes.set_xticks(sides, [str(side) for side in sides])
        ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.grid(c="#e4e7ea", lw=0.6)
        axes.set_title("One forward pass on two CPU cores", loc="left", fontsize=11.5)
        figure.text(1, 0, "AMD EPYC, torch 2.15.0, fp32, 2026-11-22", ha="right", va="bottom", fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def shrink(page: Path, path: Path) -> None:
    """Write a figure of a page at two thirds of its size, with 128 colours."""
    with Image.open(page) as image:
        smaller = image.convert("RGB").resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)
    smaller.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["decoded"]:
        shrink(ROOT / "out/demo/brain/opening.png", ROOT / "docs/images/decoded.png")
    else:
        draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images/time.png")
