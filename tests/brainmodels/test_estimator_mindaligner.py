"""MindAligner fitted to simulated subjects: what it is trained on, what stays, which map it keeps, that it aligns."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from brainmodels.data import shared_part
from brainmodels.errors import BrainDataError
from brainmodels.evaluation.alignment import planted_map
from brainmodels.metrics.retrieval import full_gallery, similarity
from brainmodels.simulated import simulate
from brainmodels.systems.mindaligner import LowRankMap, Side, tasks
from brainmodels.systems.mindaligner.closed_forms import encoder_of
from brainmodels.training.trials import held_out
from tests.brainmodels.aligned_fits import (
    FEW,
    KNOWN,
    NEW,
    aligning,
    averaged,
    both,
    both_tiny,
    budget,
    features,
    few_fit,
    few_fitted,
    fitted,
    flow_fitted,
    known_decoder,
    labels,
    r,
    same,
    scaled,
    shorter,
    steps,
    tiny_features,
    tiny_fit,
    tiny_study,
    trained_pair,
    watched,
)
from tests.brainmodels.fitted import saved, study, with_values

DEEP = replace(FEW, decoder_depth=1)
DECODERS = pytest.mark.parametrize("decoder", ["embedding", "flow"])


class TestTrainedOn:
    """The trials, images and embeddings of every pair, by the arguments of the loss."""

    def pairs_of(self, monkeypatch, recipe=FEW, responses=None, **options):
        """A fit, and for each pair that it saw: ids of both images, and that of the trial for the decoder."""
        responses = both() if responses is None else responses
        rows, ids = [], []
        loss, decoding = tasks.alignment_loss, tasks.Judge.loss

        def loss_seen(*networks, **given):
            rows.append({key: given[key].numpy() for key in ("new", "known", "new_image", "known_image")})
            return loss(*networks, **given)

        def decoding_seen(self, image_ids, numbers):
            ids.extend(image_ids)
            assert ((numbers[:, None] == numbers).numpy() == (image_ids[:, None] == image_ids)).all()
            return decoding(self, image_ids, numbers)

        with monkeypatch.context() as patch:
            patch.setattr(tasks, "alignment_loss", loss_seen)
            patch.setattr(tasks.Judge, "loss", decoding_seen)
            model = few_fit(recipe, responses, **options)
        found = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        trials = dict(zip(map(bytes, responses[NEW].array()), responses[NEW].image_ids.tolist(), strict=True))
        new = [trials[bytes(row)] for row in found["new"]]
        shown = np.unique(responses[KNOWN].image_ids)
        means = np.stack([responses[KNOWN].array()[responses[KNOWN].image_ids == name].mean(0) for name in shown])
        nearest = [np.square(means - row).sum(1) for row in found["known"]]
        assert max(distance.min() for distance in nearest) < 1e-6
        known = [str(shown[distance.argmin()]) for distance in nearest]
        for names, key in ((new, "new_image"), (known, "known_image")):
            wanted = model.scaler_.transform(features().get(names))
            np.testing.assert_allclose(found[key], wanted, atol=1e-6)
        assert ids == new
        return model, new, known

    def test_trials_of_a_class_without_partner_are_left_out_and_the_others_stay_in_their_rows(self, monkeypatch):
        own = set(both()[NEW].image_ids)
        held = held_out(sorted(own | set(both()[KNOWN].image_ids)), FEW.validation)
        first = next(name for name in both()[NEW].image_ids if name not in held)
        lonely = labels()[first]  # of the first trial, so that all later rows move
        told = {name: "alone" if label == lonely and name in own else label for name, label in labels().items()}
        model, new, known = self.pairs_of(monkeypatch, labels=told)
        assert "alone" not in {told[name] for name in new}
        assert [told[name] for name in new] == [told[name] for name in known]
        left = [name for name in both()[NEW].image_ids.tolist() if name not in held and told[name] != "alone"]
        assert len(left) < model.meta_["new_trials"]
        epochs = 12 // -(-len(left) // 64)
        assert epochs > 1 and Counter(new) == {name: epochs * count for name, count in Counter(left).items()}

    def test_dropped_trials_are_counted(self, caplog):
        own = set(both()[NEW].image_ids)
        lonely = min(labels().values())
        told = {name: "alone" if label == lonely and name in own else label for name, label in labels().items()}
        model = few_fit(labels=told)
        held = held_out(sorted(own | set(both()[KNOWN].image_ids)), FEW.validation)
        count = sum(told[name] == "alone" for name in both()[NEW].image_ids if name not in held)
        assert f"{count} trials have no partner and are not trained on" in caplog.text
        assert np.isfinite(model.transform(scaled(NEW, "test"))).all()

    def test_near_images_are_among_the_five_nearest(self, monkeypatch):
        model, new, known = self.pairs_of(monkeypatch, replace(FEW, pairs="nearest"), labels=None)
        shown = np.unique(both()[KNOWN].image_ids)
        table = similarity(*(model.scaler_.transform(features().get(ids)) for ids in (new, shown)))
        places = np.searchsorted(shown, known)
        rank = (table > table[np.arange(len(new)), places][:, None]).sum(1)
        assert rank.max() == 4 and set(rank) == set(range(5))

    def test_common_images_are_paired_with_themselves_and_give_direct_maps(self, monkeypatch):
        common = shared_part(study(), "shared", train=20)
        responses = both(split=common)
        model, new, known = self.pairs_of(monkeypatch, replace(FEW, pairs="same"), responses, labels=None)
        assert new == known and set(new) <= common.train & study().split("shared").test
        assert {"shared_ridge", "procrustes"} <= {*model.baselines_} and "class_mean_ridge" not in model.baselines_
        test = scaled(NEW, "test", common)
        truth = study().truth[KNOWN].signal(test.image_ids)
        for name in ("shared_ridge", "procrustes"):
            aligned = model.reference_transforms(test)[name]
            assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(aligned.T, truth.T, strict=True)]) > 0.3, name

    def test_without_common_images_there_is_no_direct_map(self):
        assert not {"shared_ridge", "procrustes"} & {*few_fitted().baselines_}
        with pytest.raises(BrainDataError, match="images that both subjects saw for pairs='same', got none"):
            few_fit(replace(FEW, pairs="same"))


class TestDecoder:
    def test_an_embedding_decoder_is_trained_and_then_stays(self, monkeypatch):
        seen = {}
        judge = tasks.Judge.__init__

        def begun(self, encoder, decoder=None, table=None):
            seen.update({name: value.clone() for name, value in decoder.state_dict().items()})
            judge(self, encoder, decoder, table)

        monkeypatch.setattr(tasks.Judge, "__init__", begun)
        model, task, _ = watched(monkeypatch, DEEP)
        assert task.judge.decoder is model.decoder_ and not model.decoder_.training
        state = model.decoder_.state_dict()
        assert list(state) == list(seen) and same(state.values(), seen.values())
        assert state["blocks.0.mlp.3.weight"].abs().max() > 0  # MLPs begin at 0
        assert not any(name.startswith("judge") or "decoder" in name for name, _ in task.named_parameters())

    def test_a_neuroflow_stays_as_it_is(self):
        decoder = known_decoder()
        before = [value.clone() for net in (decoder.vae_, decoder.flow_) for value in net.state_dict().values()]
        model = few_fit(decoder=decoder)
        after = [value for net in (decoder.vae_, decoder.flow_) for value in net.state_dict().values()]
        assert same(before, after) and model.known_model_ is decoder
        assert all(parameter.requires_grad for parameter in decoder.vae_.parameters())
        assert not same(aligning(model), aligning(few_fit(replace(FEW, dec_weight=0.0), decoder=decoder)))

    def test_a_frozen_neuroflow_stays_as_it_is(self, monkeypatch):
        before = known_decoder().frozen(KNOWN).state_dict()
        _, task, _ = watched(monkeypatch, decoder=known_decoder())
        assert same(before.values(), task.judge.decoder.state_dict().values()) and not task.judge.decoder.training

    def test_a_neuroflow_decodes_what_was_aligned(self):
        model, test = flow_fitted(), scaled(NEW, "test")
        wanted = known_decoder().decode(model.transform(test), subject=KNOWN)
        assert wanted.shape == (60, 4, 6)
        np.testing.assert_array_equal(model.decode(test), wanted)
        sampled = {"mode": "sample", "steps": 2}
        wanted = known_decoder().decode(model.transform(test), subject=KNOWN, **sampled)
        np.testing.assert_array_equal(model.decode(test, **sampled), wanted)
        measured = scaled(KNOWN, "test")
        np.testing.assert_array_equal(
            model.decode(measured, subject=KNOWN), known_decoder().decode(measured, subject=KNOWN)
        )
        ids = test.image_ids
        np.testing.assert_array_equal(model.tokens(features(), ids), known_decoder().tokens(features(), ids))

    def test_an_embedding_decoder_reads_aligned_responses(self):
        model, test = fitted("embedding"), scaled(NEW, "test")
        with torch.no_grad():
            wanted = model.decoder_(torch.from_numpy(model.transform(test))).numpy()
        np.testing.assert_allclose(model.tokens(model.decode(test))[:, 0], wanted, atol=1e-5)

    def test_without_a_decoder_nothing_is_decoded(self):
        model = few_fit(decoder=None)
        with pytest.raises(BrainDataError, match="a decoder of the known subject, got a fit with decoder=None"):
            model.decode(scaled(NEW, "test"))
        assert model.meta_["decoder"] is None and model.meta_["stages"][0]["name"] == "align"

    @DECODERS
    def test_closed_forms_are_read_by_the_same_decoder(self, decoder):
        model, test = fitted(decoder), scaled(NEW, "test")
        read = model.reference_decodings(test)
        for name, item in model.baselines_.items():
            aligned = item.transform(test.array())
            np.testing.assert_array_equal(read[f"{name}, same decoder"], model.decode(aligned, subject=KNOWN))
        assert ("ridge without alignment" in read) == (decoder == "embedding")
        assert model.reference_decodings(scaled(KNOWN, "test"), subject=KNOWN) == {}


@pytest.mark.parametrize(("new", "known", "counts"), [(NEW, KNOWN, (24, 30)), (KNOWN, NEW, (30, 24))])
def test_the_map_goes_both_ways_between_unequal_numbers_of_voxels(new, known, counts):
    model, test = few_fit(responses=both(new, known), new=new), scaled(new, "test")
    A, B = (x.double().numpy() for x in aligning(model))
    assert A.shape == (counts[0], 8) and B.shape == (8, counts[1])
    np.testing.assert_allclose(model.transform(test), test.array() @ A @ B, atol=1e-5)
    np.testing.assert_allclose(model.matrix(slice(3, 9)), (A @ B)[3:9], atol=1e-6)
    quantity = model.transfer()
    np.testing.assert_allclose(quantity.new, np.abs(A @ B).sum(1), rtol=1e-10)
    np.testing.assert_allclose(quantity.known, np.abs(A @ B).sum(0), rtol=1e-10)
    wide = few_fit(replace(steps(1), rank=4096), both(new, known), new=new)
    assert wide.map_.rank == wide.meta_["rank"] == 24


class TestSelection:
    def score(self, model):
        return self.score_of(model, model.matrix())

    def score_of(self, model, matrix):
        """Mean correlation over voxels, on the validation trials, with what the known subject's ridge predicts."""
        responses = both()
        held = held_out(sorted({*responses[NEW].image_ids, *responses[KNOWN].image_ids}), FEW.validation)
        rows = np.isin(responses[NEW].image_ids, sorted(held))
        shown = np.unique(responses[KNOWN].image_ids)
        means = np.stack([responses[KNOWN].array()[responses[KNOWN].image_ids == name].mean(0) for name in shown])
        side = Side(means, model.scaler_.transform(features().get(shown)), shown)
        expected = encoder_of(side).predict(model.scaler_.transform(features().get(responses[NEW].image_ids[rows])))
        aligned = responses[NEW].array()[rows] @ matrix
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(aligned.T, expected.T, strict=True)])

    def test_the_kept_map_has_the_best_score_in_validation(self):
        model = few_fit(steps(60, lr=0.1, patience=60))
        log = model.meta_["stages"][-1]["log"]
        best = max(log, key=lambda row: row["val_score"])
        assert log[0]["step"] == 0 and 0 < best["step"] == model.meta_["best_step"] < 60
        assert self.score(model) == pytest.approx(best["val_score"], abs=1e-4)
        assert model.meta_["stages"][-1]["best"] == -best["val_score"]

    def test_training_that_ruins_the_map_returns_the_closed_form_that_it_began_with(self):
        model = few_fit(replace(steps(12, lr=1.0, patience=12), init="encode_align"))
        begun = LowRankMap.from_matrix(model.baselines_["encode_align"].matrix, 8)
        assert same(aligning(model), [begun.A.detach(), begun.B.detach()]) and model.meta_["best_step"] == 0
        first, *others = (row["val_score"] for row in model.meta_["stages"][-1]["log"])
        assert self.score(model) == pytest.approx(first, abs=1e-4) and max(others) < first - 0.1

    def test_a_map_that_begins_at_a_closed_form_never_falls_below_it(self):
        model = few_fit(replace(steps(40, patience=40), init="encode_align"))
        begun = LowRankMap.from_matrix(model.baselines_["encode_align"].matrix, 8)
        log = model.meta_["stages"][-1]["log"]
        assert self.score_of(model, begun.matrix().numpy()) == pytest.approx(log[0]["val_score"], abs=1e-4)
        assert self.score(model) >= log[0]["val_score"] - 1e-5

    def test_validation_images_are_train_images_of_the_new_subject(self, monkeypatch):
        model, _, source = watched(monkeypatch)
        split, recording = study().split("shared"), source.data.recordings[NEW]
        parts = {part: set(recording.image_ids[source.data.rows[part][NEW]]) for part in ("train", "val")}
        assert parts["val"] and not parts["val"] & parts["train"]
        assert parts["val"] | parts["train"] == split.ids("train", NEW)
        assert source.sizes("val") == {NEW: 2 * len(parts["val"])}
        batch = source.batch("val", NEW, np.arange(source.sizes("val")[NEW]))
        rows = np.isin(both()[NEW].image_ids, sorted(parts["val"]))
        np.testing.assert_array_equal(batch.responses, both()[NEW].array()[rows])
        assert model.meta_["new_images"] == len(parts["train"])

    def test_a_budget_of_one_session_is_all_that_is_seen(self, monkeypatch):
        split = replace(study().split("shared"), sessions={"train": frozenset({2})})
        few = scaled(NEW, split=split)
        model, task, source = watched(monkeypatch, responses={NEW: few, KNOWN: scaled(KNOWN)})
        trials = study().subject(NEW).responses.trials
        shown = np.isin(trials.image_id, sorted(split.ids("train", NEW))) & (trials.session == 2)
        assert set(source.data.recordings[NEW].numbers) == set(np.flatnonzero(shown))
        assert model.meta_["new_trials"] + source.sizes("val")[NEW] == shown.sum() < len(scaled(NEW))
        taken = source.batch("train", NEW, np.arange(source.sizes("train")[NEW])).responses.numpy()
        assert {bytes(row) for row in taken} <= {bytes(row) for row in few.array()}
        assert len(task.responses) == len(study().split("shared").ids("train", KNOWN))


