"""The records of metrics and scores. A score carries the conditions it was measured under, or says why it has no value.

    score = Score(metric("voxel_r"), 0.31, n=60, interval=Interval(0.28, 0.34)).under(pairs, features="1a2b3c4d5e6f")
    print(score)
    # voxel_r ↑ 0.310 [0.280, 0.340], chance 0, n 60 images, sim01, split shared/test 9f8e7d6c5b4a, ...

`Metric` defines a metric, `Score` is one value of it, and `not_available` makes the row of a metric without a value.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BrainDataError, near_names
from ..records import plain
from ..versions import library_versions

if TYPE_CHECKING:
    from ..data.dataset import Pairs

__all__ = ["DIRECTIONS", "LEVELS", "Interval", "Metric", "Score", "not_available"]

LEVELS = (
    "pixel",
    "feature",
    "semantic",
    "identification",
    "text",
    "shape",
    "temporal",
    "acoustic",
    "voxel",
    "classification",
)
DIRECTIONS = {"up": "↑", "down": "↓", "none": "·"}  # a higher value is better, a lower one, or neither


class Interval(NamedTuple):
    """An interval of a value.

    Attributes:
        low, high: Ends of the interval.
        level: Confidence level, a share.
        method: Text that says what was drawn to get the interval.
    """

    low: float
    high: float
    level: float = 0.95
    method: str = "bootstrap over images"

    def __contains__(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"[{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class Metric:
    """Definition of a metric, with everything that is needed to compare two of its values.

    Attributes:
        name: Name as printed. It contains what changes the number: the gallery in "top1@300", the network in
            "two_way[grid]".
        level: Kind of the metric, one of `LEVELS`.
        direction: "up" if a higher value is better, "down" if a lower one is, "none" if the metric only describes.
        chance: Value without information. None if it depends on the data.
        needs_weights: Name of the slot of network weights that you must provide. None if the metric needs none.
        protocol: Definition in a sentence: preprocessing, formula, and what is averaged.
    """

    name: str
    level: str
    direction: str
    chance: float | None = None
    needs_weights: str | None = None
    protocol: str = ""

    def __post_init__(self):
        if self.level not in LEVELS:
            raise BrainDataError(
                f"expected a level of {', '.join(LEVELS)} for {self.name}, got {self.level!r}"
                f"{near_names(self.level, LEVELS)}"
            )
        if self.direction not in DIRECTIONS:
            raise BrainDataError(f"expected direction {', '.join(DIRECTIONS)} for {self.name}, got {self.direction!r}")

    def __str__(self) -> str:
        return f"{self.name} {DIRECTIONS[self.direction]}"

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is better than the second.

        Raises:
            BrainDataError: The metric only describes.
        """
        if self.direction == "none":
            raise BrainDataError(f"expected a metric that judges, got {self.name}, which only describes")
        return first > second if self.direction == "up" else first < second


