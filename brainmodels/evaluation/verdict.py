"""The first table of a report: what each model reaches, and whether it is better than ridge on the same tokens.

rows = verdicts(study, encoded, decoded, models)
rows[0].variance_change  # Difference in nr2 to ridge, with interval and p

All differences are paired: both methods are scored on the same resampled test images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..metrics import Score
from ..metrics.retrieval import ranks
from ..metrics.significance import DifferenceTest, voxel_difference
from ..metrics.statistics import (
    LEAST_FLIPPED,
    Difference,
    bootstrap_weights,
    paired_difference,
    resampled_difference,
)
from .decoding import Decoded
from .encoding import WHOLE, Encoded, Resampled, Study
from .models import SAME_TOKENS, ModelEvaluation

__all__ = ["Verdict", "seed_spread", "verdicts"]

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """One row of the table.

    Attributes:
        model, features: Names of the model and of its features.
        variance: Share of the explainable variance, or the median correlation without a ceiling. None for a model that
            predicts no responses.
        top: Share of the test images that are identified. None for a model that does not decode.
        against: The row that this one is compared with, in words; "" for a row that is not compared.
        variance_change, top_change: This row minus the other one. None where either has no such score.
        regions: Differences by region, as `variance_change`.
        voxels: Test of the difference in each voxel that counts.
        estimates: "variance", "top", "variance_change" and "top_change" with their resamples, as far as there are such.
            Without a ceiling, "variance" is the mean correlation here.
    """

    model: str
    features: str
    variance: Score | None
    top: Score | None
    against: str = ""
    variance_change: Difference | None = None
    top_change: Difference | None = None
    regions: Mapping[str, Difference] | None = None
    voxels: DifferenceTest | None = field(default=None, compare=False, repr=False)
    estimates: Mapping[str, Resampled] = field(default_factory=dict, compare=False, repr=False)

    @property
    def better(self) -> int:
        """Number of voxels that this row predicts better, at a false discovery rate of 5 %."""
        return 0 if self.voxels is None else int(((self.voxels.q <= LEVEL) & (self.voxels.difference > 0)).sum())

    @property
    def worse(self) -> int:
        """Number of voxels that this row predicts worse, at a false discovery rate of 5 %."""
        return 0 if self.voxels is None else int(((self.voxels.q <= LEVEL) & (self.voxels.difference < 0)).sum())

    def to_json(self) -> dict[str, Any]:
        scores = {"variance": self.variance, "top": self.top}
        changes = {"variance_change": self.variance_change, "top_change": self.top_change}
        voxels = None
        if self.voxels is not None:
            voxels = {"better": self.better, "worse": self.worse, "p_mean": self.voxels.p_mean}
        return {
            "model": self.model,
            "features": self.features,
            "against": self.against,
            **{name: None if score is None else _numbers(score) for name, score in scores.items()},
            **{name: None if change is None else _told(change) for name, change in changes.items()},
            "regions": {name: _told(change) for name, change in (self.regions or {}).items()},
            "voxels": voxels,
        }


def verdicts(
    study: Study, encoded: Sequence[Encoded], decoded: Sequence[Decoded], models: Sequence[ModelEvaluation] = ()
) -> list[Verdict]:
    """Rows of the table: models beside ridge on the same tokens, then ridge on each set of features beside the first.

    Args:
        study: Responses to the test images.
        encoded, decoded: Ridge on each set of features, in the same order; other rows are left out.
        models: Trained models.
    """
    rows: list[Verdict] = []
    for item in models:
        ridge, (found, found_by_ridge) = item.encoded[-1], item.found
        own = item.encoded[0] if item.opened.encodes else None
        reads = item.opened.decodes
        other = _Row(SAME_TOKENS, ridge.features, ridge, found_by_ridge)
        row = _Row(item.opened.name, ridge.features, own, found if reads else None)
        rows.append(_verdict(study, row, other, SAME_TOKENS))
        same = _verdict(study, other)
        if same not in rows:  # models may share their tokens
            rows.append(same)
    found_by = {item.features: item for item in decoded if item.scores[0].decoder == "ridge"}
    linear = [_Row("ridge", x.features, x, found_by.get(x.features)) for x in encoded if x.model == "ridge"]
    rows += [_verdict(study, row) for row in linear[:1]]
    return rows + [_verdict(study, row, linear[0], f"ridge, {linear[0].features}") for row in linear[1:]]


def seed_spread(models: Sequence[ModelEvaluation]) -> list[dict[str, Any]]:
    """Scores of models that differ only in the seed of their training: mean, standard deviation and range.

    Models belong together if they have the same system, features and recipe, and different seeds in the recipe.

    Returns:
        A dictionary for each group of two models or more: "system", "features", "models", "seeds" with those of all
        stages of each model, and by the name of the metric {"values", "mean", "sd"}, sd with ddof 1.
    """
    groups: dict[tuple[str, str, str], list[ModelEvaluation]] = {}
    for item in models:
        model = item.opened.model
        recipe, _ = _without_seeds(model.recipe.to_json())
        key = model.meta_["system"], item.opened.tokens_of.name, json.dumps(recipe, sort_keys=True, default=str)
        groups.setdefault(key, []).append(item)
    found = []
    for (system, features, _), members in groups.items():
        seeds = [_without_seeds(item.opened.model.recipe.to_json())[1] for item in members]
        if len(members) < 2 or len(set(map(tuple, seeds))) < len(seeds):
            continue
        scores: dict[str, list[float]] = {}
        for item in members:
            own = item.encoded[0].headline if item.opened.encodes else None
            top = item.found[0].score("image_given_brain_top1") if item.opened.decodes else None
            for score in (own, top):
                if score is not None and score.value is not None:
                    scores.setdefault(score.metric.name, []).append(score.value)
        told = {
            name: {"values": values, "mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
            for name, values in scores.items()
        }
        names = [item.opened.name for item in members]
        found.append({"system": system, "features": features, "models": names, "seeds": seeds, "scores": told})
    return found


def _without_seeds(recipe: Any) -> tuple[Any, list[int]]:
    """A recipe as JSON without the seeds of its stages, and these seeds."""
    if isinstance(recipe, list):
        parts = [_without_seeds(value) for value in recipe]
        return [part for part, _ in parts], [seed for _, seeds in parts for seed in seeds]
    if not isinstance(recipe, dict):
        return recipe, []
    rest, seeds = {}, []
    for name, value in recipe.items():
        if name == "seed":
            seeds.append(value)
        else:
            rest[name], more = _without_seeds(value)
            seeds += more
    return rest, seeds


class _Row(NamedTuple):
    """What a row of the table is made from."""

    model: str
    features: str
    encoded: Encoded | None
    decoded: Decoded | None


def _verdict(study: Study, row: _Row, other: _Row | None = None, against: str = "") -> Verdict:
    """The row of the table, compared with another one if there is one."""
    variance = None if row.encoded is None else row.encoded.headline
    top = None if row.decoded is None else row.decoded.score("image_given_brain_top1")
    estimates = _estimates(study, row)
    if other is None:
        return Verdict(row.model, row.features, variance, top, estimates=estimates)
    change, regions, voxels, top_change = None, {}, None, None
    own, known = row.encoded, other.encoded
    if own is not None and known is not None:
        changes = {name: _change(study, own, known, name) for name in own.resampled if name in known.resampled}
        change, regions = changes.pop(WHOLE, None), changes
        if own.predicted is not None and known.predicted is not None and len(study.test) >= LEAST_FLIPPED:
            measured = study.measured[:, study.voxels]
            voxels = voxel_difference(measured, own.predicted, known.predicted, study.resamples, study.seed)
    if row.decoded is not None and other.decoded is not None:
        top_change = paired_difference(_hits(row.decoded), _hits(other.decoded), study.resamples, study.seed)
    for name, found in _estimates(study, other).items():
        if name in estimates:
            mine = estimates[name]
            estimates[f"{name}_change"] = Resampled(mine.value - found.value, mine.draws - found.draws)
    names = row.model, row.features
    return Verdict(*names, variance, top, against, change, top_change, regions, voxels, estimates)


def _estimates(study: Study, row: _Row) -> dict[str, Resampled]:
    """Both scores of a row in the same resamples of the test images."""
    found = {}
    if row.encoded is not None and WHOLE in row.encoded.resampled:
        found["variance"] = row.encoded.resampled[WHOLE]
    if row.decoded is not None:
        hits, weights = _hits(row.decoded), bootstrap_weights(len(study.test), study.resamples, study.seed)
        found["top"] = Resampled(float(hits.mean()), weights @ hits / weights.sum(1))
    return found


def _change(study: Study, own: Encoded, other: Encoded, name: str) -> Difference:
    first, second = own.resampled[name], other.resampled[name]
    return resampled_difference(first.draws, second.draws, first.value - second.value, len(study.test))


def _hits(item: Decoded) -> np.ndarray:
    """Whether each test image is found first among all, (n,), as top-1 counts it."""
    return (ranks(item.similarities, "image_given_brain") <= 1).astype(np.float64)


def _numbers(score: Score) -> dict[str, Any]:
    interval = None if score.interval is None else [score.interval.low, score.interval.high]
    return {"metric": score.metric.name, "value": score.value, "interval": interval}


def _told(change: Difference) -> dict[str, Any]:
    return {"value": change.value, "interval": [change.interval.low, change.interval.high], "p": change.p}
