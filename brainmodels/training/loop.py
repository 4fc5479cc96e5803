"""The training loop of the brain systems, for every stage, on one process or many.

    result = train_stage("stage1", task, source, recipe.stage1, folder="out/run")

An epoch is a pass over the train trials of all subjects, and a batch holds trials of one subject. With a folder the
stage writes checkpoints and `stage1/log.jsonl`, with one row an epoch. Started again with the same settings, it goes on
from the last checkpoint. On a CPU it then ends with the same bits as a stage that never stopped. Order and noise are
functions of the seed and the step.
"""

import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from veca.files import alone_in
from veca.train.batches import draw_seed
from veca.train.checkpoints import last_whole_checkpoint, save_together
from veca.train.engine import Averages, Engine, Pass, RowLog, check_finite, fill
from veca.train.optimizers import NamedOptimizer
from veca.train.parallel import Spread, World
from veca.train.schedules import lr_factor, plateau_factor

from ..errors import BrainDataError, check_choice
from .batches import Batch, Source, in_order, shuffled
from .freezing import only_trained, train_mode
from .recipe import TrainingStage
from .state import State

__all__ = ["PRECISIONS", "Batch", "Source", "StageResult", "train_stage"]

_log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_NOISE, _VALIDATION = 0, 1  # what a seed is for
_TIMED = 3  # steps after which the log says how long a run will take


@dataclass(frozen=True)
class StageResult:
    """How a stage went.

    Attributes:
        name: Name of the stage.
        steps, epochs: Numbers of steps and of whole passes over the train trials.
        ended: Why it ended: its "length", "patience", "stop_mse" (or its share), or "stop_at" where it is unfinished.
        best: Validation loss of the weights that the task holds now; None without validation.
        contrast_batch: Most trials that a contrast compares: those of a batch on one process in one micro-batch.
        seconds: Time of all runs of the stage together.
        peak_memory: Bytes on the GPU in this run; None without a GPU.
        log: One row an epoch, and one for what follows the last whole epoch. A row has the means over trials of the
            task's terms and of the norm of the gradient, and those of the validation trials as "val_...".
    """

    name: str
    steps: int
    epochs: int
    ended: str
    best: float | None
    contrast_batch: int
    seconds: float
    peak_memory: int | None
    log: tuple[dict[str, float], ...]


def train_stage(
    name: str,
    task: nn.Module,
    source: Source,
    stage: TrainingStage,
    *,
    trainable: Collection[str] | None = None,
    world: World | None = None,
    precision: str = "fp32",
    folder: str | Path | None = None,
    save_every: int = 500,
    total_variance: float | None = None,
    stop_at: int | None = None,
    progress: bool = False,
) -> StageResult:
    """Train some parameters of a task, or resume their training.

    `task(batch, generator)` returns a dict of scalars, which are means over the trials of the batch. "loss" is
    minimised, and the others are logged. `stage.stop_mse` bounds the one called "mse". The task draws from the
    generator alone, and its buffers do not change. In the end the task is in eval mode. It then holds the best weights
    where the stage has patience and validation trials, else the averaged ones where averages are kept. With a folder,
    SIGTERM, SIGUSR1 and Ctrl-C end the program after the current step, with a checkpoint; see `veca.train.signals`.

    Args:
        name: Name of the stage, and of its folder.
        task: Task that is trained in place. Modules whose parameters are all frozen stay in eval mode.
        source: Source of the trials.
        stage: Settings of the training.
        trainable: Names of the parameters to train; None are those that require gradients. The others are frozen
            meanwhile.
        world: The processes, each of which takes a share of every batch; None is this process and the task's device.
        precision: "fp32"; "bf16" or "fp16" autocast; "auto", bf16 on a GPU that has it, else fp32.
        folder: Folder of the run; None writes nothing.
        save_every: Number of steps between checkpoints.
        total_variance: Variance of the train responses in model units, summed over voxels, for `stage.stop_share`.
        stop_at: Number of steps of the stage after which this run ends, to be resumed; None runs all.
        progress: Show a bar.

    Raises:
        BlockingIOError: Another program trains in the folder.
        FloatingPointError: A term or the gradient is not finite. The message names step, terms and trials.
        SystemExit: A signal ended the run; the code is 128 + the signal. After Ctrl-C it is a KeyboardInterrupt.
        BrainDataError: There are no trials or nothing to train, or the folder holds a stage with other settings.
        ValueError: The checkpoints in the folder are damaged.
    """
    world = world or World(0, 1, next(task.parameters()).device)
    task.to(world.device)
    folder = None if folder is None else Path(folder) / name
    alone = alone_in(folder) if folder is not None and world.rank == 0 else nullcontext()
    with alone, only_trained(task, trainable) as parameters:
        run = _Stage(name, task, parameters, source, stage, world, precision, folder)
        run.bound = _error_bound(stage, total_variance, run.validates)
        with nullcontext() if folder is None else run.engine.stops:
            return run.run(stop_at, save_every, progress)


