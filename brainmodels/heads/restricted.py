"""Reading the pickled files of head models without running what they hold.

    arrays = read_head_pickle("generic_model.pkl")   # {"v_template": (5023, 3), ...}

A pickle names the functions and classes that it is built with, and an ordinary reader imports them. This one looks
each name up in a short table and never imports. Stubs of this file stand for the classes of chumpy and scipy, which
need not be installed.

| in the file | becomes |
|---|---|
| arrays and numbers of NumPy | themselves |
| `chumpy.ch.Ch` | its array |
| `csc_matrix` of scipy | a dense array |
| sets, strings, built-in values | themselves |
| any other name, or an array of Python objects | `UnsafePickleError` or `LayoutError` |
"""

import pickle
import pickletools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar

from ..errors import LayoutError, UnsafePickleError

__all__ = ["first_known_name", "read_head_pickle"]

_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    TypeError,
    ValueError,
)


class _Chumpy:
    """Stands for `chumpy.ch.Ch`, and keeps its array."""

    array: np.ndarray

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or "x" not in state:
            raise LayoutError("expected chumpy objects that hold an array x, got one that is computed from others")
        held = state["x"]
        self.array = held.array if isinstance(held, _Chumpy) else np.asarray(held)


class _Sparse:
    """Stands for `scipy.sparse.csc_matrix`, and keeps it as a dense array."""

    array: np.ndarray

    def __setstate__(self, state: Any) -> None:
        absent = sorted({"data", "indices", "indptr", "_shape"} - set(state if isinstance(state, dict) else ()))
        if absent:
            raise LayoutError(f"expected a sparse matrix with data and indices, got one without {', '.join(absent)}")
        rows, columns = (int(n) for n in state["_shape"])
        counts = np.diff(state["indptr"])
        if len(counts) != columns or counts.sum() != len(state["data"]):
            raise LayoutError(f"expected a sparse matrix of {columns} columns, got indptr of {len(counts)}")
        self.array = np.zeros((rows, columns), np.asarray(state["data"]).dtype)
        np.add.at(self.array, (state["indices"], np.arange(columns).repeat(counts)), state["data"])


def read_head_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary in a pickled file of a head model, with dense arrays in place of chumpy's and scipy's objects.

    The caller decides whether the file may be opened at all.

    Args:
        path: File that Python 2 or 3 wrote with protocol 0 to 4.

    Raises:
        UnsafePickleError: The file asks for a name outside the table.
        LayoutError: The file is damaged, holds no dictionary, or holds an array of Python objects.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            content = _Unpickler(file).load()
        except (UnsafePickleError, LayoutError) as error:
            raise type(error)(f"{error}, in {path}") from None
        except _DAMAGED as error:
            raise LayoutError(f"expected a complete pickle in {path}, got: {error}; copy the file again") from None
    if not isinstance(content, dict):
        raise LayoutError(f"expected a dictionary in {path}, got {type(content).__name__}")
    return {str(key): _plain(value, str(key), path) for key, value in content.items()}


def first_known_name(path: str | Path, names: Collection[str]) -> str | None:
    """The first of some names that stands as text in a pickled file, or None.

    This walks over the pickle and builds nothing, so that it is safe for files of any origin.
    """
    with Path(path).open("rb") as file:
        try:
            for _, value, _ in pickletools.genops(file):
                if isinstance(value, str) and value in names:
                    return value
        except (ValueError, OverflowError, MemoryError):  # not a pickle, or a damaged one
            return None
    return None


class _Unpickler(pickle.Unpickler):
    """Looks names up in a table of its own, which a pickle cannot change for later files."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin1")
        self._known = _table()

    def find_class(self, module: str, name: str) -> Any:
        found = self._known.get((module, name))
        if found is None:
            raise UnsafePickleError(f"expected arrays, strings and numbers, got a pickle that asks for {module}.{name}")
        return found


def _table() -> Mapping[tuple[str, str], Any]:
    """Everything that a pickle can ask for. The functions are new ones at each call."""

    def encode(text: str, codec: str = "") -> bytes:  # how protocols before 3 write bytes
        if codec not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"expected bytes as latin-1, got a pickle that asks for the codec {codec!r}")
        return text.encode("latin-1")

    def rebuild(kind: type, base: type, state: Any) -> Any:  # how protocol 0 writes objects
        if kind not in (_Chumpy, _Sparse) or base is not object or state is not None:
            raise UnsafePickleError(f"expected objects of chumpy or scipy, got a pickle that rebuilds {kind!r}")
        return kind()

    known: dict[tuple[str, str], Any] = {
        ("chumpy.ch", "Ch"): _Chumpy,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): encode,
        ("copy_reg", "_reconstructor"): rebuild,
        ("__builtin__", "object"): object,
        ("__builtin__", "set"): set,
        ("builtins", "set"): set,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known |= {(module, "_reconstruct"): _reconstruct, (module, "scalar"): scalar}
    for module in ("scipy.sparse.csc", "scipy.sparse._csc"):
        known[module, "csc_matrix"] = _Sparse
    return known


def _plain(value: Any, key: str, path: Path) -> Any:
    """The value, or the array that its stub holds."""
    if isinstance(value, _Chumpy | _Sparse):
        if not hasattr(value, "array"):
            raise LayoutError(f"expected an array under {key!r} in {path}, got an object without one")
        value = value.array
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        raise LayoutError(f"expected numbers or strings under {key!r} in {path}, got an array of Python objects")
    return value
