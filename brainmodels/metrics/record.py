"""What a score is: a number that carries how it was made, or says in words why there is none.

score = Score(metric("voxel_r"), 0.31, n=60, interval=Interval(0.28, 0.34)).under(pairs, features="1a2b3c4d5e6f")
print(score)  # voxel_r ↑ 0.310 [0.280, 0.340], chance 0, n 60 images, sim01, split shared/test 9f8e7d6c5b4a, ...
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
DIRECTIONS = {"up": "↑", "down": "↓", "none": "·"}  # better is higher, is lower, or is neither


class Interval(NamedTuple):
    """From `low` to `high`, at a level of confidence, and what was drawn again to get it."""

    low: float
    high: float
    level: float = 0.95
    method: str = "bootstrap over images"

    def __contains__(self, value: object) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"[{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class Metric:
    """A definition, with everything needed to compare two numbers under its name.

    Attributes:
        name: as printed; what changes the number is part of it: the gallery in "top1@300", the network in
            "two_way[grid]".
        level: one of `LEVELS`.
        direction: "up" where higher is better, "down", or "none" for what describes and does not judge.
        chance: value without information; None where it depends on the data.
        needs_weights: name of the slot of network weights that a user must provide; None needs nothing.
        protocol: the definition in a sentence: preprocessing, formula, what is averaged.
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
        """Whether the first value is better than the second."""
        if self.direction == "none":
            raise BrainDataError(f"expected a metric that judges, got {self.name}, which only describes")
        return first > second if self.direction == "up" else first < second


@dataclass(frozen=True)
class Score:
    """One number of one metric, and the conditions it was measured under. None is "unknown" or "does not apply".

    Attributes:
        metric: its definition.
        value: finite, or None where `available` is False.
        n: number of what was averaged, `n_of`.
        interval: of the value.
        chance: value without information; of the metric where it is not given.
        chance_interval: of the value without information, such as under permuted pairs.
        ceiling: the best value that the noise of the data allows, on the scale of the value.
        mask: which voxels, in words, with how many were kept and how many were undefined.
        split, split_hash, part: which images.
        normalizer: scale of the responses; the unit of `mse`.
        transductive: the normaliser saw test trials.
        repeats: how the repeats of a test image were used: "single", "avg_voxels" or "avg_outputs".
        decoder: model, judge or control that made the prediction.
        features: fingerprint of the feature extractor.
        seed: of everything random.
        subject, roi: whose responses, of which region.
        versions: of the libraries that change numbers.
        available: False where the metric could not be computed; `note` says why.
        note: anything a reader must know.
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
                f"expected a finite value of {self.metric.name}, got {self.value}; a metric without a value is "
                "available=False with a note that says why"
            )
        if not self.available and not self.note:
            raise BrainDataError(f"expected a note that says why {self.metric.name} is not available, got none")
        if self.chance is None:
            object.__setattr__(self, "chance", self.metric.chance)

    def under(self, pairs: "Pairs | None" = None, **conditions: Any) -> "Score":
        """The same number with its conditions: those of a `Pairs`, and fields of this class by name."""
        known = {} if pairs is None else _conditions(pairs)
        return replace(self, **(known | conditions))

    @property
    def at_chance(self) -> bool | None:
        """Whether the value lies inside the chance interval; None where one of them is missing."""
        if not self.available or self.chance_interval is None:
            return None
        return self.value in self.chance_interval

    def __str__(self) -> str:
        if not self.available:
            return f"{self.metric} not available ({self.note})"
        return ", ".join(filter(None, [self._numbers(), self._place(), self._made_by(), self.note]))

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types: `json.dumps(score.to_json(), allow_nan=False)` always works."""
        return plain(asdict(self))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Score":
        """The score that `to_json` wrote; an unknown or missing field is a `BrainDataError`."""
        names = {item.name for item in fields(cls)}
        if set(record) != names:
            wrong = sorted(set(record) ^ names)
            raise BrainDataError(f"expected the fields of a score, got a record that differs in {', '.join(wrong)}")
        rebuilt = {
            name: Interval(*record[name]) for name in ("interval", "chance_interval") if record[name] is not None
        }
        return cls(**(dict(record) | rebuilt | {"metric": Metric(**record["metric"])}))

    def _numbers(self) -> str:
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


def not_available(metric: Metric, needs: str) -> Score:
    """The row of a metric that cannot be computed here. Nothing is computed in its place.

    Args:
        metric: which.
        needs: what is missing, in words that end the sentence "needs ...".
    """
    return Score(metric, None, n=0, available=False, note=f"needs {needs}; pass path=...")


def _conditions(pairs: "Pairs") -> dict[str, Any]:
    """What a `Pairs` knows about the numbers made from it."""
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
    """Three decimals near one, three digits elsewhere."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"