@dataclass(frozen=True)
class Score:
    """One value of one metric, with the conditions it was measured under. None means "unknown" or "does not apply".

    Attributes:
        metric: Definition of the metric.
        value: Finite value. None if `available` is False.
        n: Number of items that were averaged.
        n_of: Name of these items, such as "images".
        interval: Confidence interval of the value.
        chance: Value without information. The default is the chance of the metric.
        chance_interval: Interval of the value without information, such as under permuted pairs.
        ceiling: Best value that the noise of the data allows, on the scale of the value.
        mask: Text that says which voxels were scored, how many were kept and how many were undefined.
        split, split_hash, part: Name and hash of the split of the images, and the part that was scored.
        normalizer: Scale of the responses, which is the unit of `mse`.
        transductive: Whether the normaliser saw test trials.
        repeats: Use of the repeats of a test image: "single", "avg_voxels" or "avg_outputs".
        decoder: Name of the model, judge or control that made the prediction.
        features: Fingerprint of the feature extractor.
        seed: Seed of all random generators.
        subject, roi: Subject and region of the responses.
        versions: Versions of the libraries that change numbers.
        available: False if the metric could not be computed; `note` then says why.
        note: Text that a reader must know.

    Raises:
        BrainDataError: An available score without a finite value, or an unavailable one without a note.
    """

    metric: Metric
    value: float | None
    n: int
    n_of: str = "images"
    interval: Interval | None = None
    chance: float | None = None
    chance_interval: Interval | None = None
    ceiling: float | None = None
    mask: str | None = None
    split: str | None = None
    split_hash: str | None = None
    part: str | None = None
    normalizer: str | None = None
    transductive: bool = False
    repeats: str | None = None
    decoder: str | None = None
    features: str | None = None
    seed: int | None = None
    subject: str | None = None
    roi: str | None = None
    versions: Mapping[str, str] = field(default_factory=library_versions)
    available: bool = True
    note: str = ""

    def __post_init__(self):
        if self.available and (self.value is None or not math.isfinite(self.value)):
            raise BrainDataError(
                f"expected a finite value of {self.metric.name}, got {self.value}; for a metric without a value pass "
                "available=False and a note that says why"
            )
        if not self.available and not self.note:
            raise BrainDataError(f"expected a note that says why {self.metric.name} is not available, got none")
        if self.chance is None:
            object.__setattr__(self, "chance", self.metric.chance)

    def under(self, pairs: "Pairs | None" = None, **conditions: Any) -> "Score":
        """The same score with more conditions.

        Args:
            pairs: Pairs that the score was computed from. Subject, split, part and normaliser are copied from them.
            conditions: Fields of this class by name. They win over those of `pairs`.
        """
        known = {} if pairs is None else _conditions(pairs)
        return replace(self, **(known | conditions))

    @property
    def at_chance(self) -> bool | None:
        """Whether the value lies inside the chance interval. None if value or interval is missing."""
        if not self.available or self.chance_interval is None:
            return None
        return self.value in self.chance_interval

    def __str__(self) -> str:
        if not self.available:
            return f"{self.metric} not available ({self.note})"
        return ", ".join(filter(None, [self._numbers(), self._place(), self._made_by(), self.note]))

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types. `json.dumps(score.to_json(), allow_nan=False)` always works."""
        return plain(asdict(self))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Score":
        """The score that `to_json` wrote.

        Raises:
            BrainDataError: A field is unknown or missing.
        """
        names = {item.name for item in fields(cls)}
        if set(record) != names:
            wrong = sorted(set(record) ^ names)
            raise BrainDataError(f"expected the fields of a score, got a record that differs in {', '.join(wrong)}")
        rebuilt = {
            name: Interval(*record[name]) for name in ("interval", "chance_interval") if record[name] is not None
        }
        content: dict[str, Any] = dict(record) | rebuilt | {"metric": Metric(**record["metric"])}
        return cls(**content)

    def _numbers(self) -> str:
        assert self.value is not None  # of an available score
        parts = [f"{self.metric} {_short(self.value)}" + (f" {self.interval}" if self.interval else "")]
        if self.chance is not None or self.chance_interval is not None:
            chance = "" if self.chance is None else f" {_short(self.chance)}"
            parts.append(f"chance{chance}" + (f" {self.chance_interval}" if self.chance_interval else ""))
        if self.ceiling is not None:
            parts.append(f"ceiling {_short(self.ceiling)}")
        return ", ".join([*parts, f"n {self.n} {self.n_of}"])

    def _place(self) -> str:
        split = None if self.split is None else f"split {self.split}/{self.part or '?'} {self.split_hash or ''}".strip()
        where = "/".join(filter(None, [self.subject, self.roi]))
        scale = None if self.normalizer is None else self.normalizer + (" (transductive)" if self.transductive else "")
        mask = None if self.mask is None else f"mask {self.mask}"
        return ", ".join(filter(None, [where, mask, split, scale]))

    def _made_by(self) -> str:
        named = {"repeats": self.repeats, "decoder": self.decoder, "features": self.features, "seed": self.seed}
        return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)


def not_available(metric: Metric, needs: str, remedy: str = "pass path=...") -> Score:
    """Row of a metric that cannot be computed here. Nothing else is computed in its place.

    Args:
        metric: Definition of the metric.
        needs: What is missing, in words that end the sentence "needs ...".
        remedy: What the reader can do about it; "" if nothing helps.
    """
    return Score(metric, None, n=0, available=False, note="; ".join(filter(None, [f"needs {needs}", remedy])))


def _conditions(pairs: "Pairs") -> dict[str, Any]:
    """What a `Pairs` knows about the numbers that were computed from it."""
    return {
        "subject": pairs.subject.id,
        "split": pairs.split.name,
        "split_hash": pairs.split.hash,
        "part": pairs.part,
        "normalizer": pairs.normalizer,
        "transductive": pairs.transductive,
        "repeats": "avg_voxels" if pairs.average == "repeats" else "single",
    }


def _short(value: float) -> str:
    """The value with three decimals near one, and with three digits elsewhere."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"
