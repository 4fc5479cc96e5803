"""report.html from the record: one page, no scripts, no network, its pictures beside it; and its gist as text."""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..report.page import document, factor, figure, gflops, megabytes, millions, seconds, span_of, table
from .conclusions import find

__all__ = ["summary_lines", "write_html"]

Record = Mapping[str, Any]


def write_html(record: Record, out: Path) -> None:
    """Write `report.html`.

    Args:
        record: the content of report.json.
        out: the folder that holds the pictures.
    """
    title = _title(record)
    sections = (
        _first_screen(record, title, out),
        _time_section(record),
        _memory_section(record),
        _flops_section(record),
        _agreement_section(record),
        _pictures_section(record),
        _READING,
        _reproduce_section(record),
    )
    (out / "report.html").write_text(document(title, sections), encoding="utf-8")


def _title(record: Record) -> str:
    best, (veca, vit) = record["headline"], record["models"]
    if best is None:
        return f"{veca['name']} beside {vit['name']}"
    ratio = best["time"]
    verdict = f"{span_of(ratio)} faster" if ratio >= 1 else f"{span_of(1 / ratio)} slower"
    return f"At {best['size']} px, VECA runs {verdict} than a ViT of the same width and depth"


def _first_screen(record: Record, title: str, out: Path) -> str:
    veca, vit = record["models"]
    machine = record["machine"]
    count = len(record["photographs"])
    words = {1: "One photograph", 2: "Two photographs", 8: "Eight photographs"}
    lead = (
        f"{words.get(count, f'{count} photographs')} went through two vision backbones, by turns, in one process: "
        f"<b>VECA</b>, whose patches attend to a few learned cores only, and timm's <b>{escape(vit['name'])}</b>, "
        f"whose patches attend to one another. Both have width {veca['width']}, {veca['depth']} blocks and "
        f"{veca['heads']} heads; {millions(veca['parameters'])} and {millions(vit['parameters'])} parameters."
    )
    return (
        f'<p class="eyebrow">veca demo, {escape(machine["date"][:10])}</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="lead">{lead}</p>\n{_cards(record)}'
        '<div class="banner"><p><b>The weights are untrained (random).</b> Time, memory, FLOPs and the agreement of '
        "the implementations do not depend on that. The pictures do: they show that the mechanics work, and "
        "nothing about the quality of features.</p></div>\n"
        f'<div class="loses"><p>{_losses(record)}</p></div>\n<p class="machine">{_machine_line(machine)}</p>\n'
        f"{_more(out)}"
    )


def _more(out: Path) -> str:
    """A link to the report of a brain beside this one, where `make demo` has put it."""
    if not (out / "brain" / "report.html").is_file():
        return ""
    return (
        '<p>The trained VECA that ships with the package, as a model of a brain: <a href="brain/report.html">what its '
        "features predict of a simulated subject's responses, and which images those responses show</a>.</p>\n"
    )


def summary_lines(record: Record) -> list[str]:
    """The headline as plain text: three ratios with both their sides, and where VECA is slower."""
    best = record["headline"]
    if best is None:
        return ["the ViT was timed at no size"]
    lines = [f"at {best['size']} px with {best['num_cores']} cores       ViT         VECA   ViT / VECA"]
    for name, key, ours, theirs in _sides(record, best):
        lines.append(f"  {name:22} {theirs:>11}  {ours:>11}  {best[key]:6.2f}x")
    slower = [row for row in record["ratios"] if row["time"] is not None and row["time"] < 1]
    if slower:
        listed = ", ".join(f"{row['size']} px with {row['num_cores']} cores ({row['time']:.2f}x)" for row in slower)
        lines.append(f"VECA is slower at {listed}")
    return lines


def _sides(record: Record, best: Record) -> list[tuple[str, str, str, str]]:
    """(name, key of the ratio, VECA's value, the ViT's) of time, memory and FLOPs."""
    ours, theirs = (find(record["timings"], best["size"], cores) for cores in (best["num_cores"], None))
    ours_flops, theirs_flops = (find(record["flops"], best["size"], cores) for cores in (best["num_cores"], None))
    return [
        ("forward pass", "time", seconds(ours["median_s"]), seconds(theirs["median_s"])),
        ("peak memory", "memory", megabytes(ours["peak_bytes"]), megabytes(theirs["peak_bytes"])),
        ("FLOPs, whole model", "flops_model", gflops(ours_flops["model"]), gflops(theirs_flops["model"])),
    ]


