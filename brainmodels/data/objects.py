"""Studies of people who saw objects as a still picture and as a turning video, and the trials that models take.

    study = brainmodels.simulate_objects("tiny")
    trials = ObjectTrials.of(study, "sim01", "train")
    trials.batch([0, 1])                     # {"static": (2, C, T) fp32, "dynamic": (2, C', T') fp32}
    study.label("class", trials.ids)         # (n,) numbers from 0
    study.cloud(trials.ids[0])               # (N, 6) fp32, xyz and rgb

The trials of both streams are matched by object and presentation, never by the order of the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from veca.hashes import json_digest

from ..errors import AxisError, BrainDataError, IdError, NormalizationError, check_choice
from .dataset import PARTS, Split, Subject
from .ids import Ids, Integers, as_ids
from .object_study import STREAMS, ObjectStudy
from .responses import Responses, TrialTable, positions
from .spaces import SensorSpace
from .stimuli import StimulusSet

__all__ = ["STREAMS", "ObjectStudy", "ObjectTrials"]

_REFERENCE = "FZ"  # channel that is constant within a trial by definition
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class ObjectTrials:
    """Trials of one subject in all streams, one row for each presentation of an object or for the mean of several.

    `of` and `from_arrays` make it. Values are read when `batch` asks for them.

    Attributes:
        ids: Object of each row, (n,) strings.
        subject: Id of the subject.
        part: "train", "val", "test" or "train+val". "" for arrays.
        split: Name of the split. "" for arrays.
        split_hash: `Split.hash` of it. "" for arrays.
        repeats: Number of presentations that each row averages, (n,) int64.
        presentation: Number of earlier presentations of the object, (n,) int64. -1 for means.
        order: Position in the recording, (n,) int64. -1 where it is not known, and for means.
        session: Session number, (n,) int64. -1 where it is not known, and for means over sessions.
        spaces: Sensors of each stream.
        normalizer: Scalings that the values went through, such as "trial_z".
        sources: Stored responses of each stream.
        groups: Rows of `sources` that each row here averages, by stream.
    """

    ids: np.ndarray
    subject: str
    part: str
    split: str
    split_hash: str
    repeats: np.ndarray
    presentation: np.ndarray
    order: np.ndarray
    session: np.ndarray
    spaces: Mapping[str, SensorSpace]
    normalizer: str
    sources: Mapping[str, Responses] = field(repr=False)
    groups: Mapping[str, Sequence[np.ndarray]] = field(repr=False)

    @classmethod
    def of(
        cls,
        study: ObjectStudy,
        subject: str,
        part: str,
        split: str | Split | None = None,
        average: str = "none",
    ) -> "ObjectTrials":
        """The trials of a part of a split, in the order of the study's objects and then of presentations.

        The streams are joined by object and presentation. Where both tables know the time of a trial, it must agree.
        Only the trials of this part are read. The values of all of them are checked.

        Args:
            study: Data set.
            subject: Id of the subject.
            part: "train", "val", "test" or "train+val".
            split: Split, or name of one. None takes the first one.
            average: "repeats" averages the presentations of each object, "none" keeps single ones.

        Raises:
            IdError: The subject is unknown, a presentation is missing in one stream or is there twice, or two streams
                disagree about its time.
            BrainDataError: A value is not finite, a channel other than FZ is constant in a trial, the split or another
                argument is unknown, or responses are not of sensors.
            NormalizationError: The streams went through other scalings.
        """
        check_choice("part", part, (*PARTS, "train+val"))
        check_choice("average", average, ("none", "repeats"))
        split = study.split(split)
        people = {name: study.dataset(name).subject(subject) for name in study.streams}
        spaces = {name: _sensors(person) for name, person in people.items()}
        normalizers = {person.normalizer for person in people.values()}
        if len(normalizers) > 1:
            raise NormalizationError(
                f"expected one normalizer of both streams, got {' and '.join(sorted(normalizers))}"
            )
        rows = _joined(study.stimuli, people, split, part)
        sources = {name: person.responses for name, person in people.items()}
        for name in study.streams:
            _check_values(sources[name], rows[name], spaces[name], name)
        tables = [sources[name].trials[rows[name]] for name in study.streams]
        trials = cls(
            ids=tables[0].image_id,
            subject=subject,
            part=part,
            split=split.name,
            split_hash=split.hash,
            repeats=np.ones(len(tables[0]), np.int64),
            presentation=tables[0].repeat,
            order=np.max([table.trial for table in tables], 0),
            session=np.max([table.session for table in tables], 0),
            spaces=spaces,
            normalizer=normalizers.pop(),
            sources=sources,
            groups={name: _singles(rows[name]) for name in study.streams},
        )
        return trials.averaged() if average == "repeats" else trials

    @classmethod
    def from_arrays(
        cls,
        values: Mapping[str, np.ndarray],
        ids: Ids,
        spaces: Mapping[str, SensorSpace],
        subject: str = "default",
        normalizer: str = "none",
    ) -> "ObjectTrials":
        """Trials from arrays, which are shared and not copied.

        Args:
            values: Values (n, channels, times) of each stream, in the order of `ids`.
            ids: Object of each row, (n,). An id that repeats is another presentation of that object.
            spaces: Sensors of each stream.
            subject: Id of the subject.
            normalizer: Scalings that the values went through.

        Raises:
            AxisError: An array has another shape than its sensors and the ids say.
            BrainDataError: A stream is unknown or has no sensors, a value is not finite, or a channel other than FZ is
                constant in a trial.
        """
        names, table = _streams_of(values), TrialTable.of(as_ids(ids), trial=-1)
        sources = {}
        for name in names:
            if name not in spaces:
                raise BrainDataError(f"expected the sensors of stream {name!r}, got those of {', '.join(spaces)}")
            _check_shape(values[name], len(table), spaces[name], name)
            sources[name] = Responses(values[name], table)
            _check_values(sources[name], np.arange(len(table)), spaces[name], name)
        unknown = np.full(len(table), -1)
        return cls(
            ids=table.image_id,
            subject=subject,
            part="",
            split="",
            split_hash="",
            repeats=np.ones(len(table), np.int64),
            presentation=table.repeat,
            order=unknown,
            session=unknown,
            spaces={name: spaces[name] for name in names},
            normalizer=normalizer,
            sources=sources,
            groups={name: _singles(np.arange(len(table))) for name in names},
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        where = f"{self.split}/{self.part}" if self.part else "arrays"
        return (
            f"ObjectTrials({self.subject}, {where}, {len(self)} rows of {self.repeats.sum()} presentations of "
            f"{len(set(self.ids.tolist()))} objects, {', '.join(self.streams)})"
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in the order of `STREAMS`."""
        return tuple(name for name in STREAMS if name in self.sources)

    @property
    def units(self) -> dict[str, str]:
        """Unit of the values of each stream, "V" or "z"."""
        return {name: self.spaces[name].unit for name in self.streams}

    def batch(self, rows: Integers, streams: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Values of some rows, copied, as fp32 (len(rows), channels, times) of each stream.

        Args:
            rows: Positions of the rows, or a boolean mask of them.
            streams: Names of the streams to read. None reads all.

        Raises:
            AxisError: `rows` are no positions and no mask.
            BrainDataError: A stream does not exist.
        """
        rows, found = positions(rows, len(self)), {}
        for name in self.streams if streams is None else streams:
            groups = [self.groups[check_choice("stream", name, self.streams)][row] for row in rows]
            sizes = np.array([len(group) for group in groups])
            values = self.sources[name].batch(np.concatenate(groups) if groups else [])
            if sizes.sum() > len(rows):
                starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
                values = np.add.reduceat(values, starts, axis=0) / sizes[:, None, None].astype(np.float32)
            found[name] = values
        return found

    def values(self, streams: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Values of all rows, see `batch`."""
        return self.batch(np.arange(len(self)), streams)

    def take(self, rows: Integers) -> "ObjectTrials":
        """Some of the rows, by their positions or a boolean mask. No value is read."""
        rows = positions(rows, len(self))
        columns = {name: getattr(self, name)[rows] for name in ("ids", "repeats", "presentation", "order", "session")}
        groups = {name: [groups[row] for row in rows.tolist()] for name, groups in self.groups.items()}
        return replace(self, **columns, groups=groups)

    def with_streams(self, *streams: str) -> "ObjectTrials":
        """The same trials with some of the streams only. An unknown stream is a `BrainDataError`."""
        for name in streams:
            check_choice("stream", name, self.streams)
        parts = {key: {name: getattr(self, key)[name] for name in streams} for key in ("spaces", "sources", "groups")}
        return replace(self, **parts)

    def with_values(self, values: Mapping[str, np.ndarray]) -> "ObjectTrials":
        """The same rows with other values, such as those with a channel replaced. Other streams keep theirs.

        Args:
            values: Values (n, channels, times) of the streams to replace.

        Raises:
            AxisError: An array has another shape than the values that it replaces.
            BrainDataError: A stream does not exist.
        """
        sources, groups, table = dict(self.sources), dict(self.groups), TrialTable.of(self.ids, trial=-1)
        for name, array in values.items():
            _check_shape(array, len(self), self.spaces[check_choice("stream", name, self.streams)], name)
            sources[name], groups[name] = Responses(array, table), _singles(np.arange(len(self)))
        return replace(self, sources=sources, groups=groups)

    def averaged(self) -> "ObjectTrials":
        """The mean over the presentations of each object, in the order in which objects first occur.

        Raises:
            BrainDataError: Rows of one object average unequal numbers of presentations, so that their mean is not that
                of the presentations.
        """
        _, first, inverse = np.unique(self.ids, return_index=True, return_inverse=True)
        members = [np.flatnonzero(inverse == name) for name in np.argsort(first)]
        for rows in members:
            if np.ptp(self.repeats[rows]):
                raise BrainDataError(
                    f"expected rows of {self.ids[rows[0]]} with equal repeats, got {self.repeats[rows].tolist()}"
                )
        chosen = np.array([rows[0] for rows in members], np.int64)
        columns = {
            name: np.array([_common(getattr(self, name)[rows]) for rows in members], np.int64)
            for name in ("presentation", "order", "session")
        }
        groups = {
            name: [np.concatenate([groups[row] for row in rows.tolist()]) for rows in members]
            for name, groups in self.groups.items()
        }
        repeats = np.array([self.repeats[rows].sum() for rows in members], np.int64)
        return replace(self, ids=self.ids[chosen], repeats=repeats, groups=groups, **columns)

    def signature(self) -> dict[str, Any]:
        """Facts about these trials as JSON values: who, which rows, and which sensors. No value is read."""
        streams = {}
        for name in self.streams:
            space = self.spaces[name]
            streams[name] = {
                "channels": list(space.ch_names),
                "sfreq": float(space.sfreq),
                "times": len(space.times),
                "first_time": float(space.times[0]),
                "unit": space.unit,
            }
        return {
            "subject": self.subject,
            "part": self.part,
            "split": self.split,
            "split_hash": self.split_hash,
            "rows": len(self),
            "objects": len(set(self.ids.tolist())),
            "presentations": int(self.repeats.sum()),
            "rows_hash": json_digest([self.ids.tolist(), self.presentation.tolist(), self.repeats.tolist()]),
            "normalizer": self.normalizer,
            "streams": streams,
        }


def _sensors(person: Subject) -> SensorSpace:
    if not isinstance(person.space, SensorSpace):
        raise BrainDataError(f"expected responses of sensors of {person.id}, got {type(person.space).__name__}")
    return person.space


def _joined(stimuli: StimulusSet, people: Mapping[str, Subject], split: Split, part: str) -> dict[str, np.ndarray]:
    """Rows of each stream's responses, in one order: that of the objects, then of presentations."""
    tables = {name: person.responses.trials for name, person in people.items()}
    keys = {name: _keys(tables[name], split, part, person) for name, person in people.items()}
    everything = set().union(*keys.values())
    for name, found in keys.items():
        missing = sorted(everything - set(found))
        if missing:
            counts = ", ".join(f"{len(rows)} {stream}" for stream, rows in keys.items())
            raise IdError(
                f"expected the same presentations in both streams, got {counts}; presentation {missing[0][1]} of "
                f"{missing[0][0]} is missing in the {name} stream, as are {len(missing) - 1} others"
            )
    places = dict(zip(stimuli.ids.tolist(), range(len(stimuli)), strict=True))
    order = sorted(everything, key=lambda key: (places[key[0]], key[1]))
    rows = {name: np.array([found[key] for key in order], np.int64) for name, found in keys.items()}
    for column in ("trial", "session"):
        values = np.stack([getattr(tables[name], column)[rows[name]] for name in tables])
        wrong = (values >= 0).all(0) & (values != values[:1]).any(0)
        if wrong.any():
            at = int(np.argmax(wrong))
            found = " and ".join(
                f"{value} ({name})" for name, value in zip(tables, values[:, at].tolist(), strict=True)
            )
            raise IdError(
                f"expected presentation {order[at][1]} of {order[at][0]} at the same {column} in both streams, got "
                f"{found}; {wrong.sum()} of {len(order)} differ"
            )
    return rows


def _keys(trials: TrialTable, split: Split, part: str, person: Subject) -> dict[tuple[str, int], int]:
    """Row of each (object, presentation) of a part."""
    chosen = np.concatenate([split.rows(trials, name, person.id) for name in part.split("+")])
    names, repeats = trials.image_id[chosen].tolist(), trials.repeat[chosen].tolist()
    found = dict(zip(zip(names, repeats, strict=True), chosen.tolist(), strict=True))
    if len(found) < len(chosen):
        seen: set[tuple[str, int]] = set()
        twice = next(key for key in zip(names, repeats, strict=True) if key in seen or seen.add(key))
        raise IdError(f"expected each presentation once, got presentation {twice[1]} of {twice[0]} twice")
    return found


def _singles(rows: np.ndarray) -> list[np.ndarray]:
    return list(rows[:, None])


def _common(values: np.ndarray) -> int:
    """The value that all have, or -1."""
    return int(values[0]) if (values == values[0]).all() else -1


def _streams_of(values: Mapping[str, np.ndarray]) -> list[str]:
    for name in values:
        check_choice("stream", name, STREAMS)
    if not values:
        raise BrainDataError(f"expected values of at least one stream of {', '.join(STREAMS)}, got none")
    return [name for name in STREAMS if name in values]


def _check_shape(values: np.ndarray, count: int, space: SensorSpace, stream: str) -> None:
    expected = (count, len(space), len(space.times))
    if values.shape != expected:
        raise AxisError(f"expected {stream} values {expected} as ids and sensors say, got {values.shape}")


def _check_values(responses: Responses, rows: np.ndarray, space: SensorSpace, stream: str) -> None:
    """Check that all values of these rows are finite, and that no channel but the reference is constant in a trial."""
    alive = np.array([name.upper() != _REFERENCE for name in space.ch_names])
    step = max(1, _BLOCK_BYTES // (4 * len(space) * len(space.times)))
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        values = responses.batch(chosen)  # (n, C, T)
        low, high = values.min(2), values.max(2)  # a value that is not finite makes one of them so
        finite = np.isfinite(low) & np.isfinite(high)
        bad = ~finite if not finite.all() else (low == high) & alive
        if bad.any():
            row, channel = np.argwhere(bad)[0]
            name, trial = space.ch_names[channel], chosen[row]
            got = (
                f"the constant {low[row, channel]:.4g} in all samples, which only {_REFERENCE} may be"
                if finite.all()
                else "values that are not finite"
            )
            raise BrainDataError(
                f"expected finite, varying values of every {stream} channel, got {got}, at channel {name} of trial "
                f"{trial} (object {responses.trials.image_id[trial]})"
            )
