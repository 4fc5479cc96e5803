import errno
import itertools
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import veca
from benchmarks import streaming as benchmark
from benchmarks.record import read_rows
from tests.models import small_veca
from tests.processes import start
from veca.large import streaming
from veca.large.streaming import stream_features
from veca.model.block import Block

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FIELDS = ("global_token", "patches", "cores", "core_xy")


def small_image(height=44, width=60, dtype=torch.float64):
    return torch.randn(3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def forward(model, image, num_cores=None):
    with torch.no_grad():
        return model.forward_features(image[None], num_cores)


def assert_same_features(got, wanted, rtol=0.0, atol=1e-11):
    for name in FIELDS:
        a, b = getattr(got, name), getattr(wanted, name)
        assert a.dtype == b.dtype, name
        difference = (a - b).norm() / b.norm()
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        assert difference < 1e-5, name
    assert (got.grid_size, got.num_cores) == (wanted.grid_size, wanted.num_cores)


@pytest.mark.parametrize("chunk_patches", [1, 7, 15, 16, 164, 165, 10**6])
def test_any_chunking_equals_the_forward(chunk_patches):
    model, image = small_veca(), small_image()  # 11 x 15 = 165 patches
    wanted = forward(model, image)
    got = stream_features(model, image, chunk_patches)
    assert_same_features(got, wanted)
    assert wanted.core_xy.std() > 0.05 and (wanted.core_xy - model.core_bank.xy).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"core_self": False},
        {"patch_self": True},
        {"global_from": "core0+patch_mean", "output_dim": 20},
        {"global_from": "patch_mean"},
        {"global_from": "core_mean", "core_logit_log_scale": 50, "qk_norm": True, "init_values": 0.7},
        {"coord_norm": "max", "rope_axis_order": "yx", "rope_layout": "half", "core_step_norm": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_of_the_model(options):
    model, image = small_veca(**options), small_image()
    assert_same_features(stream_features(model, image, 50), forward(model, image))


def test_fewer_cores():
    model, image = small_veca(), small_image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = forward(model, image, 3)
        got = stream_features(model, image, 50, num_cores=3)
        assert_same_features(got, wanted)
        assert got.num_cores == 3 and got.cores.shape[1] == 3


@pytest.mark.parametrize("on_odd", ["pad", "crop"])
@pytest.mark.parametrize("size", [(44, 60), (45, 61), (47, 58)])
def test_odd_sizes_and_strips_of_one_row(on_odd, size, monkeypatch):
    model, image = small_veca(on_odd=on_odd), small_image(*size)
    wanted = forward(model, image)
    for strip_patches in (1, 35, 4096):
        monkeypatch.setattr(streaming, "_STRIP_PATCHES", strip_patches)
        assert_same_features(stream_features(model, image, 40), wanted)
    with pytest.raises(ValueError, match="multiples of the patch 4 x 4, got 45 x 61"):
        stream_features(small_veca(on_odd="error"), small_image(45, 61))


@pytest.mark.parametrize("size", ["nano", pytest.param("small", marks=pytest.mark.slow)])
def test_1024_pixels_in_five_chunkings(size):
    torch.manual_seed(0)
    model = veca.create_model(f"veca_{size}_patch16").eval()
    image = torch.randn(3, 1024, 1024)
    wanted = forward(model, image)
    for chunk_patches in (4096, 3000, 2048, 777, 64):
        got = stream_features(model, image, chunk_patches)
        for name in FIELDS:
            a, b = getattr(got, name), getattr(wanted, name)
            assert (a - b).norm() <= 1e-5 * b.norm(), (name, chunk_patches)


def test_many_chunks_in_half_precision_are_as_close_to_fp64_as_the_forward():
    """The cores' reads of 256 chunks are joined in fp32; joined in bfloat16 they are 2.4 times as far."""
    image = small_image(128, 128).bfloat16()
    truth = forward(small_veca(), image.double()).cores
    model = small_veca().bfloat16()
    whole = (forward(model, image).cores - truth).norm()
    chunks = (stream_features(model, image, 4).cores - truth).norm()
    assert 0 < chunks < 1.2 * whole < 0.05 * truth.norm()


def test_residual_on_the_device_is_updated_in_place_and_the_image_is_left_alone():
    model, image = small_veca(), small_image()
    before = image.clone()
    got = stream_features(model, image, 50, residual="device")
    assert_same_features(got, forward(model, image))
    assert torch.equal(image, before)
    assert not any(x.requires_grad for x in (got.global_token, got.patches, got.cores, got.core_xy))


class Killed(Exception):
    pass


def interrupt(monkeypatch, after):
    """Let `advance_patches` fail in the middle of its work, after so many calls."""
    calls = 0
    advance = Block.advance_patches

    def failing(self, patches, *args, out=None, **kwargs):
        nonlocal calls
        calls += 1
        if calls > after:
            if out is not None:
                out.fill_(torch.nan)
            raise Killed
        return advance(self, patches, *args, out=out, **kwargs)

    monkeypatch.setattr(Block, "advance_patches", failing)


@pytest.mark.parametrize("after", [0, 1, 4, 6, 8])  # of three blocks of three chunks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_interrupted_run_goes_on_bit_equal(tmp_path, monkeypatch, after, dtype):
    model, image = small_veca(dtype), small_image(dtype=dtype)
    wanted = stream_features(model, image, 60)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Killed):
            stream_features(model, image, 60, workdir=tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["blocks_done"] == after // 3
    calls = []
    advance = Block.advance_patches
    monkeypatch.setattr(Block, "advance_patches", lambda *args, **kw: (calls.append(0), advance(*args, **kw))[1])
    got = stream_features(model, image, 60, workdir=tmp_path)
    assert len(calls) == 9 - after // 3 * 3
    for name in FIELDS:
        assert torch.equal(getattr(got, name), getattr(wanted, name).to(getattr(got, name).dtype)), name
    assert [path.name for path in tmp_path.iterdir()] == ["patches.npy"]
    assert np.array_equal(np.load(tmp_path / "patches.npy"), wanted.patches[0].float().numpy())


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, place=0.5):
    """Turn over one bit, in the last byte or where `place` says."""
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 0x40
    path.write_bytes(content)


