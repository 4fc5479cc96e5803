"""Schedules of the learning rate and the image size. They are functions of the step, so nothing has to be saved."""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["ResolutionSchedule", "warmup_cosine"]


def warmup_cosine(step: int, steps: int, warmup_steps: int, lr_max: float, lr_min: float) -> float:
    """Learning rate that grows linearly from the minimum to the maximum, then falls back by half a cosine.

    Args:
        step: number of the step, from 0 to steps - 1.
        steps: number of steps of the run.
        warmup_steps: step at which the maximum is reached, 0 to steps.
        lr_max, lr_min: largest and smallest learning rate.

    Raises:
        ValueError: `warmup_steps` out of range.
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
        phases: tuples of first step, sizes in pixels and their probabilities. First steps ascend from 0.
        seed: seed of the sequence.

    Raises:
        ValueError: first steps that do not ascend from 0, or probabilities that do not sum to 1.
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
        """Side of the images of a step, in pixels.

        Args:
            step: number of the optimiser step, from 0.
        """
        _, sizes, probabilities = next(phase for phase in reversed(self.phases) if step >= phase[0])
        # another stream than the budgets', with which small images would always get the same budgets
        rng = np.random.default_rng((self.seed, step, 1))
        return int(rng.choice(sizes, p=probabilities))
