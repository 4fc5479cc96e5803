"""Responses as they are stored on the disk, and the table of what each trial showed.

    trials = TrialTable.of(image_id, session=session)
    responses = Responses(np.load("betas.npy", mmap_mode="r"), trials, scale=1 / 300)
    responses.batch([0, 5, 9])  # (3, voxels) fp32, copied and scaled

A batch reads only the rows that it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from veca.data.names import composed

from ..errors import AxisError, IdError
from .ids import Ids, Integers, as_ids
from .mapped import packed, unpacked

__all__ = ["Responses", "TrialTable", "positions"]

_STORED = ("float16", "float32", "float64", "int16")


@dataclass(frozen=True)
class TrialTable:
    """What each trial showed, in the order of the rows of the responses.

    All columns have shape (trials,). A number that is not known is -1.

    Attributes:
        image_id: Ids of the images, strings with a namespace such as "nsd:00013", in composed Unicode (NFC).
        session: Session numbers as the data set counts them.
        run: Run numbers as the data set counts them.
        repeat: Numbers of earlier presentations of the image to this subject, from 0.
        trial: Positions in time, over all sessions.

    Raises:
        AxisError: Columns differ in length.
    """

    image_id: np.ndarray
    session: np.ndarray
    run: np.ndarray
    repeat: np.ndarray
    trial: np.ndarray

    def __post_init__(self):
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        if len(set(shapes.values())) > 1 or np.ndim(self.image_id) != 1:
            raise AxisError(f"expected columns (trials,) of one length, got {shapes}")

    @classmethod
    def of(
        cls,
        image_id: Ids,
        session: Integers | int = -1,
        run: Integers | int = -1,
        repeat: Integers | int | None = None,
        trial: Integers | int | None = None,
    ) -> "TrialTable":
        """A table from its columns. A single number in place of a column holds for all trials.

        Args:
            image_id: Image id of each trial.
            session: Session of each trial.
            run: Run of each trial.
            repeat: Earlier presentations of the image. None counts them in the order of `trial`, or in the order of
                the rows where `trial` is -1.
            trial: Position of each trial in time. None means that the rows are in the order of time: 0, 1, 2, ...

        Raises:
            AxisError: Columns differ in length, or numbers are not integers.
        """
        ids = as_ids(image_id)
        count = len(ids)
        times = np.arange(count) if trial is None else _column("trial", trial, count)
        repeats = _count_presentations(ids, times) if repeat is None else _column("repeat", repeat, count)
        return cls(ids, _column("session", session, count), _column("run", run, count), repeats, times)

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> "TrialTable":
        return TrialTable(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Responses:
    """Measured responses. The array of values is never copied; subsets share it.

    Attributes:
        values: Stored values, (trials, voxels) or (trials, channels, times), float16, float32, float64 or int16.
            The array is often memory-mapped.
        trials: Table of what each of `rows` showed.
        scale: Physical units of one stored unit. A batch is values * scale.
        rows: Rows of `values` that belong to these trials. None means all of them in order.
        unit: Physical unit of a batch, such as "percent signal change", "z-scored per session" or "V".

    Raises:
        AxisError: Values have another shape or type, or trials and rows differ in number.
    """

    values: np.ndarray
    trials: TrialTable
    scale: float = 1.0
    rows: np.ndarray | None = None
    unit: str = "unknown"

    def __post_init__(self):
        if self.values.ndim not in (2, 3):
            shape = tuple(self.values.shape)
            raise AxisError(f"expected values (trials, voxels) or (trials, channels, times), got shape {shape}")
        if 0 in self.values.shape[1:]:
            raise AxisError(f"expected at least one voxel, or channel and time, got shape {self.values.shape}")
        if self.values.dtype.name not in _STORED:
            raise AxisError(f"expected values of {', '.join(_STORED)}, got {self.values.dtype}")
        count = len(self.values) if self.rows is None else len(self.rows)
        if len(self.trials) != count:
            raise AxisError(f"expected one trial for each of {count} rows, got {len(self.trials)} trials")
        if self.rows is not None and count and not 0 <= np.min(self.rows) <= np.max(self.rows) < len(self.values):
            raise AxisError(
                f"expected rows from 0 to {len(self.values) - 1}, got {np.min(self.rows)} to {np.max(self.rows)}"
            )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"values": packed(self.values)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state | {"values": unpacked(state["values"])})

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def num_voxels(self) -> int:
        """Number of voxels, or of channels where the responses are EEG."""
        return self.values.shape[1]

    def batch(self, indices: Sequence[int] | np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Some trials in physical units, copied: fp32 (n, voxels) or (n, channels, times).

        Args:
            indices: Positions among these trials, (n,), or a boolean mask of them.
            columns: Voxels or channels to take. None takes all.

        Raises:
            AxisError: `indices` are no positions and no mask.
        """
        indices = positions(indices, len(self))
        rows = indices if self.rows is None else np.asarray(self.rows)[indices]
        batch = np.array(self.values[rows], dtype=np.float32)
        if columns is not None:
            batch = batch[:, columns]
        return batch if self.scale == 1 else batch * np.float32(self.scale)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Responses":
        """The responses of some trials, by their positions or a boolean mask. The values are not copied."""
        indices = positions(indices, len(self))
        rows = indices if self.rows is None else np.asarray(self.rows)[indices]
        return replace(self, trials=self.trials[indices], rows=rows)

    def rows_of(self, ids: Ids, among: np.ndarray | None = None) -> list[np.ndarray]:
        """Positions of the trials of each image, in the order of their repeats.

        Args:
            ids: Ids of the images.
            among: Positions of the trials to choose from, or a boolean mask of them. None means all trials.

        Returns:
            One int64 array of positions for each image.

        Raises:
            IdError: An image has no trial.
        """
        if not len(ids):
            return []
        order = np.lexsort((self.trials.repeat, self.trials.image_id))
        order = order if among is None else order[np.isin(order, positions(among, len(self)))]
        names, starts = np.unique(self.trials.image_id[order], return_index=True)
        groups = dict(zip(names.tolist(), np.split(order, starts)[1:], strict=True))
        try:
            return [groups[composed(str(name))] for name in ids]
        except KeyError as error:
            raise IdError(f"expected images that were shown, got {error.args[0]!r} without a trial") from None


def positions(indices: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Positions among `count` trials as int64 (n,), from integers from 0 to count - 1 or a boolean mask (count,).

    Raises:
        AxisError: `indices` are neither, or out of range.
    """
    array = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    if array.dtype == bool and array.shape == (count,):
        return np.flatnonzero(array)
    if not array.size and array.ndim == 1 and array.dtype != bool:
        return np.empty(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise AxisError(f"expected integers (n,) or a mask of {count} booleans, got {array.dtype} of {array.shape}")
    if array.min() < 0 or array.max() >= count:
        raise AxisError(f"expected positions from 0 to {count - 1}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _column(name: str, values: Integers | int, count: int) -> np.ndarray:
    column = np.full(count, values) if np.ndim(values) == 0 else np.asarray(values)
    if column.shape != (count,) or not np.issubdtype(column.dtype, np.integer):
        raise AxisError(f"expected {count} integers of {name}, got {column.dtype} of shape {column.shape}")
    return column.astype(np.int64)


def _count_presentations(ids: np.ndarray, trial: np.ndarray) -> np.ndarray:
    repeat, seen = np.empty(len(ids), np.int64), {}
    for row in np.argsort(trial, kind="stable"):
        repeat[row] = seen.get(ids[row], 0)
        seen[ids[row]] = repeat[row] + 1
    return repeat
