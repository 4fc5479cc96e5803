"""The training loop on tasks whose optimum is known: what it reads, what it trains, where it ends."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from brainmodels.errors import BrainDataError
from brainmodels.records import to_json
from brainmodels.systems.synbrain import tiny
from brainmodels.training import train_stage
from brainmodels.training.loop import Batch
from brainmodels.training.recipe import TrainingStage
from tests.brainmodels.staged import STAGE, TWO, Draws, Linear, Trials, same, trained, weights
from veca.train.engine import Averages
from veca.train.schedules import lr_factor, plateau_factor


class TestOrder:
    def test_an_epoch_is_every_trial_once_and_a_batch_one_subject(self):
        source = Trials(TWO)
        result, _ = trained(STAGE, source)
        per_epoch = 5 + 3  # ceil(37 / 8) + ceil(21 / 8)
        assert (result.steps, result.epochs, len(source.seen)) == (4 * per_epoch, 4, 4 * per_epoch)
        orders = []
        for start in range(0, len(source.seen), per_epoch):
            epoch = source.seen[start : start + per_epoch]
            for subject, count in TWO.items():
                batches = [rows for name, rows in epoch if name == subject]
                assert sorted(np.concatenate(batches)) == list(range(count))
                sizes = [len(rows) for rows in batches]
                assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 8
            orders.append([(name, *rows) for name, rows in epoch])
        assert orders[0] != orders[1] and [o[0] for o in orders[0]] != sorted(o[0] for o in orders[0])
        assert result.contrast_batch == 8

    def test_the_order_of_a_dictionary_does_not_matter(self):
        source = Trials(TWO)
        _, first = trained(STAGE, source)
        source.parts["train"] = dict(reversed(source.parts["train"].items()))
        assert same(first, trained(STAGE, source)[1])

    def test_one_seed_one_result(self):
        _, first = trained(STAGE)
        torch.rand(3)  # the global generator has no say
        assert same(first, trained(STAGE)[1])

    def test_another_seed_another_order(self):
        sources = [Trials(TWO), Trials(TWO)]
        found = [trained(replace(STAGE, seed=3 + i), source, Linear(TWO))[1] for i, source in enumerate(sources)]
        orders = [np.concatenate([rows for name, rows in x.seen[:8] if name == "a"]).tolist() for x in sources]
        assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
        assert not torch.equal(found[0]["map.weight"], found[1]["map.weight"])


class Elsewhere(Trials):
    """Its arrays begin 16 bytes after a multiple of 64, as many of numpy's do."""

    def batch(self, part, subject, rows):
        return Batch(subject, rows, *map(elsewhere, super().batch(part, subject, rows)[2:]))


def elsewhere(tensor):
    room = torch.empty(tensor.numel() + 16, dtype=tensor.dtype)
    start = (-room.data_ptr() % 64 + 16) // tensor.element_size()
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


class Begins(Linear):
    begins = ()

    def forward(self, batch, generator):
        self.begins += tuple(tensor.data_ptr() % 64 for tensor in batch[2:])
        return super().forward(batch, generator)


def test_what_a_task_gets_begins_at_a_multiple_of_64_bytes():
    """MKL's products depend on it in their last bits, and a resumed training must end with the same ones."""
    source, task = Elsewhere(TWO, {"a": 5}), Begins(TWO)
    assert source.batch("train", "a", np.arange(3)).tokens.data_ptr() % 64 == 16
    trained(STAGE, source, task)
    assert len(task.begins) > 16 and set(task.begins) == {0}


def test_noise_is_new_in_every_step_and_the_same_in_every_validation():
    tasks = [Draws(), Draws(), Draws()]
    for task, seed in zip(tasks, (3, 3, 4), strict=True):
        train_stage("stage", task, Trials({"a": 24}, {"a": 17}), replace(STAGE, seed=seed))
    drawn = [task.drawn[True] for task in tasks]
    assert len(drawn[0]) == len(set(drawn[0])) == 12 and drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
    validation = tasks[0].drawn[False]
    assert len(validation) == 4 * 3 and validation == 4 * validation[:3] and len(set(validation)) == 3


