"""Train the generator of UniBrain on drawn scenes: what `veca brain pretrain` does."""

from dataclasses import replace
from pathlib import Path

from ..systems.unibrain import generator_named, pretrain

__all__ = ["run_pretraining"]


def run_pretraining(
    out: Path, recipe: str = "nano", seed: int | None = None, device: str | None = None, progress: bool = True
) -> list[str]:
    """Train a generator, or go on with its training.

    Args:
        out: Folder of the run.
        recipe: Name of a recipe of the generator.
        seed: Seed of the scenes; None is the recipe's.
        device: Device; None is a GPU where there is one.
        progress: Show bars.

    Returns:
        A line for each stage.

    Raises:
        BrainDataError: The recipe is unknown, or the run began with another one.
    """
    chosen = generator_named(recipe)
    chosen = chosen if seed is None else replace(chosen, scenes_seed=seed)
    generator = pretrain(out, chosen, device=device, progress=progress)
    lines = []
    for stage in generator.meta["stages"]:
        last = {"loss": stage["loss"]} if "log" not in stage else stage["log"][-1]
        terms = ", ".join(f"{key} {value:.4g}" for key, value in last.items() if key not in ("epoch", "step"))
        lines.append(f"{stage['name']}: {stage['steps']} steps; {terms}")
    return lines
