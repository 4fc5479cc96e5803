"""The matmul peak, to which shares refer. It is measured on the same machine and in the same run."""

import torch

from ..model.linear import linear
from .timing import Contender, TimeLimits, Timing, measure

__all__ = ["matmul_peak"]


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the rate of a large square matrix product of random numbers, in FLOP/s.

    It is the faster of torch's matmul and VECA's linear layer, which uses another library on x86 CPUs. Each counts
    with the 20 % quantile of its times, because other programs slow some of the runs.

    Args:
        device: device to measure. CUDA multiplies matrices of side 8192, a CPU of side 1024.
        dtype: dtype of both matrices.

    Raises:
        RuntimeError: a product failed.
    """
    cuda = device.type == "cuda"
    side = 8192 if cuda else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    contenders = {
        "matmul": Contender(lambda: [lambda: a @ b], torch.inference_mode, kept=True),
        "linear": Contender(lambda: [lambda: linear(a, b)], torch.inference_mode, kept=True),
    }
    timings = measure(contenders, "eager" if cuda else "cpu", TimeLimits(runs=20, screening=5, max_seconds=1.0))
    lows = []
    for name, timing in timings.items():
        if not isinstance(timing, Timing):
            raise RuntimeError(f"the {name} that fixes the peak rate of {device} failed: {timing}")
        lows.append(timing.low)
    return 2 * side**3 / min(lows)
