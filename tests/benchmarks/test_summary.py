"""Ratios from rows: the fastest peer by name, halves added, nothing printed where a check failed."""

import pytest

from benchmarks.summary import detail_table, launches_table, notes, summarize_rows, summary_table

SHAPE = {"dtype": "bfloat16", "B": 1, "P": 4096, "C": 64, "H": 12, "D": 64}


def row(name, op, median, *, family="sdpa", layout="token-major", status="ok", pass_="fwd", mode="graph", **fields):
    label = f"{name} ({layout})"
    who = {"kind": "time", "name": name, "family": family, "op": op, "layout": layout, "label": label}
    times = {"median_us": median, "low_us": median, "high_us": median, "runs": 100, "floor_us": 10.0, "regime": "M"}
    state = {"status": status, "reason": "", "pass": pass_, "mode": mode, "peak_bytes": None}
    return SHAPE | who | times | state | fields


OURS = [
    row("veca-sdpa", "whole", 60.0, family="veca"),
    row("veca-triton", "whole", 20.0, family="veca"),
    row("veca-triton", "whole", 15.0, family="veca", layout="packed"),
]
PEERS = [
    row("sdpa-flash", "read", 30.0),
    row("sdpa-cudnn", "read", 22.0, layout="head-major"),
    row("chain", "read", 21.0, family="chain"),
    row("sdpa-flash-fold8", "write", 25.0),
    row("sdpa-flash", "full", 300.0),
    row("sdpa-cudnn", "full", 200.0, C=16),
]


def test_whole_adds_the_best_halves_and_names_them():
    (found,) = summarize_rows(OURS + PEERS)
    assert (found["ours"], found["ours_us"]) == ("veca-triton", 20.0)
    assert found["peer"] == "chain (token-major) + sdpa-flash-fold8 (token-major)"
    assert found["peer_ratio"] == pytest.approx(46 / 20)
    assert found["sdpa"] == "sdpa-cudnn (head-major) + sdpa-flash-fold8 (token-major)"
    assert found["sdpa_ratio"] == pytest.approx(47 / 20)
    assert found["full_ratio"] == pytest.approx(200 / 20)  # measured beside another number of cores
    assert found["floor_share"] == pytest.approx(0.5)


def test_a_joint_peer_wins_where_it_is_faster():
    (found,) = summarize_rows([*OURS, *PEERS, row("flex-mask", "whole", 19.0, family="flex")])
    assert (found["peer"], found["peer_ratio"]) == ("flex-mask (token-major)", pytest.approx(0.95))
    assert "0.95" in summary_table([found])


def test_rotated_rows_stand_alone_and_peers_may_choose_their_tables():
    ours = [row("veca-triton", "whole", 30.0, family="veca", tables=t) for t in ("float32", "float16")]
    turned = [
        row("sdpa-flash+rope", "read", 40.0, tables="float32"),
        row("sdpa-flash+rope", "write", 45.0, tables="float32"),
        row("sdpa-flash+rope", "write", 35.0, tables="float16"),
    ]
    plain, *rotated = summarize_rows([*OURS, *PEERS, *ours, *turned])
    assert (plain["tables"], plain["peer_us"]) == (None, 46.0)
    assert [(found["tables"], found["peer_us"]) for found in rotated] == [("float16", 75.0), ("float32", 75.0)]


def test_passes_modes_and_shapes_never_mix():
    others = [
        row("sdpa-flash", "read", 1.0, pass_="bwd"),
        row("sdpa-flash", "read", 1.0, mode="eager"),
        row("sdpa-flash", "read", 1.0, B=8),
        row("sdpa-flash", "full", 1.0, pass_="bwd"),
    ]
    assert summarize_rows(OURS + PEERS + others) == summarize_rows(OURS + PEERS)


def test_ours_is_sdpa_where_triton_did_not_run():
    absent = row("veca-triton", "whole", None, family="veca", status="absent", reason="no GPU")
    (found,) = summarize_rows([OURS[0], absent, *PEERS])
    assert (found["ours"], found["refused"]) == ("veca-sdpa", None)


@pytest.mark.parametrize("status", ["wrong", "error"])
def test_no_ratio_where_our_check_failed(status):
    wrong = row("veca-triton", "whole", None, family="veca", status=status, reason="dq: max error 1")
    (found,) = summarize_rows([OURS[0], wrong, *PEERS])
    assert found["refused"] == "veca-triton (token-major): dq: max error 1"
    assert found["peer_ratio"] is found["sdpa_ratio"] is found["full_ratio"] is None
    cells = summary_table([found]).splitlines()[2].split("|")
    assert sum(cell.strip() == "refused" for cell in cells) == 2


def test_a_wrong_peer_is_out_and_named():
    wrong = row("sdpa-flash", "read", None, status="wrong", reason="out: max error nan")
    (found,) = summarize_rows([*OURS, *PEERS, wrong])
    assert found["peer_ratio"] == pytest.approx(46 / 20)
    assert notes([wrong, wrong | {"B": 8}]) == [
        "sdpa-flash (token-major): wrong (B=1, P=4096, C=64, read and 1 more): out: max error nan"
    ]


def test_details_list_everyone_who_was_timed():
    text = detail_table([*OURS, *PEERS, row("flex", "read", None, status="error", reason="no")])
    assert len(text.splitlines()) == 2 + len(OURS) + len(PEERS)
    assert "flex" not in text


def test_launches_are_listed_with_their_grids():
    who = {"kind": "launches", "B": 1, "P": 64, "C": 8, "op": "read", "pass": "fwd", "label": "sdpa-flash"}
    launch = {"kernel": "splitkv", "grid": [11, 12, 1], "block": [128, 1, 1], "us": 8.5}
    text = launches_table([who | {"launches": [launch]}, who | {"launches": [], "reason": "no profiler"}])
    assert "| splitkv | 11 x 12 x 1 | 8.5 |" in text and "no profiler" in text
