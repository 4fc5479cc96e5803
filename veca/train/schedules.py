"""Learning rates and image sizes as functions of the step, which a checkpoint need not save."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

__all__ = ["SCHEDULES", "ResolutionSchedule", "lr_factor", "plateau_factor", "warmup_cosine"]

SCHEDULES = ("constant", "cosine", "one_cycle")


def lr_factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """Return the share of the largest learning rate at a step.

    Args:
        schedule: "constant", "cosine" for half a cosine that ends near 0, or "one_cycle" for torch's `OneCycleLR`.
        step: Number of the step, from 0 to steps - 1.
        steps: Length of the run.
        warmup: Number of steps in which the rate rises linearly, as a factor of the schedule.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / steps)) / 2
    return rise * _one_cycle(steps)[step] if schedule == "one_cycle" else rise


def plateau_factor(losses: Iterable[float], patience: int = 5, cooldown: int = 2, factor: float = 0.1) -> float:
    """Return the share of the largest learning rate after some validations, as torch's `ReduceLROnPlateau` has it.

    Args:
        losses: Validation losses so far, the first one first.
        patience: Number of validations without a better loss that are accepted; the next one lowers the rate.
        cooldown: Number of validations after that which are not counted.
        factor: Share of the rate that is left each time.
    """
    best, stale, resting, share = math.inf, 0, 0, 1.0
    for loss in losses:
        better = loss < best * (1 - 1e-4)
        best, stale = (loss, 0) if better else (best, stale + 1)
        if resting:
            resting, stale = resting - 1, 0
        if stale > patience:
            share, resting, stale = share * factor, cooldown, 0
    return share


@lru_cache(4)
def _one_cycle(steps: int) -> list[float]:
    """Learning rates of torch's `OneCycleLR` with a maximum of 1."""
    optimizer = torch.optim.SGD([torch.zeros(())], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    factors = []
    for _ in range(steps):
        factors += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return factors


def warmup_cosine(step: int, steps: int, warmup_steps: int, lr_max: float, lr_min: float) -> float:
    """Return a learning rate that rises linearly and then falls along half a cosine back to the minimum.

    Args:
        step: Number of the step, from 0 to steps - 1.
        steps: Length of the run.
        warmup_steps: Step at which the maximum is reached, 0 to steps.
        lr_max, lr_min: Largest and smallest learning rate.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"expected warmup_steps from 0 to {steps}, the steps, got {warmup_steps}")
    if step < warmup_steps:
        return lr_min + (lr_max - lr_min) * step / warmup_steps
    share = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return lr_min + (lr_max - lr_min) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


@dataclass(frozen=True)
class ResolutionSchedule:
    """One image size for every step. It is drawn from (seed, step), so it is the same on all ranks.

    Args:
        phases: (first step, sizes in pixels, their probabilities) of each phase, by first step, starting with 0.
        seed: Seed of the sequence of sizes.
    """

    phases: tuple[tuple[int, tuple[int, ...], tuple[float, ...]], ...]
    seed: int = 0

    def __post_init__(self):
        starts = [start for start, _, _ in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"expected phases that start with step 0 and ascend, got starts {starts}")
        for start, sizes, probabilities in self.phases:
            if len(sizes) != len(probabilities) or not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6):
                raise ValueError(
                    f"expected a probability a size, with sum 1, from step {start}, got {sizes} and {probabilities}"
                )

    def __call__(self, step: int) -> int:
        """Return the side of the images of a step, in pixels.

        Args:
            step: Number of the step, from 0.
        """
        _, sizes, probabilities = next(phase for phase in reversed(self.phases) if step >= phase[0])
        # not the stream of the budgets, with which small images would always meet the same budgets
        rng = np.random.default_rng((self.seed, step, 1))
        return int(rng.choice(sizes, p=probabilities))
