"""A stage can be stopped anywhere and ends with the same bits; what is not finite is named."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brainmodels.errors import BrainDataError
from brainmodels.training import train_stage
from tests.brainmodels.staged import STAGE, TWO, Linear, Trials, same, trained, weights
from veca.train.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint

FULL = replace(STAGE, weight_decay=0.1, clip_norm=2.0, ema_decay=0.8, patience=2, lr=0.15, epochs=9)


class TestResume:
    def run(self, folder, stage=FULL, source=None, dtype=torch.float64, **options):
        source, task = source or Trials(TWO, {"a": 9, "b": 5}), Linear(TWO, 0.3, dtype)
        result = train_stage("stage", task, source, stage, folder=folder, **options)
        return result, weights(task)

    def test_the_stage_of_these_tests_ends_by_patience(self):
        """So that what follows covers the counter and the best weights."""
        result, _ = self.run(None)
        assert result.ended == "patience" and 3 < result.epochs < 9

    @pytest.mark.parametrize("stops", [(1,), (8,), (13, 14, 30), (24, 41)])
    def test_stopped(self, tmp_path, stops):
        whole, expected = self.run(None)
        for stop in stops:
            result, _ = self.run(tmp_path, stop_at=stop)
            assert (result.ended, result.steps) == ("stop_at", stop)
        result, found = self.run(tmp_path)
        assert same(found, expected)
        assert result.log == whole.log and result.best == whole.best and result.ended == whole.ended
        rows = [json.loads(line) for line in (tmp_path / "stage/log.jsonl").read_text().splitlines()]
        assert tuple(rows) == whole.log

    @pytest.mark.parametrize("fails_after", [6, 19, 37])
    def test_killed(self, tmp_path, fails_after):
        whole, expected = self.run(None)
        source = Trials(TWO, {"a": 9, "b": 5})
        source.fails_after = fails_after
        with pytest.raises(OSError):
            self.run(tmp_path, source=source, save_every=5)
        result, found = self.run(tmp_path, save_every=5)
        assert same(found, expected) and result.log == whole.log
        rows = [json.loads(line) for line in (tmp_path / "stage/log.jsonl").read_text().splitlines()]
        assert tuple(rows) == whole.log

    @pytest.mark.parametrize(("name", "read"), [("SIGTERM", 6), ("SIGINT", 25), ("SIGUSR1", 41)])
    def test_ended_by_a_signal(self, tmp_path, name, read):
        """After the step, also after the last one of the stage; the last is in epoch 6 of 8 steps."""
        whole, expected = self.run(None)
        source, number = Trials(TWO, {"a": 9, "b": 5}), signal.Signals[name]
        source.signal_at, source.signal = read, number
        with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
            self.run(tmp_path, source=source, save_every=100)
        assert ended.type is KeyboardInterrupt if name == "SIGINT" else ended.value.code == 128 + number
        assert read - 1 <= load_checkpoint(latest_checkpoint(tmp_path / "stage/checkpoints")).step <= read + 1
        result, found = self.run(tmp_path)
        assert same(found, expected) and result.log == whole.log

    def test_a_damaged_checkpoint_is_left_for_the_one_before_it(self, tmp_path, caplog):
        whole, expected = self.run(None)
        self.run(tmp_path, stop_at=13, save_every=5)
        os.truncate(tmp_path / "stage/checkpoints/step-00000013/ema.safetensors", 100)
        result, found = self.run(tmp_path)
        assert same(found, expected) and result.log == whole.log
        assert "step-00000010; going on from there" in caplog.text

    def test_a_finished_stage_is_loaded(self, tmp_path):
        first, expected = self.run(tmp_path)
        source = Trials(TWO, {"a": 9, "b": 5})
        second, found = self.run(tmp_path, source=source)
        assert second == replace(first, peak_memory=second.peak_memory) and same(found, expected) and not source.seen

    def test_only_what_is_trained_is_saved(self, tmp_path):
        self.run(tmp_path, trainable=["bias.a", "bias.b"], stop_at=3)
        assert set(load_file(tmp_path / "stage/checkpoints/step-00000003/weights.safetensors")) == {"bias.a", "bias.b"}

    def test_other_settings_are_refused(self, tmp_path):
        self.run(tmp_path, stop_at=3)
        with pytest.raises(BrainDataError, match=r"settings of .*step-00000003 \(lr=0\.15, not 0\.1\); give another"):
            self.run(tmp_path, replace(FULL, lr=0.1))
        with pytest.raises(BrainDataError, match=r"\(precision='fp32', not 'bf16'\)"):
            self.run(tmp_path, precision="bf16")
        with pytest.raises(BrainDataError, match=r"train_trials=\{'a': 37, 'b': 21\}, not \{'a': 37\}"):
            self.run(tmp_path, source=Trials({"a": 37}, {"a": 9, "b": 5}))
        with pytest.raises(BrainDataError, match="trainable="):
            self.run(tmp_path, trainable=["map.weight"])

    def test_schedules_go_on_where_they_were(self, tmp_path):
        stage = replace(FULL, schedule="one_cycle")
        whole, expected = self.run(None, stage)
        self.run(tmp_path, stage, stop_at=13)
        with pytest.raises(BrainDataError, match="schedule='one_cycle', not None"):
            self.run(tmp_path)
        result, found = self.run(tmp_path, stage)
        assert same(found, expected) and result.log == whole.log

    def test_a_checkpoint_of_another_task_is_refused(self, tmp_path):
        self.run(tmp_path, stop_at=3)
        folder = tmp_path / "stage/checkpoints"
        saved = load_checkpoint(latest_checkpoint(folder))
        save_checkpoint(folder, saved._replace(weights=saved.weights | {"bias.a": torch.zeros(2)}))
        with pytest.raises(BrainDataError, match=r"step-00000003, got another: expected bias\.a of shape \(3,\)"):
            self.run(tmp_path)

    def test_fp16_with_its_factor(self, tmp_path):
        """The factor begins too high for this task: steps are skipped until it fits, and where it is is saved."""
        options = {"precision": "fp16", "dtype": torch.float32}
        whole, expected = self.run(None, **options)
        assert 0 < whole.log[0]["skipped"] < 1 and whole.log[1]["loss"] < whole.log[0]["loss"]
        self.run(tmp_path, stop_at=2, **options)
        result, found = self.run(tmp_path, **options)
        assert same(found, expected) and result.log == whole.log


class TestNotFinite:
    def broken(self, part, subject, row):
        source = Trials(TWO, {"a": 9})
        source.parts[part][subject][0][row] = np.nan
        return source

    def test_names_step_terms_trials_and_checkpoint(self, tmp_path):
        source, task = self.broken("train", "b", 17), Linear(TWO)
        with pytest.raises(FloatingPointError) as error:
            train_stage("first", task, source, STAGE, folder=tmp_path, save_every=1)
        assert all(p.grad is None and p.requires_grad for p in task.parameters()) and not task.training
        step, (subject, rows) = next((i, x) for i, x in enumerate(source.seen) if x[0] == "b" and 17 in x[1])
        text = str(error.value)
        assert f"first stopped at step {step}: loss, mse, gradient_norm not finite (loss=nan" in text
        assert f"train of b at {rows.tolist()}" in text and subject == "b"
        assert f"step-{step:08d}" in text if step else "checkpoint is None" in text

    def test_in_validation(self):
        with pytest.raises(
            FloatingPointError, match=r"loss, mse not finite .*val of a at \[.*the last checkpoint is None"
        ):
            trained(STAGE, self.broken("val", "a", 3))
