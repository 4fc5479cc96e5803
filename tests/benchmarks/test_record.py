"""Rows survive the file, tables survive reading back, environments name everything."""

import json

import pytest

from benchmarks.record import JsonLines, environment, markdown_table, microseconds, read_rows, slug


def _parse(table):
    lines = [line.strip("|").split("|") for line in table.replace("\\|", "\0").splitlines()]
    header, rows = [cell.strip() for cell in lines[0]], lines[2:]
    return [dict(zip(header, (c.strip().replace("\0", "|") for c in row), strict=True)) for row in rows]


def test_rows_round_trip(tmp_path):
    rows = [{"name": "a", "us": 1.25, "none": None, "list": [1, 2]}, {"name": "ß | ü", "ok": True}]
    sink = JsonLines(tmp_path / "new" / "rows.jsonl")
    for row in rows:
        sink.append(row)
    assert read_rows(sink.path) == rows == sink.rows
    JsonLines(sink.path).append({"name": "later"})  # files are appended to
    assert read_rows(sink.path) == [*rows, {"name": "later"}]


def test_rows_are_on_disk_before_the_next_one(tmp_path):
    sink = JsonLines(tmp_path / "rows.jsonl")
    sink.append({"n": 1})
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"n": 1}


def test_a_line_cut_off_by_a_kill_is_left_out_but_damage_is_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": ')
    assert read_rows(path) == [{"n": 1}, {"n": 2}]
    path.write_text('{"n": 1}\nnonsense\n{"n": 2}\n')
    with pytest.raises(ValueError, match="expected JSON in line 2"):
        read_rows(path)
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError):
        JsonLines(tmp_path / "rows.jsonl").append({"us": float("nan")})


def test_markdown_round_trip():
    rows = [{"name": "a | b", "us": 1.23456, "n": 3}, {"name": "two\nlines", "us": None}]
    assert _parse(markdown_table(rows, ("name", "us", "n"))) == [
        {"name": "a | b", "us": "1.23", "n": "3"},
        {"name": "two lines", "us": "", "n": ""},
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.71e-5, "47.1 us"), (9.9e-4, "990 us"), (9.996e-4, "1 ms"), (1.47e-3, "1.47 ms"), (2.14, "2.14 s")],
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert microseconds(seconds) == text


def test_slug():
    assert slug("NVIDIA H200") == "nvidia-h200"
    assert slug("AMD EPYC(TM) 9355 / 2") == "amd-epyc-tm-9355-2"


def test_environment_names_device_versions_date_and_commit():
    record = environment("cpu")
    assert {"date", "device", "torch", "triton", "python", "commit", "threads"} <= set(record)
    assert record["torch"] and record["device"]
    json.dumps(record, allow_nan=False)
