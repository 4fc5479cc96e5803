"""One process or many: joining them, spreading a task over them, and adding up what they compute.

Under `torchrun` every process runs the same program on its share of each batch. DDP keeps a copy of the model in each
process. FSDP2 keeps a share of every block's parameters in each. The core bank is whole everywhere, because it is small
and the optimizer must be able to skip its rows.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..model.cores import CoreBank

__all__ = ["Spread", "World", "clip_gradients", "join_world", "like", "total_norm", "whole"]


@dataclass(frozen=True)
class World:
    """The processes of a training as one of them sees them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Device on which this process computes.
    """

    rank: int
    size: int
    device: torch.device

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in place."""
        if self.size > 1:
            for handle in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                handle.wait()


@contextmanager
def join_world(device: str | torch.device | None = None) -> Iterator[World]:
    """Join the processes that `torchrun` started, if any, and leave them at the end.

    Args:
        device: Device to compute on; None takes the GPU of this process if there is one, else the CPU.
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
    """A task on the processes of a world, all of which start with the weights of the first.

    Args:
        task: The task, on its device.
        world: The processes.
        how: "ddp" or "fsdp", where the loss is the mean of those of the processes. "sum" is for losses that add up over
            processes, with a copy of the task in each. Without effect where there is one process.

    Attributes:
        forward: The task to call, in place of the one given.
        world: The processes.
    """

    def __init__(self, task: nn.Module, world: World, how: str = "ddp"):
        if how not in ("ddp", "fsdp", "sum"):
            raise ValueError(f"expected how to be 'ddp', 'fsdp' or 'sum', got {how!r}")
        self.forward, self.world = task, world
        self._means = how != "sum"
        self._unfinished: list[nn.Parameter] = []  # whose gradients backward passes leave to `finish_gradients`
        if world.size == 1:
            return
        if how == "ddp":
            device_ids = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(task, device_ids=device_ids, broadcast_buffers=False)
            return
        for parameter in task.parameters():
            dist.broadcast(parameter.data, 0)
        if how == "sum":
            self._unfinished = list(task.parameters())
        else:
            self._unfinished = [p for m in task.modules() if isinstance(m, CoreBank) for p in m.parameters()]
            self._shard(task)

    def accumulating(self) -> AbstractContextManager:
        """A context in which backward passes add up gradients without exchanging them."""
        if isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return _without_exchange(self.forward) if isinstance(self.forward, FSDPModule) else nullcontext()

    def finish_gradients(self) -> None:
        """Exchange the gradients that backward passes do not: under FSDP those of the core bank, under "sum" all."""
        self._exchange([p.grad for p in self._unfinished if p.grad is not None])

    def together(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, or its sum under "sum". It may overwrite its input."""
        self._exchange([values])
        return values

    def _exchange(self, tensors: list[Tensor]) -> None:
        self.world.add_up(tensors)
        if self.world.size > 1 and self._means:
            for tensor in tensors:
                tensor /= self.world.size

    def _shard(self, task: nn.Module) -> None:
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        for block in getattr(task.backbone, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(task, mesh=mesh, ignored_params=set(self._unfinished))
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
    """Return the Euclidean norm of all gradients together; sharded ones count on all processes."""
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    norms = [torch.nn.utils.get_total_norm(part) for part in (sharded, whole) if part]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], norm: Tensor, limit: float, epsilon: float = 1e-6) -> None:
    """Scale gradients down, in place, where their norm is above a limit.

    Args:
        gradients: Gradients, of which some may be sharded.
        norm: Their `total_norm`.
        limit: Largest norm.
        epsilon: Number that is added to the norm before it divides; torch has 1e-6.
    """
    factor = (limit / (norm + epsilon)).clamp(max=1.0)
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]  # torch clips with it too
        return
    for gradient in gradients:
        gradient.mul_(factor)


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as one, and any other as it is. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, reference: Tensor) -> Tensor:
    """Return a whole tensor on the device of another one, and sharded as that is."""
    value = value.to(reference.device)
    if isinstance(reference, DTensor):
        return distribute_tensor(value, reference.device_mesh, reference.placements)
    return value
