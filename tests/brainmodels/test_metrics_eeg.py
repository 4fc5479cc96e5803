"""Classification of EEG: accuracy against loops, both chances, and the two prototype tasks that are not one."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from brainmodels.errors import AxisError, BrainDataError, IdError, LeakageError
from brainmodels.metrics import eeg


def classified(samples=120, classes=6, strength=1.0, seed=0):
    """Scores with some evidence for unbalanced labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, samples, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    labels[:classes] = np.arange(classes)
    return rng.normal(size=(samples, classes)) + strength * np.eye(classes)[labels], labels


def by_name(scores):
    return {score.metric.name: score for score in scores}


def test_accuracies_against_scikit_learn():
    scores, labels = classified()
    found = by_name(eeg.classification_scores(scores, labels, resamples=300, subject="sim01"))
    assert set(found) == {"accuracy_top1@6", "accuracy_top5@6", "balanced_accuracy@6"}
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert found[f"accuracy_top{k}@6"].value == pytest.approx(expected)
        assert found[f"accuracy_top{k}@6"].chance == k / 6
    guesses = scores.argmax(1)
    assert found["balanced_accuracy@6"].value == pytest.approx(balanced_accuracy_score(labels, guesses))
    for score in found.values():
        assert score.value in score.interval and not score.at_chance and score.subject == "sim01"
        assert f"majority class {np.bincount(labels).max() / 120:.3f}" in score.note
    counts = eeg.confusion(scores, labels)
    assert counts[2, 4] == np.sum((labels == 2) & (guesses == 4)) and counts.sum() == 120


def test_naming_the_majority_is_not_above_chance():
    """Accuracy far above 1 / C, and the permuted labels give the same."""
    _, labels = classified()
    scores = np.tile(np.arange(6.0), (120, 1))
    found = by_name(eeg.classification_scores(scores, labels, top=(1,), resamples=200))
    top = found["accuracy_top1@6"]
    assert top.value == pytest.approx(eeg.majority_rate(labels)) and top.value > 1.5 / 6
    assert top.at_chance and found["balanced_accuracy@6"].value == pytest.approx(1 / 6)


def test_ties_fail():
    assert not eeg.top_k_hits(np.zeros((3, 4)), np.arange(3), 2).any()
    assert eeg.top_k_hits(np.zeros((3, 4)), np.arange(3), 3).all()  # middle rank 2.5
    assert eeg.top_k_hits(np.array([[0.1, 0.5, 0.4]]), np.array([2]), 1).tolist() == [False]


def test_trials_of_an_object_are_one_observation():
    """Eight trials of each object: intervals and chance of objects are wider than those of trials."""
    rng = np.random.default_rng(1)
    objects = np.repeat(np.arange(18), 8)
    labels = (np.arange(18) % 3)[objects]
    scores = rng.normal(size=(18, 3))[objects] + 0.2 * rng.normal(size=(144, 3))
    both = [by_name(eeg.classification_scores(scores, labels, shown, (1,), 300)) for shown in (objects, None)]
    for name in ("accuracy_top1@3", "balanced_accuracy@3"):
        for field in ("interval", "chance_interval"):
            grouped, alone = (getattr(found[name], field) for found in both)
            assert grouped.high - grouped.low > 1.7 * (alone.high - alone.low), (name, field)
    with pytest.raises(BrainDataError, match="one class"):
        eeg.classification_scores(scores, np.arange(144) % 3, objects)


@pytest.fixture
def prototypes():
    """Three classes of four images; EEG embeddings resemble the very image that was shown."""
    rng = np.random.default_rng(2)
    classes = np.repeat(np.arange(3), 4)
    images = 0.3 * rng.normal(size=(3, 8))[classes] + rng.normal(size=(12, 8))
    ids = np.array([f"things:{i}" for i in range(12)])
    return images + 0.1 * rng.normal(size=images.shape), images, ids, classes


def test_prototypes_of_the_shown_images(prototypes):
    embeddings, images, ids, classes = prototypes
    scores = eeg.prototype_accuracy(
        embeddings, ids, classes, images, ids, classes, "prototype_shown_image", top=(1,), resamples=50
    )
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    centres = np.stack([unit[classes == c].mean(0) for c in range(3)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    expected = np.mean([(centres @ x).argmax() == c for x, c in zip(embeddings, classes, strict=True)])
    assert scores[0].value == pytest.approx(expected) and scores[0].note.startswith("prototype_shown_image; majority")


def test_the_two_prototype_tasks_are_told_apart_by_ids(prototypes):
    embeddings, images, ids, classes = prototypes
    shown, other = np.arange(12) % 4 == 0, np.arange(12) % 4 > 0
    options = {"top": (1,), "resamples": 20}
    given = embeddings[shown], ids[shown], classes[shown]
    eeg.prototype_accuracy(*given, images[other], ids[other], classes[other], "prototype_same_class", **options)
    with pytest.raises(LeakageError, match="got 3 that were, such as things:0"):
        eeg.prototype_accuracy(*given, images, ids, classes, "prototype_same_class", **options)
    with pytest.raises(IdError, match="3 absent"):
        eeg.prototype_accuracy(*given, images[other], ids[other], classes[other], "prototype_shown_image", **options)
    with pytest.raises(BrainDataError, match="expected task"):
        eeg.prototype_accuracy(*given, images, ids, classes, "prototype", **options)


def test_the_best_test_epoch_is_not_reported():
    validation, test = [0.1, 0.5, 0.4, 0.3], [0.2, 0.3, 0.9, 0.25]
    assert eeg.reported_epochs(validation, test) == {"last": 0.25, "selected": 0.3}
    assert eeg.reported_epochs(validation, test, "down") == {"last": 0.25, "selected": 0.2}
    with pytest.raises(AxisError):
        eeg.reported_epochs(validation[1:], test)


def test_bad_input():
    scores, labels = classified()
    for wrong in (labels + 1, labels - 1):
        with pytest.raises(BrainDataError, match="labels from 0 to 5"):
            eeg.classification_scores(scores, wrong)
    with pytest.raises(AxisError, match="integer labels"):
        eeg.top_k_hits(scores, labels.astype(float))
    with pytest.raises(BrainDataError, match="k from 1 to 5"):
        eeg.top_k_hits(scores, labels, 6)
