"""The suite composes its parts, survives what they do, and writes files that can be read."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu_suite import Part, parts_of, read_junit, result_of, run_part, write
from benchmarks.launches import kernels_of_trace
from benchmarks.record import ROOT, today

JUNIT = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">
<testcase classname="tests.kernels.test_ops" name="test_a"/><testcase classname="c" name="b"/>
<testcase classname="tests.kernels.test_ops" name="test_race"><failure>no</failure></testcase>
<testcase classname="c" name="d"><skipped/></testcase></testsuite></testsuites>"""


def _script(tmp_path, name, code, rows):
    return Part(name, (sys.executable, "-c", code), 10, tmp_path / rows)


def test_dry_run_composes_every_command_and_writes_valid_files(tmp_path, capsys):
    assert gpu_suite.main(["--dry-run", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"dry-run-{today()}.json").read_text())
    assert [part["name"] for part in result["parts"]] == ["environment", *gpu_suite.PARTS]
    assert {part["status"] for part in result["parts"]} == {"dry run"}
    assert sum(part["limit"] for part in result["parts"]) <= 480
    assert {verdict["verdict"] for verdict in result["acceptance"]} == {"not measured"}
    assert result["rows"] == [] and result["dry_run"] is True
    page = (tmp_path / f"dry-run-{today()}.md").read_text()
    assert "Dry run" in page and "| acceptance | dry run |" in page
    assert str(ROOT) not in page and str(tmp_path) not in json.dumps(result)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md"]  # no leftovers
    assert "benchmarks.kernels" in capsys.readouterr().out


def test_results_are_never_overwritten(tmp_path):
    for _ in range(2):
        assert gpu_suite.main(["--dry-run", "--parts", "grid", "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"dry-run-{today()}-2.json").exists()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_command_is_understood_by_its_module(device, tmp_path):
    for part in parts_of(device, tmp_path):
        arguments = part.arguments(60)
        assert not any("{" in word for word in arguments)
        module = arguments[2]
        if module in ("benchmarks.kernels", "benchmarks.backbone"):
            parser = __import__(module, fromlist=["_parser"])._parser()
            assert parser.parse_args(arguments[3:]).seconds == 50


def test_the_parent_needs_no_torch():
    code = "import sys, benchmarks.gpu_suite; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_part_that_hangs_is_killed_and_keeps_its_rows(tmp_path):
    rows = tmp_path / "grid.jsonl"
    code = f"""
import subprocess, sys, time
open({str(rows)!r}, "w").write('{{"kind": "machine", "n": 1}}\\n{{"kind": "mach')
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    part = _script(tmp_path, "grid", code, "grid.jsonl")
    start = time.monotonic()
    done = run_part(part, 1.5)
    assert time.monotonic() - start < 10
    assert done["status"] == "killed at its limit of 2 s"
    result = result_of("cuda", False, [done], [part])
    assert result["rows"] == [{"kind": "machine", "n": 1, "part": "grid"}]
    assert _gone(int((tmp_path / "pid").read_text()))  # its children too


def _gone(pid):
    """Whether a process has ended, reaped or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_part_that_fails_leaves_its_last_words(tmp_path):
    done = run_part(_script(tmp_path, "grid", "raise SystemExit('no GPU today')", "grid.jsonl"), 20)
    assert done["status"] == "failed, exit code 1" and "no GPU today" in done["output_tail"]
    find = "import importlib.util as u; raise SystemExit(not u.find_spec('veca_kernels'))"
    fine = run_part(_script(tmp_path, "grid", find, "grid.jsonl"), 60)
    assert fine["status"] == "ok", fine["output_tail"]  # finds the packages without an installation


def test_junit_is_counted(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(JUNIT)
    found = read_junit(path)
    assert (found["passed"], found["failures"], found["errors"], found["skipped"]) == (2, 1, 0, 1)
    assert found["failed"] == ["tests.kernels.test_ops::test_race"]


@pytest.mark.parametrize("green", [True, False])
def test_verdicts_say_when_the_tests_are_not_green(tmp_path, green):
    junit, rows = tmp_path / "tests.xml", tmp_path / "backbone.jsonl"
    junit.write_text(JUNIT.replace('failures="1"', 'failures="0"') if green else JUNIT)
    measured = {
        "kind": "backbone",
        "model": "veca_base_patch16",
        "size": 4096,
        "pass": "inference",
        "status": "skipped",
    }
    ok = measured | {"status": "ok", "reason": "", "matmul_share": 0.7, "median_ms": 1.0, "low_ms": 1.0}
    ok |= {"high_ms": 1.0, "runs": 9, "images_per_s": 1.0, "peak_bytes": 1, "forward_gflop": 1.0}
    ok |= {"pair": "base", "mode": "eager", "P": 65536, "batch": 1, "dtype": "bfloat16", "C": 64}
    rows.write_text(json.dumps(ok) + "\n")
    parts = [Part("tests", (), 1, junit), Part("backbone", (), 1, rows)]
    result = result_of("cuda", False, [], parts)
    assert result["tests_green"] is green
    expected = "met" if green else "met, but the GPU tests are not green"
    assert result["acceptance"][-1]["verdict"] == expected
    write(result, tmp_path / "result")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert f"| {expected} |" in (tmp_path / "result.md").read_text()


def test_a_missing_device_ends_the_run_with_its_error(tmp_path, capsys, monkeypatch):
    def broken(device, work):
        return [_script(work, "environment", "raise SystemExit('no CUDA device')", "environment.json")]

    monkeypatch.setattr(gpu_suite, "parts_of", broken)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_launches_are_read_from_a_trace_in_order():
    kernel = {"cat": "kernel", "name": "b", "ts": 2, "dur": 8.0, "args": {"grid": [11, 12, 1], "block": [128, 1, 1]}}
    events = [kernel, kernel | {"name": "a", "ts": 1}, {"cat": "cpu_op", "name": "c", "ts": 0, "dur": 1}]
    found = kernels_of_trace({"traceEvents": events})
    assert [launch["kernel"] for launch in found] == ["a", "b"]
    assert found[0] == {"kernel": "a", "grid": [11, 12, 1], "block": [128, 1, 1], "us": 8.0}
