"""Models that read a new subject from few images: trained, adapted, scored, drawn and mapped, and who is refused."""

import dataclasses
import json
import re
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from brainmodels.baselines import Ridge
from brainmodels.cli import main
from brainmodels.commands.opening import open_data
from brainmodels.commands.train import TrainSettings, _recipe, run_training
from brainmodels.data import fit_normalizer
from brainmodels.drawing import KeyedNearest
from brainmodels.drawing.scenes import SHIPPED
from brainmodels.errors import BrainDataError, IdError, LeakageError, NormalizationError
from brainmodels.evaluation.context import adapt_models, context_curves
from brainmodels.evaluation.models import SAME_TOKENS, evaluate_model
from brainmodels.evaluation.opened import open_models
from brainmodels.evaluation.pictures import ANOTHER, MEAN, TRUE, draw_pictures
from brainmodels.evaluation.run import normalizer_name
from brainmodels.evaluation.voxels import study_voxels, weight_maps
from brainmodels.features.sets import FeatureSet
from brainmodels.metrics.statistics import bootstrap_weights
from brainmodels.report import figures
from brainmodels.report.cross_subject import rivals
from brainmodels.systems import load_model
from tests.brainmodels.adapted import CODEC as RECIPE
from tests.brainmodels.adapted import Few, recipe_file, train_both
from tests.brainmodels.made import made_dataset
from tests.brainmodels.simulations import made

