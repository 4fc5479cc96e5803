"""The training loop of the backbone, for every task, on one process or many.

    checkpoint = train(task, source, recipe, "out/run")

A run writes `log.jsonl`, with one row a logged step, and checkpoints such as `checkpoints/step-00000500`. Started again
with the same recipe, it goes on from the last checkpoint and ends with the same bits as a run that never stopped. For
this, the order of the images, budgets, sizes, augmentation and the state of torch's generators are functions of the
seed and the step.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..files import alone_in
from ..model.backbone import VECA
from .batches import Source, StepBatches, batch_indices, draw_seed
from .budgets import BudgetSampler
from .checkpoints import Checkpoint, last_whole_checkpoint, save_together
from .engine import Averages, Engine, Pass, RowLog, changes, check_finite, read_rows
from .optimizers import ElasticOptimizer
from .parallel import Spread, World, join_world, whole
from .recipes import Recipe
from .schedules import warmup_cosine
from .signals import ignore_stop_signals

__all__ = ["train"]

_log = logging.getLogger(__name__)
Task = TypeVar("Task", bound=nn.Module)
_FREE = {"log_every", "save_every", "workers"}  # fields of the recipe that may change when a run resumes


def train(
    task: Task,
    source: Source,
    recipe: Recipe,
    out: str | Path,
    device: str | torch.device | None = None,
    validate: Callable[[Task], dict[str, Any]] | None = None,
    stop_at: int | None = None,
) -> Path:
    """Train a task, or resume its training.

    The loss is the sum of the terms in the dict that `task(batch, num_cores)` returns. If `task.backbone` is a VECA,
    its budget changes from step to step. A model without cores is given num_cores=None. On a CPU denormal numbers are
    flushed to zero, and on a GPU fp32 products may use TF32. The global generators of torch are seeded in every step.
    SIGTERM, SIGUSR1 and Ctrl-C end the run after the current step, with a checkpoint; see `veca.train.signals`.

    Args:
        task: A `SupervisedTask`, a `DistillationTask`, or another module of that form. It is trained in place.
        source: Source of the images, see `veca.train.batches`.
        recipe: Settings of the training.
        out: Folder of the run. If it has a checkpoint the run goes on from there, given the same recipe.
        device: Device to train on; None takes a GPU if there is one.
        validate: Function of the task that is called with every checkpoint. What it returns joins the log.
        stop_at: Number of steps after which this run ends with a checkpoint, to be resumed. None runs all.

    Returns:
        The folder of the last checkpoint.

    Raises:
        BlockingIOError: Another program trains in `out`.
        FloatingPointError: A term or the gradient is not finite. The message names step, terms, budgets and images.
        SystemExit: A signal ended the run; the code is 128 + the signal. After Ctrl-C it is a KeyboardInterrupt.
        ValueError: `out` holds a run with another recipe, or its checkpoints are damaged.
    """
    out = Path(out)
    with join_world(device) as world, alone_in(out) if world.rank == 0 else nullcontext():
        run = _Run(task, source, recipe, out, world)
        with run.engine.stops:
            return run.run(min(stop_at or recipe.steps, recipe.steps), validate)


class _Run:
    """State of a run between two steps."""

    def __init__(self, task: nn.Module, source: Source, recipe: Recipe, out: Path, world: World):
        self.task, self.source, self.recipe, self.out, self.world = task, source, recipe, out, world
        if world.device.type == "cpu":
            torch.set_flush_denormal(True)
        else:
            torch.set_float32_matmul_precision("high")
        task.to(world.device).train()
        backbone: Any = task.backbone
        if recipe.grad_checkpointing:
            backbone.set_grad_checkpointing(True)
        self.sampler = None
        if isinstance(backbone, VECA):
            self.sampler = BudgetSampler(backbone.num_cores, recipe.budgets, recipe.budgets_per_step, recipe.seed)
        self.path, saved = last_whole_checkpoint(out / "checkpoints") or (None, None)
        if saved:
            if changed := changes(saved.recipe, _json(recipe), _FREE):
                raise ValueError(f"expected the recipe of the run in {out} ({changed}); give another folder")
            task.load_state_dict(saved.weights)
        self.engine = self.new_engine()
        if saved:
            self.engine.restore(saved.step, saved.optimizer, saved.ema)
        log, step = out / "log.jsonl", self.engine.step
        rows = [row for row in read_rows(log) if row["step"] < step]  # later ones are of steps that are done again
        self.validated = not step or any("validation" in row for row in rows if row["step"] == step - 1)
        self.log = RowLog(log if world.rank == 0 else None, rows)

    def new_engine(self) -> Engine:
        task, recipe = self.task, self.recipe
        spread = Spread(task, self.world, recipe.parallel)  # may replace parameters, so it comes first
        edges = self.sampler.edges if self.sampler else None
        optimizer = ElasticOptimizer(task, recipe.optimizer, recipe.lr_max, recipe.weight_decay, recipe.decay, edges)
        averages = None
        if recipe.ema_decay is not None:
            averages = Averages(dict(task.named_parameters()), recipe.ema_decay, ramp=False)
        return Engine(optimizer, spread, recipe.precision, recipe.clip_norm, averages, clip_epsilon=0.0)

    def run(self, stop: int, validate: Callable[[Any], dict[str, Any]] | None) -> Path:
        recipe, start = self.recipe, self.engine.step
        if validate and self.due(start) and not self.validated:  # the run was ended before it could
            self.validate(validate)
        loader = iter(self.loader(start, stop))
        steps = range(start, stop)
        for step in tqdm(steps, initial=start, total=recipe.steps, disable=self.world.rank > 0, unit="step"):
            started = time.perf_counter()
            row = self.advance(step, loader)
            last, stopping = step + 1 == stop, self.engine.stopping
            if step % recipe.log_every == 0 or last:
                self.log.add(row | {"images_per_s": recipe.batch_size / (time.perf_counter() - started)})
            if last or stopping or self.due(step + 1):
                self.save()
                if validate and not stopping:
                    self.validate(validate)
                if self.engine.stopping:
                    self.engine.leave(self.path)
        assert self.path is not None  # the last step saves
        return self.path

    def due(self, step: int) -> bool:
        """Whether a run that nothing ends writes a checkpoint after so many steps."""
        return step == self.recipe.steps or step % self.recipe.save_every == 0

    def validate(self, validate: Callable[[nn.Module], dict[str, Any]]) -> None:
        self.log.add({"step": self.engine.step - 1, "validation": validate(self.task)})
        self.task.train()

    def loader(self, start: int, stop: int) -> DataLoader:
        """Return the micro-batches of this process from one step to another."""
        recipe, world = self.recipe, self.world
        batches = StepBatches(self.source, recipe.batch_size, recipe.accumulate, recipe.seed, world.rank, world.size)
        order = range(start * recipe.accumulate, stop * recipe.accumulate)
        options = {"num_workers": recipe.workers, "pin_memory": world.device.type == "cuda"}
        options["worker_init_fn"] = ignore_stop_signals
        return DataLoader(batches, batch_size=None, sampler=order, **options)

    def advance(self, step: int, loader: Iterator[dict[str, Tensor]]) -> dict[str, Any]:
        """Take one step and return its row of the log."""
        recipe = self.recipe
        torch.manual_seed(draw_seed(recipe.seed, step, self.world.rank, 3))
        budgets = self.sampler(step) if self.sampler else (None,)
        lr = warmup_cosine(step, recipe.steps, recipe.warmup_steps, recipe.lr_max, recipe.lr_min)
        terms, norms = self.engine.backward(self.passes(budgets, loader))
        row = {"loss": sum(terms.values()), **terms, **norms}
        self.check_finite(step, row, budgets)
        self.engine.update(lr, num_cores=budgets[-1])
        return {"step": step, **row, "lr": lr, "budgets": list(budgets), "size": self.size}

    def passes(self, budgets: tuple, loader: Iterator[dict[str, Tensor]]) -> Iterator[Pass]:
        """Loss and terms of every micro-batch under every budget, as shares of their mean. Notes the image size."""
        recipe, spread = self.recipe, self.engine.spread
        count = recipe.accumulate * len(budgets)
        for micro in range(recipe.accumulate):
            batch = {name: x.to(self.world.device, non_blocking=True) for name, x in next(loader).items()}
            self.size = list(batch["image"].shape[2:])
            for index, budget in enumerate(budgets):
                last = micro == recipe.accumulate - 1 and index == len(budgets) - 1
                with nullcontext() if last else spread.accumulating():
                    with self.engine.autocast():
                        terms = spread.forward(batch, budget)
                    loss: Any = sum(terms.values())
                    yield loss / count, {name: x.detach() / count for name, x in terms.items()}

    def check_finite(self, step: int, row: dict[str, float], budgets: tuple) -> None:
        def inputs() -> str:
            self.log.add({"step": step} | {name: x if math.isfinite(x) else str(x) for name, x in row.items()})
            images = batch_indices(len(self.source), self.recipe.batch_size, step, self.recipe.seed)
            return f"images {images} with budgets {list(budgets)}"

        check_finite(row, f"training stopped at step {step}", inputs, self.path)

    def save(self) -> None:
        """Write a checkpoint. All processes gather what the first one writes."""
        weights = {name: whole(tensor) for name, tensor in self.task.state_dict().items()}
        checkpoint = Checkpoint(self.engine.step, weights, *self.engine.memory(), _json(self.recipe))
        self.path = save_together(self.out / "checkpoints", checkpoint, self.world)
        if self.world.rank == 0:
            _log.info("step %d: %s", self.engine.step, self.path)


def _json(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))