def _cards(record: Record) -> str:
    """The three ratios, each with both its sides."""
    best = record["headline"]
    if best is None:
        return ""
    words = {"time": ("faster", "slower"), "memory": ("less", "more"), "flops_model": ("fewer", "more")}
    text = '<div class="cards">\n'
    for name, key, ours, theirs in _sides(record, best):
        ratio, (good, bad) = best[key], words[key]
        big = f"{span_of(ratio)} {good}" if ratio >= 1 else f"{span_of(1 / ratio)} {bad}"
        text += (
            f'<div class="card"><b class="{"better" if ratio >= 1 else "worse"}">{big}</b><span>{name}</span>'
            f"<small>VECA {ours}, ViT {theirs}<br>at {best['size']} px with {best['num_cores']} cores</small></div>\n"
        )
    return text + "</div>\n"


def _losses(record: Record) -> str:
    """Where the ViT is the better choice."""
    text = "<b>Where VECA loses.</b> "
    budgets, losses = _budgets(record), []
    for num_cores in dict.fromkeys((budgets[0], budgets[-1])):
        slower = [
            f"{row['size']} px ({span_of(row['time'])})"
            for row in record["ratios"]
            if row["num_cores"] == num_cores and row["time"] is not None and row["time"] < 1
        ]
        if slower:
            losses.append(f"with {num_cores} cores it is slower at {_and(slower)}")
    if losses:
        text += f"{'; '.join(losses).capitalize()}; in brackets ViT time over VECA time. "
    else:
        text += "At no size measured here was it slower. "
    heavier = sorted({row["size"] for row in record["ratios"] if row["memory"] is not None and row["memory"] < 1})
    if heavier:
        text += f"It holds more memory than the ViT at {_and([f'{size}' for size in heavier])} px. "
    equal = [f"{size} px with {cores} cores" for cores, size in reversed(record["equal_flops_px"].items())]
    return text + f"Counted in FLOPs, VECA becomes the cheaper model at {_and(equal)}."


def _machine_line(machine: Record) -> str:
    parts = [machine["device"]]
    if machine["device_type"] == "cpu":
        parts.append(f"{machine['torch_threads']} threads, {machine['cpu_capability']}")
    parts += [machine["dtype"], "batch 1"]
    parts += [f"{name} {machine[name]}" for name in ("torch", "triton", "timm", "veca") if machine[name]]
    parts += [f"Python {machine['python']}", machine["date"]]
    return escape("Measured on: " + "; ".join(parts)) + "."


def _time_section(record: Record) -> str:
    text = "<h2>Time</h2>\n"
    text += figure(record["figures"]["times"], "Time of a forward pass against resolution, and the speed-up.")
    best = record["headline"]
    rows = {row["num_cores"]: row for row in record["slopes"]}
    if best and {None, best["num_cores"]} <= set(rows):
        ours, theirs = rows[best["num_cores"]], rows[None]
        text += (
            f"<p>From {theirs['from_size']} to {theirs['to_size']} px the ViT's time grows as "
            f"P<sup>{theirs['exponent']:.2f}</sup>, P being the number of patches; VECA's with {best['num_cores']} "
            f"cores, from {ours['from_size']} to {ours['to_size']} px, as P<sup>{ours['exponent']:.2f}</sup>. Linear "
            "cost is 1, quadratic cost 2.</p>\n"
        )
    note = "Median, below it the range and number of runs. In brackets ViT time over VECA time."
    text += _by_size(record, _time_cell, note)
    fitted = [row for row in record["timings"] if row["num_cores"] is None and row["predicted_s"] and row["times_s"]]
    if fitted:
        row = fitted[-1]
        text += (
            f'<p class="note">Before the ViT ran at {row["size"]} px, its time there was predicted from the smaller '
            f"sizes (b P + c P²): {seconds(row['predicted_s'])}; measured: {seconds(row['median_s'])}.</p>\n"
        )
    if record["notes"]:
        listed = "".join(f"<li>{escape(note)}</li>" for note in record["notes"])
        text += f'<div class="loses"><p><b>Not as planned</b></p>\n<ul>{listed}</ul></div>\n'
    return text


def _time_cell(record: Record, size: int, num_cores: int | None) -> str:
    row = find(record["timings"], size, num_cores)
    if row is None or not row["times_s"]:
        predicted = row["predicted_s"] if row else None
        return f"–<small>{seconds(predicted)} predicted</small>" if predicted else "–"
    runs = len(row["times_s"])
    detail = "1 run"
    if runs > 1:
        detail = f"{seconds(row['low_s'])} to {seconds(row['high_s'])}<br>{runs} runs"
    return f"{seconds(row['median_s'])}{_ratio(record, size, num_cores, 'time')}<small>{detail}</small>"


