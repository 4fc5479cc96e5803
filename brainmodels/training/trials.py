"""Single trials on the model's scale, joined with the tokens of their images by id.

recording = Recording.of(dataset.pairs("subj01", split, "train"))
scale = VoxelScale.fit(recording, rows, "train_z")
data = TrialData(table, {"subj01": recording}, {"subj01": scale}, {"train": {"subj01": rows}, "val": {}})
data.batch("train", "subj01", np.arange(24))
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from veca.hashes import hex_digest

from ..data import Pairs, Responses, Subject, VoxelSpace, validation_ids
from ..data.align import AlignmentReport, alignment_of
from ..data.ids import Ids
from ..errors import AxisError, BrainDataError, IdError, LeakageError, check_choice
from ..features import FeatureSource, TokenScaler
from .loop import Batch

__all__ = ["Recording", "TokenTable", "TrialData", "VoxelScale"]

_log = logging.getLogger(__name__)
IN_MEMORY = 4 * 2**30  # bytes of responses, and of tokens, that are held; more are read when they are needed
_BLOCK = 512  # trials, or images, that are looked at together
_ALIGNMENT_NUMBERS = 5e7  # of features in the test of alignment
_UNSCALED = ("none", "psc", "unknown")

Trials = Pairs | Responses | Subject | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Recording:
    """Trials of one subject as they were given.

    Attributes:
        image_ids: Image (n,) that each trial showed.
        read: Function from positions of trials to fp32 (len, V), in the units of the caller.
        num_voxels: Number of voxels V.
        normalizer: Normaliser that the values went through, "unknown" for arrays.
        voxels: Twelve digits that change with the voxels and their order; "" where they are not known.
        numbers: Numbers (n,) of the trials in the subject's own table.
    """

    image_ids: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]
    num_voxels: int
    normalizer: str
    voxels: str
    numbers: np.ndarray

    @classmethod
    def of(cls, responses: Trials, image_ids: Ids | None = None) -> "Recording":
        """
        Args:
            responses: `Pairs`, `Responses` or a `Subject`, which know their images, or an array (n, V) or (n, 1, V).
            image_ids: Images (n,) of an array; None where they do not matter, as when it is only decoded.

        Raises:
            AxisError: another shape, or as many ids as there are not trials.
            IdError: ids for responses that have their own.
        """
        if isinstance(responses, Pairs | Responses | Subject):
            if image_ids is not None:
                raise IdError(f"expected no image_ids with {type(responses).__name__}, which has its own, got some")
            return cls._of_pairs(responses) if isinstance(responses, Pairs) else cls._of_trials(responses)
        values = responses.detach().cpu().numpy() if isinstance(responses, torch.Tensor) else np.asarray(responses)
        values = values[:, 0] if values.ndim == 3 and values.shape[1] == 1 else values
        if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiu":
            raise AxisError(f"expected responses (trials, voxels) of real numbers, got {values.dtype} {values.shape}")
        ids = np.full(len(values), "") if image_ids is None else np.asarray(list(image_ids), dtype=str)
        if ids.shape != (len(values),):
            raise AxisError(f"expected one image id for each of {len(values)} trials, got {len(ids)}")
        return cls(
            ids, lambda rows: values[rows].astype(np.float32), values.shape[1], "unknown", "", np.arange(len(ids))
        )

    @classmethod
    def _of_pairs(cls, pairs: Pairs) -> "Recording":
        subject, columns = pairs.subject, pairs.columns
        numbers = np.array([rows[0] for rows in pairs.trials], np.int64)
        count = subject.responses.num_voxels if columns is None else len(columns)
        _check_voxels(subject.responses.values.shape)
        return cls(pairs.image_ids, pairs.batch, count, pairs.normalizer, _voxels_of(subject, columns), numbers)

    @classmethod
    def _of_trials(cls, given: Responses | Subject) -> "Recording":
        responses = given.responses if isinstance(given, Subject) else given
        normalizer, voxels = (given.normalizer, _voxels_of(given)) if isinstance(given, Subject) else ("unknown", "")
        _check_voxels(responses.values.shape)
        ids = responses.trials.image_id
        return cls(ids, responses.batch, responses.num_voxels, normalizer, voxels, np.arange(len(ids)))

    def __len__(self) -> int:
        return len(self.image_ids)

    def describe(self, rows: np.ndarray) -> str:
        """Some trials in words: "trials 3, 17 (images a, b)"."""
        shown = rows[:8]
        more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
        ids = ", ".join(dict.fromkeys(self.image_ids[shown].tolist()))
        return f"trials {', '.join(map(str, self.numbers[shown]))}{more} (images {ids or 'not given'})"

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, values) of some trials, block by block."""
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            yield part, self.read(part)

    def check_finite(self, rows: np.ndarray, values: np.ndarray, voxels: np.ndarray, remedy: str = "") -> None:
        """Raise for the first number (len(rows), V) that is not finite, with its trial and its voxel."""
        bad = ~np.isfinite(values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise BrainDataError(
                f"expected finite responses, got {values[row, column]} in trial {self.numbers[rows[row]]} (image "
                f"{self.image_ids[rows[row]] or 'not given'}), voxel {voxels[column]}{remedy}"
            )


@dataclass(frozen=True)
class VoxelScale:
    """From the responses of the caller to those of the model, and back.

    Attributes:
        kept: Mask (V,) of the voxels that the model has.
        mean, std: fp32 (V kept,), subtracted and divided by; 0 and 1 where responses stay as they are.
        variance: Variance of the training trials in model units, summed over voxels.
    """

    kept: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    variance: float

    @classmethod
    def fit(cls, recording: Recording, rows: np.ndarray, how: str, drop_voxels: bool = False) -> "VoxelScale":
        """Statistics of training trials, read block by block.

        Args:
            recording: Trials of the subject, all of which must be finite.
            rows: Positions of the training trials, from which statistics are taken.
            how: "as_is", "train_z" (mean and sd of each voxel), or "auto": as they are where a normaliser is recorded.
            drop_voxels: Leave out voxels that are constant or have a number that is not finite, which is an error
                otherwise. Predictions are NaN there.

        Raises:
            BrainDataError: not finite, with trial and voxel; constant, with the count.
        """
        check_choice("response_scale", how, ("auto", "as_is", "train_z"))
        if len(rows) < 2:
            raise BrainDataError(f"expected at least two training trials, got {len(rows)}")
        every = np.arange(recording.num_voxels)
        remedy = "; drop_voxels=True leaves such voxels out"
        total, squares, finite = 0.0, 0.0, np.ones(len(every), bool)
        shift = None
        training = np.isin(np.arange(len(recording)), rows)
        for part, values in recording.blocks(np.arange(len(recording))):
            finite &= np.isfinite(values).all(0)
            if not drop_voxels:
                recording.check_finite(part, values, every, remedy)
            values = np.where(finite, values[training[part]], 0).astype(np.float64)
            if shift is None and len(values):
                shift = values[0]
            moved = values - (0 if shift is None else shift)
            total, squares = total + moved.sum(0), squares + np.square(moved).sum(0)
        assert shift is not None  # there are two training trials or more
        mean = total / len(rows)
        variance = np.maximum(squares - len(rows) * mean**2, 0) / (len(rows) - 1)
        varies = variance > 1e-12 * np.maximum(np.square(mean + shift), 1e-12)
        constant = int((finite & ~varies).sum())
        if constant and not drop_voxels:
            raise BrainDataError(
                f"expected voxels that vary over the training trials, got {constant} of {len(every)} that are "
                f"constant, such as {int(np.flatnonzero(finite & ~varies)[0])}{remedy}"
            )
        kept = finite & varies
        if not kept.all():
            _log.warning("%d of %d voxels are constant or not finite and left out", (~kept).sum(), len(kept))
        if not kept.any():
            raise BrainDataError(f"expected voxels that vary and are finite, got none of {len(kept)}")
        return cls._of(how, recording.normalizer, kept, (mean + shift)[kept], variance[kept])

    @classmethod
    def _of(cls, how: str, normalizer: str, kept: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> "VoxelScale":
        if how == "as_is" or (how == "auto" and normalizer not in _UNSCALED):
            plain = np.zeros(len(mean), np.float32)
            return cls(kept, plain, plain + 1, float(variance.sum()))
        return cls(kept, mean.astype(np.float32), np.sqrt(variance).astype(np.float32), float(len(mean)))

    def apply(self, recording: Recording, rows: np.ndarray) -> np.ndarray:
        """Some trials in model units, fp32 (len(rows), V kept), which must be finite."""
        if recording.num_voxels != len(self.kept):
            raise AxisError(f"expected responses of {len(self.kept)} voxels, got {recording.num_voxels}")
        values = recording.read(rows)[:, self.kept]
        recording.check_finite(rows, values, np.flatnonzero(self.kept))
        return (values - self.mean) / self.std

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Model units (..., V kept) to those of the caller (..., V), NaN in voxels that were left out."""
        out = np.full((*values.shape[:-1], len(self.kept)), np.nan, np.float32)
        out[..., self.kept] = values * self.std + self.mean
        return out


class TokenTable:
    """Tokens of images on the model's scale, by id; held in memory where they fit.

    Args:
        source: Source of the features.
        scaler: Scaler that was fitted on training images; None leaves tokens as they are.
        what: "tokens", or "pooled": one token an image.
        ids: Images that may be asked for.
    """

    def __init__(self, source: FeatureSource, scaler: TokenScaler | None, what: str, ids: Ids):
        self._source, self._scaler, self._what = source, scaler, what
        self._places = {name: place for place, name in enumerate(dict.fromkeys(ids))}
        self.shape = self._read(list(self._places)[:1]).shape[1:]
        names = list(self._places)
        self._held = None
        if 4 * len(names) * int(np.prod(self.shape)) <= IN_MEMORY:
            blocks = [self._read(names[start : start + _BLOCK]) for start in range(0, len(names), _BLOCK)]
            self._held = np.concatenate(blocks)

    def get(self, ids: Ids) -> np.ndarray:
        """fp32 (len(ids), m, d)."""
        if self._held is None:
            return self._read(ids)
        return self._held[[self._places[str(name)] for name in ids]]

    def _read(self, ids: Ids) -> np.ndarray:
        return scaled_tokens(self._source.get(ids, self._what), self._scaler)


def scaled_tokens(values: np.ndarray, scaler: TokenScaler | None) -> np.ndarray:
    """Features (n, m, d) or (n, p) as tokens on the model's scale, fp32 (n, m, d) or (n, 1, p)."""
    values = values if scaler is None else scaler.transform(values)
    return np.ascontiguousarray(values[:, None] if values.ndim == 2 else values, np.float32)


class TrialData:
    """Train and validation trials of subjects, as `train_stage` takes them.

    Attributes:
        tokens: Tokens of all images.
        recordings, scales: Trials and their scale by subject.
        rows: Positions in the recording by part ("train", "val") and subject.
    """

    def __init__(
        self,
        tokens: TokenTable,
        recordings: Mapping[str, Recording],
        scales: Mapping[str, VoxelScale],
        rows: Mapping[str, Mapping[str, np.ndarray]],
    ):
        self.tokens, self.recordings, self.scales, self.rows = tokens, recordings, scales, rows
        size = sum(4 * len(recordings[name]) * int(scale.kept.sum()) for name, scale in scales.items())
        self._held = {}
        if size <= IN_MEMORY:
            self._held = {name: self._matrix(name, np.arange(len(item))) for name, item in recordings.items()}

    def sizes(self, part: str) -> dict[str, int]:
        """Trials of a part by subject; subjects without any are left out."""
        return {name: len(rows) for name, rows in self.rows[part].items() if len(rows)}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """Trials of one subject, by their positions in the part."""
        own = self.rows[part][subject][rows]
        values = self._matrix(subject, own)
        tokens = self.tokens.get(self.recordings[subject].image_ids[own])
        return Batch(subject, rows, torch.tensor(values), torch.tensor(tokens))  # copies; see `_Stage.passes`

    def batches(self, part: str, size: int = _BLOCK) -> Iterator[Batch]:
        """All trials of a part, subject by subject, in order."""
        for subject, count in self.sizes(part).items():
            for start in range(0, count, size):
                yield self.batch(part, subject, np.arange(start, min(start + size, count)))

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Trials of a part in words."""
        return f"{subject}: {self.recordings[subject].describe(self.rows[part][subject][rows])}"

    @property
    def total_variance(self) -> float:
        """Of the training responses in model units, summed over voxels; mean over subjects, weighted by trials."""
        counts = self.sizes("train")
        return sum(self.scales[name].variance * n for name, n in counts.items()) / sum(counts.values())

    def train_ids(self) -> list[str]:
        """Training images of all subjects, sorted."""
        shown = (self.recordings[name].image_ids[rows] for name, rows in self.rows["train"].items())
        return sorted({str(name) for ids in shown for name in ids})

    def averaged(self, subject: str, limit: int | None = None, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """(ids, responses averaged over repeats, (images, V) model units) of images of a part, in the order of ids."""
        rows = self.rows[part][subject]
        ids, place = np.unique(self.recordings[subject].image_ids[rows], return_inverse=True)
        count = len(ids) if limit is None else min(limit, len(ids))
        chosen = np.linspace(0, len(ids) - 1, count).astype(int)
        groups = [rows[place == image] for image in chosen]
        means = [self._matrix(subject, group).mean(0) for group in groups]
        return ids[chosen], np.stack(means) if means else np.empty(
            (0, int(self.scales[subject].kept.sum())), np.float32
        )

    def images(self, subject: str, part: str) -> np.ndarray:
        """Ids of the images of a part that a subject saw, in the order of ids."""
        rows = self.rows[part].get(subject, np.empty(0, np.int64))
        return np.unique(self.recordings[subject].image_ids[rows])

    def means(self, subject: str, ids: Ids) -> np.ndarray:
        """Responses of a subject to some of its images, averaged over repeats, (len(ids), V) in model units."""
        shown = self.recordings[subject].image_ids
        order = np.argsort(shown, kind="stable")
        ends = [np.searchsorted(shown, np.asarray(ids, dtype=str), side, order) for side in ("left", "right")]
        if (ends[0] == ends[1]).any():
            missing = np.asarray(ids, dtype=str)[ends[0] == ends[1]][0]
            raise IdError(f"expected images that {subject} saw, got {missing}")
        return np.stack([self._matrix(subject, np.sort(order[a:b])).mean(0) for a, b in zip(*ends, strict=True)])

    def check_alignment(self) -> dict[str, AlignmentReport]:
        """Test for each subject whether responses identify their images, by the tokens of the images.

        Raises:
            AlignmentError: they do not.
        """
        found = {}
        limit = int(np.clip(_ALIGNMENT_NUMBERS // np.prod(self.tokens.shape), 100, 1000))
        for subject in self.sizes("train"):
            ids, responses = self.averaged(subject, limit)
            found[subject] = alignment_of(subject, responses, self.tokens.get(ids))
        return found

    def signature(self) -> dict[str, Any]:
        """What must be equal for a run to go on, by subject: training images, tokens and statistics of their values."""
        found = {}
        for subject, rows in self.rows["train"].items():
            scale, ids = self.scales[subject], self.recordings[subject].image_ids[rows]
            ends = np.array([0, len(rows) // 2, len(rows) - 1])
            values = (self._matrix(subject, rows[ends]), scale.kept, scale.mean, scale.std, np.float64(scale.variance))
            found[subject] = {
                "trials": len(rows),
                "images": hex_digest(["\n".join(ids.tolist())], 12),
                "tokens": hex_digest([self.tokens.get(ids[ends])], 12),
                "responses": hex_digest(values, 12),
                "voxels": self.recordings[subject].voxels,
            }
        return found

    def _matrix(self, subject: str, rows: np.ndarray) -> np.ndarray:
        if subject in self._held:
            return self._held[subject][rows]
        return self.scales[subject].apply(self.recordings[subject], rows)


def held_out(ids: Ids, validation: float) -> frozenset[str]:
    """Images that validate, by the hash of their id: the same for all repeats and all subjects.

    They are those of `validation_ids` with seed 0, as in splits; where a split has taken these out already, seed 1
    chooses among the others.

    Args:
        ids: Ids of all images that are trained on.
        validation: Share of them that is held out, whole percents.
    """
    percent = round(100 * validation)
    if not 0 <= percent < 100 or abs(percent - 100 * validation) > 1e-9:
        raise BrainDataError(f"expected validation in whole percents from 0 to below 1, got {validation}")
    held = validation_ids(ids, percent) or validation_ids(ids, percent, seed=1)
    if percent and not held:
        _log.warning("%d images are too few to hold out %d %% of them: there is no validation", len(ids), percent)
    return held


def part_rows(recording: Recording, held: frozenset[str]) -> dict[str, np.ndarray]:
    """Positions of the train and validation trials, the latter those of held-out images."""
    inside = np.isin(recording.image_ids, np.array(sorted(held), dtype=str))
    return {"train": np.flatnonzero(~inside), "val": np.flatnonzero(inside)}


def check_training(responses: Any) -> None:
    """Raise a `LeakageError` for pairs that are not those of training."""
    if isinstance(responses, Pairs) and responses.part != "train":
        raise LeakageError(f"expected pairs of the train part to fit on, got those of {responses.part!r}")


def _check_voxels(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise AxisError(f"expected responses (trials, voxels), got {shape}; flatten channels and times first")


def _voxels_of(subject: Subject, columns: np.ndarray | None = None) -> str:
    """Twelve digits of the voxels and their order."""
    if not isinstance(subject.space, VoxelSpace):
        return ""
    index = subject.space.index if columns is None else subject.space.index[columns]
    return hex_digest([f"{subject.space.name} {subject.space.shape}", np.asarray(index, np.int64)], 12)
