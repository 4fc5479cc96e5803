"""What a stage remembers between two steps, as a checkpoint and back."""

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from veca.train.checkpoints import Checkpoint
from veca.train.engine import EarlyStop, Engine

from ..errors import BrainDataError

__all__ = ["Progress", "State"]

_AVERAGE, _BEST = "average.", "best."  # prefixes in the averaged weights of a checkpoint


@dataclass
class Progress(EarlyStop):
    """What is no tensor and not in the engine.

    Attributes:
        trials: Number of trials of this epoch so far.
        sums: Sums of the terms over these trials.
        ended: Why the stage has ended; None before.
        seconds: Time of all runs of the stage together.
        log: Rows of the log.
    """

    trials: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    ended: str | None = None
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass
class State:
    """All that a stage remembers.

    Attributes:
        parameters: Parameters that are trained, by name.
        engine: The step over them.
        best: Weights of the best validation, on the CPU; empty before one.
        progress: The rest.
    """

    parameters: dict[str, nn.Parameter]
    engine: Engine
    best: dict[str, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def checkpoint(self, settings: dict[str, Any]) -> Checkpoint:
        """Return what resuming needs. Of a stage that has ended these are its weights and its record."""
        optimizer, averages = self.engine.memory() if self.progress.ended is None else ({}, {})
        best = self.best if self.progress.ended is None else {}
        averaged = {_AVERAGE + name: x for name, x in averages.items()} | {_BEST + name: x for name, x in best.items()}
        progress = asdict(self.progress) | {"step": self.engine.step, "scaler": self.engine.scaler.state_dict()}
        record = {"settings": settings, "progress": progress}
        return Checkpoint(self.engine.step, self.parameters, optimizer, averaged, record)

    def restore(self, saved: Checkpoint, settings: dict[str, Any], path: Path) -> None:
        """Go back to a checkpoint.

        Args:
            saved: What `checkpoint` gave.
            settings: Settings of the present run.
            path: Folder of the checkpoint, for messages.

        Raises:
            BrainDataError: It was saved under other settings, or holds other weights.
        """
        _check_settings(saved.recipe["settings"], settings, path)
        progress = dict(saved.recipe["progress"])
        step, scaler = progress.pop("step"), progress.pop("scaler")
        self.progress = Progress(**progress)
        self.put(saved.weights, path)
        if self.progress.ended is None:
            self.engine.restore(step, saved.optimizer, _without(_AVERAGE, saved.ema), scaler)
            self.best = _without(_BEST, saved.ema)
        else:
            self.engine.step = step

    def chosen(self) -> Mapping[str, Tensor]:
        """Return the weights that are validated: the averaged ones if averages are kept, else those of the task."""
        return self.engine.averages.values if self.engine.averages else self.parameters

    def keep_best(self) -> None:
        """Copy the weights that were validated, as the best so far."""
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.chosen().items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor], path: Path | None) -> None:
        """Copy weights into the parameters.

        Args:
            values: Weights by name.
            path: Folder of the checkpoint that they come from, for messages.

        Raises:
            BrainDataError: A weight is missing or has another shape.
        """
        for name, tensor in self.parameters.items():
            if name not in values or values[name].shape != tensor.shape:
                got = tuple(values[name].shape) if name in values else "nothing"
                raise BrainDataError(f"expected {name} of shape {tuple(tensor.shape)} in {path}, got {got}")
            tensor.copy_(values[name])


def _check_settings(saved: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    changed = sorted(name for name in {*saved, *asked} if saved.get(name) != asked.get(name))
    if changed:
        short = reprlib.repr
        values = ", ".join(f"{name}={short(saved.get(name))}, not {short(asked.get(name))}" for name in changed)
        raise BrainDataError(f"expected the settings of {path} ({values}); give another folder to start a new run")


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
