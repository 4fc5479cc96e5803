"""What a stage remembers between two steps, as a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from veca.train.checkpoints import Checkpoint
from veca.train.engine import EarlyStop, Engine, changes, fill

from ..errors import BrainDataError

__all__ = ["Progress", "State"]

_AVERAGE, _BEST = "average.", "best."  # prefixes in the averaged weights of a checkpoint


@dataclass
class Progress(EarlyStop):
    """What is no tensor and not in the engine."""

    trials: int = 0  # number of trials of this epoch so far
    sums: dict[str, float] = field(default_factory=dict)  # of the terms over these trials
    ended: str | None = None  # why the stage has ended; None before
    seconds: float = 0.0  # time of all runs of the stage together
    log: list[dict[str, float]] = field(default_factory=list)  # its rows


@dataclass
class State:
    """All that a stage remembers."""

    parameters: dict[str, nn.Parameter]  # those that are trained, by name
    engine: Engine
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best validation, on the CPU; or empty
    progress: Progress = field(default_factory=Progress)

    def checkpoint(self, settings: dict[str, Any]) -> Checkpoint:
        """Return what resuming needs. Of a stage that has ended these are its weights and its record."""
        engine, optimizer, averaged = self.engine, {}, {}
        if self.progress.ended is None:
            optimizer, averages = engine.memory()
            averaged = {_AVERAGE + n: x for n, x in averages.items()} | {_BEST + n: x for n, x in self.best.items()}
        progress = asdict(self.progress) | {"step": engine.step, "scaler": engine.scaler.state_dict()}
        record = {"settings": settings, "progress": progress}
        return Checkpoint(engine.step, dict(self.parameters), optimizer, averaged, record)

    def restore(self, saved: Checkpoint, settings: dict[str, Any], path: Path) -> None:
        """Go back to a checkpoint of the same settings, which is in the folder `path`."""
        if changed := changes(saved.recipe["settings"], settings):
            raise BrainDataError(f"expected the settings of {path} ({changed}); give another folder for a new run")
        progress = dict(saved.recipe["progress"])
        self.engine.step, scaler = progress.pop("step"), progress.pop("scaler")
        self.progress = Progress(**progress)
        try:
            fill(self.parameters, saved.weights, "its weights")
            if self.progress.ended is None:
                self.engine.restore(saved.step, saved.optimizer, _without(_AVERAGE, saved.ema))
                self.engine.scaler.load_state_dict(scaler)
                self.best = _without(_BEST, saved.ema)
        except ValueError as error:
            raise BrainDataError(f"expected the checkpoint of this stage in {path}, got another: {error}") from error

    def chosen(self) -> Mapping[str, Tensor]:
        """Return the weights that are validated: the averaged ones if averages are kept, else those of the task."""
        return self.engine.averages.values if self.engine.averages else self.parameters


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
