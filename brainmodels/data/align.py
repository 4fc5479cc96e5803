"""A test, before training, that rows of responses and images belong together.

    report = check_alignment(dataset, "subj01", split)
    print(report)
    # raw responses of subj01 identify their images: two-way 0.96, null 0.50 +- 0.03, z 17.2, n 232 images

The test decodes coarse edges and colours (`grid_features`) from the responses with a linear model. This finds shuffled,
shifted and wrongly scaled rows. It uses train images only, needs no pretrained weights, and takes seconds.
"""

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import AlignmentError, BrainDataError
from .dataset import BrainDataset, Pairs, Split, Subject
from .grid import GRID_PIXELS, grid_features
from .normalize import Normalizer

__all__ = ["AlignmentReport", "alignment_of", "check_alignment"]

_log = logging.getLogger(__name__)
_COMPONENTS = 64  # principal components of responses and of features
_FOLDS = 5
_PERMUTATIONS = 200
_RIDGE = 1.0  # penalty, in units of the mean variance of the components
_ENOUGH_IMAGES = 100
_PASS_Z = 4.0
_SESSION_Z = (2.0, 3.0)  # bounds of the limit for a session, a quarter of the median z
_TRIALS_PER_SESSION = 200
_SESSION_IMAGES = 10  # sessions with fewer images are not tested
_STRONG_REPEATS = 0.8  # two-way score of repeats; simulated epochs reach it where their images have z > 5
_STRONG_RESPONSE = 0.01  # power of the mean response to all images, in units of the variance of trials
_REPEATED_IMAGES = 20  # with fewer repeated images, repeats are not compared
_MOST_TRIALS = 2000  # that tell the strength of epochs


@dataclass(frozen=True)
class AlignmentReport:
    """Result of `check_alignment`.

    Attributes:
        subject: Id of the subject.
        split: Hash of the split whose train images were used.
        score: Two-way identification of images that the decoder did not see, 0 to 1. Chance is 0.5.
        null_mean: Mean of the score under 200 permutations of the pairing.
        null_sd: Standard deviation of the score under these permutations.
        z: (score - null_mean) / null_sd. NaN where the test was switched off.
        n: Number of images.
        session_z: z of the single trials of each session, decoded by a model of other sessions, by session number.
        doubt: Why alignment cannot be told, of epochs with a weak signal. "" elsewhere.
    """

    subject: str
    split: str
    score: float
    null_mean: float
    null_sd: float
    z: float
    n: int
    session_z: dict[int, float] = field(default_factory=dict)
    doubt: str = ""

    def __str__(self) -> str:
        if np.isnan(self.z):
            return f"alignment of {self.subject} with its images was not tested"
        verdict = "identify" if self.z >= _PASS_Z else "do not identify"
        text = (
            f"raw responses of {self.subject} {verdict} their images: two-way {self.score:.2f}, "
            f"null {self.null_mean:.2f} +- {self.null_sd:.2f}, z {self.z:.1f}, n {self.n} images"
        )
        if self.session_z:
            text += f"; sessions z {min(self.session_z.values()):.1f} to {max(self.session_z.values()):.1f}"
        return f"{text}; {self.doubt}" if self.doubt else text


