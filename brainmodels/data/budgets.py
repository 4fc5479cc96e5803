"""What the training part of a split costs to record.

budget(trials, first_session(trials, test_ids))  # 680 trials of 671 images from 1 session
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .dataset import Split
from .responses import TrialTable

__all__ = ["Budget", "budget"]


@dataclass(frozen=True)
class Budget:
    """How much data a part of a split costs to record: "15 minutes" says neither trials nor images.

    Attributes:
        trials: recorded.
        images: different ones.
        sessions: from which they come; None where the data set does not tell.
        seed: of the choice of images; None where nothing was drawn.
    """

    trials: int
    images: int
    sessions: int | None
    seed: int | None = None

    def __str__(self) -> str:
        sessions = "unknown sessions" if self.sessions is None else _count(self.sessions, "session")
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{_count(self.trials, 'trial')} of {_count(self.images, 'image')} from {sessions}{seed}"


def budget(
    trials: TrialTable, split: Split, subject: str | None = None, parts: Sequence[str] = ("train", "val")
) -> Budget:
    """What the training of a subject costs, validation images included.

    Args:
        trials: of the subject.
        split: any.
        subject: its id, where the split treats subjects differently.
        parts: which are counted.
    """
    rows = np.concatenate([split.rows(trials, part, subject) for part in parts])
    sessions = np.unique(trials.session[rows])
    return Budget(
        trials=len(rows),
        images=len(np.unique(trials.image_id[rows])),
        sessions=None if -1 in sessions else len(sessions),
        seed=split.params.get("budget_seed"),
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
