"""Stores of the patches while an image is streamed: in memory, or in a directory from which a run can go on.

Shapes: C cores, P patches, E embedding dim.
"""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import alone_in, new_array, read_json, read_tensors, reserve, sync, whole_file
from ..hashes import checksum, hex_digest, tensor_parts
from .sources import StripReader

__all__ = ["DirectoryStore", "MemoryStore", "PatchFile", "Progress", "fingerprint"]

Progress = tuple[int, Tensor, Tensor]  # number of blocks done; cores (1, C, E) and raw coordinates after them


class MemoryStore:
    """Keeps the patches in one tensor, which each block updates in place.

    Args:
        shape: (P, E).
        dtype: dtype of the tensor.
        device: device where the blocks run.
        place: "device", or "host". For a GPU, host memory is pinned, so that copies overlap the work.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, place: str):
        pinned = place == "host" and device.type == "cuda"
        kept_on = device if place == "device" else torch.device("cpu")
        self.tensor = torch.empty(shape, dtype=dtype, device=kept_on, pin_memory=pinned)

    def load(self) -> Progress | None:
        """None: memory keeps nothing of an earlier run."""
        return None

    def save(self, done: int, cores: Tensor, raw_xy: Tensor) -> None:
        """Do nothing: a run in memory cannot go on later."""

    def after(self, done: int) -> Tensor:
        """The patches after `done` blocks, (P, E)."""
        return self.tensor

    def remove(self) -> None:
        """Do nothing: the tensor may be the result."""

    def close(self) -> None:
        """Do nothing: nobody else has the tensor."""


class DirectoryStore:
    """Keeps the patches in two memory-mapped files, and the state after the last complete block.

    Each block reads one file and writes the other. The state names the complete one, also after a run is killed. It has
    the checksums of the patches and the cores, so that a run never goes on from others.

    Args:
        path: the directory, made if absent.
        shape: (P, E).
        dtype: dtype of the residual stream.
        run: plain values that identify the run; see `fingerprint`.

    Raises:
        BlockingIOError: another program works in the directory.
        OSError: the disk has no room for the two files.
        ValueError: the directory has another run, and the message names what differs; or its files are damaged.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype, run: dict[str, Any]):
        self.path = path
        self.run = run
        self._state = path / "state.json"
        self._alone = ExitStack()
        self._alone.enter_context(alone_in(path))
        try:
            self._names = [path / f"residual_{index}.bin" for index in range(2)]
            size = shape[0] * shape[1]
            self._saved = self._read_state(size * dtype.itemsize)
            for name in self._names:
                reserve(name, size * dtype.itemsize)
            self._tensors = [torch.from_file(str(name), True, size, dtype=dtype).view(shape) for name in self._names]
        except BaseException:
            self.close()
            raise

    def load(self) -> Progress | None:
        """The progress of an interrupted run; None before the first block.

        Raises:
            ValueError: a file is not what it was.
        """
        if self._saved is None:
            return None
        done, sums = self._saved["blocks_done"], self._saved["crc32"]
        tensors = read_tensors(self._cores(done)) if self._cores(done).is_file() else {}
        found = {self._cores(done): _sums(tensors), self._names[done % 2]: checksum(self.after(done))}
        for path, value in found.items():
            if sums.get(path.name) != value:
                raise ValueError(f"expected {path} as the run wrote it, got other contents; {self._remedy}")
        return done, tensors["cores"], tensors["raw_xy"]

    def save(self, done: int, cores: Tensor, raw_xy: Tensor) -> None:
        """Record the patches after `done` blocks and these cores as the state from which a later run goes on.

        Args:
            done: Number of blocks done.
            cores: Cores after them, (1, C, E).
            raw_xy: Their raw coordinates.
        """
        sync(self._names[done % 2])
        tensors = {"cores": cores.contiguous(), "raw_xy": raw_xy.contiguous()}
        save_file(tensors, self._cores(done))
        sync(self._cores(done))
        sums = {self._cores(done).name: _sums(tensors), self._names[done % 2].name: checksum(self.after(done))}
        with whole_file(self._state, durable=True) as partial:
            content = {"blocks_done": done, "crc32": sums, "run": self.run}
            partial.write_text(json.dumps(content), encoding="utf-8")
        self._cores(done - 1).unlink(missing_ok=True)

    def after(self, done: int) -> Tensor:
        """The patches after `done` blocks, (P, E)."""
        return self._tensors[done % 2]

    def remove(self) -> None:
        """Delete all files of the run. The state goes first."""
        for name in (self._state, *self.path.glob("cores_*.safetensors"), *self._names):
            name.unlink()

    def close(self) -> None:
        """Let other programs work in the directory."""
        self._alone.close()

    @property
    def _remedy(self) -> str:
        return f"remove {self.path} to begin again"

    def _cores(self, done: int) -> Path:
        return self.path / f"cores_{done}.safetensors"

    def _read_state(self, size: int) -> dict[str, Any] | None:
        """The state of an interrupted run of the same call, whose patches have `size` bytes; None without one."""
        if not self._state.exists():
            return None
        state = read_json(self._state)
        if not isinstance(state, dict) or not {"blocks_done", "crc32", "run"} <= state.keys():
            raise ValueError(f"expected blocks_done, crc32 and run in {self._state}, got others; {self._remedy}")
        found = state["run"]
        other = sorted(key for key in {*found, *self.run} if found.get(key) != self.run.get(key))
        if other:
            raise ValueError(
                f"expected {self.path} to be empty or to have an interrupted run of the same call, got a run with "
                f"another {', '.join(other)}"
            )
        patches = self._names[state["blocks_done"] % 2]
        found = patches.stat().st_size if patches.is_file() else "no file"
        if found != size:
            raise ValueError(f"expected {size} bytes of {patches}, got {found}; {self._remedy}")
        return state


def _sums(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: checksum(tensor) for name, tensor in tensors.items()}


class PatchFile:
    """Final patches in a NumPy file, which takes its name when it is complete.

    Args:
        path: name of the file.
        shape: (P, width).
        dtype: dtype of the patches. NumPy has no bfloat16, so bfloat16 is stored as float32, which is exact.

    Raises:
        OSError: the disk has no room for the file.

    Attributes:
        tensor: the patches (P, width), backed by the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype):
        stored = torch.float32 if dtype == torch.bfloat16 else dtype
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = ExitStack()
        partial = self._file.enter_context(whole_file(path))
        like = torch.empty(0, dtype=stored).numpy().dtype
        self._array = new_array(partial, shape, like)
        self.tensor = torch.from_numpy(self._array)

    def complete(self) -> None:
        """Flush the file and give it its name."""
        self._array.flush()
        self._file.close()


def fingerprint(model: nn.Module, image: StripReader, device: torch.device, **options: Any) -> dict[str, Any]:
    """Plain values that are equal for two calls that compute the same numbers.

    Args:
        model: The model, whose weights and settings count.
        image: The image, whose pixels or file count.
        device: Device where the blocks run; its type counts.
        options: More values that count.
    """
    weights = hex_digest(tensor_parts(model.state_dict()), hasher=hashlib.blake2b(digest_size=16))
    settings = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and isinstance(value, bool | int | float | str | tuple | None)
    }
    run = {
        "image": image.identity(),
        "mean": image.mean,
        "std": image.std,
        "weights": weights,
        "model": settings,
        "torch": torch.__version__,
        "device": device.type,
        **options,
    }
    return json.loads(json.dumps(run, default=str))  # as a state file gives it back
