"""Verdicts at the edge: met, missed, withheld, not measured."""

import pytest

from benchmarks.acceptance import GRID, SHAPES, judge, judge_backbone

FLOOR = 258.0


def _row(shape, pass_="fwd+bwd", mode="graph", dtype="bfloat16", **fields):
    B, P, C = shape
    where = {"dtype": dtype, "B": B, "P": P, "C": C, "H": 12, "D": 64, "op": "whole", "pass": pass_, "mode": mode}
    ratios = {f"{name}_ratio": 1000.0 for name in ("peer", "sdpa", "full")}
    times = {"ours_us": FLOOR, "floor_us": FLOOR, "peak_bytes": 0, "refused": None}
    return where | ratios | times | {"peer": "p", "sdpa": "s", "full": "f"} | fields


def _verdicts(rows, device="cuda"):
    return {verdict["quantity"]: verdict for verdict in judge(rows, device)}


def test_nothing_measured_is_not_met():
    assert {v["verdict"] for v in judge([], "cuda") + judge([], "cpu")} == {"not measured"}
    assert judge_backbone([])["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("fields", "quantity", "verdict"),
    [
        ({"ours_us": 1.399 * FLOOR}, "fwd+bwd, B=1, P=65,536, C=64", "met"),
        ({"ours_us": 1.401 * FLOOR}, "fwd+bwd, B=1, P=65,536, C=64", "missed"),
        ({"sdpa_ratio": 1.6}, "fwd+bwd against the best SDPA, folded included, B=1, P=65,536, C=64", "met"),
        ({"sdpa_ratio": 1.59}, "fwd+bwd against the best SDPA, folded included, B=1, P=65,536, C=64", "missed"),
        ({"full_ratio": 201.0}, "fwd+bwd against full attention, B=1, P=65,536, C=64", "met"),
        ({"full_ratio": 199.0}, "fwd+bwd against full attention, B=1, P=65,536, C=64", "missed"),
        ({"peak_bytes": 434_000_000}, "peak memory of fwd+bwd, B=1, P=65,536, C=64", "met"),
        ({"peak_bytes": 436_000_000}, "peak memory of fwd+bwd, B=1, P=65,536, C=64", "missed"),
    ],
)
def test_thresholds(fields, quantity, verdict):
    assert _verdicts([_row((1, 65536, 64), **fields)])[quantity]["verdict"] == verdict


def test_the_rotated_op_counts_with_its_best_tables():
    quantity = "rotated fwd+bwd, B=1, P=65,536, C=64"
    peers = "rotated fwd+bwd against the best peer and its compiled rotation, B=1, P=65,536, C=64"
    slow = _row((1, 65536, 64), tables="float32", ours_us=1.5 * FLOOR, peer_ratio=1.5)
    fast = _row((1, 65536, 64), tables="float16", ours_us=1.3 * FLOOR, peer_ratio=1.61)
    assert _verdicts([slow])[quantity]["verdict"] == _verdicts([slow])[peers]["verdict"] == "missed"
    found = _verdicts([slow, fast])
    assert found[quantity]["verdict"] == found[peers]["verdict"] == "met"
    assert "float16 tables" in found[quantity]["measured"]
    assert found["fwd+bwd, B=1, P=65,536, C=64"]["verdict"] == "not measured"


def test_a_red_test_stands_in_the_verdict():
    found = _verdicts([_row((1, 65536, 64), red=["test_a", "test_b"])])
    assert found["fwd+bwd, B=1, P=65,536, C=64"]["verdict"] == "met, but a test is red: test_a and 1 more"


def test_the_short_shape_needs_ten():
    quantity = "fwd+bwd against full attention, B=1, P=4,096, C=64"
    for ratio, verdict in ((10.0, "met"), (9.9, "missed")):
        assert _verdicts([_row((1, 4096, 64), full_ratio=ratio)])[quantity]["verdict"] == verdict


def test_eager_times_and_other_dtypes_do_not_count():
    for other in ({"mode": "eager"}, {"dtype": "float16"}):
        assert {v["verdict"] for v in judge([_row(shape, **other) for shape in SHAPES], "cuda")} == {"not measured"}


def test_refused_ratios_are_withheld():
    row = _row((1, 65536, 64), refused="veca-triton: dq is wrong", sdpa_ratio=None, full_ratio=None)
    verdicts = _verdicts([row])
    assert "dq is wrong" in verdicts["fwd+bwd, B=1, P=65,536, C=64"]["verdict"]
    assert verdicts["fwd+bwd, B=1, P=65,536, C=64"]["measured"] is None


def test_forward_counts_every_benchmark_shape():
    quantity = "forward against the best peer, every benchmark shape"
    rows = [_row(shape, "fwd", peer_ratio=0.97) for shape in GRID]
    assert len(GRID) == len(set(GRID)) == 60
    assert _verdicts(rows)[quantity]["verdict"] == "met"
    assert _verdicts(rows[:-1])[quantity]["verdict"] == "met where measured"
    rows[7]["peer_ratio"] = 0.94
    found = _verdicts(rows)[quantity]
    assert found["verdict"] == "missed" and "worst 0.94x" in found["measured"] and "1 of 60" in found["measured"]


def test_cpu_needs_fifteen():
    row = _row((1, 4096, 64), "fwd", "cpu", "float32", full_ratio=14.9)
    assert [v["verdict"] for v in judge([row], "cpu")] == ["missed", "not measured"]
    assert [v["verdict"] for v in judge([row | {"full_ratio": 15.0}], "cpu")] == ["met", "not measured"]


def test_backbone_takes_its_best_mode():
    row = {"kind": "backbone", "model": "veca_base_patch16", "size": 4096, "pass": "inference", "status": "ok"}
    rows = [row | {"matmul_share": share} for share in (0.55, 0.61)]
    assert judge_backbone(rows)["verdict"] == "met"
    assert judge_backbone(rows[:1])["verdict"] == "missed"
    assert judge_backbone([rows[1] | {"model": "vit_base_patch16_224"}])["verdict"] == "not measured"
