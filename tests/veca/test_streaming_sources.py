"""Images that `stream_features` reads from arrays, tensors and files, strip by strip."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small_veca
from tests.veca.test_streaming import MEAN, STD, forward
from veca.large import streaming
from veca.large.streaming import stream_features


def random_pixels():
    """An image of odd size as bytes (45, 58, 3), and the patches that a model makes of it when normalised by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 58, 3), dtype=np.uint8)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    normalised = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    return pixels, normalised, forward(small_veca(torch.float32), normalised).patches


def test_sources_of_every_kind_give_the_same(tmp_path):
    model = small_veca(torch.float32)
    pixels, normalised, wanted = random_pixels()
    wide = pixels.astype(np.uint16) * 257
    np.save(tmp_path / "pixels.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for name, source, layout in (
        ("tensor", torch.from_numpy(channels_first), None),
        ("tensor of one image", torch.from_numpy(channels_first)[None], None),
        ("HWC array", pixels, None),
        ("CHW array", channels_first, "CHW"),
        ("16 bits", wide, None),
        ("big-endian", wide.astype(">u2"), None),
        ("upside down twice", np.flip(pixels.copy(), 0)[::-1], "HWC"),
        ("memmap", np.load(tmp_path / "pixels.npy", mmap_mode="r"), None),
        ("PIL", Image.fromarray(pixels), None),
        ("PNG", tmp_path / "plain.png", None),
        ("floating CHW array", (channels_first / 255).astype(np.float32), None),
    ):
        got = stream_features(model, source, layout=layout, mean=MEAN, std=STD)
        assert (got.patches - wanted).abs().max() < 1e-5, name
    floats = stream_features(model, normalised.permute(1, 2, 0).numpy(), layout="HWC")
    assert (floats.patches - wanted).abs().max() < 1e-5
    shifted = stream_features(model, pixels, mean=MEAN[::-1], std=STD)
    assert (shifted.patches - wanted).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 32), "compression": "zlib"},
        {"tile": (32, 16), "compression": "zlib", "predictor": True, "bigtiff": True},
        {"rowsperstrip": 7, "compression": "zlib", "byteorder": ">"},
    ],
    ids=["mapped", "tiles", "predictor", "strips"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_files_are_read_by_tiles(tmp_path, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    pixels, _, wanted = random_pixels()
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels.astype(dtype) * (np.iinfo(dtype).max // 255), photometric="rgb", **options)
    got = stream_features(small_veca(torch.float32), path, mean=MEAN, std=STD)
    assert (got.patches - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 7, "compression": "zlib"}], ids=["mapped", "strips"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_has_the_same_features(tmp_path, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    grey, top, seen = random_pixels()[0][..., 0].astype(dtype), np.iinfo(dtype).max, []
    grey *= top // 255
    for kind, pixels in (("minisblack", grey), ("miniswhite", top - grey)):
        tifffile.imwrite(tmp_path / f"{kind}.tif", pixels, photometric=kind, **options)
        model = small_veca(torch.float32, in_chans=1)
        seen.append(stream_features(model, tmp_path / f"{kind}.tif", mean=model.mean, std=model.std).patches)
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(photometric="cielab"), "x.tif to hold grey or RGB values, got CIELAB"),
        (dict(photometric="ycbcr"), "got YCBCR"),
        (dict(photometric="separated", extratags=()), "got SEPARATED"),
        (dict(photometric="rgb", extratags=[(274, "H", 1, 6, True)]), "stored upright, orientation 1, got 6"),
    ],
)
def test_tiff_files_that_would_be_misread_are_refused(tmp_path, options, message):
    tifffile = pytest.importorskip("tifffile")
    channels = 4 if options["photometric"] == "separated" else 3
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((16, 16, channels), np.uint8), **options)
    model = small_veca(torch.float32, in_chans=channels)
    with pytest.raises(ValueError, match=message):
        stream_features(model, tmp_path / "x.tif", mean=model.mean, std=model.std)


def test_palettes_and_floats_where_zero_is_white_are_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    model = small_veca(torch.float32, in_chans=1)
    colors = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", np.zeros((16, 16), np.uint8), photometric="palette", colormap=colors)
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((16, 16), np.float32), photometric="miniswhite")
    for name, message in (("p.tif", "got PALETTE"), ("f.tif", "integers where zero is white, got float32")):
        with pytest.raises(ValueError, match=message):
            stream_features(model, tmp_path / name, mean=model.mean, std=model.std)


def test_pictures_above_pillows_limit_are_streamed_upright(tmp_path, monkeypatch):
    pixels, _, wanted = random_pixels()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)  # 6: to be turned by 90 degrees, clockwise
    stored.save(tmp_path / "a.png", exif=exif)
    got = stream_features(small_veca(torch.float32), tmp_path / "a.png", mean=MEAN, std=STD)
    assert (got.patches - wanted).abs().max() < 1e-5 and Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")


def test_an_image_is_read_by_strips_only(monkeypatch):
    class Guarded:
        """Pixels that refuse to be read more than eight rows at a time."""

        shape, dtype = (64, 48, 3), np.dtype(np.uint8)

        def __getitem__(self, rows):
            assert rows.stop - rows.start <= 8
            return np.full((rows.stop - rows.start, 48, 3), rows.start, np.uint8)

    monkeypatch.setattr(streaming, "_STRIP_PATCHES", 24)  # two rows of twelve patches
    pixels = np.repeat(np.arange(0, 64, 8, dtype=np.uint8), 8)[:, None, None] * np.ones((1, 48, 3), np.uint8)
    model = small_veca(torch.float32)
    got = stream_features(model, Guarded(), mean=MEAN, std=STD)
    wanted = stream_features(model, pixels, mean=MEAN, std=STD)
    assert torch.equal(got.patches, wanted.patches)