def _memory_section(record: Record) -> str:
    how = {
        "cuda": "As torch's allocator counts: the peak during the pass, less what was allocated before.",
        "cpu": "Counted on the CPU: every tensor, from the operator that returns it until it is freed. Exact and "
        "repeatable, unlike the size of the process, but blind to buffers inside an operator.",
    }[record["machine"]["device_type"]]
    note = (
        f"Beyond weights and input. {how} In brackets ViT over VECA. Neither side's attention "
        "holds a matrix of scores, so the memory of both is linear; the peak is in the FFN, whose hidden layers are "
        "wider in VECA's SwiGLU than in the ViT's MLP. On a CPU large images go through VECA's blocks in pieces."
    )
    text = "<h2>Memory</h2>\n"
    text += figure(record["figures"]["memory"], "Peak memory against resolution.", "narrow")
    return text + _by_size(record, _memory_cell, note)


def _memory_cell(record: Record, size: int, num_cores: int | None) -> str:
    row = find(record["timings"], size, num_cores)
    if row is None or row["peak_bytes"] is None:
        return "–"
    return megabytes(row["peak_bytes"]) + _ratio(record, size, num_cores, "memory")


def _by_size(record: Record, cell: Callable[[Record, int, int | None], str], note: str) -> str:
    """A table with a row a size and a column a model."""
    budgets = _budgets(record)
    patches = {row["size"]: row["patches"] for row in record["flops"]}
    head = ["image", "patches", "ViT", *(f"VECA, {cores} cores" for cores in budgets)]
    rows = [
        [f"{size} px", f"{patches[size]:,}", *(cell(record, size, cores) for cores in (None, *budgets))]
        for size in sorted({row["size"] for row in record["timings"]})
    ]
    return table(head, rows) + f'<p class="note">{note}</p>\n'


def _flops_section(record: Record) -> str:
    budgets = _budgets(record)
    rows = []
    for size in sorted({row["size"] for row in record["flops"]}):
        for num_cores in (None, *budgets):
            row = find(record["flops"], size, num_cores)
            cells = [f"{size} px" if num_cores is None else "", _model(num_cores)]
            for part in ("attention", "block", "model"):
                cells.append(
                    f"{f'{row[part] / 1e9:#.4g}'.rstrip('.')}{_ratio(record, size, num_cores, f'flops_{part}')}"
                )
            rows.append(cells)
    counted = [row for row in record["flops"] if row["model_counted"] is not None]
    different = [row for row in counted if row["model"] != row["model_counted"]]
    check = f"torch's FlopCounterMode, which counts the operators that run, gives the same on all {len(counted)} rows "
    check += "where it was asked, to the last FLOP."
    if different:
        listed = "; ".join(
            f"{_model(row['num_cores'])} at {row['size']} px: {row['model']:,} and {row['model_counted']:,}"
            for row in different
        )
        check = f'<span class="worse">The formulas and torch\'s FlopCounterMode disagree: {listed}.</span>'
    note = (
        "GFLOPs of one image by exact formulas; a multiply-add is two; norms, softmax, rotations and activations "
        f"are not counted. {check} <i>Attention</i> is one sub-layer: q, k, v and output projections and the "
        "attention itself; <i>block</i> adds the FFN; <i>model</i> has all blocks and the patch embedding. A gain in "
        "the sub-layer is not the gain of the model, and at high resolution fewer cores save little: matrix "
        "products over the patches dominate. In brackets ViT over VECA."
    )
    head = ["image", "model", "attention", "block", "model"]
    return f'<h2>FLOPs</h2>\n{table(head, rows, left=2, group=1 + len(budgets))}<p class="note">{note}</p>\n'


def _agreement_section(record: Record) -> str:
    rows, refused = [], set()
    for row in record["agreement"]:
        if row["agrees"] is None:
            if (row["impl"], row["failure"]) not in refused:
                refused.add((row["impl"], row["failure"]))
                rows.append([row["impl"], f"<small>not run: {escape(row['failure'])}</small>"])
            continue
        kind = "sharpened" if row["sharpened"] else "as they are"
        verdict = "agrees" if row["agrees"] else f'<b class="worse">differs by more than {row["tolerance"]:g}</b>'
        if row["failed"]:
            verdict += f"<small>{row['failed']} failed: {escape(row['failure'])}</small>"
        numbers = [str(row["comparisons"]), f"{row['max_abs']:.1e}", f"{row['relative_rms']:.1e}"]
        rows.append([row["impl"], f"{row['size']} px", f"{kind}, std {row['score_std']:.2g}", *numbers, verdict])
    tolerance = record["agreement"][0]["tolerance"]
    text = (
        "<h2>Do the implementations agree?</h2>\n<p>The q, k and v of every block were taken from forward passes of "
        "the photographs; each implementation of the attention was run on them and compared with the dense "
        f"reference in fp64. Shown is the worst block of the worst photograph; to agree, the relative RMS error "
        f"must be below {tolerance:g}. Untrained scores are small and their softmax nearly uniform, which hides "
        "errors; for the rows “sharpened” all scores were multiplied to a standard deviation of about 4.</p>\n"
    )
    head = ["implementation", "image", "scores", "comparisons", "max abs error", "rel. RMS error", "verdict"]
    return text + table(head, rows, left=3, wide_last=True)


