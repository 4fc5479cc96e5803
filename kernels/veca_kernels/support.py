"""Whether the Triton kernels can take a call. `impl="auto"` and the errors of `impl="triton"` share the predicates."""

import importlib.util

import torch
from torch import Tensor

from .devices import device_facts, kernels_on_cpu
from .triton.tables import fits

MAX_CORES = 128
MAX_HEAD_DIM = 128
MAX_WIDTH = 8192  # numbers in a row that stay in the registers of one block
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def triton_support(tensors: tuple[Tensor, ...], num_cores: int) -> tuple[bool, str]:
    """(True, "") if the kernels take these tensors, with last dimension D, else (False, reason and remedy)."""
    x = tensors[0]
    fallback = "use impl='auto' or impl='sdpa'"
    if refusal := _device_refusal(x.device, fallback):
        return False, refusal
    if x.dtype not in TRITON_DTYPES:
        return False, f"expected float16, bfloat16 or float32, got {x.dtype}; {fallback}"
    if x.shape[-1] % 8 or not 8 <= x.shape[-1] <= MAX_HEAD_DIM:
        return False, f"expected a head dim that is a multiple of 8 up to 128, got {x.shape[-1]}; {fallback}"
    if num_cores > MAX_CORES:
        return False, f"expected at most {MAX_CORES} cores, got {num_cores}; {fallback}"
    if any(t.stride(-1) != 1 for t in tensors):
        strides = [t.stride(-1) for t in tensors]
        return False, f"expected a contiguous last dimension, got last strides {strides}; call .contiguous()"
    size = (num_cores, x.shape[-1], x.element_size())
    if not fits(*size, shared=0) and not fits(*size, shared=device_facts(x.device)[1]):
        return False, f"{num_cores} cores of head dim {size[1]} exceed this GPU's shared memory; {fallback}"
    return True, ""


def row_support(tensors: tuple[Tensor, ...], width: int) -> tuple[bool, str]:
    """The same answer for the kernels that work on whole rows of `width` numbers."""
    fallback = "use impl='auto' or impl='torch'"
    if refusal := _device_refusal(tensors[0].device, fallback):
        return False, refusal
    if others := [x.dtype for x in tensors if x.dtype not in TRITON_DTYPES]:
        return False, f"expected float16, bfloat16 or float32, got {others[0]}; {fallback}"
    if width > MAX_WIDTH:
        return False, f"expected rows of at most {MAX_WIDTH} numbers, got {width}; {fallback}"
    return True, ""


def _device_refusal(device: torch.device, fallback: str) -> str:
    """Why no kernel runs on that device, or an empty string where kernels run."""
    if not _TRITON_INSTALLED:
        return f"triton is not installed; `pip install triton` on Linux, or {fallback}"
    if device.type != "cuda" and not (device.type == "cpu" and kernels_on_cpu()):
        return f"expected CUDA tensors, got {device}; move them to a GPU, or {fallback}"
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"expected compute capability 8.0 or newer, got {major}.{minor}; {fallback}"
    return ""
