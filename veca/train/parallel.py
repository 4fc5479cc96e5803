"""Training on one process or many: joining the processes, distributing a task over them, and averaging over them.

Under `torchrun` every process runs the same program on its share of each batch. DDP keeps a copy of the model in each
process. FSDP2 keeps a share of every block's parameters. The core bank is whole in every process. It is small, and the
optimiser must be able to skip its rows.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..model.cores import CoreBank

__all__ = ["Spread", "World", "join_world", "total_norm"]


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: device on which this process computes.
    """

    rank: int
    size: int
    device: torch.device

    def mean(self, values: Tensor) -> Tensor:
        """Average over the processes. With one process it returns the input; with more it overwrites the input."""
        if self.size == 1:
            return values
        dist.all_reduce(values)
        return values / self.size


@contextmanager
def join_world(device: str | torch.device | None = None) -> Iterator[World]:
    """Join the processes that `torchrun` started, if any, and leave them at the end.

    Args:
        device: device to compute on. None takes the GPU of this process if there is one, else the CPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device is None:
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joins = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if joins:
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        if dist.is_initialized():
            yield World(dist.get_rank(), dist.get_world_size(), device)
        else:
            yield World(0, 1, device)
    finally:
        if joins:
            dist.destroy_process_group()


class Spread:
    """A task distributed over the processes of a world.

    Args:
        task: the task, on its device.
        world: the processes.
        how: "ddp" or "fsdp". It has no effect with one process.

    Attributes:
        forward: the distributed task, to be called in place of the task.

    Raises:
        ValueError: an unknown `how`.
    """

    def __init__(self, task: nn.Module, world: World, how: str = "ddp"):
        if how not in ("ddp", "fsdp"):
            raise ValueError(f"expected how to be 'ddp' or 'fsdp', got {how!r}")
        self.forward = task
        self._world = world
        self._whole: list[nn.Parameter] = []
        if world.size == 1:
            return
        if how == "ddp":
            device_ids = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(task, device_ids=device_ids, broadcast_buffers=False)
        else:
            self._whole = [p for m in task.modules() if isinstance(m, CoreBank) for p in m.parameters()]
            self._shard(task)

    def accumulating(self) -> AbstractContextManager:
        """A context in which backward passes add up gradients without exchanging them."""
        if isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return _without_exchange(self.forward) if isinstance(self.forward, FSDPModule) else nullcontext()

    def finish_gradients(self) -> None:
        """Average the gradients that backward did not average: those of whole parameters beside sharded ones."""
        for parameter in self._whole:
            if parameter.grad is not None:
                parameter.grad = self._world.mean(parameter.grad)

    def _shard(self, task: nn.Module) -> None:
        for parameter in task.parameters():
            dist.broadcast(parameter.data, 0)
        mesh = init_device_mesh(self._world.device.type, (self._world.size,))
        for block in getattr(task.backbone, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(task, mesh=mesh, ignored_params=set(self._whole))
        if hasattr(task, "predict"):
            register_fsdp_forward_method(task, "predict")


@contextmanager
def _without_exchange(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together. Sharded gradients count over all processes."""
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    norms = [torch.nn.utils.get_total_norm(part) for part in (sharded, whole) if part]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(norms))
