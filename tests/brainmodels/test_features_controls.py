"""Features without weights against their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from brainmodels.errors import BrainDataError
from brainmodels.features import Gabor, extractor, grid_features


def pictures(size, batch=2, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_pixels_are_the_colours_of_the_raster():
    images = pictures(16)
    tokens, pooled = extractor("pixels", size=16).encode(images)
    assert torch.equal(tokens[1, 16 * 2 + 5], images[1, :, 2, 5])
    assert torch.equal(pooled, tokens.flatten(1))


def test_other_sizes_are_resized_as_pillow_does():
    pixels = (pictures(60)[0] * 255).byte().permute(1, 2, 0).numpy()
    truth = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)) / 255
    _, pooled = extractor("pixels", size=16).encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert np.abs(pooled.numpy().reshape(16, 16, 3) - truth).max() < 1.01 / 255  # Pillow rounds to 8 bits, twice


@pytest.mark.parametrize("size", [48, 100])
def test_grid_gives_grid_features(size):
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    truth = grid_features(pixels)
    tokens, pooled = extractor("grid").encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    np.testing.assert_array_equal(pooled.numpy(), truth.astype(np.float32))
    np.testing.assert_array_equal(tokens[1, 7].numpy(), truth[1, [7, 36 + 7, 72 + 7]].astype(np.float32))


def gabor_filter(wavelength, angle):
    """In fp64, by its definition: a Gaussian of one octave of bandwidth times a complex wave, less its mean."""
    sigma = np.sqrt(np.log(2) / 2) / np.pi * 3 * wavelength
    extent_x = int(np.ceil(max(abs(3 * sigma * np.cos(angle)), abs(3 * sigma * np.sin(angle)), 1)))
    y, x = np.mgrid[-extent_x : extent_x + 1, -extent_x : extent_x + 1].astype(float)
    along = x * np.cos(angle) + y * np.sin(angle)
    kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2) + 2j * np.pi * along / wavelength) / (2 * np.pi * sigma**2)
    return kernel - kernel.mean()


def test_gabor_responses_equal_a_brute_force_filter():
    scales, orientations, grid, size = 2, 3, 4, 32
    image = pictures(size, batch=1, seed=4)
    tokens, pooled = Gabor(scales, orientations, grid, size).encode(image)
    bright = np.tensordot([0.2125, 0.7154, 0.0721], image[0].double().numpy(), 1)
    for scale in range(scales):
        for turn in range(orientations):
            kernel = gabor_filter(4 * 2**scale, np.pi * turn / orientations)
            radius = len(kernel) // 2
            padded = np.pad(bright, radius, mode="reflect")
            for row, col in ((0, 0), (2, 3)):  # a corner, continued by reflection, and another cell
                energy = [
                    abs((padded[i : i + 2 * radius + 1, j : j + 2 * radius + 1] * kernel[::-1, ::-1]).sum())
                    for i in range(row * 8, row * 8 + 8)
                    for j in range(col * 8, col * 8 + 8)
                ]
                got = tokens[0, row * grid + col, scale * orientations + turn].item()
                assert got == pytest.approx(np.mean(energy), rel=1e-4, abs=1e-7), (scale, turn, row, col)
    assert torch.equal(pooled, tokens.flatten(1))


def test_gabor_prefers_its_own_grating():
    """A grating of amplitude 1 at wavelength 8 along x: about 1/2 at scale 1, orientation 0, and less elsewhere."""
    wave = 0.5 + 0.5 * torch.cos(2 * torch.pi * torch.arange(64) / 8)
    image = wave.expand(1, 3, 64, 64)
    tokens, _ = Gabor(scales=3, orientations=8).encode(image)
    middle = tokens[0, 8 * 4 + 4] * 2  # the amplitude is 0.5
    assert middle.argmax() == 8
    assert middle[8].item() == pytest.approx(0.5, abs=0.02)
    turned, _ = Gabor(scales=3, orientations=8).encode(image.mT)
    assert turned[0, 8 * 4 + 4].argmax() == 8 + 4
    flat, _ = Gabor(scales=3, orientations=8).encode(torch.full((1, 3, 64, 64), 0.7))
    assert flat.max() < 1e-6


def test_gabor_refuses_filters_wider_than_the_picture():
    with pytest.raises(BrainDataError, match="fewer scales"):
        Gabor(scales=5)


def test_random_conv_is_three_convolutions():
    item = extractor("random_conv", seed=5)
    images = pictures(64)
    x = (images - 0.5) / 0.25
    for conv, padding in zip(item.layers[::2], (2, 1, 1), strict=True):
        x = F.conv2d(x, conv.weight, stride=2, padding=padding).relu()
    tokens, pooled = item.encode(images)
    torch.testing.assert_close(tokens, x.flatten(2).mT)
    torch.testing.assert_close(pooled, x.mean((2, 3)))
    for conv in item.layers[::2]:
        fan_in = conv.weight[0].numel()
        assert conv.weight.var().item() == pytest.approx(2 / fan_in, rel=0.1)
    assert not torch.equal(extractor("random_conv", seed=6).encode(images).pooled, pooled)
