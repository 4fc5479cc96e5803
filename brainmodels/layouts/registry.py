"""The layouts by name, and which of them a folder looks like."""

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
    "eeg_bids",
    "bids",
    "flat",
)


def layout(name: str) -> ModuleType:
    """The module of the layout with this name. An unknown name is a `LayoutError`."""
    if name not in LAYOUTS:
        raise LayoutError(f"expected a layout of {', '.join(LAYOUTS)}, got {name!r}{near_names(name, LAYOUTS)}")
    return importlib.import_module(f".{name}", __package__)


def detect(root: str | Path) -> list[str]:
    """Names of all layouts that a folder looks like."""
    return [name for name in LAYOUTS if layout(name).detect(Path(root))]
