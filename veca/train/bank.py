"""Rows of the core bank that a step does not use stay as they are.

A step with budget C gives the rows from C on a gradient of zero, not none. An optimiser would still move them, by
momentum and by weight decay, and would count the step for them. So the optimiser is not shown the bank but pieces of
it, cut where budgets end, that share its memory; a piece without an active row gets no gradient at all, and no
optimiser touches a parameter without gradient or the state it keeps for it.

Users and checkpoints of weights see one (M, E) tensor. Each piece has its own state and its own step count: Adam's
bias correction counts the steps in which a row took part.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

__all__ = ["RowSlices"]


class RowSlices:
    """One parameter as pieces of its rows, each a parameter on the same memory.

    Move the parameter to its device before; a later move would leave the pieces behind.

    Args:
        name: of the parameter; the pieces are called name[start:stop].
        parameter: (M, ...).
        edges: ascending, from 0 to M; piece i holds the rows edges[i] to edges[i + 1].
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
        """(name, piece), first rows first."""
        for (start, stop), part in zip(self._spans(), self.slices, strict=True):
            yield f"{self.name}[{start}:{stop}]", part

    def take_gradients(self, num_active: int) -> None:
        """Hand the gradient of the parameter to the pieces within the first `num_active` rows, none to the others.

        Args:
            num_active: one of the edges. Any other would split a piece in rows to move and rows to leave.
        """
        if num_active not in self.edges:
            raise ValueError(f"expected a number of active rows among the edges {self.edges}, got {num_active}")
        gradient: Tensor | None = self.parameter.grad
        for (start, stop), part in zip(self._spans(), self.slices, strict=True):
            if part.untyped_storage().data_ptr() != self.parameter.untyped_storage().data_ptr():
                raise RuntimeError(f"{self.name} has moved since the optimiser was built; build it after the move")
            active = gradient is not None and stop <= num_active
            part.grad = gradient[start:stop] if active else None

    def drop_gradients(self) -> None:
        """Let go of the gradients, the parameter's own included."""
        self.parameter.grad = None
        for part in self.slices:
            part.grad = None

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))
