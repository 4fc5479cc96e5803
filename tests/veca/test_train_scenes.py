import dataclasses
import json
from pathlib import Path

import pytest
import torch

import veca.train
from veca import cli
from veca.data import Scenes, imagenet_normalize, patch_labels
from veca.model.heads import PatchHead
from veca.train import evaluate, nano_scenes, scenes_task, train_scenes
from veca.train.batches import SceneBatches
from veca.train.checkpoints import load_checkpoint

SMALL = dataclasses.replace(
    nano_scenes(), steps=2, warmup_steps=1, batch_size=4, scenes=16, held_out=6, size=32, num_cores=16, log_every=1,
    optimizer="adamw",  # bf16 products of NorMuon take half a minute a step on old processors
)  # fmt: skip


def test_scene_batches_are_the_scenes():
    batch = SceneBatches(10, 32, 8, seed=2).batch([3, 1], 0)
    for row, index in enumerate((3, 1)):
        sample = Scenes(10, 32, seed=2)[index]
        torch.testing.assert_close(batch["image"][row], imagenet_normalize(sample["image"]))
        assert (batch["label"][row], batch["color"][row]) == (sample["label"], sample["color"])
        mask = sample["mask"].unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).flatten(0, 1)  # (P, 64)
        assert batch["patch_label"][row].tolist() == [pixels.bincount().argmax().item() for pixels in mask]


def test_held_out_scenes_are_others():
    _, source, held_out = scenes_task(SMALL)
    assert not torch.equal(source.batch([0], 0)["image"], held_out.batch([0], 0)["image"])


def test_scores_by_hand():
    """A task that always says class 1: right where the truth says so."""
    task, _, held_out = scenes_task(SMALL)
    for head, cells in (*((head, 1) for head in task.heads.values()), (task.patch_head, task.patch_head.cells**2)):
        torch.nn.init.zeros_(head.linear.weight)
        classes = len(head.linear.bias) // cells
        head.linear.bias.data = torch.nn.functional.one_hot(torch.tensor(1), classes).float().repeat(cells)
    batches = [held_out.batch(range(4), 0), held_out.batch(range(4, 6), 0)]
    scores = evaluate(task, batches, (8,))[8]
    truth = {name: torch.cat([batch[name].flatten() for batch in batches]) for name in scores if name != "patch_iou"}
    for name, labels in truth.items():
        assert scores[name] == pytest.approx((labels == 1).double().mean().item())
    patches = truth["patch_label"]
    assert scores["patch_iou"] == pytest.approx((patches == 1).double().mean().item() / len({*patches.tolist(), 1}))
    assert task.training


@pytest.mark.parametrize("baseline", [False, True])
def test_run_with_its_scores_at_every_budget(tmp_path, baseline):
    recipe = dataclasses.replace(SMALL, baseline=baseline)
    path = train_scenes(recipe, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 1]
    assert set(rows[-1]["validation"]) == ({"all"} if baseline else {"8", "16"})
    assert rows[0]["size"] == [32, 32] and (rows[0]["budgets"] == [None]) == baseline
    task, _, held_out = scenes_task(recipe)
    task.load_state_dict(load_checkpoint(path).weights)
    scores = evaluate(task, [held_out.batch(range(6), 0)], (None,))[None]
    assert scores == pytest.approx(rows[-1]["validation"]["all" if baseline else "16"])


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(veca.train, "nano_scenes", lambda: SMALL)
    out = str(tmp_path)
    with pytest.raises(SystemExit, match=r"veca train: expected warmup_steps from 0 to 3, .* got 4"):
        cli.main(["train", "--out", out, "--steps", "3", "--warmup-steps", "4"])
    cli.main(["train", "--out", out, "--baseline", "--batch-size", "2", "--device", "cpu"])
    path = capsys.readouterr().out.strip()
    assert path == str(tmp_path / "checkpoints/step-00000002")
    recipe = load_checkpoint(Path(path)).recipe
    assert (recipe["baseline"], recipe["batch_size"], recipe["size"]) == (True, 2, 32)


def test_patch_head_maps_rows_and_columns():
    head = PatchHead(4, 2)
    patches = torch.randn(3, 6, 4)
    logits = head.as_map(patches, (2, 3))
    assert logits.shape == (3, 2, 2, 3)
    torch.testing.assert_close(logits[1, :, 1, 0], head(patches)[1, 3])
    with pytest.raises(ValueError, match="expected 2 x 2 = 4 patches, got 6"):
        head.as_map(patches, (2, 2))


def test_cells_of_the_labels_and_of_the_head_lie_alike():
    """Patches of 8 pixels in cells of 2: a label, and the logit beside it, belong to the pixels of the mask there."""
    source = SceneBatches(10, 32, 8, seed=2, cells=4)
    labels = source.batch([3], 0)["patch_label"][0]  # (P * 16,)
    cells = patch_labels(Scenes(10, 32, seed=2)[3]["mask"], 2)  # (16, 16)
    head = PatchHead(4, 9, cells=4)
    patches = torch.randn(1, 16, 4)
    logits, maps = head(patches)[0], head.as_map(patches, (4, 4))[0]
    for row, col in ((0, 0), (5, 9), (15, 2)):
        place = (row // 4 * 4 + col // 4) * 16 + row % 4 * 4 + col % 4
        assert labels[place] == cells[row, col]
        assert torch.equal(maps[:, row, col], logits[place])
    with pytest.raises(ValueError, match="cells to divide patch_size=8, got cells=3"):
        SceneBatches(10, 32, 8, cells=3)
