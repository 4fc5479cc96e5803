"""One step of training, which all loops of the house share.

    engine = Engine(optimizer, Spread(task, world), clip_norm=1.0)
    for step in range(engine.step, steps):
        terms, norms = engine.backward(passes(step))
        engine.update(lr=1e-3 * lr_factor("cosine", step, steps, warmup=30))

A loop decides what a batch is, what it logs, and when it validates, saves and ends. It seeds its noise from its seed
and `engine.step`, so that a resumed run draws the same.
"""

import json
import logging
import math
import reprlib
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..files import whole_file
from .optimizers import NamedOptimizer
from .parallel import Spread, clip_gradients, like, total_norm, whole
from .signals import StopSignals

__all__ = ["Averages", "EarlyStop", "Engine", "Pass", "RowLog", "changes", "check_finite", "fill", "read_rows"]

_log = logging.getLogger(__name__)

Pass = tuple[Tensor, Mapping[str, Tensor]]  # the loss of a forward pass and its terms, as shares of those of the step


class Averages:
    """Exponential moving averages of weights.

    After each step an average moves towards its parameter by 1 - decay. With a ramp, the decay after step n (from 1)
    is min(decay, (1 + n) / (10 + n)). Without it, 86 % of the first weights are left after 1,500 steps of decay 0.9999.

    Args:
        parameters: Parameters by name. Their present values are the first averages.
        decay: Share of an average that a step leaves, from 0 to below 1.
        ramp: Average over fewer steps at the beginning, see above.

    Attributes:
        values: Averages by name, on the devices of the parameters and sharded like them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, ramp: bool = True):
        self.decay, self.ramp = decay, ramp
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}
        self._parameters = dict(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the parameters hold the averages; afterwards they are bit for bit what they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data


class Engine:
    """What a training holds between two steps.

    Args:
        optimizer: Optimizer of the parameters that are trained.
        spread: The task on its processes.
        precision: "fp32", or "bf16" or "fp16" for autocast. With "fp16" the loss is scaled.
        clip_norm: Largest norm of the gradient; None never clips.
        averages: Averages of the weights; None keeps none.
        clip_epsilon: Argument `epsilon` of `clip_gradients`.

    Attributes:
        step: Number of steps done.
        scaler: Scaler of the loss, without effect unless the precision is "fp16".
        stops: Context in which signals ask for an end, see `stopping`.
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
        self.stops, self._agreed = StopSignals(), False

    @property
    def stopping(self) -> int | None:
        """Signal that asks to end after this step. All processes get one in the same step, where one of them has it."""
        if self.spread.world.size == 1:
            return self.stops.number
        return (self.stops.number or signal.SIGTERM) if self._agreed else None

    def leave(self, path: Path | None) -> NoReturn:
        """End the program as its signal asks, after a checkpoint: 128 + the signal is the exit status."""
        number = self.stopping or signal.SIGTERM
        _log.warning("%s after step %d; the same command goes on from %s", signal.Signals(number).name, self.step, path)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def autocast(self) -> AbstractContextManager:
        """A context for forward passes in the precision of this training."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.spread.world.device.type, dtype)

    def averaged(self) -> AbstractContextManager:
        """A context in which the task holds the averaged weights, if averages are kept."""
        return self.averages.applied() if self.averages else nullcontext()

    def total(self, passes: Iterable[Pass], backward: bool = False) -> dict[str, float]:
        """Add up the terms of passes over all processes, and with `backward` the gradients of their losses."""
        sums: dict[str, Tensor] = {}
        for loss, terms in passes:
            if backward:
                self.scaler.scale(loss).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.detach()
        values = list(sums.values())
        if self.spread.world.size > 1:
            values.append(values[0].new_tensor(float(self.stops.number is not None)))
        values = self.spread.together(torch.stack(values)).tolist()
        if self.spread.world.size > 1:
            self._agreed |= values.pop() > 0
        return dict(zip(sums, values, strict=True))

    def backward(self, passes: Iterable[Pass]) -> tuple[dict[str, float], dict[str, float]]:
        """Compute the gradients of a step.

        Args:
            passes: Loss and terms of each forward pass. The contexts of a generator stay open in its backward passes.

        Returns:
            The terms, and the "gradient_norm". With loss scaling also "skipped": 1 where the scale was too large, so
            that `update` will leave the weights as they are; the norm is 0 then.
        """
        terms = self.total(passes, backward=True)
        self.spread.finish_gradients()
        for optimizer in self.optimizer.optimizers:
            self.scaler.unscale_(optimizer)
        self._gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        self._norm = total_norm(self._gradients)
        norm = self._norm.item()
        if not self.scaler.is_enabled():
            return terms, {"gradient_norm": norm}
        skipped = not math.isfinite(norm) and self.scaler.get_scale() > 1
        return terms, {"gradient_norm": 0.0 if skipped else norm, "skipped": float(skipped)}

    def update(self, lr: float, **options: Any) -> None:
        """Clip the gradients of `backward` and move the weights. `options` are those of the optimizer's `step`."""
        if self.clip_norm is not None:
            clip_gradients(self._gradients, self._norm, self.clip_norm, self.clip_epsilon)
        self.optimizer.set_lr(lr)
        self.optimizer.step(scaler=self.scaler, **options)
        self.scaler.update()
        self.optimizer.zero_grad()
        self._gradients = []
        self.step += 1
        if self.averages:
            self.averages.update(self.step)

    def memory(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the state of the optimizer and the averages, as whole tensors by name. All processes must call it."""
        averages = self.averages.values if self.averages else {}
        return self.optimizer.state_dict(), {name: whole(tensor) for name, tensor in averages.items()}

    def restore(self, step: int, optimizer: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
        """Go back to the end of a step, with the two parts of `memory`."""
        self.step = step
        self.optimizer.load_state_dict(optimizer)
        if self.averages:
            fill(self.averages.values, averages, "the averages")


@dataclass
class EarlyStop:
    """The best validation loss, and how long ago it was."""

    best: float | None = None  # loss of the weights to keep; None before the first validation
    stale: int = 0  # number of validations since then

    def improves(self, loss: float, patience: int | None) -> bool:
        """Take in a validation loss and tell whether its weights are those to keep. Without patience the last are."""
        if patience is not None and self.best is not None and loss >= self.best:
            self.stale += 1
            return False
        self.best, self.stale = loss, 0
        return True


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of `RowLog`, none without the file. A warning names lines that are no rows."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows, bad = [], []
    for number, line in enumerate(text.split("\n")[:-1], 1):  # a killed program leaves its last line without an end
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        _log.warning("left out lines %s of %s, which are no rows of a log", ", ".join(map(str, bad)), path)
    return rows


class RowLog:
    """A file of JSON rows, one a line. It begins with `rows` in place of what is there; without a path it is none."""

    def __init__(self, path: Path | None, rows: Iterable[Mapping[str, Any]] = ()):
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def check_finite(row: Mapping[str, float], what: str, inputs: Callable[[], str], path: Path | None) -> None:
    """Raise a FloatingPointError that names the terms of `row` which are NaN or infinite, if there are any.

    The message also says `what` has stopped, describes its `inputs`, and names the last checkpoint.
    """
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        values = ", ".join(f"{name}={value:.6g}" for name, value in row.items())
        found = f"{', '.join(wrong)} not finite ({values}) on {inputs()}"
        raise FloatingPointError(f"{what}: {found}; the last checkpoint is {path}")


def changes(saved: Mapping[str, Any], asked: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """Describe the settings in which two runs differ, but for those that are free; an empty text without any."""
    names = sorted(name for name in {*saved, *asked}.difference(free) if saved.get(name) != asked.get(name))
    show = reprlib.repr
    return ", ".join(f"{name}={show(saved.get(name))}, not {show(asked.get(name))}" for name in names)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], where: str) -> None:
    """Copy whole tensors into others by name; a ValueError says which is missing or of another shape, and where."""
    for name, tensor in tensors.items():
        if name not in values or values[name].shape != tensor.shape:
            got = tuple(values[name].shape) if name in values else "nothing"
            raise ValueError(f"expected {name} of shape {tuple(tensor.shape)} in {where}, got {got}")
        tensor.copy_(like(values[name], tensor))
