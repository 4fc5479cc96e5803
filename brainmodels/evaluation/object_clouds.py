"""Decoded clouds beside what they must beat, retrieved ones above all, and what no decoder can pass.

made = collect_clouds(case, answers, {"Neuro3D": model}, truth)
rows = judge_clouds(case, made)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import Score
from ..metrics.cloud_judge import NearestCloudJudge, identification_scores
from ..metrics.cloud_sets import chamfer_table, draw_points, emd_scores, set_scores
from ..metrics.eeg import classification_scores
from ..metrics.nway import nway_topk
from ..metrics.shape3d import chamfer_l2, cloud_scores, color_scores, fscore, normalize_cloud
from ..nn.point_judge import PointNetJudge
from .object_case import ObjectCase, Row, words_of
from .object_rows import IDEAL, RIDGE, Answer

__all__ = [
    "ANOTHER",
    "PRIMARY",
    "PROTOCOLS",
    "Judge",
    "Made",
    "agreement",
    "collect_clouds",
    "fit_judges",
    "judge_clouds",
    "medoids",
    "retrieved_name",
]

PRIMARY = "chamfer_l2[rms]"
PROTOCOLS = ((2, 1), (10, 3))
TWO_SAMPLINGS = "two samplings of the truth"
SAME_CLASS = "another object of the true class"
TRUE_FEATURES = "decoder from true features"
PRIOR = "prior_only"
ANOTHER = "cloud of another test object"
POOLED = "all train clouds of the class"
SPHERE = "sphere"
_SETS = ("mmd_cd", "cov_cd", "1nna_cd")
_MEDOID_POINTS = 512
_SET_POINTS = 256  # of each cloud: a table of all pairs takes seconds with more


@dataclass(frozen=True)
class Made:
    """Clouds of all test objects that one method makes.

    Attributes:
        name, kind, about: As in `Row`.
        clouds: Clouds (N, 6) of each object, by id. Coordinates of any scale, colours in [0, 1].
        answer: Whose class and colour the clouds show; None where that means nothing.
    """

    name: str
    kind: str
    about: str
    clouds: Mapping[str, Sequence[np.ndarray]]
    answer: Answer | None = None


class Judge:
    """A classifier of clouds that was fitted to train objects. It looks at each shape once and remembers it.

    Args:
        name: Its name in the names of metrics.
        classify: Function from clouds to scores (n, K), higher is likelier.
        truth: True clouds of the test objects.
        labels: Their classes, (n,).

    Attributes:
        name: As given.
        real: Scores (n, K) of the true clouds.
        accuracy: Share of the true clouds that it names correctly, which bounds the scores of decoded clouds.
    """

    def __init__(
        self,
        name: str,
        classify: Callable[[list[np.ndarray]], np.ndarray],
        truth: Sequence[np.ndarray],
        labels: np.ndarray,
    ):
        self.name, self._classify, self._known = name, classify, {}
        self.real = self.scores(truth)
        self.accuracy = float(np.mean(self.real.argmax(1) == labels))

    def scores(self, clouds: Sequence[np.ndarray]) -> np.ndarray:
        """Scores (n, K) of clouds (N, 3 or more), whose colours do not matter."""
        shapes = [np.ascontiguousarray(cloud[:, :3], np.float64) for cloud in clouds]
        keys = [shape.tobytes() for shape in shapes]
        new = {key: shape for key, shape in zip(keys, shapes, strict=True) if key not in self._known}
        if new:
            self._known |= dict(zip(new, self._classify(list(new.values())), strict=True))
        return np.stack([self._known[key] for key in keys])


def fit_judges(case: ObjectCase) -> list[Judge]:
    """`chamfer_nn` and `pointnet` of the train clouds, with their scores of the true test clouds."""
    labels, truth = case.labels("class", case.train_ids), case.labels("class", case.test.ids)
    clouds, seed = case.train_clouds, case.settings.seed
    real = [case.truth[name] for name in case.test.ids.tolist()]
    nearest = NearestCloudJudge(clouds, labels, seed=seed)
    judges = [Judge(nearest.name, nearest.scores, real, truth)]
    if case.settings.judge_steps:
        trained = PointNetJudge().fit(clouds, labels, seed, case.settings.judge_steps, case.num_classes)
        judges.append(Judge("pointnet", trained.predict_proba, real, truth))
    return judges


def medoids(clouds: Sequence[np.ndarray], labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Of each class the cloud with the smallest mean `chamfer_l2` to the others of it, by root mean square radius.

    Args:
        clouds: n clouds (N, 3 or more).
        labels: (n,) Classes, integers from 0, each of which occurs.
        seed: Seed of the points that are compared, of clouds with more than 512.

    Returns:
        Positions of the clouds (classes,) int64. Of equally central ones the first.
    """
    rng, found = np.random.default_rng(seed), []
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        own = [draw_points(normalize_cloud(clouds[row], "rms"), _MEDOID_POINTS, rng) for row in rows.tolist()]
        found.append(rows[chamfer_table(own, own).sum(1).argmin()])
    return np.array(found, np.int64)