def _pictures_section(record: Record) -> str:
    text = (
        "<h2>Photographs</h2>\n<p><b>Untrained weights.</b> <b>Top left:</b> all cores at their positions; the ring "
        "is core 0, which also serves as the global token. <b>Beside it:</b> the features of every patch, their three "
        "principal components as colours, one basis for all sizes of a photograph. <b>Below:</b> how strongly each "
        "patch moves a core, ‖Σ<sub>h</sub> A<sub>h</sub> v<sub>h</sub> W<sub>h</sub>‖ over heads h, in multiples of "
        "an even spread over all patches; 1× (white) is even, orange more, purple less; the dot is the core.</p>\n"
    )
    for photo in record["photographs"]:
        if not photo["figure"]:
            continue
        shorter = min(photo["native_width"], photo["native_height"])
        enlarged = [f"{size}" for size in photo["sizes"] if size > shorter]
        caption = (
            f"{photo['credit']}; ships with {photo['package']} at {photo['native_width']} × {photo['native_height']} "
            "px; centre crop"
        )
        if enlarged:
            caption += f"; enlarged by interpolation for {_and(enlarged)} px"
        text += f"<h3>{escape(photo['name'])}</h3>\n" + figure(photo["figure"], caption + ".")
    return text


_READING = """<h2>How to read this</h2>
<ul>
<li><b>What the maps can show.</b> That every core reads the whole image at any size; that places enter through the
rotation of q and k: on even ground, such as a sky, the wide waves that differ from core to core are position alone;
that patches whose values are long weigh more than others.</li>
<li><b>What they cannot show.</b> Objects. Nothing has been learned: where a map follows an outline, it does so because
neighbouring patches of one colour have similar values, not because a core looks for anything. The maps stay within
a few dozen percent of an even spread.</li>
<li><b>What the colours show.</b> Features of random weights mostly repeat the colours and edges of the picture. That
they look alike at all sizes says that coordinates, not tables of positions, carry the place of a patch.</li>
<li><b>Enlarged photographs.</b> None of these has 2048 px natively; interpolation adds pixels, not detail. Time, memory
and FLOPs depend on the number of pixels alone.</li>
<li><b>Fairness.</b> Same process, threads, precision and images, by turns, without compilation on either side; both
return all normalised tokens. The ViT runs torch's fused attention; VECA runs two calls of the same, or Triton kernels
on a GPU. VECA's SwiGLU and the ViT's MLP cost the same FLOPs per token.</li>
<li><b>One machine, one run.</b> Look at the ranges before the second digit.</li>
</ul>
"""


def _reproduce_section(record: Record) -> str:
    settings, machine = record["settings"], record["machine"]
    words = {
        "sizes": " ".join(map(str, settings["sizes"])),
        "budgets": " ".join(map(str, settings["budgets"])),
        "model": settings["model"],
        "device": machine["device_type"],
        "dtype": settings["dtype"],
        "budget-seconds": f"{settings['budget_seconds']:g}",
        "photographs": " ".join(settings["photographs"]),
    }
    command = "veca demo " + " \\\n  ".join(f"--{name} {value}" for name, value in words.items())
    versions = [
        f"{name} {machine[name]}" for name in ("torch", "triton", "timm", "numpy", "veca", "cuda") if machine[name]
    ]
    load = machine["load_average"]
    facts = {
        "device": machine["device"],
        "processor": f"{machine['cpu']}, {machine['cpu_count']} cores seen, {machine['torch_threads']} torch threads",
        "load before": "unknown" if load is None else f"{load:.1f} processes",
        "versions": f"Python {machine['python']}, {', '.join(versions)}",
        "system": machine["system"],
        "date": machine["date"],
        "took": f"{record['seconds']:.0f} s",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd>\n" for name, fact in facts.items())
    return (
        f"<h2>How to reproduce</h2>\n<pre>{escape(command)}</pre>\n<dl>\n{listed}</dl>\n"
        '<p>All numbers of this page, and those behind them: <a href="report.json">report.json</a>.</p>\n'
    )


def _budgets(record: Record) -> list[int]:
    """Numbers of cores, most first."""
    return sorted({row["num_cores"] for row in record["ratios"]}, reverse=True)


def _ratio(record: Record, size: int, num_cores: int | None, key: str) -> str:
    return "" if num_cores is None else factor(find(record["ratios"], size, num_cores)[key])


def _model(num_cores: int | None) -> str:
    return "ViT" if num_cores is None else f"VECA, {num_cores} cores"


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
