"""From the files of a published data set to a prepared folder that opens at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.dataset import BrainDataset
from ..data.prepared import write_prepared
from ..data.summary import PreparedSummary
from ..errors import BrainDataError, LayoutError
from .registry import layout as find_layout

__all__ = ["prepare"]


def prepare(
    layout: str,
    root: str | Path,
    subject: str,
    out: str | Path,
    *,
    image_size: int | None = 256,
    progress: bool = False,
    **options: Any,
) -> PreparedSummary:
    """Read a subject from the files of a data set and write it to a folder of its own.

    Args:
        layout: of the files, see `brainmodels.layouts`.
        root: folder of the data set; it is never written to.
        subject: as the layout names it.
        out: folder to be made; one that exists, or lies in `root`, is a `LayoutError`.
        image_size: side of the stored pictures in pixels; None stores none.
        progress: shows bars.
        options: of the layout.
    """
    if Path(out).resolve().is_relative_to(Path(root).resolve()):
        raise LayoutError(f"expected a folder outside of {root}, which is only read, got {out}; choose another")
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    command = f"prepare({layout!r}, {str(root)!r}, {subject!r}, {str(out)!r}, image_size={image_size}{given})"

    def load(allocate: Callable) -> tuple[BrainDataset, str]:
        dataset = find_layout(layout).load(Path(root), subject, allocate=allocate, **options)
        if len(dataset.subjects) != 1:
            raise BrainDataError(f"expected layout {layout!r} to load one subject, got {', '.join(dataset.subjects)}")
        return dataset, next(iter(dataset.subjects))

    return write_prepared(load, out, command, image_size, progress)
