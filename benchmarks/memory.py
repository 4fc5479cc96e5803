"""Peak memory of a call, beyond what was held before it."""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], object], device: torch.device, held: Iterable[Tensor] = ()) -> int:
    """The most bytes of tensors alive at once during `call`, those alive before it not counted.

    Args:
        call: runs the work; on CUDA it should have run before, so that library workspaces exist.
        device: CUDA asks its allocator. On a CPU every tensor that an operator returns counts from its
            creation to its end; buffers inside an operator are not seen.
        held: tensors that exist before, weights and inputs (CPU only).
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    counter = _LiveStorages(held)
    with counter:
        call()
    return counter.peak


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators return, until they are freed."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held = [x.untyped_storage() for x in held]  # kept, so that no new storage takes their address
        self._known = {storage._cdata for storage in self._held}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._track(leaf.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
