"""What `veca brain convert` does: a pickled file becomes a `.npz` file, which opens without running code.

convert_file(Path("generic_model.pkl"), Path("flame.npz"))
"""

import zipfile
from pathlib import Path

from ..errors import LayoutError
from ..heads.files import convert_head
from ..heads.restricted import first_known_name
from ..layouts._glmsingle import convert_glmsingle, of_glmsingle
from ..layouts.things_eeg2 import convert_pickle

__all__ = ["convert_file"]

_HEAD = frozenset({"v_template", "shapedirs", "posedirs", "kintree_table"})
_RECORDING = frozenset({"preprocessed_eeg_data", "raw_eeg_data", "ch_names", "ch_types"})


def convert_file(file: Path, out: Path) -> Path:
    """Write the arrays of a pickled file as `.npz`.

    Files with the names of GLMsingle, such as TYPEB_FITHRF.npy, are betas. Files with the keys of FLAME are head
    models. All others are read as recordings of THINGS-EEG2. The keys are found without building anything that the file
    describes.

    Args:
        file: Pickled file.
        out: New file ending in .npz, in an existing folder.

    Returns:
        `out`.

    Raises:
        LayoutError: `out` exists or does not end in .npz; the file is damaged, or has other content than expected.
        AxisError: An array of a head model has another shape than expected.
        UnsafePickleError: The pickle asks for more than arrays, strings and numbers.
        OSError: There is no such file.
    """
    if zipfile.is_zipfile(file):
        raise LayoutError(f"expected a pickled file, got the archive of arrays {file}, which is opened as it is")
    if of_glmsingle(file):
        return convert_glmsingle(file, out)
    key = first_known_name(file, _HEAD | _RECORDING)
    return convert_head(file, out) if key in _HEAD else convert_pickle(file, out)
