"""Verdicts on the numbers that this project promises: met, missed or not measured. This file does not import torch.

Attention is judged in bf16 by the median of the whole op under CUDA graphs:

    shape       H = 12 heads of D = 64 channels
    "rotated"   the op with patch_rope, as every VECA calls it, with the angle tables that make it fastest
    backbone    bf16 inference
    CPU         wall clock

A missed number is reported as missed, and the baseline does not change. A verdict names the failed tests that concern
it.
"""

from collections.abc import Iterable, Sequence

from .floors import AttentionCase, memory_limit
from .record import Row, markdown_table, microseconds

__all__ = ["GRID", "ROTATED", "SHAPES", "judge", "judge_backbone", "verdict_table"]

LONG, WIDE, SHORT = (1, 65536, 64), (64, 4096, 64), (1, 4096, 64)  # (B, P, C)
MIDDLE = (8, 16384, 64)
SHAPES = (SHORT, LONG, WIDE)
ROTATED = (LONG, WIDE, SHORT, MIDDLE)
HUGE = (64, 65536)  # (B, P); it takes longer than all others together
GRID = tuple(
    sorted(
        ((B, P, C) for C in (64, 16, 128, 256) for P in (196, 1024, 4096, 16384, 65536) for B in (1, 8, 64)),
        key=lambda shape: (shape[:2] == HUGE, shape[2] != 64, shape[2], shape[0] * shape[1]),
    )
)  # the cheapest first, C = 64 before the others; a run names the shapes that its time leaves out
FLOOR_FACTOR = 1.4
SDPA_FACTOR = 1.6
PEER_FACTOR = 0.95
PEER_FACTOR_ROTATED = 1.6
FULL_FACTORS = ((SHORT, 10.0), (LONG, 200.0))
CPU_FACTOR = 15.0
MATMUL_SHARE = 0.6
BACKBONE = ("veca_base_patch16", 4096)  # model, pixels


def judge(summary: Sequence[Row], device: str) -> list[Row]:
    """Judge the summary rows (see `summary.summarize_rows`) of a "cuda" or a "cpu" run."""
    if device == "cpu":
        return [_judge_cpu(summary, dtype) for dtype in ("float32", "bfloat16")]
    training = {shape: _find(summary, shape, "fwd+bwd") for shape in (SHORT, LONG, WIDE)}
    rotated = {shape: _find(summary, shape, "fwd+bwd", rotated=True) for shape in (LONG, WIDE)}
    verdicts = [_judge_floor(f"rotated fwd+bwd, {_name(shape)}", row) for shape, row in rotated.items()]
    for shape, row in rotated.items():
        quantity = f"rotated fwd+bwd against the best peer and its compiled rotation, {_name(shape)}"
        verdicts.append(_judge_ratio(quantity, PEER_FACTOR_ROTATED, row, "peer"))
    verdicts += [_judge_floor(f"fwd+bwd, {_name(shape)}", training[shape]) for shape in (LONG, WIDE)]
    for shape in (LONG, WIDE):
        quantity = f"fwd+bwd against the best SDPA, folded included, {_name(shape)}"
        verdicts.append(_judge_ratio(quantity, SDPA_FACTOR, training[shape], "sdpa"))
    for shape, factor in FULL_FACTORS:
        quantity = f"fwd+bwd against full attention, {_name(shape)}"
        verdicts.append(_judge_ratio(quantity, factor, training[shape], "full"))
    verdicts.append(_judge_forward(summary))
    verdicts += [_judge_memory(shape, training[shape]) for shape in (LONG, WIDE)]
    return verdicts


def judge_backbone(rows: Iterable[Row]) -> Row:
    """Judge the backbone by a forward at 4096 px, as a share of the matmul peak."""
    judged = [
        row
        for row in rows
        if row.get("kind") == "backbone"
        and (row["model"], row["size"], row["pass"]) == (*BACKBONE, "inference")
        and row["status"] == "ok"
    ]
    best = max(judged, key=lambda row: row["matmul_share"], default=None)
    share = 0.0 if best is None else best["matmul_share"]
    measured = None if best is None else f"{100 * share:.0f} %"
    required = f">= {100 * MATMUL_SHARE:.0f} % of the matmul peak"
    quantity = f"VECA-B forward at {BACKBONE[1]} px, bf16"
    return _verdict(quantity, required, measured, share >= MATMUL_SHARE, best)


def verdict_table(verdicts: Iterable[Row]) -> str:
    """The verdicts as a Markdown table."""
    return markdown_table(verdicts, ("quantity", "required", "measured", "verdict", "baseline"))