CODEC, CORL = "BrainCoDec", "InContextEncoder"
QUICK = {"data": "simulated:tiny", "features": "grid", "progress": False, "device": "cpu", "check_alignment": "off"}
INVERSIONS = [f"{CODEC}: inversion of {name}" for name in ("its encoders", "ridge", "prior ridge")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_both(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    """Folder of the report that the command line makes of both with few images of sim01; others look at its grids."""
    out = tmp_path_factory.mktemp("report")
    words = ["--models", *map(str, trained), "--data", "simulated:tiny", "--subject", "sim01", "--features", "grid"]
    words += ["--context", "8", "16", "--draws", "2", "--pictures", "nearest", "--no-progress", "--out", str(out)]
    hidden = {name: lambda *_, **__: None for name in ("picture_grid", "roi_bars", "brain_map", "voxel_scores")}
    with mock.patch.multiple(figures, **hidden):
        main(["evaluate", *words, "--resamples", "50", "--shuffles", "1", "--curve", "--check-alignment", "off"])
    return out


@pytest.fixture(scope="module")
def few(trained, tmp_path_factory):
    return Few.of(trained, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def codec(few):
    return evaluate_model(few.codec, few.study, few.cache)


@pytest.fixture(scope="module")
def corl(few):
    return evaluate_model(few.corl, few.study, few.cache)


def cosines(first, second):
    first, second = (x.reshape(len(x), -1).astype(np.float64) for x in (first, second))
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first])


def top1(table):
    return np.mean([row.argmax() == i for i, row in enumerate(table)])


# the command line


def test_the_command_line_goes_from_training_to_a_report_of_a_new_subject(report, few, codec, corl):
    record = json.loads((report / "record.json").read_text())
    data, context = record["data"], record["context"]
    assert data["train_images"] == 16 and data["normalizer"] == "session_z_unlabelled"
    assert data["normalizer_trials"] == 3 * 240  # of all images that are not tested on, used or not
    assert context["draws"] == 2
    curves = {curve["metric"]: curve for curve in context["curves"]}
    assert set(curves) == {"image_given_brain_top1@60", "nr2"}
    found, told = curves["image_given_brain_top1@60"], curves["nr2"]
    assert found["chance"] == pytest.approx(1 / 60) and told["chance"] == 0
    assert list(found["points"]) == [CODEC, *INVERSIONS, f"{SAME_TOKENS} as {CODEC}"]
    beside = [f"{CORL}: {name}" for name in ("ridge, same context", "prior ridge of other subjects")]
    assert list(told["points"]) == [CORL, *beside, f"{SAME_TOKENS} as {CORL}"]
    for points in (*found["points"].values(), *told["points"].values()):
        assert [len(points[count]) for count in ("8", "16")] == [2, 2]
    rows = {row.scores[0].decoder: row for row in codec.decoded}  # the same in Python, first draw of 16 images
    for name in (CODEC, *INVERSIONS):
        assert found["points"][name]["16"][0] == rows[name].score("image_given_brain_top1").value
    rows = {row.model: row for row in corl.encoded}
    for name in (CORL, *beside):
        assert told["points"][name]["16"][0] == pytest.approx(rows[name].score("nr2").value, abs=1e-6)
    first, second = record["models"]
    assert first["references"] == INVERSIONS and second["references"] == beside
    assert first["adapted_from"]["subjects"] == ["sim02", "sim03"]
    assert [row["scores"][0]["decoder"] for row in first["decoding"]][:4] == [CODEC, *INVERSIONS]
    assert [row["model"] for row in second["encoding"]][:3] == [CORL, *beside]


def test_the_page_says_which_images_and_methods_and_shows_curves_and_maps(report, codec):
    html = (report / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html)).replace("&nbsp;", " ")
    assert "We adapted BrainCoDec and InContextEncoder to sim01 with responses to 16 images" in text
    assert "normalised by session_z_unlabelled with statistics of 720 trials, averaged over repeats" in text
    origin = f"{codec.opened.model.meta_['adapted_from']['train_images']} images of sim02 and sim03"
    assert f"It was trained on {origin}, with the recipe few, and adapted to sim01 with 16 images" in text
    assert "It uses pooled features of grid, 16 numbers, reduced from 108 by principal components" in text
    for name in ("context_0.png", "context_1.png", "voxels_0.png"):
        assert f'src="{name}"' in html and (report / name).is_file()
    assert "the mean of 2 disjoint draws of images" in text and "from the least to the greatest of the 2 draws" in text
    assert "What the regions add" in text and "Number of voxels" in text and "Maps of encoders" in text
    best = rivals([codec])[0]
    assert f"Of the simpler methods on the same data, {best.name} identifies" in text
    assert "Pooled features have no places" in text and "Semantics after decoding" in text  # of the encoder alone
    assert html.count("<h3>Semantics after decoding</h3>") == 1
    with np.load(report / "encoders_0.npz", allow_pickle=False) as file:
        assert file["regions"].tolist() == list(made("tiny", seed=0, n_subjects=1).subject("sim01").space.rois)


def test_steps_are_given_for_the_stages_that_a_recipe_has(tmp_path):
    path = recipe_file(tmp_path, RECIPE)
    assert RECIPE.extend is None
    settings = TrainSettings(**QUICK, model="braincodec", recipe=path, steps=(3, 4), batch_size=5, precision="bf16")
    recipe = _recipe(settings)
    assert (recipe.synthetic.steps, recipe.extend, recipe.finetune.steps) == (3, None, 4)
    assert recipe.synthetic.batch_size == 5 == recipe.stage1.extend.batch_size  # every stage, of stage 1 too
    assert recipe.stage1.precision == "bf16" and recipe.stage1.extend.steps == 40 and recipe.stage1.pretrain is None
    with pytest.raises(BrainDataError, match=r"expected steps of 2 stages \(synthetic, finetune\), got 3 numbers"):
        _recipe(dataclasses.replace(settings, steps=(3, 4, 5)))


# rows beside a model


