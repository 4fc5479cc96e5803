"""The training loop: one for every stage of every system, on one process or many.

    result = train_stage("stage1", task, source, recipe.stage1, folder="out/run")

An epoch is a pass over the train trials of all subjects, and a batch holds trials of one subject. With a folder the
stage writes `stage1/log.jsonl`, one row an epoch, and checkpoints; started again with the same settings it goes on from
the last one and, on a processor, ends with the same bits as a stage never stopped: order and noise are functions of the
seed and the step alone.
"""

import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from veca.train.batches import draw_seed
from veca.train.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from veca.train.parallel import World, total_norm

from ..errors import BrainDataError, check_choice
from ..records import to_json
from .averages import Averages
from .batches import Batch, Source, in_order, shuffled
from .freezing import only_trained, train_mode
from .recipe import TrainingStage
from .state import State, write_rows

__all__ = ["PRECISIONS", "Batch", "Source", "StageResult", "train_stage"]

_log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_NOISE, _VALIDATION = 0, 1  # what a seed is for

Wanted = tuple[str, str, np.ndarray]  # part, subject, rows


@dataclass(frozen=True)
class StageResult:
    """How a stage went.

    Attributes:
        name: of the stage.
        steps, epochs: done; epochs are whole passes over the train trials.
        ended: by its "length", by "patience", by "stop_mse" (or its share), or "stop_at" where it is unfinished.
        best: validation loss of the weights that the task holds now; None without validation.
        contrast_batch: most trials that a contrast compares: those of a batch on one process in one micro-batch.
        seconds: all runs of the stage together.
        peak_memory: bytes on the GPU in this run; None without one.
        log: one row an epoch, and one for what follows the last whole epoch: means over trials of the task's
            terms and of the norm of the gradient, and those of the validation trials as "val_...".
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
    """Train some parameters of a task, or go on training them.

    `task(batch, generator)` returns a dict of scalars, means over the trials of the batch: "loss", which is minimised,
    and others, which are logged; "mse" is the one that `stage.stop_mse` bounds. It draws from the generator alone, and
    no buffer of it changes. In the end the task holds the averaged weights where the stage keeps averages, the best
    ones where it has patience and validation trials, and is in eval mode.

    Args:
        name: of the stage, and of its folder.
        task: trained in place. Modules whose parameters are all frozen stay in eval mode.
        source: of the trials.
        stage: how.
        trainable: names of the parameters to train; None are those that require gradients. The others are frozen
            meanwhile.
        world: the processes, of which each takes a share of every batch; None is this process and the task's device.
        precision: "fp32"; "bf16" or "fp16" autocast; "auto", bf16 on a GPU that has it, else fp32.
        folder: of the run; None writes nothing.
        save_every: steps between checkpoints.
        total_variance: of the train responses in model units, summed over voxels; `stage.stop_share` refers to it.
        stop_at: end the run after this many steps of the stage, to be continued; None runs all.
        progress: show a bar.

    Raises:
        FloatingPointError: a term or the gradient is not finite. Names step, terms and trials.
        BrainDataError: no trials or nothing to train; the folder holds a stage with other settings.
    """
    world = world or World(0, 1, next(task.parameters()).device)
    task.to(world.device)
    with only_trained(task, trainable) as parameters:
        run = _Stage(name, task, parameters, source, stage, world, precision, folder)
        run.bound = _error_bound(stage, total_variance, run.validates)
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
        folder: str | Path | None,
    ):
        self.name, self.task, self.source = name, task, source
        self.stage, self.world, self.precision = stage, world, _resolved(precision, world.device)
        self.folder = None if folder is None else Path(folder) / name
        self.sizes = {part: tuple(sorted(source.sizes(part).items())) for part in ("train", "val")}
        self.batches = {part: in_order(sizes, stage.batch_size) for part, sizes in self.sizes.items()}
        self.check_trials()
        self.per_epoch = len(self.batches["train"])
        self.length = stage.steps or stage.epochs * self.per_epoch
        self.validates = bool(self.batches["val"])
        self.watches = self.validates and stage.patience is not None
        self.bound = -math.inf  # of an epoch's training error
        optimizer = torch.optim.AdamW(
            parameters.values(), stage.lr, stage.betas, weight_decay=stage.weight_decay, fused=True
        )
        scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision == "fp16")
        self.generator = torch.Generator(world.device)
        if world.size > 1:
            for parameter in task.parameters():
                dist.broadcast(parameter.data, 0)
        averages = None if stage.ema_decay is None else Averages(parameters, stage.ema_decay)
        self.state = State(parameters, optimizer, scaler, averages)
        self.path = None if self.folder is None else latest_checkpoint(self.folder / "checkpoints")
        if self.path is not None:
            self.state.restore(load_checkpoint(self.path), self.settings(), self.path)
        if self.folder is not None and world.rank == 0:
            write_rows(self.folder / "log.jsonl", self.state.progress.log)

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
                tqdm(total=self.length, initial=progress.step, desc=self.name, unit="step", disable=silent) as bar,
            ):
                self.train(stop, save_every, bar)
            self.finish()
        share = -(-max(len(rows) for _, rows in self.batches["train"]) // self.world.size)
        return StageResult(
            name=self.name,
            steps=progress.step,
            epochs=progress.step // self.per_epoch,
            ended=progress.ended or "stop_at",
            best=progress.best,
            contrast_batch=-(-share // self.micro_batches(share)),
            seconds=progress.seconds,
            peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            log=tuple(progress.log),
        )

    def train(self, stop: int, save_every: int, bar: tqdm) -> None:
        progress = self.state.progress
        wanted = (("train", *self.rows_of(step)) for step in range(progress.step, stop))
        began = time.perf_counter() - progress.seconds
        for (_, subject, rows), parts in self.read_ahead(wanted):
            row = self.advance(subject, rows, parts)
            bar.update()
            bar.set_postfix(loss=row["loss"], refresh=False)
            if progress.step % self.per_epoch == 0 or progress.step == self.length:
                self.end_epoch()
            progress.seconds = time.perf_counter() - began
            if progress.ended is not None:
                break
            if progress.step % save_every == 0 and progress.step < stop:
                self.save()

    def advance(self, subject: str, rows: np.ndarray, parts: list[Batch]) -> dict[str, float]:
        """One step of the optimiser; returns the means of its terms and the norm of its gradient."""
        state, progress, stage = self.state, self.state.progress, self.stage
        self.generator.manual_seed(draw_seed(stage.seed, progress.step, self.world.rank, _NOISE))
        row = self.terms(parts, len(rows), backward=True)
        gradients = [p.grad for p in state.parameters.values() if p.grad is not None]
        self.sum_over_processes(gradients)
        state.scaler.unscale_(state.optimizer)
        norm = total_norm(gradients)
        row["gradient_norm"] = norm.item()
        if state.scaler.is_enabled():  # it skips steps until its factor fits
            row["skipped"] = float(not math.isfinite(row["gradient_norm"]) and state.scaler.get_scale() > 1)
            row["gradient_norm"] = 0.0 if row["skipped"] else row["gradient_norm"]
        self.check_finite(row, "train", subject, rows)
        if stage.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(state.parameters.values(), stage.clip_norm, norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        progress.step += 1
        if state.averages is not None:
            state.averages.update(progress.step)
        progress.trials += len(rows)
        _add(progress.sums, row, len(rows))
        return row

    def terms(self, parts: list[Batch], count: int, backward: bool = False) -> dict[str, float]:
        """Means of the task's terms over the `count` trials of a batch, of which `parts` are this process's."""
        device, sums = self.world.device, {}
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        for subject, rows, *tensors in parts:
            batch = Batch(subject, rows, *(tensor.to(device, non_blocking=True) for tensor in tensors))
            with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
                terms = self.task(batch, self.generator)
            if backward:
                self.state.scaler.scale(terms["loss"] * (len(rows) / count)).backward()
            _add(sums, {name: term.detach() for name, term in terms.items()}, len(rows) / count)
        values = torch.stack(list(sums.values()))
        self.sum_over_processes([values])
        return dict(zip(sums, values.tolist(), strict=True))

    def validate(self) -> dict[str, float]:
        """Means of the terms over all validation trials, under the averaged weights where there are any."""
        sums: dict[str, float] = {}
        total = sum(count for _, count in self.sizes["val"])
        self.generator.manual_seed(draw_seed(self.stage.seed, 0, self.world.rank, _VALIDATION))
        self.task.eval()
        with torch.no_grad(), self.averaged():
            wanted = (("val", *batch) for batch in self.batches["val"])
            for (part, subject, rows), parts in self.read_ahead(wanted):
                row = self.terms(parts, len(rows))
                self.check_finite(row, part, subject, rows)
                _add(sums, row, len(rows) / total)
        train_mode(self.task)
        return sums

    def end_epoch(self) -> None:
        """Log the epoch, or what the stage has of its last one, validate, and decide whether to go on."""
        progress = self.state.progress
        row = {"epoch": progress.step / self.per_epoch, "step": progress.step}
        row |= {name: total / progress.trials for name, total in progress.sums.items()}
        if self.validates:
            row |= {f"val_{name}": value for name, value in self.validate().items()}
        progress.trials, progress.sums = 0, {}
        progress.log.append(row)
        if self.folder is not None and self.world.rank == 0:
            write_rows(self.folder / "log.jsonl", [row], append=True)
        _log.info("%s: %s", self.name, row)
        whole = progress.step % self.per_epoch == 0
        if whole and self.bound > -math.inf and row["mse"] < self.bound:
            progress.ended, progress.best, self.state.best = "stop_mse", row.get("val_loss"), {}
            return
        if self.watches and progress.best is not None and row["val_loss"] >= progress.best:
            progress.stale += 1
            progress.ended = "patience" if progress.stale >= self.stage.patience else None
        elif self.validates:
            progress.best, progress.stale = row["val_loss"], 0
            if self.watches:
                with self.averaged():
                    self.state.best = {n: p.detach().cpu().clone() for n, p in self.state.parameters.items()}
        if progress.ended is None and progress.step == self.length:
            progress.ended = "length"

    def finish(self) -> None:
        """Leave the weights that the stage is for; a checkpoint of them, or of all that going on needs."""
        if self.state.progress.ended is None:
            self.save()
        self.state.keep(self.path)
        if self.state.progress.ended is not None:
            self.save()

    def save(self) -> None:
        if self.folder is None:
            return
        if self.world.rank == 0:
            self.path = save_checkpoint(self.folder / "checkpoints", self.state.checkpoint(self.settings()))
        if self.world.size > 1:
            dist.barrier()
            self.path = latest_checkpoint(self.folder / "checkpoints")

    def settings(self) -> dict[str, Any]:
        """What must not change between two runs of a stage."""
        trials = {f"{part}_trials": dict(sizes) for part, sizes in self.sizes.items()}
        trained = sorted(self.state.parameters)
        return to_json(self.stage) | trials | {"precision": self.precision, "trainable": trained}

    def rows_of(self, step: int) -> tuple[str, np.ndarray]:
        """Subject and trials of a step, over all processes."""
        epoch, index = divmod(step, self.per_epoch)
        return shuffled(self.sizes["train"], self.stage.batch_size, self.stage.seed, epoch)[index]

    def read_ahead(self, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, list[Batch]]]:
        """Batches with this process's micro-batches of them; the next is read while one is computed."""
        ahead = None
        for what in wanted:
            following = what, self.reader.submit(self.read, *what)
            if ahead:
                yield ahead[0], ahead[1].result()
            ahead = following
        if ahead:
            yield ahead[0], ahead[1].result()

    def read(self, part: str, subject: str, rows: np.ndarray) -> list[Batch]:
        share = np.array_split(rows, self.world.size)[self.world.rank]
        _, _, *tensors = self.source.batch(part, subject, share)
        if self.world.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        count = self.micro_batches(len(share))
        columns = np.array_split(share, count), *(tensor.tensor_split(count) for tensor in tensors)
        return [Batch(subject, *values) for values in zip(*columns, strict=True)]

    def micro_batches(self, share: int) -> int:
        return -(-share // (self.stage.micro_batch or share))

    def averaged(self) -> AbstractContextManager:
        return self.state.averages.applied() if self.state.averages else nullcontext()

    def sum_over_processes(self, tensors: list[Tensor]) -> None:
        if self.world.size > 1:
            for handle in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                handle.wait()

    def check_finite(self, row: dict[str, float], part: str, subject: str, rows: np.ndarray) -> None:
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            values = ", ".join(f"{name}={value:.6g}" for name, value in row.items())
            trials = self.source.describe(part, subject, rows)
            raise FloatingPointError(
                f"{self.name} stopped at step {self.state.progress.step}: {', '.join(wrong)} not finite ({values}) on "
                f"{part} trials of {subject}: {trials}; the last checkpoint is {self.path}"
            )


def _resolved(precision: str, device: torch.device) -> str:
    check_choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _error_bound(stage: TrainingStage, total_variance: float | None, validates: bool) -> float:
    """The training error below which an epoch is the last; -inf without one."""
    bound = -math.inf if stage.stop_mse is None else stage.stop_mse
    if stage.stop_share is None or validates:
        return bound
    if total_variance is None:
        raise BrainDataError(f"expected total_variance, to which stop_share={stage.stop_share} refers, got None")
    return max(bound, stage.stop_share * total_variance)


def _add(sums: dict[str, Any], terms: Mapping[str, Any], weight: float) -> None:
    for name, value in terms.items():
        sums[name] = sums.get(name, 0.0) + value * weight
