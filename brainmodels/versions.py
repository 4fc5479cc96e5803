"""Versions that numbers depend on."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions"]


@cache
def library_versions(*packages: str) -> Mapping[str, str]:
    """Versions of veca, numpy and torch, and of other installed distributions that a number depends on."""
    found = {}
    for package in ("veca", "numpy", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
