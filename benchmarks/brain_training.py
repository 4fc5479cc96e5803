"""Time of 1,000 steps and peak memory of training a brain model, for both stages, by recipe and memory tier.

    python -m benchmarks.brain_training                                    # recipe nano, on a CPU
    python -m benchmarks.brain_training --recipes veca paper --device cuda # the paper's sizes, four tiers of memory

Responses and tokens are random, which changes neither time nor memory. Every tier of a recipe runs in a fresh process,
after two steps that are not counted. On a CPU the peak is that of the process, on a GPU that of the allocator.
"""

import argparse
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brainmodels.systems import neuroflow, synbrain
from brainmodels.systems.neuroflow import estimator as neuroflow_estimator
from brainmodels.systems.synbrain import estimator as synbrain_estimator
from brainmodels.training.loop import Batch, train_stage
from veca.train.parallel import World

from .record import JsonLines, environment, markdown_table

__all__ = ["main", "measure"]

COLUMNS = ("system", "recipe", "stage", "tier", "batch", "s per 1,000 steps", "peak GB")
TIERS = {  # trials of a micro-batch, recomputed activations
    "whole batch": (None, False),
    "recomputed": (None, True),
    "micro-batch of 8, recomputed": (8, True),
    "micro-batch of 2, recomputed": (2, True),
}
_WARM = 2
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


class _Noise:
    """Random trials of one subject, in the form that `train_stage` takes."""

    def __init__(self, voxels: int, tokens: tuple[int, int], trials: int):
        generator = torch.Generator().manual_seed(0)
        self._responses = torch.randn(trials, voxels, generator=generator)
        self._tokens = torch.randn(trials, *tokens, generator=generator)

    def sizes(self, part: str) -> dict[str, int]:
        return {"sub": len(self._responses)} if part == "train" else {}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        return Batch(subject, rows, self._responses[rows], self._tokens[rows])

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        return f"rows {rows.tolist()} of random numbers"


def tasks(system: str, recipe: Any, voxels: int, device: torch.device) -> dict[str, tuple[nn.Module, Any]]:
    """The two stages' tasks and how they are trained."""
    if system == "neuroflow":
        model = neuroflow.NeuroFlow(recipe)
        model._build({"sub": voxels})
        model.vae_.checkpointing = model.flow_.net.checkpointing = recipe.grad_checkpointing
        model.vae_.to(device)
        first = neuroflow_estimator._VAETask(model.vae_, neuroflow.LossWeights.of(recipe, float(voxels)))
        second = neuroflow_estimator._FlowTask(model.flow_, model._posterior, recipe.flow_target)
    else:
        model = synbrain.SynBrain(recipe)
        model._build({})
        model.vae_.checkpointing = model.mapper_.checkpointing = recipe.grad_checkpointing
        model.vae_.to(device)
        first = synbrain_estimator._VAETask(model.vae_, recipe, recipe.contrast_weight_for(float(voxels)))
        second = synbrain_estimator._MapperTask(model.mapper_, model._posterior)
    return {"1": (first, recipe.stage1), "2": (second, recipe.stage2)}


def measure(system: str, name: str, tier: str, voxels: int, steps: int, device: str, threads: int | None) -> list[dict]:
    """Rows of both stages. The row of a stage that needs too much memory says so."""
    if threads:
        torch.set_num_threads(threads)
    micro, recompute = TIERS[tier]
    place = torch.device(device)
    recipe = (neuroflow if system == "neuroflow" else synbrain).named(name)
    recipe = replace(recipe, grad_checkpointing=recompute)
    rows = []
    for number, (task, stage) in tasks(system, recipe, voxels, place).items():
        stage = replace(stage, micro_batch=micro, epochs=None, patience=None, stop_mse=None, stop_share=None)
        source = _Noise(voxels, (recipe.num_tokens, recipe.token_width), stage.batch_size)
        options = {"world": World(0, 1, place), "precision": recipe.precision}
        row = {"system": system, "recipe": name, "stage": number, "tier": tier, "batch": stage.batch_size}
        try:
            train_stage("warm", task.to(place), source, replace(stage, steps=_WARM), **options)
            found = train_stage("timed", task, source, replace(stage, steps=steps), **options)
        except torch.OutOfMemoryError:
            rows.append(row | {"s per 1,000 steps": None, "peak GB": "does not fit"})
            continue
        peak = found.peak_memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
        rows.append(row | {"s per 1,000 steps": found.seconds * 1000 / steps, "peak GB": peak / 2**30})
    return rows


def main(words: list[str] | None = None) -> None:
    args = _parser().parse_args(words)
    on_cpu = torch.device(args.device).type == "cpu"
    voxels = args.voxels or (1500 if on_cpu else 15724)
    tiers = args.tiers or (("whole batch",) if on_cpu else tuple(TIERS))
    record, log, rows = environment(args.device, args.threads), JsonLines(args.out), []
    for system in args.systems:
        for name in args.recipes:
            for tier in tiers:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, context) as pool:
                    case = (system, name, tier, voxels, args.steps, args.device, args.threads)
                    for row in pool.submit(measure, *case).result():
                        rows.append(row)
                        log.append(record | {"benchmark": "brain_training", "voxels": voxels} | row)
    threads = f"threads {record['threads']}, " if "threads" in record else ""
    where = f"{record['device']}, {threads}torch {record['torch']}, {record['date']}"
    print(f"{where}, {voxels} voxels\n")
    print(markdown_table(rows, COLUMNS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--systems", nargs="+", choices=("neuroflow", "synbrain"), default=("neuroflow", "synbrain"))
    add("--recipes", nargs="+", choices=("nano", "tiny", "veca", "veca_cores", "paper"), default=("nano",))
    add("--tiers", nargs="+", choices=tuple(TIERS), default=None)
    add("--voxels", type=int, help="number of voxels; default 1,500 on a CPU, 15,724 on a GPU")
    add("--steps", type=int, default=30, help="number of timed steps")
    add("--device", default="cpu")
    add("--threads", type=int, help="number of torch's threads on a CPU")
    add("--out", type=Path, help="append the rows to this JSON lines file")
    return parser


if __name__ == "__main__":
    main()
