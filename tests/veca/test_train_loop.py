import dataclasses
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from veca import VECA
from veca.files import alone_in
from veca.train import Recipe, SupervisedTask, evaluate, load_backbone, train
from veca.train.batches import StepBatches, batch_indices
from veca.train.checkpoints import last_whole_checkpoint, latest_checkpoint, load_checkpoint
from veca.train.signals import StopSignals
from veca.zoo.plain_vit import equal_vit

RECIPE = Recipe(
    steps=6,
    batch_size=8,
    warmup_steps=2,
    lr_max=3e-3,
    lr_min=1e-4,
    accumulate=2,
    clip_norm=1.0,
    ema_decay=0.9,
    log_every=1,
    save_every=2,
)


class Planted:
    """Bright patches on dark ones are class 1; the image's class is the channel that is brighter."""

    def __init__(self, count=32, poison=None):
        self.count, self.poison = count, poison

    def __len__(self):
        return self.count

    def batch(self, indices, step):
        images, labels, patch_labels = [], [], []
        for index in indices:
            generator = torch.Generator().manual_seed(index)
            bright = torch.rand(2, 2, generator=generator).round()
            image = 0.1 * torch.randn(3, 32, 32, generator=generator) + bright.kron(torch.ones(16, 16)) - 0.5
            labels.append(index % 3)
            image[index % 3] += 1
            if index == self.poison:
                image[0, 0, 0] = torch.nan
            images.append(image)
            patch_labels.append(bright.flatten().long())
        return {
            "image": torch.stack(images),
            "label": torch.tensor(labels),
            "patch_label": torch.stack(patch_labels),
        }


def backbone(**options):
    torch.manual_seed(0)
    return VECA(**(dict(embed_dim=32, depth=2, num_heads=1, num_cores=24, img_size=32) | options))


def planted_task(**options):
    return SupervisedTask(backbone(**options), {"label": 3}, patch_classes=2)


def contents(path):
    checkpoint = load_checkpoint(path)
    return (
        checkpoint.weights
        | {f"o {k}": v for k, v in checkpoint.optimizer.items()}
        | {f"e {k}": v for k, v in checkpoint.ema.items()}
    )


def rows(folder):
    kept = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in kept]


@pytest.mark.parametrize("kind", ["adamw", "normuon"])
def test_resume_is_bit_equal(tmp_path, kind):
    """With everything that draws numbers or remembers: RoPE augmentation, DropPath, budgets, EMA, accumulation."""
    recipe = dataclasses.replace(RECIPE, optimizer=kind)
    random = dict(rope_shift=0.08, rope_scale=2.0, drop_path_rate=0.3)
    straight = train(planted_task(**random), Planted(), recipe, tmp_path / "straight")
    state = torch.get_rng_state()

    train(planted_task(**random), Planted(), recipe, tmp_path / "resumed", stop_at=3)
    torch.manual_seed(99)
    task = planted_task(**random)
    with torch.no_grad():
        task.backbone.core_bank.tokens.zero_()  # the checkpoint decides, not what the task starts with
    resumed = train(task, Planted(), recipe, tmp_path / "resumed")

    first, second = contents(straight), contents(resumed)
    assert first.keys() == second.keys() and any(key.startswith("o ") for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")
    assert len({tuple(row["budgets"]) for row in rows(tmp_path / "straight")}) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_the_run_learns_what_was_planted_at_every_budget(tmp_path):
    task, source = planted_task(), Planted(48)
    recipe = Recipe(steps=60, batch_size=16, warmup_steps=5, lr_max=5e-3, lr_min=1e-4, save_every=100)
    held_out = [source.batch(range(100, 148), 0)]
    before = evaluate(task, held_out, (8,))[8]
    path = train(task, source, recipe, tmp_path)
    assert before["label"] < 0.7 and before["patch_iou"] < 0.7
    for scores in evaluate(task, held_out, (8, 16, 24)).values():
        assert scores["label"] > 0.9 and scores["patch_label"] > 0.95 and scores["patch_iou"] > 0.9
    copy = load_backbone(backbone(), path)
    images = held_out[0]["image"]
    assert torch.equal(copy.eval()(images), task.backbone.eval()(images))


def test_a_plain_vit_goes_through_the_same_loop(tmp_path):
    veca = backbone()
    vit = equal_vit(veca, 32)
    ours = sum(p.numel() for p in veca.blocks.parameters())
    assert sum(p.numel() for p in vit.blocks.parameters()) == pytest.approx(ours, rel=0.02)
    task, source = SupervisedTask(vit, {"label": 3}, patch_classes=2), Planted(48)
    recipe = Recipe(steps=40, batch_size=16, warmup_steps=5, lr_max=5e-3, lr_min=1e-4)
    train(task, source, recipe, tmp_path)
    scores = evaluate(task, [source.batch(range(100, 148), 0)])[None]
    assert scores["label"] > 0.9 and scores["patch_label"] > 0.95


def test_micro_batches_add_up_to_the_whole(tmp_path):
    weights = []
    for accumulate in (1, 4):
        recipe = dataclasses.replace(RECIPE, steps=2, accumulate=accumulate, optimizer="sgd", ema_decay=None)
        weights.append(load_checkpoint(train(planted_task(), Planted(), recipe, tmp_path / str(accumulate))).weights)
    start = planted_task().state_dict()
    for name in start:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(weights[0][name], start[name]) for name in start)


