"""Features that are already in memory, by image id.

    features = ArrayFeatures(tokens, dataset.stimuli.ids)  # tokens (n, m, d), one row for each image
    features.get(train.image_ids, "tokens")                # (n, m, d) fp32, the rows of these images

`ArrayFeatures` and `FeatureCache` share the interface `FeatureSource`, so models take either.
"""

import numpy as np
import torch

from veca.data.names import composed

from ..data.feature_source import FeatureSource
from ..data.ids import Ids, as_ids
from ..data.mapped import packed, unpacked
from ..errors import AxisError, IdError, NormalizationError, check_choice, near_names

__all__ = ["ArrayFeatures", "FeatureSource"]

KINDS = ("tokens", "pooled")
_BLOCK = 1 << 22  # count of numbers that are checked at a time


class ArrayFeatures:
    """Features in one array, such as those that another program has computed.

    The array is shared, not copied. This includes memory-mapped arrays and tensors. Only tensors on a GPU, and those of
    a type that numpy lacks (bfloat16), are copied.

    Args:
        values: One row for each image: tokens (n, m, d), or pooled features (n, p). Real numbers of any type.
        ids: (n,) Ids of the images, in the order of the rows. They are unique, because features belong to images and
            not to trials.
        fingerprint: Text that identifies what made the features, "" if it is not known.
        name: Name for messages and reports.

    Attributes:
        values: The features as an array.
        kinds: ("tokens",) or ("pooled",).
        fingerprint, name: As given.

    Raises:
        AxisError: Values are neither (n, m, d) nor (n, p), have an empty axis, or are not real numbers.
        IdError: Ids repeat, or differ in number from the rows.
        NormalizationError: A value is not finite in fp32.
    """

    def __init__(self, values: np.ndarray | torch.Tensor, ids: Ids, fingerprint: str = "", name: str = "array"):
        self.values, self.fingerprint, self.name = _as_array(values), fingerprint, name
        shape, dtype = self.values.shape, self.values.dtype
        if len(shape) not in (2, 3) or 0 in shape:
            raise AxisError(f"expected {name} of tokens (n, m, d) or of pooled features (n, p), got {shape}")
        if dtype.kind not in "fiu":
            raise AxisError(f"expected {name} of real numbers, got {dtype}")
        self.kinds = ("tokens",) if len(shape) == 3 else ("pooled",)
        self._rows = self._index(as_ids(ids))
        self._check_finite()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: str) -> bool:
        return composed(str(image_id)) in self._rows

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.values.shape))
        return f"ArrayFeatures({self.name}, {self.fingerprint or 'no fingerprint'}, {self.kinds[0]} ({shape}))"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"values": packed(self.values)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state | {"values": unpacked(state["values"])})

    @property
    def ids(self) -> np.ndarray:
        """Ids of the images whose features are here, sorted."""
        return np.array(sorted(self._rows), dtype=str)

    def get(self, ids: Ids, what: str = "pooled") -> np.ndarray:
        """Features of images, in the order of `ids`.

        Args:
            ids: Ids of the images. They may repeat.
            what: "pooled" or "tokens".

        Returns:
            A copy, fp32 (len(ids), p) or (len(ids), m, d).

        Raises:
            IdError: An unknown id; the message names the nearest known one.
            AxisError: The array holds the other kind of features.
        """
        if check_choice("what", what, KINDS) not in self.kinds:
            remedy = (
                "values[:, None] makes a token of each row" if what == "tokens" else "values.mean(1) averages tokens"
            )
            raise AxisError(f"expected {what} of {self.name}, got {self.kinds[0]} {self.values.shape} only; {remedy}")
        try:
            rows = [self._rows[composed(str(name))] for name in ids]
        except KeyError as error:
            name = error.args[0]
            near = near_names(name, self.ids.tolist())
            raise IdError(f"expected ids of these {len(self)} images, got {name!r}{near}") from None
        return self.values[np.array(rows, np.int64)].astype(np.float32)

    def _index(self, ids: np.ndarray) -> dict[str, int]:
        """Row of each id."""
        if ids.shape != (len(self.values),):
            raise IdError(f"expected ids of the {len(self.values)} rows of {self.name}, got ids of shape {ids.shape}")
        rows: dict[str, int] = {}
        for row, name in enumerate(ids.tolist()):
            first = rows.setdefault(name, row)
            if first != row:
                same = "equal" if np.array_equal(self.values[first], self.values[row]) else "unequal"
                raise IdError(
                    f"expected one row of {self.name} for each image, got {same} rows {first} and {row} of {name}; "
                    "do not repeat features for repeated presentations"
                )
        return rows

    def _check_finite(self) -> None:
        step = max(_BLOCK // self.values[0].size, 1)
        for start in range(0, len(self.values), step):
            with np.errstate(over="ignore"):
                block = self.values[start : start + step].astype(np.float32, copy=False)
            bad = ~np.isfinite(block).reshape(len(block), -1).all(1)
            if bad.any():
                row = start + int(np.argmax(bad))
                name = next(name for name, at in self._rows.items() if at == row)
                raise NormalizationError(
                    f"expected {self.name} of finite numbers that fp32 can hold, got others in row {row}, {name}"
                )


def _as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """The values as an array, without a copy if numpy can hold their type."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return values if isinstance(values, np.ndarray) else np.asarray(values)
