"""What is said of decoded objects: rows by hand, bounds by planted truth, controls, and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.baselines.sensors import SensorRidge
from brainmodels.commands.evaluate import run_evaluations
from brainmodels.commands.opening import kind_of_data, open_data, open_objects
from brainmodels.data.objects import ObjectTrials
from brainmodels.data.splits import split_from_ids
from brainmodels.errors import BrainDataError, LayoutError, LeakageError
from brainmodels.evaluation import EvaluationSettings
from brainmodels.evaluation.kinds import data_of, kind_of_models
from brainmodels.evaluation.object_case import ObjectCase, ObjectSettings, PairedRow, Row, check_model
from brainmodels.evaluation.object_clouds import ANOTHER, PRIMARY, TWO_SAMPLINGS, medoids, other_objects, retrieved_name
from brainmodels.evaluation.object_controls import NOISE, SHUFFLED_OBJECTS
from brainmodels.evaluation.object_rows import IDEAL, RIDGE, SINGLE, class_rows, collect_answers, confusion_of
from brainmodels.evaluation.objects import evaluate_objects
from brainmodels.evaluation.opened import open_models
from brainmodels.metrics import Interval, Score, metric
from brainmodels.metrics.cloud_sets import selection_chance
from brainmodels.metrics.shape3d import chamfer_l2, majority_color, normalize_cloud
from brainmodels.training.files import FORMAT
from tests.brainmodels.object_stand_in import COURSES, NAME, StandIn, object_evaluation, object_study


@pytest.fixture(scope="module")
def found():
    return object_evaluation()


def test_medoid_has_the_smallest_mean_distance_to_its_class():
    rng = np.random.default_rng(0)
    clouds = [rng.normal(size=(40, 3)) * rng.uniform(0.3, 2, 3) for _ in range(9)]
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1])
    unit = [normalize_cloud(cloud, "rms") for cloud in clouds]
    for label, chosen in enumerate(medoids(clouds, labels)):
        rows = np.flatnonzero(labels == label)
        sums = {row: sum(chamfer_l2(unit[row], unit[other]) for other in rows) for row in rows}
        assert chosen == min(sums, key=sums.get)


def test_retrieved_clouds_are_medoids_of_the_named_class_in_the_named_colour(found):
    case, answer = found.case, found.answers[RIDGE]
    central = medoids(case.train_clouds, case.labels("class", case.train_ids), case.settings.seed)
    for row, name in enumerate(case.test.ids.tolist()):
        (cloud,) = found.clouds(retrieved_name(RIDGE))[name]
        known = set(map(tuple, case.train_clouds[central[answer.shape[row].argmax()]][:, :3]))
        assert len(cloud) == 96 and all(point in known for point in map(tuple, cloud[:, :3]))
        np.testing.assert_allclose(cloud[:, 3:], np.tile(case.palette[answer.color[row].argmax()], (96, 1)), rtol=1e-6)


def test_truth_is_one_half_of_each_cloud_and_the_other_half_its_second_sampling(found):
    case = found.case
    first, second = case.halves
    for name in case.test.ids.tolist()[:3]:
        both = np.concatenate([first[name], second[name]])
        assert sorted(map(tuple, both)) == sorted(map(tuple, case.study.cloud(name)))
    (sampled,) = found.clouds(TWO_SAMPLINGS)[name]
    assert {*map(tuple, sampled)} <= {*map(tuple, second[name])}


def test_distances_of_a_row_are_means_over_samples_and_objects(found):
    case, row = found.case, found.row("clouds", NAME)
    by_hand = [
        np.mean([chamfer_l2(*(normalize_cloud(x, "rms")[:, :3] for x in (case.truth[name], made))) for made in clouds])
        for name, clouds in found.clouds(NAME).items()
    ]
    np.testing.assert_allclose(row.values[PRIMARY], by_hand)
    assert row.pick("chamfer_l2", "rms").value == pytest.approx(np.mean(by_hand))
    assert row.pick("chamfer_l2", "rms", best=True).value < row.pick("chamfer_l2", "rms").value
    assert row.pick("chamfer_l2").metric.name == "chamfer_l2[mean_of_2]"
    above, below = found.row("clouds", TWO_SAMPLINGS), found.row("clouds", ANOTHER)
    for name, words in (("chamfer_l2", ("rms",)), ("fscore@0.05", ()), ("emd", ("rms",))):
        score = row.pick(name, *words)
        assert score.ceiling == above.pick(name, *words).value and score.chance == below.pick(name, *words).value
        assert score.metric.better(score.ceiling, score.value)


def test_colours_of_clouds_are_those_of_the_answer(found):
    case, answer = found.case, found.answers[NAME]
    said = answer.color.argmax(1)
    truth = [majority_color(case.truth[name], case.palette) for name in case.test.ids.tolist()]
    assert found.row("clouds", NAME).pick("majority_color").value == pytest.approx(np.mean(said == truth))


def test_clouds_of_another_object_are_never_their_own(found):
    for n in (2, 5, 12):
        order = other_objects(n, 3)
        assert sorted(order) == [*range(n)] and not (order == np.arange(n)).any()
    own, others = found.clouds(NAME), found.clouds(ANOTHER)
    assert all(others[name] is not own[name] for name in own) and {*map(id, others.values())} == {
        *map(id, own.values())
    }


@pytest.mark.parametrize(
    ("change", "direction", "outcome"),
    [(-0.2, "down", "better"), (0.2, "down", "worse"), (0.2, "up", "better"), (-0.2, "up", "worse"), (0.0, "up", None)],
)
def test_paired_difference_is_first_minus_second_and_knows_what_is_better(change, direction, outcome):
    rng = np.random.default_rng(0)
    base, noise = rng.uniform(size=40), 0.05 * rng.normal(size=40)
    name = {"down": "chamfer_l2[rms]", "up": "fscore@0.05[rms]"}[direction]
    rows = [Row(key, "model", [], values={name: values}) for key, values in (("a", base + change + noise), ("b", base))]
    pair = PairedRow.of(*rows, metric(name), 200, 0)
    assert pair.value == pytest.approx(change + noise.mean()) and pair.value in pair.interval
    assert pair.outcome == (outcome or "no different") and (pair.first, pair.second, pair.n) == ("a", "b", 40)
    back = PairedRow.of(*rows[::-1], metric(name), 200, 0)
    assert back.value == pytest.approx(-pair.value)
    assert PairedRow.from_json(json.loads(json.dumps(pair.to_json()))) == pair


def test_first_line_says_whether_the_decoder_beats_retrieval(found):
    pair = found.against(retrieved_name(NAME))
    own, other = (found.row("clouds", name).values[PRIMARY].mean() for name in (NAME, retrieved_name(NAME)))
    assert pair.value == pytest.approx(own - other)
    for low, high, start in (
        (-0.02, -0.01, "The decoder beats retrieval:"),
        (-0.01, 0.01, "The decoder does not beat retrieval:"),
        (0.01, 0.02, "The decoder does not beat retrieval:"),
    ):
        given = replace(pair, value=(low + high) / 2, interval=Interval(low, high))
        told = replace(found, paired=[given if item == pair else item for item in found.paired])
        assert told.first_line.startswith(start) and told.record["first_line"] == told.first_line
        assert told.beats_retrieval == (high < 0)
        assert f"{own:.4f} for decoded clouds and {other:.4f} for retrieved train clouds" in told.first_line


def test_no_answer_is_right_more_often_than_the_ideal_observer(found):
    for table in ("classes", "colors"):
        best = found.row(table, IDEAL).scores[0].value
        assert best > 0.9
        for row in found.tables[table]:
            assert row.scores[0].value <= best and row.scores[0].ceiling <= 1
    single = found.row("classes", f"{NAME}, {SINGLE}").scores[0]
    assert single.value <= single.ceiling < 1 and single.n == 48 and single.repeats == "single"
    truth = found.case.ideal.posterior(found.case.single, "class").argmax(1)
    assert single.ceiling == pytest.approx(np.mean(truth == found.case.labels("class", found.case.single.ids)))


def test_rows_of_ridge_see_the_streams_that_they_name(found):
    case = found.case
    train, test = (trials.with_streams("static") for trials in (case.train, case.test))
    ridge = SensorRidge().fit(train, case.labels("class", train.ids))
    right = ridge.scores(test).argmax(1) == case.labels("class", test.ids)
    assert found.row("classes", f"{RIDGE}, static alone").scores[0].value == pytest.approx(right.mean())
    own = SensorRidge({"static": 0.04}, components=2).fit(train, case.labels("class", train.ids))
    right = own.scores(test).argmax(1) == case.labels("class", test.ids)
    assert found.row("classes", COURSES).scores[0].value == pytest.approx(right.mean())


def test_what_class_and_frequency_alone_tell_of_the_colour(found):
    case = found.case
    classes, colors = (case.labels(name, case.train_ids) for name in ("class", "color"))
    counts = np.bincount(colors)
    truth, of = case.labels("color", case.test.ids), case.labels("class", case.test.ids)
    hits = []
    for label, color in zip(of, truth, strict=True):
        own = np.bincount(colors[classes == label], minlength=len(counts))
        ties = np.flatnonzero(own == own.max())
        hits.append(ties[counts[ties].argmax()] == color)
    assert found.row("colors", "color_given_class").scores[0].value == pytest.approx(np.mean(hits))
    assert found.row("colors", "majority colour").scores[0].value == pytest.approx(np.mean(truth == counts.argmax()))
    assert found.row("classes", "majority class").scores[0].value == pytest.approx(1 / 6)  # two objects of each class


def test_confusion_counts_every_object_once(found):
    table = confusion_of(found.case, found.answers[NAME])
    right = found.row("classes", NAME).scores[0].value
    assert table.sum() == 12 and np.trace(table) == round(12 * right)


def test_prototypes_have_both_names_and_the_released_mixture(found):
    case, model = found.case, found.models[NAME]
    said = model.embed(case.test)
    query = np.concatenate([said.geometry, said.appearance], 1)
    gallery = np.concatenate(model.target_features(case.study, case.test.ids), 1)
    labels = case.labels("class", case.test.ids)
    first = [gallery[np.flatnonzero(labels == label)[0]] for label in range(6)]
    guesses = (query @ np.array(first).T).argmax(1)
    released = found.row("retrieval", f"{NAME}, first test object of each class").scores[0]
    assert released.value == pytest.approx(np.mean(guesses == labels))
    known = {row.name for row in found.tables["retrieval"]}
    assert {f"{NAME}, prototype_same_class", f"{NAME}, prototype_shown_image"} <= known
    nearest = (query @ gallery.T).argmax(1) == np.arange(12)
    top = found.row("retrieval", f"{NAME}, both features").score("image_given_brain_top1")
    assert top.metric.name == "image_given_brain_top1@12" and top.value == pytest.approx(nearest.mean())
    shown = {row["what"]: row for row in found.released}
    assert shown["class by the nearest prototype, top-1"]["released"] == released.value
    assert shown["class by guessing, top-1"]["released"] == selection_chance(12, 1 / 6, 200)


def test_probes_find_class_in_geometry_and_colour_in_appearance(found):
    (shape, other), (grey, color) = found.tables["probe_class"], found.tables["probe_color"]
    assert shape.scores[0].value > 0.9 > other.scores[0].value and shape.scores[0].ceiling == 1
    assert color.scores[0].ceiling > 0.9 > grey.scores[0].ceiling


def test_band_of_shuffled_objects_holds_chance_and_not_the_real_ridge(found):
    band = found.row("controls", SHUFFLED_OBJECTS).scores[0]
    low, high = band.interval[:2]
    assert low <= band.value <= high and "4 shuffles" in band.note
    real = found.row("classes", RIDGE).scores[0].value
    assert low <= 1 / 6 + 0.15 and high < 0.6 < real
    case = found.case
    own, rows = case.labels("class", case.train_ids), np.searchsorted(case.train_ids, case.train.ids)
    values = []
    for number in range(4):
        order = np.random.default_rng((0, number)).permutation(len(own))
        ridge = SensorRidge().fit(case.train, own[order][rows], 6)
        values.append(np.mean(ridge.scores(case.test).argmax(1) == case.labels("class", case.test.ids)))
    assert (low, high) == pytest.approx((min(values), max(values)))


def test_noise_and_time_before_the_picture_tell_nothing(found):
    noise = found.row("controls", f"{NAME}, {NOISE}").scores[0]
    assert noise.value < 0.5 and noise.interval.high < found.row("classes", NAME).scores[0].value
    early = found.row("controls", "ridge, static before 0 s").scores[0]
    assert early.at_chance and found.row("controls", "trial number alone").scores[0].at_chance
    runs = dict(zip(found.bottleneck.settings, found.bottleneck.values["top1"], strict=True))
    assert runs["full"] > 0.9 > runs[1]


def test_sensors_that_drive_the_class_are_found(found):
    table = found.sensors.occlusion["region"]
    drops = table.values("probability", "shape", "all")
    assert max(drops, key=drops.get) == "occipital"
    assert [course.stream for course in found.sensors.times] == ["static", "dynamic"]


def test_every_row_has_its_conditions(found):
    rows = [row for rows in found.tables.values() for row in rows]
    assert len(rows) > 40
    for row in rows:
        for score in row.scores:
            assert score.available and score.n > 0, (row.name, score)
            assert (score.split, score.part, score.subject) == ("objects", "test", "sim01"), (row.name, score)
            assert score.chance is not None, (row.name, score)
            if score.metric.direction != "none":
                assert score.ceiling is not None and score.interval is not None, (row.name, score)


def test_record_is_json_and_comes_back(found):
    record = json.loads(json.dumps(found.record, allow_nan=False))
    for name, rows in found.tables.items():
        for row, stored in zip(rows, record["tables"][name], strict=True):
            back = Row.from_json(stored)
            assert (back.name, back.kind, back.about) == (row.name, row.kind, row.about)
            assert list(back.scores) == list(row.scores) and list(back.values) == list(row.values)
            assert all(np.array_equal(back.values[key], row.values[key]) for key in row.values)
    assert [PairedRow.from_json(item) for item in record["paired"]] == list(found.paired)
    assert [Score.from_json(item) for item in record["agreements"]] == list(found.agreements)
    assert record["models"][NAME]["recipe"] == {"name": "stand_in", "selection": "last"}
    assert record["data"]["test_objects"] == 12 and record["data"]["simulated"] and record["sensors"]["times"]


def test_a_model_whose_epoch_the_test_objects_chose_says_so_and_has_another_chance(found):
    model = StandIn(object_study(), selection="test")
    case = found.case
    answers = collect_answers(case, {"chosen": model})
    rows = {row.name: row for row in class_rows(case, answers)}
    top1, top5, balanced = rows["chosen"].scores
    assert top1.chance == balanced.chance == selection_chance(12, 1 / 6, 20) > 0.3
    assert top5.chance == selection_chance(12, 5 / 6, 20) and top1.chance_interval is None
    assert "epoch chosen by the test objects" in top1.note and "best of 20 guesses" in top1.note
    assert rows[RIDGE].scores[0].chance == pytest.approx(1 / 6)


def test_models_of_other_data_are_refused(found):
    study, case = object_study(), found.case
    model = StandIn(study)
    model.train_ids_ = np.append(model.train_ids_, case.test.ids[4])
    with pytest.raises(LeakageError, match=f"1 of 12 among its train objects, such as {case.test.ids[4]}"):
        check_model(case, model, "Model")
    model = StandIn(study)
    model.meta_["subjects"] = {"sim01": {"split_hash": "another"}}
    with pytest.raises(LeakageError, match="got one trained on another"):
        check_model(case, model, "Model")
    model.meta_["subjects"] = {"sim02": {"split_hash": case.split.hash}}
    with pytest.raises(BrainDataError, match="expected Model of sim01, got a model of sim02"):
        evaluate_objects(study, {"Model": model}, ObjectSettings(), "sim01")
    with pytest.raises(BrainDataError, match="a fitted model, got none"):
        evaluate_objects(study, {})
    with pytest.raises(BrainDataError, match="2 shuffles or more"):
        ObjectSettings(shuffles=1)
    with pytest.raises(BrainDataError, match="row to be one of"):
        found.row("clouds", "nothing")


def test_splits_without_test_objects_of_trained_classes_are_refused():
    study = object_study()
    classes = study.label("class", study.stimuli.ids)
    new = split_from_ids("new", study.stimuli.ids[classes < 4], study.stimuli.ids[classes >= 4], val_ids=[])
    with pytest.raises(BrainDataError, match=r"got those of 2 others, such as cylinder; .* retrieval alone"):
        ObjectCase.of(study.with_splits(new), "sim01", "new", ObjectSettings())
    one = split_from_ids("one", study.stimuli.ids[1:], study.stimuli.ids[:1], val_ids=[])
    with pytest.raises(BrainDataError, match="2 test objects or more in 'one', got 1"):
        ObjectCase.of(study.with_splits(one), "sim01", "one", ObjectSettings())


# words and folders of the command line


def test_words_open_studies_of_objects(tmp_path):
    study = open_objects("objects:tiny", seed=3, subjects=("sim02",))
    assert study.subjects == ("sim01", "sim02") and study.stimuli.ids[0].startswith("solid3:")
    assert len(ObjectTrials.of(study, "sim02", "test")) == 48
    assert kind_of_data(["objects"]) == kind_of_data(["eeg3d:/data"]) == "objects" != kind_of_data(["simulated:tiny"])
    with pytest.raises(BrainDataError, match="one of tiny, nano, eeg3d_like, got 'tine'; near: tiny"):
        open_objects("objects:tine")
    with pytest.raises(BrainDataError, match="a study of objects, got 'simulated'"):
        open_objects("simulated")
    with pytest.raises(BrainDataError, match="objects:tiny alone"):
        kind_of_data(["objects:tiny", "prepared"])
    with pytest.raises(LayoutError):
        open_objects(f"eeg3d:{tmp_path}")
    with pytest.raises(BrainDataError, match="data of images, got 'objects:tiny'"):
        open_data("objects:tiny")


def _folder(place, system):
    place.mkdir(parents=True)
    for name in ("config.json", "weights.safetensors", "stats.safetensors"):
        (place / name).write_text("{}")
    (place / "meta.json").write_text(json.dumps({"system": system, "format": FORMAT}))
    return place


def test_folders_decide_the_kind_of_study(tmp_path):
    objects, images = _folder(tmp_path / "a" / "model", "Neuro3D").parent, _folder(tmp_path / "b", "NeuroFlow")
    assert kind_of_models([objects]) == "objects" and kind_of_models([images]) == kind_of_models([]) == "images"
    with pytest.raises(BrainDataError, match="expected models of one kind of data"):
        kind_of_models([objects, images])
    with pytest.raises(LayoutError, match="expected a saved model"):
        kind_of_models([tmp_path / "nothing"])


def test_object_models_are_not_opened_as_models_of_images(monkeypatch):
    monkeypatch.setattr("brainmodels.evaluation.opened.load_model", lambda *_: StandIn(object_study()))
    with pytest.raises(BrainDataError, match="expected models of images, got a StandIn of objects in somewhere"):
        open_models(["somewhere"], [], "cpu")


def test_models_know_the_data_of_their_training(found):
    model = found.models[NAME]
    assert data_of([model]) == ("objects:tiny", 0)
    other = StandIn(object_study())
    other.meta_["run"] = {"data": "objects:nano", "seed": 2}
    with pytest.raises(BrainDataError, match="got objects:nano of seed 2 and objects:tiny of seed 0"):
        data_of([model, other])
    other.meta_["run"] = {}
    with pytest.raises(BrainDataError, match="got none that does; name the data"):
        data_of([other])


def test_the_command_refuses_what_does_not_belong_together(monkeypatch, tmp_path):
    settings = EvaluationSettings(data=("objects:tiny",), progress=False, out=tmp_path)
    with pytest.raises(BrainDataError, match="expected models of objects, such as neuro3d, for objects:tiny, got no m"):
        run_evaluations(settings)
    place = _folder(tmp_path / "model", "Neuro3D")
    monkeypatch.setattr("brainmodels.evaluation.object_models.load_model", lambda *_: StandIn(object_study()))
    base = replace(settings, models=(place,))
    with pytest.raises(BrainDataError, match="objects:PRESET or eeg3d:FOLDER, for StandIn, got simulated:tiny"):
        run_evaluations(replace(base, data=("simulated:tiny",)))
    with pytest.raises(BrainDataError, match="expected no pictures with models of objects"):
        run_evaluations(replace(base, pictures="nearest"))
    with pytest.raises(BrainDataError, match="subject of the models to be one of sim01, got 'sim09'"):
        run_evaluations(replace(base, subject=("sim09",)))
    with pytest.raises(BrainDataError, match="published=False with simulated data"):
        run_evaluations(replace(base, published=True))
