"""Scores of aligned responses, maps of transfer and curves over trials, against definitions and planted truth."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import Pairs
from brainmodels.errors import BrainDataError, IdError, LeakageError
from brainmodels.evaluation.alignment import (
    ITSELF,
    OWN,
    aligned_predictions,
    alignment_scores,
    planted_map,
    region_scores,
    sides_of,
    transfer_maps,
    trial_curve,
)
from brainmodels.evaluation.encoding import Study, judge, reliability
from brainmodels.metrics.retrieval import similarity
from brainmodels.simulated import simulate
from brainmodels.simulated.tuning import pool
from brainmodels.systems.mindaligner.closed_forms import Side, encode_align, encode_invert_encode, no_alignment
from tests.brainmodels.aligned_fits import (
    KNOWN,
    NEW,
    averaged,
    both_tiny,
    budget,
    scaled,
    shorter,
    tiny_features,
    tiny_fit,
    tiny_study,
    trained_pair,
)

CLOSED = ["mean_map", "class_mean_ridge", "encode_align", "encode_invert_encode", "cross_ridge"]


def study_from(dataset, resamples=100):
    train, test = (scaled(KNOWN, part, dataset=dataset, average="repeats") for part in ("train", "test"))
    return Study.of(train, test, reliability(dataset.subject(KNOWN), train), 0.1, resamples, 0)


@functools.cache
def study():
    """Responses of the known subject."""
    return study_from(tiny_study())


@functools.cache
def model():
    return trained_pair(NEW, KNOWN)


@functools.cache
def predicted():
    return aligned_predictions(model(), study(), averaged(NEW), tiny_features())


@functools.cache
def planted():
    """What a perfect model would predict: the known subject's signal, by voxel."""
    return {"planted": tiny_study().truth[KNOWN].signal(study().test.image_ids)}


def some(pairs, rows):
    trials = [pairs.trials[row] for row in rows]
    known = pairs.average, pairs.transform, pairs.columns
    return Pairs(pairs.subject, pairs.split, pairs.part, pairs.image_ids[rows], trials, *known)


def correlations(a, b):
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


class TestScores:
    def test_predictions_are_those_of_every_map_for_the_images_of_the_study(self):
        assert list(predicted()) == ["MindAligner", *CLOSED, ITSELF]
        test = averaged(NEW)
        mixed = some(test, np.random.default_rng(0).permutation(len(test)))
        assert test.image_ids.tolist() == study().test.image_ids.tolist() != mixed.image_ids.tolist()
        wanted = {"MindAligner": model().transform(test)} | model().reference_transforms(test)
        for found in (predicted(), aligned_predictions(model(), study(), mixed, tiny_features())):
            for name, values in wanted.items():
                np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)  # sums of rows in another order

    def test_scores_are_of_what_was_measured_in_the_known_subject(self):
        rows = {row.model: row for row in alignment_scores(model(), study(), predicted())}
        counted, measured = study().voxels, averaged(KNOWN).array()
        for name, row in rows.items():
            r = correlations(measured[:, counted], predicted()[name][:, counted]) if name != "mean_map" else 0 * counted
            assert row.score("voxel_r_mean").value == pytest.approx(np.mean(r), abs=1e-6)
            share = np.sum(r * np.abs(r)) / study().ceiling[counted].sum()
            assert row.score("nr2").value == pytest.approx(share, abs=1e-6)
            each = correlations(measured[:, counted].T, predicted()[name][:, counted].T)
            assert row.score("sample_r").value == pytest.approx(each.mean(), abs=1e-6)
            assert row.score("nr2").interval and row.score("voxel_r").ceiling and row.score("voxel_r").subject == KNOWN
            assert set(row.rois) == set(tiny_study().subject(KNOWN).space.rois)
        assert (rows["encode_align"].features, rows[ITSELF].features) == ("responses of sim01", "images")

    def test_the_planted_signal_is_at_the_ceiling_and_alignment_between_it_and_the_mean_map(self):
        rows = {row.model: row for row in alignment_scores(model(), study(), predicted() | planted())}
        assert rows["planted"].score("nr2").value == pytest.approx(1, abs=0.1)
        for name in ("MindAligner", "encode_align", ITSELF):
            low, high = rows[name].score("nr2").interval[:2]
            assert rows["mean_map"].score("nr2").value == 0 < low and high < rows["planted"].score("nr2").interval.low
            assert rows[name].score("voxel_r").value > rows[name].score("voxel_r").chance_interval.high

    def test_regions_have_their_own_scores(self):
        """A prediction that is right in V1 and noise elsewhere."""
        region = tiny_study().subject(KNOWN).space.roi("V1")
        noise = np.random.default_rng(0).normal(size=planted()["planted"].shape).astype(np.float32)
        guess = np.where(region, planted()["planted"], noise)
        found = region_scores(study(), {"V1 alone": guess})
        scores = {name: {x.metric.name: x for x in rows["V1 alone"]} for name, rows in found.items()}
        assert scores["V1"]["nr2"].value == pytest.approx(1, abs=0.1)
        assert max(abs(scores[name]["nr2"].value) for name in scores if name != "V1") < 0.1
        assert max(abs(scores[name]["sample_r"].value) for name in scores if name != "V1") < 0.15
        counted = region & study().voxels
        measured = averaged(KNOWN).array()[:, counted]
        by_voxel, by_image = (
            correlations(*x).mean() for x in ((measured, guess[:, counted]), (measured.T, guess[:, counted].T))
        )
        assert scores["V1"]["voxel_r_mean"].value == pytest.approx(by_voxel, abs=1e-6)
        assert scores["V1"]["sample_r"].value == pytest.approx(by_image, abs=1e-6)
        assert scores["V1"]["voxel_r_mean"].value < scores["V1"]["voxel_r_mean"].ceiling + 0.1
        assert scores["V1"]["nr2"].roi == "V1" and scores["V1"]["sample_r"].chance_interval.high < by_image

    def test_other_studies_and_images_of_the_fit_are_refused(self):
        other = Study.of(
            *(scaled(NEW, part, dataset=tiny_study(), average="repeats") for part in ("train", "test")), None, 0.1, 2, 0
        )
        with pytest.raises(IdError, match="a study of sim02, the known subject, got one of sim01"):
            aligned_predictions(model(), other, averaged(NEW), tiny_features())
        seen = scaled(KNOWN, dataset=tiny_study(), average="repeats")
        with pytest.raises(LeakageError, match=r"did not see, got .* of it"):
            aligned_predictions(model(), replace(study(), test=seen), averaged(NEW), tiny_features())
        with pytest.raises(IdError, match="expected a prediction of "):
            aligned_predictions(model(), study(), some(averaged(NEW), range(59)), tiny_features())