def _judge_cpu(summary: Sequence[Row], dtype: str) -> Row:
    quantity = f"sdpa op forward against full attention on CPU, P=4096, C=64, H=12, D=64, {dtype}"
    return _judge_ratio(quantity, CPU_FACTOR, _find(summary, SHORT, "fwd", "cpu", dtype), "full")


def _judge_floor(quantity: str, row: Row | None) -> Row:
    if row is None:
        return _verdict(quantity, f"<= {FLOOR_FACTOR}x of the floor", None, False)
    limit = FLOOR_FACTOR * row["floor_us"]
    required = f"<= {FLOOR_FACTOR}x of the floor: {microseconds(limit * 1e-6)}"
    measured = f"{microseconds(row['ours_us'] * 1e-6)} ({row['ours_us'] / row['floor_us']:.2f}x)"
    measured += f", {row['tables']} tables" if row.get("tables") else ""
    return _verdict(quantity, required, measured, row["ours_us"] <= limit, row)


def _judge_ratio(quantity: str, factor: float, row: Row | None, against: str) -> Row:
    required = f">= {factor:g}x faster"
    ratio = None if row is None else row[f"{against}_ratio"]
    measured = None if ratio is None else f"{ratio:.2f}x"
    met = ratio is not None and ratio >= factor
    return _verdict(quantity, required, measured, met, row, None if row is None else row[against])


def _judge_forward(summary: Sequence[Row]) -> Row:
    """Judge forward against the best peer. Every shape of the grid counts, and an unmeasured one is not met."""
    rows = {shape: _find(summary, shape, "fwd") for shape in GRID}
    ratios = {shape: row["peer_ratio"] for shape, row in rows.items() if row and row["peer_ratio"] is not None}
    quantity = "forward against the best peer, every benchmark shape"
    required = f"never slower than {PEER_FACTOR}x"
    if not ratios:
        return _verdict(quantity, required, None, False)
    worst = min(ratios, key=ratios.__getitem__)
    losing = sum(ratio < PEER_FACTOR for ratio in ratios.values())
    measured = (
        f"worst {ratios[worst]:.2f}x at {_name(worst)}; {losing} of {len(ratios)} measured shapes below, "
        f"{len(GRID) - len(ratios)} of {len(GRID)} not measured"
    )
    red = [test for row in rows.values() if row for test in row.get("red", ())]
    worst_row = rows[worst] | {"red": list(dict.fromkeys(red))}
    word = "met where measured" if len(ratios) < len(GRID) else "met"
    return _verdict(quantity, required, measured, not losing, worst_row, rows[worst]["peer"], word)


def _judge_memory(shape: tuple[int, int, int], row: Row | None) -> Row:
    case = AttentionCase(*shape)
    limit = memory_limit(case)
    quantity = f"peak memory of fwd+bwd, {_name(shape)}"
    required = f"<= q, k, v, o, their gradients and 32 MB: {limit / 1e6:.0f} MB"
    if row is None or row["peak_bytes"] is None:
        return _verdict(quantity, required, None, False)
    held = 4 * (case.patch_bytes + case.core_bytes) + row["peak_bytes"]  # q, k, v, dO are inputs
    return _verdict(quantity, required, f"{held / 1e6:.0f} MB", held <= limit, row)


def _verdict(
    quantity: str,
    required: str,
    measured: str | None,
    met: bool,
    row: Row | None = None,
    baseline: str | None = None,
    word: str = "met",
) -> Row:
    verdict = "not measured" if measured is None else word if met else "missed"
    if row is not None and row.get("refused"):
        measured, verdict = None, f"withheld, numerical check failed: {row['refused']}"
    elif row is not None and row.get("red") and measured is not None:
        first, *more = row["red"]
        verdict += f", but a test is red: {first}" + (f" and {len(more)} more" if more else "")
    return {
        "quantity": quantity,
        "required": required,
        "measured": measured,
        "verdict": verdict,
        "baseline": baseline,
    }


def _find(
    summary: Sequence[Row],
    shape: tuple[int, int, int],
    pass_: str,
    mode: str = "graph",
    dtype: str = "bfloat16",
    rotated: bool = False,
) -> Row | None:
    """The row of the whole op. With several angle tables it is the fastest one."""
    wanted = (dtype, *shape, 12, 64, "whole", pass_, mode)
    names = ("dtype", "B", "P", "C", "H", "D", "op", "pass", "mode")
    found = (row for row in summary if tuple(row[name] for name in names) == wanted)
    matching = (row for row in found if (row.get("tables") is not None) == rotated)
    return min(matching, key=lambda row: row["ours_us"], default=None)


def _name(shape: tuple[int, int, int]) -> str:
    return "B={}, P={:,}, C={}".format(*shape)
