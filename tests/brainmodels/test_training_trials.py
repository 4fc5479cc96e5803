"""What a model is fitted to: trials joined with tokens by image id, on scales of the training trials alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainmodels.data import fit_normalizer, validation_ids
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, IdError, LeakageError
from brainmodels.features import ArrayFeatures, TokenScaler
from brainmodels.training.latents import LatentData, posterior_of
from brainmodels.training.trials import Recording, held_out, part_rows
from tests.brainmodels.fitted import features, fitted, pairs, saved, small, study, with_values
from tests.brainmodels.joined import BOTH, arrays, joined


class TestJoining:
    @pytest.mark.parametrize("in_memory", [True, False])
    def test_every_trial_meets_the_tokens_of_its_image(self, in_memory, monkeypatch):
        """Whatever the order of the features, of the trials, or of both; trials are told apart by their values."""
        if not in_memory:
            monkeypatch.setattr("brainmodels.training.trials.IN_MEMORY", 0)
        (values, ids), source, rng = arrays(), features(), np.random.default_rng(0)
        truth = {row.tobytes(): source.get([name], "tokens")[0] for row, name in zip(values, ids, strict=True)}
        for moves_features in (False, True):
            for moves_trials in (False, True):
                rows = rng.permutation(len(values)) if moves_trials else np.arange(len(values))
                order = rng.permutation(len(source)) if moves_features else np.arange(len(source))
                names = np.array([*source._rows])[order]
                given = ArrayFeatures(source.get(names, "tokens"), names)
                data = joined(values[rows], ids[rows], given)
                seen = 0
                for part in ("train", "val"):
                    some = data.batch(part, "s", np.array([3, 0, 3]))
                    whole = next(data.batches(part))
                    assert torch.equal(some.responses, whole.responses[[3, 0, 3]])
                    for batch in data.batches(part, 50):
                        for response, tokens in zip(batch.responses.numpy(), batch.tokens.numpy(), strict=True):
                            np.testing.assert_array_equal(tokens, truth[response.tobytes()])
                            seen += 1
                assert seen == len(values)

    @BOTH
    def test_order_of_the_features_changes_no_bit(self, system, tmp_path):
        names = features().ids[::-1]
        other = ArrayFeatures(features().get(names, "tokens"), names, "planted")
        model = small(system).fit(other, pairs(), subject="sim01")
        assert saved(model, tmp_path / "a") == saved(fitted(system), tmp_path / "b")

    def test_pairs_arrays_and_tensors_are_the_same_trials(self, tmp_path):
        values, ids = arrays()
        tokens = features().get(features().ids, "tokens")
        expected = saved(fitted("synbrain"), tmp_path / "expected")
        for given in (values, values[:, None], torch.from_numpy(values)):
            model = small("synbrain").fit(
                torch.from_numpy(tokens), given, image_ids=ids, feature_ids=features().ids, subject="sim01"
            )
            model.fingerprint_ = model.scaler_.fingerprint = "planted"
            assert saved(model, tmp_path / "model") == expected

    @BOTH
    def test_rows_shuffled_against_their_ids_are_noticed(self, system, tmp_path):
        values, ids = arrays()
        wrong = np.random.default_rng(0).permutation(ids)
        model = small(system)
        with pytest.raises(AlignmentError, match="probably misaligned"):
            model.fit(features(), values, image_ids=wrong, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        with pytest.raises(BrainDataError, match="expected a fitted"):
            model.predict(features(), image_ids=ids[:2])
        model.fit(features(), values, image_ids=wrong, alignment="off")
        model.predict(features(), image_ids=ids[:2])
        assert model.meta_["subjects"]["default"]["alignment"] == "not tested"
        with pytest.raises(AlignmentError):
            model.fit(features(), values, image_ids=wrong)
        with pytest.raises(BrainDataError, match="expected a fitted"):  # and no mixture of two fits
            model.predict(features(), image_ids=ids[:2])

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"image_ids": None}, IdError, "expected image_ids of the trials, got responses without; pass image_ids="),
            ({"image_ids": ["sim1:000031"]}, AxisError, "one image id for each of 252 trials, got 1"),
            ({"feature_ids": ["a"]}, IdError, "expected no feature_ids with ArrayFeatures"),
            ({"features": np.zeros((3, 4, 6))}, IdError, "expected feature_ids, one for each row"),
            ({"responses": np.zeros((252, 2, 2))}, AxisError, r"responses \(trials, voxels\).*\(252, 2, 2\)"),
            ({"validation": 0.055}, BrainDataError, "whole percents .* got 0.055"),
            ({"validation": 1.0}, BrainDataError, "whole percents .* got 1.0"),
            ({"alignment": "maybe"}, BrainDataError, "alignment to be one of auto, off, got 'maybe'"),
        ],
    )
    def test_mistakes_are_named(self, given, error, message):
        values, ids = arrays()
        ids, values = ids[:252], values[:252]
        options = {"features": features(), "responses": values, "image_ids": ids} | given
        with pytest.raises(error, match=message):
            small("synbrain").fit(**options)

    def test_image_without_features_is_named_with_its_neighbours(self):
        values, ids = arrays()
        kept = features().ids[features().ids != ids[7]]
        source = ArrayFeatures(features().get(kept, "tokens"), kept)
        with pytest.raises(IdError, match=f"got '{ids[7]}'; near: sim1:"):
            small("synbrain").fit(source, values, image_ids=ids)
        with pytest.raises(IdError, match="got 'sim1:00031'; near: sim1:"):
            fitted("synbrain").predict(features(), image_ids=["sim1:00031"])

    def test_responses_that_have_ids_take_no_others(self):
        with pytest.raises(IdError, match="expected no image_ids with Pairs"):
            small("synbrain").fit(features(), pairs(), image_ids=pairs().image_ids)

    @pytest.mark.parametrize("part", ["test", "val"])
    def test_only_train_pairs_are_fitted_to(self, part):
        for system in ("neuroflow", "synbrain"):
            with pytest.raises(LeakageError, match=f"pairs of the train part to fit on, got those of '{part}'"):
                small(system).fit(features(), {"sim01": pairs(), "sim02": pairs(part, "sim02")})


class TestRows:
    def test_row_i_of_the_features_belongs_to_trial_i(self, tmp_path):
        """The same numbers as with ids of their own for all trials."""
        values, ids = arrays()
        tokens = features().get(ids, "tokens")
        model = small("synbrain")
        model.pairing = "rows"
        model.fit(tokens, values)
        assert model.meta_["pairing"] == "rows" and model.meta_["train_images"] > 200
        names = [f"row:{row:07d}" for row in range(len(ids))]
        other = small("synbrain").fit(tokens, values, image_ids=names, feature_ids=names)
        assert saved(model, tmp_path / "a") == saved(other, tmp_path / "b")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"features": np.zeros((251, 4, 6))}, "a row of features for each of 252 trials, got 251"),
            ({"features": features}, "an array of features without ids with pairing='rows', got ArrayFeatures"),
            ({"feature_ids": ["a"] * 252}, "an array of features without ids with pairing='rows', got feature_ids"),
            ({"image_ids": ["a"] * 252}, "expected no image_ids with pairing='rows'"),
        ],
    )
    def test_mistakes_are_named(self, given, message):
        options = {"features": np.zeros((252, 4, 6)), "responses": arrays()[0][:252]} | given
        if callable(options["features"]):
            options["features"] = options["features"]()
        model = small("synbrain")
        model.pairing = "rows"
        with pytest.raises(BrainDataError, match=message):
            model.fit(**options)

    def test_pairing_is_one_of_two(self):
        with pytest.raises(BrainDataError, match="pairing to be one of ids, rows, got 'row'; near: rows"):
            type(small("synbrain"))("tiny", pairing="row")


class TestValidation:
    @pytest.mark.parametrize("percent", [0, 5, 30, 55])
    def test_repeats_of_an_image_are_on_one_side(self, percent):
        ids = pairs().image_ids
        recording = Recording.of(np.zeros((len(ids), 2)), np.random.default_rng(1).permutation(ids))
        rows = part_rows(recording, held_out(ids, percent / 100))
        inside = {part: {str(name) for name in recording.image_ids[found]} for part, found in rows.items()}
        assert inside["val"] == validation_ids(ids, percent, seed=int(percent == 5))  # the split has taken 5 %
        assert (len(inside["val"]) > 0) == (percent > 0)
        assert inside["train"] == {*ids.tolist()} - inside["val"]
        assert sorted([*rows["train"], *rows["val"]]) == list(range(len(ids)))

    def test_images_that_validate_do_so_for_all_subjects(self):
        """A split that has taken its 5 % of the images of one subject has not of the other's."""
        split, responses = study().split("shared"), study().subject("sim01").responses
        whole = sorted(split.train_of["sim01"] | split.val_of["sim01"])
        other = responses.subset(np.isin(responses.trials.image_id, whole))
        data = small("synbrain")._join(features(), {"a": pairs(), "b": other}, "", None, None, 0.05, False)
        held = split.val_of["sim01"]
        assert held and data.sizes("val") == {"b": 2 * len(held)}
        assert not held & set(data.train_ids())

    def test_too_few_images_to_hold_one_out_are_told(self, caplog):
        assert held_out(["a", "b", "c"], 0.01) == frozenset()
        assert "3 images are too few to hold out 1 % of them" in caplog.text

    def test_fit_takes_the_share_that_it_is_given(self):
        data = small("synbrain")._join(features(), pairs(), "s", None, None, 0.5, False)
        held = validation_ids(pairs().image_ids, 50)
        assert data.sizes("val") == {"s": 2 * len(held)}
        assert data.train_ids() == sorted({*pairs().image_ids.tolist()} - held)

    def test_statistics_are_those_of_training_trials(self):
        """Other responses to the validation images move no statistic."""
        model = small("synbrain")
        model._join(features(), pairs(), "s", None, None, 0.5, False)
        held = np.isin(pairs().image_ids, sorted(validation_ids(pairs().image_ids, 50)))
        values, ids = arrays()
        values[held] += 100
        other = small("synbrain")
        other._join(features(), values, "s", ids, None, 0.5, False)
        for key in ("kept", "mean", "std"):
            np.testing.assert_array_equal(getattr(other.scales_["s"], key), getattr(model.scales_["s"], key))
        train = [name for name in features().ids if name in set(ids[~held])]
        expected = TokenScaler().fit(features(), train)
        np.testing.assert_array_equal(model.scaler_.mean_, expected.mean_)
        np.testing.assert_array_equal(model.scaler_.std_, expected.std_)
        assert model.scaler_.fitted_ids == frozenset(train)


