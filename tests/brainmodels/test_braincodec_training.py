"""Training of braincodec: which network has seen whom, a stage 1 that is given, seeds, and runs that go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainmodels.errors import BrainDataError, LeakageError, NormalizationError
from brainmodels.systems.braincodec import BrainCoDec, InContextEncoder, estimator
from tests.brainmodels.coded import (
    FEW_CODEC,
    FEW_ENCODER,
    OTHERS,
    SIX,
    adapted,
    bits,
    cohort,
    features,
    few_codec,
    few_encoder,
    fit,
    held,
    same,
    train_pairs,
    with_values,
)
from tests.brainmodels.fitted import saved


class Stopped(Exception):
    pass


def readers(recipe, monkeypatch, dataset=None):
    """The networks that read the training subjects, and the model, in which only stage 1 is trained."""
    found = {}

    def stop(encoders, *_):
        found.update(encoders)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(estimator, "stored_runs", stop)
        model = BrainCoDec(recipe)
        with pytest.raises(Stopped):
            model.fit(features(cohort()), train_pairs(dataset or cohort()), alignment="off")
    return found, model


def turned(subject):
    """The cohort with other responses of one training subject."""
    return with_values(lambda values: values.__imul__(-1), cohort(), subject)


class TestCrossFit:
    @pytest.mark.parametrize("cross_fit", ["nested", "finetune", "single"])
    def test_every_way_trains(self, cross_fit, caplog):
        model = (
            few_codec(cross_fit) if cross_fit != "single" else fit(BrainCoDec, replace(FEW_CODEC, cross_fit="single"))
        )
        names = ["stage1_extend", "stage1_finetune", "synthetic", "finetune"]
        assert [(stage["name"], stage["steps"]) for stage in model.meta_["stages"]] == [(name, 6) for name in names]
        assert model.meta_["cross_fit"] == cross_fit
        assert ("read by a network that saw them" in caplog.text) == (cross_fit == "single")
        new = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
        assert new.encoder_ is model.encoder_ and new.decoder_ is model.decoder_
        assert np.isfinite(new.decode(held(cohort()).test)).all()

    def test_nested_networks_have_not_seen_the_subject_that_they_read(self, monkeypatch):
        recipe = replace(FEW_CODEC, cross_fit="nested")
        found, model = readers(recipe, monkeypatch)
        other, changed = readers(recipe, monkeypatch, turned("sim02"))
        assert same(bits(other["sim02"]), bits(found["sim02"]))
        assert not same(bits(other["sim03"]), bits(found["sim03"]))
        assert not same(bits(changed.encoder_), bits(model.encoder_))
        assert same(bits(model.encoder_), bits(few_encoder().encoder_))

    def test_fine_tuned_networks_share_the_synthetic_stages(self, monkeypatch):
        """Without fine-tuning all are one; with it each has seen the other subject in this stage."""
        plain = replace(FEW_CODEC, cross_fit="finetune", stage1=replace(FEW_ENCODER, finetune=None))
        found, model = readers(plain, monkeypatch)
        assert same(bits(found["sim02"]), bits(found["sim03"])) and same(bits(found["sim02"]), bits(model.encoder_))
        found, model = readers(replace(FEW_CODEC, cross_fit="finetune"), monkeypatch)
        weights = [bits(network) for network in (found["sim02"], found["sim03"], model.encoder_)]
        assert not any(same(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert same(weights[2], bits(few_encoder().encoder_))

    def test_without_synthetic_stages_fine_tuned_networks_are_nested_ones(self, monkeypatch):
        stage1 = replace(FEW_ENCODER, extend=None)
        first, second = (
            readers(replace(FEW_CODEC, cross_fit=way, stage1=stage1), monkeypatch) for way in ("finetune", "nested")
        )
        for name in OTHERS:
            assert same(bits(first[0][name]), bits(second[0][name]))
        assert same(bits(first[1].encoder_), bits(second[1].encoder_))

    def test_a_single_network_reads_all(self, monkeypatch):
        found, model = readers(replace(FEW_CODEC, cross_fit="single"), monkeypatch)
        assert found == dict.fromkeys(OTHERS, model.encoder_)
        assert same(bits(model.encoder_), bits(few_encoder().encoder_))

    @pytest.mark.parametrize("cross_fit", ["nested", "finetune"])
    def test_one_training_subject_is_refused_by_name(self, cross_fit):
        message = rf"two training subjects or more with cross_fit='{cross_fit}', .*, got sim02"
        with pytest.raises(BrainDataError, match=message):
            fit(BrainCoDec, replace(FEW_CODEC, cross_fit=cross_fit), responses=train_pairs(cohort(), ["sim02"]))

    def test_one_training_subject_is_enough_for_a_single_network(self):
        recipe = replace(FEW_CODEC, cross_fit="single")
        model = fit(BrainCoDec, recipe, responses=train_pairs(cohort(), ["sim02"]))
        new = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
        assert np.isfinite(new.decode(held(cohort()).test)).all()


class TestStageOne:
    def test_a_given_one_reads_new_subjects_and_stays_as_it_is(self):
        given = few_encoder()
        before, decoders = bits(given.encoder_), []
        for seed, cross_fit in enumerate(("single", "single", "nested")):
            torch.manual_seed(seed)
            model = fit(BrainCoDec, replace(FEW_CODEC, cross_fit=cross_fit), stage1=given)
            assert model.encoder_ is given.encoder_ and same(bits(given.encoder_), before)
            assert [stage["name"] for stage in model.meta_["stages"]] == ["synthetic", "finetune"]
            new = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
            np.testing.assert_array_equal(new.voxel_model().coef_, adapted("encoder").voxel_model().coef_)
            decoders.append(bits(model.decoder_))
        assert same(decoders[0], decoders[1]) and not same(decoders[1], decoders[2])
        assert same(decoders[2], bits(few_codec("nested").decoder_))  # which trained the same networks itself

    def test_another_recipe_or_extractor_is_refused(self):
        with pytest.raises(BrainDataError, match="stage1 of the recipe's stage1, got one with depth=2, queries=9"):
            stage1 = fit(InContextEncoder, replace(FEW_ENCODER, depth=2, queries=9))
            fit(BrainCoDec, FEW_CODEC, stage1=stage1)
        with pytest.raises(BrainDataError, match="expected a fitted InContextEncoder, got one before fit"):
            fit(BrainCoDec, FEW_CODEC, stage1=InContextEncoder(FEW_ENCODER))
        with pytest.raises(NormalizationError, match="extractor planted, as in the fit, got those of other"):
            fit(BrainCoDec, FEW_CODEC, source=features(cohort(), "other"), stage1=few_encoder())

    def test_images_of_either_stage_are_refused_as_test_images(self):
        given = fit(InContextEncoder, FEW_ENCODER, responses=train_pairs(cohort(), ["sim03"]))
        recipe, responses = replace(FEW_CODEC, cross_fit="single"), train_pairs(cohort(), ["sim02"])
        model = fit(BrainCoDec, recipe, responses=responses, stage1=given)
        other = fit(InContextEncoder, FEW_ENCODER, responses=responses)
        own = model.scaler_.fitted_ids
        assert own == given.scaler_.fitted_ids | other.scaler_.fitted_ids > given.scaler_.fitted_ids
        new = model.adapt(features(cohort()), held(cohort()).context, subject="sim01")
        for name in sorted(own)[:: len(own) - 1]:
            with pytest.raises(LeakageError, match=name):
                new.check_unseen([name])
        assert new.check_unseen(held(cohort()).test.image_ids)


class TestFit:
    def test_the_subject_that_is_left_out_enters_nothing(self, tmp_path):
        """Nor do the test trials of the others: all of these responses are NaN here."""
        dataset = with_values(lambda values: values.__setitem__(slice(None), np.nan), cohort(), "sim01")
        tests = sorted(cohort().split("shared").test)
        for name in OTHERS:
            rows = np.isin(cohort().subject(name).responses.trials.image_id, tests)
            dataset = with_values(lambda values, rows=rows: values.__setitem__(rows, np.nan), dataset, name)
        model = fit(BrainCoDec, replace(FEW_CODEC, cross_fit="nested"), dataset)
        assert saved(model, tmp_path / "a") == saved(few_codec("nested"), tmp_path / "b")
        shown = {*cohort().subject("sim01").responses.trials.image_id.tolist()}
        assert not model.scaler_.fitted_ids & shown

    @pytest.mark.parametrize("cross_fit", ["nested", "finetune", "single"])
    def test_weights_follow_from_the_seed_alone(self, cross_fit, tmp_path):
        expected = saved(few_codec(cross_fit), tmp_path / "a")
        torch.manual_seed(77)
        assert saved(fit(BrainCoDec, replace(FEW_CODEC, cross_fit=cross_fit)), tmp_path / "b") == expected

    @pytest.mark.parametrize(
        ("changes", "stages"),
        [
            ({"synthetic": None}, ["finetune"]),
            ({"finetune": None}, ["synthetic"]),
            ({"extend": SIX, "extend_voxels": (8, 12)}, ["synthetic", "extend", "finetune"]),
        ],
    )
    def test_stages_are_those_of_the_recipe(self, changes, stages):
        model = fit(BrainCoDec, replace(FEW_CODEC, cross_fit="single", **changes))
        assert [stage["name"] for stage in model.meta_["stages"]][2:] == stages
        assert not same(bits(model.decoder_), bits(few_codec().decoder_))
        assert "val_cosine" in model.meta_["stages"][-1]["log"][-1] or stages == ["synthetic"]

    @pytest.mark.parametrize("step", [9, 21, 27, 33], ids=["without sim02", "stage 1", "synthetic", "finetune"])
    def test_a_killed_run_goes_on_and_ends_with_the_same_bits(self, step, tmp_path, monkeypatch):
        from brainmodels.training.loop import _Stage

        expected, real, taken = saved(few_codec("finetune"), tmp_path / "expected"), _Stage.advance, []

        def advance(*arguments):
            taken.append(1)
            if len(taken) == step + 1:
                raise InterruptedError
            return real(*arguments)

        monkeypatch.setattr(_Stage, "advance", advance)
        recipe, options = replace(FEW_CODEC, cross_fit="finetune"), {"out": tmp_path / "run", "save_every": 2}
        with pytest.raises(InterruptedError):
            fit(BrainCoDec, recipe, **options)
        torch.manual_seed(99)
        model = fit(BrainCoDec, recipe, **options)
        assert len(taken) - step - 1 == 36 - step + step % 2  # from the checkpoint before
        assert saved(model, tmp_path / "model") == expected
        assert [x["log"] for x in model.meta_["stages"]] == [x["log"] for x in few_codec("finetune").meta_["stages"]]

    def test_a_run_goes_on_with_what_it_began_with_alone(self, tmp_path):
        recipe, options = replace(FEW_CODEC, cross_fit="single"), {"out": tmp_path / "run"}
        fit(BrainCoDec, recipe, **options)
        with pytest.raises(BrainDataError, match="expected the data with which the run in"):
            fit(BrainCoDec, recipe, turned("sim02"), **options)
        with pytest.raises(BrainDataError, match="expected the recipe with which the run in"):
            fit(BrainCoDec, replace(recipe, run_draws=3), **options)
