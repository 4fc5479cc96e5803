"""Occlusion, accuracy over time, controls of time and topographies, against planted truth."""

import functools
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from brainmodels.baselines.sensors import SensorRidge
from brainmodels.data import SensorSpace
from brainmodels.data.objects import ObjectTrials
from brainmodels.data.sensors import regions_of
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.evaluation.sensors import Part, occlude, sliding_accuracy
from brainmodels.evaluation.time_controls import block_control, prestimulus_scores, time_controls, within
from brainmodels.layouts.eeg3d import EEG3D_CHANNELS
from brainmodels.report.topography import placed, topography
from brainmodels.simulated.objects import simulate_objects

NAMES = ("F3", "C3", "T7", "P3", "O1", "O2")
STATIC = SensorSpace(NAMES, 100.0, np.arange(50) / 100 - 0.2, unit="z")
DYNAMIC = SensorSpace(NAMES[:5], 50.0, np.arange(50) / 50 - 0.2, unit="z")
CLASSES = 4
studied = functools.cache(simulate_objects)


@dataclass
class Answer:
    shape: np.ndarray
    color: np.ndarray | None


class Toy:
    """Reads the class from O1 of the static stream at 0.1 to 0.2 s, and the colour from T7 of the dynamic stream."""

    def __init__(self, colors=True):
        self.colors = colors

    def classify(self, trials):
        values = trials.values()
        return Answer(
            self._near(values["static"][:, NAMES.index("O1"), 30:40].mean(1)),
            self._near(values["dynamic"][:, NAMES.index("T7")].mean(1)) if self.colors else None,
        )

    def _near(self, level):
        logits = -10 * (level[:, None] - np.arange(CLASSES)) ** 2
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.fixture(scope="module")
def trials():
    """Three trials of each of 12 objects in noise: O1 holds the class in a window, T7 of the video the colour."""
    rng = np.random.default_rng(0)
    labels, colors = np.repeat(np.arange(12) % CLASSES, 3), np.repeat(np.arange(12) // 3 % CLASSES, 3)
    static, dynamic = 0.01 * rng.normal(size=(36, 6, 50)), 0.01 * rng.normal(size=(36, 5, 50))
    static[:, 4, 30:40] += labels[:, None]
    dynamic[:, 2] += colors[:, None]
    ids = np.repeat([f"o{i:02d}" for i in range(12)], 3)
    return (
        ObjectTrials.from_arrays({"static": static, "dynamic": dynamic}, ids, {"static": STATIC, "dynamic": DYNAMIC}),
        labels,
        colors,
    )


def test_only_the_part_is_replaced(trials):
    rows = trials[0]
    before = rows.values()
    part = Part("left", "static", ("T7", "O1"), (-0.1, 0.05))
    mean = part.removed(rows).values()
    touched = np.zeros((6, 50), bool)
    touched[np.ix_([2, 4], np.arange(10, 25))] = True  # -0.2 s is sample 0, and 0.05 s is not part of it
    np.testing.assert_array_equal(mean["static"][:, ~touched], before["static"][:, ~touched])
    expected = np.broadcast_to(before["static"].mean(0)[touched], (36, touched.sum()))
    np.testing.assert_allclose(mean["static"][:, touched], expected, atol=1e-6)
    np.testing.assert_array_equal(mean["dynamic"], before["dynamic"])
    order = np.random.default_rng(1).permutation(36)
    moved = part.removed(rows, order).values()["static"]
    np.testing.assert_array_equal(moved[:, touched], before["static"][order][:, touched])
    np.testing.assert_array_equal(moved[:, ~touched], before["static"][:, ~touched])


def test_all_streams_lose_a_region_at_once(trials):
    rows = trials[0]
    found = Part("occipital", "all", ("O1", "O2")).removed(rows).values()
    assert np.ptp(found["static"][:, 4:], axis=0).max() == 0 and np.ptp(found["dynamic"][:, 4:], axis=0).max() == 0
    assert np.ptp(found["static"][:, :4], axis=0).min() > 0


@pytest.mark.parametrize("how", ["mean", "permute"])
def test_channels_that_a_model_reads_are_found(trials, how):
    rows, labels, colors = trials
    table = occlude(Toy(), rows, labels, colors=colors, by="channel", how=how, resamples=200)
    for target, channel, stream in (("shape", "O1", "static"), ("color", "T7", "dynamic")):
        for where in (stream, "all"):
            drops = table.values("top1", target, where)
            assert list(drops) == list(NAMES)
            assert drops.pop(channel) >= 0.6  # from 1 to chance, 1 / 4
            assert set(drops.values()) == {0.0}
            row = table.drop(channel, "probability", target, where)
            assert row.full > 0.99 and row.without < 0.45 and row.difference.distinct
            assert row.difference.value == pytest.approx(row.full - row.without)
        other = "dynamic" if stream == "static" else "static"
        assert set(table.values("top1", target, other).values()) == {0.0}
    assert {row.measure for row in table.drops if row.target == "shape"} == {"top1", "probability"}  # top-5 of 4
    assert {row.measure for row in table.drops if row.target == "color"} == {"top1", "top2", "probability"}
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["how"] == how


def test_permutations_are_averaged_and_repeat_by_seed(trials):
    rows, labels, _ = trials
    options = {"by": "channel", "how": "permute", "resamples": 50}
    first, again, other = (
        occlude(Toy(), rows, labels, seed=seed, draws=2, **options).drop("O1").without for seed in (0, 0, 1)
    )
    assert first == again != other
    # a single permutation leaves 36 trials a multiple of 1 / 36; two leave halves of it
    many = occlude(Toy(), rows, labels, draws=40, **options).drop("O1").without
    assert abs(many - 0.25) < 0.04


def test_the_window_that_a_model_reads_is_found(trials):
    rows, labels, _ = trials
    table = occlude(Toy(), rows, labels, by="window", windows={"static": 0.1, "dynamic": 0.5}, resamples=50)
    drops = table.values("probability", "shape", "static")
    assert list(drops) == [
        "-0.20 to -0.10 s",
        "-0.10 to 0.00 s",
        "0.00 to 0.10 s",
        "0.10 to 0.20 s",
        "0.20 to 0.30 s",
    ]
    assert drops.pop("0.10 to 0.20 s") > 0.5 and set(drops.values()) == {0.0}
    assert table.drop("0.10 to 0.20 s", "top1", "shape", "static").part.window == pytest.approx((0.1, 0.2))
    assert set(table.values("top1", "shape", "dynamic").values()) == {0.0}


def test_intervals_are_over_objects(trials):
    """The 12 objects of 3 equal trials are no more certain than 12 trials."""
    rows, labels, _ = trials
    exact = rows.with_values({"static": np.repeat(rows.values()["static"][::3], 3, 0)})
    one = exact.take(np.arange(0, 36, 3))
    options = {"by": "channel", "resamples": 300}
    few = occlude(Toy(), one, labels[::3], **options).drop("O1", "probability").difference
    many = occlude(Toy(), exact, labels, **options).drop("O1", "probability").difference
    assert many.value == pytest.approx(few.value) and many.n == 36
    assert np.ptp(many.interval[:2]) == pytest.approx(np.ptp(few.interval[:2]), rel=1e-6)


def test_refit_sees_train_trials_without_the_region(trials):
    rows, labels, _ = trials
    static, last = rows.with_streams("static"), np.arange(36) % 3 == 2
    train, test, known = static.take(~last), static.take(last), labels[~last]
    removed = []

    def refit(remove):
        rest = remove(train)
        removed.append(np.flatnonzero(np.ptp(rest.values()["static"], axis=0).max(1) == 0).tolist())
        return SensorRidge({"static": 0.05}).fit(rest, known)

    model = SensorRidge({"static": 0.05}).fit(train, known)
    table = occlude(model, test, labels[last], refit=refit, resamples=50)
    assert table.refitted and removed == [[0], [1], [2], [3], [4, 5]]
    drops = table.values()
    assert drops.pop("occipital") > 0.4 and set(drops.values()) == {0.0}
    with pytest.raises(BrainDataError, match="with refit="):
        occlude(model, test, labels[last], by="channel", refit=refit)


def test_occlusion_refuses_what_it_cannot_do(trials):
    rows, labels, colors = trials
    with pytest.raises(BrainDataError, match="got one without; leave colors= out"):
        occlude(Toy(colors=False), rows, labels, colors=colors)
    with pytest.raises(BrainDataError, match="by to be one of channel, region, window, got 'channels'"):
        occlude(Toy(), rows, labels, by="channels")
    with pytest.raises(BrainDataError, match="how to be one of mean, permute"):
        occlude(Toy(), rows, labels, how="zero")
    with pytest.raises(BrainDataError, match="two trials or more"):
        occlude(Toy(), rows.take([0]), labels[:1])
    with pytest.raises(AxisError, match=r"integers \(36,\) as labels, got int64 \(35,\)"):
        occlude(Toy(), rows, labels[1:])
    with pytest.raises(BrainDataError, match="channels of the trials in front, got F7"):
        occlude(Toy(), rows, labels, regions={"front": ["F3", "F7"]})
    table = occlude(Toy(), rows, labels, resamples=50)
    with pytest.raises(BrainDataError, match="part to be one of frontal, central"):
        table.drop("Occipital")
    with pytest.raises(BrainDataError, match="measure, target and stream among"):
        table.drop("occipital", "top5")


@functools.cache
def nano():
    study = studied("nano", seed=0)
    return study, ObjectTrials.of(study, "sim01", "train"), ObjectTrials.of(study, "sim01", "test")


def test_planted_regions_and_times_are_found():
    """Shape drives occipital channels most, at 0.1 to 0.3 s, and colour temporal ones.

    The 12 occipital channels together hold as much power of the colour as the 8 temporal ones, so the drop of a single
    channel is compared.
    """
    study, train, single = nano()
    test = single.averaged()
    classes, colors = study.label("class", test.ids), study.label("color", test.ids)
    ridge = SensorRidge().fit(train, study.label("class", train.ids), colors=study.label("color", train.ids))
    table = occlude(ridge, test, classes, colors=colors, resamples=200)
    shape, color = table.values("probability", "shape"), table.values("probability", "color")
    channels = {name: len(names) for name, names in regions_of(test.spaces["static"].ch_names).items()}
    color = {name: drop / channels[name] for name, drop in color.items()}
    assert shape.pop("occipital") >= max(shape.values()) + 0.1
    assert color.pop("temporal") >= 1.2 * max(color.values())
    assert table.drop("occipital", "probability").difference.distinct
    assert table.drop("temporal", "probability", "color").difference.distinct
    assert table.drop("occipital", "top1").difference.value >= 0.2
    windows = occlude(ridge, test, classes, by="window", resamples=50).values("probability", "shape", "static")
    assert sorted(windows, key=lambda name: windows[name])[-2:] in (
        ["0.10 to 0.20 s", "0.20 to 0.30 s"],
        ["0.20 to 0.30 s", "0.10 to 0.20 s"],
    )


def test_sliding_accuracy_has_its_peak_at_the_planted_latency():
    study, train, single = nano()
    test = single.averaged()
    labels = study.label("color", train.ids), study.label("color", test.ids)
    course = sliding_accuracy(train, labels[0], test, labels[1], resamples=100)
    when, most = course.peak
    assert 0.1 <= when <= 0.3 and most >= 0.4 and course.chance == pytest.approx(1 / 6)
    assert len(course.times) == 50 and course.times[0] == pytest.approx(-0.192)
    assert abs(course.accuracy[course.times < 0].mean() - 1 / 6) < 0.08
    assert (course.low <= course.accuracy).all() and (course.accuracy <= course.high).all()
    assert json.loads(json.dumps(course.to_json()))["stream"] == "static"
    with pytest.raises(BrainDataError, match="stream to be one of static, got 'dynamic'"):
        sliding_accuracy(train.with_streams("static"), labels[0], test, labels[1], stream="dynamic")


def test_before_the_onset_there_is_nothing():
    study, train, single = nano()
    test = single.averaged()
    scores = prestimulus_scores(train, study.label("class", train.ids), test, study.label("class", test.ids))
    assert [score.metric.name for score in scores][:2] == ["accuracy_top1@24", "accuracy_top5@24"]
    assert all(score.at_chance for score in scores)
    assert scores[0].repeats == "avg_voxels" and scores[0].decoder == "ridge, static before 0 s"


def test_a_window_of_trials_keeps_the_rest(trials):
    rows = trials[0]
    early = within(rows, "static", -0.1, 0.0)
    assert early.streams == ("static",) and len(early.spaces["static"].times) == 10
    np.testing.assert_array_equal(early.values()["static"], rows.values()["static"][:, :, 10:20])
    np.testing.assert_array_equal(early.take([4, 5]).ids, rows.ids[4:6])
    with pytest.raises(BrainDataError, match=r"times of dynamic from 5 to 6 s, got -0.2 to 0.78 s"):
        within(rows, "dynamic", 5, 6)


def parts_of(order, drift):
    study = studied("tiny", seed=1, order=order, drift=drift)
    train, test = (ObjectTrials.of(study, "sim01", part) for part in ("train", "test"))
    return train, study.label("class", train.ids), test, study.label("class", test.ids)


def test_blocked_order_is_found_and_random_order_is_not():
    blocked, mixed = (time_controls(*parts_of(order, 0.0), resamples=200) for order in ("blocked", "random"))
    assert [score.decoder for score in blocked] == ["trial number alone", "session alone", "labels alone"]
    assert [score.at_chance for score in blocked] == [False] * 3
    assert blocked[0].value > 0.9 and blocked[2].value > 0.9
    assert [score.at_chance for score in mixed] == [True] * 3
    assert mixed[2].chance == pytest.approx(1 / 6, abs=0.02) and mixed[2].n == 120


def test_drift_tells_classes_before_the_onset_in_blocked_order_only():
    for order, drift, at_chance in (("blocked", 0.5, False), ("blocked", 0.0, True), ("random", 0.5, True)):
        score = prestimulus_scores(*parts_of(order, drift), resamples=200)[0]
        assert score.at_chance is at_chance, (order, drift, str(score))
        assert (score.value > 0.35) == (not at_chance)


def timed(trials, labels, order):
    """Train and test trials, every fourth one for testing, at these positions in the recording."""
    trials = replace(trials, order=np.asarray(order), session=np.ones(len(trials), np.int64))
    test = np.arange(len(trials)) % 4 == 0
    return trials.take(~test), labels[~test], trials.take(test), labels[test]


def test_labels_moved_between_blocks_find_drift():
    """Eight blocks of each class. Each block has its own level, so a ridge learns any labels of blocks."""
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(24), 8)
    labels = np.repeat(rng.permutation(np.arange(24) % 3), 8)
    while (np.diff(labels[::8]) == 0).any():
        labels = np.repeat(rng.permutation(np.arange(24) % 3), 8)
    levels = rng.normal(size=(24, 6))
    for size, at_chance in ((3.0, False), (0.0, True)):
        values = rng.normal(size=(192, 6, 50)) + size * levels[blocks][:, :, None]
        rows = ObjectTrials.from_arrays({"static": values}, [f"o{i:03d}" for i in range(192)], {"static": STATIC})
        score = block_control(*timed(rows, labels, np.arange(192)), resamples=200)
        assert score.at_chance is at_chance and (score.value > 0.6) == (not at_chance), str(score)