def test_decoding_rows_beside_the_model_are_those_that_it_names(few, codec):
    model, rows = few.codec.model, {row.scores[0].decoder: row for row in codec.decoded}
    true = few.cache.get(few.study.test.image_ids, "pooled")
    true = (true - model.scaler_.reduction.center_) @ model.scaler_.reduction.components_.T  # lengths do not count
    for name, guess in model.reference_decodings(few.study.test).items():
        guess = (guess - model.scaler_.reduction.center_) @ model.scaler_.reduction.components_.T
        table, row = cosines(guess, true), rows[f"{CODEC}: {name}"]
        assert row.score("image_given_brain_top1").value == pytest.approx(top1(table), abs=1e-6), name
        assert row.score("token_cosine").value == pytest.approx(np.diagonal(table).mean(), abs=1e-4), name
        assert row.scores[0].mask == "voxels of the model"
    assert rows[SAME_TOKENS].scores[0].mask == "210 of 210 voxels"
    best = max(INVERSIONS, key=lambda name: rows[name].score("image_given_brain_top1").value)
    (rival,) = rivals([codec])
    assert f"{CODEC}: {rival.name}" == best and rival.own == rows[CODEC].score("image_given_brain_top1")


def test_encoding_rows_beside_the_model_are_those_that_it_names(few, corl):
    study, rows = few.study, {row.model: row for row in corl.encoded}
    X, X_test = (x[:, 0] for x in (corl.space.train, corl.space.test))
    ridge = Ridge().fit(X, study.measured_train)
    predicted = ridge.predict(X_test)
    name = f"{CORL}: ridge, same context"
    np.testing.assert_allclose(corl.answers.reference_predictions[name], predicted, atol=1e-4)
    varied = ridge.alphas_ < 1e6  # the others predict their mean
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(study.measured.T, predicted.T, strict=True)])
    np.testing.assert_allclose(rows[name].r[varied], r[varied], atol=1e-3)
    assert corl.encoded[-1].model == SAME_TOKENS and corl.encoded[0].model == CORL
    (rival,) = rivals([corl])
    shares = {name: row.score("nr2").value for name, row in rows.items()}
    assert rival.verb == "predicts" and rival.own.value == shares[CORL]
    assert rival.score.value == max(value for name, value in shares.items() if name.startswith(f"{CORL}: "))


# what voxels add


class Reader:
    """A decoder that knows the image where it sees voxels of COLOR, and answers with another image elsewhere."""

    subjects_, fingerprint_ = ("sim01",), "reader"

    def __init__(self, color, true, kept):
        self.color, self.true = color, true
        self.scales_ = {"sim01": SimpleNamespace(kept=kept)}

    def decode(self, responses, *, subject, voxels=None, max_voxels=4000, seed=0):
        voxels = np.ones(len(self.color), bool) if voxels is None else voxels
        return self.true if (self.color & voxels).any() and max_voxels > 25 else np.roll(self.true, 1, 0)

    def tokens(self, features):
        return features


def test_the_region_that_a_decoder_reads_is_the_one_that_it_misses(few, codec):
    rois = few.study.test.subject.space.rois
    kept = ~rois["V4"]  # the model knows no voxel of V4
    true = np.eye(60, dtype=np.float32)[:, None] + 0.1
    opened = dataclasses.replace(few.codec, model=Reader(rois["COLOR"] & ~rois["SHAPE"], true, kept))
    found = study_voxels(opened, few.study, dataclasses.replace(codec.space, test=true))
    lost = cosines(np.roll(true, 1, 0), true).diagonal().mean() - 1
    effects = {effect.region: effect for effect in found.regions}
    assert set(effects) == set(rois) - {"V4"}
    for name, effect in effects.items():
        reads = bool((rois[name] & rois["COLOR"] & ~rois["SHAPE"] & kept).any())
        changes = [effect.without["top1"].value, effect.alone["top1"].value]
        assert changes == ([-1, 0] if name == "COLOR" else [0, 0 if reads else -1]), name
        assert effect.without["cosine"].value == pytest.approx(lost if name == "COLOR" else 0, abs=1e-6)
        assert effect.without["top1"].interval.low == effect.without["top1"].interval.high  # every image changes alike
        assert effect.voxels == int((rois[name] & kept).sum())
    counts = {count: [score.value for score in scores] for count, scores in found.counts.items()}
    assert list(counts)[-1] == kept.sum() and counts[25] == pytest.approx([1 + lost, 0])
    assert counts[50] == pytest.approx([1, 1])


