"""What the stages of braincodec are trained on: synthetic voxels, contexts and queries, stored runs, tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from brainmodels.baselines import Ridge
from brainmodels.errors import BrainDataError
from brainmodels.systems.braincodec import InContextEncoder, runs
from brainmodels.systems.braincodec.in_context import Cohort, _fitting, _VoxelTask
from brainmodels.systems.braincodec.runs import StoredRuns, encoder_rows, stored_runs
from brainmodels.systems.braincodec.synthetic import SyntheticVoxels
from brainmodels.systems.braincodec.tasks import RunDecoding, SyntheticDecoding, voxel_tokens
from brainmodels.training.batches import Batch
from brainmodels.training.voxels import ImageRows, SubjectVoxels
from tests.brainmodels.coded import (
    FEW_CODEC,
    FEW_ENCODER,
    OTHERS,
    cohort,
    features,
    few_encoder,
    gauss_voxels,
    train_pairs,
)
from tests.brainmodels.gauss import Gauss

PLAIN = replace(FEW_CODEC, noise_channel=True, evidence_channel=False)


def group():
    model = InContextEncoder(FEW_ENCODER)
    return Cohort.of(model._join(features(cohort()), train_pairs(cohort()), "", None, None, 0.2, False))


class TestSyntheticVoxels:
    def test_responses_are_linear_with_the_weights_and_noise_of_the_cohort(self):
        voxels, generator = gauss_voxels(4), torch.Generator().manual_seed(0)
        weights, scale = voxels.weights(20_000, generator)
        np.testing.assert_allclose(weights.mean(0), np.zeros(5), atol=0.04)
        np.testing.assert_allclose(np.cov(weights.T), np.diag([1, 1, 1, 1, 0.09]), atol=0.05)
        assert np.isin(scale, voxels.noise.sqrt()).all() and len(np.unique(scale)) > 3900
        state = generator.get_state()
        x, y = voxels.draw(5_000, 60, generator)
        assert len(np.unique(x, axis=0)) == 60 and np.isin(x.numpy(), voxels.bank.numpy()).all()
        generator.set_state(state)
        torch.randperm(4000, generator=generator)
        weights, scale = voxels.weights(5_000, generator)  # the same draws
        left = (y - weights[:, :-1] @ x.T - weights[:, -1:]) / scale[:, None]
        assert left.mean().abs() < 0.01 and abs(left.var() - 1) < 0.01
        assert abs(np.corrcoef(left.numpy()[:, :2].T)[0, 1]) < 0.05  # noise of two images

    def test_without_a_cohort_a_trial_has_unit_variance(self):
        """Signal and noise of a voxel have variances n^2 / (1 + n^2) and 1 / (1 + n^2), n uniform from 0.1 to 1."""
        bank = torch.from_numpy(Gauss(4, 0).images(500)).float() + 0.5
        voxels = SyntheticVoxels(bank, None, None, repeats=3.0)
        weights, scale = voxels.weights(4000, torch.Generator().manual_seed(0))
        signal = bank @ weights[:, :-1].T + weights[:, -1]  # all images
        np.testing.assert_allclose(signal.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(signal.var(0, correction=0) + 3 * scale**2, 1, atol=1e-4)
        ratio = np.sort(signal.std(0, correction=0) / scale / 3**0.5)
        np.testing.assert_allclose(ratio, np.linspace(0.1, 1, 4000), atol=0.03)

    def test_those_of_a_fit_follow_the_ridge_weights_of_its_subjects(self):
        found = group()
        voxels = found.synthetic("ridge")
        expected = [Ridge().fit(*found.subjects[name].train) for name in OTHERS]
        rows = np.concatenate([np.vstack([x.coef_, x.predict(np.zeros((1, 4), "f4"))]).T for x in expected])
        np.testing.assert_allclose(voxels.mean, rows.mean(0), atol=1e-5)
        assert len(voxels.noise) == 60 and found.repeats == 3.0
        images = {name for item in found.subjects.values() for name in item.ids[: item.num_train]}
        assert torch.equal(voxels.bank, found.bank) and found.bank.shape == (len(images), 4)
        alone = found.without("sim02")
        assert list(alone.subjects) == ["sim03"] and torch.equal(alone.bank, found.bank)
        np.testing.assert_allclose(alone.synthetic("ridge").mean, rows[24:].mean(0), atol=1e-5)
        assert len(alone.synthetic("ridge").noise) == 36 and not found.synthetic("isotropic").cohort


class Spy(nn.Module):
    """Writes down the contexts that it is given, and reads weights of 0."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, y):
        self.seen.append((x, y))
        return torch.zeros(len(y), x.shape[-1] + 1, requires_grad=True)


