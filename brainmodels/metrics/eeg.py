"""Classification of EEG: accuracy with its chance level, identification by prototypes, epochs that may be reported.

    for score in classification_scores(logits, labels, objects=image_ids):
        print(score)  # accuracy_top1@10 ↑ ..., chance 0.100 [...], ...; balanced_accuracy@10 ↑ ...

Each score is printed beside k / C, the chance interval of permuted labels, and the rate of the majority class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.ids import Ids
from ..errors import AxisError, BrainDataError, IdError, LeakageError, need
from .record import Metric, Score
from .registry import metric, register
from .retrieval import rank_table
from .statistics import RESAMPLES, bootstrap, permutation_chance, score_images

__all__ = [
    "TASKS",
    "classification_scores",
    "confusion",
    "majority_rate",
    "prototype_accuracy",
    "reported_epochs",
    "top_k_hits",
]

TASKS = ("prototype_same_class", "prototype_shown_image")


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether the true class is among the first k. A tie takes the middle rank.

    Args:
        scores: (samples, classes) Scores; a higher one is likelier.
        labels: (samples,) True classes, integers from 0.
        k: Number of classes that count as a hit, from 1 to one less than the number of classes.

    Returns:
        (samples,) booleans.

    Raises:
        AxisError: Shapes do not match, or labels are not integers.
        BrainDataError: `k` or a label is out of range, or a score is not finite.
    """
    scores, labels = _check(scores, labels)
    if not 1 <= k < scores.shape[1]:
        raise BrainDataError(f"expected k from 1 to {scores.shape[1] - 1} of {scores.shape[1]} classes, got {k}")
    return rank_table(scores)[np.arange(len(labels)), labels] <= k


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of samples for each true class (rows) and predicted class (columns).

    Args:
        scores: (samples, classes) Scores; the highest one is the prediction.
        labels: (samples,) True classes, integers from 0.

    Returns:
        (classes, classes) integers.

    Raises:
        AxisError: Shapes do not match, or labels are not integers.
        BrainDataError: A label is out of range, or a score is not finite.
        ImportError: scikit-learn is not installed.
    """
    scores, labels = _check(scores, labels)
    try:
        from sklearn.metrics import confusion_matrix
    except ImportError as error:
        raise need("scikit-learn", "a confusion matrix") from error
    return confusion_matrix(labels, scores.argmax(1), labels=np.arange(scores.shape[1]))


def majority_rate(labels: np.ndarray) -> float:
    """Accuracy of always naming the most frequent class.

    It is a second chance level beside k / C. The two differ where classes are unbalanced.
    """
    return float(np.unique(np.asarray(labels), return_counts=True)[1].max() / len(labels))


def classification_scores(
    scores: np.ndarray,
    labels: np.ndarray,
    objects: Sequence | np.ndarray | None = None,
    top: Sequence[int] = (1, 5),
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """Top-k accuracies and balanced accuracy, with intervals over objects.

    The chance interval comes from permuted labels. Each note gives the rate of the majority class.

    Args:
        scores: (samples, classes) Scores; a higher one is likelier.
        labels: (samples,) True classes, integers from 0.
        objects: (samples,) What was shown. All samples of an object have one class, and are drawn and permuted
            together. None makes each sample its own object.
        top: Values of k. Those that reach the number of classes are left out.
        resamples: Number of bootstrap samples, and of permutations of the labels.
        seed: Seed of the bootstrap and of the permutations.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Shapes do not match, or labels are not integers.
        BrainDataError: A label is out of range, a score is not finite, or an object has two classes.
    """
    scores, labels = _check(scores, labels)
    classes, rows, ranks = scores.shape[1], np.arange(len(labels)), rank_table(scores)
    members, of_object = _labels_of_objects(labels, objects)
    note = f"majority class {majority_rate(labels):.3f}"
    base = {"n_of": "samples", "note": note, "seed": seed} | conditions
    found: dict[str, Any]
    out = []
    for k in (k for k in top if k < classes):

        def share(order: np.ndarray, k: int = k) -> float:
            return float(np.mean(ranks[rows, of_object[order][members]] <= k))

        chance = permutation_chance(share, len(of_object), resamples, seed)
        found = base | {"chance_interval": chance.interval}
        hits = ranks[rows, labels] <= k
        definition = metric(f"accuracy_top{k}@{classes}")
        out.append(score_images(definition, hits, None, resamples, clusters=objects, **found))
    guesses = scores.argmax(1)
    interval = bootstrap(lambda drawn: _balanced(guesses[drawn], labels[drawn]), len(labels), resamples, seed, objects)
    chance = permutation_chance(
        lambda order: _balanced(guesses, of_object[order][members]), len(of_object), resamples, seed
    )
    found = base | {"interval": interval, "chance_interval": chance.interval}
    value = _balanced(guesses, labels)
    return [*out, Score(metric(f"balanced_accuracy@{classes}"), value, len(labels), **found)]


def prototype_accuracy(
    embeddings: np.ndarray,
    shown_ids: Ids,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_ids: Ids,
    gallery_labels: np.ndarray,
    task: str,
    **options,
) -> list[Score]:
    """Classify EEG embeddings by the nearest prototype: the mean of the unit features of all images of a class.

    The literature has two tasks under one name (eeyhsong/NICE-EEG#19). Here each has its own:

    | task | prototypes come from |
    |---|---|
    | "prototype_same_class" | other images of the class |
    | "prototype_shown_image" | the very images that were shown |

    Args:
        embeddings: (samples, d) Embeddings of EEG.
        shown_ids: (samples,) Ids of the images that were shown.
        labels: (samples,) Classes of the samples, integers from 0.
        gallery: (images, d) Features of images.
        gallery_ids, gallery_labels: (images,) Ids and classes of the gallery. Each class from 0 to the largest has an
            image.
        task: One of `TASKS`. The ids must agree with it.
        options: Further arguments of `classification_scores`. The default of `objects` is `shown_ids`.

    Raises:
        LeakageError: A shown image is in the gallery of "prototype_same_class".
        IdError: A shown image is not in the gallery of "prototype_shown_image".
        AxisError: Features and ids differ in number.
        BrainDataError: An unknown task, or a class without an image in the gallery.
    """
    if task not in TASKS:
        raise BrainDataError(f"expected task {' or '.join(TASKS)}, got {task!r}")
    for name, array, other in (("embeddings", embeddings, shown_ids), ("gallery", gallery, gallery_ids)):
        if np.ndim(array) != 2 or len(array) != len(other):
            raise AxisError(f"expected {name} (n, d) with {len(other)} ids, got {np.shape(array)}")
    shown, known = set(map(str, shown_ids)), set(map(str, gallery_ids))
    if task == "prototype_same_class" and shown & known:
        raise LeakageError(
            f"expected prototypes from other images than those shown, got {len(shown & known)} that were, such as "
            f"{min(shown & known)}; the task with them is prototype_shown_image"
        )
    if task == "prototype_shown_image" and shown - known:
        raise IdError(
            f"expected every shown image in the gallery, got {len(shown - known)} absent, such as {min(shown - known)}"
        )
    prototypes = _prototypes(gallery, np.asarray(gallery_labels))
    scores = _unit(embeddings) @ prototypes.T
    found = classification_scores(scores, labels, options.pop("objects", shown_ids), **options)
    return [score.under(note=f"{task}; {score.note}") for score in found]


def reported_epochs(validation: Sequence[float], test: Sequence[float], direction: str = "up") -> dict[str, float]:
    """Test values of a training run that may be reported: that of the last epoch, and of the epoch that validation
    prefers.

    The best test epoch is not among them. Choosing it on the test set is worth up to 10 points
    (eeyhsong/EEG-Conformer#51).

    Args:
        validation, test: One value for each epoch.
        direction: "up" if a higher validation value is better, else "down".

    Returns:
        The two test values, under "last" and "selected".

    Raises:
        AxisError: The two differ in length or are empty.
        BrainDataError: An unknown direction.
    """
    if len(validation) != len(test) or not len(test):
        raise AxisError(f"expected one validation value for each test value, got {len(validation)} and {len(test)}")
    if direction not in ("up", "down"):
        raise BrainDataError(f"expected direction 'up' or 'down', got {direction!r}")
    values = np.asarray(validation, dtype=np.float64)
    best = int(values.argmax() if direction == "up" else values.argmin())
    return {"last": float(test[-1]), "selected": float(test[best])}


def _balanced(guesses: np.ndarray, labels: np.ndarray) -> float:
    """Mean accuracy within each class that occurs."""
    counts = np.bincount(labels)
    right = np.bincount(labels, guesses == labels)
    return float(np.mean(right[counts > 0] / counts[counts > 0]))


def _labels_of_objects(labels: np.ndarray, objects: Sequence | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Number of the object of each sample, and class of each object."""
    if objects is None:
        return np.arange(len(labels)), labels
    names, first, members = np.unique(np.asarray(objects), return_index=True, return_inverse=True)
    if len(members) != len(labels):
        raise AxisError(f"expected an object for each of {len(labels)} samples, got {len(members)}")
    wrong = np.flatnonzero(labels[first][members] != labels)
    if len(wrong):
        raise BrainDataError(f"expected one class for each object, got several for {names[members[wrong[0]]]}")
    return members, labels[first]


def _prototypes(gallery: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.bincount(labels)
    if not counts.all():
        raise BrainDataError(f"expected images of classes 0 to {len(counts) - 1}, got none of class {counts.argmin()}")
    sums = np.zeros((len(counts), gallery.shape[1]))
    np.add.at(sums, labels, _unit(gallery))
    return _unit(sums)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, np.inf)


def _check(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2 or labels.shape != (len(scores),) or labels.dtype.kind not in "iu":
        raise AxisError(
            f"expected scores (samples, classes) and integer labels (samples,), got {scores.shape} and "
            f"{labels.dtype} {labels.shape}"
        )
    if not np.isfinite(scores).all() or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise BrainDataError(
            f"expected finite scores and labels from 0 to {scores.shape[1] - 1}, got labels {labels.min()} to "
            f"{labels.max()} and {int(np.sum(~np.isfinite(scores)))} scores that are not finite"
        )
    return scores, labels


register(
    Metric(
        "accuracy_top{k:d}@{classes:d}",
        "classification",
        "up",
        None,
        None,
        "share of samples whose true class is among the first k; ties take the middle rank",
    ),
    lambda k, classes: int(k) / int(classes),
)
register(
    Metric(
        "balanced_accuracy@{classes:d}",
        "classification",
        "up",
        None,
        None,
        "accuracy within each class, mean over classes",
    ),
    lambda classes: 1 / int(classes),
)
