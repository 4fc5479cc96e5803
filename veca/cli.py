"""The command line `veca`. This is the only file of the package that uses tyro.

Other packages add commands by entry points of the group "veca.commands". The entry point `name` is a function that
takes the words after `veca name`.
"""

import dataclasses
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from .bench import BenchSettings, check_bench, run_bench
from .demo import DemoSettings, check_request, run_demo, summary_lines
from .inspect.export import export_model
from .inspect.extract import extract_features
from .model.backbone import VECA
from .zoo.official import load_official
from .zoo.registry import create_model, list_models, load

__all__ = ["main"]


def demo(settings: Annotated[DemoSettings, tyro.conf.arg(name="")]) -> None:
    """Compare VECA with a ViT of equal width and depth on photographs, and write an HTML report."""
    try:
        check_request(settings)
    except (ImportError, ValueError) as error:
        raise SystemExit(f"veca demo: {error}") from error
    record = run_demo(settings)
    print("\n".join(summary_lines(record)))
    print(settings.out / "report.html")


def bench(settings: Annotated[BenchSettings, tyro.conf.arg(name="")]) -> None:
    """Measure throughput, memory and FLOPs of VECA, plain ViTs and linear backbones. Writes a table and curves."""
    try:
        check_bench(settings)
    except (ImportError, ValueError) as error:
        raise SystemExit(f"veca bench: {error}") from error
    run_bench(settings)
    page = settings.out / f"{settings.name}.md"
    print(page.read_text(encoding="utf-8"))
    print(page)


def train(
    out: Path,
    recipe: Literal["nano-scenes"] = "nano-scenes",
    baseline: bool = False,
    steps: int | None = None,
    warmup_steps: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> None:
    """Train on drawn scenes. Started again, the run goes on from its last checkpoint. Defaults are those of the recipe.

    Ctrl-C, SIGTERM and SIGUSR1 end the run after the current step, with a checkpoint; the status is 128 + the signal.

    Args:
        out: Folder of the run.
        recipe: Recipe of the training.
        baseline: Train a plain ViT of equal width, depth and patch instead of VECA.
        steps: Number of optimiser steps.
        warmup_steps: Number of steps in which the learning rate grows.
        batch_size: Number of images in a step, over all processes.
        size: Side of the images in pixels.
        seed: Seed of all random generators.
        workers: Number of processes that prepare batches.
        device: Device to train on, such as cuda or cpu. Default: a GPU if there is one.
    """
    from .train import nano_scenes, train_scenes

    given = dict(steps=steps, warmup_steps=warmup_steps, batch_size=batch_size, size=size, seed=seed, workers=workers)
    try:
        print(train_scenes(_changed(nano_scenes(), baseline=baseline or None, **given), out, device))
    except (FloatingPointError, OSError, ValueError) as error:
        raise SystemExit(f"veca train: {error}") from error


def distill(
    teacher: str,
    out: Path,
    data: Path | None = None,
    student: str | None = None,
    recipe: Literal["tiny", "paper-stage1", "paper-stage2"] = "tiny",
    weights: str | None = None,
    start_from: Path | None = None,
    held_out: Path | None = None,
    steps: int | None = None,
    warmup_steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> None:
    """Train a student on a teacher's features of unlabelled images. Defaults are those of the recipe.

    Ctrl-C, SIGTERM and SIGUSR1 end the run after the current step, with a checkpoint; the status is 128 + the signal.

    Args:
        teacher: Name of a timm model, such as vit_base_patch16_dinov3.lvd1689m.
        out: Folder of the run. Started again, the run goes on from its last checkpoint.
        data: Folder of images, or an index file (.csv, .tsv, .jsonl). Default: the photographs that ship with
            scikit-image and scikit-learn. They are then the held-out images too, which is a first look and not a
            measurement.
        student: One of `veca models`, or "converted" for the teacher with its attention replaced and its weights kept.
        recipe: Recipe of the training.
        weights: Weights of the teacher: a .safetensors file, or "random". Default: the weights on the hub.
        start_from: Run or checkpoint whose student is the start.
        held_out: Other images, on which the loss is measured at each checkpoint.
        steps: Number of optimiser steps.
        warmup_steps: Number of steps in which the learning rate grows.
        batch_size: Number of images in a step, over all processes.
        seed: Seed of all random generators.
        workers: Number of processes that prepare batches.
        device: Device to train on, such as cuda or cpu. Default: a GPU if there is one.
    """
    from . import train as training
    from .data import Images, list_photographs, photograph

    given = dict(steps=steps, warmup_steps=warmup_steps, batch_size=batch_size, seed=seed, workers=workers)
    try:
        if recipe == "paper-stage1":
            settings = training.paper_stage1() if data is None else training.paper_stage1(len(Images(data)))
        else:
            settings = training.tiny() if recipe == "tiny" else training.paper_stage2()
        settings = _changed(settings, model=student, **given)
        frozen = training.load_teacher(teacher, weights)
        images, others = data, held_out
        if images is None:
            images = others = [photograph(name).path for name in list_photographs()]
        print(training.distill(settings, frozen, images, out, start_from, others, device))
        if others:
            print("cosine between patches of student and teacher:", (out / "cosine.json").read_text().strip())
    except (FloatingPointError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"veca distill: {error}") from error


def _changed(recipe: Any, **given: Any) -> Any:
    """The recipe with the fields that are not None replaced."""
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


def models() -> None:
    """Print a table of the models that `veca.create_model` builds."""
    shipped = list_models(pretrained=True)
    print(f"{'name':26} {'width':>6} {'depth':>6} {'heads':>6} {'parameters':>12}  weights")
    for name in list_models():
        with torch.device("meta"):  # weights would take seconds and gigabytes
            model = create_model(name)
        heads = model.blocks[0].attn.num_heads
        count = sum(p.numel() for p in model.parameters())
        weights = "  shipped" if name in shipped else ""
        print(f"{name:26} {model.embed_dim:6d} {len(model.blocks):6d} {heads:6d} {count:12,d}{weights}")


def features(
    images: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("out/features"),
    model: str = "veca_small_patch16",
    size: int | None = 512,
    num_cores: int | None = None,
    device: str = "cpu",
) -> None:
    """Write the features of each image file as arrays (.npz) and as a picture (.png).

    Args:
        images: Image files.
        out: Folder of the results.
        model: One of `veca models`, a folder written by save_pretrained, or a Hub repository owner/name.
        size: Longer side in pixels. None keeps the size of each file.
        num_cores: Number of active cores. Default: the model's budget.
        device: Device to run on.
    """
    try:
        backbone, note = _open(model)
        for files in extract_features(backbone.to(device), images, out, size, num_cores, note):
            print(*files)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"veca features: {error}") from error


def export(
    out: Path,
    model: str = "veca_nano_patch16",
    format: Literal["onnx", "pt2"] | None = None,
    num_cores: int | None = None,
) -> None:
    """Write a model as ONNX or for torch.export, for images of any size, and check the file.

    Args:
        out: File to write.
        model: One of `veca models`, a folder written by save_pretrained, or a Hub repository owner/name.
        format: Format of the file. Default: the suffix of `out`.
        num_cores: Number of active cores, fixed in the file. Default: the model's budget.
    """
    try:
        backbone, _ = _open(model)
        checks = export_model(backbone, out, format, num_cores)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"veca export: {error}") from error
    for batch, height, width, difference in checks:
        cores = num_cores or backbone.budget
        print(f"{batch} x {height} x {width} px, {cores} cores: largest relative difference {difference:.2g}")
    print(out)


