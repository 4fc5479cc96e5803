"""NeuroFlow fitted to simulated subjects: there and back, several subjects, processes, and that it learns."""

import functools
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brainmodels.errors import AlignmentError, BrainDataError
from brainmodels.metrics.encoding import voxel_r
from brainmodels.metrics.retrieval import image_given_brain, similarity
from brainmodels.nn.flow import PATHS, flow_matching_loss
from brainmodels.systems.neuroflow import XFM, FlowSize, NeuroFlow
from tests.brainmodels.fitted import (
    NEUROFLOW,
    features,
    fitted,
    learned,
    learned_from,
    pairing_z,
    pairs,
    saved,
    small,
    tiny_features,
    tiny_study,
    with_values,
)

ROOT = Path(__file__).parents[2]
TRAINED = {
    "stage1": replace(NEUROFLOW.stage1, steps=60, lr=5e-3),
    "stage2": replace(NEUROFLOW.stage2, steps=80, lr=5e-3, ema_decay=0.9),
    "flow": FlowSize(width=16, depth=2, heads=2, path="linear"),
    "steps": 20,
}


def copied(model, folder):
    """A model of its own with the same numbers."""
    return NeuroFlow.load(model.save(folder))


def bits(model):
    return {name: value.clone() for part in (model.vae_, model.flow_) for name, value in part.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class TestBothWays:
    @pytest.mark.parametrize("path", [pytest.param(x, marks=[pytest.mark.slow] * (x != "linear")) for x in PATHS])
    def test_trained_comes_back(self, path):
        changes = TRAINED | {"flow": replace(TRAINED["flow"], path=path), "mode": "sample"}
        model = small("neuroflow", **changes).fit(features(), pairs(), alignment="off")
        test = pairs("test")
        starts = {"features": features(), "image_ids": test.image_ids}, {"responses": test}
        for start in starts:
            trip = model.round_trip(**start)
            assert (trip.forward - trip.start).norm() > 0.3 * trip.start.norm()
            assert (trip.solver, trip.steps, trip.function_evaluations) == ("heun", 20, 80)
            assert trip.relative_error < 0.01
            assert trip.relative_error < model.round_trip(**start, solver="euler").relative_error <= 0.2

    def test_a_known_flow_is_followed_in_its_direction(self, tmp_path):
        """A constant velocity, which no reversal mistakes for itself, with the units of either side put on by hand."""
        model = copied(fitted("neuroflow"), tmp_path / "model")
        velocity = torch.linspace(-1, 2, 6)
        with torch.no_grad():
            for parameter in model.flow_.net.out.parameters():
                parameter.zero_()
            model.flow_.net.out.bias.copy_(velocity)
        test, scale, scaler = pairs("test"), model.scales_["sim01"], model.scaler_
        tokens = (features().get(test.image_ids, "tokens") - scaler.mean_) / scaler.std_
        with torch.no_grad():
            responses = model.vae_.decode(torch.from_numpy(tokens) + velocity).numpy() * scale.std + scale.mean
            latents = model.vae_.encode(torch.from_numpy((test.array() - scale.mean) / scale.std)).posterior.mean
        np.testing.assert_allclose(model.encode(features(), image_ids=test.image_ids), responses, atol=1e-5)
        np.testing.assert_allclose(model.latents(test), latents, atol=1e-5)
        decoded = (latents - velocity).numpy() * scaler.std_ + scaler.mean_
        np.testing.assert_allclose(model.decode(test), decoded, atol=2e-5)

    def test_round_trips_through_responses_are_encode_and_decode(self):
        model, test = fitted("neuroflow"), pairs("test")
        scale, options = model.scales_["sim01"], {"solver": "midpoint", "steps": 4}
        trip = model.round_trip(features(), image_ids=test.image_ids, through="response", **options)
        encoded = model.encode(features(), image_ids=test.image_ids, **options)
        np.testing.assert_allclose(trip.forward.numpy() * scale.std + scale.mean, encoded, atol=1e-5)
        decoded = model.decode(encoded, **options)
        np.testing.assert_allclose(model.scaler_.inverse_transform(trip.back.numpy()), decoded, atol=1e-4)
        trip = model.round_trip(responses=test, through="response", **options)
        np.testing.assert_allclose(model.scaler_.inverse_transform(trip.forward.numpy()), model.decode(test, **options))
        with pytest.raises(BrainDataError, match="tokens or responses, got both"):
            model.round_trip(features(), test, image_ids=test.image_ids)

    def test_solver_and_steps_are_the_recipe_s_unless_given(self):
        """Three steps of Heun in the recipe."""
        model, test = fitted("neuroflow"), pairs("test")
        for use in (lambda **given: model.encode(features(), image_ids=test.image_ids, **given), model_decode):
            solved = use(mode="sample")
            assert np.array_equal(solved, use(solver="heun", steps=3))
            assert not np.array_equal(solved, use(steps=4))
            assert not np.array_equal(solved, use(solver="euler"))
            with pytest.raises(ValueError, match="got 0"):
                use(steps=0)

    def test_the_mean_is_one_step_of_the_straight_path(self):
        model, test = fitted("neuroflow"), pairs("test")
        for use in (lambda **given: model.encode(features(), image_ids=test.image_ids, **given), model_decode):
            np.testing.assert_allclose(use(), use(solver="euler", steps=1), atol=1e-5)
            np.testing.assert_array_equal(use(), use(mode="mean"))
            with pytest.raises(BrainDataError, match="expected no solver in mode 'mean', got solver=None, steps=2"):
                use(mode="mean", steps=2)
            with pytest.raises(BrainDataError, match="expected mode to be one of mean, sample, got 'mode'"):
                use(mode="mode")
        with pytest.raises(BrainDataError, match="expected mode 'sample' with path 'cos2_sin2'"):
            replace(NEUROFLOW, flow=replace(NEUROFLOW.flow, path="cos2_sin2"))

    def test_linear_gaussian_pair(self):
        """Means and covariances of either end, from samples of the other; and what is expected of either end."""
        generator = torch.Generator().manual_seed(0)
        mixing = torch.tensor([[0.9, 0.5, 0.0, 0.0], [-0.5, 0.9, 0.3, 0.0], [0.0, 0.0, 0.6, 0.4], [0.2, 0.0, 0.0, 1.2]])
        spread, offset = torch.tensor([1.0, 0.6, 1.3, 0.8]), torch.tensor([0.5, -0.5, 1.0, 0.0])
        first = torch.randn(4000, 4, generator=generator) * spread - 0.3
        second = first @ mixing.T + offset + 0.3 * torch.randn(4000, 4, generator=generator)
        torch.manual_seed(0)
        flow = XFM(2, 2, FlowSize(width=32, depth=2, heads=2, path="linear"))
        optimizer = torch.optim.AdamW(flow.parameters(), lr=4e-3, weight_decay=0)
        pair = first.view(-1, 2, 2), second.view(-1, 2, 2)
        steps = 250
        for step in range(steps):
            rows = torch.randint(4000, (256,), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * (1 - step / steps)
            optimizer.zero_grad()
            flow_matching_loss(flow, flow.path, pair[0][rows], pair[1][rows], generator).backward()
            optimizer.step()
        flow.eval()
        for found, truth, other in (
            (flow.encode(pair[0]), second, first),
            (flow.decode(pair[1]), first, second),
        ):
            found, scale = found.flatten(1), truth.std(0)
            assert ((found.mean(0) - truth.mean(0)).abs() / scale).max() < 0.15
            difference = (found.T.cov() - truth.T.cov()).abs() / torch.outer(scale, scale)
            assert difference.max() < 0.2
            assert ((other.T.cov() - truth.T.cov()).abs() / torch.outer(scale, scale)).max() > 0.4
        variance = torch.diag(spread**2)
        gain = variance @ mixing.T @ (mixing @ variance @ mixing.T + 0.09 * torch.eye(4)).inverse()
        expected = first @ mixing.T + offset, (second + 0.3 * mixing.sum(1) - offset) @ gain.T - 0.3
        for found, truth in zip((flow.mean_latents(pair[0]), flow.mean_tokens(pair[1])), expected, strict=True):
            assert ((found.flatten(1) - truth) / truth.std(0)).square().mean().sqrt() < 0.15


def model_decode(**given):
    return fitted("neuroflow").decode(pairs("test"), **given)


def test_retrieval_head():
    model = small("neuroflow", vae=replace(NEUROFLOW.vae, retrieval_head=True)).fit(features(), pairs())
    scale, values = model.scales_["default"], pairs("test").array()
    with torch.no_grad():
        truth = model.vae_.encode(torch.from_numpy((values - scale.mean) / scale.std))
    np.testing.assert_allclose(model.latents(values, head="retrieval"), truth.retrieval, atol=1e-5)
    np.testing.assert_allclose(model.latents(values), truth.posterior.mean, atol=1e-5)
    with pytest.raises(BrainDataError, match="expected head to be one of posterior, got 'retrieval'"):
        fitted("neuroflow").latents(values, head="retrieval")
    with pytest.raises(BrainDataError, match="head to be one of posterior, got 'raw'"):
        fitted("neuroflow").latents(values, head="raw")


def test_stage_two_leaves_stage_one_alone():
    other = small("neuroflow", stage2=replace(NEUROFLOW.stage2, steps=2)).fit(features(), pairs(), subject="sim01")
    vae, flow = fitted("neuroflow").vae_.state_dict(), fitted("neuroflow").flow_.state_dict()
    assert not moved(vae, other.vae_.state_dict())
    assert moved(flow, other.flow_.state_dict())


@functools.cache
def of_two():
    return small("neuroflow").fit(features(), {name: pairs(subject=name) for name in ("sim01", "sim02")})


class TestSubjects:
    @pytest.mark.slow
    def test_each_is_predicted_in_its_own_voxels(self):
        dataset, names = tiny_study(), ("sim01", "sim02")
        model = learned_from("neuroflow", {name: pairs(subject=name, dataset=dataset) for name in names})
        assert model.subjects_ == names and set(model.residual_) == {*names}
        for name in names:
            given = pairs("test", name, dataset, average="repeats")
            found = model.encode(tiny_features(), image_ids=given.image_ids, subject=name)
            assert pairing_z(given.array(), found) > 6
            truth = model.tokens(tiny_features(), given.image_ids)
            decoded = model.scaler_.transform(model.decode(given, subject=name))
            assert image_given_brain(similarity(decoded, truth)) > 5 / len(given)

    def test_they_are_asked_for_by_name(self):
        model, values = of_two(), pairs("test").array()
        for subject, message in (
            (None, "a subject of sim01, sim02, got None"),
            ("sim1", "of sim01, sim02, got 'sim1'; near: sim0"),
        ):
            for use in (
                lambda subject: model.encode(features(), image_ids=["sim1:000001"], subject=subject),
                lambda subject: model.decode(values, subject=subject),
                lambda subject: model.latents(values, subject=subject),
                lambda subject: model.round_trip(responses=values, subject=subject),
            ):
                with pytest.raises(BrainDataError, match=message):
                    use(subject)
        assert fitted("neuroflow").decode(values).shape == (60, 4, 6)

    def test_a_name_must_suit_weights(self):
        with pytest.raises(BrainDataError, match=r"can name weights, such as 'subj01', got 'a[.]b'"):
            small("neuroflow").fit(features(), pairs(), subject="a.b")


OWN = {f"voxels_{end}.new.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}


class TestAddedSubject:
    def added(self, folder, **options):
        """A copy of the fitted model before, its weights then, and after."""
        model = copied(fitted("neuroflow"), folder)
        before = bits(model)
        same = model.add_subject(features(), pairs(subject="sim02"), subject="new", steps=(3, 2), **options)
        assert same is model and model.subjects_ == ("sim01", "new")
        return model, before

    def test_projections_alone_move(self, tmp_path):
        test = pairs("test")
        model, before = self.added(tmp_path / "model")
        assert not moved(before, bits(model))
        assert set(bits(model)) - set(before) == OWN
        old = fitted("neuroflow")
        for noise in ({}, {"noise": "posterior", "seed": 1}, {"noise": "residual", "seed": 1, "n_trials": 2}):
            options = {"image_ids": test.image_ids, **noise}
            found = model.encode(features(), subject="sim01", **options)
            np.testing.assert_array_equal(found, old.encode(features(), **options))
        np.testing.assert_array_equal(model.decode(test, subject="sim01"), old.decode(test))
        assert model.encode(features(), image_ids=test.image_ids, subject="new").shape == (60, 30)
        assert [entry["train"] for entry in model.meta_["added"]] == ["projections"]
        assert model.meta_["stages"] == old.meta_["stages"]
        again = copied(model, tmp_path / "again")
        assert saved(again, tmp_path / "b") == saved(model, tmp_path / "a")

    def test_they_are_trained(self, tmp_path):
        one, _ = self.added(tmp_path / "one")
        more = copied(fitted("neuroflow"), tmp_path / "two")
        more.add_subject(features(), pairs(subject="sim02"), subject="new", steps=(4, 2))
        assert moved(bits(one), bits(more)) == OWN

    @pytest.mark.parametrize(("train", "flow_moves"), [("vae", False), ("vae+flow_mlp", True)])
    def test_what_else_moves(self, train, flow_moves, tmp_path):
        model, before = self.added(tmp_path / "model", train=train)
        expected = {name for name, _ in fitted("neuroflow").vae_.named_parameters()}
        expected -= {name for name in expected if ".sim01." in name}
        found = moved(before, bits(model))
        assert {name for name in found if name in expected} == expected
        assert not [name for name in found if ".sim01." in name]
        flow = found - expected
        assert flow == (
            {name for name, _ in model.flow_.named_parameters() if ".mlp." in name} if flow_moves else set()
        )
        assert bool(flow) == flow_moves
        assert len(model.meta_["added"][0]["stages"]) == 1 + flow_moves

    def test_what_fails_changes_nothing(self, tmp_path):
        model = copied(fitted("neuroflow"), tmp_path / "model")
        before = saved(model, tmp_path / "before")
        values, ids = pairs(subject="sim02").array(), pairs(subject="sim02").image_ids
        wrong = np.random.default_rng(0).permutation(ids)
        for options, error, message in (
            ({"subject": "new", "image_ids": wrong}, AlignmentError, "misaligned"),
            ({"subject": "sim01", "image_ids": ids}, BrainDataError, "beside sim01, got 'sim01' again"),
            ({"subject": "a.b", "image_ids": ids}, BrainDataError, "can name weights"),
            (
                {"subject": "new", "image_ids": ids, "train": "all"},
                BrainDataError,
                "train to be one of projections, vae",
            ),
            ({"subject": "new", "image_ids": ids, "steps": (0, 1)}, BrainDataError, "steps of at least 1"),
        ):
            with pytest.raises(error, match=message):
                model.add_subject(features(), values, **options)
            assert saved(model, tmp_path / "after") == before
            assert model.subjects_ == ("sim01",) and list(model.scales_) == ["sim01"]
        model.add_subject(features(), values, subject="new", image_ids=ids, steps=(1, 1))
        assert model.subjects_ == ("sim01", "new")

    def test_scale_of_the_first_subject_is_not_taken_over(self, tmp_path):
        dataset = with_values(lambda values: 100 * values + 7, subject="sim02")
        model = copied(fitted("neuroflow"), tmp_path / "model")
        model.add_subject(features(), pairs(subject="sim02", dataset=dataset), subject="new", steps=(1, 1))
        train = pairs(subject="sim02", dataset=dataset)
        np.testing.assert_allclose(model.scales_["new"].std, train.array().std(0), rtol=0.1)
        np.testing.assert_array_equal(model.scales_["sim01"].std, fitted("neuroflow").scales_["sim01"].std)


PROGRAM = """
import sys
import torch
from tests.brainmodels.fitted import features, pairs, saved, small
from pathlib import Path

torch.set_num_threads(1)
rank = sys.argv[2]
torch.manual_seed(int(rank))
model = small("neuroflow").fit(features(), pairs(), subject="sim01", out=Path(sys.argv[1], "run"), save_every=2)
saved(model, Path(sys.argv[1], rank))
"""


@pytest.mark.slow
def test_two_processes_fit_one_model(tmp_path):
    """Equal bits on both; the gradients of whole batches, so little else than one process finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        world = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        options = dict(env=os.environ | world, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), rank], **options))
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    first, second = (NeuroFlow.load(tmp_path / rank) for rank in ("0", "1"))
    assert saved(first, tmp_path / "a") == saved(second, tmp_path / "b")
    stages = first.meta_["stages"]
    assert [stage["contrast_batch"] for stage in stages] == [15, 15]  # eight batches of the 236 trials
    alone = fitted("neuroflow").vae_.state_dict()
    largest = max((alone[name] - value).abs().max() for name, value in first.vae_.state_dict().items())
    assert 0 < largest < 0.02


class TestLearning:
    def test_it_beats_the_mean_map_and_finds_images(self):
        model = learned("neuroflow")
        test = pairs("test", dataset=tiny_study(), average="repeats")
        measured, truth = test.array(), model.tokens(tiny_features(), test.image_ids)
        assert voxel_r(measured, model.encode(tiny_features(), image_ids=test.image_ids)).mean() > 0.35
        assert (
            np.nanmean(model.score(tiny_features(), test, image_ids=test.image_ids)) > 0.1  # the mean map has 0
        )  # the mean map has 0; single digits depend on the processor
        decoded = model.scaler_.transform(model.decode(test))
        assert image_given_brain(similarity(decoded, truth)) > 10 / len(test)
        assert image_given_brain(similarity(model.latents(test), truth)) > 10 / len(test)

    @pytest.mark.slow
    def test_shuffled_ids_give_chance_in_both_directions(self):
        train = pairs(dataset=tiny_study())
        wrong = np.random.default_rng(0).permutation(train.image_ids)
        model = learned_from("neuroflow", train.array(), image_ids=wrong, alignment="off")
        test = pairs("test", dataset=tiny_study(), average="repeats")
        truth = model.tokens(tiny_features(), test.image_ids)
        found = model.encode(tiny_features(), image_ids=test.image_ids)
        assert abs(pairing_z(test.array(), found)) < 4
        decoded = model.scaler_.transform(model.decode(test))
        assert image_given_brain(similarity(decoded, truth)) < 5 / len(test)
