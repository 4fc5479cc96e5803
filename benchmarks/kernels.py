"""Times of the op, its halves and every peer.

    python -m benchmarks.kernels                              # this machine's defaults, CPU about a minute
    python -m benchmarks.kernels --preset acceptance          # the shapes with a required number
    python -m benchmarks.kernels --preset rotated             # the op as models call it, with patch_rope
    python -m benchmarks.kernels --batch 1 --patches 4096 --cores 64 --out out/kernels.jsonl

    fwd        runs without autograd
    fwd+bwd    builds the graph and takes the gradients of q, k and v
    bwd        repeats torch.autograd.grad on a kept graph

Every contender is checked against the fp64 definition before it is timed. On CUDA its row is on disk before the next
contender is timed. If one of our implementations fails the check, its ratios are withheld and the exit status is 1.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from veca.bench.timing import OUT_OF_MEMORY, Contender, TimeLimits, Timing, measure, num_buffer_sets, short_error

from . import acceptance
from .checks import Buffers, BufferSet, Check, Oracle, verify
from .floors import OPS, PASSES, AttentionCase, Machine, floor, flops, score_bytes
from .machine import as_row, machine_for
from .peers import FAMILIES, Absent, Peer, peers
from .record import JsonLines, environment, microseconds
from .summary import detail_table, notes, summarize_rows, summary_table

PRESETS = ("cpu", "acceptance", "rotated", "grid", "rest")
FAILURES = ("wrong", "error", "failed")  # the check found wrong values, the check raised, the timing raised


@dataclass(frozen=True)
class Entrant:
    """A peer that passed its check, and the buffers on which it will be timed."""

    peer: Peer
    check: Check
    buffers: Buffers


@dataclass(frozen=True)
class Plan:
    """Plan of a run: shapes, passes, timers, peers and limits."""

    cases: tuple[AttentionCase, ...]
    ops: tuple[str, ...]
    passes: tuple[str, ...]
    modes: tuple[str, ...]
    families: tuple[str, ...]
    layouts: tuple[str, ...]
    limits: TimeLimits
    longest_run: float  # seconds; a contender whose predicted run is longer is skipped
    seconds: float  # seconds for the whole run


def cases_of(preset: str, dtypes: Sequence[str], tables: Sequence[str | None] = (None,)) -> tuple[AttentionCase, ...]:
    """The shapes of a preset, the most important first, because a run may end before all are measured."""
    if preset == "acceptance":
        shapes = acceptance.SHAPES
    elif preset == "rotated":
        shapes = acceptance.ROTATED
    elif preset == "grid":
        shapes = acceptance.GRID
    elif preset == "rest":
        shapes = [shape for shape in acceptance.GRID if shape not in acceptance.SHAPES]
    else:
        shapes = [(1, *PC) for PC in ((4096, 64), (196, 64), (1024, 64), (196, 16), (1024, 16), (4096, 16))]
    return tuple(AttentionCase(*shape, dtype=dtype, tables=t) for shape in shapes for dtype in dtypes for t in tables)


def run(plan: Plan, device: torch.device, sink: JsonLines) -> None:
    """Measure everything in the plan, and append each row to `sink` as soon as it is known."""
    deadline = time.monotonic() + plan.seconds
    machines = {name: machine_for(device, getattr(torch, name)) for name in dict.fromkeys(c.dtype for c in plan.cases)}
    for name, machine in machines.items():
        sink.append({"kind": "machine", "dtype": name, **as_row(machine)})
    jobs = [(case, ops) for case in plan.cases for ops in _groups(case, plan, device)]
    jobs.sort(key=lambda job: "whole" not in job[1])  # the whole op, which is judged, at all shapes before the halves
    for case, ops in tqdm(jobs, desc="kernels", file=sys.stderr, disable=None):
        if time.monotonic() > deadline:
            reason = f"the {plan.seconds:.0f} s for this run were used up"
            for op in ops:
                _append(sink, case, Absent("everyone", "none", op, reason), "skipped")
            continue
        try:
            _run_group(case, ops, plan, device, machines[case.dtype], sink)
        except Exception as error:  # buffers do not fit or a library fails; the other shapes are still measured
            message = short_error(error)
            status = "skipped" if OUT_OF_MEMORY in message else "error"
            for op in ops:
                _append(sink, case, Absent("everyone", "none", op, message), status)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _groups(case: AttentionCase, plan: Plan, device: torch.device) -> Iterator[tuple[str, ...]]:
    """Ops that are timed together. On a CPU the whole op takes turns with the full attention that it replaces.

    Full attention has no cores. It is measured with the case of 64 cores, or else with the first case.
    """
    twins = [c for c in plan.cases if c.tables is None and (c.B, c.P, c.dtype) == (case.B, case.P, case.dtype)]
    beside = next((c for c in twins if c.C == 64), twins[0] if twins else None)
    ops = [op for op in plan.ops if op != "full" or case == beside]
    if device.type == "cpu" and {"whole", "full"} <= set(ops):
        yield from ((op,) for op in ops if op not in ("whole", "full"))
        yield "whole", "full"
    else:
        yield from ((op,) for op in ops)


def _run_group(
    case: AttentionCase, ops: Sequence[str], plan: Plan, device: torch.device, machine: Machine, sink: JsonLines
) -> None:
    """Check and time all contenders that can compute these ops at one shape."""
    entrants = [entrant for op in ops for entrant in _admitted(case, op, plan, device, machine, sink)]
    if device.type == "cuda":
        _wake(device)
    for pass_, mode in itertools.product(plan.passes, plan.modes):
        able = {f"{e.peer.op}: {e.peer.label}": e for e in entrants if _takes_part(e.peer, pass_, device)}
        for key, timing in _timings(able, pass_, mode, plan.limits):
            entrant = able[key]
            if isinstance(timing, Timing):
                limit = floor(case, entrant.peer.op, pass_, machine)
                times = {"floor_us": limit.seconds * 1e6, "regime": limit.regime}
                _append(sink, case, entrant.peer, "ok", pass_, mode, times | _fields(timing, entrant.check))
            else:
                status = "skipped" if OUT_OF_MEMORY in timing else "failed"
                _append(sink, case, entrant.peer, status, pass_, mode, {"reason": f"{pass_}, {mode}: {timing}"})


def _timings(able: dict[str, Entrant], pass_: str, mode: str, limits: TimeLimits) -> Iterator[tuple[str, Timing | str]]:
    """Yield each contender with its timing. On a CPU all take turns, so all timings come at the end.

    On CUDA a peer whose check took twice as long as the fastest peer's gets only as many runs as a screening.
    """
    contenders = {key: contender(e.peer, e.buffers, pass_) for key, e in able.items()}
    if mode == "cpu":
        yield from measure(contenders, mode, limits).items()
        return
    fastest = min((e.check.seconds for e in able.values() if not e.peer.ours), default=0.0)
    few = dataclasses.replace(limits, runs=limits.screening)
    for key, entrant in able.items():
        hopeless = not entrant.peer.ours and entrant.check.seconds > limits.factor * fastest
        yield from measure({key: contenders[key]}, mode, few if hopeless else limits).items()


def _wake(device: torch.device, seconds: float = 0.05) -> None:
    """Keep a GPU busy until its clocks are up, which would otherwise slow the first contender."""
    a = torch.randn(4096, 4096, device=device)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        a @ a
        torch.cuda.synchronize()


def _takes_part(peer: Peer, pass_: str, device: torch.device) -> bool:
    """Whether a peer takes part in a pass. On a CPU the backward pass of full attention takes seconds and is left out.

    It is the difference of two other rows.
    """
    if peer.op == "full" and pass_ == "bwd":
        return device.type == "cuda"
    return peer.differentiable or pass_ == "fwd"


def _admitted(
    case: AttentionCase, op: str, plan: Plan, device: torch.device, machine: Machine, sink: JsonLines
) -> Iterator[Entrant]:
    """Yield the peers that pass the numerical check. Each other peer gets a row with the reason."""
    if device.type == "cuda" and (case.tables or {"flex", "chain-compiled"} & set(plan.families)):
        torch._dynamo.reset()  # shapes share a limit of recompilations
    tokens = case.patch_bytes + (case.core_bytes if op == "whole" else 0)
    buffers = Buffers(case, op, device, num_buffer_sets(3 * tokens, device))
    oracle = None
    for peer in peers(op, case, device, plan.families, plan.layouts):
        if isinstance(peer, Absent):
            _append(sink, case, peer, "absent")
        elif reason := _too_much(case, peer, plan, device, machine):
            _append(sink, case, peer, "skipped", fields={"reason": reason})
        else:
            oracle = Oracle(case, op, buffers) if oracle is None else oracle
            check = verify(peer, oracle, buffers)
            if check.status == "ok":
                yield Entrant(peer, check, buffers)
            else:
                _append(sink, case, peer, check.status, fields={"reason": check.message})


def contender(peer: Peer, buffers: Buffers, pass_: str) -> Contender:
    """A contender with one call per buffer set of a pass, and the context in which the calls run."""

    def make() -> list[Callable[[], object]]:
        return [_call(peer, buffer_set, pass_) for buffer_set in buffers.get(peer.layout)]

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            contexts: list[AbstractContextManager[object]] = [peer.context()]
            if pass_ == "fwd":
                contexts.append(torch.no_grad())
            for entered in contexts:
                stack.enter_context(entered)
            yield

    return Contender(make, context, group=peer.op, kept=peer.ours)


def _call(peer: Peer, buffer_set: BufferSet, pass_: str) -> Callable[[], object]:
    inputs, grad = buffer_set.inputs, buffer_set.grad
    if pass_ == "fwd":
        return lambda: peer.call(*inputs)
    if pass_ == "fwd+bwd":
        return lambda: torch.autograd.grad(peer.call(*inputs), inputs, grad)
    out = peer.call(*inputs)
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def _too_much(case: AttentionCase, peer: Peer, plan: Plan, device: torch.device, machine: Machine) -> str | None:
    """Reason not to try a contender: it needs too much memory, or a single run takes too long. None to try it."""
    tensors = 8 * (case.patch_bytes + case.core_bytes) + 4 * case.patch_bytes * (len(plan.layouts) - 1)
    needed = tensors + peer.score_matrices * score_bytes(case, peer.op)
    available = _memory(device)
    if needed > available:
        return f"needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are available"
    longest = "fwd+bwd" if any("bwd" in pass_ for pass_ in plan.passes) else "fwd"
    seconds = flops(case, peer.op, longest) / machine.matmul
    if seconds > plan.longest_run:
        return f"{longest} takes at least {microseconds(seconds)} a run, limit {microseconds(plan.longest_run)}"
    return None


def _memory(device: torch.device) -> float:
    """Bytes that a contender may use: nine tenths of a GPU's memory, an eighth of the host's."""
    if device.type == "cuda":
        return 0.9 * torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 8


def _fields(timing: Timing, check: Check) -> dict[str, object]:
    return {
        "median_us": timing.median * 1e6,
        "low_us": timing.low * 1e6,
        "high_us": timing.high * 1e6,
        "runs": timing.runs,
        "calls_per_run": timing.calls_per_run,
        "check_share": check.share,
        "peak_bytes": check.peak_bytes,
    }


def _append(
    sink: JsonLines,
    case: AttentionCase,
    peer: Peer | Absent,
    status: str,
    pass_: str | None = None,
    mode: str | None = None,
    fields: dict[str, object] | None = None,
) -> None:
    """Append one row: the contender, the shape, and either its times or the reason why it has none."""
    absent = isinstance(peer, Absent)
    who = {"name": peer.name, "family": peer.family, "op": peer.op}
    who |= {"layout": None, "label": peer.name} if absent else {"layout": peer.layout, "label": peer.label}
    row = {"kind": "time", **dataclasses.asdict(case), **who, "pass": pass_, "mode": mode, "status": status}
    sink.append(row | {"reason": peer.reason if absent else ""} | (fields or {}))


def report(rows: Sequence[dict[str, object]], record: dict[str, object], detail: bool) -> str:
    """The Markdown page of a run: machine, summary, verdicts, and what is missing with the reasons."""
    summary = summarize_rows(rows)
    device = "cpu" if "threads" in record else "cuda"
    rates = [row for row in rows if row["kind"] == "machine"]
    parts = [
        f"{record['device']}, {record['date']}, commit {record['commit']}, "
        + ", ".join(f"{name} {record[name]}" for name in ("torch", "triton", "xformers") if record[name]),
        *(f"floors, {row['dtype']}: {_rates(row)}" for row in rates),
        summary_table(summary),
        *([detail_table(rows)] if detail else []),
        acceptance.verdict_table(acceptance.judge(summary, device)),
        "\n".join(f"- {line}" for line in notes(rows)),
    ]
    return "\n\n".join(part for part in parts if part)


def _rates(row: dict[str, object]) -> str:
    return f"{row['bandwidth'] / 1e9:.4g} GB/s, {row['matmul'] / 1e12:.4g} TFLOP/s ({row['source']})"


def plan_of(args: argparse.Namespace, cuda: bool) -> Plan:
    """The defaults of the device, changed by the command line."""
    dtypes = args.dtypes or (["bfloat16"] if cuda else ["float32", "bfloat16"])
    preset = args.preset or ("grid" if cuda else "cpu")
    tables = args.tables or (("float32", "float16") if preset == "rotated" else ("none",))
    cases = cases_of(preset, dtypes, [None if name == "none" else name for name in tables])
    for name, field in (("batch", "B"), ("patches", "P"), ("cores", "C")):
        wanted = getattr(args, name)
        if wanted:
            cases = tuple(dict.fromkeys(dataclasses.replace(case, **{field: n}) for case in cases for n in wanted))
    limits = TimeLimits(
        runs=args.runs or (100 if cuda else 11),
        screening=11 if cuda else 2,
        max_seconds=args.max_seconds or (1.0 if cuda else 0.3),
    )
    return Plan(
        cases=cases,
        ops=tuple(args.ops),
        passes=tuple(args.passes or (PASSES if cuda else ["fwd", "fwd+bwd"])),
        modes=tuple(args.modes or (["graph", "eager"] if cuda else ["cpu"])),
        families=tuple(args.peers),
        layouts=tuple(args.layouts or (["token-major", "head-major"] if cuda else ["token-major"])),
        limits=limits,
        longest_run=args.longest_run or (0.5 if cuda else 4.0),
        seconds=args.seconds or (3600.0 if cuda else 90.0),
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    sink = JsonLines(args.out)
    record = environment(device.type)
    sink.append({"kind": "environment", **record})
    run(plan_of(args, device.type == "cuda"), device, sink)
    print(report(sink.rows, record, args.detail))
    bad = [row for row in sink.rows if row.get("family") in ("veca", "none") and row["status"] in FAILURES]
    for row in bad:
        print(f"REFUSED {row['label']}, {row['op']}: {row['reason']}", file=sys.stderr)
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", choices=PRESETS, help="default: grid on CUDA, cpu on CPU")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"))
    add("--batch", type=int, nargs="+", help="numbers of images, instead of the preset's")
    add("--patches", type=int, nargs="+", help="numbers of patches, instead of the preset's")
    add("--cores", type=int, nargs="+", help="numbers of cores, instead of the preset's")
    add("--tables", nargs="+", choices=("none", "float32", "float16"), help="dtypes of angle tables; none: no rotation")
    add("--ops", nargs="+", choices=OPS, default=OPS)
    add("--passes", nargs="+", choices=PASSES, help="default: all on CUDA, fwd and fwd+bwd on CPU")
    add("--modes", nargs="+", choices=("cpu", "eager", "graph"), help="default: graph and eager on CUDA")
    add("--peers", nargs="+", choices=FAMILIES, default=FAMILIES)
    add(
        "--layouts",
        nargs="+",
        choices=("token-major", "head-major"),
        help="default: both on CUDA, token-major on CPU",
    )
    add("--runs", type=int, help="runs per contender; default 100 on CUDA, 11 on CPU")
    add("--max-seconds", type=float, help="seconds for the runs of a contender; slow ones get fewer runs")
    add("--longest-run", type=float, help="skip contenders whose predicted run takes more seconds")
    add("--seconds", type=float, help="seconds for the whole run, then skip the rest; default CUDA 3600, CPU 90")
    add("--threads", type=int, help="number of CPU threads")
    add("--detail", action="store_true", help="also print every contender")
    add("--out", type=Path, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
