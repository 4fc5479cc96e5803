"""Scores of `veca_nano_patch8` on scenes, at every budget and other sizes, beside a ViT trained the same way.

    veca train --out out/nano_veca
    veca train --out out/nano_vit --baseline
    python -m benchmarks.nano_scenes --veca out/nano_veca --vit out/nano_vit --ship veca/zoo/weights

The backbones are judged with their matrices rounded as in the shipped files. These have bf16 for VECA. For the ViT, the
baseline, they have eight bits for each number and one scale for each row.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from veca.train import ScenesRecipe, evaluate, scenes_task
from veca.train.batches import SceneBatches
from veca.train.budgets import BudgetSampler
from veca.train.checkpoints import latest_checkpoint, load_checkpoint
from veca.train.supervised import SupervisedTask
from veca.zoo.plain_vit import pack_rows, unpack_rows

from .record import RESULTS, environment, markdown_table, today

SIZES = (48, 64, 96, 128)
HELD_OUT_SEED = 1_000_000  # seed of scenes that neither training nor its log has drawn
BACKBONE = "backbone."


def trained(run: Path) -> tuple[SupervisedTask, ScenesRecipe, dict[str, Tensor]]:
    """The task of a finished run with its backbone rounded as shipped, its recipe, and the file to ship."""
    path = latest_checkpoint(run / "checkpoints")
    if path is None:
        raise SystemExit(f"expected a run of veca train in {run}, found no checkpoint")
    checkpoint = load_checkpoint(path)
    recipe = ScenesRecipe(**checkpoint.recipe)
    if checkpoint.step + 1 < recipe.steps:
        raise SystemExit(f"expected a finished run in {run}, got step {checkpoint.step + 1} of {recipe.steps}")
    task, _, _ = scenes_task(recipe)
    task.load_state_dict(checkpoint.weights)
    weights = {name: x.contiguous() for name, x in task.backbone.state_dict().items()}
    if recipe.baseline:
        shipped = pack_rows(weights)
        task.backbone.load_state_dict(unpack_rows(shipped))
    else:
        shipped = {name: x.bfloat16() if x.is_floating_point() else x for name, x in weights.items()}
        task.backbone.load_state_dict(shipped)
    return task.eval(), recipe, shipped


def judged(task: SupervisedTask, recipe: ScenesRecipe, size: int, scenes: int, budgets: Sequence[int | None]) -> dict:
    """Scores by budget on scenes that were never drawn before."""
    patch = task.backbone.patch_embed.patch_size[0]
    source = SceneBatches(scenes, size, patch, HELD_OUT_SEED, recipe.cells)
    ranges = (range(start, min(start + 50, scenes)) for start in range(0, scenes, 50))
    return evaluate(task, (source.batch(indices, 0) for indices in ranges), budgets)


def page(veca: Path, vit: Path, scenes: int, other: int) -> tuple[str, dict[Path, dict[str, Tensor]]]:
    """The Markdown page, and the weights to ship by their run."""
    (task, recipe, shipped), (plain, vit_recipe, vit_shipped) = trained(veca), trained(vit)
    different = [key for key in vars(recipe) if key != "baseline" and getattr(recipe, key) != getattr(vit_recipe, key)]
    if different or not vit_recipe.baseline or recipe.baseline:
        raise SystemExit(
            f"expected one recipe, a VECA and its baseline, got runs that differ in {different or 'neither'}"
        )
    budgets = BudgetSampler(recipe.num_cores).budgets
    size = recipe.size
    ours, theirs = judged(task, recipe, size, scenes, budgets), judged(plain, recipe, size, scenes, (None,))[None]
    parts = [_head(recipe, scenes), _budget_table(ours, theirs), _verdict(ours, theirs)]
    rows = []
    for side in SIZES:
        few = judged(task, recipe, side, other, (budgets[0], budgets[-1]))
        rows.append(
            [
                f"{side} px",
                *map(_cells, (few[budgets[-1]], few[budgets[0]], judged(plain, recipe, side, other, (None,))[None])),
            ]
        )
    head = ["size", f"VECA, {budgets[-1]} cores", f"VECA, {budgets[0]} cores", "ViT"]
    parts += [
        f"\n## Other sizes\n\nTrained at {size} px alone; {other:,} scenes each; shape / colour / mIoU. The ViT's "
        "positions are interpolated.\n",
        _table(head, rows),
        "\n## The runs\n",
        *(_log_table(run, name) for run, name in ((veca, "VECA"), (vit, "ViT"))),
    ]
    facts = ", ".join(f"{key} {value}" for key, value in environment("cpu").items())
    return "\n".join([*parts, f"\n{facts}\n"]), {veca: shipped, vit: vit_shipped}


def _head(recipe: ScenesRecipe, scenes: int) -> str:
    images = recipe.steps * recipe.batch_size
    return (
        f"# {recipe.model} on drawn scenes\n\n`nano_scenes()`: {recipe.steps:,} steps of {recipe.batch_size} scenes of "
        f"{recipe.size} px, {images:,} scenes each seen once, {recipe.optimizer}, {recipe.precision}, one budget a "
        f"step, seed {recipe.seed}. One seed. Judged on {scenes:,} scenes that neither run has drawn, with the weights "
        "as they are shipped.\n"
    )


def _budget_table(ours: Mapping[int, Mapping[str, float]], theirs: Mapping[str, float]) -> str:
    head = ["", "shape, 8 classes", "of the ViT's", "colour, 8 classes", "pixels", "mIoU, 9 classes"]
    rows = [["ViT, equal width, depth, patch", *_row(theirs, theirs)]]
    rows += [[f"VECA, {budget} cores", *_row(scores, theirs)] for budget, scores in ours.items()]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([dict(zip(head, row, strict=True)) for row in rows], head)


def _row(scores: Mapping[str, float], theirs: Mapping[str, float]) -> list[str]:
    share = f"{scores['label'] / theirs['label']:.1%}"
    return [f"{scores['label']:.1%}", share, *(f"{scores[key]:.1%}" for key in ("color", "patch_label", "patch_iou"))]


def _cells(scores: Mapping[str, float]) -> str:
    return " / ".join(f"{scores[key]:.1%}" for key in ("label", "color", "patch_iou"))


def _verdict(ours: Mapping[int, Mapping[str, float]], theirs: Mapping[str, float]) -> str:
    labels = [scores["label"] for scores in ours.values()]
    return (
        f"\nAt every budget at least {min(labels) / theirs['label']:.1%} of the ViT's accuracy (95 % was asked for); "
        f"the smallest budget reaches {labels[0] / labels[-1]:.1%} of the largest (93 % was asked for).\n"
    )


def _log_table(run: Path, name: str) -> str:
    """Loss terms over the run as means of ten rows of the log, and the speed of the run."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "label" in row]
    terms = ("label", "color", "patch_label")
    lines = []
    for start in range(0, len(steps), 30):
        part = steps[start : start + 10]
        means = [sum(row[term] for row in part) / len(part) for term in terms]
        lines.append([f"{part[0]['step']} - {part[-1]['step']}", *(f"{value:.3f}" for value in means)])
    speeds = sorted(row["images_per_s"] for row in steps)
    speed = speeds[len(speeds) // 2]
    return (
        f"**{name}**: {speed:.0f} images/s at the median step, on a machine that did other work too.\n\n"
        + _table(["steps", "shape loss", "colour loss", "3 x pixel loss"], lines)
        + "\n"
    )


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    text, shipped = page(args.veca, args.vit, args.scenes, args.other)
    args.out.write_text(text, encoding="utf-8")
    if args.ship:
        args.ship.mkdir(exist_ok=True)
        for run, name in ((args.veca, "veca_nano_patch8"), (args.vit, "vit_nano_patch8")):
            save_file(shipped[run], args.ship / f"{name}.safetensors")
        config = json.loads((args.veca / "model" / "config.json").read_text())
        kept = {key: config[key] for key in ("img_size", "num_cores", "trained_budgets")}
        (args.ship / "veca_nano_patch8.json").write_text(json.dumps(kept) + "\n")
    sys.stdout.write(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--veca", type=Path, required=True, help="folder of the run")
    parser.add_argument("--vit", type=Path, required=True, help="folder of the run with --baseline")
    parser.add_argument("--scenes", type=int, default=4000, help="number of scenes at the size of training")
    parser.add_argument("--other", type=int, default=1000, help="number of scenes at each other size")
    parser.add_argument("--ship", type=Path, help="folder for the two safetensors files")
    parser.add_argument("--out", type=Path, default=RESULTS / f"nano-scenes-{today()}.md")
    return parser


if __name__ == "__main__":
    main()