class TestTasks:
    def task(self, context=(8, 20), queries=6):
        """40 train and 10 validation images; embeddings are the image's number, responses 100 x voxel + image."""
        images = np.arange(50, dtype=np.float32)
        responses = 100 * np.arange(7, dtype=np.float32)[:, None] + images
        item = SubjectVoxels(images.astype(str), 40, responses, np.stack([images, images], 1))
        return _VoxelTask(Spy(), {"s": item}, context, queries), item

    @pytest.mark.parametrize("training", [True, False])
    def test_contexts_are_train_images_and_validation_queries_the_others(self, training):
        task, item = self.task()
        task.train(training)
        rows, counts, losses = np.array([5, 0]), set(), []
        batch = Batch("s", rows, torch.from_numpy(item.responses[rows]), torch.empty(2, 0, 0))
        for seed in range(40):
            losses.append(float(task(batch, torch.Generator().manual_seed(seed))["loss"].detach()))
            x, y = task.encoder.seen[-1]
            images = x[0, :, 0].numpy()
            np.testing.assert_array_equal(y, 100 * rows[:, None] + images)
            assert len(set(images)) == len(images) and images.max() < 40
            counts.add(len(images))
        assert counts == set(range(8, 21))
        if training:
            assert len(set(losses)) > 30  # other queries each time
        else:  # of weights 0, the mean square of the responses to images 40 to 49
            expected = np.square(item.responses[rows][:, 40:]).mean()
            np.testing.assert_allclose(losses, expected, rtol=1e-6)

    def test_contexts_that_do_not_fit_are_shortened_with_a_warning_or_refused(self, caplog):
        assert _fitting((8, 20), 6, 40, "s") == ((8, 20), 6) and not caplog.text
        assert _fitting((8, 50), 6, 40, "s") == ((8, 34), 6)
        assert "40 train images of s allow 34 context images and 6 queries at most, not 50 and 6" in caplog.text
        assert _fitting((8, 20), 90, 10, "s") == ((8, 9), 1)
        with pytest.raises(BrainDataError, match="at least 10 train images of s for a context of 8 and queries, got 9"):
            _fitting((8, 20), 6, 9, "s")


class Tokens(nn.Module):
    """Writes down the tokens that it is given, and decodes embeddings of 1."""

    def __init__(self, width):
        super().__init__()
        self.width, self.seen = width, []

    def forward(self, tokens):
        self.seen.append(tokens.numpy())
        return torch.ones(len(tokens), self.width, requires_grad=True)


def synthetic_tokens(recipe, world, voxels=3000):
    """Tokens (B, V, E + 3) of a batch of synthetic voxels, and the embeddings of its images (B, E)."""
    (w, b, sigma), bank = world.voxels(voxels), torch.from_numpy(world.images(200)).float()
    stored = StoredRuns(np.column_stack([w.T, b + 0.5, np.log(sigma)])[None].astype("f2"), np.zeros((1, 1), bool))
    task = SyntheticDecoding(Tokens(world.width), recipe, {"a": stored}, bank, (400, 400))
    rows = np.arange(0, 200, 4)
    task(Batch("bank", rows, torch.empty(50, 0), torch.empty(50, 0, 0)), torch.Generator().manual_seed(0))
    return task.decoder.seen[0], bank[rows].numpy()