class _Stage:
    """What a stage holds between two steps."""

    def __init__(
        self,
        name: str,
        task: nn.Module,
        parameters: dict[str, nn.Parameter],
        source: Source,
        stage: TrainingStage,
        world: World,
        precision: str,
        folder: Path | None,
    ):
        self.name, self.task, self.source = name, task, source
        self.stage, self.world, self.precision = stage, world, _resolved(precision, world.device)
        self.folder = folder
        self.sizes = {part: tuple(sorted(source.sizes(part).items())) for part in ("train", "val")}
        self.batches = {part: in_order(sizes, stage.batch_size) for part, sizes in self.sizes.items()}
        self.check_trials()
        self.per_epoch = len(self.batches["train"])
        self.length = stage.steps or (stage.epochs or 0) * self.per_epoch
        self.validates = bool(self.batches["val"])
        self.patience = stage.patience if self.validates else None
        self.bound = -math.inf  # of an epoch's training error
        self.generator = torch.Generator(world.device)
        self.engine = self.new_engine(parameters)
        self.state = State(parameters, self.engine)
        found = None if folder is None else last_whole_checkpoint(folder / "checkpoints")
        self.path, saved = found or (None, None)
        if saved is not None and self.path is not None:
            self.state.restore(saved, self.settings(), self.path)
        log = None if folder is None or world.rank > 0 else folder / "log.jsonl"
        self.log = RowLog(log, self.state.progress.log)

    def new_engine(self, parameters: dict[str, nn.Parameter]) -> Engine:
        stage, spread = self.stage, Spread(self.task, self.world, "sum")
        options = {"betas": stage.betas, "weight_decay": stage.weight_decay, "fused": True}
        optimizer = NamedOptimizer(parameters, [torch.optim.AdamW(_groups(parameters, stage), stage.lr, **options)])
        averages = None if stage.ema_decay is None else Averages(parameters, stage.ema_decay)
        return Engine(optimizer, spread, self.precision, stage.clip_norm, averages)

    def check_trials(self) -> None:
        if not self.batches["train"]:
            raise BrainDataError(f"expected train trials for {self.name}, got none")
        for subject, rows in (batch for batches in self.batches.values() for batch in batches):
            if len(rows) < self.world.size:
                raise BrainDataError(
                    f"expected batches of at least {self.world.size} trials, one a process, got {len(rows)} of "
                    f"{subject!r}; use fewer processes"
                )

    def run(self, stop_at: int | None, save_every: int, bar_shown: bool) -> StageResult:
        progress, device = self.state.progress, self.world.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        if progress.ended is None:
            stop = self.length if stop_at is None else min(stop_at, self.length)
            silent = not bar_shown or self.world.rank > 0
            with (
                ThreadPoolExecutor(1) as self.reader,
                tqdm(total=self.length, initial=self.engine.step, desc=self.name, unit="step", disable=silent) as bar,
            ):
                self.train(stop, save_every, bar)
            self.finish()
            if self.engine.stopping:
                self.engine.leave(self.path)
        share = -(-max(len(rows) for _, rows in self.batches["train"]) // self.world.size)
        return StageResult(
            name=self.name,
            steps=self.engine.step,
            epochs=self.engine.step // self.per_epoch,
            ended=progress.ended or "stop_at",
            best=progress.best,
            contrast_batch=-(-share // self.micro_batches(share)),
            seconds=progress.seconds,
            peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            log=tuple(progress.log),
        )

    def train(self, stop: int, save_every: int, bar: tqdm) -> None:
        progress, engine = self.state.progress, self.engine
        if self.stage.validate_first and self.validates and not engine.step:
            self.end_epoch()
        wanted = (("train", *self.rows_of(step)) for step in range(engine.step, stop))
        started, begun = time.perf_counter(), engine.step
        began = started - progress.seconds
        for (_, subject, rows), parts in self.read_ahead(wanted):
            row = self.advance(subject, rows, parts)
            bar.update()
            bar.set_postfix(loss=row["loss"], refresh=False)
            if (taken := engine.step - begun) == _TIMED:
                each = (time.perf_counter() - started) / taken
                told = (self.name, self.world.device, each, each * (stop - engine.step))
                _log.info("%s on %s: %.3g s a step, about %.0f s to go", *told)
            if engine.step % self.per_epoch == 0 or engine.step == self.length:
                self.end_epoch()
            progress.seconds = time.perf_counter() - began
            if progress.ended is not None or engine.stopping:
                break
            if engine.step % save_every == 0 and engine.step < stop:
                self.save()

    def advance(self, subject: str, rows: np.ndarray, parts: list[Batch]) -> dict[str, float]:
        """Take one step and return the means of its terms and the norm of its gradient."""
        stage, step, progress = self.stage, self.engine.step, self.state.progress
        self.generator.manual_seed(draw_seed(stage.seed, step, self.world.rank, _NOISE))
        terms, norms = self.engine.backward(self.passes(parts, len(rows)))
        row = terms | norms
        self.check_finite(row, "train", subject, rows)
        self.engine.update(self.learning_rate(step))
        progress.trials += len(rows)
        _add(progress.sums, row, len(rows))
        return row

    def learning_rate(self, step: int) -> float:
        """Return the largest learning rate of a step; groups have their multiples of it."""
        stage = self.stage
        if stage.schedule == "plateau":
            losses = [row["val_loss"] for row in self.state.progress.log if "val_loss" in row]
            factor = lr_factor("constant", step, self.length, stage.warmup) * plateau_factor(losses)
        else:
            factor = lr_factor(stage.schedule, step, self.length, stage.warmup)
        return max(stage.lr * factor, stage.least_lr)

    def passes(self, parts: list[Batch], count: int) -> Iterator[Pass]:
        """Loss and terms of this process's micro-batches, as shares of the means over the `count` trials of a batch."""
        for part in parts:
            subject, rows, *tensors = part
            # memory of numpy begins anywhere, and on some processors the last bits of products depend on where
            moved = (tensor.to(self.world.device, non_blocking=True, copy=True) for tensor in tensors)
            batch = type(part)(subject, rows, *moved)
            with self.engine.autocast():
                terms = self.task(batch, self.generator)
            share = len(rows) / count
            yield terms["loss"] * share, {name: term.detach() * share for name, term in terms.items()}

    def validate(self) -> dict[str, float]:
        """Return the means of the terms over all validation trials, under the averaged weights if they are kept."""
        sums: dict[str, float] = {}
        total = sum(count for _, count in self.sizes["val"])
        self.generator.manual_seed(draw_seed(self.stage.seed, 0, self.world.rank, _VALIDATION))
        self.task.eval()
        with torch.no_grad(), self.engine.averaged():
            wanted = (("val", *batch) for batch in self.batches["val"])
            for (part, subject, rows), parts in self.read_ahead(wanted):
                row = self.engine.total(self.passes(parts, len(rows)))
                self.check_finite(row, part, subject, rows)
                _add(sums, row, len(rows) / total)
        train_mode(self.task)
        return sums

    def end_epoch(self) -> None:
        """Log the epoch, or what the stage has of its last one, validate, and decide whether to go on."""
        state, progress, step = self.state, self.state.progress, self.engine.step
        row = {"epoch": step / self.per_epoch, "step": step}
        row |= {name: total / progress.trials for name, total in progress.sums.items()}
        if self.validates:
            row |= {f"val_{name}": value for name, value in self.validate().items()}
        progress.trials, progress.sums = 0, {}
        progress.log.append(row)
        self.log.add(row)
        _log.info("%s: %s", self.name, row)
        if step and step % self.per_epoch == 0 and self.bound > -math.inf and row["mse"] < self.bound:
            progress.ended, progress.best, state.best = "stop_mse", row.get("val_loss"), {}
            return
        if self.validates and progress.improves(row["val_loss"], self.patience) and self.patience:
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in state.chosen().items()}
        if self.patience and progress.stale >= self.patience:
            progress.ended = "patience"
        elif step == self.length:
            progress.ended = "length"

    def finish(self) -> None:
        """Leave the weights that the stage is for, and a checkpoint of them or of all that resuming needs."""
        if self.state.progress.ended is None:
            self.save()
        fill(self.state.parameters, self.state.best or self.state.chosen(), str(self.path))
        if self.state.progress.ended is not None:
            self.save()

    def save(self) -> None:
        if self.folder is not None:
            checkpoint = self.state.checkpoint(self.settings())
            self.path = save_together(self.folder / "checkpoints", checkpoint, self.world)

    def settings(self) -> dict[str, Any]:
        """What must not change between two runs of a stage."""
        trials = {f"{part}_trials": dict(sizes) for part, sizes in self.sizes.items()}
        others = {"precision": self.precision, "trainable": sorted(self.state.parameters)}
        return self.stage.to_json() | trials | others

    def rows_of(self, step: int) -> tuple[str, np.ndarray]:
        """Subject and trials of a step, over all processes."""
        epoch, index = divmod(step, self.per_epoch)
        return shuffled(self.sizes["train"], self.stage.batch_size, self.stage.seed, epoch)[index]

    def read_ahead(self, wanted: Iterable[tuple[str, str, np.ndarray]]) -> Iterator[tuple[tuple, list[Batch]]]:
        """Read this process's micro-batches of (part, subject, rows), always one batch ahead of the computation."""
        submitted = ((what, self.reader.submit(self.read, *what)) for what in wanted)
        end: list[Any] = [None]
        for (what, reading), _ in pairwise(chain(submitted, end)):
            yield what, reading.result()

    def read(self, part: str, subject: str, rows: np.ndarray) -> list[Batch]:
        share = np.array_split(rows, self.world.size)[self.world.rank]
        batch = self.source.batch(part, subject, share)
        _, _, *tensors = batch
        if self.world.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        count = self.micro_batches(len(share))
        columns = np.array_split(share, count), *(tensor.tensor_split(count) for tensor in tensors)
        return [type(batch)(subject, *values) for values in zip(*columns, strict=True)]

    def micro_batches(self, share: int) -> int:
        return -(-share // (self.stage.micro_batch or share))

    def check_finite(self, row: dict[str, float], part: str, subject: str, rows: np.ndarray) -> None:
        what, trials = f"{self.name} stopped at step {self.engine.step}", f"{part} trials of {subject}: "
        check_finite(row, what, lambda: trials + self.source.describe(part, subject, rows), self.path)


def _resolved(precision: str, device: torch.device) -> str:
    check_choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _error_bound(stage: TrainingStage, total_variance: float | None, validates: bool) -> float:
    """Return the training error below which an epoch is the last; -inf without one."""
    bound = -math.inf if stage.stop_mse is None else stage.stop_mse
    if stage.stop_share is None or validates:
        return bound
    if total_variance is None:
        raise BrainDataError(f"expected total_variance, to which stop_share={stage.stop_share} refers, got None")
    return max(bound, stage.stop_share * total_variance)


def _groups(parameters: Mapping[str, nn.Parameter], stage: TrainingStage) -> list[dict[str, Any]]:
    """Return groups for the optimizer: those of the stage, and one of all other parameters."""
    members: dict[int, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        place = next((i for i, (start, _, _) in enumerate(stage.groups) if name.startswith(start)), -1)
        members.setdefault(place, []).append(parameter)
    for place, (start, _, _) in enumerate(stage.groups):
        if place not in members:
            raise BrainDataError(f"expected parameters whose names begin with {start!r}, got {', '.join(parameters)}")
    found: list[dict[str, Any]] = [{"params": members.pop(-1)}] if -1 in members else []
    options = [{"lr_scale": scale, "weight_decay": decay} for _, scale, decay in stage.groups]
    return found + [{"params": members[place], **options[place]} for place in sorted(members)]


def _add(sums: dict[str, float], terms: Mapping[str, float], weight: float) -> None:
    for name, value in terms.items():
        sums[name] = sums.get(name, 0.0) + value * weight
