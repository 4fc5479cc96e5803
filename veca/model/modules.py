"""torch's `ModuleList` with the type of its modules, for type checkers. At run time it is torch's class itself."""

from typing import TYPE_CHECKING

from torch import nn

__all__ = ["Modules"]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Generic, TypeVar, overload

    M = TypeVar("M", bound=nn.Module)

    class Modules(nn.ModuleList, Generic[M]):
        @overload
        def __getitem__(self, idx: slice) -> "Modules[M]": ...
        @overload
        def __getitem__(self, idx: int) -> M: ...
        def __getitem__(self, idx: int | slice) -> "M | Modules[M]": ...
        def __iter__(self) -> Iterator[M]: ...

else:
    Modules = nn.ModuleList
