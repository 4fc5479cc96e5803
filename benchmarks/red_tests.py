"""The measurements that a failed GPU test concerns. This file does not import torch.

A rule is a pattern of test names and the facts that a row must have for such a test to concern it. The first rule that
matches a test decides. A test that matches no rule concerns every row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .record import Row

__all__ = ["concerns", "mark_red"]

# Facts of a row: "dtype", "rotated", "mode", "impl", "model" (True for a backbone), "huge" (more than 2^31 elements).
RULES: tuple[tuple[str, Mapping[str, Sequence[Any]]], ...] = (
    (r"test_gpu\.py::.*\bsdpa\b", {"impl": ["veca-sdpa"]}),
    (r"test_gpu\.py::test_more_than_two_to_the_31", {"huge": [True]}),
    (r"test_gpu\.py::test_cuda_graph", {"mode": ["graph"]}),
    (r"test_gpu\.py::test_compile", {"mode": ["blocks", "compiled"]}),
    (r"test_gpu\.py::test_(peak_memory|sizes_budgets)", {"model": []}),  # these test memory and compilation, not values
    (r"test_gpu\.py::.*rope", {"rotated": [True], "impl": ["veca-triton"]}),
    (r"test_gpu\.py", {"impl": ["veca-triton"]}),
    (r"tests/veca/", {"model": [True]}),
)
_HUGE = 2**31


def concerns(test: str, row: Row) -> bool:
    """Whether a failed test concerns a row of a backbone or of the kernels' summary."""
    facts = _facts(row)
    dtype = re.search(r"torch\.(float16|bfloat16|float32)", test)
    if dtype and dtype[1] != facts["dtype"]:
        return False
    wanted = next((rule for pattern, rule in RULES if re.search(pattern, test)), {})
    return all(facts[name] in values for name, values in wanted.items())


def mark_red(rows: Iterable[Row], failed: Sequence[str]) -> list[Row]:
    """The rows, each with a list "red" of the failed tests that concern it."""
    return [row | {"red": [test for test in failed if concerns(test, row)]} for row in rows]


def _facts(row: Row) -> dict[str, Any]:
    model = row.get("kind") == "backbone"
    tokens = row.get("B", 0) * (row.get("P", 0) + row.get("C", 0)) * row.get("H", 0) * row.get("D", 0)
    return {
        "dtype": row.get("dtype"),
        "rotated": model or row.get("tables") is not None,  # every VECA rotates
        "mode": row.get("mode"),
        "impl": row.get("ours", "veca-triton"),
        "model": model,
        "huge": tokens > _HUGE,
    }