def check_alignment(
    dataset: BrainDataset,
    subject: str,
    split: Split | str,
    mode: str = "auto",
    max_images: int = 1000,
    seed: int = 0,
) -> AlignmentReport:
    """Test that the responses of a subject identify the images that they are matched with.

    The test standardises the responses by session, even where they are normalised already. It averages the repeats of
    each image. A ridge then predicts the first 64 principal components of the features from those of the responses, in
    5 folds. The score is the two-way identification of held-out images, compared with 200 permutations of the pairing.
    Sessions are tested in the same way on single trials. Axes and model of a tested session come from other sessions.

    Single trials of EEG and MEG are noisy. Intact epochs can lie at chance in this test, as wrong rows do. Then the
    strength of the signal decides. Where it is weak, the test warns that alignment cannot be told, and the report says
    so in `doubt`. A signal is strong in either of two cases:

    | case | means |
    |---|---|
    | trials of one image identify each other (two-way 0.8 or more) | rows fit each other, but not the pictures |
    | they do not (z < 4), but the mean response to all images has 0.01 of the variance | rows were exchanged |

    Args:
        dataset: Data set with the subject.
        subject: Id of the subject.
        split: Split, or name of the split, whose train images are used.
        mode: "auto" runs the test. "off" only logs that it was not run.
        max_images: Largest number of images to use. They are drawn at random.
        seed: Seed of the draw of images, the folds and the permutations.

    Returns:
        The scores, also where images are too few to fail.

    Raises:
        AlignmentError: 100 or more images are identified at chance (z < 4), or the trials of a session are. A session
            is at chance where its z is below a quarter of the median z, but at least 2 and at most 3. Sessions are
            judged only where the median is above 4. With fewer than 100 images, and for weak epochs, there is only a
            warning.
        BrainDataError: `mode` is unknown.
    """
    if mode not in ("auto", "off"):
        raise BrainDataError(f"expected mode 'auto' or 'off', got {mode!r}")
    split = dataset.split(split) if isinstance(split, str) else split
    if mode == "off":
        nan = float("nan")
        report = AlignmentReport(subject, split.hash, nan, nan, nan, nan, 0)
        _log.warning("%s", report)
        return report
    rng = np.random.default_rng(seed)
    person = dataset.subject(subject)
    normalizer = _normalizer(person, split)
    pairs = dataset.pairs(subject, split, "train", average="repeats", transform=normalizer)
    if len(pairs) < 2 * _FOLDS:
        raise AlignmentError(f"expected {2 * _FOLDS} train images or more of {subject} to test, got {len(pairs)}")
    chosen = np.sort(rng.permutation(len(pairs))[:max_images])
    responses, features = _Axes(pairs.batch(chosen)), _Axes(_features(dataset, pairs.image_ids[chosen]))
    report = AlignmentReport(subject, split.hash, *_identification(responses.scores, features.scores, rng), len(chosen))
    if report.z < _PASS_Z:
        doubt = _doubt(dataset, pairs, rng) if person.responses.values.ndim == 3 and report.n >= _ENOUGH_IMAGES else ""
        if doubt:
            report = replace(report, doubt=doubt)
            _log.warning("%s", report)
        else:
            _at_chance(report)
        return report
    report.session_z.update(_sessions(dataset, pairs, features, max_images, rng))
    _bad_sessions(report)
    return report


def alignment_of(
    subject: str, responses: np.ndarray, features: np.ndarray, split: str = "", seed: int = 0
) -> AlignmentReport:
    """The test of images in `check_alignment`, for responses in memory and any features of the images.

    Args:
        subject: Id of the subject, for messages.
        responses: Responses (n, V), averaged over the repeats of each image. Columns with missing values are ignored.
        features: Features of the same images, (n, ...), such as their tokens.
        split: Hash of the split, for the report.
        seed: Seed of the folds and the permutations.

    Raises:
        AlignmentError: 100 or more images are identified at chance (z < 4), or there are fewer than 10 images. With
            10 to 99 images there is only a warning.
    """
    if len(responses) < 2 * _FOLDS:
        raise AlignmentError(f"expected {2 * _FOLDS} train images or more of {subject} to test, got {len(responses)}")
    found = _identification(_Axes(responses).scores, _Axes(features).scores, np.random.default_rng(seed))
    report = AlignmentReport(subject, split, *found, len(responses))
    if report.z < _PASS_Z:
        _at_chance(report)
    return report


class _Axes:
    """The first 64 principal axes of standardised data (n, columns), and the coordinates of its rows on them."""

    def __init__(self, data: np.ndarray):
        data = data.reshape(len(data), -1).astype(np.float64)
        self.good = np.isfinite(data).all(0) & (np.ptp(data, axis=0) > 0)
        if not self.good.any():
            raise AlignmentError(f"expected columns that vary in every session, got none of {data.shape[1]}")
        data = data[:, self.good]
        self.mean, self.std = data.mean(0), data.std(0)
        data = (data - self.mean) / self.std
        values, vectors = np.linalg.eigh(data @ data.T)
        kept = np.flatnonzero(values > 1e-10 * values[-1])[::-1][:_COMPONENTS]
        self.axes = data.T @ (vectors[:, kept] / np.sqrt(values[kept]))
        self.scores = data @ self.axes

    def project(self, data: np.ndarray) -> np.ndarray:
        """Coordinates of other rows on the axes, (n, 64). A missing value counts as the mean of its column."""
        data = (data.reshape(len(data), -1)[:, self.good] - self.mean) / self.std
        return np.where(np.isfinite(data), data, 0) @ self.axes