def test_several_budgets_are_averaged(tmp_path):
    """One step of SGD on a sandwich is the mean of the steps on the two budgets alone."""
    recipe = dataclasses.replace(RECIPE, steps=1, accumulate=1, warmup_steps=0, optimizer="sgd", weight_decay=0.0)
    recipe = dataclasses.replace(recipe, clip_norm=None, ema_decay=None, budgets="sandwich")
    train(task := planted_task(), Planted(), recipe, tmp_path)
    reference = planted_task()
    batch = Planted().batch(batch_indices(32, 8, 0), 0)
    sum(sum(reference(batch, budget).values()) / 2 for budget in (8, 24)).backward()
    for moved, start in zip(task.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, start - recipe.lr_max * start.grad, rtol=1e-4, atol=1e-7)


def test_ema_is_the_running_average(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=3, save_every=1)
    wanted = dict(planted_task().named_parameters())
    for stop in (1, 2, 3):
        path = train(planted_task(), Planted(), recipe, tmp_path, stop_at=stop)
        saved = load_checkpoint(path)
        wanted = {name: 0.9 * wanted[name] + 0.1 * saved.weights[name] for name in wanted}
        for name in wanted:
            torch.testing.assert_close(saved.ema[name], wanted[name])
    averaged = load_backbone(backbone(), tmp_path, ema=True)
    torch.testing.assert_close(averaged.core_bank.tokens, wanted["backbone.core_bank.tokens"])


def test_clipping_bounds_the_step(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=1, warmup_steps=0, optimizer="sgd", weight_decay=0.0, clip_norm=0.01)
    train(task := planted_task(), Planted(), recipe, tmp_path)
    pairs = zip(task.parameters(), planted_task().parameters(), strict=True)
    step = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
    assert step.item() == pytest.approx(0.01 * recipe.lr_max, rel=1e-3)
    assert rows(tmp_path)[0]["gradient_norm"] > 0.01


def test_nan_stops_the_run_and_says_where(tmp_path):
    recipe = dataclasses.replace(RECIPE, accumulate=1, save_every=1)
    hit = next(step for step in range(4) if 11 in batch_indices(32, 8, step))
    with pytest.raises(FloatingPointError) as stopped:
        train(task := planted_task(), Planted(poison=11), recipe, tmp_path)
    message = str(stopped.value)
    assert f"stopped at step {hit}: loss, label, patch_label, gradient_norm not finite" in message
    assert "label=nan" in message and str(batch_indices(32, 8, hit)) in message
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert hit == 0 or load_checkpoint(saved).step == hit


def test_bf16_keeps_weights_and_loss_in_fp32(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=2, precision="bf16", grad_checkpointing=True)
    path = train(planted_task(), Planted(), recipe, tmp_path)
    assert all(tensor.dtype == torch.float32 for tensor in load_checkpoint(path).weights.values())
    exact = dataclasses.replace(RECIPE, steps=2)
    train(planted_task(), Planted(), exact, tmp_path / "fp32")
    assert rows(tmp_path)[0]["loss"] == pytest.approx(rows(tmp_path / "fp32")[0]["loss"], rel=0.02)


def test_grad_checkpointing_changes_nothing(tmp_path):
    """Budgets, RoPE augmentation and DropPath are the same when a block is computed again."""
    random = dict(rope_shift=0.08, rope_scale=2.0, drop_path_rate=0.3)
    found = []
    for checkpointing in (False, True):
        recipe = dataclasses.replace(RECIPE, grad_checkpointing=checkpointing)
        found.append(contents(train(planted_task(**random), Planted(), recipe, tmp_path / str(checkpointing))))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)