def test_changes_and_counts_are_those_of_masked_decoding(few, codec):
    model, study = few.codec.model, few.study
    true = codec.space.test
    table = {name: cosines(model.tokens(model.decode(study.test, **options)), true) for name, options in _choices(few)}
    weights = bootstrap_weights(60, study.resamples, study.seed)
    for effect in codec.voxels.regions:
        for way, change in (("without", effect.without), ("alone", effect.alone)):
            differences = table[f"{way} {effect.region}"].diagonal() - table["all"].diagonal()
            low, high = np.quantile(weights @ differences / 60, [0.025, 0.975])
            got = change["cosine"]
            assert (got.value, got.interval.low, got.interval.high) == pytest.approx((differences.mean(), low, high))
            assert change["top1"].value == pytest.approx(top1(table[f"{way} {effect.region}"]) - top1(table["all"]))
    assert list(codec.voxels.counts) == [25, 50, 100, 200, 210]
    for count, (cosine, top) in codec.voxels.counts.items():
        name = "all" if count == 210 else str(count)
        assert cosine.value == pytest.approx(table[name].diagonal().mean(), abs=1e-6), count
        assert top.value == pytest.approx(top1(table[name])) and f"{count} random voxels" in top.mask
    stored = json.loads(json.dumps(codec.to_json()))["voxels"]
    assert stored["regions"][0]["without"]["cosine"][0] == codec.voxels.regions[0].without["cosine"].value


def _choices(few):
    yield "all", {}
    for name, mask in few.study.test.subject.space.rois.items():
        yield f"without {name}", {"voxels": ~mask}
        yield f"alone {name}", {"voxels": mask}
    for count in (25, 50, 100, 200):
        mask = np.zeros(210, bool)
        mask[np.random.default_rng((few.study.seed, 0)).permutation(210)[:count]] = True
        yield str(count), {"voxels": mask}


