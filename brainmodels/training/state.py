"""What a stage remembers between two steps, as a checkpoint and back, and its log."""

import dataclasses
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from veca.train.checkpoints import Checkpoint

from ..errors import BrainDataError
from .averages import Averages

__all__ = ["Progress", "State", "put", "write_rows"]

_AVERAGE, _BEST = "average.", "best."  # prefixes in the averaged weights of a checkpoint


@dataclass
class Progress:
    """The part that is no tensor.

    Attributes:
        step: number of steps done.
        trials, sums: of this epoch so far, and of the terms over these trials.
        best: validation loss of the weights to keep.
        stale: validations since that were not better.
        ended: why the stage has ended; None before.
        seconds: of all runs together.
        scaler: of the loss, in fp16.
        log: its rows.
    """

    step: int = 0
    trials: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    stale: int = 0
    ended: str | None = None
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass
class State:
    """All of it.

    Attributes:
        parameters: that are trained, by name.
        optimizer: over them.
        scaler: of the loss; does nothing but in fp16.
        averages: of the parameters, if they are kept.
        best: the weights of the best validation, on the CPU; empty before one.
        progress: the rest.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: Averages | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def checkpoint(self, settings: dict[str, Any]) -> Checkpoint:
        """All that going on needs; of a stage that has ended, its weights and its record."""
        optimizer, averaged = {}, {}
        if self.progress.ended is None:
            for name, parameter in self.parameters.items():
                kept = self.optimizer.state.get(parameter, {})
                optimizer |= {f"{name}.{what}": value for what, value in kept.items()}
            averages = self.averages.values if self.averages else {}
            averaged = _prefixed(_AVERAGE, averages) | _prefixed(_BEST, self.best)
        self.progress.scaler = self.scaler.state_dict()
        record = {"settings": settings, "progress": dataclasses.asdict(self.progress)}
        return Checkpoint(self.progress.step, self.parameters, optimizer, averaged, record)

    def restore(self, saved: Checkpoint, settings: dict[str, Any], path: Path) -> None:
        """Go back to a checkpoint.

        Args:
            saved: what `checkpoint` gave.
            settings: of now.
            path: of the checkpoint, for messages.

        Raises:
            BrainDataError: it was saved under other settings, or holds other weights.
        """
        _check_settings(saved.recipe["settings"], settings, path)
        self.progress = Progress(**saved.recipe["progress"])
        put(self.parameters, saved.weights, path)
        if self.progress.ended is not None:
            return
        for key, value in saved.optimizer.items():
            name, _, what = key.rpartition(".")
            parameter = self.parameters[name]
            self.optimizer.state[parameter][what] = value.to(parameter.device)
        self.scaler.load_state_dict(self.progress.scaler)
        if self.averages:
            put(self.averages.values, _without(_AVERAGE, saved.ema), path)
        self.best = _without(_BEST, saved.ema)

    def keep(self, path: Path | None) -> None:
        """Put the weights that the stage is for in place: the best, the averaged, or those that are there."""
        weights = self.best or (self.averages.values if self.averages else None)
        if weights:
            put(self.parameters, weights, path)


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path | None) -> None:
    """Copy values into tensors of the same names and shapes, in place; `path` is where they come from."""
    for name, tensor in tensors.items():
        if name not in values or values[name].shape != tensor.shape:
            got = tuple(values[name].shape) if name in values else "nothing"
            raise BrainDataError(f"expected {name} of shape {tuple(tensor.shape)} in {path}, got {got}")
        tensor.copy_(values[name])


def write_rows(path: Path, rows: Iterable[dict[str, float]], append: bool = False) -> None:
    """Lines of JSON, instead of or after those in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _check_settings(saved: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    changed = sorted(name for name in {*saved, *asked} if saved.get(name) != asked.get(name))
    if changed:
        short = reprlib.repr
        values = ", ".join(f"{name}={short(saved.get(name))}, not {short(asked.get(name))}" for name in changed)
        raise BrainDataError(f"expected the settings of {path} ({values}); give another folder to start anew")


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
