"""Checkpoints are folders of safetensors and JSON, which appear whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .parallel import World

__all__ = ["Checkpoint", "latest_checkpoint", "load_backbone", "load_checkpoint", "save_checkpoint", "save_together"]

_PREFIX = "step-"
_BACKBONE = "backbone."


class Checkpoint(NamedTuple):
    """What a run needs to go on from the end of a step.

    Attributes:
        step: Number of steps done.
        weights: Weights of the task by name.
        optimizer: State of the optimizer by name.
        ema: Averaged weights by name; empty without averaging.
        recipe: Recipe of the run, and what else resuming needs, as JSON.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    recipe: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint beside the older ones, then remove all but the last few.

    It is written under another name, flushed, and renamed. Other processes see all of it or nothing.

    Args:
        folder: Folder of all checkpoints of the run.
        checkpoint: Checkpoint to write.
        keep: Number of checkpoints to leave.

    Returns:
        The folder of the checkpoint, such as `folder/step-00000100`.
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


def save_together(folder: Path, checkpoint: Checkpoint, world: World) -> Path:
    """Write a checkpoint on the first process while the others wait, and return its folder."""
    if world.rank == 0:
        save_checkpoint(folder, checkpoint)
    if world.size > 1:
        dist.barrier()
    return latest_checkpoint(folder)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint in a folder, None where there is none."""
    found = _found(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, with its tensors on the CPU.

    Args:
        path: Folder of the checkpoint.

    Raises:
        FileNotFoundError: A file is missing.
    """
    names = ("weights", "optimizer", "ema")
    missing = [n for n in ("state.json", *(f"{name}.safetensors" for name in names)) if not (path / n).is_file()]
    if missing:
        raise FileNotFoundError(f"expected a checkpoint in {path}, but {', '.join(missing)} is absent")
    state = json.loads((path / "state.json").read_text())
    tensors = {name: load_file(path / f"{name}.safetensors") for name in names}
    return Checkpoint(step=state["step"], recipe=state["recipe"], **tensors)


def load_backbone(model: nn.Module, path: str | Path, ema: bool = False) -> nn.Module:
    """Load the weights of a checkpoint's backbone into a model that has the same shape.

    Args:
        model: Model such as the VECA that was trained.
        path: A checkpoint, or the folder of a run, whose last checkpoint is taken.
        ema: Take the averaged weights, which the run must have kept.

    Returns:
        The model.

    Raises:
        FileNotFoundError: The folder has no checkpoint.
        ValueError: The run kept no averages.
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