class TestSyntheticDecoding:
    def test_voxels_vary_as_the_stored_encoders_do(self):
        tokens, _ = synthetic_tokens(PLAIN, Gauss(4))
        drawn = tokens[..., :5].reshape(-1, 5)
        np.testing.assert_allclose(drawn.mean(0), [0, 0, 0, 0, 0.5], atol=0.05)
        np.testing.assert_allclose(np.cov(drawn.T), np.diag([1, 1, 1, 1, 0.09]), atol=0.08)
        sigma = np.exp(tokens[..., -1])
        assert 0.29 < sigma.min() < 0.31 and 1.49 < sigma.max() < 1.51 and abs(sigma.mean() - 0.9) < 0.02

    def test_responses_contain_the_intercept_and_the_noise_of_the_voxel(self):
        """Regression through the origin on the intercepts of the tokens: slope 1."""
        tokens, x = synthetic_tokens(PLAIN, Gauss(4))
        left = tokens[..., 5] - np.einsum("bve,be->bv", tokens[..., :4], x)
        b = tokens[..., 4]
        assert (left * b).sum() / (b * b).sum() == pytest.approx(1, abs=0.03)
        scaled = (left - b) / np.exp(tokens[..., -1])
        assert abs(scaled.mean()) < 0.02 and scaled.std() == pytest.approx(1, abs=0.02)
        low = tokens[..., -1] < np.log(0.6)
        assert scaled[low].std() == pytest.approx(scaled[~low].std(), rel=0.03)

    def test_those_of_the_released_code_contain_neither(self):
        tokens, x = synthetic_tokens(replace(PLAIN, legacy_sim=True), Gauss(4))
        left = tokens[..., 5] - np.einsum("bve,be->bv", tokens[..., :4], x)
        b = tokens[..., 4]
        assert (left * b).sum() / (b * b).sum() == pytest.approx(0, abs=0.003)
        assert left.std() == pytest.approx(0.1, rel=0.02) and b.mean() > 0.4

    def test_a_batch_has_the_voxels_of_one_run(self):
        """Runs of two subjects, told apart by the weights; all of them come up."""
        tokens = [np.full((9, 6), value) + 1e-2 * np.eye(9, 6) for value in range(4)]
        stored = {
            "a": StoredRuns(np.array(tokens[:3], "f2"), np.zeros((3, 5), bool)),
            "b": StoredRuns(np.array(tokens[3:], "f2"), np.zeros((1, 5), bool)),
        }
        task = SyntheticDecoding(Tokens(4), PLAIN, stored, torch.eye(4), (3, 7))
        found, counts = set(), set()
        for seed in range(60):
            batch = Batch("bank", np.array([0, 3]), torch.empty(2, 0), torch.empty(2, 0, 0))
            task(batch, torch.Generator().manual_seed(seed))
            weights = task.decoder.seen[-1][..., :4]
            assert np.ptp(weights) < 0.2 and weights.std(1).min() > 0
            found.add(round(float(weights.mean())))
            counts.add(weights.shape[1])
        assert found == {0, 1, 2, 3} and counts == set(range(3, 8))


def planted_runs():
    """Responses 1000 x voxel + image, weights of the number of the run, an intercept of the number of the voxel.

    30 train images, of which run r has seen those that r divides, and 6 validation images.
    """
    images, voxels = np.arange(36), np.arange(8)
    item = SubjectVoxels(
        images.astype(str), 30, (1000.0 * voxels[:, None] + images).astype("f4"), np.eye(36, 4, dtype="f4") + 1
    )
    tokens = np.stack([np.column_stack([np.full((8, 4), run), voxels, np.zeros(8)]) for run in (2, 3, 5)])
    seen = np.stack([(images % run == 0) & (images < 30) for run in (2, 3, 5)])
    return item, StoredRuns(tokens.astype("f2"), seen)


class TestRunDecoding:
    @pytest.mark.parametrize("part", ["train", "val"])
    def test_an_image_of_a_context_is_never_a_target_of_its_run(self, part):
        """Of the validation part all images are, which no context has."""
        item, stored = planted_runs()
        task = RunDecoding(Tokens(4), PLAIN, {"s": stored}, (2, 5)).train(part == "train")
        found = set()
        for seed in range(80):
            generator = torch.Generator().manual_seed(seed)
            size = 7 if part == "train" else 6
            rows = np.random.default_rng(seed).permutation(30 if part == "train" else 6)[:size]
            task(ImageRows({"s": item}).batch(part, "s", rows), generator)
            tokens = task.decoder.seen[-1]
            voxels, responses = tokens[..., 4], tokens[..., 5]
            images = responses - 1000 * voxels  # so that encoders and responses are of the same voxels
            assert (images == images[:, :1]).all() and all(len({*row}) == len(row) for row in voxels)
            run, shown = int(tokens[0, 0, 0]), images[:, 0].astype(int)
            assert (tokens[..., :4] == run).all()
            expected = [row for row in rows if row % run] if part == "train" else [30 + row for row in rows]
            assert shown.tolist() == expected
            found |= {(run, image) for image in shown}
        given = range(30) if part == "train" else range(30, 36)
        assert found == {(run, image) for run in (2, 3, 5) for image in given if part == "val" or image % run}

    def test_images_of_all_contexts_are_refused(self):
        item, stored = planted_runs()
        stored = StoredRuns(stored.tokens, np.ones_like(stored.seen))
        task = RunDecoding(Tokens(4), PLAIN, {"s": stored}, (2, 5))
        batch = ImageRows({"s": item}).batch("train", "s", np.arange(4))
        with pytest.raises(BrainDataError, match="a stored run without one of 4 images, got none; ask for smaller"):
            task(batch, torch.Generator())


