"""The benchmark from end to end on a tiny shape, and its refusal when our answer is wrong."""

import pytest
import torch

from benchmarks import kernels
from benchmarks import peers as registry
from benchmarks.floors import H200, AttentionCase
from benchmarks.record import read_rows
from benchmarks.summary import summarize_rows

TINY = ("--device", "cpu", "--patches", "40", "--cores", "4", "--dtypes", "float32", "--runs", "2")


def _run(tmp_path, *options):
    path = tmp_path / "rows.jsonl"
    return kernels.main([*TINY, "--out", str(path), *options]), read_rows(path)


@pytest.fixture(autouse=True)
def known_rates(monkeypatch):
    """Measuring the machine's rates takes longer than these tests."""
    monkeypatch.setattr(kernels, "machine_for", lambda device, dtype: H200)


@pytest.fixture
def wrong_write(monkeypatch):
    """Our write gives one patch another's answer."""

    def write(q, k, v, *, impl):
        return torch.roll(registry.chain(q, k, v), 1, dims=2)

    monkeypatch.setattr(registry, "core_to_patch_attention", write)


def test_every_op_pass_and_contender_has_a_row(tmp_path, capsys):
    status, rows = _run(tmp_path, "--passes", "fwd", "bwd", "fwd+bwd", "--detail")
    assert status == 0
    assert [row["kind"] for row in rows[:2]] == ["environment", "machine"]
    timed = {(row["op"], row["pass"], row["name"]) for row in rows if row.get("status") == "ok"}
    for op in ("read", "write", "whole"):
        for pass_ in ("fwd", "bwd", "fwd+bwd"):
            assert (op, pass_, "veca-sdpa") in timed
            assert op == "whole" or (op, pass_, "sdpa-flash") in timed
    assert {("full", "fwd", "sdpa-flash"), ("full", "fwd+bwd", "sdpa-flash")} <= timed
    assert all(row["reason"] for row in rows if row.get("status") not in (None, "ok"))
    summary = summarize_rows(rows)
    assert len(summary) == 9
    whole = next(row for row in summary if (row["op"], row["pass"]) == ("whole", "fwd"))
    assert whole["full_ratio"] == pytest.approx(whole["full_us"] / whole["ours_us"])
    printed = capsys.readouterr().out
    assert "| whole | fwd | cpu | veca-sdpa |" in printed and "| not measured |" in printed
    assert "veca-triton: absent" in printed


def test_a_wrong_implementation_gets_no_ratio_and_a_bad_exit(tmp_path, capsys, wrong_write):
    status, rows = _run(tmp_path, "--passes", "fwd")
    assert status == 1
    wrong = [row for row in rows if row.get("status") == "wrong"]
    assert [(row["name"], row["op"]) for row in wrong] == [("veca-sdpa", "write")]
    assert "max error" in wrong[0]["reason"]
    assert not [row for row in summarize_rows(rows) if row["op"] == "write"]  # never timed
    captured = capsys.readouterr()
    assert "REFUSED veca-sdpa (token-major), write: dq of image" in captured.err
    assert "veca-sdpa (token-major): wrong" in captured.out


def test_the_rotated_op_is_measured_beside_rotating_peers(tmp_path):
    status, rows = _run(tmp_path, "--tables", "none", "float32", "--passes", "fwd", "--detail")
    assert status == 0
    timed = {(row["tables"], row["op"], row["name"]) for row in rows if row.get("status") == "ok"}
    assert {(None, "whole", "veca-sdpa"), ("float32", "whole", "veca-sdpa")} <= timed
    assert ("float32", "write", "sdpa-flash+rope") in timed and ("float32", "full", "sdpa-flash") not in timed
    rotated = next(row for row in summarize_rows(rows) if row["tables"] == "float32")
    assert rotated["op"] == "whole" and rotated["peer"].count("+rope") == 2


def test_time_and_memory_limits_are_named(tmp_path, monkeypatch):
    _, rows = _run(tmp_path, "--longest-run", "1e-12", "--ops", "read")
    assert {row["status"] for row in rows if row["kind"] == "time"} == {"skipped", "absent"}
    assert any("a run, limit" in row["reason"] for row in rows if row["kind"] == "time")
    monkeypatch.setattr(kernels, "_memory", lambda device: 1000.0)
    _, rows = _run(tmp_path / "memory", "--ops", "write")
    assert any("GB are available" in row["reason"] for row in rows if row["kind"] == "time")


def test_a_spent_budget_names_what_it_left_out(tmp_path):
    _, rows = _run(tmp_path, "--seconds", "1e-9", "--ops", "read", "write")
    left = [row for row in rows if row["kind"] == "time"]
    assert {(row["op"], row["status"]) for row in left} == {("read", "skipped"), ("write", "skipped")}
    assert all("were used up" in row["reason"] for row in left)


def test_one_broken_shape_does_not_stop_the_others(tmp_path, monkeypatch):
    def break_write(case, op, *arguments):
        if op == "write":
            raise MemoryError("no room")
        return oracle(case, op, *arguments)

    oracle = kernels.Oracle
    monkeypatch.setattr(kernels, "Oracle", break_write)
    status, rows = _run(tmp_path, "--ops", "write", "read", "--passes", "fwd")
    assert status == 1
    assert [row["reason"] for row in rows if row.get("status") == "error"] == ["MemoryError: no room"]
    assert {row["op"] for row in rows if row.get("status") == "ok"} == {"read"}


def test_full_attention_is_measured_once_for_all_numbers_of_cores():
    plan = kernels.plan_of(kernels._parser().parse_args(["--cores", "16", "64", "--patches", "40"]), cuda=False)
    groups = [(case.C, ops) for case in plan.cases for ops in kernels._groups(case, plan, torch.device("cpu"))]
    assert {C for C, ops in groups if "full" in ops} == {64}
    assert (64, ("whole", "full")) in groups  # interleaved on a CPU
    device = torch.device("cuda")
    assert all(len(ops) == 1 for case in plan.cases for ops in kernels._groups(case, plan, device))


def test_default_shapes_contain_the_promised_one():
    cases = kernels.cases_of("cpu", ["float32", "bfloat16"])
    assert AttentionCase(1, 4096, 64, dtype="float32") in cases and len(cases) == 12
    assert len(kernels.cases_of("grid", ["bfloat16"])) == 60
    assert len(kernels.cases_of("rest", ["bfloat16"])) == 57
    assert AttentionCase(8, 16384, 64, tables="float16") in kernels.cases_of(
        "rotated", ["bfloat16"], ["float32", "float16"]
    )


def test_whole_ops_of_all_shapes_come_before_the_first_half(tmp_path):
    _, rows = _run(tmp_path, "--patches", "20", "40", "--passes", "fwd", "--seconds", "1e-9")
    ops = [row["op"] for row in rows if row["kind"] == "time"]
    assert ops.index("read") > max(i for i, op in enumerate(ops) if op == "whole")
