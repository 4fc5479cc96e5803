"""The rate that shares of the matmul peak refer to: measured on the machine at hand, in the run that uses it."""

import torch

from ..model.linear import linear
from .timing import Budget, Contender, Timing, measure

__all__ = ["matmul_peak"]


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product of random numbers.

    The faster of torch's matmul and VECA's linear layer, which on x86 CPUs takes another library; of each the
    20 % quantile of the times, since a peak is what the machine can do, not what its other programs leave.

    Args:
        device: CUDA multiplies matrices of side 8192, a CPU of side 1024.
        dtype: of both matrices.
    """
    cuda = device.type == "cuda"
    side = 8192 if cuda else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    contenders = {
        "matmul": Contender(lambda: [lambda: a @ b], torch.inference_mode, kept=True),
        "linear": Contender(lambda: [lambda: linear(a, b)], torch.inference_mode, kept=True),
    }
    timings = measure(contenders, "eager" if cuda else "cpu", Budget(runs=20, screening=5, max_seconds=1.0))
    for name, timing in timings.items():
        if not isinstance(timing, Timing):
            raise RuntimeError(f"the {name} that fixes the peak rate of {device} failed: {timing}")
    return 2 * side**3 / min(timing.low for timing in timings.values())
