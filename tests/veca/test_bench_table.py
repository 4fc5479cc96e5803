"""The page of `veca bench`: ratios, losses and units from planted rows."""

import pytest

from veca.bench.table import _metric, bench_table, compared_rows, losses


def case(model, size, seconds, num_cores=None, status="ok", peak_bytes=1_000_000, **options):
    row = {"kind": "backbone", "model": model, "num_cores": num_cores, "size": size, "patches": size**2 // 256}
    row |= {"batch": 1, "pass": "inference", "mode": "eager", "dtype": "float32", "status": status, "reason": ""}
    if status == "ok":
        row |= {"median_s": seconds, "low_s": 0.9 * seconds, "high_s": 1.1 * seconds, "runs": 5, "parameters": 21.6e6}
        row |= {"images_per_s": 1 / seconds, "patches_per_s": row["patches"] / seconds, "peak_bytes": peak_bytes}
        row |= {"model_flops": 5e10, "block_flops": None, "attention_flops": None, "matmul_share": 0.5}
    else:
        row["reason"] = "asked for | too much"
    return row | options


ROWS = [
    {"kind": "break_even", "model": "veca_small_patch16", "num_cores": 64, "vit": "vit_small", "pixels": 352},
    case("before", 256, 9.0),
    case("veca_small", 256, 1.0, 8),
    case("veca_small", 256, 2.0, 64),
    case("vit_small", 256, 1.5, peak_bytes=4_000_000),
    case("xcit", 256, 4.0),
    case("veca_base", 256, 10.0, 8),
    case("vit_base", 256, 30.0),
    case("before", 1024, 9.0),
    case("veca_small", 1024, 3.0, 8),
    case("veca_small", 1024, 4.0, 64),
    case("vit_small", 1024, 8.0, peak_bytes=None),
    case("xcit", 1024, 1.0, status="out of memory"),
    case("vit_small", 1024, 8.0, **{"pass": "train"}),
]


def test_ratios_are_to_the_largest_budget_of_the_veca_before():
    found = {(row["model"], row["num_cores"], row["size"], row["pass"]): row for row in compared_rows(ROWS)}
    ratios = {key: row["x_time"] for key, row in found.items()}
    assert ratios["vit_small", None, 256, "inference"] == pytest.approx(0.75)
    assert ratios["xcit", None, 256, "inference"] == pytest.approx(2.0)
    assert ratios["veca_small", 8, 256, "inference"] == pytest.approx(0.5)
    assert ratios["vit_base", None, 256, "inference"] == pytest.approx(3.0)
    assert ratios["vit_small", None, 1024, "inference"] == pytest.approx(2.0)
    for nobody in (("before", None, 256), ("before", None, 1024), ("xcit", None, 1024)):
        assert ratios[(*nobody, "inference")] is None
    assert ratios["vit_small", None, 1024, "train"] is None  # no VECA trained
    assert found["vit_small", None, 256, "inference"]["x_memory"] == pytest.approx(4.0)
    assert found["vit_small", None, 1024, "inference"]["x_memory"] is None  # hidden by a compiled graph


def test_losses_are_named_for_every_budget():
    assert losses(ROWS) == [
        "inference, eager, float32: veca_small with 8 cores is at no measured size slower than vit_small, xcit",
        "inference, eager, float32: veca_small with 64 cores is slower than vit_small at 256 px; "
        "at no measured size slower than xcit",
        "inference, eager, float32: veca_base with 8 cores is at no measured size slower than vit_base",
        "veca_small_patch16 with 64 cores takes more FLOPs than vit_small below 352 px",
    ]
    assert losses([case("vit_small", 256, 1.0)]) == ["nothing to compare"]


def test_the_page_reads_back():
    page = bench_table(ROWS)
    tables = page.split("## ")
    assert [part.splitlines()[0] for part in tables[1:3]] == ["inference, eager, float32", "train, eager, float32"]
    lines = [line for line in tables[1].splitlines() if line.startswith("|")]
    header, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    records = [dict(zip(header, cells, strict=True)) for cells in rows[1:]]
    assert len(records) == 12
    vit = records[3]
    assert (vit["model"], vit["px"], vit["cores"], vit["M params"]) == ("vit_small", "256", "", "21.6")
    assert (vit["time"], vit["20-80 %"], vit["patches/s"]) == ("1.5 s", "1.35 s - 1.65 s", "171")
    assert (vit["images/s"], vit["peak memory"], vit["x time"], vit["% of peak"]) == ("0.667", "4 MB", "0.75", "50")
    assert vit["alone"] == ""
    assert records[10]["peak memory"] == "hidden"
    assert records[11]["time"] == r"out of memory: asked for \| too much"


def test_ratios_are_a_range_where_models_also_ran_alone():
    rows = [case("veca_small", 256, 2.0, 64, alone_s=2.5), case("vit_small", 256, 3.0, alone_s=3.0)]
    (row,) = (row for row in compared_rows(rows) if row["model"] == "vit_small")
    assert (row["x_time"], row["x_time_alone"]) == (1.5, 1.2)
    assert "| 5 | 3 s |" in bench_table(rows) and "| 1.20 - 1.50 |" in bench_table(rows)
    rows[1]["alone_s"] = 2.0
    assert "slower than vit_small at 256 px" in losses(rows)[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((1.5, "1.5 "), (0.00147, "1.47 m"), (36_200, "36.2 k"), (999.6, "1 k"), (999.4, "999 "), (2.5e9, "2.5 G")),
        *((7e14, "700 T"), (3.2e-5, "32 µ"), (1e12, "1 T")),
    ],
)
def test_numbers_get_three_digits_and_a_prefix(value, text):
    assert _metric(value) == text
