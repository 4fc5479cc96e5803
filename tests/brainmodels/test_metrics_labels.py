"""Labels in captions against counts by hand, and their chance by enumeration."""

from itertools import permutations

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.metrics.labels import caption_label_scores, levels_in, majority_rate

CAPTIONS = {
    "a": "a large red circle on a striped background",
    "b": "a small red square, on a background",
    "c": "a small blue circle and a red square on a dotted background",
    "d": "a Large blue square on a background at the top left",
}
LABELS = {
    "color": {"a": "red", "b": "blue", "c": "blue", "d": "blue"},
    "size": {"a": "large", "b": "small", "c": "small", "d": "large"},
    "background": {"a": "striped", "b": "plain", "c": "striped", "d": "plain"},
    "place": {"a": "top", "b": "left", "c": "top", "d": "top left"},
}


def test_counts_by_hand():
    found = {score.metric.name: score for score in caption_label_scores(CAPTIONS, LABELS, resamples=50)}
    assert found["caption_label[color]"].value == 2 / 4  # c names two colours
    assert found["caption_label[size]"].value == 1
    assert found["caption_label[background]"].value == 4 / 4 - 1 / 4  # c says dotted, and no level that occurs
    assert found["caption_label[place]"].value == 1 / 4
    assert "most frequent level 0.750" in found["caption_label[color]"].note


def test_levels_that_no_image_has_count_where_they_are_given():
    levels = {"background": ["plain", "striped", "dotted"]}
    truth = {"background": LABELS["background"] | {"c": "plain"}}
    (without,) = caption_label_scores(CAPTIONS, truth, resamples=20)
    (given,) = caption_label_scores(CAPTIONS, truth, levels, resamples=20)
    assert without.value == 1 and given.value == 3 / 4
    with pytest.raises(BrainDataError, match="level of background"):
        caption_label_scores(CAPTIONS, truth, {"background": ["plain"]})


def test_chance_is_the_mean_over_all_permutations():
    ids = list(CAPTIONS)
    (score,) = caption_label_scores(CAPTIONS, {"size": LABELS["size"]}, resamples=200)
    shares = []
    for order in permutations(ids):
        texts = dict(zip(ids, (CAPTIONS[name] for name in order), strict=True))
        shares.append(np.mean([levels_in(texts[name], ["small", "large"]) == {LABELS["size"][name]} for name in ids]))
    assert score.chance == pytest.approx(np.mean(shares))
    assert score.chance_interval is not None and score.chance in score.chance_interval


def test_a_level_within_a_longer_one_does_not_count():
    levels = ["top", "left", "top left", "bottom"]
    assert levels_in("at the top left of it", levels) == {"top left"}
    assert levels_in("left, and top", levels) == {"left", "top"}
    assert levels_in("stopped", levels) == set()
    assert majority_rate(["a", "b", "a"]) == 2 / 3


def test_what_is_missing_is_named():
    with pytest.raises(IdError, match="'d'"):
        caption_label_scores(CAPTIONS, {"size": {"a": "large", "b": "small", "c": "small"}})
    with pytest.raises(AxisError, match="two or more"):
        caption_label_scores({"a": "x"}, {})
