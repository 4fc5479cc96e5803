"""Checkpoints are folders of safetensors and JSON, which appear whole or not at all.

`state.json` has the size and the SHA-256 of the other files, so that a run never goes on from a file that was cut or
changed. Hashing takes about a second for each gigabyte.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import read_sealed, read_tensors, sealed
from ..hashes import file_facts, file_fault
from .parallel import World

__all__ = [
    "Checkpoint",
    "last_whole_checkpoint",
    "latest_checkpoint",
    "load_backbone",
    "load_checkpoint",
    "save_checkpoint",
    "save_together",
]

_log = logging.getLogger(__name__)
_PREFIX = "step-"
_TENSORS = ("weights", "optimizer", "ema")
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

    It is written under another name, flushed, and renamed. Other processes see all of it or nothing. Checkpoints of
    later steps are removed: the run could not go on from them, because they are damaged.

    Args:
        folder: Folder of all checkpoints of the run.
        checkpoint: Checkpoint to write.
        keep: Number of checkpoints to leave.

    Returns:
        The folder of the checkpoint, such as `folder/step-00000100`.
    """
    target = folder / f"{_PREFIX}{checkpoint.step:08d}"
    partial = folder / f".partial-{target.name}"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    files = {}
    for name in _TENSORS:
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
        path = partial / f"{name}.safetensors"
        save_file(tensors, path)
        files[path.name] = file_facts(path)
    state = {"step": checkpoint.step, "recipe": checkpoint.recipe, "files": files}
    (partial / "state.json").write_text(sealed(state), encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    _flush(folder)
    found = _found(folder)
    end = found.index(target) + 1
    for other in (*found[: max(end - keep, 0)], *found[end:]):
        shutil.rmtree(other)
    return target


def save_together(folder: Path, checkpoint: Checkpoint, world: World) -> Path:
    """Write a checkpoint on the first process while the others wait, and return its folder."""
    if world.rank == 0:
        save_checkpoint(folder, checkpoint)
    if world.size > 1:
        dist.barrier()
    path = latest_checkpoint(folder)
    if path is None:
        raise FileNotFoundError(f"expected a checkpoint of step {checkpoint.step} in {folder}, got none")
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint in a folder, None where there is none."""
    found = _found(folder)
    return found[-1] if found else None


def last_whole_checkpoint(folder: Path) -> tuple[Path, Checkpoint] | None:
    """Return the last checkpoint that is whole, and its path; None where there is no checkpoint.

    A warning names those that are damaged. A run that goes on from an older one does the same steps again.

    Raises:
        ValueError: All checkpoints are damaged.
    """
    found = _found(folder)
    while found:
        path = found.pop()
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            if not found:
                raise
            _log.warning("%s; going on from there", error)
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, with its tensors on the CPU.

    Args:
        path: Folder of the checkpoint.

    Raises:
        ValueError: A file is missing, truncated or changed. The message also names the checkpoint before this one.
    """
    try:
        if not (path / "state.json").is_file():
            raise ValueError(f"expected a checkpoint in {path}, got no state.json")
        state = read_sealed(path / "state.json")
        for name, facts in state["files"].items():
            if fault := file_fault(path / name, facts):
                raise ValueError(fault)
    except ValueError as error:
        older = [other for other in _found(path.parent) if other.name < path.name]
        rest = f"the checkpoint before it is {older[-1]}" if older else f"there is no older one in {path.parent}"
        raise ValueError(f"{error}; {rest}") from None
    tensors = {name: read_tensors(path / f"{name}.safetensors") for name in _TENSORS}
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
        ValueError: The checkpoint is damaged, or the run kept no averages.
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
