"""Ratios from timing rows: the best peer, our speed-up, and the share of the floor. This file does not import torch.

A row is what `benchmarks.kernels` writes for one contender, op, pass, mode and shape. Most peers have no joint op. For
"whole" the times of the best read and the best write are added, without the concatenation that our op includes. If the
op rotates, a peer counts with the angle tables that make it fastest. A ratio is withheld if one of our implementations
failed its numerical check.
"""

from collections.abc import Callable, Iterable
from typing import Any

from .record import Row, markdown_table, microseconds

__all__ = ["detail_table", "host_table", "launches_table", "notes", "summarize_rows", "summary_table", "tile_table"]

Key = tuple[Any, ...]  # shape, op, pass, mode
Table = dict[Key, list[Row]]
SHAPE = ("dtype", "B", "P", "C", "H", "D", "tables")  # tables: dtype of the angles, None without rotation
OURS = ("veca-triton", "veca-sdpa")  # in the order in which impl="auto" prefers them
_NO_FULL = {"full": None, "full_us": None}
_PASS_ORDER = ("fwd", "bwd", "fwd+bwd")
_OP_ORDER = ("read", "write", "whole")


def summarize_rows(rows: Iterable[Row]) -> list[Row]:
    """One row per shape, op, pass and mode, with our time, those of the best peer and full attention, and ratios."""
    table: dict[Key, list[Row]] = {}
    refusals: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row.get("kind") != "time":
            continue
        if row["status"] == "ok":
            table.setdefault(_key(row), []).append(row)
        elif row["family"] == "veca" and row["status"] in ("wrong", "error"):
            refusals[_shape(row), row["op"]] = f"{row['label']}: {row['reason']}"
    full = _best_full(table)
    peers: Table = {}
    for key, found in table.items():
        peers.setdefault(_any_tables(key), []).extend(row for row in found if row["family"] != "veca")
    summary = []
    for key in table:
        ours = _ours(table[key])
        if ours is not None:
            attention = full.get((*_without_cores(key[0]), *key[2:])) if key[1] == "whole" else None
            summary.append(_entry(key, ours, peers, attention, refusals.get(key[:2])))
    return sorted(summary, key=_order)


def _entry(key: Key, ours: Row, peers: Table, attention: Row | None, refusal: str | None) -> Row:
    """One summary row. A ratio is None if there is no peer to compare with, or if the check failed."""
    shape, op, pass_, mode = key
    peer, peer_us = _best_peer(peers, key, lambda row: True)
    sdpa, sdpa_us = _best_peer(peers, key, lambda row: row["family"] == "sdpa")
    entry = dict(zip(SHAPE, shape, strict=True)) | {"op": op, "pass": pass_, "mode": mode}
    entry |= {"ours": ours["name"], "ours_us": ours["median_us"], "runs": ours["runs"]}
    entry |= {name: ours[name] for name in ("low_us", "high_us", "floor_us", "regime", "peak_bytes")}
    entry |= {"peer": peer, "peer_us": peer_us, "sdpa": sdpa, "sdpa_us": sdpa_us}
    entry |= {"full": attention["label"], "full_us": attention["median_us"]} if attention else _NO_FULL
    entry |= {"floor_share": ours["floor_us"] / ours["median_us"], "refused": refusal}
    for name in ("peer", "sdpa", "full"):
        other = entry[f"{name}_us"]
        known = other is not None and refusal is None
        entry[f"{name}_ratio"] = other / ours["median_us"] if known else None
    return entry


def summary_table(summary: Iterable[Row]) -> str:
    """The summary as Markdown, with all shapes, also those at which we lose."""
    columns = (
        *("dtype", "B", "P", "C", "tables", "op", "pass", "mode", "ours", "ours time", "20-80 %", "runs"),
        *("best peer", "peer time", "x peer", "full attention", "full time", "x full", "floor", "% of floor", "red"),
    )
    return markdown_table((_printed(entry) for entry in summary), columns)


def detail_table(rows: Iterable[Row]) -> str:
    """Every contender that was timed, as Markdown."""
    columns = ("dtype", "B", "P", "C", "tables", "op", "pass", "mode", "contender", "time", "20-80 %", "runs", "check")
    timed = [row for row in rows if row.get("kind") == "time" and row["status"] == "ok"]
    printed = []
    for row in sorted(timed, key=lambda row: (_order(row), row["median_us"])):
        span = f"{row['low_us']:.3g}-{row['high_us']:.3g}"
        times = {
            "time": microseconds(row["median_us"] * 1e-6),
            "20-80 %": span,
            "check": row.get("check_share"),
        }
        printed.append(row | times | {"contender": row["label"]})
    return markdown_table(printed, columns)


def launches_table(rows: Iterable[Row]) -> str:
    """One line per launch. Names are cut to their first 80 characters."""
    lines = []
    for row in rows:
        if row.get("kind") != "launches":
            continue
        who = {name: row.get(name) for name in ("B", "P", "C", "tables", "op", "pass", "label")}
        for launch in row["launches"] or [{"kernel": row["reason"], "grid": None, "us": None}]:
            grid = None if launch["grid"] is None else " x ".join(map(str, launch["grid"]))
            lines.append(who | {"kernel": launch["kernel"][:80], "grid": grid, "us": launch["us"]})
    return markdown_table(lines, ("B", "P", "C", "tables", "op", "pass", "label", "kernel", "grid", "us"))


