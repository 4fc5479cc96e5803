"""`prepare` reads one subject from a published data set and writes a prepared folder, which opens at once.

    prepare("nsd_native", "/data/nsd", "subj01", "prepared/subj01", rois=["prf-visualrois"])
    dataset = load_prepared("prepared/subj01")

Responses are written while they are read, so they need not fit into memory.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.dataset import BrainDataset
from ..data.prepared import write_prepared
from ..data.summary import SubjectSummary
from ..errors import BrainDataError, LayoutError, near_names
from ._recipes import WORDS, needed_options, with_recipe
from .registry import layout as find_layout

__all__ = ["prepare"]


def prepare(
    layout: str,
    root: str | Path,
    subject: str,
    out: str | Path,
    *,
    image_size: int | None = 256,
    allow_duplicates: bool = False,
    progress: bool = False,
    **options: Any,
) -> SubjectSummary:
    """Read a subject from the files of a data set and write it to a new folder.

    Args:
        layout: Name of the layout of the files, see `brainmodels.layouts`.
        root: Folder of the data set, which is never written to.
        subject: Name or number of the subject in this layout.
        out: Path of the folder to create, outside of `root`.
        image_size: Side of the stored pictures in pixels. None stores no pictures.
        allow_duplicates: Whether to go on where equal pictures with different ids are in two parts of a split.
        progress: Whether to show progress bars.
        options: Options of the layout, see its `load`. Layouts that take `epochs` also take the words of a recipe, such
            as tmin=-0.2, tmax=0.8, sfreq=100, highpass=0.1, lowpass=40, baseline="-0.2,0" and reference="average", and
            codes of events as text, such as event_id="onset:100".

    Returns:
        What the folder holds, in numbers.

    Raises:
        LayoutError: `out` exists or lies in `root`, or files are missing or damaged.
        LeakageError: A test picture is also a train picture, under another id.
        BrainDataError: The layout loads more than one subject, has no such option, or `image_size` is below 1.
    """
    if Path(out).resolve().is_relative_to(Path(root).resolve()):
        raise LayoutError(f"expected a folder outside of {root}, which is only read, got {out}; choose another")
    module, subject = find_layout(layout), str(subject)
    known = [name for name in inspect.signature(module.load).parameters if name not in ("root", "subject", "allocate")]
    words = known + ([name for name in WORDS if name not in known] if "epochs" in known else [])
    for name in options:
        if name not in words:
            listed = ", ".join(words) or "none"
            raise BrainDataError(f"expected options of {layout!r} ({listed}), got {name!r}{near_names(name, words)}")
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    command = f"prepare({layout!r}, {str(root)!r}, {subject!r}, {str(out)!r}, image_size={image_size}{given})"
    options = with_recipe(module, options)
    needed_options(module, options, layout)

    def load(allocate: Callable) -> tuple[BrainDataset, str]:
        dataset = module.load(Path(root), subject, allocate=allocate, **options)
        if len(dataset.subjects) != 1:
            raise BrainDataError(f"expected layout {layout!r} to load one subject, got {', '.join(dataset.subjects)}")
        return dataset, next(iter(dataset.subjects))

    return write_prepared(load, out, command, image_size, progress, allow_duplicates)