class TestStoredRuns:
    def test_runs_are_read_from_their_contexts(self):
        """A size that leaves fewer than a quarter of the images is lowered, and then counts once."""
        subjects = group().subjects
        networks = dict.fromkeys(OTHERS, few_encoder().encoder_)
        found = stored_runs(networks, subjects, (8, 16, 500, 900), draws=2, seed=3)
        for name, item in subjects.items():
            stored, most = found[name], item.num_train - item.num_train // 4
            assert stored.tokens.dtype == np.float16 and stored.tokens.shape == (6, len(item.responses), 6)
            assert sorted(stored.seen.sum(1)) == [8, 8, 16, 16, most, most]
            assert not stored.seen[:, item.num_train :].any()  # validation images
            assert len(np.unique(stored.seen, axis=0)) == 6
            for tokens, seen in zip(stored.tokens, stored.seen, strict=True):
                x, y = torch.from_numpy(item.embeddings[seen]), torch.from_numpy(item.responses[:, seen])
                with torch.no_grad():
                    weights = few_encoder().encoder_(x[None], y)
                np.testing.assert_allclose(tokens[:, :5], weights, rtol=1e-3, atol=1e-3)
            again = stored_runs(networks, subjects, (8, 16, 500, 900), draws=2, seed=3)[name]
            np.testing.assert_array_equal(again.tokens, stored.tokens)
        other = stored_runs(networks, subjects, (8,), draws=1, seed=4)["sim02"]
        assert (other.seen[0] != found["sim02"].seen[0]).any()

    def test_a_file_holds_the_same_numbers_as_memory(self, monkeypatch):
        subjects, networks = group().subjects, dict.fromkeys(OTHERS, few_encoder().encoder_)
        held = stored_runs(networks, subjects, (8, 16), draws=2, seed=0)
        monkeypatch.setattr(runs, "IN_MEMORY", 0)
        filed = stored_runs(networks, subjects, (8, 16), draws=2, seed=0)
        for name in OTHERS:
            assert isinstance(filed[name].tokens, np.memmap) and not isinstance(held[name].tokens, np.memmap)
            np.testing.assert_array_equal(filed[name].tokens, held[name].tokens)
            np.testing.assert_array_equal(filed[name].seen, held[name].seen)
        folder = filed["sim02"].folder.name
        del filed
        assert not runs.Path(folder).exists()

    def test_noise_is_that_of_images_outside_the_context(self):
        """In log standard deviations; of a voxel without noise it is finite."""
        model = few_encoder().voxel_model("sim02")
        rows = encoder_rows(model)
        np.testing.assert_allclose(np.exp(2 * rows[:, -1]), model.residual_var_, rtol=1e-5)
        np.testing.assert_array_equal(rows[:, :4], model.coef_.T)
        np.testing.assert_array_equal(rows[:, 4], model.intercept_)
        silent = encoder_rows(replace(model, residual_var_=np.zeros(24)))
        np.testing.assert_allclose(np.exp(silent[:, -1]), 1e-3, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_tokens_by_their_definition(shared):
    rng = np.random.default_rng(0)
    encoders = rng.normal(size=(1 if shared else 3, 5, 6)).astype("f4")
    responses = rng.normal(size=(3, 5)).astype("f4")
    given = torch.from_numpy(encoders[0] if shared else encoders), torch.from_numpy(responses)
    for noise, evidence in ((False, False), (True, False), (True, True)):
        found = voxel_tokens(*given, replace(FEW_CODEC, noise_channel=noise, evidence_channel=evidence))
        for image in range(3):
            for voxel in range(5):
                *w, b, log_noise = encoders[0 if shared else image, voxel]
                response = responses[image, voxel]
                expected = [*w, b, response] + [log_noise] * noise
                expected += [x * (response - b) / np.exp(log_noise) ** 2 for x in w] * evidence
                np.testing.assert_allclose(found[image, voxel], expected, rtol=1e-5)
