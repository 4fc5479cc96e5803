"""The training loop for every task, on one process or many.

    checkpoint = train(task, source, recipe, "out/run")

A run writes `log.jsonl`, with one row for each logged step, and folders such as `checkpoints/step-00000500`. Started
again with the same recipe, it goes on from the last checkpoint and ends bit-equal to a run that never stopped. Order of
the images, budgets, sizes, augmentation and the state of torch's generators all follow from the seed and the step.
"""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..model.backbone import VECA
from .batches import Source, StepBatches, batch_indices, draw_seed
from .budgets import BudgetSampler
from .checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from .optimizers import ElasticOptimizer
from .parallel import Spread, World, join_world, total_norm
from .recipes import Recipe
from .schedules import warmup_cosine

__all__ = ["train"]

_log = logging.getLogger(__name__)
_FREE = {"log_every", "save_every", "workers"}  # fields of the recipe that may change when a run resumes


def train(
    task: nn.Module,
    source: Source,
    recipe: Recipe,
    out: str | Path,
    device: str | torch.device | None = None,
    validate: Callable[[nn.Module], dict[str, Any]] | None = None,
    stop_at: int | None = None,
) -> Path:
    """Train a task. A run that was stopped goes on.

    `task(batch, num_cores)` returns a dict of loss terms, and the loss is their sum. `task.backbone` is a VECA, whose
    budget changes from step to step, or a model without cores, which gets num_cores=None. On a CPU denormal numbers
    are flushed to zero. On a GPU fp32 products may use TF32. Every step seeds torch's global generators.

    Args:
        task: a `SupervisedTask`, a `DistillationTask`, or another module of that form. It is trained in place.
        source: source of the images; see `veca.train.batches`.
        recipe: recipe of the training.
        out: folder of the run. If it has a checkpoint of the same recipe, the run goes on from there.
        device: device to train on; None takes a GPU if there is one.
        validate: function of the task that is called with every checkpoint and at the end. Its result joins the log.
        stop_at: number of steps of the recipe after which to stop with a checkpoint, to go on later; None runs all.

    Returns:
        The folder of the last checkpoint.

    Raises:
        FloatingPointError: a term of the loss or the gradient is not finite. The message names step, terms, budgets
            and images.
        ValueError: `out` has a run with another recipe.
    """
    with join_world(device) as world:
        run = _Run(task, source, recipe, Path(out), world)
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
        if recipe.grad_checkpointing:
            task.backbone.set_grad_checkpointing(True)
        cores = task.backbone.num_cores if isinstance(task.backbone, VECA) else None
        self.sampler = cores and BudgetSampler(cores, recipe.budgets, recipe.budgets_per_step, recipe.seed)

        path = latest_checkpoint(out / "checkpoints")
        saved = load_checkpoint(path) if path else None
        if saved:
            _check_recipe(saved.recipe, recipe, out)
            task.load_state_dict(saved.weights)
        self.step = saved.step if saved else 0
        self.path = path
        self.spread = Spread(task, world, recipe.parallel)
        self.optimizer = ElasticOptimizer(
            task,
            recipe.optimizer,
            recipe.lr_max,
            recipe.weight_decay,
            recipe.decay,
            self.sampler.edges if self.sampler else None,
        )
        self.ema: dict[str, Tensor] = {}
        if recipe.ema_decay is not None:
            self.ema = {name: p.detach().clone() for name, p in task.named_parameters()}
        if saved:
            self.optimizer.load_state_dict(saved.optimizer)
            self.ema = {name: _like(saved.ema[name], tensor) for name, tensor in self.ema.items()}
        self.log = _Log(out / "log.jsonl", self.step) if world.rank == 0 else None

    def run(self, stop: int, validate: Callable[[nn.Module], dict[str, Any]] | None) -> Path:
        recipe, world = self.recipe, self.world
        order = (recipe.batch_size, recipe.accumulate, recipe.seed, world.rank, world.size)
        micro_steps = range(self.step * recipe.accumulate, stop * recipe.accumulate)
        loader = iter(
            DataLoader(
                StepBatches(self.source, *order),
                batch_size=None,
                sampler=micro_steps,
                num_workers=recipe.workers,
                pin_memory=world.device.type == "cuda",
            )
        )
        steps = range(self.step, stop)
        for step in tqdm(steps, initial=self.step, total=recipe.steps, disable=world.rank > 0, unit="step"):
            started = time.perf_counter()
            row = self.advance(step, loader)
            self.step = step + 1
            last = self.step == stop
            if self.log and (step % recipe.log_every == 0 or last):
                self.log.add(row | {"images_per_s": recipe.batch_size / (time.perf_counter() - started)})
            if last or self.step % recipe.save_every == 0:
                self.save()
                if validate:
                    scores = validate(self.task)
                    self.task.train()
                    if self.log:
                        self.log.add({"step": step, "validation": scores})
        return self.path

    def advance(self, step: int, loader: Iterator[dict[str, Tensor]]) -> dict[str, Any]:
        """Run one step of the optimiser. Returns its row of the log."""
        recipe = self.recipe
        torch.manual_seed(draw_seed(recipe.seed, step, self.world.rank, 3))
        budgets = self.sampler(step) if self.sampler else (None,)
        lr = warmup_cosine(step, recipe.steps, recipe.warmup_steps, recipe.lr_max, recipe.lr_min)
        terms, size = self.backward(budgets, loader)
        self.spread.finish_gradients()
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        norm = total_norm(gradients)
        row = {"step": step, "loss": sum(terms.values()), **terms, "gradient_norm": norm.item()}
        self.check_finite(step, row, budgets)
        if recipe.clip_norm is not None and norm > recipe.clip_norm:
            for gradient in gradients:
                gradient.mul_(recipe.clip_norm / norm)
        self.optimizer.set_lr(lr)
        self.optimizer.step(budgets[-1])
        self.optimizer.zero_grad()
        if self.ema:
            for name, parameter in self.task.named_parameters():
                self.ema[name].lerp_(parameter.detach(), 1 - recipe.ema_decay)
        return row | {"lr": lr, "budgets": list(budgets), "size": size}

    def backward(self, budgets: tuple, loader: Iterator[dict[str, Tensor]]) -> tuple[dict[str, float], list[int]]:
        """Compute the gradients of a step.

        Returns:
            The mean of each loss term over micro-batches, budgets and processes, and the image size.
        """
        recipe, device = self.recipe, self.world.device
        passes = recipe.accumulate * len(budgets)
        sums: dict[str, Tensor] = {}
        for micro in range(recipe.accumulate):
            batch = {name: value.to(device, non_blocking=True) for name, value in next(loader).items()}
            for index, budget in enumerate(budgets):
                last = micro == recipe.accumulate - 1 and index == len(budgets) - 1
                with nullcontext() if last else self.spread.accumulating():
                    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                        terms = self.spread.forward(batch, budget)
                    (sum(terms.values()) / passes).backward()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0) + term.detach() / passes
        means = self.world.mean(torch.stack(list(sums.values()))).tolist()
        return dict(zip(sums, means, strict=True)), list(batch["image"].shape[2:])

    def check_finite(self, step: int, row: dict[str, Any], budgets: tuple) -> None:
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if not wrong:
            return
        images = batch_indices(len(self.source), self.recipe.batch_size, step, self.recipe.seed)
        if self.log:
            self.log.add({name: str(value) if name in wrong else value for name, value in row.items()})
        values = ", ".join(f"{name}={value}" for name, value in row.items() if name != "step")
        raise FloatingPointError(
            f"training stopped at step {step}: {', '.join(wrong)} not finite ({values}; budgets {list(budgets)}; "
            f"images {images}); the last checkpoint is {self.path}"
        )

    def save(self) -> None:
        """Write a checkpoint. All processes gather the tensors, and the first writes them."""
        weights = {name: _whole(tensor) for name, tensor in self.task.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        ema = {name: _whole(tensor) for name, tensor in self.ema.items()}
        if self.world.rank == 0:
            recipe = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
            checkpoint = Checkpoint(self.step, weights, optimizer, ema, recipe)
            self.path = save_checkpoint(self.out / "checkpoints", checkpoint)
            _log.info("step %d: %s", self.step, self.path)
        if self.world.size > 1:
            torch.distributed.barrier()
            self.path = latest_checkpoint(self.out / "checkpoints")


class _Log:
    """A file of JSON rows. Rows from `step` on are dropped first, because a run may have gone beyond its checkpoint."""

    def __init__(self, path: Path, step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] < step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, path)

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _check_recipe(saved: dict[str, Any], recipe: Recipe, out: Path) -> None:
    asked = json.loads(json.dumps(dataclasses.asdict(recipe)))
    changed = [name for name in {*saved, *asked} - _FREE if saved.get(name) != asked.get(name)]
    if changed:
        values = ", ".join(f"{name}={saved.get(name)!r}, not {asked.get(name)!r}" for name in sorted(changed))
        raise ValueError(f"expected the recipe of the run in {out} ({values}); give another folder to start anew")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, moved to the device of another and sharded in the same way."""
    value = value.to(reference.device)
    if isinstance(reference, DTensor):
        return distribute_tensor(value, reference.device_mesh, reference.placements)
    return value
