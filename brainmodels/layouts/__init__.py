"""Layouts of real data sets: one module each, with the same three functions.

    detect(root)           does this folder look like one?
    load(root, subject)    a `BrainDataset` of one subject
    describe()             the files it needs, with their shapes

`load` also takes `allocate`, a function (shape, dtype) -> array that gives the memory for values which cannot be mapped
as they lie on the disk, and the options of its layout. A folder of the user's is read, never written to.
"""

import importlib
from pathlib import Path
from types import ModuleType

from ..errors import LayoutError, near_names

__all__ = ["LAYOUTS", "detect", "layout"]

LAYOUTS = (
    "nsd_native",
    "nsd_prepared",
    "mindeye2",
    "mindeye1",
    "algonauts2023",
    "bold5000",
    "god",
    "things_fmri",
    "things_eeg2",
    "eeg3d",
    "raw_eeg",
    "flat",
)


def layout(name: str) -> ModuleType:
    """The module of a layout by name."""
    if name not in LAYOUTS:
        raise LayoutError(f"expected a layout of {', '.join(LAYOUTS)}, got {name!r}{near_names(name, LAYOUTS)}")
    return importlib.import_module(f".{name}", __name__)


def detect(root: str | Path) -> list[str]:
    """Names of the layouts that a folder looks like."""
    return [name for name in LAYOUTS if layout(name).detect(Path(root))]
