"""What the layouts of EEG share."""

from pathlib import Path

import numpy as np

from ...errors import LayoutError
from ._files import blocks

__all__ = ["check_epochs"]


def check_epochs(values: np.ndarray, path: Path, first_trial: int = 0) -> None:
    """Raises a `LayoutError` that names the first NaN or infinite sample of (trials, channels, times)."""
    for rows in blocks(len(values), values[:1].nbytes):
        bad = ~np.isfinite(values[rows])
        if bad.any():
            trial, channel, sample = np.argwhere(bad)[0]
            value = values[rows][trial, channel, sample]
            raise LayoutError(
                f"expected finite values in {path}, got {value} in trial {first_trial + rows.start + trial}, channel "
                f"{channel}, sample {sample}; leave that channel or trial out and save the file again"
            )