def _normalizer(person: Subject, split: Split) -> Normalizer:
    """A normaliser fitted on the train trials, by session where sessions are known, else by voxel or channel."""
    part = person.responses.subset(split.rows(person.responses.trials, "train", person.id))
    over = None if person.normalizer == "none" else person.normalizer
    sessions, counts = np.unique(part.trials.session, return_counts=True)
    if part.values.ndim == 3:
        normalizer = Normalizer("channel_z", over)
    elif len(sessions) and sessions[0] >= 0 and counts.min() >= 2:
        normalizer = Normalizer("session_z_train", over, min_trials=2)
    else:
        normalizer = Normalizer("train_z", over)
    return normalizer.fit(part, split.ids("train", person.id))


def _features(dataset: BrainDataset, ids: np.ndarray) -> np.ndarray:
    return grid_features(dataset.stimuli.images(ids, GRID_PIXELS))


def _ridge(x: np.ndarray, x_new: np.ndarray) -> np.ndarray:
    """Matrix (m, n) that predicts with a ridge, which has a free intercept.

    Its product with targets (n, ...) gives the predictions for `x_new` (m, k), after training on `x` (n, k).
    """
    mean = x.mean(0)
    x, x_new = x - mean, x_new - mean
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    slope = x_new @ np.linalg.solve(gram, x.T)
    return slope + 1 / len(x)  # columns of x sum to 0, so this adds the mean of the targets


def _two_way(real: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """For each prediction, the share of the other images that are less similar (cosine) to it than its own, (n,)."""
    real, predicted = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, predicted))
    similar = real @ predicted.T
    return (similar < np.diag(similar)).sum(0) / (len(similar) - 1)


