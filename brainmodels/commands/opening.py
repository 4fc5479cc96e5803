"""A data set from a word of the command line."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..data.dataset import BrainDataset
from ..data.prepared import load_prepared
from ..errors import BrainDataError
from ..simulated import PRESETS, simulate

__all__ = ["open_data"]


def open_data(data: str, seed: int = 0, subjects: Sequence[str] = ()) -> BrainDataset:
    """The data set that a word or a folder stands for.

    Args:
        data: "simulated", "simulated:PRESET", or the folder of a prepared subject.
        seed: of a simulation.
        subjects: that will be asked for; a simulation makes as many as they need, one at least.

    Raises:
        BrainDataError: neither.
    """
    kind, _, preset = data.partition(":")
    if kind == "simulated":
        if preset and preset not in PRESETS:
            raise BrainDataError(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}")
        numbers = [int(name[3:]) for name in subjects if re.fullmatch(r"sim\d\d", name)]
        return simulate(preset or "small", seed=seed, n_subjects=max([1, *numbers]))
    if not Path(data).is_dir():
        raise BrainDataError(
            f"expected simulated, simulated:PRESET or the folder of a prepared subject, got {data!r}; "
            "`veca brain prepare` makes such a folder"
        )
    return load_prepared(data)