def test_damaged_files_of_an_interrupted_run_are_refused_by_name(tmp_path, monkeypatch):
    """`torch.from_file` makes missing files and lengthens short ones: such a run once ended with other numbers."""
    model, image = small_veca(), small_image()
    wanted = stream_features(model, image, 60)
    with monkeypatch.context() as patch:
        interrupt(patch, 4)  # after the first block: residual_1.bin is complete, residual_0.bin is half overwritten
        with pytest.raises(Killed):
            stream_features(model, image, 60, workdir=tmp_path / "kept")
    for name, damage in itertools.product(
        ("residual_1.bin", "cores_1.safetensors", "state.json"), (cut, flip, lambda path: flip(path, 1), Path.unlink)
    ):
        run = tmp_path / "run"
        shutil.copytree(tmp_path / "kept", run)
        damage(run / name)
        if not (run / "state.json").exists():  # no run to go on with: a new one
            got = stream_features(model, image, 60, workdir=run)
            assert torch.equal(got.patches, wanted.patches)
        else:
            before = sorted((path.name, path.read_bytes()) for path in run.iterdir())
            with pytest.raises(ValueError, match=str(run)):
                stream_features(model, image, 60, workdir=run)
            assert before == sorted((path.name, path.read_bytes()) for path in run.iterdir())
        shutil.rmtree(run)
    (tmp_path / "kept" / "residual_0.bin").unlink()  # only a place to write to
    got = stream_features(model, image, 60, workdir=tmp_path / "kept")
    assert torch.equal(got.patches, wanted.patches)