def test_maps_hold_the_encoders_and_their_principal_components(few, report):
    maps, space = weight_maps(few.codec, few.study), few.study.test.subject.space
    encoders = few.codec.model.voxel_model("sim01")
    np.testing.assert_array_equal(maps.coef, encoders.coef_)
    weights = encoders.coef_.T.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(weights.T))
    for number in range(3):
        along = (weights - weights.mean(0)) @ vectors[:, -1 - number]
        along *= np.sign(along[np.abs(along).argmax()])
        np.testing.assert_allclose(maps.components[number], along, atol=1e-5)
        assert maps.explained[number] == pytest.approx(values[-1 - number] / values.sum())
    import nibabel

    with np.load(report / "encoders_0.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["coef"], maps.coef, atol=1e-6)
        np.testing.assert_array_equal(file["index"], space.index)
        np.testing.assert_array_equal(file["inside"][2], list(space.rois.values())[2])
    for number in range(3):
        image = nibabel.load(report / f"encoders_0_pc{number + 1}.nii.gz")
        np.testing.assert_allclose(image.affine, space.affine, atol=1e-5)
        np.testing.assert_allclose(image.get_fdata()[tuple(space.index.T)], maps.components[number], atol=1e-5)


def test_a_voxel_that_the_model_leaves_out_has_no_encoder(few):
    model = few.codec.model
    kept = np.ones(210, bool)
    kept[7] = False
    part = model.voxel_model("sim01").select(kept)
    scales = {"sim01": SimpleNamespace(kept=kept)}
    stub = SimpleNamespace(subjects_=("sim01",), scales_=scales, voxel_model=lambda subject: part)
    maps = weight_maps(dataclasses.replace(few.codec, model=stub), few.study)
    assert np.isnan(maps.coef[:, 7]).all() and np.isnan(maps.components[:, 7]).all()
    np.testing.assert_array_equal(maps.coef[:, 8], model.voxel_model("sim01").coef_[:, 8])


# pictures


def test_pictures_of_pooled_features_are_the_nearest_by_cosine(few, codec):
    made_of = draw_pictures(codec, few.study, few.dataset, few.cache)
    assert made_of.bank == "240 images that are not tested on" and made_of.calibration is None
    drawn = {item.source: item for item in made_of.drawn}
    assert list(drawn)[:4] == [CODEC, SAME_TOKENS, ANOTHER, MEAN] and TRUE in drawn
    stimuli, model = few.dataset.stimuli, few.codec.model
    bank = [name for name in stimuli.ids if name not in few.split.test]
    few.cache.extract(bank, progress=False)
    known = model.tokens(few.cache, bank)
    for source, tokens in {CODEC: codec.answers.decoded, TRUE: codec.space.test}.items():
        nearest = cosines(tokens, known).argmax(1)
        expected = stimuli.images([bank[row] for row in nearest], 64)
        np.testing.assert_array_equal(drawn[source].images, expected)
        assert drawn[source].drawer.startswith("nearest_image@240 ")
    score = "two_way[grid]"
    assert drawn[TRUE].score(score).value > drawn[MEAN].score(score).value == pytest.approx(0.5)


def test_the_nearest_pictures_of_a_folder_serve_pooled_features_and_a_generator_does_not(few, codec, tmp_path):
    ids = np.array([name for name in few.dataset.stimuli.ids if name not in few.split.test][:40])
    few.cache.extract(ids, progress=False)
    pictures, pooled = few.dataset.stimuli.images(ids, 16), few.cache.get(ids, "pooled")
    sizes = {"steps": 2, "count": 4, "width": 4}
    KeyedNearest.fit(pooled[:, None], pooled, pictures, ids, **sizes).save(tmp_path)
    np.save(tmp_path / "pictures.npy", pictures)
    found = draw_pictures(codec, few.study, few.dataset, few.cache, tmp_path)
    assert found.bank == f"40 pictures of {tmp_path}"
    assert {x.tobytes() for row in found.drawn for x in row.images} <= {x.tobytes() for x in pictures}
    with pytest.raises(BrainDataError, match=r"nearest picture of pooled features .*, got the generator of"):
        draw_pictures(codec, few.study, few.dataset, few.cache, SHIPPED)
    ids[0] = few.study.test.image_ids[0]
    KeyedNearest.fit(pooled[:, None], pooled, pictures, ids, **sizes).save(tmp_path)
    with pytest.raises(LeakageError, match="bank without test images, got one with 1"):
        draw_pictures(codec, few.study, few.dataset, few.cache, tmp_path)


# normalisers


def test_few_images_are_normalised_with_statistics_of_all_trials_without_test_images():
    tiny, unknown = made("tiny", seed=0, n_subjects=1).subject("sim01"), made_dataset(20, 2).subject("subj01")
    assert normalizer_name("auto", tiny, few=True) == "session_z_unlabelled"
    assert normalizer_name("auto", tiny, few=False) == "session_z_train"
    assert normalizer_name("auto", dataclasses.replace(tiny, normalizer="session_z"), few=True) == "none"
    assert normalizer_name("train_z", tiny, few=True) == "train_z"
    trials = dataclasses.replace(unknown.responses.trials, session=np.full(len(unknown.responses.trials), -1))
    unknown = dataclasses.replace(unknown, responses=dataclasses.replace(unknown.responses, trials=trials))
    assert normalizer_name("auto", unknown, few=True) == "train_z"


def test_training_keeps_the_default_normaliser(trained):
    facts = load_model(trained[0]).meta_
    assert facts["run"]["normalizer"] == "session_z_train" and facts["run"]["held_out"] == ["sim01"]
    assert set(facts["subjects"]) == {"sim02", "sim03"}


# bad input


def test_an_adapted_model_is_accepted_where_it_belongs(few):
    for item in (few.codec, few.corl):
        item.check(few.study)
        assert item.model.check_unseen(few.study.test.image_ids)


def test_context_images_among_the_test_images_are_refused(few):
    subject = few.dataset.subject("sim01")
    test = few.split.test
    moved = frozenset(sorted(test)[:6])
    leaking = dataclasses.replace(
        few.split,
        name="leaking",
        train=few.split.train | moved,
        test=test - moved,
        train_of={"sim01": few.split.ids("train", "sim01") | moved},
    )
    scale = fit_normalizer("session_z_unlabelled", subject, leaking)
    context = few.dataset.pairs("sim01", leaking, "train", "none", scale)
    model = few.codec.model.adapt(few.cache, context, subject="sim01")
    opened = dataclasses.replace(few.codec, model=model)
    with pytest.raises(LeakageError, match="expected a context of sim01 without test images, got 6 of them"):
        opened.check(few.study)


def test_a_model_of_other_test_images_is_not_adapted(few, trained):
    other = open_data("simulated:tiny", 1, ("sim01",))
    settings = dataclasses.replace(few.settings, context=(8,), draws=1)
    models = open_models(trained, [], "cpu")
    with pytest.raises(LeakageError, match=r"got one trained on .*data simulated:tiny, seed 0.*split of its training"):
        context_curves(models, other, other.subject("sim01"), other.split("shared"), settings)


def test_features_of_another_extractor_are_refused(few, trained, tmp_path):
    (item, _), pixels = open_models(trained, [], "cpu"), FeatureSet.parse("pixels")
    opened = dataclasses.replace(item, features=pixels)
    subject = few.dataset.subject("sim01")
    with pytest.raises(NormalizationError, match=f"of the extractor {item.model.fingerprint_}, as in the fit, got"):
        adapt_models([opened], few.dataset, subject, few.split, few.study, few.settings)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (2, "expected a context of at least . images of sim01, got 2"),
        (4, "expected a context of 5 images or more, one for each fold"),
        (200, "expected 2 x 200 train images of sim01 for disjoint draws, got"),
    ],
)
def test_contexts_that_are_too_small_or_too_large_are_refused(few, trained, context, message):
    settings = dataclasses.replace(few.settings, context=(context,))
    subject, split = few.dataset.subject("sim01"), few.dataset.split("shared")
    with pytest.raises(ValueError, match=message):
        context_curves(open_models(trained, [], "cpu"), few.dataset, subject, split, settings)


