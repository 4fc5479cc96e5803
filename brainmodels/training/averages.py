"""Exponential moving averages of the weights that are trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Averages"]


class Averages:
    """Averaged weights beside the trained ones.

    After step n (from 1) an average moves towards its parameter by 1 - min(decay, (1 + n) / (10 + n)). Without the
    second term, a decay of 0.9999 would still hold 86 % of the first weights after 1,500 steps.

    Args:
        parameters: by name; their present values are the first averages.
        decay: of long runs, from 0 to below 1.

    Attributes:
        values: the averages by name, on the devices of the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.decay = decay
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}
        self._parameters = dict(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter, weight)

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