@pytest.mark.parametrize("blocks", range(4))
def test_kernels_round_alike_when_a_run_goes_on(tmp_path, monkeypatch, blocks):
    """In fp32 at a width where kernels round differently for tensors that are not aligned, as those of a file are."""
    torch.manual_seed(0)
    model = veca.VECA(embed_dim=192, depth=3, num_heads=3, num_cores=64, img_size=96).eval()
    image = torch.randn(3, 96, 96)
    wanted = stream_features(model, image, 20)
    with monkeypatch.context() as patch:
        interrupt(patch, 2 * blocks)
        patch.setattr(streaming.PatchFile, "complete", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            stream_features(model, image, 20, workdir=tmp_path)
    got = stream_features(model, image, 20, workdir=tmp_path)
    assert all(torch.equal(getattr(got, name), getattr(wanted, name)) for name in FIELDS)


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    def full(handle, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for options, name in (({"workdir": tmp_path}, "residual_0.bin"), ({"out": tmp_path / "a.npy"}, "a.npy")):
        with pytest.raises(OSError, match=rf"room for [0-9,]+ bytes, got No space .*{name}") as error:
            stream_features(small_veca(), small_image(), 60, **options)
        assert error.value.errno == errno.ENOSPC and sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def run_until_killed(workdir):
    """Dies in the second chunk of the second block, without a word."""
    torch.set_num_threads(1)
    calls = iter(range(100))
    advance = Block.advance_patches

    def deadly(*args, **kwargs):
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(*args, **kwargs)

    Block.advance_patches = deadly
    stream_features(small_veca(), small_image(), 60, workdir=workdir)


def test_a_killed_process_leaves_what_another_needs(tmp_path):
    process = start(run_until_killed, tmp_path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((tmp_path / "state.json").read_text())["blocks_done"] == 1
    model, image = small_veca(), small_image()
    wanted = stream_features(model, image, 60)
    got = stream_features(model, image, 60, workdir=tmp_path)
    assert all(torch.equal(getattr(got, name), getattr(wanted, name)) for name in FIELDS)


def test_a_run_killed_while_it_wrote_the_result_goes_on(tmp_path, monkeypatch):
    model, image = small_veca(), small_image()
    wanted = stream_features(model, image, 60)
    with monkeypatch.context() as patch:
        patch.setattr(streaming.PatchFile, "complete", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            stream_features(model, image, 60, workdir=tmp_path / "run", out=tmp_path / "deep" / "out.npy")
    assert not (tmp_path / "deep" / "out.npy").exists()
    with monkeypatch.context() as patch:
        interrupt(patch, 0)  # no block is needed any more
        got = stream_features(model, image, 60, workdir=tmp_path / "run", out=tmp_path / "deep" / "out.npy")
    assert torch.equal(got.patches, wanted.patches) and torch.equal(got.global_token, wanted.global_token)
    assert list((tmp_path / "run").iterdir()) == []
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.npy"]


def test_a_directory_of_another_run_is_refused(tmp_path, monkeypatch):
    model, image = small_veca(), small_image()
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(Killed):
            stream_features(model, image, 60, workdir=tmp_path)
    other = small_veca()
    with torch.no_grad():
        other.blocks[0].mlp.fc2.bias[3] += 1
    changed = image.clone()
    changed[2, 17, 40] += 1
    for arguments, named in (
        ((other, image, 60), "weights"),
        ((model, changed, 60), "image"),
        ((model, image, 61), "chunk_patches"),
        ((small_veca(coord_norm="max"), image, 60), "model"),
    ):
        with pytest.raises(ValueError, match=f"another {named}$"):
            stream_features(*arguments, workdir=tmp_path)
    assert_same_features(stream_features(model, image, 60, workdir=tmp_path), forward(model, image))


def test_memory_grows_with_the_residual_stream_only(monkeypatch):
    """Tensors beside the residual stream are bounded by the chunk, whatever the image."""
    model = small_veca(torch.float32)
    monkeypatch.setattr(streaming, "_STRIP_PATCHES", 64)

    def largest_tensor(side):
        sizes = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                for x in tree_leaves(out):
                    if isinstance(x, torch.Tensor) and x.device.type != "meta":
                        sizes.append(x.untyped_storage().nbytes())
                return out

        image = np.zeros((side, side, 3), np.uint8)
        with Watch():
            stream_features(model, image, 64, mean=MEAN, std=STD)
        residual = (side // 4) ** 2 * 32 * 4
        assert residual in sizes
        return max(size for size in sizes if size != residual)

    assert largest_tensor(256) <= max(largest_tensor(128), 8 * (256 // 4) ** 2)  # at most 8 bytes a patch more


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(chunk_patches=0), ValueError, "chunk_patches of at least 1, got 0"),
        (dict(chunk_patches=1.5), TypeError, "chunk_patches to be an int, got float"),
        (dict(residual="disk"), ValueError, "'host' or 'device', got 'disk'"),
        (dict(layout="NHWC"), ValueError, "'CHW', 'HWC' or None, got 'NHWC'"),
        (dict(layout="HWC"), ValueError, r"3 channels in layout 'HWC', got shape \(3, 44, 60\)"),
        (dict(mean=MEAN), ValueError, "mean and std, or neither"),
        (dict(mean=MEAN, std=(1, 0, 1)), ValueError, "3 positive stds"),
        (dict(mean=MEAN, std=(1, float("nan"), 1)), ValueError, "3 positive stds"),
        (dict(mean=(0, 0, float("inf")), std=STD), ValueError, "3 finite means"),
        (dict(source=np.zeros((44, 60, 3), np.uint8)), ValueError, "mean and std for pixels of dtype uint8"),
        (dict(source=np.zeros((44, 60, 3), np.float32)), ValueError, r"layout 'CHW', got shape \(44, 60, 3\)"),
        (dict(source=np.zeros((44, 60, 3), np.int16)), TypeError, "unsigned integers or floats, got int16"),
        (dict(source=torch.zeros(2, 3, 8, 8)), ValueError, r"one image .* got shape \(2, 3, 8, 8\)"),
        (dict(source=[1, 2]), TypeError, "a tensor, an array, a PIL image or a file name, got list"),
        (dict(source="nowhere.tif"), FileNotFoundError, "found none at nowhere.tif"),
        (dict(source=Image.new("P", (8, 8))), ValueError, "mode RGB for 3 channels, got P"),
        (dict(model=torch.nn.Identity()), TypeError, "a veca.VECA model, got Identity"),
        (dict(model=small_veca(torch.float32).train()), ValueError, "eval mode"),
        (dict(model=small_veca(torch.float32, update="sequential")), ValueError, "update='parallel', got 'sequential'"),
        (dict(num_cores=9), ValueError, "from 1 to 8, the core bank, got 9"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(model=small_veca(torch.float32), source=small_image(dtype=torch.float32)) | change
    with pytest.raises(error, match=message):
        stream_features(**arguments)


def test_a_stack_of_planes_is_no_image(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "planes.tif", np.zeros((3, 16, 16), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match=r"pixels \(Y, X, 3 samples\) in its first page, got axes SYX"):
        stream_features(small_veca(torch.float32), tmp_path / "planes.tif", mean=MEAN, std=STD)


def test_the_benchmark_measures_what_it_says(tmp_path):
    words = "--size 128 --model veca_nano_patch16 --chunk-patches 20 --forward --out"
    benchmark.main([*words.split(), str(tmp_path / "rows.jsonl")])
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row["patches"], row["residual_bytes"]) == (64, 64 * 192 * 4)
    assert 0 < row["relative_difference"] < 1e-5  # another order of sums, the same numbers
    assert 0 < row["peak_bytes_before"] <= row["peak_bytes"] <= row["forward_peak_bytes"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["host", "device", "directory", "file"])
def test_a_gpu_gives_what_a_cpu_gives(where, tmp_path):
    """Many small chunks in flight between pinned or mapped memory and the device."""
    image = small_image(512, 512, torch.float32)  # 16,384 patches
    wanted = forward(small_veca(torch.float32), image)
    places = {"directory": dict(workdir=tmp_path), "file": dict(out=tmp_path / "out.npy")}
    options = places.get(where) or dict(residual=where)
    got = stream_features(small_veca(torch.float32), image, 500, device="cuda", **options)
    for name in FIELDS:
        a, b = getattr(got, name).cpu(), getattr(wanted, name)
        assert (a - b).norm() <= 1e-4 * b.norm(), name  # TF32 is off; another order of sums