def test_what_is_not_known_is_not_available(trials):
    rows, labels, _ = trials
    found = time_controls(rows, labels, rows, labels, resamples=20)
    assert [score.available for score in found] == [False] * 3
    assert "the order of the trials is not known" in str(found[0])
    assert not block_control(rows, labels, rows, labels).available
    order = np.argsort(np.argsort(labels, kind="stable"))
    single = block_control(*timed(rows.with_streams("static"), labels, order))
    assert not single.available and "a single block" in single.note
    one_session = time_controls(*timed(rows, labels, order), resamples=20)
    assert one_session[0].available and one_session[1].note == "there is a single session"


def test_a_topography_leaves_out_what_has_no_place(tmp_path):
    space = SensorSpace(EEG3D_CHANNELS, 250.0, np.arange(5) / 250)
    back = np.array([{"O": 1.0, "P": 1.0, "F": -1.0}.get(name[0], 0.0) for name in EEG3D_CHANNELS])
    back[[EEG3D_CHANNELS.index(name) for name in ("FZ", "CB1")]] = np.nan  # not drawn, so they may be anything
    path = tmp_path / "map.png"
    assert topography(back, space, path, "drop") == ("FZ", "CB1", "CB2")
    picture = np.asarray(Image.open(path).convert("RGB"), np.int64)
    head = picture[:, : int(0.75 * picture.shape[1])]  # without the colour bar
    redder = (head[..., 0] - head[..., 2]) * (np.ptp(head, axis=2) > 40)
    half = len(head) // 2
    assert redder[:half].sum() < 0 < redder[half:].sum()  # the front is blue and at the top
    small = SensorSpace(NAMES, 100.0, np.arange(5) / 100, montage="biosemi64")
    assert topography(np.arange(6.0), small, path, reference=()) == ()
    assert placed(["Fp1", "pOz", "CB2"]) == {"Fp1": "Fp1", "pOz": "POz"}


def test_a_topography_refuses_wrong_values(tmp_path):
    space, path = SensorSpace(NAMES, 100.0, np.arange(5) / 100), tmp_path / "map.png"
    with pytest.raises(AxisError, match=r"values of 6 channels, got shape \(5,\)"):
        topography(np.zeros(5), space, path)
    with pytest.raises(BrainDataError, match="finite values, got nan of T7"):
        topography(np.array([0, 0, np.nan, 0, 0, 0]), space, path)
    with pytest.raises(BrainDataError, match="four channels or more with a position in standard_1005, got 1"):
        topography(np.zeros(2), SensorSpace(("Cz", "X1"), 100.0, np.arange(5) / 100), path)
    with pytest.raises(BrainDataError, match="montage of MNE, such as standard_1005, got 'biosemi65'; near: biosemi64"):
        topography(np.zeros(6), replace(space, montage="biosemi65"), path)
    assert not path.exists()
