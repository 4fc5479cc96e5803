"""All measurements on a GPU, in three parts of less than nine minutes each.

    python -m benchmarks.gpu_suite --parts numerics    # tests, tiles, angle tables
    python -m benchmarks.gpu_suite --parts kernels     # the op against its peers, in graphs and in eager mode
    python -m benchmarks.gpu_suite --parts backbone    # models, compiled peers, the other shapes
    python -m benchmarks.gpu_suite --join A.json B.json C.json    # results of other folders in one
    python -m benchmarks.gpu_suite --rehearse --out out/rehearsal # every job on a CPU, tiny, with a fake GPU
    python -m benchmarks.gpu_suite --dry-run           # prints the commands, runs none

It writes benchmarks/results/<gpu>-<date>.json and .md, again every ten seconds. A later call with the same --out joins
its results to them if device, versions and commit agree. Every job is a separate process with a time limit. A job that
fails or hangs loses only its own numbers. The suite needs torch, triton, timm, einops, tqdm, pytest and pytest-xdist.
Other peers than torch are optional, and the result names those that are absent.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .acceptance import verdict_table
from .record import RESULTS, Row, commit, slug
from .suite_jobs import ALWAYS, PARTS, Job, jobs_of, names_of
from .suite_process import planned, run_job
from .suite_results import collect, finish, free_stem, join, joinable, replaces_measurements, write

_ENVIRONMENT_SECONDS = 60.0  # with a cold import of torch; the run goes on if the job takes longer
Run = Callable[..., Row]


class Call:
    """One call of the suite: its jobs, their results so far, and the file of the results."""

    def __init__(self, args: argparse.Namespace, parts: dict[str, list[Job]]) -> None:
        self.out, self.rehearsal = args.out.resolve(), args.rehearse
        self.commit = args.commit or commit()
        self.jobs = [job for jobs in parts.values() for job in jobs]
        self.done: list[Row] = []
        self.stem: Path | None = None
        self.base: Row | None = None

    def save(self, running: Row | None = None) -> Row:
        """Write all results so far, joined to the result of an earlier call if there is one."""
        done = [*self.done, running] if running else self.done
        result = collect(self.jobs, done, self.commit, self.rehearsal)
        if self.stem is None:
            self._place(result)
        result = finish(join(self.base, result) if self.base else result)
        write(result, self.stem)
        return result

    def _place(self, result: Row) -> None:
        """Choose the newest file of this device that this call may join, or a new file."""
        self.out.mkdir(parents=True, exist_ok=True)
        device = "rehearsal" if self.rehearsal else result["environment"].get("device") or "unknown device"
        found = sorted(self.out.glob(f"{slug(device)}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        names = [job.name for job in self.jobs]
        for path in found:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if joinable(earlier, result) and not replaces_measurements(earlier, names):
                self.stem, self.base = path.with_suffix(""), earlier
                return
        self.stem = free_stem(self.out, device)


def run_parts(call: Call, parts: dict[str, list[Job]], minutes: float, run: Run) -> Row | None:
    """Run all jobs. Time that a job does not use goes to the later jobs of its part.

    Returns:
        The result, or None if there is no device.
    """
    measured = False
    result = None
    for jobs in parts.values():
        left = 60 * minutes
        for index, job in enumerate(jobs):
            if job.name in ALWAYS and any(row["name"] == job.name for row in call.done):
                continue
            limit = left * job.share / sum(later.share for later in jobs[index:])
            limit = min(limit, _ENVIRONMENT_SECONDS) if job.name == "environment" else limit
            print(f"{job.part}: {job.name} ({limit:.0f} s): {job.shown(limit)}", flush=True)
            started = planned(job, limit, "not run to its end")
            tick = (lambda row=started: call.save(row)) if measured else (lambda: None)
            try:
                call.done.append(run(job, limit, tick))
            except BaseException:  # after an interrupt, too, all results so far are written
                if measured:
                    call.save(started)
                raise
            row = call.done[-1]
            print(f"  {row['status']}, {row['seconds']} s", flush=True)
            left -= row["seconds"]
            if job.name == "environment" and row["status"].startswith("failed"):
                print(f"expected a working GPU, got:\n{row['output_tail']}", file=sys.stderr)
                return None
            measured = True
            result = call.save()
    return result


def join_files(paths: Sequence[Path], out: Path) -> int:
    """Join the results of several calls. If several have the same job, the last one counts."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    whole = results[0]
    for path, later in zip(paths[1:], results[1:], strict=True):
        if not joinable(whole, later):
            print(f"expected the device, versions and commit of {paths[0]}, got others in {path}", file=sys.stderr)
            return 2
        whole = join(whole, later)
    whole = finish(whole)
    out.mkdir(parents=True, exist_ok=True)
    stem = free_stem(out, whole["environment"]["device"])
    write(whole, stem)
    print(f"{verdict_table(whole['acceptance'])}\n\n{stem}.json\n{stem}.md")
    return 0


def main(argv: Sequence[str] | None = None, run: Run = run_job) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.join:
        return join_files(args.join, args.out.resolve())
    try:
        names_of(args.parts)
    except ValueError as error:
        parser.error(str(error))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running job is killed, too
    prefix = ("-m",)
    if args.rehearse:
        from .rehearsal import PREFIX, shrink

        shrink()
        prefix = PREFIX
    work = Path(tempfile.mkdtemp(prefix="gpu-suite-"))
    try:
        parts = jobs_of(work, args.parts, prefix)
        if args.dry_run:
            for job in (job for jobs in parts.values() for job in jobs):
                print(f"{job.part}: {job.name} ({job.share:.0f} s): {job.shown(job.share)}")
            return 0
        call = Call(args, parts)
        result = run_parts(call, parts, args.minutes, run)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    if result is None:
        return 2
    print(f"\n{verdict_table(result['acceptance'])}\n\n{call.stem}.json\n{call.stem}.md")
    return 0 if all(row["status"] == "ok" for row in call.done) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ", ".join(f"{number} or {name}" for number, name in enumerate(PARTS, start=1))
    parser.add_argument("--parts", nargs="+", default=[], help=f"{parts}, or names of jobs; default: all three")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--commit", help="the commit that runs, for a copy of the tree without git")
    parser.add_argument("--minutes", type=float, default=8.5, help="minutes for each part")
    parser.add_argument("--join", nargs="+", type=Path, metavar="JSON", help="join these results and run nothing")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny shapes and a fake GPU")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
