"""The rows as Markdown: one table for each pass and mode, the meaning of the columns, and where VECA loses."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Row", "bench_table", "compared_rows", "losses"]

Row = dict[str, Any]  # one line of bench.jsonl
_HEADER = (
    *("px", "model", "cores", "M params", "batch", "patches", "time", "20-80 %", "runs", "alone", "images/s"),
    *("patches/s", "peak memory", "GFLOPs model", "block", "attention", "% of peak", "x time", "x memory"),
)
_TEXT_COLUMNS = 2  # cores and everything after are right-aligned
_NOTES = """\
* Weights are random. All models return dense features, which are all tokens of the last block. Times are medians of
  a call, with the 20 % and 80 % quantiles. "runs" is the number of calls.
* patches/s counts patches of 16 x 16 pixels in every model. The pyramids (EfficientViT, DaViT, PVT, MambaOut) work
  at several strides and end at 32, with a quarter of the positions. For them the number compares image area a second.
* Peak memory counts all bytes in use at once during a call beyond weights, optimizer and images. The buffers of
  gradients count. On a CPU it counts the tensors that operators return, without buffers inside operators.
* FLOPs are those of a forward pass of one image, with two for a multiply-add. Norms, softmax and activations are not
  counted. "block" and "attention" (with its projections) are those of one block. In the share of the matmul peak,
  training counts as three forward passes.
* "x time" and "x memory" divide this model by the last VECA before it, at the largest budget of the run. Above 1, VECA
  is faster or smaller.
* A training step is forward, backward from all tokens, and AdamW, with float32 weights under autocast.\
"""
_CPU_NOTE = """
* "time" is measured with all models of one size in turn, "alone" in a fresh process that runs nothing else. A model can
  be slower alone, because the system clears memory that it gets for the first time. The two ends of a range under
  "x time" are the ratio of the times and the ratio of the times alone.
* On x86 CPUs without gradient, VECA multiplies by oneDNN and sends large images through its blocks in pieces. The
  timm models run torch's defaults. Those with softmax attention use torch's scaled_dot_product_attention.\
