"""Neuro3D fitted to simulated subjects: what it is trained on, what it returns, files, resuming, and refusals."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brainmodels.data.objects import ObjectTrials
from brainmodels.data.responses import Responses
from brainmodels.errors import AxisError, BrainDataError, LeakageError, NormalizationError, UnitsError
from brainmodels.features import ArrayFeatures
from brainmodels.metrics.shape3d import majority_color
from brainmodels.systems import load_model
from brainmodels.systems.neuro3d import Neuro3D, PointSize, estimator, released
from brainmodels.systems.neuro3d.batches import ColorTask, Conditions, TrialRows, condition_of, unit_clouds
from brainmodels.systems.neuro3d.crossfit import conditions_of, encode, folds_of
from brainmodels.systems.neuro3d.targets import TargetScale, goals_of, targets_of
from brainmodels.training.batches import RowNumbers
from brainmodels.training.loop import train_stage
from brainmodels.training.recipe import TrainingStage
from tests.brainmodels.object_fits import FEW, FOLDED, few, fitted, folded, study, tiny_fit, tiny_study, trials, weights

CPU = torch.device("cpu")
NETWORKS = ("encoder", "denoiser", "painter")


def with_responses(change, streams=("static", "dynamic")):
    """The study with changed values; `change(values, table)` returns new ones."""
    other = copy.copy(study())
    for name in streams:
        person = study().dataset(name).subject("sim01")
        values = change(np.array(person.responses.values), person.responses.trials)
        person = replace(person, responses=Responses(values, person.responses.trials, unit=person.responses.unit))
        setattr(other, name, study().dataset(name).with_subject(person))
    return other


class TestTrainedOn:
    def test_test_trials_change_nothing(self):
        """They are not even read: NaN in them would raise."""
        held = study().split().test

        def poisoned(values, table):
            values[np.isin(table.image_id, sorted(held))] = np.nan
            return values

        other = fitted(given=with_responses(poisoned))
        for name in NETWORKS:
            assert np.array_equal(weights(getattr(other, name)), weights(getattr(few(), name))), name

    def test_an_object_does_not_reach_the_encoder_that_leaves_it_out(self, monkeypatch):
        """With its trials changed, the encoder of its fold keeps its bits and those of other folds do not."""
        ids = np.unique(ObjectTrials.of(study(), "sim01", "train+val").ids)
        folds = folds_of(ids, study().label("class", ids), 2)
        name = folds[0][0]

        def other(values, table):
            rows = table.image_id == name
            values[rows] = -3 * values[rows][:, ::-1]
            return values

        found = []
        for given in (study(), with_responses(other)):
            kept = []
            train = estimator.train_folds
            monkeypatch.setattr(
                estimator, "train_folds", lambda *a, kept=kept, train=train: kept.append(train(*a)) or kept[0]
            )
            fitted(FOLDED, given)
            monkeypatch.undo()
            found.append([weights(fold.encoder) for fold in kept[0][0]])
        assert np.array_equal(found[0][0], found[1][0]) and not np.array_equal(found[0][1], found[1][1])

    def test_folds_part_the_objects_of_every_class(self):
        ids = np.array([f"o{i}" for i in range(24)])
        labels = np.repeat([0, 1, 2], 8)
        folds = folds_of(ids, labels, 4)
        assert sorted(np.concatenate(folds)) == sorted(ids)
        for held in folds:
            assert np.bincount(labels[np.isin(ids, held)]).tolist() == [2, 2, 2]
        with pytest.raises(
            BrainDataError, match="3 train objects or more of every class for 2 folds, got 2 of class 1"
        ):
            folds_of(ids[:10], labels[:10], 2)

    def test_each_condition_comes_from_the_encoder_of_its_object(self):
        single = ObjectTrials.of(study(), "sim01", "train+val")
        ids = np.unique(single.ids)
        goals = goals_of(study(), ids, targets_of(study(), FEW.targets), few().scales_)
        first, second = folded().encoder, few().encoder
        encoders = {name: (first, second)[row % 2] for row, name in enumerate(ids.tolist())}
        recipe = replace(FEW, classes="probabilities")
        made = conditions_of(recipe, single, goals, encoders, (4, 6), CPU)
        assert made.geometry.shape[:2] == (len(ids), 3)  # the mean, and two presentations
        for row in (0, 1):
            own = single.take(single.ids == ids[row])
            mean, each = (encode(encoders[ids[row]], x, CPU) for x in (own.averaged(), own))
            torch.testing.assert_close(made.geometry[row], torch.cat((mean.geometry, each.geometry)))
            torch.testing.assert_close(made.shape[row], torch.cat((mean.shape, each.shape)))
        sure = conditions_of(FEW, single, goals, encoders, (4, 6), CPU)
        assert torch.equal(sure.geometry, made.geometry)
        assert (sure.shape.argmax(2).numpy() == goals.label[:, None]).all() and (sure.shape.sum(2) == 1).all()
        assert (sure.color.argmax(2).numpy() == goals.color[:, None]).all()

    def test_the_published_protocol_chooses_by_the_test_objects_and_says_so(self):
        recipe = replace(FEW, selection="test", encoder=replace(FEW.encoder, steps=12))
        model = fitted(recipe)
        log = model.meta_["stages"][0]["log"]
        assert all("val_loss" in row for row in log) and model.meta_["selection"] == "test"
        assert released().selection == "test"
        assert not set(model.meta_["train_objects"]) & study().split().test

    def test_a_validation_row_is_the_mean_of_its_objects_trials(self):
        single = trials("test")
        goals = goals_of(study(), np.unique(single.ids), targets_of(study(), FEW.targets), few().scales_)
        source = TrialRows(single, single, goals)
        rows = np.arange(4)
        batch = source.batch("val", "sim01", rows)
        expected = single.averaged().batch(rows)
        for name, values in batch.trials().items():
            assert np.array_equal(values.numpy(), expected[name])
        batch = source.batch("train", "sim01", np.array([1, 5]))
        np.testing.assert_allclose(batch.spread.ravel(), (4 / 3) ** 0.5, rtol=1e-6)  # four presentations
        assert np.array_equal(batch.static.numpy(), single.batch([1, 5])["static"])
        mean = single.take(single.ids == single.ids[5]).averaged().batch([0])["dynamic"]
        np.testing.assert_allclose(batch.dynamic_mean[1].numpy(), mean[0], atol=1e-6)


def test_targets_are_standardised_over_train_objects_and_of_length_one():
    values = np.random.default_rng(0).normal(3, [[1, 10, 0]], (40, 3))
    scale = TargetScale.fit(values)
    expected = (values - values.mean(0)) / [*values.std(0)[:2], 1]
    made = scale.transform(values)
    np.testing.assert_allclose(made, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_clouds_as_the_networks_see_them():
    rng = np.random.default_rng(0)
    clouds = {"a": rng.uniform(0, 1, (50, 6)), "b": rng.uniform(0, 1, (40, 6)) * [[9, 9, 9, 1, 1, 1]]}
    made = unit_clouds(clouds, np.array(["b", "a"])).numpy()
    assert made.shape == (2, 40, 6)
    np.testing.assert_allclose(made[..., :3].mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(made[..., :3]).mean((1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(made[0, :, 3:], 2 * clouds["b"][:, 3:] - 1, atol=1e-6)


def test_the_painter_learns_what_colour_a_feature_means():
    """Two appearances, red and green; points of unseen clouds are painted in the colour of the feature."""
    torch.manual_seed(0)
    model = few()
    painter = copy.deepcopy(model.painter)
    width, noise = model.painter.cond_width - 6, torch.Generator().manual_seed(1)
    clouds = torch.randn(16, 64, 6, generator=noise)
    colors = torch.tensor([[0.8, -0.8, -0.8], [-0.8, 0.8, -0.8]])[torch.arange(16) % 2]
    clouds[..., 3:] = colors[:, None]
    features = F.normalize(torch.randn(2, width, generator=noise))[torch.arange(16) % 2][:, None]
    none = torch.zeros(16, 1, 6)
    task = ColorTask(painter, replace(FEW, points=32), clouds, Conditions(features, features, none, none))
    train_stage("color", task, RowNumbers("objects", 16), TrainingStage(steps=150, lr=1e-2, batch_size=16))
    for which, seen in enumerate(([1, 0, 0], [0, 1, 0])):
        condition = condition_of(features[which], none[0])
        painted = painter(torch.randn(1, 40, 3, generator=noise), None, condition)
        assert (painted[0].argmax(1) == int(np.argmax(seen))).all()
        torch.testing.assert_close(painted[0], colors[which].expand(40, 3), atol=0.2, rtol=0)


class TestReturned:
    def test_probabilities_and_features(self):
        found, embed = few().classify(trials()), few().embed(trials())
        np.testing.assert_allclose(found.shape.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(found.color.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(embed.geometry, axis=1), 1, atol=1e-5)
        assert found.ids.tolist() == embed.ids.tolist() == trials().ids.tolist()
        some = few().classify(trials().take([3, 1]))
        np.testing.assert_allclose(some.shape, found.shape[[3, 1]], atol=1e-5)

    def test_clouds_are_centred_of_unit_scale_and_repeat_by_seed(self):
        made = few().decode(trials(), samples=2, num_points=40)
        names = list(dict.fromkeys(trials().ids.tolist()))
        assert made.points.shape == (len(names), 2, 40, 6) and made.ids.tolist() == names
        np.testing.assert_allclose(made.points[..., :3].mean(2), 0, atol=1e-5)
        np.testing.assert_allclose(np.square(made.points[..., :3]).sum(3).mean(2), 1, atol=1e-4)
        assert made.points[..., 3:].min() >= 0 and made.points[..., 3:].max() <= 1
        assert np.array_equal(made.points, few().decode(trials(), samples=2, num_points=40).points)
        assert not np.array_equal(made.points, few().decode(trials(), samples=2, num_points=40, seed=1).points)
        assert not np.array_equal(made.points[:, 0], made.points[:, 1])

    def test_chunks_give_the_same_clouds(self):
        whole, pieces = (few().decode(trials().take([0]), num_points=64, chunk_points=n) for n in (None, 10))
        np.testing.assert_allclose(whole.points, pieces.points, atol=1e-4)

    def test_ways_of_using_repeats(self):
        few_trials = trials().take(np.isin(trials().ids, trials().ids[[0, 8]]))
        single = few().decode(few_trials, repeats="single")
        assert single.ids.tolist() == few_trials.ids.tolist()
        inputs = few().decode(few_trials.averaged(), repeats="single")
        assert np.array_equal(inputs.points, few().decode(few_trials).points)
        said = few().classify(few_trials), few().embed(few_trials)
        rows = [few_trials.ids == name for name in inputs.ids]
        columns = [np.stack([x[row].mean(0) for row in rows]) for x in (said[1].geometry, said[1].appearance)]
        probable = [np.stack([x[row].mean(0) for row in rows]) for x in (said[0].shape, said[0].color)]
        outputs = few().decode(few_trials, repeats="avg_outputs")
        by_hand = few().decode_features(*columns, *probable, ids=inputs.ids)
        np.testing.assert_allclose(outputs.points, by_hand.points, atol=1e-4)

    def test_one_colour_for_a_cloud(self):
        palette = few().palette_
        painted = few().decode(trials())
        majority, label = (few().decode(trials(), color=how) for how in ("majority", "label"))
        probable = few().classify(trials().averaged()).color
        for row in range(len(painted.ids)):
            assert np.array_equal(painted.points[row, 0, :, :3], majority.points[row, 0, :, :3])
            most = majority_color(painted.points[row, 0], palette)
            np.testing.assert_allclose(majority.points[row, 0, :, 3:], np.tile(palette[most], (48, 1)), atol=1e-6)
            np.testing.assert_allclose(label.points[row, 0, 0, 3:], palette[probable[row].argmax()], atol=1e-6)

    def test_retrieval_is_the_mean_cosine_with_the_targets(self):
        gallery = sorted(study().split().test)
        found = few().retrieve(trials(), study(), gallery)
        geometry, appearance = few().target_features(study(), gallery)
        embed = few().embed(trials())
        expected = (embed.geometry @ geometry.T + embed.appearance @ appearance.T) / 2
        np.testing.assert_allclose(found.scores, expected, atol=1e-6)

    def test_files_of_clouds(self, tmp_path):
        made = few().decode(trials().take([0, 4, 8]))
        paths = made.export(tmp_path / "clouds", ("ply",))
        assert sorted(x.name for x in paths) == sorted(f"{x.replace(':', '_')}_0.ply" for x in made.ids)
        assert all(x.stat().st_size > 48 * 15 for x in paths)
        with pytest.raises(BrainDataError, match="formats of ply and glb, got obj"):
            made.export(tmp_path, ("obj",))
        with pytest.raises(BrainDataError, match="one row for each object"):
            few().decode(trials(), repeats="single").export(tmp_path)


class TestFiles:
    def test_a_saved_model_says_the_same(self, tmp_path):
        few().save(tmp_path / "model")
        again = load_model(tmp_path / "model", "cpu")
        assert isinstance(again, Neuro3D) and again.recipe == FEW and again.meta_ == few().meta_
        assert np.array_equal(again.decode(trials()).points, few().decode(trials()).points)
        assert np.array_equal(again.palette_, few().palette_) and again.spaces_.keys() == few().spaces_.keys()
        for name, space in few().spaces_.items():
            assert np.array_equal(again.spaces_[name].times, space.times)
            assert list(again.spaces_[name].ch_names) == list(space.ch_names)
        found = again.retrieve(trials(), study(), sorted(study().split().test))
        assert np.array_equal(found.scores, few().retrieve(trials(), study(), found.gallery).scores)

    def test_a_run_goes_on_with_the_same_bits(self, tmp_path, monkeypatch):
        """Stopped within the second fold, and again within the shape stage."""
        whole = fitted(FOLDED, out=tmp_path / "whole")
        from brainmodels.training import run

        train = run.train_stage
        for stage, step in (("encoder_fold1", 3), ("shape", 2)):

            def stopping(name, *args, stage=stage, step=step, **options):
                result = train(name, *args, **options, stop_at=step if name == stage else None)
                if name == stage:
                    raise KeyboardInterrupt
                return result

            monkeypatch.setattr(run, "train_stage", stopping)
            with pytest.raises(KeyboardInterrupt):
                fitted(FOLDED, out=tmp_path / "broken", save_every=1)
        monkeypatch.undo()
        resumed = fitted(FOLDED, out=tmp_path / "broken")
        for name in NETWORKS:
            assert np.array_equal(weights(getattr(resumed, name)), weights(getattr(whole, name))), name

    def test_a_folder_of_another_run_is_refused(self, tmp_path):
        fitted(out=tmp_path)
        with pytest.raises(BrainDataError, match="expected the recipe with which the run"):
            fitted(replace(FEW, jitter=0.1), out=tmp_path)


class TestDecoderForAll:
    recipe = replace(FEW, name="targets", condition_from="targets", classes=None)

    def test_a_decoder_of_true_features_serves_another_fit(self):
        first = fitted(self.recipe)
        second = fitted(replace(self.recipe, encoder=replace(FEW.encoder, seed=7)), decoder=first)
        assert np.array_equal(weights(second.denoiser), weights(first.denoiser))
        assert not np.array_equal(weights(second.encoder), weights(first.encoder))
        assert [stage["name"] for stage in second.meta_["stages"]] == ["encoder"]
        assert second.decode(trials()).points.shape == (8, 1, 48, 6)
        geometry, appearance = first.target_features(study(), first.train_ids_[:2])
        assert first.decode_features(geometry, appearance).points.shape == (2, 1, 48, 6)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("objective", "ddpm"), ("denoiser_size", PointSize(16, 2, 2, 4)), ("classes", "label")],
    )
    def test_a_decoder_of_another_recipe_is_refused(self, name, value):
        other = replace(self.recipe, pair_noise=None, **{name: value})
        with pytest.raises(BrainDataError, match=f"expected a decoder with {name}="):
            fitted(replace(self.recipe, pair_noise=None), decoder=fitted(other))

    def test_another_decoder_is_refused(self):
        with pytest.raises(BrainDataError, match="condition_from='targets' in the recipes of decoder and model"):
            fitted(self.recipe, decoder=few())
        other = study().with_targets(
            ArrayFeatures(study().targets.values, study().targets.ids, "other"), study().grey_targets
        )
        with pytest.raises(NormalizationError, match="expected a decoder of the targets"):
            fitted(self.recipe, other, decoder=fitted(self.recipe))


class TestRefused:
    def test_before_the_fit(self):
        with pytest.raises(BrainDataError, match="expected a fitted Neuro3D"):
            Neuro3D(FEW).classify(trials())

    def test_other_sensors(self):
        person = trials()
        space = person.spaces["static"]
        names = (space.ch_names[1], space.ch_names[0], *space.ch_names[2:])
        with pytest.raises(AxisError, match=f"channel {space.ch_names[0]} of static at position 0"):
            few().classify(replace(person, spaces={**person.spaces, "static": replace(space, ch_names=names)}))
        with pytest.raises(UnitsError, match="static in z as in the fit, got V"):
            few().classify(replace(person, spaces={**person.spaces, "static": replace(space, unit="V")}))
        with pytest.raises(BrainDataError, match="expected streams static, dynamic as in the fit, got static"):
            few().classify(person.with_streams("static"))
        with pytest.raises(NormalizationError, match="as in the fit, got 'trial_z'"):
            few().classify(replace(person, normalizer="trial_z"))

    def test_targets_of_another_kind(self):
        values = np.random.default_rng(0).normal(size=study().targets.values.shape)
        other = study().with_targets(ArrayFeatures(values, study().targets.ids, "other"), study().grey_targets)
        with pytest.raises(NormalizationError, match="expected appearance targets with fingerprint"):
            few().retrieve(trials(), other, other.targets.ids[:3])
        with pytest.raises(BrainDataError, match="expected grey targets in the study"):
            fitted(given=study().with_targets(study().targets))
        bare = study().with_targets(None)
        with pytest.raises(BrainDataError, match="expected targets in the study, which this recipe asks for"):
            fitted(replace(FEW, targets=replace(FEW.targets, features="given")), bare)

    def test_seen_objects(self):
        few().check_unseen(study().split().test)
        with pytest.raises(LeakageError, match="got 1 that it saw"):
            few().check_unseen([*study().split().test, few().train_ids_[0]])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"repeats": "mean"}, "expected repeats"),
            ({"color": "red"}, "expected color"),
            ({"samples": 0}, "samples of at least 1"),
            ({"num_points": 15}, "num_points of at least 16, got 1 and 15"),
        ],
    )
    def test_options_of_decode(self, options, message):
        with pytest.raises(BrainDataError, match=message):
            few().decode(trials().take([0]), **options)

    def test_guidance_without_dropout_and_colour_without_labels(self):
        model = copy.copy(few())
        model.config = replace(FEW, condition_dropout=0.0)
        with pytest.raises(BrainDataError, match="condition_dropout above 0 for guidance=2"):
            model.decode(trials().take([0]), guidance=2.0)
        model = copy.copy(few())
        model.colors_ = ()
        with pytest.raises(BrainDataError, match="color='per_point' without labels of colours"):
            model.decode(trials().take([0]), color="label")

    def test_probabilities_that_the_recipe_needs(self):
        geometry, appearance = few().target_features(study(), few().train_ids_[:2])
        with pytest.raises(BrainDataError, match="expected shape and colors"):
            few().decode_features(geometry, appearance)

    def test_clouds_of_too_few_points(self):
        with pytest.raises(BrainDataError, match="expected clouds of 4096 points or more, got 2048"):
            fitted(replace(FEW, points=4096))

    def test_more_objects_a_class_than_there_are(self):
        with pytest.raises(BrainDataError, match="9 train objects or more of every class for 9 folds, got 8"):
            fitted(replace(FOLDED, folds=9))


class TestTiny:
    def test_class_and_colour_are_read_from_eeg(self):
        """Far above chance, and never above the ideal observer, who is always right here."""
        test = ObjectTrials.of(tiny_study(), "sim01", "test").averaged()
        found = tiny_fit().classify(test)
        assert (found.shape.argmax(1) == tiny_study().label("class", test.ids)).mean() >= 0.75  # chance 1 / 6
        assert (found.color.argmax(1) == tiny_study().label("color", test.ids)).mean() >= 0.4  # chance 1 / 6

    def test_features_point_at_their_objects(self):
        test = ObjectTrials.of(tiny_study(), "sim01", "test").averaged()
        scores = tiny_fit().retrieve(test, tiny_study(), test.ids).scores
        assert (scores.argmax(1) == np.arange(len(test))).mean() >= 0.4  # chance 1 / 12

    def test_facts(self):
        meta = tiny_fit().meta_
        assert "identify" in meta["subjects"]["sim01"]["alignment"]
        assert [stage["name"] for stage in meta["stages"]] == ["encoder", "shape", "color"]
        assert meta["classes"] == list(tiny_study().class_names) and len(meta["colors"]) == 6