def test_a_clone_is_fitted_to_the_same_bits(tmp_path):
    again = clone(few_fitted())
    again.fit(features(), both(), new=NEW, labels=labels(), alignment="off")
    assert saved(again, tmp_path / "a") == saved(few_fitted(), tmp_path / "b")


def test_voxels_that_are_left_out_are_undefined_and_change_nothing_else():
    """A constant voxel of either subject."""
    dataset = with_values(lambda values: values.__setitem__((slice(None), 4), 1.0), subject=NEW)
    dataset = with_values(lambda values: values.__setitem__((slice(None), 7), 1.0), dataset, KNOWN)
    test = scaled(NEW, "test", dataset=dataset)
    model = few_fit(responses=both(dataset=dataset), drop_voxels=True)
    ids = {name: scaled(name).image_ids for name in (NEW, KNOWN)}
    without = few_fit(
        responses={NEW: np.delete(scaled(NEW).array(), 4, 1), KNOWN: np.delete(scaled(KNOWN).array(), 7, 1)},
        image_ids=ids,
    )
    values = np.delete(scaled(NEW, "test").array(), 4, 1)
    wanted = {"trained": without.transform(values)} | without.reference_transforms(values)
    for name, aligned in ({"trained": model.transform(test)} | model.reference_transforms(test)).items():
        assert np.isnan(aligned[:, 7]).all()
        np.testing.assert_array_equal(np.delete(aligned, 7, 1), wanted[name])
    np.testing.assert_array_equal(model.decode(test), without.decode(values))
    np.testing.assert_array_equal(
        model.reference_decodings(test)["encode_align, same decoder"],
        without.reference_decodings(values)["encode_align, same decoder"],
    )