def retrieved_name(name: str) -> str:
    """Name of the row of train clouds that an answer retrieves."""
    return f"retrieved by {name}"


def collect_clouds(
    case: ObjectCase,
    answers: Mapping[str, Answer],
    models: Mapping[str, Any],
    truth: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> list[Made]:
    """Clouds of the models, and of everything that they are compared with. The first model's samples and points count.

    Args:
        case: The trials.
        answers: Classes and colours that models, ridge and the ideal observer say.
        models: Fitted models by name.
        truth: `true_features` of the first model.
    """
    (name, model), *_ = models.items()
    settings = case.settings
    samples = settings.samples or model.recipe.samples
    count = settings.num_points or model.recipe.num_points
    options = {"samples": samples, "num_points": count, "seed": settings.seed}
    found = [
        Made(label, "model", "decoded from EEG", one.decode(case.test, **options).by_id(), answers[label])
        for label, one in models.items()
    ]
    central = medoids(case.train_clouds, case.labels("class", case.train_ids), settings.seed)
    central = case.cut([case.train_clouds[row] for row in central], count)
    found += [_retrieved(case, answers[label], central, "below") for label in models]
    found.append(_retrieved(case, answers[RIDGE], central, "below"))
    if case.ideal is not None:
        found.append(_retrieved(case, answers[IDEAL], central, "above"))
    found += _above(case, model, truth, options, count)
    return found + _below(case, model, answers[name], found[0], truth, options, count)


def judge_clouds(case: ObjectCase, made: Sequence[Made], judges: Sequence[Judge]) -> list[Row]:
    """All scores of clouds, a row for each of `made`.

    Distances have as ceiling the row of two samplings of the truth, and as chance the first model's clouds of other
    objects. Scores of sets have as ceiling other real clouds, and as chance the spheres. Only some rows have them.
    """
    of_sets = {SAME_CLASS, PRIOR, SPHERE, *(x.name for x in made if x.kind == "model")}
    of_sets |= {retrieved_name(item.name) for item in made if item.kind == "model"}
    rows = [_judged(case, item, judges, item.name in of_sets) for item in made]
    return [_bounded(row, {row.name: row for row in rows}) for row in rows]


def agreement(case: ObjectCase, item: Made, judges: Sequence[Judge]) -> list[Score]:
    """How often a judge names the class that the model itself said, a score for each judge."""
    assert item.answer is not None  # of a model
    said = item.answer.shape.argmax(1)
    samples = len(next(iter(item.clouds.values())))
    found = []
    for judge in judges:
        flat = judge.scores([cloud for name in case.test.ids.tolist() for cloud in item.clouds[name]])
        options = case.conditions(n_of="clouds", decoder=f"{judge.name} on clouds of {item.name}")
        objects, labels = case.test.ids.repeat(samples), said.repeat(samples)
        scores = classification_scores(flat, labels, objects, (1,), case.settings.resamples, **options)
        found.append(scores[0].under(note=f"truth is what {item.name} answered", ceiling=judge.accuracy))
    return found


def _retrieved(case: ObjectCase, answer: Answer, central: Sequence[np.ndarray], kind: str) -> Made:
    clouds = {}
    for row, name in enumerate(case.test.ids.tolist()):
        cloud = central[int(answer.shape[row].argmax())].copy()
        if answer.color is not None and case.palette is not None:
            cloud[:, 3:] = case.palette[int(answer.color[row].argmax())]
        clouds[name] = [cloud]
    about = f"medoid train cloud of the class that {answer.name} names, in the colour that it names"
    return Made(retrieved_name(answer.name), kind, about, clouds, answer)


def _above(case: ObjectCase, model: Any, truth: Mapping[str, tuple], options: dict[str, Any], count: int) -> list[Made]:
    ids, classes = case.test.ids, case.labels("class", case.test.ids)
    second = case.cut([case.halves[1][name] for name in ids.tolist()], count)
    rng, known = np.random.default_rng(case.settings.seed), case.labels("class", case.train_ids)
    others = {}
    for name, label in zip(ids.tolist(), classes, strict=True):
        rows = rng.permutation(np.flatnonzero(known == label))[: options["samples"]]
        rows = np.resize(rows, options["samples"])  # a class with fewer objects repeats them
        others[name] = case.cut([case.train_clouds[row] for row in rows], count)
    shape = np.eye(case.num_classes, dtype=np.float32)[classes]
    colors = None
    if case.num_colors:
        colors = np.eye(case.num_colors, dtype=np.float32)[case.labels("color", ids)]
    decoded = model.decode_features(*truth["test"], shape, colors, ids, **options).by_id()
    two = {name: [cloud] for name, cloud in zip(ids.tolist(), second, strict=True)}
    return [
        Made(TRUE_FEATURES, "above", "features, class and colour of the object itself in place of EEG", decoded),
        Made(SAME_CLASS, "above", "train objects of the true class, drawn at random", others),
        Made(TWO_SAMPLINGS, "above", "other points of the same surface", two),
    ]


def _below(
    case: ObjectCase,
    model: Any,
    answer: Answer,
    first: Made,
    truth: Mapping[str, tuple],
    options: dict[str, Any],
    count: int,
) -> list[Made]:
    ids, n = case.test.ids, len(case.test)
    rng = np.random.default_rng(case.settings.seed)
    mean = [np.tile(values.mean(0, dtype=np.float64), (n, 1)).astype(np.float32) for values in truth["train"]]
    shape = np.full((n, case.num_classes), 1 / case.num_classes, np.float32)
    colors = np.full((n, case.num_colors), 1 / case.num_colors, np.float32) if case.num_colors else None
    free = {"guidance": 0.0} if model.recipe.condition_dropout else {}  # 0 leaves the condition out
    prior = model.decode_features(*mean, shape, colors, ids, **options | {"samples": 1}, **free).by_id()
    order = other_objects(n, case.settings.seed)
    another = {str(ids[row]): first.clouds[str(ids[other])] for row, other in enumerate(order)}
    known, pooled = case.labels("class", case.train_ids), {}
    sphere = {}
    middle = np.concatenate([cloud[:, 3:] for cloud in case.train_clouds]).mean(0)
    for row, name in enumerate(ids.tolist()):
        own = np.flatnonzero(known == answer.shape[row].argmax())
        clouds = np.concatenate([normalize_cloud(case.train_clouds[place], "rms") for place in own])
        pooled[name] = [draw_points(clouds, count, rng)]
        ball = rng.normal(size=(count, 3))
        ball /= np.linalg.norm(ball, axis=1, keepdims=True)
        sphere[name] = [np.hstack([ball, np.tile(middle, (count, 1))])]
    told = "no condition of the shape" if free else "mean features of the train objects, and no class"
    return [
        Made(POOLED, "below", f"of the class that {first.name} names, on top of each other", pooled),
        Made(PRIOR, "below", f"what the decoder makes without EEG: {told}", prior),
        Made(ANOTHER, "below", f"{first.name} on EEG of another object", another),
        Made(SPHERE, "below", "in the mean colour", sphere),
    ]


def other_objects(n: int, seed: int) -> np.ndarray:
    """For each of n objects the row of another one; each is taken once."""
    order = np.random.default_rng(seed).permutation(n)
    rows = np.empty(n, np.int64)
    rows[order] = np.roll(order, 1)
    return rows


def _judged(case: ObjectCase, item: Made, judges: Sequence[Judge], as_set: bool) -> Row:
    settings, true = case.settings, case.truth
    clouds = {name: list(item.clouds[name]) for name in true}
    common = case.conditions(decoder=item.name)
    options: dict[str, Any] = {"resamples": settings.resamples, **common}
    scores = cloud_scores(true, clouds, scale="rms", **options)
    scores += cloud_scores(true, clouds, scale="radius", **options)
    least = min(len(cloud) for group in ([*true.values()], *clouds.values()) for cloud in group)
    if settings.emd_points:
        scores += emd_scores(true, clouds, points=min(settings.emd_points, least), **options)
    if case.palette is not None:
        scores += color_scores(true, clouds, case.palette, **options)
    values = _values(true, clouds)
    for judge in judges:
        found, per_object = _identified(case, clouds, judge, options)
        scores, values = scores + found, values | per_object
    if as_set:
        more: dict[str, Any] = {"n_of": "clouds", "num_points": _SET_POINTS}
        real, first = [true[name] for name in true], [clouds[name][0] for name in true]
        others = case.cut(case.train_clouds, least) if len(case.train_clouds) >= len(real) else None
        scores += set_scores(real, first, others, **options | more)
    return Row(item.name, item.kind, scores, item.about, values)


def _values(true: Mapping[str, np.ndarray], made: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Values (n,) of distances for paired comparisons, means over the samples of an object."""
    found: dict[str, list[float]] = {PRIMARY: [], "fscore@0.05[rms]": []}
    for name, cloud in true.items():
        real, own = normalize_cloud(cloud, "rms")[:, :3], [normalize_cloud(x, "rms")[:, :3] for x in made[name]]
        found[PRIMARY].append(float(np.mean([chamfer_l2(real, x) for x in own])))
        found["fscore@0.05[rms]"].append(float(np.mean([fscore(real, x, 0.05) for x in own])))
    return {name: np.array(values) for name, values in found.items()}


def _identified(
    case: ObjectCase, clouds: Mapping[str, Sequence[np.ndarray]], judge: Judge, options: Mapping[str, Any]
) -> tuple[list[Score], dict[str, np.ndarray]]:
    """N-way scores by a judge, and their values (n,) of each object."""
    names = case.test.ids.tolist()
    samples, classes = len(clouds[names[0]]), case.num_classes
    flat = judge.scores([cloud for name in names for cloud in clouds[name]])
    labels = case.labels("class", case.test.ids)
    protocols = [*(pair for pair in PROTOCOLS if pair[0] < classes), (classes, 1)]
    table = flat.reshape(len(names), samples, classes)
    scores = identification_scores(table, judge.real, labels, judge.name, protocols, **options)
    values = {
        score.metric.name: nway_topk(flat, labels.repeat(samples), *pair).reshape(len(names), samples).mean(1)
        for score, pair in zip(scores, protocols, strict=True)
    }
    return scores, values


def _bounded(row: Row, rows: Mapping[str, Row]) -> Row:
    """The row with a ceiling and a chance of scores that have none by themselves."""
    best, found = rows[TWO_SAMPLINGS], []
    for score in row.scores:
        start = score.metric.name.partition("[")[0]
        worst = rows[SPHERE if start in _SETS else ANOTHER]
        top, low = (_same(other, score) for other in (best, worst))
        if start.startswith(("chamfer", "fscore", "emd", "color_error")):
            score = score.under(ceiling=top, chance=low, note=f"ceiling: {best.name}; chance: {worst.name}")
        elif start in _SETS:
            score = score.under(chance=low, note=f"{score.note}; chance: {worst.name}")
        elif start.startswith("majority_color"):
            score = score.under(ceiling=top)
        found.append(score)
    return Row(row.name, row.kind, found, row.about, row.values)


def _same(row: Row, score: Score) -> float | None:
    """The value of a row in the metric of a score, means over samples in the place of their best one."""
    start, words = words_of(score)
    found = row.pick(start, *(word for word in words if not word.startswith(("mean_of", "best_of"))))
    return None if found is None else found.value