@BOTH
def test_test_trials_change_no_fitted_number(system, tmp_path):
    """They do with "session_z", which is known for it, and a train trial does in any case."""

    def bits(dataset, normalizer, name):
        transform = fit_normalizer(normalizer, dataset.subject("sim01"), dataset.split("shared"))
        given = pairs(dataset=dataset, transform=transform)
        return saved(small(system).fit(features(), given, subject="sim01"), tmp_path / name)

    trials = study().subject("sim01").responses.trials
    tested = np.isin(trials.image_id, sorted(study().split("shared").test))

    def change(rows):
        return with_values(lambda values: values.__setitem__(rows, 5 - 3 * values[rows]))

    first = bits(study(), "session_z_train", "first")
    assert bits(change(tested), "session_z_train", "tests changed") == first
    assert bits(change(np.flatnonzero(~tested)[:1]), "session_z_train", "one train trial changed") != first
    assert bits(change(tested), "session_z", "leaks") != bits(study(), "session_z", "leaked")


@BOTH
def test_latents_of_a_batch_are_those_of_its_trials(system):
    model = fitted(system)
    data = small(system)._join(features(), pairs(), "sim01", None, None, 0.2, False)
    latents = LatentData(data, model._posterior, torch.device("cpu"))
    for part in ("train", "val"):
        rows = np.array([5, 0, 2, 5])
        truth, found = data.batch(part, "sim01", rows), latents.batch(part, "sim01", rows)
        with torch.no_grad():
            posterior = model._posterior(truth.responses, "sim01")
        torch.testing.assert_close(posterior_of(found, None).mean, posterior.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(posterior_of(found, None).logvar, posterior.logvar, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.tokens, truth.tokens)


def test_averages_over_repeats_by_definition():
    values, ids = arrays()
    data = joined(values, ids, features(), validation=0.0)
    names, found = data.averaged("s", limit=40)
    assert len(names) == len(set(names)) == 40
    for name, row in zip(names, found, strict=True):
        np.testing.assert_allclose(row, values[ids == name].mean(0), atol=1e-6)


def test_total_variance_is_weighted_by_trials():
    dataset = with_values(lambda values: values * 3, subject="sim02")
    model = small("synbrain", response_scale="as_is")
    given = {name: pairs(subject=name, dataset=dataset) for name in ("sim01", "sim02")}
    data = model._join(features(), given, "", None, None, 0.05, False)
    sizes = data.sizes("train")
    own = {name: model.scales_[name].variance for name in sizes}
    expected = sum(own[name] * n for name, n in sizes.items()) / sum(sizes.values())
    assert data.total_variance == pytest.approx(expected) and own["sim02"] > 5 * own["sim01"]


def test_numbers_of_trials_are_those_of_the_table():
    """Also where repeats are averaged: the first of them is named."""
    given = pairs(average="repeats")
    recording = Recording.of(given)
    assert recording.describe(np.array([4])) == f"trials {given.trials[4][0]} (images {given.image_ids[4]})"
    assert recording.describe(np.arange(10)).endswith(f", {given.image_ids[7]})")
    assert " and 2 more (images " in recording.describe(np.arange(10))


def test_other_voxels_have_other_digits():
    person = study().subject("sim01")
    moved = replace(person.space, index=person.space.index[::-1].copy())
    digits = [Recording.of(item).voxels for item in (person, pairs(), replace(person, space=moved))]
    assert digits[0] == digits[1] != digits[2]
    name = next(iter(person.space.rois))
    inside = pairs(roi=name)
    assert Recording.of(inside).voxels not in digits
    assert Recording.of(inside).num_voxels == person.space.roi(name).sum()
