"""The suite composes its jobs, survives what they do, joins its calls, and writes files that can be read."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_suite
from benchmarks.launches import kernels_of_trace
from benchmarks.record import ROOT, today
from benchmarks.suite_jobs import GPU_TESTS, PARTS, Job, jobs_of, names_of
from benchmarks.suite_process import run_job
from benchmarks.suite_results import collect, finish, join, joinable, read_tests

COMMIT = "0123abcd"


def _script(tmp_path, name, code, part="kernels", **limits):
    return Job(part, name, ("-c", code), 10, tmp_path / f"{name}.jsonl", **limits)


def _gone(pid):
    """Whether a process has ended, reaped or not; a killed one has five seconds to end."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_every_part_takes_less_than_nine_minutes():
    for jobs in PARTS.values():
        assert sum(jobs.values()) <= 510 and next(iter(jobs)) == "environment"


def test_parts_are_chosen_by_number_name_or_job():
    assert names_of(["2"]) == names_of(["kernels"]) == {"kernels": list(PARTS["kernels"])}
    assert names_of([]) == {part: list(jobs) for part, jobs in PARTS.items()}
    assert names_of(["grid", "tiles"]) == {"numerics": ["environment", "tiles"], "backbone": ["environment", "grid"]}
    with pytest.raises(ValueError, match=r"expected parts or jobs of: numerics, .*grid; got 'everything'"):
        names_of(["everything"])


