"""Training some parameters of a module while the others are frozen."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import BrainDataError, near_names

__all__ = ["only_trained", "train_mode"]


@contextmanager
def only_trained(task: nn.Module, trainable: Collection[str] | None) -> Iterator[dict[str, nn.Parameter]]:
    """A context in which some parameters require gradients, and no others.

    At its end, also after an error, the flags are what they were and the module is in eval mode.

    Args:
        task: Module that has the parameters.
        trainable: Names of the parameters; None are those that require gradients now.

    Returns:
        The parameters by name.

    Raises:
        BrainDataError: A name is unknown, or there is nothing to train.
    """
    named = dict(task.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in named.items()}
    chosen = {name for name, flag in flags.items() if flag} if trainable is None else set(trainable)
    for name in sorted(chosen - set(named)):
        raise BrainDataError(f"expected names of the task's parameters, got {name!r}{near_names(name, list(named))}")
    if not chosen:
        raise BrainDataError("expected parameters to train, got none")
    try:
        for name, parameter in named.items():
            parameter.requires_grad_(name in chosen)
        train_mode(task)
        yield {name: parameter for name, parameter in named.items() if name in chosen}
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(flags[name])
        for name in chosen:
            named[name].grad = None
        task.eval()


def train_mode(task: nn.Module) -> None:
    """Put a module in training mode, and the modules in it whose parameters are all frozen in eval mode."""
    task.train()
    for module in task.modules():
        flags = [parameter.requires_grad for parameter in module.parameters()]
        if flags and not any(flags):
            module.eval()