def import_(file: tyro.conf.Positional[Path], out: Path) -> None:
    """Make a folder for `veca.load` of a checkpoint of the authors' code for VECA. No code of the file is run.

    Args:
        file: Checkpoint, such as x.pt.
        out: Folder to write; new or empty.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"expected --out to be a new or an empty folder, got {out}")
        model = load_official(file)
        model.save_pretrained(out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"veca import: {error}") from error
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(model.blocks)} blocks of width {model.embed_dim}, {model.num_cores} cores, {count:,d} parameters")
    print(out)


def _open(model: str) -> tuple[VECA, str]:
    """A model in evaluation mode, and a note about its weights."""
    if model not in list_models() or model in list_models(pretrained=True):
        return load(model)[0], model
    print(f"no weights ship for {model}, so they are random", file=sys.stderr)
    torch.manual_seed(0)
    return create_model(model).eval(), f"{model}, random weights"


def main(args: list[str] | None = None) -> None:
    """Run a command.

    Args:
        args: words after `veca`; None takes those of this process.
    """
    try:
        _run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from error


def _run(args: list[str]) -> None:
    others = {entry.name: entry for entry in entry_points(group="veca.commands")}
    if args and args[0] in others:
        others[args[0]].load()(args[1:])
        return
    functions = (bench, demo, distill, export, features, import_, models, train)
    commands = {function.__name__.removesuffix("_"): function for function in functions}  # import is a word of Python
    more = "".join(f" See also: veca {name} --help." for name in sorted(others))
    tyro.extras.subcommand_cli_from_dict(
        commands, prog="veca", description=f"Vision backbones whose cost is linear in patches.{more}", args=args
    )
