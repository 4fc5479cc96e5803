"""What a MindAligner refuses, what its folders hold, and that an interrupted fit ends with the same bits."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone

from brainmodels.data import shared_part
from brainmodels.errors import AxisError, BrainDataError, LayoutError, LeakageError, NormalizationError
from brainmodels.systems.mindaligner import LowRankMap, MindAligner
from brainmodels.training.trials import held_out
from tests.brainmodels.aligned_fits import (
    FEW,
    KNOWN,
    NEW,
    Features,
    aligning,
    both,
    few_fit,
    few_fitted,
    fitted,
    flow_fitted,
    known_decoder,
    labels,
    same,
    scaled,
    steps,
)
from tests.brainmodels.fitted import features as token_features
from tests.brainmodels.fitted import saved, small, study, with_values
from tests.brainmodels.test_estimator_files import Killed, killing

DECODERS = pytest.mark.parametrize("decoder", ["embedding", "flow"])


class TestLeakage:
    def test_test_trials_change_nothing(self):
        dataset = study()
        for name in (NEW, KNOWN):
            rows = np.isin(dataset.subject(name).responses.trials.image_id, sorted(study().split("shared").test))
            dataset = with_values(lambda values, rows=rows: values.__setitem__(rows, np.nan), dataset, name)
        assert np.isnan(dataset.subject(NEW).responses.values).any()
        model = few_fit(responses=both(dataset=dataset))
        assert same(aligning(model), aligning(few_fitted()))

    def test_test_pairs_are_refused(self):
        with pytest.raises(LeakageError, match="pairs of the train part to fit on, got those of 'test'"):
            few_fit(responses={NEW: scaled(NEW, "test"), KNOWN: scaled(KNOWN)})

    def test_train_images_that_the_other_subject_is_tested_on_are_refused(self):
        common = shared_part(study(), "shared", train=10)
        with pytest.raises(LeakageError, match=r"no train images of sim01 that the split .* tests on, got 10, such as"):
            few_fit(responses={NEW: scaled(NEW, split=common), KNOWN: scaled(KNOWN)})

    def test_a_decoder_that_saw_test_images_is_refused(self):
        common = shared_part(study(), "shared", train=10)
        decoder = small("neuroflow").fit(token_features(), scaled(KNOWN, split=common), subject=KNOWN)
        with pytest.raises(LeakageError, match="fitted on 10 that are tested on"):
            few_fit(decoder=decoder)
        few_fit(decoder=decoder, responses=both(split=common))

    @DECODERS
    def test_images_of_the_fit_are_told(self, decoder, tmp_path):
        model = fitted(decoder)
        split = study().split("shared")
        for one in (model, MindAligner.load(model.save(tmp_path / "model"))):
            assert one.check_unseen(sorted(split.test))
            for name in (NEW, KNOWN):
                for image in split.ids("train", name):  # those that validate are among them
                    with pytest.raises(LeakageError, match=f"did not see, got 1 of it, such as {image}"):
                        one.check_unseen([image])
            assert one.fitted_ids_ == split.ids("train", NEW) | split.ids("train", KNOWN)

    def test_images_of_the_decoder_are_told(self):
        common = shared_part(study(), "shared", train=10)
        decoder = small("neuroflow").fit(token_features(), scaled(KNOWN, split=common), subject=KNOWN)
        arrays = {name: scaled(name).array() for name in (NEW, KNOWN)}
        model = few_fit(decoder=decoder, responses=arrays, image_ids={name: scaled(name).image_ids for name in arrays})
        with pytest.raises(LeakageError, match="fitted on 10 that are tested on"):
            model.check_unseen(sorted(study().split("shared").test))


class TestFiles:
    @DECODERS
    def test_a_saved_model_says_the_same(self, decoder, tmp_path):
        model, test = fitted(decoder), scaled(NEW, "test")
        loaded = MindAligner.load(model.save(tmp_path / "model"))
        np.testing.assert_array_equal(loaded.transform(test), model.transform(test))
        np.testing.assert_array_equal(loaded.decode(test), model.decode(test))
        for name, values in model.reference_decodings(test).items():
            np.testing.assert_array_equal(loaded.reference_decodings(test)[name], values)
        assert (loaded.new_, loaded.known_, loaded.meta_) == (NEW, KNOWN, model.meta_)
        assert saved(loaded, tmp_path / "again") == saved(model, tmp_path / "model")
        assert (tmp_path / "model/decoder/meta.json").is_file() == (decoder == "flow")

    @DECODERS
    def test_other_voxels_normalisers_and_features_are_refused(self, decoder, tmp_path):
        model, test = fitted(decoder), scaled(NEW, "test")
        person = study().subject(NEW)
        moved = replace(person, space=replace(person.space, index=person.space.index[::-1].copy()))
        for one in (model, MindAligner.load(model.save(tmp_path / "model"))):
            with pytest.raises(AxisError, match="expected the voxels of sim01 in the order of the fit"):
                one.transform(replace(moved, normalizer="session_z_train"))
            with pytest.raises(NormalizationError, match="through 'session_z_train', as in the fit, got 'none'"):
                one.transform(person)
            with pytest.raises(AxisError, match="expected responses of 24 voxels, got 30"):
                one.transform(scaled(KNOWN, "test").array())
            with pytest.raises(NormalizationError, match="extractor planted, as in the fit, got those of other"):
                one.tokens(Features("other"), test.image_ids)

    def test_a_missing_decoder_is_named(self, tmp_path):
        folder = flow_fitted().save(tmp_path / "model")
        (folder / "decoder/weights.safetensors").unlink()
        with pytest.raises(LayoutError, match=r"a saved model in .*decoder, got no weights.safetensors"):
            MindAligner.load(folder)

    @pytest.mark.parametrize("decoder", ["embedding", "embedding, first stage", "flow"])
    def test_a_killed_run_goes_on_and_ends_with_the_same_bits(self, decoder, tmp_path, monkeypatch):
        from brainmodels.training.loop import _Stage

        model = fitted(decoder.partition(",")[0])
        recipe, options = model.recipe, {"decoder": model.known_model_ or "embedding", "save_every": 2}
        real, advance = _Stage.advance, killing(3 if "first" in decoder else 11)
        with monkeypatch.context() as patch:
            patch.setattr(_Stage, "advance", lambda *arguments: advance(*arguments, real=real))
            with pytest.raises(Killed):
                few_fit(recipe, out=tmp_path / "run", **options)
        done = []
        monkeypatch.setattr(_Stage, "advance", lambda *arguments: (done.append(1), real(*arguments))[1])
        again = few_fit(recipe, out=tmp_path / "run", **options)
        total = 12 + 6 * (decoder != "flow")
        assert 0 < len(done) < total
        assert saved(again, tmp_path / "a") == saved(model, tmp_path / "b")
        assert [x["log"] for x in again.meta_["stages"]] == [x["log"] for x in model.meta_["stages"]]

    def test_a_run_goes_on_with_what_it_began_with_alone(self, tmp_path):
        folder, recipe = tmp_path / "run", steps(1)
        few_fit(recipe, out=folder)
        turned = both(KNOWN, NEW)
        other = dict.fromkeys(labels(), "one") | {name: "two" for name in sorted(labels())[::2]}
        for told, options in (
            ("new", {"responses": turned, "new": KNOWN}),
            ("labels", {"labels": other}),
            ("decoder", {"decoder": None}),
            ("decoder", {"decoder": known_decoder()}),
        ):
            with pytest.raises(BrainDataError, match=f"expected the {told} with which the run in .* began, got others"):
                few_fit(recipe, out=folder, **options)
        few_fit(recipe, out=folder)


class TestRefused:
    def test_responses_that_are_not_z_scored(self):
        raw = study().pairs(NEW, "shared", "train")
        message = r"expected z-scored responses of {}, as session_z_train makes them, got a mean absolute mean of"
        with pytest.raises(NormalizationError, match=message.format(NEW)):
            few_fit(responses={NEW: raw, KNOWN: scaled(KNOWN)})
        ids = {NEW: scaled(NEW).image_ids, KNOWN: scaled(KNOWN).image_ids}
        with pytest.raises(NormalizationError, match=message.format(KNOWN) + r" .* deviation of 5"):
            few_fit(responses={NEW: scaled(NEW).array(), KNOWN: 5 * scaled(KNOWN).array()}, image_ids=ids)

    def test_too_few_trials(self, caplog):
        pairs = scaled(NEW)
        for count, message in ((23, "at least 20 train trials of sim01, got 19"), (60, None)):
            options = {"image_ids": {NEW: pairs.image_ids[:count], KNOWN: None}, "validation": 0.15}
            responses = {NEW: pairs.array()[:count], KNOWN: scaled(KNOWN)}
            if message is None:
                few_fit(responses=responses, **options)
                assert "trials of sim01 are few: below 100" in caplog.text
            else:
                with pytest.raises(BrainDataError, match=message):
                    few_fit(responses=responses, **options)

    def test_one_image_cannot_validate(self):
        pairs = scaled(NEW)
        held = held_out(sorted({*pairs.image_ids, *scaled(KNOWN).image_ids}), FEW.validation)
        inside = np.isin(pairs.image_ids, sorted(held))
        rows = np.flatnonzero(~inside | (pairs.image_ids == pairs.image_ids[inside][0]))
        options = {"image_ids": {NEW: pairs.image_ids[rows], KNOWN: None}}
        with pytest.raises(BrainDataError, match="validation images of sim01 to compare with each other, got one"):
            few_fit(responses={NEW: pairs.array()[rows], KNOWN: scaled(KNOWN)}, **options)

    def test_subjects_decoders_labels_and_kinds_that_are_not_there(self):
        with pytest.raises(BrainDataError, match="two subjects, one of them new='sim03', got sim01, sim02"):
            few_fit(new="sim03")
        with pytest.raises(BrainDataError, match="two subjects, one of them new='sim01', got Pairs"):
            few_fit(responses=scaled(NEW))
        with pytest.raises(BrainDataError, match="got 'embeding'; near: embedding"):
            few_fit(decoder="embeding")
        with pytest.raises(BrainDataError, match=r"or a model with frozen\(subject\), got LowRankMap"):
            few_fit(decoder=LowRankMap(3, 3, 2))
        with pytest.raises(BrainDataError, match="labels, the class of each image, for pairs='class', got None"):
            few_fit(labels=None)
        with pytest.raises(BrainDataError, match="a label for every image, got none for sim1:"):
            few_fit(labels=dict(list(labels().items())[:40]))
        with pytest.raises(BrainDataError, match="expected a subject of sim01, sim02, got 'sim1'"):
            few_fitted().decode(scaled(NEW, "test"), subject="sim1")
        with pytest.raises(BrainDataError, match="kind to be one of weights, pattern, got 'patterns'"):
            few_fitted().transfer(scaled(NEW, "test"), "patterns")
        with pytest.raises(BrainDataError, match="expected responses of sim01 for kind='pattern', got None"):
            few_fitted().transfer(kind="pattern")

    def test_a_decoder_of_other_voxels_subjects_or_scales(self):
        with pytest.raises(BrainDataError, match="expected a subject of sim02, got 'sim01'"):
            few_fit(decoder=known_decoder(), responses=both(KNOWN, NEW), new=KNOWN)
        raw = small("neuroflow").fit(token_features(), study().pairs(KNOWN, "shared", "train"), subject=KNOWN)
        with pytest.raises(NormalizationError, match="of sim02 through 'none', as those of the decoder, got 'sess"):
            few_fit(decoder=raw)
        person = study().subject(KNOWN)
        moved = replace(person, space=replace(person.space, index=person.space.index[::-1].copy()))
        with pytest.raises(AxisError, match="expected the voxels of sim02 in the order of the decoder"):
            few_fit(decoder=known_decoder(), responses=both(dataset=study().with_subject(moved)))

    def test_nothing_is_aligned_before_fit(self):
        model = clone(few_fitted())
        assert model.get_params() == few_fitted().get_params() == {"config": FEW, "pairing": "ids", "device": None}
        for use in (model.transform, model.decode, model.reference_transforms, model.reference_decodings):
            with pytest.raises(BrainDataError, match="expected a fitted MindAligner, got one before fit"):
                use(scaled(NEW, "test"))
