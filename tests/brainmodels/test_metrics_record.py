"""A score carries its conditions, survives JSON, and says honestly what it is."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest

from brainmodels.errors import BrainDataError
from brainmodels.metrics import Interval, Metric, Score, list_metrics, metric, not_available, register
from tests.brainmodels.made import made_dataset


def full_score() -> Score:
    """Every field of 6.9 set to something that is not its default."""
    return Score(
        metric("voxel_r"),
        np.float64(0.3125),
        n=60,
        n_of="images seen thrice",
        interval=Interval(0.25, 0.375),
        chance=0.01,
        chance_interval=Interval(-0.02, 0.03, 0.95, "1000 permutations of the pairs"),
        ceiling=0.45,
        mask="NC >= 0.1: 118 of 210 voxels, 2 undefined",
        split="shared",
        split_hash="9f8e7d6c5b4a",
        part="test",
        normalizer="session_z",
        transductive=True,
        repeats="avg_voxels",
        decoder="external:grid",
        features="1a2b3c4d5e6f",
        seed=3,
        subject="sim01",
        roi="V1",
        versions={"numpy": "2.0"},
        note="simulated",
    )


def test_json_keeps_every_field():
    score = full_score()
    text = json.dumps(score.to_json(), allow_nan=False)
    assert Score.from_json(json.loads(text)) == score
    assert {item.name for item in fields(Score)} == set(json.loads(text))


def test_json_of_a_changed_record_is_refused():
    record = full_score().to_json()
    del record["split_hash"]
    with pytest.raises(BrainDataError, match="split_hash"):
        Score.from_json(record)
    with pytest.raises(BrainDataError, match="colour"):
        Score.from_json(full_score().to_json() | {"colour": "red"})


def test_one_line_says_it_all():
    line = str(full_score())
    assert "\n" not in line
    assert line.startswith("voxel_r ↑ 0.312 [0.250, 0.375], chance 0.010 [-0.020, 0.030], ceiling 0.450, n 60")
    for part in (
        "sim01/V1",
        "118 of 210 voxels",
        "shared/test 9f8e7d6c5b4a",
        "session_z (transductive)",
        "avg_voxels",
        "external:grid",
        "1a2b3c4d5e6f",
        "seed 3",
        "simulated",
    ):
        assert part in line
    assert str(Score(metric("mse"), 0.5, n=4)) == "mse ↓ 0.500, n 4 images"


def test_absent_weights_are_said_and_nothing_is_computed():
    clip = Metric("some_network", "semantic", "up", 0.5, "clip_vit_l14_openai", "two-way on its embedding")
    row = not_available(clip, "weights clip_vit_l14_openai")
    assert str(row) == "some_network ↑ not available (needs weights clip_vit_l14_openai; pass path=...)"
    assert row.value is None and not row.available and row.at_chance is None
    assert Score.from_json(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_an_available_score_has_a_finite_value(value):
    with pytest.raises(BrainDataError, match="finite"):
        Score(metric("voxel_r"), value, n=3)
    with pytest.raises(BrainDataError, match="note"):
        Score(metric("voxel_r"), value, n=3, available=False)


def test_conditions_come_from_the_pairs():
    dataset = made_dataset()
    split = dataset.split("made")
    single = Score(metric("mse"), 1.0, n=4).under(dataset.pairs("subj01", split, "test"), features="abc", seed=1)
    assert (single.subject, single.split, single.split_hash, single.part) == ("subj01", "made", split.hash, "test")
    assert (single.normalizer, single.repeats, single.features, single.seed) == ("none", "single", "abc", 1)

    class Seeing:
        name, transductive = "session_z", True

        def transform(self, values, trials):
            return values

    averaged = Score(metric("mse"), 1.0, n=4).under(
        dataset.pairs("subj01", split, "val", average="repeats", transform=Seeing()), repeats="avg_outputs"
    )
    assert (averaged.normalizer, averaged.transductive, averaged.part) == ("session_z", True, "val")
    assert averaged.repeats == "avg_outputs"  # what is said explicitly wins


def test_chance_and_direction():
    score = Score(metric("voxel_r"), 0.02, n=9, chance_interval=Interval(-0.05, 0.05))
    assert score.chance == 0.0  # of the metric
    assert score.at_chance is True
    assert score.under(chance_interval=Interval(-0.01, 0.01)).at_chance is False
    assert Score(metric("mse"), 1.0, n=9).at_chance is None
    assert metric("mse").better(0.1, 0.2) and not metric("voxel_r").better(0.1, 0.2)
    with pytest.raises(BrainDataError, match="describes"):
        metric("ncsnr").better(1, 2)


def test_every_card_has_direction_chance_and_protocol():
    names = list_metrics()
    assert len(names) >= 25
    for family in names:
        card = metric(re.sub(r"\{\w+\}", "x", re.sub(r"\{\w+:d\}", "7", family)))
        assert card.protocol and card.direction in ("up", "down", "none"), family


def test_families_carry_their_numbers():
    assert metric("image_given_brain_top5@300").chance == 5 / 300
    assert metric("brain_given_image_median_rank@907").chance == 454
    assert metric("accuracy_top1@72").chance == 1 / 72
    assert metric("two_way[grid]").chance == 0.5 and metric("two_way[grid]").name == "two_way[grid]"
    for wrong in ("image_given_brain_topx@300", "image_given_brain_top1@0", "two_way[]", "two_way"):
        with pytest.raises(BrainDataError):
            metric(wrong)


def test_unknown_names_list_the_nearest():
    with pytest.raises(BrainDataError, match="near: voxel_r"):
        metric("voxelr")
    with pytest.raises(BrainDataError, match="near: voxel"):
        list_metrics(level="voxels")
    with pytest.raises(BrainDataError, match="direction"):
        Metric("new", "voxel", "upwards")


def test_a_name_means_one_thing():
    register(metric("mse"))  # the same again is no harm
    with pytest.raises(BrainDataError, match="mse"):
        register(Metric("mse", "voxel", "up"))


def test_lists_are_filtered():
    voxel = list_metrics(level="voxel")
    assert "voxel_r" in voxel and not any(name.startswith("two_way") for name in voxel)
    assert set(list_metrics(offline=True)) | set(list_metrics(offline=False)) == set(list_metrics())
    assert "voxel_r" not in list_metrics(offline=False)
