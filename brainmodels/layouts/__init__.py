"""Readers of published data sets, and of any data stored as flat arrays.

    prepare("nsd_native", "/data/nsd", "subj01", "prepared/subj01")  # writes a folder that opens at once
    dataset = layout("nsd_native").load("/data/nsd", "subj01")       # reads without writing

Each layout is a module with the same three functions:

    detect(root)           whether a folder looks like this layout
    load(root, subject)    a `BrainDataset` of one subject
    describe()             the files that are needed, with their shapes

`load` also takes the options of its layout, and `allocate`. This is a function (shape, dtype) -> array, which gives the
memory for values that cannot be memory-mapped. The folder of a data set is read and never written to.
"""

from .preparing import prepare
from .registry import LAYOUTS, detect, layout

__all__ = ["LAYOUTS", "detect", "layout", "prepare"]
