"""Tiles reach the launches of the kernels that are named, and leave no trace; a tile that cannot run has a reason."""

import pytest
from veca_kernels.triton import launch

from benchmarks import tiles
from benchmarks.floors import H200, AttentionCase
from benchmarks.summary import tile_table
from benchmarks.tiles import KERNELS, measure_tile, tiles_of

ARGUMENTS = (64, 64, 2, False, 227 << 10)  # cores, head dim, bytes, patch_self, shared memory


def _tile(kernel):
    tile = launch.choose_tile(kernel, *ARGUMENTS)
    return tile.block_p, tile.num_warps, tile.num_stages


def test_tiles_are_replaced_for_the_named_kernels_alone():
    before = {kernel: _tile(kernel) for kernel in KERNELS}
    with tiles_of("32x2x5", ["write_backward"]):
        assert _tile("write_backward") == (32, 2, 5)
        assert {k: _tile(k) for k in KERNELS if k != "write_backward"} == {
            k: tile for k, tile in before.items() if k != "write_backward"
        }
        assert launch.choose_tile("write_backward", *ARGUMENTS).block_c == 64
        assert not launch.JOINT  # each kernel alone
    assert {kernel: _tile(kernel) for kernel in KERNELS} == before
    with tiles_of("chosen"):
        assert {kernel: _tile(kernel) for kernel in KERNELS} == before


@pytest.mark.parametrize("tile", ["64x4", "64x4x0", "64-4-3", "wide"])
def test_tiles_that_mean_nothing_are_refused(tile):
    with pytest.raises(ValueError, match=r"expected a tile such as 64x4x3 .* got"):
        with tiles_of(tile):
            pass


def _measured(monkeypatch, answer):
    monkeypatch.setattr(tiles, "_times", answer)
    return list(measure_tile(AttentionCase(1, 65536, 64), "64x4x3", ["read_forward", "write_backward"], 9, H200))


def test_rows_hold_time_and_floor_of_each_kernel(monkeypatch):
    read, write = _measured(monkeypatch, lambda *_: ({"read_forward": [50.0, 60.0, 70.0]}, 0.5))
    assert (read["median_us"], read["runs"], read["check_share"]) == (60.0, 3, 0.5)
    assert read["floor_us"] == pytest.approx(46.9, abs=0.1)
    assert (write["status"], write["reason"]) == ("error", "the profile has no kernel of that name")
    assert "| read_forward | 64x4x3 | 60 us |" in tile_table([read, write])


def test_a_tile_that_does_not_fit_has_its_reason(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of resource: shared memory")

    rows = _measured(monkeypatch, fail)
    assert [(row["kernel"], row["status"]) for row in rows] == [("read_forward", "error"), ("write_backward", "error")]
    assert all("out of resource" in row["reason"] for row in rows)
