"""Files of GLMsingle: betas of single trials and R2, from `.npy` (a pickle), `.npz` or `.hdf5`.

    betas, r2 = read_betas(Path("TYPED_FITHRF_GLMDENOISE_RR.hdf5"))     # (X, Y, Z, trials), (X, Y, Z)
    convert_glmsingle(Path("TYPED_FITHRF_GLMDENOISE_RR.npy"), Path("TYPED_FITHRF_GLMDENOISE_RR.npz"))

GLMsingle is described by Prince et al., "Improving the accuracy of single-trial fMRI response estimates using
GLMsingle", eLife, 2022. A plain `.npy` array of betas is read as well.
"""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from veca.files import read_members, whole_file

from ..data.hdf5 import array_of, open_hdf5
from ..errors import LayoutError, UnsafePickleError
from ._files import read_array
from ._things_eeg2 import npy_header, read_pickle

__all__ = ["BETAS", "R2", "convert_glmsingle", "of_glmsingle", "read_betas"]

_log = logging.getLogger(__name__)
BETAS, R2 = "betasmd", "R2"
_NAME = re.compile(r"TYPE[A-D]_[A-Z]+")


def of_glmsingle(path: Path) -> bool:
    """Whether a file has one of GLMsingle's own names, such as TYPEB_FITHRF.npy."""
    return _NAME.search(path.name) is not None


def read_betas(path: Path, allow_pickle: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Betas with trials on the last axis, and the variance that the model explains, in percent, or None.

    Args:
        path: File ending in .npy, .npz, .hdf5 or .h5.
        allow_pickle: Whether to open a pickled `.npy`, from which only arrays, strings and numbers are built.

    Raises:
        UnsafePickleError: The file is a pickle and `allow_pickle` is False, or the pickle asks for more.
        LayoutError: The file is damaged, or has no betas.
    """
    if path.suffix in (".hdf5", ".h5"):
        with open_hdf5(path, BETAS) as file:
            ratio = array_of(file, R2)[()] if R2 in file and array_of(file, R2).shape else None
            return _numbers(array_of(file, BETAS)[()], path), ratio
    if path.suffix == ".npz":
        content: dict[str, Any] = read_members(path, (BETAS, R2), LayoutError)
    else:
        with path.open("rb") as file:
            pickled = npy_header(file, path)[2].hasobject
        content = _unpickled(path, allow_pickle) if pickled else {BETAS: read_array(path)}
    if BETAS not in content:
        raise LayoutError(f"expected a key {BETAS!r} in {path}, got {', '.join(map(str, content)) or 'none'}")
    ratio = content.get(R2)
    return _numbers(np.asarray(content[BETAS]), path), None if ratio is None else np.asarray(ratio)


def convert_glmsingle(path: Path, out: Path) -> Path:
    """Write the arrays of a pickled file as `.npz`, which opens without running code.

    What is no array of numbers, such as lists of regressors of runs of different lengths, is left out and named in the
    log.

    Args:
        path: File of GLMsingle ending in .npy.
        out: New file ending in .npz, in an existing folder.

    Returns:
        `out`.

    Raises:
        LayoutError: `out` exists or does not end in .npz, or the file has no betas.
        UnsafePickleError: The pickle asks for more than arrays, strings and numbers.
    """
    if out.suffix != ".npz" or out.exists():
        raise LayoutError(f"expected a new file ending in .npz, got {out}{' which exists' if out.exists() else ''}")
    content = read_pickle(path, allow_pickle=True)
    arrays: dict[str, Any] = {key: array for key, value in content.items() if (array := _array(value)) is not None}
    if BETAS not in arrays:
        raise LayoutError(f"expected numbers under {BETAS!r} in {path}, got {', '.join(arrays) or 'no numbers'}")
    left_out = [str(key) for key in content if key not in arrays]
    if left_out:
        _log.warning("%s of %s are no arrays of numbers and were left out", ", ".join(left_out), path)
    with whole_file(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return out


def _unpickled(path: Path, allow_pickle: bool) -> dict[str, Any]:
    if not allow_pickle:
        raise UnsafePickleError(
            f"expected arrays in {path}, got a pickle, which can run code when it is opened; convert it with: "
            f"veca brain convert --file {path} --out {path.with_suffix('.npz')}, or pass allow_pickle=true"
        )
    return read_pickle(path, allow_pickle=True)


def _numbers(betas: np.ndarray, path: Path) -> np.ndarray:
    if betas.dtype.kind not in "fiu":
        raise LayoutError(f"expected numbers in {BETAS} of {path}, got {betas.dtype}")
    return betas


def _array(value: Any) -> np.ndarray | None:
    """The value as an array of numbers or text, or None."""
    try:
        array = np.asarray(value)
    except ValueError:  # a list of arrays of different shapes
        return None
    return None if array.dtype.hasobject else array
