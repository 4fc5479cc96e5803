"""Slices of the core bank, so that an optimiser does not change the rows that a step does not use.

A step with budget C gives the rows from C on a gradient of zero, which is not the same as no gradient. An optimiser
would still move these rows by momentum and weight decay, and would count the step for them. So the optimiser gets
slices of the bank that share its memory. They are cut at the rows where budgets end. A slice without active rows gets
no gradient, and no optimiser changes a parameter without gradient, or its state.

Users and checkpoints of weights see one (M, E) tensor. Each slice has its own state and step count, so Adam's bias
correction counts only the steps in which a row took part.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

__all__ = ["RowSlices"]


class RowSlices:
    """One parameter as slices of its rows, each of which is a parameter on the same memory.

    The parameter must be on its device already, because a later move would not move the slices.

    Args:
        name: name of the parameter. The slices are called name[start:stop].
        parameter: parameter (M, ...).
        edges: ascending row numbers from 0 to M. Slice i has the rows edges[i] to edges[i + 1].

    Attributes:
        slices: the slices, first rows first.

    Raises:
        ValueError: edges that do not ascend from 0 to M.
    """

    def __init__(self, name: str, parameter: nn.Parameter, edges: Sequence[int]):
        edges = tuple(edges)
        if edges[0] != 0 or edges[-1] != len(parameter) or list(edges) != sorted(set(edges)):
            raise ValueError(f"expected ascending edges from 0 to {len(parameter)} rows of {name}, got {edges}")
        self.name = name
        self.parameter = parameter
        self.edges = edges
        self.slices = [nn.Parameter(parameter.data[start:stop]) for start, stop in self._spans()]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name, slice), first rows first."""
        for (start, stop), part in zip(self._spans(), self.slices, strict=True):
            yield f"{self.name}[{start}:{stop}]", part

    def take_gradients(self, num_active: int) -> None:
        """Give the parameter's gradient to the slices within the first `num_active` rows, and none to the others.

        Args:
            num_active: number of active rows, one of the edges. Another number would cut through a slice.

        Raises:
            ValueError: a number that is not an edge.
            RuntimeError: the parameter was moved after the slices were made.
        """
        if num_active not in self.edges:
            raise ValueError(f"expected a number of active rows among the edges {self.edges}, got {num_active}")
        gradient: Tensor | None = self.parameter.grad
        for (start, stop), part in zip(self._spans(), self.slices, strict=True):
            if part.untyped_storage().data_ptr() != self.parameter.untyped_storage().data_ptr():
                raise RuntimeError(f"{self.name} has moved since the optimiser was built; build it after the move")
            part.grad = gradient[start:stop] if gradient is not None and stop <= num_active else None

    def drop_gradients(self) -> None:
        """Drop the gradients of the slices and of the parameter."""
        self.parameter.grad = None
        for part in self.slices:
            part.grad = None

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))
