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
    """sm_90: no spills up to 64 cores, wgmma from 64 on; everywhere: shared memory of the device."""
    status = aot.main(["--arch", arch, "--check", "--head-dims", "64", "--workers", "1"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("arch", aot.SHARED_LIMITS)
def test_limits_of_all_variants(arch, capsys):
    assert aot.main(["--arch", arch, "--check", "--full"]) == 0, capsys.readouterr().out


def test_a_broken_limit_is_named():
    variant = aot.Variant("sm_90", "read_forward", "bf16", 64, 64, rope=True)
    row = aot.Row(variant, "64 x 4w x 2s", registers=255, spill_bytes=8, shared_bytes=300 << 10, wgmma=0, mma=4)
    assert [reason.split()[0] for reason in row.broken] == ["shared", "8", "no"]


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
    assert [row["variant"]["kernel"] for row in rows] == list(aot.KERNELS)
    assert all(0 < row["registers"] <= 255 and row["mma"] > 0 and not row["broken"] for row in rows)


def test_what_only_the_halves_launch_is_compiled_too():
    """Alone, the read gets a gradient of its log-sum-exp and the write no cores that read."""
    todo = aot.variants("sm_90", full=False)
    assert {v.kernel for v in todo} == {*aot.KERNELS, *aot.JOINS}
    arguments = {v.kernel: aot.record(v)[1] for v in todo if v.half and v.cores == 64}
    assert arguments["read_backward"]["dlse"] is not None and arguments["read_backward"]["rope"] is None
    assert arguments["write_backward"]["lse"] is None
    packed = aot.record(aot.Variant("sm_90", "write_backward", "bf16", 64, 64, rope=False))[1]
    assert packed["lse"] is not None


def test_offsets_are_64_bits_wide():
    """A packed tensor passes 2^31 elements. In the IR every stride is widened before it meets an index."""
    from veca_kernels.triton import adapter

    for kernel in aot.KERNELS:
        code = adapter.lower(*aot.record(aot.Variant("sm_90", kernel, "bf16", 16, 32, rope=True)), "sm_90")
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
