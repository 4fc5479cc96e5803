"""Checkpoints: each is a folder of safetensors and JSON files, which appears whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["Checkpoint", "latest_checkpoint", "load_backbone", "load_checkpoint", "save_checkpoint"]

_PREFIX = "step-"
_BACKBONE = "backbone."


class Checkpoint(NamedTuple):
    """A checkpoint has the state of a run at the end of a step.

    Attributes:
        step: number of steps done.
        weights: weights of the task by name.
        optimizer: state of the optimiser by name.
        ema: averaged weights by name; empty without averaging.
        recipe: fields of the recipe, as in JSON.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    recipe: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint beside the older ones, then remove all but the last few.

    It is written under another name, flushed and renamed, so a reader sees all of it or nothing.

    Args:
        folder: folder of all checkpoints of the run.
        checkpoint: checkpoint to write.
        keep: number of checkpoints to keep.

    Returns:
        Its folder, such as `folder/step-00000100`.
    """
    target = folder / f"{_PREFIX}{checkpoint.step:08d}"
    partial = folder / f".partial-{target.name}"
    for leftover in (partial, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    for name in ("weights", "optimizer", "ema"):
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
        save_file(tensors, partial / f"{name}.safetensors")
    state = {"step": checkpoint.step, "recipe": checkpoint.recipe}
    (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for path in (*partial.iterdir(), partial):
        _flush(path)
    os.replace(partial, target)
    _flush(folder)
    for old in _found(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in a folder, None where there is none."""
    found = _found(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, with tensors on the CPU.

    Args:
        path: folder of the checkpoint.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing; the message names it.
    """
    names = ("weights", "optimizer", "ema")
    missing = [n for n in ("state.json", *(f"{name}.safetensors" for name in names)) if not (path / n).is_file()]
    if missing:
        raise FileNotFoundError(f"expected a checkpoint in {path}, but {', '.join(missing)} is absent")
    state = json.loads((path / "state.json").read_text())
    tensors = {name: load_file(path / f"{name}.safetensors") for name in names}
    return Checkpoint(step=state["step"], recipe=state["recipe"], **tensors)


def load_backbone(model: nn.Module, path: str | Path, ema: bool = False) -> nn.Module:
    """Load the backbone weights of a checkpoint into a model.

    Args:
        model: a model with the same parameters, such as the VECA that was trained.
        path: a checkpoint, or the folder of a run, whose last checkpoint is taken.
        ema: take the averaged weights, which the run must have kept.

    Returns:
        The model.

    Raises:
        FileNotFoundError: no checkpoint at `path`.
        ValueError: averaged weights of a run that kept none.
    """
    path = Path(path)
    if not (path / "state.json").is_file():
        found = latest_checkpoint(path / "checkpoints")
        if found is None:
            raise FileNotFoundError(f"expected a checkpoint or the folder of a run, but {path} has neither")
        path = found
    checkpoint = load_checkpoint(path)
    tensors = checkpoint.ema if ema else checkpoint.weights
    if not tensors:
        raise ValueError(f"expected averaged weights in {path}, but the run kept none")
    weights = {name.removeprefix(_BACKBONE): x for name, x in tensors.items() if name.startswith(_BACKBONE)}
    model.load_state_dict(weights)
    return model


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
