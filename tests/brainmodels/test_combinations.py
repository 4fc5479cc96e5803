"""Held-out combinations of labels: what is tested on was shown apart and never together."""

from itertools import product

import numpy as np
import pytest

from brainmodels.data import (
    ArrayImages,
    BrainDataset,
    Responses,
    Split,
    StimulusSet,
    Subject,
    TrialTable,
    VoxelSpace,
    combination_holdout,
)
from brainmodels.errors import BrainDataError, IdError
from brainmodels.simulated import scene_combinations, scene_stimuli
from veca.data.scenes import sample_scene

GOLDEN = [["cross", "red"], ["star", "green"], ["star", "yellow"]]
SPACE = VoxelSpace.from_mask("one", np.ones((1, 1, 1), bool))


def _study(stimuli, *shown):
    """Subjects of one voxel, each with the ids that it saw."""
    people = [
        Subject(f"subj{i:02d}", Responses(np.zeros((len(ids), 1), np.float32), TrialTable.of(ids)), SPACE)
        for i, ids in enumerate(shown or [stimuli.ids])
    ]
    return BrainDataset(people, stimuli)


def _labelled(pairs, repeats=20):
    """Blank images, `repeats` of each pair (shape, color)."""
    pairs = [pair for pair in pairs for _ in range(repeats)]
    ids = [f"made:{i:04d}" for i in range(len(pairs))]
    shapes, colors = zip(*pairs, strict=True)
    images = ArrayImages(np.zeros((len(ids), 2, 2, 3), np.uint8))
    return StimulusSet(ids, images, labels={"shape": shapes, "color": colors})


def _pairs(dataset, ids, labels=("shape", "color")):
    return set(zip(*(dataset.stimuli.label(name, sorted(ids)).tolist() for name in labels), strict=True))


@pytest.fixture(scope="module")
def scenes():
    return _study(scene_stimuli(0, 600))


@pytest.mark.parametrize("frac", [0.1, 0.4])
def test_no_pair_is_on_both_sides(scenes, frac):
    split = combination_holdout(scenes, frac=frac, seed=1)
    known, tested = (_pairs(scenes, ids) for ids in (split.train | split.val, split.test))
    assert not known & tested and known | tested == _pairs(scenes, scenes.stimuli.ids)
    assert len(tested) == round(frac * split.params["combinations"])
    assert sorted(map(list, tested)) == split.params["held_out"]
    assert split.train | split.val | split.test == set(scenes.stimuli.ids) and split.params["left_out"] == 0
    for name in ("shape", "color"):
        trained = set(scenes.stimuli.label(name, sorted(split.train)).tolist())
        assert trained == set(scenes.stimuli.labels[name].tolist())


def test_one_seed_is_one_split(scenes):
    split = combination_holdout(scenes, seed=1)
    assert combination_holdout(scenes, seed=1).hash == split.hash != combination_holdout(scenes, seed=2).hash
    assert Split.from_json(split.to_json()).hash == split.hash
    # golden: a number measured today is measured on the same pairs tomorrow
    assert combination_holdout(scenes, frac=0.04, seed=0).params["held_out"] == GOLDEN


def test_other_objects_of_a_scene_do_not_show_the_pair(scenes):
    """The labels alone leave held-out pairs behind the main object of train images; `shows` leaves none."""
    loose = combination_holdout(scenes, seed=1)
    ids = scenes.stimuli.ids
    strict = combination_holdout(scenes, seed=1, shows=scene_combinations(ids))
    assert strict.test == loose.test and strict.params["held_out"] == loose.params["held_out"]
    held = set(map(tuple, strict.params["held_out"]))

    def showing(names):
        drawn = {name: sample_scene(int(name[-6:]), 0).objects for name in names}
        return {name for name, objects in drawn.items() if held & {(x.shape, x.color) for x in objects}}

    hidden = showing(loose.train | loose.val)
    assert len(hidden) > 20 and not showing(strict.train | strict.val) and showing(strict.test) == strict.test
    assert strict.train | strict.val == (loose.train | loose.val) - hidden
    assert strict.params["left_out"] == len(hidden)


def test_three_labels(scenes):
    labels = ("shape", "color", "background")
    split = combination_holdout(scenes, labels, frac=0.2)
    assert not _pairs(scenes, split.train | split.val, labels) & _pairs(scenes, split.test, labels)
    assert _pairs(scenes, split.train) & _pairs(scenes, split.test)  # of two of them, some are known


def test_images_are_those_that_subjects_saw():
    stimuli = _labelled(product("ABC", "xyz"))
    dataset = _study(stimuli, stimuli.ids[:150:2], stimuli.ids[1:150:2])
    split = combination_holdout(dataset, frac=0.2)
    assert split.train | split.val | split.test == set(stimuli.ids[:150].tolist())


def test_a_value_that_only_one_pair_shows_stays_in_training():
    """Of D there is one pair: it is passed over for every seed, and asking for all others is refused."""
    dataset = _study(_labelled([*product("ABC", "xy"), ("D", "x")]))
    for seed in range(20):
        split = combination_holdout(dataset, frac=0.3, seed=seed)
        assert ["D", "x"] not in split.params["held_out"] and len(split.params["held_out"]) == 2
    with pytest.raises(BrainDataError, match=r"expected 6 of 7 .* got [234] \(.*\); ask for a smaller frac"):
        combination_holdout(dataset, frac=0.9)


def test_a_pair_behind_all_images_of_a_value_stays_in_training():
    """Every picture of D has an (A, x) behind it: without those pictures training would know no D."""
    dataset = _study(_labelled(product("ABCD", "xyz")))
    names = dataset.stimuli.ids.tolist()
    shows = {name: [("A", "x")] if dataset.stimuli.label("shape", [name]) == "D" else [] for name in names}
    taken = [combination_holdout(dataset, frac=0.3, seed=seed).params["held_out"] for seed in range(20)]
    strict = [combination_holdout(dataset, frac=0.3, seed=seed, shows=shows).params["held_out"] for seed in range(20)]
    assert any(["A", "x"] in held for held in taken) and not any(["A", "x"] in held for held in strict)


def test_validation_images_do_not_count_as_training():
    """Pairs of one image each, a third of them for validation: each value still has a train image."""
    dataset = _study(_labelled(product("ABCDEF", "uvwxyz"), repeats=1))
    for seed in range(20):
        split = combination_holdout(dataset, frac=0.2, seed=seed, percent=33)
        for name, count in (("shape", 6), ("color", 6)):
            assert len(set(dataset.stimuli.label(name, sorted(split.train)).tolist())) == count


def test_what_cannot_be_held_out_is_refused(scenes):
    tied = _study(_labelled(zip("ABC", "xyz", strict=True)))  # shape tells color
    with pytest.raises(BrainDataError, match=r"expected 1 of 3 combinations of shape and color .* got 0"):
        combination_holdout(tied)
    with pytest.raises(BrainDataError, match="two or more different labels"):
        combination_holdout(scenes, ("shape", "shape"))
    with pytest.raises(BrainDataError, match=r"labels of this set .*, got 'colour'"):
        combination_holdout(scenes, ("shape", "colour"))
    with pytest.raises(BrainDataError, match="between 0 and 1"):
        combination_holdout(scenes, frac=1)
    with pytest.raises(IdError, match="combinations that each of 600 images shows, got none for sim0:000000"):
        combination_holdout(scenes, shows=scene_combinations(scenes.stimuli.ids[1:]))
    with pytest.raises(BrainDataError, match="expected labels of shape, color"):
        scene_combinations(["sim0:000000"], ("shape", "place"))
