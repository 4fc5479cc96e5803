"""Exponential moving averages of the weights that are trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .parallel import like

__all__ = ["Averages"]


class Averages:
    """Averaged weights beside the trained ones.

    After each step an average moves towards its parameter by 1 - decay. With a ramp, the decay after step n (from 1)
    is min(decay, (1 + n) / (10 + n)). Without it, 86 % of the first weights are left after 1,500 steps of decay 0.9999.

    Args:
        parameters: Parameters by name. Their present values are the first averages.
        decay: Share of an average that a step leaves, from 0 to below 1.
        ramp: Average fewer steps at the beginning, see above.

    Attributes:
        values: Averages by name, on the devices of the parameters and sharded as these are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, ramp: bool = True):
        self.decay, self.ramp = decay, ramp
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}
        self._parameters = dict(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Replace the averages.

        Args:
            values: Whole tensors by name.

        Raises:
            ValueError: An average is missing or has another shape.
        """
        for name, tensor in self.values.items():
            if name not in values or values[name].shape != tensor.shape:
                got = tuple(values[name].shape) if name in values else "nothing"
                raise ValueError(f"expected the average of {name} of shape {tuple(tensor.shape)}, got {got}")
            self.values[name] = like(values[name], tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the parameters hold the averages; afterwards they are bit for bit what they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data
