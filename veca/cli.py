"""The command line, `veca ...`. The only file that knows tyro."""

from typing import Annotated

import torch
import tyro

from .demo import DemoSettings, check_request, run_demo
from .registry import create_model, list_models

__all__ = ["main"]


def demo(settings: Annotated[DemoSettings, tyro.conf.arg(name="")]) -> None:
    """Photographs through VECA and a ViT of equal width and depth, side by side; ends in an HTML report."""
    try:
        check_request(settings)
    except (ImportError, ValueError) as error:
        raise SystemExit(f"veca demo: {error}") from error
    record = run_demo(settings)
    best = record["headline"]
    if best is not None:
        where = f"at {best['size']} px, {best['num_cores']} cores"
        for name, key in (("time", "time"), ("peak memory", "memory"), ("FLOPs", "flops_model")):
            print(f"ViT / VECA  {name:12} {best[key]:6.2f}x  {where}")
    print(settings.out / "report.html")


def models() -> None:
    """A table of the models that `veca.create_model` builds."""
    print(f"{'name':26} {'width':>6} {'depth':>6} {'heads':>6} {'parameters':>12}")
    for name in list_models():
        with torch.device("meta"):  # weights would take seconds and gigabytes
            model = create_model(name)
        heads = model.blocks[0].attn.num_heads
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name:26} {model.embed_dim:6d} {len(model.blocks):6d} {heads:6d} {parameters:12,d}")


def main(args: list[str] | None = None) -> None:
    """Run a command.

    Args:
        args: words after `veca`; None takes those of the process.
    """
    tyro.extras.subcommand_cli_from_dict({"demo": demo, "models": models}, prog="veca", args=args)