class TestTransfer:
    @staticmethod
    @functools.cache
    def silenced():
        """(voxels with signal, model, study, trials): half of the new subject's voxels are silent."""
        signal = np.random.default_rng(0).random(210) < 0.5
        dataset = simulate("tiny", seed=1, n_subjects=2, snr_scale={NEW: signal.astype(float)}, shared_noise=0.3)
        recipe = replace(shorter(1), init="encode_align")
        return signal, tiny_fit(recipe, both_tiny(dataset)), study_from(dataset), budget(NEW, dataset)

    def test_closed_forms_see_the_trials_and_the_averages(self):
        new, known = sides_of(model(), budget(NEW), study(), tiny_features())
        np.testing.assert_array_equal(new.responses, budget(NEW).array())
        np.testing.assert_array_equal(known.responses, study().measured_train)
        for side, pairs in ((new, budget(NEW)), (known, study().train)):
            embeddings = model().scaler_.transform(tiny_features().get(pairs.image_ids))
            np.testing.assert_array_equal(side.embeddings, embeddings)
            assert side.image_ids.tolist() == pairs.image_ids.tolist()

    @pytest.mark.parametrize("kind", ["weights", "pattern"])
    def test_quantities_flow_and_bands_are_dense_sums(self, kind):
        _, fitted, known_study, trials = self.silenced()
        found = transfer_maps(fitted, known_study, trials, tiny_features(), kind, refits=3, seed=5)
        new, known = sides_of(fitted, trials, known_study, tiny_features())
        rng, matrices = np.random.default_rng(5), []
        for _ in range(3):
            order = rng.permutation(len(new.responses))
            matrices.append(encode_align(replace(new, responses=new.responses[order]), known).matrix)
        masks = [
            [person.space.rois[x] for x in person.space.rois] for person in (trials.subject, known_study.test.subject)
        ]

        def dense(matrix):
            matrix = matrix.astype(np.float64)
            if kind == "pattern":
                aligned = new.responses.astype(np.float64) @ matrix
                centred = new.responses - new.responses.mean(0, dtype=np.float64)
                matrix = centred.T @ (aligned - aligned.mean(0)) / len(aligned) / aligned.std(0)
            mass = np.abs(matrix)
            flow = [[mass[a][:, b].mean() / mass.mean() for b in masks[1]] for a in masks[0]]
            return mass.sum(1) / mass.sum(1).mean(), mass.sum(0) / mass.sum(0).mean(), np.array(flow)

        null = [dense(matrix) for matrix in matrices]
        wanted = {"MindAligner": fitted.matrix(), "encode_align": encode_align(new, known).matrix}
        for name, matrix in wanted.items():
            for key, values in zip(("new", "known", "flow"), dense(matrix), strict=True):
                np.testing.assert_allclose(getattr(found[name], key), values, rtol=1e-3)
        for place, key in enumerate(("new_band", "known_band", "flow_band")):
            parts = [item[place] for item in null]
            np.testing.assert_allclose(
                getattr(found["encode_align"], key), [np.min(parts, 0), np.max(parts, 0)], rtol=1e-3
            )
        told = json.loads(json.dumps(found["MindAligner"].to_json(), allow_nan=False))
        assert told["regions"]["new"] == list(trials.subject.space.rois) and np.shape(told["flow"]) == (6, 6)
        share = np.mean(found["MindAligner"].new > found["MindAligner"].new_band[1])
        assert told["share_above_band"]["new"] == pytest.approx(share)

    def test_no_silent_voxel_is_above_the_band(self):
        """In absolute weights all would be, because penalties of fits to wrong images are larger."""
        signal, fitted, known_study, trials = self.silenced()
        shares = {}
        for kind in ("weights", "pattern"):
            found = transfer_maps(fitted, known_study, trials, tiny_features(), kind)["encode_align"]
            above, below = found.new > found.new_band[1], found.new < found.new_band[0]
            assert not above[~signal].any()
            shares[kind] = above[signal].mean(), below[~signal].mean(), below[signal].mean()
        assert shares["weights"][0] > 0.1 and shares["pattern"][0] > 0.3
        assert shares["pattern"][1] > 0.5 > 0.1 > shares["pattern"][2]

    def test_the_map_goes_from_v1_to_v1_more_than_to_other_regions(self):
        """V1 is tuned to places, the regions in front are not; all else is shared among those."""
        found = transfer_maps(model(), study(), budget(NEW), tiny_features(), refits=5)
        for name in ("MindAligner", "encode_align"):
            new, known = found[name].regions
            flow = dict(zip(new, (dict(zip(known, row, strict=True)) for row in found[name].flow), strict=True))
            assert flow["V1"]["V1"] > flow["V1"]["SEM"] and flow["V1"]["V1"] > 1

    def test_voxels_that_the_fit_left_out_are_undefined(self):
        dataset = tiny_study()
        person = dataset.subject(NEW)
        values = np.array(person.responses.values)
        values[:, 7] = 1
        dataset = dataset.with_subject(replace(person, responses=replace(person.responses, values=values)))
        fitted = tiny_fit(replace(shorter(1), init="encode_align"), both_tiny(dataset), drop_voxels=True)
        found = transfer_maps(fitted, study(), budget(NEW, dataset), tiny_features(), refits=2)["MindAligner"]
        assert (
            np.isnan(found.new[7])
            and np.isnan(found.new_band[:, 7]).all()
            and np.isfinite(np.delete(found.new, 7)).all()
        )
        assert np.isfinite(found.known).all() and 0 <= found.to_json()["share_above_band"]["new"] <= 1

    def test_unknown_kinds_and_subjects_without_regions_are_refused(self):
        with pytest.raises(BrainDataError, match="kind to be one of weights, pattern, got 'dense'"):
            transfer_maps(model(), study(), budget(NEW), tiny_features(), "dense")
        trials = budget(NEW)
        trials.subject = replace(trials.subject, space=replace(trials.subject.space, rois={}))
        with pytest.raises(BrainDataError, match="expected regions of sim01, got none"):
            transfer_maps(model(), study(), trials, tiny_features())


