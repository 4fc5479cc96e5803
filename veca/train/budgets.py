"""The budgets of each training step: nested dropout over the ordered cores (VECA, arXiv 2605.12491).

A budget depends only on (seed, step). So all ranks draw the same one without communication, and a run that resumes at
step n continues the same sequence.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["KINDS", "BudgetSampler"]

KINDS = ("weighted", "uniform", "any", "sandwich", "full")


@dataclass(frozen=True)
class BudgetSampler:
    """Draws the budgets of every step.

    Budgets are the multiples of 8 up to M, and M itself. The weights are those of the paper. For M = 64 they give 44
    cores on average:

        budget               8   16   24   32   40   48   56   64
        weight               1    1    2    2    3    3    4    4
        share of steps, %    5    5   10   10   15   15   20   20

    Args:
        num_cores: M, size of the core bank.
        kind: "weighted" draws as above, "uniform" draws each of these budgets equally often, "any" draws a number from
            1 to M, "sandwich" takes the smallest and the largest in every step, "full" always takes M.
        per_step: number of different budgets in a step, at most the number of budgets; their losses are averaged. It
            has no effect for "sandwich", which has two (one if there is only one budget), and "full", which has one.
        seed: seed of the sequence.

    Raises:
        ValueError: an unknown kind, or a number out of range.
    """

    num_cores: int = 64
    kind: str = "weighted"
    per_step: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"expected kind to be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.num_cores < 1:
            raise ValueError(f"expected num_cores of at least 1, got {self.num_cores}")
        if not 1 <= self.per_step <= len(self.budgets):
            raise ValueError(f"expected per_step from 1 to {len(self.budgets)}, the budgets, got {self.per_step}")

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """Every budget that can be drawn, ascending."""
        if self.kind == "any":
            return tuple(range(1, self.num_cores + 1))
        if self.kind == "full":
            return (self.num_cores,)
        budgets = sorted({*range(8, self.num_cores + 1, 8), self.num_cores})
        return tuple(dict.fromkeys((budgets[0], budgets[-1]))) if self.kind == "sandwich" else tuple(budgets)

    @cached_property
    def probabilities(self) -> tuple[float, ...]:
        """Share of the steps of each of `budgets`, for `per_step` 1. "sandwich" does not draw and ignores them."""
        count = len(self.budgets)
        weights = [1 + index // 2 if self.kind == "weighted" else 1 for index in range(count)]
        return tuple(weight / sum(weights) for weight in weights)

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Rows of the bank at which a budget ends, from 0 to M. The rows between two edges are active together."""
        return (0, *self.budgets)

    def __call__(self, step: int) -> tuple[int, ...]:
        """Budgets of a step, ascending and without repeats.

        Args:
            step: number of the optimiser step, from 0.
        """
        if self.kind == "sandwich":
            return self.budgets
        rng = np.random.default_rng((self.seed, step))
        drawn = rng.choice(self.budgets, self.per_step, replace=False, p=self.probabilities)
        return tuple(sorted(int(budget) for budget in drawn))