def _identification(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Identify images from responses in folds: score, mean and standard deviation under permutations, and z."""
    folds = np.array_split(rng.permutation(len(x)), _FOLDS)
    others = [np.setdiff1d(np.arange(len(x)), held) for held in folds]
    maps = [_ridge(x[train], x[held]) for train, held in zip(others, folds, strict=True)]

    def score(y: np.ndarray) -> float:
        parts = zip(maps, others, folds, strict=True)
        return np.concatenate([_two_way(y[held], ridge @ y[train]) for ridge, train, held in parts]).mean()

    return _against_null(score(y), [score(y[rng.permutation(len(y))]) for _ in range(_PERMUTATIONS)])


def _against_null(score: float, null: list[float]) -> tuple[float, float, float, float]:
    mean, sd = np.mean(null), np.std(null, ddof=1)
    return float(score), float(mean), float(sd), float((score - mean) / sd)


def _sessions(
    dataset: BrainDataset, pairs: Pairs, features: _Axes, max_images: int, rng: np.random.Generator
) -> dict[int, float]:
    """z of every session, whose trials are decoded with axes and a model of other sessions.

    Sessions are left out in 5 groups, or singly where there are fewer. Axes from the tested session would leak where
    there are more voxels than images. There the noise of a trial puts it near the average of its image.
    """
    person, split = pairs.subject, pairs.split
    rows = split.rows(person.responses.trials, "train", person.id)
    rows = _some_of_each(person.responses.trials.session[rows], rows, rng)
    trials = person.responses.trials[rows]
    numbers = np.unique(trials.session)
    if len(numbers) < 2 or numbers[0] < 0:
        return {}
    assert pairs.transform is not None  # a fitted normaliser
    names, image = np.unique(trials.image_id, return_inverse=True)
    y = features.project(_features(dataset, names))
    out = {}
    for group in np.array_split(numbers, min(_FOLDS, len(numbers))):
        rest = replace(split, sessions={"train": frozenset(np.setdiff1d(numbers, group).tolist())})
        others = dataset.pairs(person.id, rest, "train", average="repeats", transform=pairs.transform)
        known = np.flatnonzero(np.isin(others.image_ids, names))
        if len(known) < 2 * _FOLDS:
            continue
        known = np.sort(rng.permutation(known)[:max_images])
        axes, targets = _Axes(others.batch(known)), y[np.searchsorted(names, others.image_ids[known])]
        for number in group:
            here = np.flatnonzero(trials.session == number)
            shown, position = np.unique(image[here], return_inverse=True)
            if len(shown) < _SESSION_IMAGES:
                continue
            values = pairs.transform.transform(person.responses.batch(rows[here]), trials[here])
            predicted = np.zeros((len(shown), y.shape[1]))
            np.add.at(predicted, position, _ridge(axes.scores, axes.project(values)) @ targets)
            orders = [rng.permutation(len(shown)) for _ in range(_PERMUTATIONS)]
            null = [_two_way(y[shown[order]], predicted).mean() for order in orders]
            out[int(number)] = _against_null(_two_way(y[shown], predicted).mean(), null)[3]
    return out


def _some_of_each(session: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most 200 rows of every session."""
    some = [rng.permutation(rows[session == number])[:_TRIALS_PER_SESSION] for number in np.unique(session)]
    return np.sort(np.concatenate(some))


def _doubt(dataset: BrainDataset, pairs: Pairs, rng: np.random.Generator) -> str:
    """Why epochs are too weak to tell whether rows and images belong together; "" where they are strong enough."""
    singles = dataset.pairs(pairs.subject.id, pairs.split, "train", average="none", transform=pairs.transform)
    response = _common_response(singles.batch(np.sort(rng.permutation(len(singles))[:_MOST_TRIALS])))
    halves = _halves(singles, rng)
    end = "the signal is too weak to tell whether rows and images are aligned"
    if halves is not None:
        first, second = halves
        null = [_two_way(first[rng.permutation(len(first))], second).mean() for _ in range(_PERMUTATIONS)]
        score, _, _, z = _against_null(_two_way(first, second).mean(), null)
        if score >= _STRONG_REPEATS:
            return ""
        if z >= _PASS_Z:
            return f"trials of one image identify each other with {score:.2f} (z {z:.1f}): {end}"
    if response >= _STRONG_RESPONSE:
        return ""
    return f"the mean response has {max(response, 0):.4f} of the variance of trials: {end}"


def _common_response(values: np.ndarray) -> float:
    """Power of the mean over trials (n, channels, times) without that of noise, over the variance of trials.

    The order of the rows does not matter to it. The mean over time is taken from every trial, as it is no response.
    """
    values = values - values.mean(2, keepdims=True, dtype=np.float64)
    variance = values.var(0, ddof=1)
    return float((np.square(values.mean(0)) - variance / len(values)).sum() / variance.sum())


def _halves(singles: Pairs, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Means over the two halves of the trials of repeated images, centred, (images, columns); None with few images."""
    _, image, counts = np.unique(singles.image_ids, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    if len(repeated) < _REPEATED_IMAGES:
        return None
    repeated = np.sort(rng.permutation(repeated)[: _MOST_TRIALS // 4])
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number in repeated:
        rows = np.flatnonzero(image == number)
        for half, means in enumerate(found):
            means.append(singles.batch(rows[half::2]).reshape(len(rows[half::2]), -1).mean(0, dtype=np.float64))
    first, second = (np.array(means) - np.mean(means, 0) for means in found)
    return first, second


def _at_chance(report: AlignmentReport) -> None:
    text = (
        f"raw responses of {report.subject} identify their images at chance ({report.score:.2f}, null "
        f"{report.null_mean:.2f} +- {report.null_sd:.2f}, z {report.z:.1f}, n {report.n})"
    )
    if report.n < _ENOUGH_IMAGES:
        _log.warning("%s: %d images are too few to tell whether rows and images are misaligned", text, report.n)
        return
    raise AlignmentError(f"{text}: rows and images are probably misaligned, or the mask or scaling is wrong")


def _bad_sessions(report: AlignmentReport) -> None:
    median = np.median(list(report.session_z.values() or [0]))
    if median <= _PASS_Z:
        return
    limit = np.clip(median / 4, *_SESSION_Z)
    bad = {number: z for number, z in report.session_z.items() if z < limit}
    if bad:
        listed = ", ".join(f"{number} (z {z:.1f})" for number, z in bad.items())
        raise AlignmentError(
            f"expected the trials of every session of {report.subject} to identify their images as those of the others "
            f"do (median z {median:.1f}), got chance in session {listed}: its rows are probably shifted or exchanged"
        )