def test_dry_run_prints_every_command_and_writes_nothing(tmp_path, capsys):
    assert gpu_suite.main(["--dry-run", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for part, jobs in PARTS.items():
        assert all(f"{part}: {job} (" in printed for job in jobs)
    assert str(ROOT) not in printed and not list(tmp_path.iterdir())


def test_every_command_is_understood_by_its_module(tmp_path):
    for job in (job for jobs in jobs_of(tmp_path).values() for job in jobs):
        python, flag, module, *arguments = job.arguments(60)
        assert (python, flag) == (sys.executable, "-m") and not any("{" in word for word in arguments)
        if module != "pytest":
            parsed = __import__(module, fromlist=["_parser"])._parser().parse_args(arguments)
            assert parsed.out == job.rows and getattr(parsed, "seconds", 40) in (20, 30, 40)


def test_the_files_with_gpu_tests_are_named():
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text() and "brainmodels" not in path.parts and path.name != Path(__file__).name
    }
    assert marked == set(GPU_TESTS)


def test_the_parent_needs_no_torch():
    code = "import sys, benchmarks.gpu_suite; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_job_that_hangs_is_asked_and_then_killed_with_its_children(tmp_path):
    rows = tmp_path / "grid.jsonl"
    code = f"""
import subprocess, sys, time
rows = open({str(rows)!r}, "w", buffering=1)
rows.write('{{"kind": "machine", "n": 1}}\\n')
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    rows.write('{{"kind": "machine", "n": 2}}\\n{{"kind": "mach')
time.sleep(60)
"""
    job = _script(tmp_path, "grid", code, grace=1.0)
    start = time.monotonic()
    done = run_job(job, 4)
    assert time.monotonic() - start < 12
    assert done["status"] == "killed at its limit of 4 s"
    found = collect([job], [done], COMMIT)["rows"]
    assert [row["n"] for row in found] == [1, 2] and {row["job"] for row in found} == {"grid"}
    assert _gone(int((tmp_path / "pid").read_text()))


def test_a_job_that_fails_leaves_its_last_words(tmp_path):
    done = run_job(_script(tmp_path, "grid", "raise SystemExit('no GPU today')"), 20)
    assert done["status"] == "failed, exit code 1" and "no GPU today" in done["output_tail"]
    find = "import importlib.util as u; raise SystemExit(not u.find_spec('veca_kernels'))"
    fine = run_job(_script(tmp_path, "grid", find), 60)
    assert fine["status"] == "ok", fine["output_tail"]  # finds the packages without an installation


TESTS = """
import os, signal, time, pytest
def test_good(): pass
@pytest.mark.parametrize("word", ["rope_shared", "plain"])
def test_bad(word): assert word == "plain", "numbers differ"
@pytest.fixture
def broken(): raise RuntimeError("no such stream")
def test_error(broken): pass
def test_skipped(): pytest.skip("no")
def test_kills():
    time.sleep(2)
    os.kill(os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid(), signal.SIGKILL)
    time.sleep(5)
def test_never(): pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_outcomes_of_tests_survive_a_kill(tmp_path, workers, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # or the test inside would kill the worker around us
    (tmp_path / "test_some.py").write_text(TESTS)
    rows = tmp_path / "tests.jsonl"
    words = ("-m", "pytest", str(tmp_path / "test_some.py"), *workers, "-q", "-p", "no:cacheprovider")
    words += ("--rootdir", str(tmp_path), "-p", "benchmarks.pytest_rows", "--rows", str(rows))
    job = Job("numerics", "tests", words, 10, rows)
    done = run_job(job, 60)
    assert done["status"] == "failed, exit code -9"
    tests = read_tests(collect([job], [done], COMMIT)["rows"])
    assert tests["collected"] == 7 and tests["passed"] >= 2 and tests["skipped"] == 1
    assert {test.split("::")[1] for test in tests["failed"]} == {"test_bad[rope_shared]", "test_error"}
    assert not tests["complete"] and "numbers differ" in str(tests["messages"])


def _result(jobs=("acceptance",), rows=(), commit=COMMIT, device="NVIDIA H200", status="ok"):
    environment = {"device": device, "torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3"}
    done = [{"name": name, "part": "kernels", "status": status, "seconds": 1.0, "limit": 9} for name in jobs]
    head = {"date": today(), "commit": commit, "rehearsal": False, "environment": environment, "pages": {}}
    return head | {"jobs": done, "rows": list(rows)}


def test_results_join_where_device_and_commit_agree():
    first, second = _result(), _result(["models"])
    assert joinable(first, second)
    assert not joinable(first, _result(device="NVIDIA H100 80GB HBM3"))
    assert not joinable(first, _result(commit="another")) and not joinable(*[_result(commit="unknown")] * 2)
    assert not joinable(*[_result(commit=COMMIT + "+changes")] * 2)
    one = first | {"rows": [{"kind": "a", "job": "acceptance"}, {"kind": "b", "job": "old"}]}
    two = _result(["acceptance"], [{"kind": "c", "job": "acceptance"}])
    joined = join(one, two)
    assert [row["kind"] for row in joined["rows"]] == ["b", "c"] and len(joined["jobs"]) == 1


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """A suite whose jobs are scripts: `scripted(name=code)` replaces some; the others write one row."""

    def start(out, parts, minutes=1, **codes):
        def jobs(work, wanted=(), prefix=()):
            def job(part, name):
                row = {"kind": "machine", "of": name} if name != "environment" else _result()["environment"]
                code = f"open({str(work / f'{name}.jsonl')!r}, 'a').write({json.dumps(row) + chr(10)!r})"
                return Job(part, name, ("-c", codes.get(name, code)), 1, work / f"{name}.jsonl", grace=0.5)

            return {part: [job(part, name) for name in names] for part, names in names_of(wanted).items()}

        monkeypatch.setattr(gpu_suite, "jobs_of", jobs)
        return gpu_suite.main(["--out", str(out), "--commit", COMMIT, "--minutes", str(minutes), "--parts", *parts])

    return start


def test_calls_join_in_one_folder_and_nothing_is_overwritten(tmp_path, scripted):
    assert scripted(tmp_path, ["numerics"]) == 0 and scripted(tmp_path, ["host", "launches"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"nvidia-h200-{today()}.json",
        f"nvidia-h200-{today()}.md",
    ]
    result = json.loads((tmp_path / f"nvidia-h200-{today()}.json").read_text())
    names = ["warm", "tests", "tiles", "angles", "environment", "host", "launches"]
    assert [job["name"] for job in result["jobs"]] == names
    assert {row["of"] for row in result["rows"]} == {"warm", "tests", "tiles", "angles", "host", "launches"}
    assert scripted(tmp_path, ["host"]) == 0  # measured before: a file of its own
    assert (tmp_path / f"nvidia-h200-{today()}-2.json").exists()


def test_a_killed_job_may_be_run_again_in_the_same_result(tmp_path, scripted):
    assert scripted(tmp_path, ["host"], 0.05, host="import time; time.sleep(30)") == 1
    assert scripted(tmp_path, ["host"]) == 0
    result = json.loads((tmp_path / f"nvidia-h200-{today()}.json").read_text())
    assert [(job["name"], job["status"]) for job in result["jobs"]] == [("environment", "ok"), ("host", "ok")]


def test_files_of_other_folders_are_joined(tmp_path, scripted, capsys):
    for part in ("numerics", "backbone"):
        assert scripted(tmp_path / part, [part]) == 0
    files = [str(tmp_path / part / f"nvidia-h200-{today()}.json") for part in ("numerics", "backbone")]
    assert gpu_suite.main(["--join", *files, "--out", str(tmp_path / "all")]) == 0
    result = json.loads((tmp_path / "all" / f"nvidia-h200-{today()}.json").read_text())
    assert {job["part"] for job in result["jobs"]} == {"numerics", "backbone"}
    other = json.loads(Path(files[1]).read_text()) | {"commit": "another"}
    Path(files[1]).write_text(json.dumps(other))
    assert gpu_suite.main(["--join", *files, "--out", str(tmp_path / "all")]) == 2
    assert "expected the device, versions and commit" in capsys.readouterr().err


def test_a_missing_device_ends_the_run_with_its_error(tmp_path, capsys, scripted):
    assert scripted(tmp_path, ["kernels"], environment="raise SystemExit('no CUDA device')") == 2
    assert "no CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_environment_that_is_killed_does_not_end_the_run(tmp_path, scripted):
    assert scripted(tmp_path, ["host"], 0.1, environment="import time; time.sleep(60)") == 1
    result = json.loads((tmp_path / f"unknown-device-{today()}.json").read_text())
    assert [job["name"] for job in result["jobs"]] == ["environment", "host"] and len(result["rows"]) == 1


def _timed(tables, mode="graph"):
    row = {"kind": "time", "dtype": "bfloat16", "B": 1, "P": 65536, "C": 64, "H": 12, "D": 64, "tables": tables}
    who = {"name": "veca-triton", "family": "veca", "op": "whole", "layout": "token-major", "label": "ours"}
    times = {"median_us": 300.0, "low_us": 290.0, "high_us": 310.0, "runs": 9, "floor_us": 258.0, "regime": "M"}
    return row | who | times | {"pass": "fwd+bwd", "mode": mode, "status": "ok", "reason": "", "peak_bytes": None}


def _tested(*outcomes):
    tests = [{"kind": "test", "test": test, "outcome": outcome, "message": ""} for test, outcome in outcomes]
    return [{"kind": "collected", "tests": 2}, *tests]


GOOD, ROPE = "tests/kernels/test_gpu.py::test_auto", "tests/kernels/test_gpu.py::test_x[rope_shared-torch.bfloat16]"


def _floor_verdicts(rows):
    found = finish(_result(rows=[_timed(None), _timed("float32"), *rows]))["acceptance"]
    by_name = {verdict["quantity"]: verdict["verdict"] for verdict in found}
    return by_name["fwd+bwd, B=1, P=65,536, C=64"], by_name["rotated fwd+bwd, B=1, P=65,536, C=64"]


def test_a_red_test_taints_its_rows_alone_and_is_named():
    assert _floor_verdicts(_tested((GOOD, "passed"), (ROPE, "passed"))) == ("met", "met")
    plain, rotated = _floor_verdicts(_tested((GOOD, "passed"), (ROPE, "failed")))
    assert plain == "met" and rotated == f"met, but a test is red: {ROPE}"


def test_verdicts_say_when_tests_did_not_run_or_did_not_end():
    assert set(_floor_verdicts([])) == {"met, but no GPU test ran"}
    assert set(_floor_verdicts(_tested((GOOD, "skipped"), (ROPE, "skipped")))) == {"met, but no GPU test ran"}
    assert set(_floor_verdicts(_tested((GOOD, "passed")))) == {"met, but only 1 of 2 GPU tests ended"}


def test_launches_are_read_from_a_trace_in_order():
    kernel = {"cat": "kernel", "name": "b", "ts": 2, "dur": 8.0, "args": {"grid": [11, 12, 1], "block": [128, 1, 1]}}
    events = [kernel, kernel | {"name": "a", "ts": 1}, {"cat": "cpu_op", "name": "c", "ts": 0, "dur": 1}]
    found = kernels_of_trace({"traceEvents": events})
    assert [launch["kernel"] for launch in found] == ["a", "b"]
    assert found[0] == {"kernel": "a", "grid": [11, 12, 1], "block": [128, 1, 1], "us": 8.0}