class TestOptimum:
    def test_least_squares(self):
        source, task = Trials({"a": 60}, noise=0.5), Linear({"a": 0})
        train_stage("fit", task, source, TrainingStage(steps=1_000, lr=0.02, batch_size=60))
        responses, tokens = source.parts["train"]["a"]
        design = np.column_stack([tokens.reshape(60, -1), np.ones(60)]).astype(float)
        best = np.linalg.lstsq(design, responses.astype(float), rcond=None)[0]
        found = torch.cat([task.map.weight.T, task.bias["a"][None]]).detach().numpy()
        np.testing.assert_allclose(found, best, atol=1e-4)

    def test_averages_by_a_loop(self):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        averages, expected = Averages({"p": parameter}, 0.6), parameter.detach().clone()
        for n in range(1, 12):
            parameter.data += n
            averages.update(n)
            decay = min(0.6, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(averages.values["p"], expected, rtol=1e-14, atol=0)
        now = parameter.detach().clone()
        with averages.applied():
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-14, atol=0)
        assert torch.equal(parameter.detach(), now)

    @pytest.mark.parametrize("groups", [(), (("bias", 0.5, 0.1),)])
    def test_adamw_with_clipping_and_averages_by_a_loop(self, groups):
        """The whole of a step written out: decay, moments, the norm over all parameters, the average that is kept."""
        stage = replace(STAGE, weight_decay=0.3, betas=(0.8, 0.9), clip_norm=0.7, ema_decay=0.7, groups=groups)
        source, task = Trials(TWO), Linear(TWO)
        values = {name: p.detach().clone().requires_grad_() for name, p in task.named_parameters()}
        trained(stage, source, task)
        moments = {name: [0.0, 0.0, 0] for name in values}
        averages = {name: p.detach().clone() for name, p in values.items()}
        for n, (subject, rows) in enumerate(source.seen, 1):
            responses, tokens = (torch.from_numpy(x[rows]).double() for x in source.parts["train"][subject])
            used = ["map.weight", f"bias.{subject}"]
            predicted = tokens.flatten(1) @ values[used[0]].T + values[used[1]]
            loss = (predicted - responses).square().sum(1).mean()
            gradients = torch.autograd.grad(loss, [values[name] for name in used])
            norm = sum(g.square().sum() for g in gradients).sqrt()
            for name, g in zip(used, gradients, strict=True):
                g, state, p = g * min(1.0, 0.7 / float(norm)), moments[name], values[name].detach()
                state[2] += 1
                state[0], state[1] = 0.8 * state[0] + 0.2 * g, 0.9 * state[1] + 0.1 * g * g
                scale, decay = groups[0][1:] if groups and name.startswith("bias") else (1.0, 0.3)
                step = (state[0] / (1 - 0.8 ** state[2])) / ((state[1] / (1 - 0.9 ** state[2])).sqrt() + 1e-8)
                values[name] = (p * (1 - 0.02 * scale * decay) - 0.02 * scale * step).requires_grad_()
            decay = min(0.7, (1 + n) / (10 + n))
            averages = {name: decay * averages[name] + (1 - decay) * p.detach() for name, p in values.items()}
        for name, value in averages.items():
            torch.testing.assert_close(task.state_dict()[name], value, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("micro", [1, 3, 5])
    def test_micro_batches_are_the_whole_batch_for_a_mean(self, micro):
        stage = replace(STAGE, clip_norm=1.0)
        whole = trained(stage, task=Linear(TWO))[1]
        result, parts = trained(replace(stage, micro_batch=micro), task=Linear(TWO))
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12)
        assert result.contrast_batch == {1: 1, 3: 3, 5: 4}[micro]


