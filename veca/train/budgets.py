"""Which budgets a training step uses: nested dropout over the ordered cores.

A budget is drawn from (seed, step) alone. All ranks therefore draw the same one without talking to each other,
and a run that resumes at step n continues the same sequence.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["KINDS", "BudgetSampler"]

KINDS = ("weighted", "uniform", "any", "sandwich", "full")


@dataclass(frozen=True)
class BudgetSampler:
    """Draws the budgets of every step.

    Budgets are the multiples of 8 up to M, and M itself. For M = 64 the weights are 1, 1, 2, 2, 3, 3, 4, 4, as
    in the paper: 5, 5, 10, 10, 15, 15, 20 and 20 % of the steps, 44 cores on average.

    Args:
        num_cores: M, size of the core bank.
        kind: "weighted" as above; "uniform" over the same budgets; "any" number from 1 to M; "sandwich", the
            smallest and the largest in every step; "full", always M.
        per_step: how many different budgets a step adds up, at most one for each; "sandwich" has two, or one
            where there is only one budget, and "full" one, whatever is asked.
        seed: of the sequence.
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
        """Share of the steps of each of `budgets`, were `per_step` 1; "sandwich" has no chance in it."""
        count = len(self.budgets)
        weights = [1 + index // 2 if self.kind == "weighted" else 1 for index in range(count)]
        return tuple(weight / sum(weights) for weight in weights)

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Rows of the bank at which some budget ends, from 0 to M: the rows between two are active together."""
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