class TestCurve:
    @staticmethod
    @functools.cache
    def curve():
        """Two draws of 60 and 200 trials, a map that is trained again, and the trials that it was given."""
        given = []

        def fit(few):
            given.append(few)
            return model()

        return trial_curve(model(), study(), budget(NEW), averaged(NEW), tiny_features(), (60, 200), 2, 3, fit), given

    def test_every_point_is_the_closed_form_on_some_of_the_trials(self):
        found, given = self.curve()
        assert found["draws"] == 2 and [len(few) for few in given] == [60, 200, 60, 200]
        aligned, read = (json.loads(json.dumps(curve)) for curve in found["curves"])
        assert (aligned["metric"], read["metric"]) == ("nr2", "image_given_brain_top1@60")
        truth = model().tokens(tiny_features(), study().test.image_ids)[:, 0]
        _, known = sides_of(model(), budget(NEW), study(), tiny_features())

        def top1(tokens):
            return np.mean(similarity(tokens, truth).argmax(1) == np.arange(60))

        for few, (draw, count) in zip(given, [(0, "60"), (0, "200"), (1, "60"), (1, "200")], strict=True):
            embeddings = model().scaler_.transform(tiny_features().get(few.image_ids))
            side = Side(few.array(), embeddings, few.image_ids)
            for form in (encode_align, encode_invert_encode):
                values = form(side, known).transform(averaged(NEW).array())
                score = judge(study(), values, "", "").score("nr2").value
                assert aligned["points"][form.__name__][count][draw] == pytest.approx(score, abs=1e-5)
                tokens = model().tokens(model().decode(values, subject=KNOWN))[:, 0]
                assert read["points"][form.__name__][count][draw] == pytest.approx(top1(tokens))
            direct = no_alignment(side).transform(averaged(NEW).array())
            assert read["points"]["no_alignment"][count][draw] == pytest.approx(top1(direct))
        assert set(read["points"]) == {*aligned["points"], "no_alignment"}
        assert read["chance"] == pytest.approx(1 / 60)

    def test_smaller_draws_are_within_larger_ones_and_draws_differ(self):
        _, given = self.curve()
        trials = [{row[0] for row in few.trials} for few in given]
        assert trials[0] < trials[1] and trials[2] < trials[3] and len(trials[0] & trials[2]) < 40

    def test_trained_maps_and_references_have_the_scores_of_the_table(self):
        found, _ = self.curve()
        rows = {row.model: row.score("nr2").value for row in alignment_scores(model(), study(), predicted())}
        aligned, read = found["curves"]
        assert aligned["points"]["MindAligner"]["200"] == pytest.approx([rows["MindAligner"]] * 2, abs=1e-5)
        assert aligned["references"] == {ITSELF: pytest.approx(rows[ITSELF], abs=1e-5)}
        truth = model().tokens(tiny_features(), study().test.image_ids)
        own = model().tokens(model().decode(averaged(KNOWN), subject=KNOWN))
        top = np.mean(similarity(own, truth).argmax(1) == np.arange(60))
        assert read["references"] == {OWN: pytest.approx(top)}

    def test_more_trials_align_and_decode_better(self):
        aligned, read = self.curve()[0]["curves"]
        for curve, names in (
            (aligned, ("encode_align", "encode_invert_encode")),
            (read, ("encode_align", "no_alignment")),
        ):
            for name in names:
                assert np.mean(curve["points"][name]["200"]) > np.mean(curve["points"][name]["60"]), name

    def test_without_a_decoder_only_ridge_without_alignment_is_read(self):
        plain = tiny_fit(shorter(1))
        found = trial_curve(plain, study(), budget(NEW), averaged(NEW), tiny_features(), (60,), seed=3)
        aligned, read = found["curves"]
        assert set(aligned["points"]) == {"encode_align", "encode_invert_encode"} and read["references"] == {}
        assert set(read["points"]) == {"no_alignment"}
        first = self.curve()[0]["curves"][1]["points"]["no_alignment"]["60"][0]
        assert read["points"]["no_alignment"]["60"] == [first]

    def test_more_trials_than_there_are(self):
        with pytest.raises(BrainDataError, match=r"counts of at most \d+ trials of sim01, got 900"):
            trial_curve(model(), study(), budget(NEW), averaged(NEW), tiny_features(), (60, 900))


def test_the_planted_map_is_the_conditional_mean_under_the_planted_weights():
    """Cov(F_K, F_N) Cov(F_N)^-1 for z-scored responses, averaged over three trials."""
    sides = []
    for name in (NEW, KNOWN):
        truth = tiny_study().truth[name]
        sides.append((truth.tuning.weights * np.sqrt(truth.ceiling(1)), 1 - truth.ceiling(1)))
    (W, noise), (W_known, _) = sides
    S = pool().correlation
    wanted = np.linalg.solve(W.T @ S @ W + np.diag(noise / 3), W.T @ S @ W_known)
    found = planted_map(tiny_study(), NEW, KNOWN, repeats=3)
    np.testing.assert_allclose(found.matrix, wanted, atol=1e-5)
    np.testing.assert_allclose(found.intercept, 0, atol=1e-6)
    with pytest.raises(BrainDataError, match="expected linear tuning of sim01, got nonlinear"):
        planted_map(simulate("tiny", seed=1, n_subjects=2, tuning="nonlinear"), NEW, KNOWN)
