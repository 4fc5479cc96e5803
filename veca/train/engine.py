"""One step of training, which all loops of the house share.

    engine = Engine(optimizer, Spread(task, world), clip_norm=1.0)
    for step in range(engine.step, steps):
        terms, norms = engine.backward(passes(step))
        engine.update(lr=1e-3 * lr_factor("cosine", step, steps, warmup=30))

The engine adds up gradients over micro-batches and processes and clips them. It moves the weights and their averages,
and it holds what a checkpoint must remember of them. A loop decides what a batch is, what it logs, and when it
validates, saves and ends. A loop that draws noise seeds its generator from its seed and `engine.step`, so that a
resumed run draws the same.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .averages import Averages
from .optimizers import NamedOptimizer
from .parallel import Spread, clip_gradients, total_norm, whole

__all__ = ["EarlyStop", "Engine", "Pass", "RowLog", "check_finite", "rows_before"]

Pass = tuple[Tensor, Mapping[str, Tensor]]  # the loss of a forward pass and its terms, as shares of those of the step


class Engine:
    """What a training holds between two steps.

    Args:
        optimizer: Optimizer of the parameters that are trained.
        spread: The task on its processes.
        precision: "fp32", or "bf16" or "fp16" for autocast. With "fp16" the loss is scaled.
        clip_norm: Largest norm of the gradient; None never clips.
        averages: Averages of the weights; None keeps none.
        clip_epsilon: Number that is added to the norm before a clipped gradient is divided by it.

    Attributes:
        step: Number of steps done.
        scaler: Scaler of the loss, without effect unless the precision is "fp16".
    """

    def __init__(
        self,
        optimizer: NamedOptimizer,
        spread: Spread,
        precision: str = "fp32",
        clip_norm: float | None = None,
        averages: Averages | None = None,
        clip_epsilon: float = 1e-6,
    ):
        self.optimizer, self.spread, self.precision = optimizer, spread, precision
        self.clip_norm, self.clip_epsilon, self.averages = clip_norm, clip_epsilon, averages
        self.scaler = torch.amp.GradScaler(spread.world.device.type, enabled=precision == "fp16")
        self.step = 0
        self._norm: Tensor | None = None  # of the gradients, between `backward` and `update`

    def autocast(self) -> AbstractContextManager:
        """A context for forward passes in the precision of this training."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.spread.world.device.type, dtype)

    def averaged(self) -> AbstractContextManager:
        """A context in which the task holds the averaged weights, if averages are kept."""
        return self.averages.applied() if self.averages else nullcontext()

    def total(self, passes: Iterable[Pass], backward: bool = False) -> dict[str, float]:
        """Add up the terms of some passes over all processes.

        Args:
            passes: Loss and terms of each forward pass. Where it is a generator, its contexts stay open meanwhile.
            backward: Add the gradients of the losses to those of the parameters.
        """
        sums: dict[str, Tensor] = {}
        for loss, terms in passes:
            if backward:
                self.scaler.scale(loss).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.detach()
        values = self.spread.together(torch.stack(list(sums.values())))
        return dict(zip(sums, values.tolist(), strict=True))

    def backward(self, passes: Iterable[Pass]) -> tuple[dict[str, float], dict[str, float]]:
        """Compute the gradients of a step.

        Args:
            passes: Loss and terms of each forward pass, see `total`.

        Returns:
            The terms, and the "gradient_norm". With loss scaling also "skipped": 1 where the scale was too large, so
            that `update` will leave the weights as they are; the norm is 0 then.
        """
        terms = self.total(passes, backward=True)
        self.spread.finish_gradients()
        for optimizer in self.optimizer.optimizers:
            self.scaler.unscale_(optimizer)
        self._norm = total_norm(self._gradients())
        norms = {"gradient_norm": self._norm.item()}
        if self.scaler.is_enabled():
            skipped = not math.isfinite(norms["gradient_norm"]) and self.scaler.get_scale() > 1
            norms = {"gradient_norm": 0.0 if skipped else norms["gradient_norm"], "skipped": float(skipped)}
        return terms, norms

    def update(self, lr: float | None = None, **options: Any) -> None:
        """Clip the gradients, move the weights, and drop the gradients.

        Args:
            lr: Learning rate of this step; None leaves it as it is.
            options: Options of the optimizer's `step`.
        """
        if self.clip_norm is not None:
            clip_gradients(self._gradients(), self._norm, self.clip_norm, self.clip_epsilon)
        if lr is not None:
            self.optimizer.set_lr(lr)
        self.optimizer.step(scaler=self.scaler, **options)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        if self.averages:
            self.averages.update(self.step)

    def memory(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the state of the optimizer and the averages, as whole tensors by name. All processes must call it."""
        averages = self.averages.values if self.averages else {}
        return self.optimizer.state_dict(), {name: whole(tensor) for name, tensor in averages.items()}

    def restore(
        self,
        step: int,
        optimizer: Mapping[str, Tensor],
        averages: Mapping[str, Tensor],
        scaler: Mapping[str, Any] | None = None,
    ) -> None:
        """Go back to the end of a step.

        Args:
            step: Number of steps done.
            optimizer, averages: The two parts of `memory`.
            scaler: State of the scaler; None where there is none.
        """
        self.step = step
        self.optimizer.load_state_dict(optimizer)
        if self.averages:
            self.averages.load(averages)
        if scaler:
            self.scaler.load_state_dict(dict(scaler))

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.optimizer.parameters if p.grad is not None]


@dataclass
class EarlyStop:
    """The best validation loss, and how long ago it was.

    Attributes:
        best: Loss of the weights to keep; None before the first validation.
        stale: Number of validations since then.
    """

    best: float | None = None
    stale: int = 0

    def improves(self, loss: float, patience: int | None) -> bool:
        """Take in a validation loss and tell whether its weights are those to keep. Without patience the last are."""
        if patience is not None and self.best is not None and loss >= self.best:
            self.stale += 1
            return False
        self.best, self.stale = loss, 0
        return True


class RowLog:
    """A file of JSON rows, one a line.

    Args:
        path: The file; None writes nothing.
        rows: Rows with which it begins. They replace, in one move, those that are there.
    """

    def __init__(self, path: Path | None, rows: Iterable[Mapping[str, Any]] = ()):
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(partial, path)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def rows_before(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows of a log before a step; the later ones are of a run that went beyond its last checkpoint."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = (json.loads(line) for line in lines if line.endswith("}\n"))
    return [row for row in rows if row["step"] < step]


def check_finite(
    row: Mapping[str, float], what: str, step: int, inputs: Callable[[], str], checkpoint: Path | None
) -> None:
    """Stop a training whose numbers are not finite.

    Args:
        row: Terms of the loss and norm of the gradient.
        what: Name of the training.
        step: Number of the step.
        inputs: Function that describes what the step was computed on.
        checkpoint: Folder of the last checkpoint.

    Raises:
        FloatingPointError: A number is NaN or infinite. The message has all of the above.
    """
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        values = ", ".join(f"{name}={value:.6g}" for name, value in row.items())
        raise FloatingPointError(
            f"{what} stopped at step {step}: {', '.join(wrong)} not finite ({values}) on {inputs()}; the last "
            f"checkpoint is {checkpoint}"
        )