# the simulated study of the measured numbers


PAIRS = pytest.mark.parametrize(("new", "known"), [(NEW, KNOWN), (KNOWN, NEW)])


@PAIRS
def test_the_map_is_near_encode_align_above_the_mean_map_and_below_the_oracle(new, known):
    """r with the known subject's response without noise. No claim that training beats a closed form."""
    model, test = trained_pair(new, known), averaged(new)
    found = r(model.transform(test), test, known)
    closed = {name: r(values, test, known) for name, values in model.reference_transforms(test).items()}
    best = r(planted_map(tiny_study(), new, known, repeats=3).transform(test.array()), test, known)
    assert found >= 0.85 * closed["encode_align"] > 0.45 and closed["mean_map"] == 0
    assert max(found, *closed.values()) <= best


@PAIRS
def test_images_are_found_in_what_the_known_subjects_decoder_reads(new, known):
    model, test = trained_pair(new, known), averaged(new)
    truth = model.tokens(tiny_features(), test.image_ids)
    score = full_gallery(similarity(model.tokens(model.decode(test)), truth), (1,), 200)[0]
    assert score.interval.low > score.chance_interval.high
    upper = full_gallery(similarity(model.tokens(model.decode(averaged(known), subject=known)), truth), (1,), 200)
    assert score.value <= upper[0].value  # the known subject's own responses


