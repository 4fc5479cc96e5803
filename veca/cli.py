"""The command line, `veca ...`. The only file that knows tyro."""

from typing import Annotated

import torch
import tyro

from .demo import DemoSettings, check_request, run_demo, summary_lines
from .registry import create_model, list_models

__all__ = ["main"]


def demo(settings: Annotated[DemoSettings, tyro.conf.arg(name="")]) -> None:
    """Photographs through VECA and a ViT of equal width and depth, side by side; ends in an HTML report."""
    try:
        check_request(settings)
    except (ImportError, ValueError) as error:
        raise SystemExit(f"veca demo: {error}") from error
    record = run_demo(settings)
    print("\n".join(summary_lines(record)))
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
