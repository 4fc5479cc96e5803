"""The whole suite here, end to end: a fake GPU, tiny shapes, no tyro. Only what is measured is not real."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.record import ROOT, today
from benchmarks.suite_jobs import PARTS

EVERY_JOB = {job for jobs in PARTS.values() for job in jobs}
STEM = f"rehearsal-{today()}"


def _environment(**changes):
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "REHEARSAL_COMPILES": "0"} | changes


def _suite(out, *words, here=True, **environment):
    """Run the suite in one process, or with a process a job; its exit code, its output and its result."""
    start = ("benchmarks.rehearsal", "--here", "benchmarks.gpu_suite") if here else ("benchmarks.gpu_suite",)
    command = (sys.executable, "-m", *start, "--rehearse", "--out", str(out), "--commit", "0123abcd", *words)
    done = subprocess.run(command, cwd=ROOT, env=_environment(**environment), capture_output=True, text=True)
    path = out / f"{STEM}.json"
    return done.returncode, done.stdout + done.stderr, json.loads(path.read_text()) if path.exists() else None


def _statuses(result):
    return {job["name"]: job["status"] for job in result["jobs"]}


def _check(result, page):
    """Every job ran, every kind of row is there, and the promised numbers have verdicts."""
    assert _statuses(result) == dict.fromkeys(EVERY_JOB, "ok"), [j for j in result["jobs"] if j["status"] != "ok"]
    tests = result["tests"]
    assert tests["passed"] == tests["collected"] > 1 and not tests["failed"]
    timed = {(row["op"], row["tables"], row["mode"]) for row in result["summary"] if row["ours"] == "veca-triton"}
    assert {("whole", None, "graph"), ("whole", "float32", "graph"), ("whole", "float32", "eager")} <= timed
    tiles = {(row["kernel"], row["tables"], row["tile"]) for row in result["rows"] if row["kind"] == "tile"}
    for kernel in ("read_forward", "write_forward", "read_backward", "write_backward"):
        for tables in (None, "float32"):
            assert {(kernel, tables, "64x4x3"), (kernel, tables, "64x8x3")} <= tiles
        assert (kernel, "float16", "chosen") in tiles
    assert {row["label"] for row in result["rows"] if row["kind"] == "host"} >= {"two sdpa calls (token-major)"}
    models = {(row["model"], row["pass"]) for row in result["rows"] if row["kind"] == "backbone"}
    assert {("veca_base_patch16", "train"), ("vit_base_patch16_dinov3", "inference")} <= models
    measured = {row["quantity"] for row in result["acceptance"] if row["measured"]}
    assert any(name.startswith("rotated fwd+bwd, ") for name in measured)
    assert any(name.startswith("rotated fwd+bwd against") for name in measured)
    assert any(name.startswith("VECA-B forward") for name in measured)
    assert "A rehearsal on a CPU: its numbers mean nothing." in page
    for title in ("The four kernels by tile", "Host times", "Backbone", "Kernels that ran"):
        assert f"## {title}\n\n" in page


@pytest.mark.slow
def test_all_three_parts_run_and_join(tmp_path):
    code, output, result = _suite(tmp_path)
    assert code == 0, output[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{STEM}.json", f"{STEM}.md"]
    _check(result, (tmp_path / f"{STEM}.md").read_text())


@pytest.mark.slow
def test_a_process_a_job_real_compilation_and_three_calls(tmp_path):
    for part in PARTS:
        code, output, result = _suite(tmp_path, "--parts", part, "--minutes", "30", here=False, REHEARSAL_COMPILES="1")
        assert code == 0, output[-3000:]
    _check(result, (tmp_path / f"{STEM}.md").read_text())
    compiled = [row for row in result["rows"] if row["kind"] == "warm"]
    assert sum(row["binaries"] for row in compiled) >= 6


@pytest.mark.slow
def test_wrong_rotation_taints_rotated_rows_alone(tmp_path):
    code, _, result = _suite(tmp_path, "--parts", "tests", "acceptance", "rotated", REHEARSAL_WRONG="rope")
    assert code == 1 and result["tests"]["failed"] and all("rope" in test for test in result["tests"]["failed"])
    verdicts = {row["quantity"]: row["verdict"] for row in result["acceptance"]}
    plain = next(verdict for name, verdict in verdicts.items() if name.startswith("fwd+bwd, B=1"))
    rotated = next(verdict for name, verdict in verdicts.items() if name.startswith("rotated fwd+bwd, B=1"))
    assert plain in ("met", "missed")
    assert rotated == "not measured" or "withheld" in rotated or "test is red" in rotated


@pytest.mark.slow
def test_a_job_that_hangs_costs_its_own_rows(tmp_path):
    words = ("--parts", "host", "launches", "--minutes", "2")
    code, _, result = _suite(tmp_path, *words, here=False, REHEARSAL_HANG="benchmarks.host_times")
    assert code == 1 and _statuses(result)["host"].startswith("killed at its limit")
    assert _statuses(result)["launches"] == "ok"
    assert {row["job"] for row in result["rows"]} == {"launches"}


@pytest.mark.slow
def test_a_suite_that_is_killed_keeps_what_is_on_disk(tmp_path):
    command = (
        sys.executable,
        "-m",
        "benchmarks.gpu_suite",
        "--rehearse",
        "--out",
        str(tmp_path),
        "--parts",
        "launches",
    )
    environment = _environment(REHEARSAL_HANG="benchmarks.launches")
    process = subprocess.Popen((*command, "--parts", "launches"), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    path, deadline = tmp_path / f"{STEM}.json", time.monotonic() + 120
    while time.monotonic() < deadline and not (path.exists() and "not run to its end" in path.read_text()):
        time.sleep(1)
    process.send_signal(signal.SIGTERM)  # SIGKILL would leave the job of this test running
    process.wait(30)
    result = json.loads(path.read_text())
    assert _statuses(result) == {"environment": "ok", "launches": "not run to its end"}
