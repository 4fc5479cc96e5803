"""Encoders that are read from a context: definitions, refusals, files, and that they say more than ridge."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from brainmodels.baselines import PriorRidge, Ridge, VoxelModel, WeightPrior, heldout_variance
from brainmodels.data.subject_splits import loso
from brainmodels.errors import AxisError, BrainDataError, LeakageError, NormalizationError
from brainmodels.features import ArrayFeatures
from brainmodels.metrics.encoding import nr2, r2, voxel_r
from brainmodels.systems.braincodec import BrainCoDec, InContextEncoder, reading
from brainmodels.systems.braincodec.in_context import Cohort
from tests.brainmodels.coded import (
    FEW_ENCODER,
    OTHERS,
    SIX,
    adapted,
    bits,
    cohort,
    encoder,
    features,
    few_encoder,
    fit,
    held,
    same,
    train_pairs,
    with_values,
)
from tests.brainmodels.fitted import saved


class TestAdapt:
    def test_no_parameter_changes_and_no_gradient_is_needed(self):
        model = few_encoder()
        before, facts = bits(model.encoder_), (model.subjects_, dict(model.voxels_), dict(model.meta_))
        for parameter in model.encoder_.parameters():
            parameter.requires_grad_(False)
        new = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
        for parameter in model.encoder_.parameters():
            assert parameter.grad is None
            parameter.requires_grad_(True)
        assert new.encoder_ is model.encoder_ and same(bits(new.encoder_), before)
        assert (model.subjects_, model.voxels_, model.meta_) == facts and new.subjects_ == ("sim01",)
        again = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
        for name, found in again.voxels_["sim01"].items():
            np.testing.assert_array_equal(found.coef_, new.voxels_["sim01"][name].coef_)
        assert new.meta_["adapted_from"]["subjects"] == list(OTHERS) and new.meta_["train_images"] == 12

    def test_encoders_are_what_the_network_reads_from_averages(self, monkeypatch):
        new, context = adapted("encoder"), held(cohort()).context
        ids = sorted({*context.image_ids.tolist()})
        y = np.stack([context.array()[context.image_ids == name].mean(0) for name in ids])
        x = torch.from_numpy(new.tokens(features(cohort()), ids)[:, 0])
        with torch.no_grad():
            expected = new.encoder_(x[None], torch.from_numpy(np.ascontiguousarray(y.T)))
        found = new.voxel_model()
        assert found.method == "in_context" and found.image_ids == tuple(ids)
        np.testing.assert_allclose(found.coef_, expected[:, :-1].T, atol=1e-5)
        np.testing.assert_allclose(found.intercept_, expected[:, -1], atol=1e-5)
        monkeypatch.setattr(reading, "_VOXELS", 7)  # of 30
        parts = few_encoder().adapt(features(cohort()), context, subject="sim01").voxel_model()
        np.testing.assert_allclose(parts.coef_, found.coef_, atol=1e-6)
        np.testing.assert_allclose(parts.residual_var_, found.residual_var_, rtol=1e-4)

    def test_noise_is_the_error_on_images_outside_the_context(self):
        new, values = adapted("encoder"), held(cohort()).context
        ids = list(new.voxel_model().image_ids)
        x = new.tokens(features(cohort()), ids)[:, 0]
        y = np.stack([values.array()[values.image_ids == name].mean(0) for name in ids])

        def read(x, y):
            with torch.no_grad():
                found = new.encoder_(torch.from_numpy(x)[None], torch.from_numpy(np.ascontiguousarray(y.T))).numpy()
            return VoxelModel(found[:, :-1].T, found[:, -1], "read")

        expected = heldout_variance(read, x, y, cv=5)
        np.testing.assert_allclose(new.voxel_model().residual_var_, expected, rtol=1e-4)
        ridge = new.voxel_model(None, "ridge")
        inside = np.square(y - ridge.predict(x)).mean()
        assert ridge.residual_var_.mean() > 1.5 * inside, (ridge.residual_var_.mean(), inside)

    def test_closed_forms_have_the_same_context(self):
        new = adapted("encoder")
        ids = list(new.voxel_model().image_ids)
        x, context = new.tokens(features(cohort()), ids)[:, 0], held(cohort()).context
        y = np.stack([context.array()[context.image_ids == name].mean(0) for name in ids])
        for method, baseline in (("ridge", Ridge()), ("prior_ridge", PriorRidge(prior=few_encoder().prior_))):
            found = new.voxel_model("sim01", method)
            assert found.image_ids == tuple(ids)
            np.testing.assert_allclose(found.predict(x), baseline.fit(x, y).predict(x), atol=1e-4)
        few = few_encoder()
        data = InContextEncoder(FEW_ENCODER)._join(
            features(cohort()), train_pairs(cohort()), "", None, None, None, False
        )
        expected = WeightPrior.of(list(Cohort.of(data).ridges.values()))
        np.testing.assert_array_equal(few.prior_.covariance, expected.covariance)

    def test_neither_the_order_of_trials_nor_that_of_voxels_matters(self):
        context, test = held(cohort()).context, held(cohort()).test
        values, ids, rng = context.array(), context.image_ids, np.random.default_rng(0)
        given = {"subject": "sim01", "image_ids": ids}
        first = few_encoder().adapt(features(cohort()), values, **given)
        rows, columns = rng.permutation(len(values)), rng.permutation(30)
        given["image_ids"] = ids[rows]
        second = few_encoder().adapt(features(cohort()), values[rows][:, columns], **given)
        for method in reading.METHODS:
            options = {"image_ids": test.image_ids, "method": method}
            expected = first.predict(features(cohort()), **options)
            np.testing.assert_allclose(
                second.predict(features(cohort()), **options), expected[:, columns], atol=2e-4, err_msg=method
            )
            assert expected.std() > 0.01

    def test_predictions_are_in_the_units_of_the_caller(self):
        context, ids = held(cohort()).context, held(cohort()).test.image_ids
        given = {"subject": "sim01", "image_ids": context.image_ids}
        plain, moved = (
            few_encoder().adapt(features(cohort()), values, **given).predict(features(cohort()), image_ids=ids)
            for values in (context.array(), 1000 * context.array() + 50)
        )
        np.testing.assert_allclose(moved, 1000 * plain + 50, rtol=1e-3, atol=0.5)
        new = few_encoder().adapt(features(cohort()), context.array(), **given)
        scale, found = new.scales_["sim01"], new.voxel_model()
        x = new.tokens(features(cohort()), ids)[:, 0]
        np.testing.assert_allclose(plain, (x @ found.coef_ + found.intercept_) * scale.std + scale.mean, atol=1e-5)

    def test_averages_read_as_their_trials_do(self):
        split = loso(cohort(), "sim01", "shared", n_context=12, draws=1)
        scaling = held(cohort()).context.transform
        averaged = cohort().pairs("sim01", split, "train", "repeats", scaling)
        found = few_encoder().adapt(features(cohort()), averaged, subject="sim01").voxel_model()
        np.testing.assert_allclose(found.coef_, adapted("encoder").voxel_model().coef_, atol=1e-5)

    @pytest.mark.parametrize(("count", "message"), [(4, "4 images of sim01 are a small context"), (5, ""), (16, "")])
    def test_small_contexts_warn_below_five_images(self, count, message, caplog):
        new = few_encoder().adapt(features(cohort()), held(cohort(), count).context, subject="sim01")
        assert len(new.voxel_model().image_ids) == count
        assert (message in caplog.text) if message else not caplog.records

    def test_contexts_beyond_the_training_warn_with_both_numbers(self, caplog):
        few_encoder().adapt(features(cohort()), held(cohort(), 17).context, subject="sim01")
        assert "17 context images of sim01 are more than the 16 of the training" in caplog.text

    def test_what_does_not_fit_is_refused(self):
        source, model = features(cohort()), few_encoder()
        context = held(cohort()).context
        values, ids = context.array(), context.image_ids
        with pytest.raises(BrainDataError, match="a context of at least 4 images of sim01, got 3"):
            model.adapt(source, held(cohort(), 3).context, subject="sim01")
        with pytest.raises(NormalizationError, match="extractor planted, as in the fit, got those of other"):
            model.adapt(features(cohort(), "other"), context)
        with pytest.raises(LeakageError, match="expected pairs of the train part to fit on, got those of 'test'"):
            model.adapt(source, held(cohort()).test)
        with pytest.raises(AxisError, match=r"expected responses \(trials, voxels\) of real numbers, got .*\(0, 30\)"):
            model.adapt(source, values[:0], image_ids=ids[:0])
        with pytest.raises(AxisError, match="133"):
            model.adapt(source.get(source.ids, "pooled")[:, :100], values, image_ids=ids, feature_ids=source.ids)
        with pytest.raises(BrainDataError, match="got 'ridge'"):
            model.adapt(source, context, select="ridge")
        with pytest.raises(BrainDataError, match="expected a fitted InContextEncoder, got one before fit"):
            InContextEncoder(FEW_ENCODER).adapt(source, context)

    def test_voxels_without_finite_numbers_are_named_or_left_out(self):
        context, test = held(cohort()).context, held(cohort()).test
        values, ids = context.array(), context.image_ids
        values[7, 3], values[:, 20] = np.nan, 4.0
        given = {"subject": "sim01", "image_ids": ids}
        with pytest.raises(BrainDataError, match=rf"got nan in trial 7 \(image {ids[7]}\), voxel 3"):
            few_encoder().adapt(features(cohort()), values, **given)
        new = few_encoder().adapt(features(cohort()), values, drop_voxels=True, **given)
        found = new.predict(features(cohort()), image_ids=test.image_ids)
        dropped = np.isin(np.arange(30), [3, 20])
        assert np.isnan(found[:, dropped]).all() and np.isfinite(found[:, ~dropped]).all()
        left = few_encoder().adapt(features(cohort()), values[:, ~dropped], **given)
        np.testing.assert_allclose(
            left.predict(features(cohort()), image_ids=test.image_ids), found[:, ~dropped], atol=1e-5
        )
        assert np.isnan(new.score(features(cohort()), test, image_ids=test.image_ids)).sum() == 2

    def test_score_is_r2(self):
        new, test = adapted("encoder"), held(cohort()).test
        predicted = new.predict(features(cohort()), image_ids=test.image_ids)
        found = new.score(features(cohort()), test, image_ids=test.image_ids)
        np.testing.assert_array_equal(found, r2(test.array(), predicted, axis=0))
        named = new.reference_predictions(features(cohort()), image_ids=test.image_ids)
        for (name, values), method in zip(named.items(), ("ridge", "prior_ridge"), strict=True):
            expected = new.predict(features(cohort()), image_ids=test.image_ids, method=method)
            np.testing.assert_array_equal(values, expected, err_msg=name)
        with pytest.raises(BrainDataError, match="method to be one of in_context, ridge, prior_ridge, got 'rigde'"):
            new.predict(features(cohort()), image_ids=test.image_ids, method="rigde")


class TestAttention:
    def test_it_is_that_of_the_network(self, monkeypatch):
        new, context = adapted("encoder"), held(cohort()).context
        ids, shares = new.context_attention(features(cohort()), context)
        assert ids.tolist() == list(new.voxel_model().image_ids) and shares.shape == (30, 12)
        y = np.stack([context.array()[context.image_ids == name].mean(0) for name in ids])
        x = torch.from_numpy(new.tokens(features(cohort()), ids)[:, 0])[None]
        with torch.no_grad():
            expected = new.encoder_(x, torch.from_numpy(np.ascontiguousarray(y.T)), attention=True)[1]
        np.testing.assert_allclose(shares, expected, atol=1e-6)
        assert shares.min() > 0 and shares.sum(1).max() < 1 and shares.std(1).min() > 1e-5
        monkeypatch.setattr(reading, "maps_at_once", lambda entries: 7)
        np.testing.assert_allclose(new.context_attention(features(cohort()), context)[1], shares, atol=1e-6)

    def test_it_follows_images_and_voxels(self):
        new, context = adapted("encoder"), held(cohort()).context
        ids, _ = new.context_attention(features(cohort()), context)
        source = features(cohort())
        renamed = {name: f"z{index:03d}" for index, name in enumerate(reversed(ids.tolist()))}  # another order
        values = source.get(ids, "pooled")
        model = few_encoder().adapt(
            values,
            context.array()[:, ::-1],
            subject="sim01",
            image_ids=[renamed[name] for name in context.image_ids],
            feature_ids=[renamed[name] for name in ids],
        )
        plain = few_encoder().adapt(source, context.array(), subject="sim01", image_ids=context.image_ids)
        turned = model.context_attention(
            values,
            context.array()[:, ::-1],
            image_ids=[renamed[name] for name in context.image_ids],
            feature_ids=[renamed[name] for name in ids],
        )
        expected = plain.context_attention(source, context.array(), image_ids=context.image_ids)[1]
        assert turned[0].tolist() == sorted(renamed.values())
        np.testing.assert_allclose(turned[1], expected[::-1, ::-1], atol=1e-5)

    def test_other_voxels_are_refused(self):
        new, context = adapted("encoder"), held(cohort()).context
        person = cohort().subject("sim01")
        moved = replace(person, space=replace(person.space, index=person.space.index[::-1].copy()))
        with pytest.raises(AxisError, match="expected the voxels of sim01 in the order of the fit"):
            new.context_attention(features(cohort()), moved)
        with pytest.raises(NormalizationError, match="'session_z_unlabelled', as in the fit, got 'none'"):
            new.context_attention(features(cohort()), person)
        with pytest.raises(AxisError, match="expected responses of 30 voxels, got 29"):
            new.context_attention(features(cohort()), context.array()[:, 1:], image_ids=context.image_ids)


class TestFit:
    def test_the_subject_that_is_left_out_enters_nothing(self, tmp_path):
        """Nor do the test trials of the others: all of these responses are NaN here."""
        dataset = with_values(lambda values: values.__setitem__(slice(None), np.nan), cohort(), "sim01")
        tests = cohort().split("shared").test
        for name in OTHERS:
            trials = cohort().subject(name).responses.trials
            rows = np.isin(trials.image_id, sorted(tests))
            dataset = with_values(lambda values, rows=rows: values.__setitem__(rows, np.nan), dataset, name)
        model = fit(InContextEncoder, FEW_ENCODER, dataset)
        assert saved(model, tmp_path / "a") == saved(few_encoder(), tmp_path / "b")
        shown = {*cohort().subject("sim01").responses.trials.image_id.tolist()}
        assert not model.scaler_.fitted_ids & shown and model.check_unseen(sorted(shown))

    def test_weights_follow_from_the_seed_alone(self, tmp_path):
        torch.manual_seed(77)
        assert saved(fit(InContextEncoder, FEW_ENCODER), tmp_path / "a") == saved(few_encoder(), tmp_path / "b")
        other = replace(FEW_ENCODER, extend=replace(SIX, seed=1))
        assert not same(bits(fit(InContextEncoder, other).encoder_), bits(few_encoder().encoder_))

    def test_a_train_trial_changes_the_weights(self):
        trials = cohort().subject("sim02").responses.trials
        row = np.flatnonzero(trials.image_id == sorted(few_encoder().scaler_.fitted_ids)[0])[0]
        changed = with_values(lambda values: values.__setitem__(row, 3 - values[row]), cohort(), "sim02")
        assert not same(bits(fit(InContextEncoder, FEW_ENCODER, changed).encoder_), bits(few_encoder().encoder_))

    @pytest.mark.parametrize(
        ("changes", "stages"),
        [
            ({"prior": "isotropic"}, ["extend", "finetune"]),
            ({"pretrain": SIX, "pretrain_context": 12}, ["pretrain", "extend", "finetune"]),
            ({"extend": None}, ["finetune"]),
            ({"finetune": None}, ["extend"]),
        ],
    )
    def test_stages_are_those_of_the_recipe(self, changes, stages):
        model = fit(InContextEncoder, replace(FEW_ENCODER, **changes))
        assert [(stage["name"], stage["steps"]) for stage in model.meta_["stages"]] == [(name, 6) for name in stages]
        assert not same(bits(model.encoder_), bits(few_encoder().encoder_))

    def test_one_subject_is_enough(self):
        model = fit(InContextEncoder, FEW_ENCODER, responses=train_pairs(cohort(), ["sim03"]))
        new = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
        assert np.isfinite(new.predict(features(cohort()), image_ids=held(cohort()).test.image_ids)).all()

    def test_training_subjects_have_encoders_from_as_many_images_as_the_training_had(self):
        model = few_encoder()
        for name, count in zip(OTHERS, (24, 36), strict=True):
            found = model.voxel_model(name)
            assert found.coef_.shape == (4, count) and len(found.image_ids) == 16
            assert set(found.image_ids) <= model.scaler_.fitted_ids
        with pytest.raises(BrainDataError, match="expected a subject of sim02, sim03, got None"):
            model.predict(features(cohort()), image_ids=["a"])

    def test_a_recipe_that_the_images_do_not_allow_is_named(self):
        with pytest.raises(BrainDataError, match=r"at least 62 train images of .* for a context of 60"):
            fit(InContextEncoder, replace(FEW_ENCODER, context=(60, 70), extend=None))

    @pytest.mark.parametrize("step", [3, 9], ids=["extend", "finetune"])
    def test_a_killed_run_goes_on_and_ends_with_the_same_bits(self, step, tmp_path, monkeypatch):
        from brainmodels.training.loop import _Stage

        expected, real, taken = saved(few_encoder(), tmp_path / "expected"), _Stage.advance, []

        def advance(*arguments):
            taken.append(1)
            if len(taken) == step + 1:
                raise InterruptedError
            return real(*arguments)

        monkeypatch.setattr(_Stage, "advance", advance)
        options = {"out": tmp_path / "run", "save_every": 2}
        with pytest.raises(InterruptedError):
            fit(InContextEncoder, FEW_ENCODER, **options)
        torch.manual_seed(99)
        model = fit(InContextEncoder, FEW_ENCODER, **options)
        assert len(taken) - step - 1 == 12 - step + step % 2  # from the checkpoint before
        assert saved(model, tmp_path / "model") == expected
        assert [x["log"] for x in model.meta_["stages"]] == [x["log"] for x in few_encoder().meta_["stages"]]


class TestFiles:
    def test_a_loaded_model_reads_and_predicts_the_same_bits(self, tmp_path):
        ids, context = held(cohort()).test.image_ids, held(cohort()).context
        loaded = InContextEncoder.load(few_encoder().save(tmp_path / "model"))
        assert saved(loaded, tmp_path / "a") == saved(few_encoder(), tmp_path / "b")
        assert loaded.recipe == FEW_ENCODER and loaded.selected_ == few_encoder().selected_
        first, second = (one.adapt(features(cohort()), context, subject="sim01") for one in (few_encoder(), loaded))
        third = InContextEncoder.load(second.save(tmp_path / "new"))
        for method in reading.METHODS:
            options = {"image_ids": ids, "method": method}
            expected = first.predict(features(cohort()), **options)
            for one in (second, third):
                np.testing.assert_array_equal(one.predict(features(cohort()), **options), expected)
            for one in (second, third):
                np.testing.assert_array_equal(
                    one.voxel_model(None, method).residual_var_, first.voxel_model(None, method).residual_var_
                )
        with pytest.raises(NormalizationError, match="extractor planted, as in the fit, got those of other"):
            third.predict(features(cohort(), "other"), image_ids=ids)

    def test_images_that_it_saw_are_refused(self, tmp_path):
        new = adapted("encoder")
        context, trained = new.voxel_model().image_ids, sorted(few_encoder().scaler_.fitted_ids)
        for one in (new, InContextEncoder.load(new.save(tmp_path / "model"))):
            assert one.check_unseen(held(cohort()).test.image_ids)
            with pytest.raises(LeakageError, match=f"context of sim01 without test images, got 2 .*{context[0]}"):
                one.check_unseen([context[0], context[3], "a"])
            with pytest.raises(LeakageError, match=trained[5]):
                one.check_unseen([trained[5]])

    def test_scikit_learn_clones_it(self):
        model = few_encoder()
        assert model.get_params() == {"config": FEW_ENCODER, "pairing": "ids", "device": None}
        assert clone(model).recipe == FEW_ENCODER and not hasattr(clone(model), "encoder_")


class TestLearning:
    """Trained on two subjects of "tiny", tested on the third."""

    @staticmethod
    def score(new, test, dataset, method=None):
        found = new.predict(features(dataset), image_ids=test.image_ids, method=method)
        return nr2(voxel_r(test.array(), found), dataset.truth["sim01"].ceiling()).total

    def test_few_images_of_a_new_subject_say_more_than_ridge_makes_of_them(self):
        """Means of four contexts.

        | measured on seeds 1, 3 | n = 8 | 16 | 32 |
        |---|---|---|---|
        | network | .32, .28 | .34, .29 | .35, .30 |
        | ridge | .20, .17 | .26, .24 | .32, .30 |
        | ridge with the prior | .33, .29 | .35, .31 | .38, .33 |
        """
        dataset, scores = cohort("tiny"), {}
        for count in (8, 16, 32):
            rows = []
            for draw in range(4):
                context, test, _ = held(dataset, count, draw, 4)
                new = encoder().adapt(features(dataset), context, subject="sim01")
                rows.append([self.score(new, test, dataset, method) for method in reading.METHODS])
            scores[count] = dict(zip(reading.METHODS, np.mean(rows, 0), strict=True))
        for count, found in scores.items():
            assert count > 16 or found["in_context"] > found["ridge"] + 0.05, scores
            assert 0.85 * found["prior_ridge"] < found["in_context"] < found["prior_ridge"] + 0.02, scores
        assert scores[8]["in_context"] + 0.01 < scores[16]["in_context"] < scores[32]["in_context"], scores

    def test_a_context_of_shuffled_pairs_predicts_nothing(self):
        dataset = cohort("tiny")
        context, test, _ = held(dataset, 32)
        order = np.random.default_rng(0).permutation(len(context.image_ids))
        options = {"subject": "sim01", "image_ids": context.image_ids[order]}
        wrong = encoder().adapt(features(dataset), context.array(), **options)
        assert abs(self.score(wrong, test, dataset)) < 0.15

    def test_cross_validation_picks_ridge_where_the_context_is_long(self, caplog):
        dataset = cohort("tiny")
        for count, draws, expected in ((8, 4, "in_context"), (160, 1, "ridge")):
            context, test, _ = held(dataset, count, 0, draws)
            new = encoder().adapt(features(dataset), context, subject="sim01", select="cv")
            assert new.selected_ == {"sim01": expected} and new.voxel_model().method == expected
            chosen, plain = self.score(new, test, dataset), self.score(new, test, dataset, expected)
            assert chosen == plain >= max(self.score(new, test, dataset, x) for x in ("in_context", "ridge"))
        assert "160 context images of sim01 are more than the 32 of the training" in caplog.text


def test_embeddings_that_are_too_wide_are_refused_before_the_training():
    ids = [f"scene:{number}" for number in range(12)]
    wide = ArrayFeatures(np.random.default_rng(0).normal(size=(12, 768)).astype("f4"), ids)
    responses = np.random.default_rng(1).normal(size=(12, 5)).astype("f4")
    for model in (InContextEncoder("paper"), BrainCoDec("paper")):
        with pytest.raises(AxisError, match=r"embeddings of less than 560 numbers.*got 768; take recipe 'veca'"):
            model.fit(wide, responses, image_ids=ids, alignment="off")
