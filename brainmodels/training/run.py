"""What the stages of one fit share, and what must not change when it goes on."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from veca.train.parallel import World

from ..errors import BrainDataError
from .loop import StageResult, train_stage
from .recipe import TrainingStage

__all__ = ["Run", "check_run", "generator_of", "lasting"]


class Run:
    """What the stages of one fit share.

    Args:
        world: the processes.
        precision: of `train_stage`.
        folder: of checkpoints and logs, or None.
        options: of `train_stage`, the same for all stages.
    """

    def __init__(self, world: World, precision: str, folder: Path | None, options: Mapping[str, Any]):
        self.world, self.device = world, world.device
        self._options = {"world": world, "precision": precision, "folder": folder, **options}

    def stage(
        self,
        name: str,
        task: torch.nn.Module,
        data: Any,
        stage: TrainingStage,
        trainable: set[str] | None = None,
        total_variance: float | None = None,
    ) -> StageResult:
        """Train one stage."""
        settings = {"trainable": trainable, "total_variance": total_variance}
        return train_stage(name, task.to(self.device), data, stage, **settings, **self._options)


def lasting(stage: TrainingStage, steps: int | None) -> TrainingStage:
    """The stage with another length in steps; None leaves it as it is."""
    return stage if steps is None else replace(stage, steps=steps, epochs=None)


def generator_of(seed: int | None) -> torch.Generator:
    """On the CPU, so that a seed draws the same everywhere; None seeds it anew."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def check_run(path: Path, content: dict[str, Any], world: World) -> None:
    """A run goes on with the data and the recipe it began with."""
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [key for key in content if before.get(key) != content[key]]
        if changed:
            raise BrainDataError(
                f"expected the {' and '.join(changed)} with which the run in {path.parent} began, got others; give "
                "another folder to start anew"
            )
    elif world.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)
