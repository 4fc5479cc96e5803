"""Several subjects of one study together: each score over subjects, and differences to ridge over subjects.

group = group_of(evaluations)
group.rows[0].scores["variance_change"].over_subjects  # mean, t interval and p over subjects
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BrainDataError
from ..metrics import Interval
from ..metrics.subjects import SubjectSummary, bootstrap_subjects, random_effects, t_summary
from .encoding import Resampled

if TYPE_CHECKING:
    from .run import Evaluation

__all__ = ["Group", "GroupRow", "GroupScore", "group_of"]


@dataclass(frozen=True)
class GroupScore:
    """One score of one row over subjects.

    Attributes:
        values: Score of each subject, by name. None where the score does not apply to the subject, which then takes no
            part in the summaries.
        over_subjects: Mean and t interval over subjects.
        random: Random effects. None where resamples of a subject do not vary.
        bootstrap: Interval of the mean from resampled subjects and images.
    """

    values: Mapping[str, float | None]
    over_subjects: SubjectSummary
    random: SubjectSummary | None
    bootstrap: Interval

    def to_json(self) -> dict[str, Any]:
        return {
            "values": dict(self.values),
            "over_subjects": asdict(self.over_subjects),
            "random": None if self.random is None else asdict(self.random),
            "bootstrap": list(self.bootstrap),
        }


@dataclass(frozen=True)
class GroupRow:
    """A row of the verdict table over subjects.

    Attributes:
        model, features, against: As in `Verdict`.
        scores: "variance", "top", "variance_change" and "top_change", as far as all subjects have them, or two or more
            of the subjects that the score applies to.
    """

    model: str
    features: str
    against: str
    scores: Mapping[str, GroupScore]

    def to_json(self) -> dict[str, Any]:
        scores = {name: score.to_json() for name, score in self.scores.items()}
        return {"model": self.model, "features": self.features, "against": self.against, "scores": scores}


@dataclass(frozen=True)
class Group:
    """Several subjects together.

    Attributes:
        subjects: Their names.
        rows: Rows that all subjects have, in the order of the first subject.
        measure: Name of the scores "variance": nr2, or voxel_r, the mean correlation, where no subject has a ceiling.
        crossed: Whether all subjects are tested on the same images.
        without: Subjects without a noise ceiling in a group where others have one. nr2 does not apply to them.
    """

    subjects: Sequence[str]
    rows: Sequence[GroupRow]
    measure: str
    crossed: bool
    without: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"subjects": list(self.subjects), "measure": self.measure, "crossed": self.crossed}
        told["without_ceiling"] = list(self.without)
        return told | {"rows": [row.to_json() for row in self.rows]}


def group_of(evaluations: "Sequence[Evaluation]", seed: int = 0) -> Group:
    """The rows of the verdict tables of several subjects, summarised over subjects.

    Where only some subjects have a noise ceiling, nr2 is summarised over these. It is never averaged with correlations.

    Args:
        evaluations: One evaluation for each subject, with equal settings.
        seed: Seed of the draws of subjects.

    Raises:
        BrainDataError: Fewer than two subjects, a subject occurs twice, or they have no score in common.
    """
    subjects = [item.study.test.subject.id for item in evaluations]
    if len(set(subjects)) < 2 or len(set(subjects)) < len(subjects):
        raise BrainDataError(f"expected two or more different subjects, got {', '.join(subjects) or 'none'}")
    ceilings = [item.study.ceiling is not None for item in evaluations]
    without = [name for name, has in zip(subjects, ceilings, strict=True) if any(ceilings) and not has]
    tables = [{(row.model, row.features, row.against): row for row in item.verdict} for item in evaluations]
    images = [item.study.test.image_ids.tolist() for item in evaluations]
    resamples = {(item.study.seed, item.study.resamples) for item in evaluations}
    crossed = all(ids == images[0] for ids in images) and len(resamples) == 1
    rows = []
    for key in tables[0]:
        if not all(key in table for table in tables):
            continue
        found = [table[key].estimates for table in tables]
        scores = {}
        for name in [name for name in found[0] if all(name in estimates for estimates in found)]:
            applies = {
                subject: estimates[name]
                for subject, estimates in zip(subjects, found, strict=True)
                if subject not in without or not name.startswith("variance")
            }
            if len(applies) > 1:
                scores[name] = _score(subjects, applies, crossed, seed)
        if scores:
            rows.append(GroupRow(*key, scores))
    if not rows:
        raise BrainDataError(f"expected a model or features that all of {', '.join(subjects)} have, got none")
    return Group(subjects, rows, "nr2" if any(ceilings) else "voxel_r", crossed, without)


def _score(subjects: Sequence[str], applies: Mapping[str, Resampled], crossed: bool, seed: int) -> GroupScore:
    """One score over subjects, from its value and its resamples in each of those that it applies to."""
    found = list(applies.values())
    values = np.array([item.value for item in found])
    shortest = min(len(item.draws) for item in found)
    draws = np.array([item.draws[:shortest] - item.draws[:shortest].mean() + item.value for item in found])
    variances = draws.var(1, ddof=1)
    random = random_effects(values, variances) if variances.min() > 0 else None
    interval = bootstrap_subjects(draws, crossed, seed)
    told = {name: float(applies[name].value) if name in applies else None for name in subjects}
    return GroupScore(told, t_summary(values), random, interval)