"""
_CUDA_NOTE = """
* timm's models use torch's scaled_dot_product_attention with the kernel that torch picks.\
"""


def bench_table(rows: Iterable[Row]) -> str:
    """Write the rows of `run_bench` as a page with the machine, the tables, the losses and notes."""
    rows = list(rows)
    compared = compared_rows(rows)
    sections = [_machine(row) for row in rows if row["kind"] == "environment"]
    for pass_, mode, dtype in dict.fromkeys((row["pass"], row["mode"], row["dtype"]) for row in compared):
        group = [row for row in compared if (row["pass"], row["mode"], row["dtype"]) == (pass_, mode, dtype)]
        sections += [f"## {pass_}, {mode}, {dtype}", _markdown(group)]
    sections += ["## Where VECA loses", "\n".join(f"* {line}" for line in losses(rows))]
    cuda = any(row["kind"] == "environment" and row["device_type"] == "cuda" for row in rows)
    sections += ["## Notes", _NOTES + (_CUDA_NOTE if cuda else _CPU_NOTE)]
    return "\n\n".join(sections) + "\n"


def compared_rows(rows: Iterable[Row]) -> list[Row]:
    """The cases with the ratios of their time and memory to those of the VECA they are compared with.

    That is the last VECA before the case, with the largest of its budgets, at the same size, pass, mode and dtype.
    Each row gets the name of that VECA as "against", or None without one. It also gets "x_time", "x_time_alone" and
    "x_memory", which are None if one of the two values is missing.
    """
    cases = [row for row in rows if row["kind"] == "backbone"]
    dearest: dict[tuple[Any, ...], Row] = {}
    for row in cases:
        if row["num_cores"] is not None:
            key = (*_scale(row), row["model"])
            dearest[key] = max(row, dearest.get(key, row), key=lambda row: row["num_cores"])
    compared, veca, scale = [], None, None
    for row in cases:
        veca = veca if scale == _scale(row) else None
        scale = _scale(row)
        veca = veca if row["num_cores"] is None else row["model"]
        other = dearest.get((*scale, veca))
        compared.append(row | {"against": veca} | _ratios(row, other))
    return compared


def losses(rows: Iterable[Row]) -> list[str]:
    """Lines with the sizes at which each VECA is slower than a model, and the side below which it takes more FLOPs."""
    rows = list(rows)
    cases = compared_rows(rows)
    found: dict[tuple[Any, ...], dict[str, list[int]]] = {}  # VECA -> other model -> sizes
    for row, ours in itertools.product(cases, cases):
        if row["num_cores"] is None and row["against"] == ours["model"] and _scale(row) == _scale(ours):
            ratio = min(_times(_ratios(row, ours)), default=None)
            if ratio is not None:
                key = (*(row[name] for name in ("pass", "mode", "dtype")), ours["model"], ours["num_cores"])
                sizes = found.setdefault(key, {}).setdefault(row["model"], [])
                sizes += [row["size"]] if ratio < 1 else []
    lines = []
    for (pass_, mode, dtype, veca, num_cores), others in found.items():
        slower = [f"slower than {model} at {', '.join(map(str, sizes))} px" for model, sizes in others.items() if sizes]
        never = [model for model, sizes in others.items() if not sizes]
        parts = slower + ([f"at no measured size slower than {', '.join(never)}"] if never else [])
        lines.append(f"{pass_}, {mode}, {dtype}: {veca} with {num_cores} cores is {'; '.join(parts)}")
    for row in rows:
        if row["kind"] == "break_even":
            more = f"{row['model']} with {row['num_cores']} cores takes more FLOPs than {row['vit']}"
            lines.append(f"{more} below {row['pixels']} px")
    return lines or ["nothing to compare"]


def _ratios(row: Row, other: Row | None) -> dict[str, float | None]:
    if other is None or not other["status"] == row["status"] == "ok":
        return {"x_time": None, "x_time_alone": None, "x_memory": None}
    known = row["peak_bytes"] and other["peak_bytes"]
    memory = row["peak_bytes"] / other["peak_bytes"] if known else None
    alone = row.get("alone_s") and other.get("alone_s")
    return {
        "x_time": row["median_s"] / other["median_s"],
        "x_time_alone": row["alone_s"] / other["alone_s"] if alone else None,
        "x_memory": memory,
    }


def _times(row: Row) -> list[float]:
    """The one or two ratios of times that are known, smallest first."""
    return sorted(row[name] for name in ("x_time", "x_time_alone") if row[name] is not None)


def _scale(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("size", "batch", "pass", "mode", "dtype"))


def _machine(row: Row) -> str:
    versions = ", ".join(f"{name} {row[name]}" for name in ("torch", "triton", "timm", "veca", "commit") if row[name])
    threads = f", {row['torch_threads']} threads" if row["device_type"] == "cpu" else ""
    peak = f"matmul peak {_metric(row['matmul_peak'])}FLOP/s in {row['dtype']}, measured in this run"
    return f"{row['device']}{threads}; {versions}; {row['date']}; {peak}."


def _markdown(rows: Sequence[Row]) -> str:
    marks = [":--" if i < _TEXT_COLUMNS and i else "--:" for i in range(len(_HEADER))]
    lines = [_HEADER, marks, *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row) -> list[str]:
    cores = "" if row["num_cores"] is None else str(row["num_cores"])
    head = [str(row["size"]), row["model"], cores]
    if row["status"] != "ok":
        reason = f"{row['status']}: {row['reason']}".replace("|", "\\|")
        return [*head, "", str(row["batch"]), f"{row['patches']:,}", reason, *[""] * (len(_HEADER) - 7)]
    shares = [row["block_flops"], row["attention_flops"]]
    times = dict.fromkeys(f"{ratio:.2f}" for ratio in _times(row))
    return [
        *head,
        f"{row['parameters'] / 1e6:.1f}",
        str(row["batch"]),
        f"{row['patches']:,}",
        f"{_metric(row['median_s'])}s",
        f"{_metric(row['low_s'])}s - {_metric(row['high_s'])}s",
        str(row["runs"]),
        f"{_metric(row['alone_s'])}s" if row.get("alone_s") else "",
        _rate(row["images_per_s"]),
        _rate(row["patches_per_s"]),
        "hidden" if row["peak_bytes"] is None else f"{_metric(row['peak_bytes'])}B",
        f"{row['model_flops'] / 1e9:.3g}",
        *("" if share is None else f"{share / 1e9:.3g}" for share in shares),
        f"{100 * row['matmul_share']:.0f}",
        " - ".join(times),
        "" if row["x_memory"] is None else f"{row['x_memory']:.2f}",
    ]


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 1 else _metric(value).rstrip()


def _metric(value: float) -> str:
    """Three digits and an SI prefix. 0.00147 is "1.47 m", 36_200 is "36.2 k". A plain number ends in a space."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m")):
        if value >= 0.9995 * factor:
            return f"{float(f'{value / factor:.3g}'):g} {prefix}"
    return f"{value * 1e6:.3g} µ"
