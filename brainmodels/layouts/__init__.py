"""Layouts of real data sets: one module each, with the same three functions.

    detect(root)           does this folder look like one?
    load(root, subject)    a `BrainDataset` of one subject
    describe()             the files it needs, with their shapes

`load` also takes `allocate`, a function (shape, dtype) -> array that gives the memory for values which cannot be mapped
as they lie on the disk, and the options of its layout. A folder of the user's is read, never written to.
"""

from .preparing import prepare
from .registry import LAYOUTS, detect, layout

__all__ = ["LAYOUTS", "detect", "layout", "prepare"]