def test_another_recipe_is_refused(tmp_path):
    train(planted_task(), Planted(), RECIPE, tmp_path, stop_at=2)
    with pytest.raises(ValueError, match=r"the recipe of the run in .* \(lr_max=0.003, not 0.1\)"):
        train(planted_task(), Planted(), dataclasses.replace(RECIPE, lr_max=0.1), tmp_path)
    train(planted_task(), Planted(), dataclasses.replace(RECIPE, save_every=3), tmp_path, stop_at=3)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    train(planted_task(), Planted(), RECIPE, tmp_path, stop_at=2)

    def crash(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        real = os.replace
        patched.setattr(os, "replace", lambda a, b: crash(a, b) if "step-" in str(b) else real(a, b))
        with pytest.raises(KeyboardInterrupt):
            train(planted_task(), Planted(), RECIPE, tmp_path)
    assert load_checkpoint(latest_checkpoint(tmp_path / "checkpoints")).step == 2
    assert load_checkpoint(train(planted_task(), Planted(), RECIPE, tmp_path)).step == 6
    assert [row["step"] for row in rows(tmp_path)] == list(range(6))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def planted_score(task):
    return {"bank": task.backbone.core_bank.tokens.sum().item()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing ends, with a validation after steps 4 and 6."""
    folder = tmp_path_factory.mktemp("straight")
    recipe = dataclasses.replace(RECIPE, save_every=4)
    return recipe, contents(train(planted_task(), Planted(), recipe, folder, validate=planted_score)), rows(folder)


class Ending(Planted):
    """Sends its own process a signal while it gives the batch of a step."""

    def __init__(self, at, number):
        super().__init__()
        self.at, self.number = at, number

    def batch(self, indices, step):
        if step == self.at:
            self.at = None
            os.kill(os.getpid(), self.number)
        return super().batch(indices, step)


@pytest.mark.parametrize(("name", "at"), [("SIGTERM", 2), ("SIGUSR1", 3), ("SIGINT", 0), ("SIGTERM", 5)])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(straight, tmp_path, caplog, name, at):
    recipe, whole, log = straight
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
        train(planted_task(), Ending(at, number), recipe, tmp_path, validate=planted_score)
    assert ended.type is KeyboardInterrupt if name == "SIGINT" else ended.value.code == 128 + number
    assert f"{name} after step {at + 1}; the same command goes on from {tmp_path}" in caplog.text
    assert signal.getsignal(number) == before
    path = latest_checkpoint(tmp_path / "checkpoints")
    assert load_checkpoint(path).step == at + 1
    path = train(planted_task(), Planted(), recipe, tmp_path, validate=planted_score)
    found = contents(path)
    assert found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)
    assert rows(tmp_path) == log and sum("validation" in row for row in log) == 2


@pytest.mark.parametrize("call", [1, 2])
def test_a_validation_that_was_ended_is_made_up_for(straight, tmp_path, call):
    recipe, _, log = straight
    calls = []

    def dies(task):
        calls.append(0)
        if len(calls) == call:
            raise MemoryError
        return planted_score(task)

    with pytest.raises(MemoryError):
        train(planted_task(), Planted(), recipe, tmp_path, validate=dies)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": 0.1}\nno row\n[1]\n{"step": 0, "lo')
    for _ in range(2):  # once
        train(planted_task(), Planted(), recipe, tmp_path, validate=planted_score)
        assert rows(tmp_path) == log


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)


def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole(straight, tmp_path, caplog):
    recipe, whole, _ = straight
    train(planted_task(), Planted(), dataclasses.replace(recipe, save_every=2), tmp_path / "kept", stop_at=4)
    parts = "state.json", "weights.safetensors", "optimizer.safetensors", "ema.safetensors"
    for name, damage in itertools.product(parts, (cut, flip, Path.unlink)):
        run = tmp_path / "run"
        shutil.copytree(tmp_path / "kept", run)
        older, last = sorted((run / "checkpoints").iterdir())
        damage(last / name)
        with pytest.raises(ValueError, match=rf"{last}.*; the checkpoint before it is {older}$"):
            load_backbone(backbone(), run)
        caplog.clear()
        assert last_whole_checkpoint(run / "checkpoints")[0] == older and f"{older}; going on" in caplog.text
        damage(older / name)
        with pytest.raises(ValueError, match=rf"{older}.*; there is no older one in {run}"):
            train(planted_task(), Planted(), recipe, run)
        shutil.rmtree(run)
    flip(last := tmp_path / "kept/checkpoints/step-00000004/optimizer.safetensors")
    with pytest.raises(SystemExit):  # a checkpoint of step 3 takes the place of that of step 4, which cannot be read
        train(planted_task(), Ending(2, signal.SIGTERM), recipe, tmp_path / "kept")
    assert not last.exists()
    found = contents(train(planted_task(), Planted(), recipe, tmp_path / "kept"))
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_ctrl_c_twice_ends_at_once_and_ignored_signals_stay_ignored():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stops:
        os.kill(os.getpid(), signal.SIGINT)
        assert stops.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with StopSignals() as stops:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stops.number is None and signal.signal(signal.SIGUSR1, before) == signal.SIG_IGN


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with alone_in(tmp_path), pytest.raises(BlockingIOError, match=f"no other run in {tmp_path}, got process"):
        train(planted_task(), Planted(), RECIPE, tmp_path)


def test_every_epoch_sees_every_image_once_in_a_new_order():
    steps = [batch_indices(12, 4, step, seed=1) for step in range(6)]
    first, second = (torch.tensor(part).flatten().tolist() for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    shares = [StepBatches(Planted(12), 4, 2, 1, rank, 2)[part]["label"] for part in (6, 7) for rank in (0, 1)]
    assert torch.cat(shares).tolist() == [index % 3 for index in steps[3]]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="multiples of 2 micro-batches x 3 ranks, got 8"):
        StepBatches(Planted(), 8, 2, 0, 0, 3)
    with pytest.raises(ValueError, match="at most the 4 images, got 8"):
        StepBatches(Planted(4), 8)
    with pytest.raises(ValueError, match="warmup_steps from 0 to 5, the steps of the recipe, got 100"):
        Recipe(steps=5)
    with pytest.raises(ValueError, match="precision 'fp32' or 'bf16', got 'fp16'"):
        Recipe(precision="fp16")