class TestFrozen:
    def test_only_what_is_named_moves_and_flags_return(self):
        task = Linear(TWO)
        task.bias["a"].requires_grad_(False)
        before = weights(task)
        _, after = trained(STAGE, task=task, trainable=["bias.b", "bias.a"])
        assert torch.equal(before["map.weight"], after["map.weight"])
        assert not torch.equal(before["bias.a"], after["bias.a"])
        assert [p.requires_grad for _, p in sorted(task.named_parameters())] == [False, True, True]
        assert all(p.grad is None for p in task.parameters()) and not any(m.training for m in task.modules())

    def test_flags_return_after_an_error(self):
        source, task = Trials(TWO), Linear(TWO)
        source.fails_after = 3
        with pytest.raises(OSError, match="disk"):
            train_stage("stage", task, source, STAGE, trainable=["bias.a", "bias.b"])
        assert all(p.requires_grad for p in task.parameters()) and not task.training

    def test_modules_that_are_frozen_are_in_eval_mode(self):
        class Two(Linear):
            def __init__(self):
                super().__init__(TWO)
                self.frozen = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
                self.trained = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

            def forward(self, batch, generator):
                assert not any(m.training for m in self.frozen.modules())
                assert all(m.training == self.training for m in self.trained.modules())
                assert not self.map.training
                terms = super().forward(batch, generator)
                return terms | {"loss": terms["loss"] + self.trained[0].weight.square().sum()}

        task = Two()
        trained(
            replace(STAGE, patience=3), Trials(TWO, {"a": 9}), task, trainable=["bias.a", "bias.b", "trained.0.weight"]
        )
        assert True in task.modes and False in task.modes

    def test_mistakes(self):
        with pytest.raises(BrainDataError, match=r"got 'bias\.c'; near: bias\.[ab]"):
            trained(STAGE, trainable=["bias.c"])
        with pytest.raises(BrainDataError, match="parameters to train, got none"):
            trained(STAGE, trainable=[])
        with pytest.raises(BrainDataError, match="train trials for stage, got none"):
            trained(STAGE, Trials({"a": 0}))
        with pytest.raises(BrainDataError, match="precision to be one of auto, fp32, bf16, fp16, got 'fp8'"):
            trained(STAGE, precision="fp8")
        with pytest.raises(BrainDataError, match=r"names begin with 'mapper', got map"):
            trained(replace(STAGE, groups=(("mapper", 1.0, 0.0),)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either steps or epochs, got steps=None and epochs=None"),
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"steps": 1, "micro_batch": 0}, "micro_batch of at least 1, got 0"),
        ({"steps": 1, "patience": 0}, "patience of at least 1, got 0"),
        ({"steps": 1, "ema_decay": 1.0}, r"ema_decay from 0 to below 1, got 1\.0"),
        ({"steps": 1, "seed": -1}, "seed of at least 0, got -1"),
        ({"steps": 1, "warmup": -1}, "warmup of at least 0, got -1"),
        ({"steps": 1, "schedule": "linear"}, "schedule to be one of constant, cosine, one_cycle, plateau, got"),
        ({"steps": 1, "lr": 0.1, "least_lr": 0.2}, r"least_lr from 0 to lr, 0\.1, got 0\.2"),
        ({"steps": 1, "schedule": "one_cycle", "warmup": 3}, "no warmup with schedule='one_cycle', .* got 3"),
    ],
)
def test_stages_that_cannot_be(given, message):
    with pytest.raises(BrainDataError, match=message):
        TrainingStage(**given)