def test_voxels_without_a_value_are_refused(few, trained):
    subject = few.dataset.subject("sim01")
    values = np.array(subject.responses.values)
    values[:, 3] = np.nan
    broken = dataclasses.replace(subject, responses=dataclasses.replace(subject.responses, values=values))
    dataset = few.dataset.with_subject(broken)
    settings, whole = dataclasses.replace(few.settings, context=(16,)), dataset.split("shared")
    with pytest.raises(BrainDataError, match="voxel 3"):
        context_curves(open_models(trained, [], "cpu"), dataset, broken, whole, settings)


def test_unknown_subjects_and_those_on_both_sides_are_refused(trained, tmp_path):
    with pytest.raises(IdError, match=r"expected a subject of sim01, sim02, sim03, got 'simm01'; near: sim01"):
        run_training(TrainSettings(**QUICK, model="braincodec", held_out=("simm01",), out=tmp_path))
    with pytest.raises(BrainDataError, match="got sim02 as both"):
        TrainSettings(**QUICK, model="braincodec", held_out=("sim02",), subject=("sim02", "sim03"))
    words = ["--models", str(trained[0]), "--data", "simulated:tiny", "--context", "8", "--no-progress"]
    with pytest.raises(SystemExit, match=r"veca brain evaluate: expected a subject of sim01, got 'sub01'; near: sim01"):
        main(["evaluate", *words, "--subject", "sub01", "--features", "grid", "--out", str(tmp_path)])
