"""Where kernels may run: facts about a device, and CPU tensors that tests and benchmarks send the way of a GPU's."""

import functools
import os

import torch
from torch import Tensor

_INTERPRETED_DEVICE = (4, 163 << 10)  # multiprocessors, bytes of shared memory
_emulated: tuple[int, int] | None = None


def interpreting() -> bool:
    """True where Triton kernels run on the CPU, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def emulate(facts: tuple[int, int] | None) -> None:
    """Let CPU tensors take the path of a GPU with these `device_facts`; None undoes it.

    For tests and benchmarks of the host side. They replace Triton's driver by one that runs nothing.
    """
    global _emulated
    _emulated = facts


def takes_gpu_path(x: Tensor) -> bool:
    """True for CUDA tensors, and under `emulate` for CPU tensors."""
    return x.is_cuda or (_emulated is not None and x.is_cpu)


def kernels_on_cpu() -> bool:
    """True where CPU tensors go to the Triton kernels: in the interpreter and under `emulate`."""
    return _emulated is not None or interpreting()


def device_facts(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, bytes of shared memory that a block may use). For the interpreter it is a small device."""
    if device.type != "cuda":
        return _emulated or _INTERPRETED_DEVICE
    return _cuda_facts(device)


@functools.cache
def _cuda_facts(device: torch.device) -> tuple[int, int]:
    facts = torch.cuda.get_device_properties(device)
    shared = getattr(facts, "shared_memory_per_block_optin", 0) or facts.shared_memory_per_block
    return facts.multi_processor_count, shared
