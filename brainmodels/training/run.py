"""What the stages of one fit share, and what must not change when the fit is resumed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from veca.files import read_json, whole_file
from veca.train.parallel import World

from ..errors import BrainDataError, LayoutError
from .loop import StageResult, train_stage
from .recipe import TrainingStage

__all__ = ["Run", "check_run", "generator_of", "lasting"]


class Run:
    """What the stages of one fit share.

    Args:
        world: The processes.
        precision: Argument of `train_stage`.
        folder: Folder for checkpoints and logs, or None.
        options: Other arguments of `train_stage`, the same for all stages.
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
    """Return the stage with another length in steps; None leaves it as it is."""
    return stage if steps is None else replace(stage, steps=steps, epochs=None)


def generator_of(seed: int | None) -> torch.Generator:
    """Return a generator on the CPU, where a seed draws the same on all machines. None takes a random seed."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def check_run(path: Path, content: dict[str, Any], world: World) -> None:
    """Write down the data and the recipe of a new run, and refuse to resume a run that began with others.

    Args:
        path: Path of `run.json`.
        content: Settings by name, as JSON.
        world: The processes, of which the first writes.

    Raises:
        BrainDataError: The run began with other settings.
        LayoutError: The file is damaged.
    """
    if path.is_file():
        before = read_json(path, LayoutError)
        changed = [key for key in content if not isinstance(before, dict) or before.get(key) != content[key]]
        if changed:
            raise BrainDataError(
                f"expected the {' and '.join(changed)} with which the run in {path.parent} began, got others; give "
                "another folder for a new run"
            )
    elif world.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n")