def tile_table(rows: Iterable[Row]) -> str:
    """One line per kernel, angle tables and tile. Empty without such rows."""
    columns = ("B", "P", "C", "D", "tables", "kernel", "tile", "time", "20-80 %", "floor", "% of floor", "reason")
    lines = []
    for row in rows:
        if row.get("kind") == "tile":
            lines.append(row | ({"reason": row["reason"]} if row["status"] != "ok" else _tile_times(row)))
    return markdown_table(lines, columns) if lines else ""


def _tile_times(row: Row) -> Row:
    return {
        "time": microseconds(row["median_us"] * 1e-6),
        "20-80 %": _span(row),
        "floor": microseconds(row["floor_us"] * 1e-6),
        "% of floor": f"{100 * row['floor_us'] / row['median_us']:.0f}",
    }


def host_table(rows: Iterable[Row]) -> str:
    """Host, eager and graph time of a call, one line per contender, pass and kind of launch. Empty without rows."""
    columns = ("B", "P", "C", "tables", "pass", "label", "launches", "host", "eager", "graph", "reason")
    lines = []
    for row in rows:
        if row.get("kind") == "host":
            times = {name: row.get(f"{name}_us") for name in ("host", "eager", "graph")}
            printed = {name: None if us is None else microseconds(us * 1e-6) for name, us in times.items()}
            lines.append(row | printed)
    return markdown_table(lines, columns) if lines else ""


def notes(rows: Iterable[Row]) -> list[str]:
    """What was not timed and why: one line per reason, with the number of shapes."""
    shapes: dict[tuple[str, str, str], set[tuple[Any, ...]]] = {}
    for row in rows:
        if row.get("kind") == "time" and row["status"] != "ok":
            reason = (row["label"], row["status"], row["reason"])
            shapes.setdefault(reason, set()).add((*_shape(row), row["op"]))
    lines = []
    for (label, status, reason), where in shapes.items():
        first = sorted(where, key=str)[0]
        example = f"B={first[1]}, P={first[2]}, C={first[3]}, {first[-1]}"
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        lines.append(f"{label}: {status} ({example}{more}): {reason}")
    return lines


def _best_peer(peers: Table, key: Key, accept: Callable[[Row], bool]) -> tuple[str | None, float | None]:
    """Find name and time of the fastest peer. For "whole", the sum of the fastest halves counts as a peer too."""
    shape, op, pass_, mode = _any_tables(key)

    def fastest(op: str) -> Row | None:
        accepted = (row for row in peers.get((shape, op, pass_, mode), ()) if accept(row))
        return min(accepted, key=lambda row: row["median_us"], default=None)

    direct = fastest(op)
    candidates = [] if direct is None else [(direct["median_us"], direct["label"])]
    if op == "whole":
        read, write = fastest("read"), fastest("write")
        if read is not None and write is not None:
            total = read["median_us"] + write["median_us"]
            candidates.append((total, f"{read['label']} + {write['label']}"))
    time, name = min(candidates, default=(None, None))
    return name, time


def _best_full(table: Table) -> dict[tuple[Any, ...], Row]:
    """The fastest full attention of each shape. It has no cores, so their number is not in the key."""
    best: dict[tuple[Any, ...], Row] = {}
    for (shape, op, pass_, mode), rows in table.items():
        if op == "full":
            key = (*_without_cores(shape), pass_, mode)
            best[key] = min((*rows, *filter(None, [best.get(key)])), key=lambda row: row["median_us"])
    return best


def _ours(here: list[Row]) -> Row | None:
    """Our row: Triton if it ran, else SDPA, with three input tensors like the peers."""
    by_name = {row["name"]: row for row in here if row["layout"] == "token-major"}
    return next((by_name[name] for name in OURS if name in by_name), None)


def _printed(entry: Row) -> Row:
    """A summary row with times as text."""

    def time(name: str) -> str | None:
        return None if entry[name] is None else microseconds(entry[name] * 1e-6)

    def ratio(name: str) -> str | None:
        return "refused" if entry["refused"] else None if entry[name] is None else f"{entry[name]:.2f}"

    return entry | {
        "ours time": time("ours_us"),
        "20-80 %": _span(entry),
        "best peer": entry["peer"],
        "peer time": time("peer_us"),
        "x peer": ratio("peer_ratio"),
        "full attention": entry["full"],
        "full time": time("full_us"),
        "x full": ratio("full_ratio") if entry["op"] == "whole" else None,
        "floor": f"{microseconds(entry['floor_us'] * 1e-6)} {entry['regime']}",
        "% of floor": f"{100 * entry['floor_share']:.0f}",
        "red": "; ".join(entry.get("red", ())) or None,
    }


def _span(row: Row) -> str:
    return f"{microseconds(row['low_us'] * 1e-6)} - {microseconds(row['high_us'] * 1e-6)}"


def _shape(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) if name == "tables" else row[name] for name in SHAPE)


def _any_tables(key: Key) -> Key:
    """The key, with the dtype of the tables replaced by whether the op rotates."""
    shape, *rest = key
    return (*shape[:-1], shape[-1] is not None), *rest


def _without_cores(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value for name, value in zip(SHAPE, shape, strict=True) if name != "C")


def _key(row: Row) -> Key:
    return _shape(row), row["op"], row.get("pass"), row.get("mode")


def _order(row: Row) -> tuple[Any, ...]:
    ops = {name: i for i, name in enumerate((*_OP_ORDER, "full"))}
    passes = {name: i for i, name in enumerate(_PASS_ORDER)}
    shape = tuple(value or "" for value in _shape(row))
    return *shape, ops[row["op"]], passes[row["pass"]], row["mode"]
