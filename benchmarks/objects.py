"""Neuro3D on simulated subjects: classes, colours and clouds beside ridge, retrieval, and what cannot be beaten.

    python -m benchmarks.objects --seeds 1 2 3
    python -m benchmarks.objects --seeds 1 2 3 --conditions in_sample

A study has 24 classes of 8 train objects (two presentations) and 2 test objects (four presentations, averaged). Each
seed has its objects, its subject and its noise. Settings of the recipe were chosen on subjects of other seeds.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import brainmodels
from brainmodels.data.objects import STREAMS, ObjectTrials
from brainmodels.evaluation.objects import ObjectEvaluation, ObjectSettings, evaluate_objects
from brainmodels.systems.neuro3d import Neuro3D, named

from .brain_models import how, publish, section
from .brain_studies import Table
from .record import RESULTS, environment, slug, today

NAME = "Neuro3D"
HEAD = """Coloured point clouds from simulated EEG

Tables of `benchmarks.objects`. Clouds are compared after centring and division by their root mean square radius
("rms"). Intervals in the differences are 95 %, over resampled test objects."""
_CLASSES = ("accuracy_top1", "accuracy_top5")
_COLORS = ("accuracy_top1",)
_SHORT = 1  # steps of the stages that a table does not need


def fitted(study: Any, recipe: Any, streams: Sequence[str] = STREAMS) -> Neuro3D:
    """A model of the first subject; with one stream, only its encoder is trained."""
    if len(streams) < len(STREAMS):
        size = replace(recipe.encoder_size, streams=tuple(streams), stack=False)
        stages = {name: replace(getattr(recipe, name), steps=_SHORT, epochs=None) for name in ("shape", "color")}
        recipe = replace(recipe, encoder_size=size, folds=None, condition_from="in_sample", pair_noise=None, **stages)
    return Neuro3D(recipe, "cpu").fit(study)


def told(study: Any, models: Mapping[str, Neuro3D]) -> list[dict[str, Any]]:
    """Top-1 and top-5 of classes and top-1 of colours, of models with one stream."""
    test = ObjectTrials.of(study, study.subjects[0], "test", average="repeats")
    label, color = study.label("class", test.ids), study.label("color", test.ids)
    rows = []
    for name, model in models.items():
        found = model.classify(test)
        order = (-found.shape).argsort(1)
        top = [(order[:, :k] == label[:, None]).any(1).mean() for k in (1, 5)]
        right = (found.color.argmax(1) == color).mean()
        rows.append({"row": name, "top-1": top[0], "top-5": top[1], "colour": right})
    return rows


def tables_of(evaluation: ObjectEvaluation, single: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Tables of one seed."""
    classes = []
    for row in evaluation.tables["classes"]:
        colors = {x.name: x for x in evaluation.tables["colors"]}
        color = colors[row.name].score(_COLORS[0]) if row.name in colors else None
        top = [row.score(name) for name in _CLASSES]
        values = [None if score is None else score.value for score in (*top, color)]
        classes.append(dict(zip(("row", "top-1", "top-5", "colour"), (row.name, *values), strict=True)))
    clouds = []
    for row in evaluation.tables["clouds"]:
        picks = {
            "chamfer_l2[rms] ↓": row.pick("chamfer_l2", "rms"),
            "fscore@0.05[rms] ↑": row.pick("fscore@0.05", "rms"),
            "2-way ↑": row.pick("2way_top1", "chamfer_nn", "rms"),
            "10-way top-3 ↑": row.pick("10way_top3", "chamfer_nn", "rms"),
            "class by nearest cloud ↑": row.pick("24way_top1", "chamfer_nn", "rms"),
            "majority colour ↑": row.pick("majority_color"),
        }
        clouds.append({"row": row.name} | {name: None if x is None else x.value for name, x in picks.items()})
    paired = [
        {
            "first": row.first,
            "second": row.second,
            "metric": row.metric,
            "difference": row.value,
            "interval": f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}",
            "first is": row.outcome,
        }
        for row in evaluation.paired
    ]
    agreed = [{"judge": str(score)} for score in evaluation.agreements]
    return [
        Table("Classes and colours.", [*classes, *single]),
        Table("Clouds.", clouds, evaluation.first_line),
        Table("Differences on the same objects.", paired),
        Table("How often a judge names the class that the encoder said.", agreed),
    ]


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    torch.set_num_threads(args.threads)
    recipe = named(args.recipe)
    if args.conditions:
        recipe = replace(recipe, condition_from=args.conditions)
    command = shlex.join(["python", "-m", "benchmarks.objects", *(sys.argv[1:] if words is None else words)])
    facts = environment("cpu")
    out = args.out or RESULTS / f"{slug(facts['device'])}-objects-{today()}.md"
    for seed in args.seeds:
        began = time.perf_counter()
        study = brainmodels.simulate_objects(args.preset, seed=seed)
        study = Neuro3D(recipe).with_targets(study)
        folder = None if args.models is None else args.models / f"seed{seed}"
        model = Neuro3D.load(folder, "cpu") if folder and folder.exists() else fitted(study, recipe)
        if folder and not folder.exists():
            model.meta_["run"] = {"data": f"objects:{args.preset}", "seed": seed, "split": study.split().name}
            model.save(folder)
        single = told(study, {f"{NAME}, {name} alone": fitted(study, recipe, (name,)) for name in STREAMS})
        settings = ObjectSettings(seed=seed, sensors=False, resamples=args.resamples)
        tables = tables_of(evaluate_objects(study, {NAME: model}, settings), single)
        seconds = {stage["name"]: round(stage["seconds"]) for stage in model.meta_["stages"]}
        notes = [f"seconds of the stages: {seconds}", f"error level of the features: {model.error_}"]
        title = f"{args.preset}, {recipe.name}, conditions from {recipe.condition_from}, seed {seed}"
        publish(out, HEAD, section(title, tables, [*notes, *how(command, began, facts)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the simulated studies")
    add("--preset", default="nano", help="preset of the study: tiny, nano or eeg3d_like")
    add("--recipe", default="nano", help="recipe of the model")
    add("--conditions", help="features on which shape and colour train, in place of the recipe's")
    add("--resamples", type=int, default=1000, help="number of resamples for intervals")
    add("--models", type=Path, help="folder to save the models in, and to take saved ones from")
    add("--threads", type=int, default=2, help="number of torch's threads")
    add("--out", type=Path, help="page to append to")
    return parser


if __name__ == "__main__":
    main()