class TestSchedule:
    def test_every_step_has_the_rate_of_its_schedule(self):
        """A linear loss under a fixed sign of the gradient: AdamW moves x by the learning rate in each step."""

        class Steady(nn.Module):
            def __init__(self):
                super().__init__()
                self.x = nn.Parameter(torch.zeros((), dtype=torch.float64))
                self.seen = []

            def forward(self, batch, generator):
                self.seen.append(self.x.item())
                return {"loss": self.x + 0 * batch.responses.sum()}

        for schedule, warmup in (("constant", 0), ("constant", 4), ("cosine", 3), ("one_cycle", 0)):
            stage = TrainingStage(steps=12, lr=0.5, batch_size=8, schedule=schedule, warmup=warmup)
            task = Steady()
            trained(stage, Trials({"a": 24}), task)
            moved = -np.diff([*task.seen, task.x.item()])
            expected = [0.5 * lr_factor(schedule, step, 12, warmup) for step in range(12)]
            np.testing.assert_allclose(moved, expected, rtol=1e-6)

    def test_a_plateau_lowers_the_rate_as_torch_does(self):
        losses = [5, 4, 4.2, 4.1, 4.3, 4.4, 4.5, 4.6, 4.7, 4, 4, 3.9999, 3.9, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
        optimizer = torch.optim.SGD([torch.zeros(())], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=5, cooldown=2, factor=0.1)
        for count, loss in enumerate(losses):
            assert plateau_factor(losses[:count]) == pytest.approx(optimizer.param_groups[0]["lr"])
            scheduler.step(loss)
        assert plateau_factor(losses) < 0.02

    def test_a_stage_with_a_plateau_resumes_and_has_a_least_rate(self, tmp_path):
        stage = TrainingStage(epochs=30, lr=0.5, batch_size=8, schedule="plateau", least_lr=0.02)
        source = Trials({"a": 24}, {"a": 5})
        whole, after = trained(stage, source, Drift())
        moved = np.diff([row["val_loss"] for row in whole.log])
        assert np.abs(moved[-3:]).max() < 0.2 * np.abs(moved[1:4]).max()  # the rate has fallen, as validation got worse
        trained(stage, source, Drift(), folder=tmp_path, stop_at=40)
        again, resumed = trained(stage, source, Drift(), folder=tmp_path)
        assert same(after, resumed) and again.log == whole.log

    def test_json_has_new_settings_only_where_they_are_used(self):
        """Runs and models that were saved before they existed stay equal."""
        recipe = tiny()
        content = recipe.to_json()
        later = {"schedule": "constant", "warmup": 0, "least_lr": 0.0, "groups": [], "validate_first": False}
        stages = [name for name, value in vars(recipe).items() if isinstance(value, TrainingStage)]
        assert "stage1" in stages and all(later.keys().isdisjoint(content[name]) for name in stages)
        assert content | {name: content[name] | later for name in stages} == to_json(recipe)
        changed = replace(recipe, stage1=replace(recipe.stage1, schedule="cosine", warmup=5))
        assert changed.to_json()["stage1"] == content["stage1"] | {"schedule": "cosine", "warmup": 5}
        for item in (recipe, changed):
            assert type(recipe).from_json(json.loads(json.dumps(item.to_json()))) == item


class Drift(nn.Module):
    """Its loss pulls x to 10 while validation wants it at 3: a stage that overfits as planned."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.history = []

    def forward(self, batch, generator):
        goal = 10.0 if self.training else 3.0
        if not self.training:
            self.history.append(self.x.item())
        loss = (self.x - goal).square() + 0 * batch.responses.sum()
        return {"loss": loss, "mse": loss}


class TestEnds:
    @pytest.mark.parametrize("ema", [None, 0.5])
    def test_patience_restores_the_best_weights(self, ema):
        task = Drift()
        stage = TrainingStage(epochs=50, lr=0.25, batch_size=8, patience=4, ema_decay=ema)
        result, after = trained(stage, Trials({"a": 24}, {"a": 5}), task)
        losses = [row["val_loss"] for row in result.log]
        best = int(np.argmin(losses))
        assert 2 < best < 12 and len(losses) == best + 1 + 4 == result.epochs and result.ended == "patience"
        assert result.best == losses[best] == pytest.approx((after["x"].item() - 3) ** 2, rel=1e-12)
        assert after["x"].item() == pytest.approx(task.history[best], abs=0)

    def test_patience_counts_anew_after_every_improvement(self):
        class Scripted(Drift):
            script = (5.0, 6.0, 4.0, 5.0, 3.0, 4.0, 3.0, 1.0)

            def forward(self, batch, generator):
                terms = super().forward(batch, generator)
                return terms if self.training else {"loss": torch.tensor(self.script[len(self.history) - 1])}

        task = Scripted()
        result, after = trained(TrainingStage(epochs=8, lr=0.25, patience=2), Trials({"a": 24}, {"a": 5}), task)
        assert (result.epochs, result.best, result.ended) == (7, 3.0, "patience")
        assert after["x"].item() == task.history[4]

    def test_weights_at_the_start_can_be_the_best(self):
        for first, best in ((True, 9.0), (False, None)):
            stage = TrainingStage(epochs=4, lr=90.0, batch_size=8, patience=4, validate_first=first)
            result, after = trained(stage, Trials({"a": 24}, {"a": 5}), Drift())
            assert (result.log[0]["step"] == 0) is first and len(result.log) == 4 + first
            assert (after["x"].item() == 0) is first and (result.best == best) is first

    def test_patience_without_validation_does_not_apply(self):
        result, _ = trained(TrainingStage(epochs=6, lr=0.25, patience=1), Trials({"a": 24}), Drift())
        assert (result.ended, result.best, result.epochs) == ("length", None, 6)

    def test_validation_is_a_mean_over_trials(self):
        source = Trials(TWO, {"a": 11, "b": 4})
        task = Linear(TWO, disturb=0.5)
        result, _ = trained(replace(STAGE, epochs=1), source, task)
        errors = []
        for subject, (responses, tokens) in source.parts["val"].items():
            predicted = task.map(torch.from_numpy(tokens).flatten(1).double()) + task.bias[subject]
            errors += (predicted - torch.from_numpy(responses)).square().sum(1).tolist()
        assert result.best == result.log[0]["val_loss"] == pytest.approx(np.mean(errors), rel=1e-12)

    def test_a_stage_shorter_than_an_epoch_is_validated_once(self):
        result, _ = trained(replace(STAGE, epochs=None, steps=3, patience=2), Trials(TWO, {"a": 11}))
        assert len(result.log) == 1 and result.log[0]["epoch"] == 3 / 8 and result.best == result.log[0]["val_loss"]
        assert (result.epochs, result.steps, result.ended) == (0, 3, "length")

    def test_stop_mse_keeps_the_weights_of_its_epoch(self):
        """The released code of SynBrain leaves the loop before it saves, and so loses them."""
        stage = TrainingStage(epochs=50, lr=0.25, batch_size=8, stop_mse=30.0)
        result, after = trained(stage, Trials({"a": 24}), Drift())
        errors = [row["mse"] for row in result.log]
        assert result.ended == "stop_mse" and errors[-1] < 30 and min(errors[:-1]) >= 30
        again = trained(replace(stage, stop_mse=None, epochs=result.epochs), Trials({"a": 24}), Drift())[1]
        assert torch.equal(again["x"], after["x"])

    def test_stop_mse_comes_before_patience(self):
        stage = TrainingStage(epochs=50, lr=0.25, batch_size=8, stop_mse=30.0, patience=40)
        result, after = trained(stage, Trials({"a": 24}, {"a": 5}), Drift())
        losses = [row["val_loss"] for row in result.log]
        assert result.ended == "stop_mse" and result.best == losses[-1] > min(losses)
        assert (after["x"].item() - 3) ** 2 == pytest.approx(losses[-1], rel=1e-12)

    def test_stop_share_is_of_the_variance_and_only_without_validation(self):
        stage = TrainingStage(epochs=20, lr=0.25, batch_size=8, stop_share=0.3)
        short = trained(stage, Trials({"a": 24}), Drift(), total_variance=100.0)[0]
        assert short.ended == "stop_mse" and short.log[-1]["mse"] < 30 <= short.log[-2]["mse"]
        validated = trained(stage, Trials({"a": 24}, {"a": 4}), Drift(), total_variance=100.0)[0]
        assert (validated.ended, validated.epochs) == ("length", 20)
        with pytest.raises(BrainDataError, match=r"total_variance, to which stop_share=0\.3 refers, got None"):
            trained(stage, Trials({"a": 24}), Drift())

    def test_the_log_holds_means_over_trials(self):
        source, task = Trials(TWO), Linear(TWO)
        result, _ = trained(replace(STAGE, epochs=1, lr=1e-12), source, Linear(TWO))
        errors = []
        for subject, (responses, tokens) in source.parts["train"].items():
            predicted = task.map(torch.from_numpy(tokens).flatten(1).double()) + task.bias[subject]
            errors += (predicted - torch.from_numpy(responses)).square().sum(1).tolist()
        assert result.log[0]["mse"] == pytest.approx(np.mean(errors), rel=1e-6)
