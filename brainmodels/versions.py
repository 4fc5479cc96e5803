"""Versions that numbers depend on."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions", "release"]


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


def release(distribution: str) -> str:
    """Version of an installed distribution without the name of its build: "2.9.0+cpu" gives "2.9.0".

    Raises:
        PackageNotFoundError: It is not installed.
    """
    return version(distribution).split("+")[0]