def test_wrong_images_teach_nothing_on_average():
    """Signals have few strong directions, so that r of one wrong pairing is anywhere from -.25 to .25."""
    train, test = budget(NEW), averaged(NEW)
    found = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(train))
        ids = {NEW: train.image_ids[order], KNOWN: None}
        model = tiny_fit(shorter(300), {NEW: train.array(), KNOWN: both_tiny()[KNOWN]}, image_ids=ids)
        found.append(r(model.transform(test), test))
    assert abs(np.mean(found)) <= 0.1
    assert np.abs(found).max() < 0.6 * r(trained_pair(NEW, KNOWN).transform(test), test)


def test_places_of_voxels_change_nothing():
    other = simulate("tiny", seed=1, n_subjects=2, anatomy="shuffled")
    model = tiny_fit(shorter(20), both_tiny(other))
    assert same(aligning(model), aligning(tiny_fit(shorter(20))))
    spaces = [dataset.subject(NEW).space.index for dataset in (other, tiny_study())]
    assert not np.array_equal(*spaces)


def test_a_new_subject_without_signal_is_at_chance():
    silent = simulate("tiny", seed=1, n_subjects=2, snr_scale={NEW: 0.0})
    model = tiny_fit(shorter(300), both_tiny(silent), decoder="embedding")
    test = averaged(NEW, silent)
    assert abs(r(model.transform(test), test)) <= 0.1
    truth = model.tokens(tiny_features(), test.image_ids)
    top = full_gallery(similarity(model.tokens(model.decode(test)), truth), (1,), 200)[0]
    assert top.value in top.chance_interval


def test_voxels_without_signal_have_little_of_the_map():
    """Half of the new subject's voxels are silent, and 30 % of the noise is common to all."""
    signal = (np.random.default_rng(0).random(210) < 0.5).astype(float)
    dataset = simulate("tiny", seed=1, n_subjects=2, snr_scale={NEW: signal}, shared_noise=0.3)
    model = tiny_fit(shorter(300), both_tiny(dataset))
    assert roc_auc_score(signal, model.transfer().new) >= 0.7
    assert roc_auc_score(signal, model.transfer(budget(NEW, dataset), "pattern").new) >= 0.8
