"""Every shipped variant compiles for GPUs that are not here, within the limits of registers and shared memory."""

import json
import os
import re

import pytest
import torch

pytest.importorskip("triton")

from veca_kernels import aot
from veca_kernels.triton import tables

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")


@pytest.mark.parametrize("arch", aot.SHARED_LIMITS)
def test_limits_at_head_dim_64(arch, capsys):
    """sm_90: no spills up to 64 cores, wgmma from 64 on, loops within the memory floor; everywhere: shared memory of
    the device, no warps that repeat each other.
    """
    status = aot.main(["--arch", arch, "--check", "--head-dims", "64", "--workers", "1"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("arch", aot.SHARED_LIMITS)
def test_limits_of_all_variants(arch, capsys):
    assert aot.main(["--arch", arch, "--check", "--full"]) == 0, capsys.readouterr().out


def test_a_broken_limit_is_named():
    variant = aot.Variant("sm_90", "read", "read_forward", "bf16", 64, 64)
    counts = dict(registers=255, spill_bytes=8, shared_bytes=300 << 10, wgmma=0, mma=4)
    row = aot.Row(variant, "64 x 4w x 2s", **counts, loops=(997, 30), serialised=8, duplicated=("64x64 by 8x1 warps",))
    assert list(row.breaches) == ["shared", "duplicated", "spills", "wgmma", "serialised", "issue"]
    assert len(row.broken) == 6 and "997 issue cycles > 996" in row.broken[-1]
    # 8 warps issue twice as many instructions a cycle and row, tiles of 128 rows half as many
    assert aot.Row(variant, "64 x 8w x 2s", **counts, loops=(500,)).issue_cycles == 1000
    assert aot.Row(variant, "128 x 8w x 2s", **counts, loops=(500,)).issue_cycles == 500


def test_an_exception_has_a_reason_and_excuses_one_limit_only(monkeypatch):
    assert all(len(why) > 20 for *_, why in aot.EXCEPTIONS)
    monkeypatch.setattr(aot, "EXCEPTIONS", (("issue", lambda v: v.cores == 64, "a reason"),))
    counts = dict(registers=255, spill_bytes=8, shared_bytes=0, wgmma=8, mma=0, loops=(2000,))
    for cores, broken in ((64, ["8 bytes"]), (32, ["8 bytes", "2000 issue"])):
        row = aot.Row(aot.Variant("sm_90", "read", "read_forward", "bf16", cores, 64), "64 x 4w x 2s", **counts)
        assert [text[: len(start)] for text, start in zip(row.broken, broken, strict=True)] == broken
        assert row.excused == ({"issue": "a reason"} if cores == 64 else {})


def test_eight_warps_on_64_rows_repeat_each_other(monkeypatch):
    """What the rotated backward did once: a second group of four warps computed everything again."""
    from veca_kernels.triton import launch

    monkeypatch.setattr(launch, "choose_tile", lambda *_: tables.Tile(64, 64, 8, 2))
    row = aot.build(aot.Variant("sm_90", "write", "write_forward", "bf16", 64, 64))
    assert row.duplicated == ("64x64 by 8x1 warps",)
    assert any("repeat each other" in text for text in row.broken)


SASS = """
.L_x_1:
        /*0100*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT ;
        /*0110*/                   WARPGROUP.ARRIVE ;
{body}
        /*0200*/              @!P0 BRA `(.L_x_1) ;
        /*0210*/                   EXIT ;
"""


def test_loops_and_serialised_products_are_counted():
    from veca_kernels.triton.binary import loops_of

    plain = "        /*0120*/                   FADD R1, R2, R3 ;\n"
    product = "        /*0130*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;\n"
    assert loops_of(SASS.format(body=30 * plain)) == ((33,), 1)  # every product waits: a group of its own
    assert loops_of(SASS.format(body=30 * plain + 3 * product)) == ((36,), 0)
    assert loops_of(SASS.format(body=5 * plain)) == ((), 0)  # too short to be the walk over patches


def test_a_compiler_failure_breaks_the_check(monkeypatch, capsys):
    from veca_kernels.triton import adapter

    def fail(*_):
        raise RuntimeError("out of registers")

    monkeypatch.setattr(adapter, "compile_ahead", fail)
    row = aot.build(aot.variants("sm_90", full=False)[0])
    assert "out of registers" in row.broken[0]


def test_json_rows(capsys):
    aot.main(["--arch", "sm_80", "--cores", "16", "--head-dims", "32", "--json", "--workers", "1"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["variant"]["kernel"] for row in rows] == [
        "joint_forward",
        "combine_reads",
        "joint_backward",
        "sum_partials",
    ]
    assert all(0 < row["registers"] <= 255 and not row["broken"] for row in rows)
    assert all((row["mma"] > 0) == (row["variant"]["kernel"] not in aot.JOINS) for row in rows)


def test_every_kernel_is_compiled_in_every_form_that_is_launched():
    """Alone, the read gets a gradient of its log-sum-exp and the write no cores that read."""
    kernels = {"joint_forward", "joint_backward", *aot.JOINS}
    halves = {"read_forward", "read_backward", "write_forward", "write_backward"}
    todo = aot.variants("sm_90", full=False)
    assert {v.kernel for v in todo} == kernels | halves
    alone = {v.kernel: aot.record(v)[1] for v in todo if v.call not in ("forward", "backward") and v.cores == 64}
    assert alone["read_backward"]["dlse"] is not None and alone["read_backward"]["rope"] is None
    assert alone["write_backward"]["lse"] is None
    own = [v for v in aot.variants("sm_90", full=True) if v.patch_self and v.call == "backward"]
    assert {"read_backward", "write_backward"} <= {v.kernel for v in own}  # the write adds to what the read stored


def test_offsets_are_64_bits_wide():
    """A packed tensor passes 2^31 elements. In the IR every stride is widened before it meets an index."""
    from veca_kernels.triton import adapter

    for call in ("forward", "backward"):
        variant = aot.Variant("sm_90", call, f"joint_{call}", "bf16", 16, 32, rope=True)
        code = adapter.compile_kernel(*aot.record(variant), "sm_90").asm["ttir"]
        assert re.search(r"arith\.muli .* : i64", code)
        narrow = re.findall(r"tt\.addptr .* : !tt\.ptr<bf16>, i32", code)
        assert not narrow, narrow


def test_tf32_is_taken_only_on_request_and_where_it_compiles():
    """Transposed tf32 products of 64 rows fail to compile for sm_90: those backward kernels stay exact."""
    from veca_kernels.triton import launch, read, tables, write

    cuda, few, many = torch.device("cuda"), tables.Tile(32, 32, 8, 1), tables.Tile(64, 32, 8, 1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert launch.fp32_precision(cuda, torch.float32, read.read_forward, many) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert launch.fp32_precision(cuda, torch.float32, read.read_forward, many) == "tf32"
        assert launch.fp32_precision(cuda, torch.bfloat16, read.read_forward, many) == "ieee"
        assert launch.fp32_precision(cuda, torch.float32, write.write_backward, few) == "tf32"
        assert launch.fp32_precision(cuda, torch.float32, write.write_backward, many) == "ieee"
        assert launch.fp32_precision(torch.device("cpu"), torch.float32, read.read_forward, many) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("shared", aot.SHARED_LIMITS.values())
def test_what_fits_is_judged_on_padded_sizes(shared):
    """65 cores of 96 channels are 128 x 96 on the chip: refused where 128 x 96 is."""
    for itemsize in (2, 4):
        assert tables.fits(65, 96, itemsize, shared) == tables.fits(128, 96, itemsize, shared)
    assert tables.fits(64, 64, 4, shared)
    assert tables.fits(128, 128, 2, shared) == (shared > 100 << 10)


PAIRS = {8: (16, 0), 32: (32, 0), 40: (32, 16), 48: (32, 16), 56: (64, 0), 64: (64, 0)}
PAIRS |= {72: (64, 16), 80: (64, 16), 96: (64, 32), 104: (128, 0), 128: (128, 0)}


@pytest.mark.parametrize(("head_dim", "pair"), PAIRS.items())
def test_split_head_dim(head_dim, pair):
    assert tables.split_head_dim(head_dim) == pair


def test_split_count_fills_the_device_and_respects_its_limits():
    from veca_kernels.triton.launch import split_count

    for programs, tiles in ((12, 1025), (12, 65), (36, 300), (1, 5000), (12, 6)):
        splits = split_count(programs, tiles, 4 * programs * 64 * 64, 132)
        assert 1 <= splits <= 64
        assert splits == 1 or tiles / splits >= 4
        assert splits * 4 * programs * 64 * 64 <= 24 << 20
    assert split_count(12, 1025, 4 * 12 * 64 * 64, 132) == 22  # one image at 4096 px: exactly one wave of 264
    assert split_count(768, 65, 4 * 768 * 64 * 64, 132) == 1  # images and heads fill the device
    assert split_count(0, 1025, 0, 132) == 1  # an empty batch
