"""Poison: memory that the package allocates without filling it starts as NaN, so what is not written shows."""

import sys

import pytest
import torch

with torch.device("cpu"):  # torch keeps the set of its constructors from the first use on: it must hold the real ones
    torch.empty(0)


def _from_package(depth: int = 2) -> bool:
    return sys._getframe(depth).f_globals.get("__name__", "").startswith("veca_kernels")


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(original):
        def allocate(*args, **kwargs):
            x = original(*args, **kwargs)
            real = type(x) is torch.Tensor and x.device.type in ("cpu", "cuda")
            if real and _from_package() and x.is_floating_point() and not torch.compiler.is_compiling():
                x.fill_(float("nan"))
            return x

        return allocate

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
