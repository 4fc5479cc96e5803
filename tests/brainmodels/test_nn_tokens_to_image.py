"""From tokens to pixels: decoders and blends on pictures that are known."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from brainmodels.errors import AxisError, BrainDataError, LayoutError
from brainmodels.metrics.image import pixcorr
from brainmodels.nn.token_adapter import TokenAdapter
from brainmodels.nn.tokens_to_image import Blend, ConvDecoder, DecoderSize
from brainmodels.simulated import scene_stimuli
from tests.brainmodels.pictured import as_tensor, normal

TINY = DecoderSize(16, 8, (16, 8), 2)  # 4 x 4 tokens to 16 pixels


# pictures drawn by convolutions


@functools.cache
def rendered() -> tuple[np.ndarray, np.ndarray]:
    """600 pictures of 16 pixels in which each of 4 x 4 tokens draws its 4 x 4 pixels by one linear map."""
    tokens = 3 * normal(600, 16, 8) + 5
    cells = 0.5 + 0.2 * (tokens - 5) / 3 @ normal(8, 48, seed=1) / np.sqrt(8)
    images = cells.reshape(600, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(600, 16, 16, 3)
    return tokens, (255 * images.clip(0, 1)).round().astype(np.uint8)


@functools.cache
def scenes() -> tuple[np.ndarray, np.ndarray]:
    """800 scenes of 32 pixels, and as tokens of their 8 x 8 patches a random projection of the 48 numbers to 24."""
    stimuli = scene_stimuli(3, 800)
    images = stimuli.images(stimuli.ids, 32)
    patches = images.reshape(800, 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(800, 64, 48) / np.float32(255)
    return (patches @ normal(48, 24)).astype(np.float16), images


@functools.cache
def of_scenes(noise: float) -> ConvDecoder:
    tokens, images = scenes()
    return ConvDecoder.fit(tokens[:600], images[:600], DecoderSize(64, 24, (32, 16), 2), noise=noise, steps=400)


@functools.cache
def of_renderings(seed: int = 0) -> ConvDecoder:
    tokens, images = rendered()
    return ConvDecoder.fit(tokens[:500], images[:500], TINY, seed=seed, steps=400)


def errors(drawn: torch.Tensor, true: torch.Tensor) -> tuple[float, float]:
    """Mean absolute error and mean correlation of pixels."""
    return float((drawn - true).abs().mean()), float(pixcorr(true, drawn).mean())


def test_a_linear_rendering_is_learned():
    tokens, images = rendered()
    true = as_tensor(images[500:])
    error, r = errors(of_renderings()(torch.from_numpy(tokens[500:])), true)
    error_mean, r_mean = errors(as_tensor(images[:500]).mean(0).expand_as(true), true)
    assert error < 0.25 * error_mean  # measured 0.022 and 0.154
    assert r > 0.9 and abs(r_mean) < 0.1  # measured 0.989 and 0.004


def test_scenes_are_drawn_better_than_by_their_mean():
    tokens, images = scenes()
    true = as_tensor(images[600:])
    drawn = of_scenes(0.0)(torch.from_numpy(tokens[600:]))
    error, r = errors(drawn, true)
    error_mean, r_mean = errors(as_tensor(images[:600]).mean(0).expand_as(true), true)
    assert error < 0.25 * error_mean  # measured 0.028 and 0.183
    assert r > r_mean + 0.6  # measured 0.893 and 0.107
    assert drawn.dtype == torch.float32 and 0 <= drawn.min() < 0.2 and 0.8 < drawn.max() <= 1


@pytest.mark.slow
def test_noise_in_training_helps_with_tokens_that_err():
    tokens, images = scenes()
    true, exact = as_tensor(images[600:]), torch.from_numpy(tokens[600:]).float()
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9))
    erring = exact + 0.7 * of_scenes(0.0).std * noise
    (plain, r_plain), (robust, r_robust) = (errors(of_scenes(level)(erring), true) for level in (0.0, 1.0))
    assert robust < 0.8 * plain  # measured 0.047 and 0.072
    assert r_robust > r_plain + 0.05  # measured 0.768 and 0.651


def test_noise_has_a_scale_of_its_own_for_each_image_in_units_of_the_tokens(monkeypatch):
    tokens, images = rendered()
    seen, plain_map = [], ConvDecoder._map
    monkeypatch.setattr(ConvDecoder, "_map", lambda self, x: seen.append(x.clone()) or plain_map(self, x))
    for noise in (0.0, 0.8):
        ConvDecoder.fit(tokens, images, TINY, noise=noise, steps=1, batch_size=600)
    exact, noisy = seen
    assert float(exact.mean()) == pytest.approx(0, abs=1e-4) and float(exact.std()) == pytest.approx(1, abs=1e-3)
    scales = (noisy - exact).flatten(1).std(1)  # each of 128 numbers: known to 6 %
    assert 0.72 < scales.max() < 0.96 and scales.min() < 0.03
    for share in (0.25, 0.5, 0.75):
        assert float(scales.quantile(share)) == pytest.approx(0.8 * share, abs=0.06)


def test_a_feature_loss_sees_both_pictures_and_is_added():
    tokens, images = rendered()
    seen = []

    def darkness(drawn, true):
        seen.append(true)
        return 10 * drawn.mean()

    options = {"steps": 80, "batch_size": 100, "lr": 1e-2}
    dark, plain = (ConvDecoder.fit(tokens, images, TINY, feature_loss=added, **options) for added in (darkness, None))
    some = torch.from_numpy(tokens[:50])
    assert dark(some).mean() < 0.5 * plain(some).mean()
    epoch = torch.cat(seen[:6])  # all images, each once
    torch.testing.assert_close(epoch.mean(0), as_tensor(images).mean(0))


def test_a_seed_says_all():
    tokens, images = rendered()
    state = torch.get_rng_state()
    given = (tokens, torch.from_numpy(tokens))
    one, again = (ConvDecoder.fit(values, images, TINY, noise=0.5, steps=20) for values in given)
    other = ConvDecoder.fit(tokens, images, TINY, noise=0.5, steps=20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = one.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_many_tokens_go_through_in_parts_and_leave_no_graph():
    tokens = torch.from_numpy(rendered()[0][:130])
    decoder = of_renderings()
    together = decoder(tokens)
    alone = torch.cat([decoder(token[None]) for token in tokens])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not together.requires_grad and not decoder.training
    assert decoder(tokens[:0]).shape == (0, 3, 16, 16)


def test_sizes_of_a_decoder():
    assert (DecoderSize(256, 768).pixels, DecoderSize(256, 768).patch) == (128, 8)
    assert (DecoderSize.small(64, 192).pixels, DecoderSize(16, 32, (32, 16, 8)).pixels) == (64, 16)
    with pytest.raises(
        BrainDataError, match=r"square number of tokens, row by row, got 24; .* TokenAdapter, or take Near"
    ):
        DecoderSize(24, 192)
    with pytest.raises(BrainDataError, match=r"at least one width and a cell of 1 pixel, got \(8,\), 0"):
        DecoderSize(16, 8, (8,), 0)


def test_what_a_decoder_refuses():
    tokens, images = rendered()
    with pytest.raises(AxisError, match=r"of the same n images, got \(600, 16, 8\) and \(599, 16, 16, 3\)"):
        ConvDecoder.fit(tokens, images[:599], TINY)
    with pytest.raises(AxisError, match=r"conv_decoder \(n, 16, 9\), got \(600, 16, 8\)"):
        ConvDecoder.fit(tokens, images, dataclasses.replace(TINY, token_width=9))
    with pytest.raises(AxisError, match=r"images of 32 x 32 pixels, which DecoderSize.*, got 16 x 16; read them"):
        ConvDecoder.fit(tokens, images, dataclasses.replace(TINY, cell=4))
    with pytest.raises(AxisError, match=r"uint8, got int64"):
        ConvDecoder.fit(tokens, images.astype(np.int64), TINY)
    with pytest.raises(BrainDataError, match="square number"):
        ConvDecoder.fit(tokens[:, :15], images)
    with pytest.raises(BrainDataError, match=r"at least one step.*, got steps=0, batch_size=16, noise=0.0"):
        ConvDecoder.fit(tokens, images, TINY, steps=0)
    with pytest.raises(FloatingPointError, match=r"the loss of conv_decoder is nan at the end; lower lr=0.003"):
        ConvDecoder.fit(tokens, images, TINY, steps=2, feature_loss=lambda drawn, true: drawn.mean() * torch.nan)
    spoilt = tokens.copy()
    spoilt[70, 3, 2] = np.inf
    with pytest.raises(BrainDataError, match="finite tokens, got NaN or infinity in row 70"):
        ConvDecoder.fit(spoilt, images, TINY)
    with pytest.raises(AxisError, match=r"tokens of conv_decoder \(n, 16, 8\), got \(2, 8, 16\)"):
        of_renderings()(torch.zeros(2, 8, 16))


def test_a_feature_that_never_changes_is_harmless():
    tokens, images = rendered()
    tokens = np.concatenate([tokens[:, :, :7], np.full((600, 16, 1), 2.0, np.float32)], -1)
    decoder = ConvDecoder.fit(tokens, images, TINY, steps=3)
    assert float(decoder.std[7]) == 1
    assert decoder(torch.from_numpy(tokens[:2])).isfinite().all()


# folders


@pytest.fixture
def folder(tmp_path):
    of_renderings().save(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_saved_and_loaded_it_draws_the_same_bits(folder):
    tokens = torch.from_numpy(rendered()[0][500:])
    loaded = ConvDecoder.load(folder)
    assert torch.equal(loaded(tokens), of_renderings()(tokens))
    assert (loaded.fingerprint, loaded.name, loaded.trained) == (
        of_renderings().fingerprint,
        "conv_decoder[16px]",
        of_renderings().trained,
    )
    assert loaded.trained["images"] == 500 and 0 < loaded.trained["loss"] < 0.05
    of_renderings(1).save(folder)  # over the other
    assert ConvDecoder.load(folder).fingerprint == of_renderings(1).fingerprint
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


def test_weights_that_are_missing_left_over_or_of_another_save(folder):
    file = folder / "weights.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if name != "std"}, file)
    with pytest.raises(LayoutError, match="std"):
        ConvDecoder.load(folder)
    save_file(weights | {"surplus": torch.zeros(1)}, file)
    with pytest.raises(LayoutError, match="surplus"):
        ConvDecoder.load(folder)
    save_file(weights | {"mean": weights["mean"] + 1}, file)
    with pytest.raises(LayoutError, match=r"beside .*config.json, got .*; the two files are of different saves"):
        ConvDecoder.load(folder)
    file.unlink()
    with pytest.raises(LayoutError, match=r"none at .*weights.safetensors"):
        ConvDecoder.load(folder)


def test_settings_that_are_missing_or_of_something_else(folder, tmp_path):
    with pytest.raises(LayoutError, match=r"a folder that ConvDecoder.save has written"):
        ConvDecoder.load(tmp_path / "nowhere")
    with pytest.raises(LayoutError, match=r"expected token_adapter of format 1 in .*, got conv_decoder of format 1"):
        TokenAdapter.load(folder)
    content = json.loads((folder / "config.json").read_text())
    content["size"]["cells"] = 2
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(BrainDataError, match="got 'cells'; near: cell"):
        ConvDecoder.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(LayoutError, match=r"a folder that ConvDecoder.save has written"):
        ConvDecoder.load(folder)


def test_a_decoder_changes_its_fingerprint_with_weights_and_size():
    made = ConvDecoder(TINY)
    copy = ConvDecoder(TINY)
    copy.load_state_dict(made.state_dict())
    before = made.fingerprint
    assert before == copy.fingerprint
    with torch.no_grad():
        made.linear[0].bias[0] += 1e-3
    after = made.fingerprint
    made.mean[3] += 1
    assert len({before, after, made.fingerprint}) == 3
    one, other = ConvDecoder(DecoderSize(16, 8, (16,), 4)), ConvDecoder(DecoderSize(4, 8, (16,), 4))
    other.load_state_dict(one.state_dict())  # the same weights on another grid
    assert one.fingerprint != other.fingerprint


# one picture over another


class Fixed:
    """The same pictures whatever the tokens."""

    def __init__(self, name: str, images: torch.Tensor):
        self.name, self.fingerprint, self.images = name, f"of {name}", images

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.images


def test_a_blend_is_a_weighted_sum_of_pixels():
    low, semantic = torch.rand(2, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    blend = Blend(Fixed("blurry", low), Fixed("sharp", semantic))
    expected = 0.35 * low.double() + 0.65 * semantic.double()
    torch.testing.assert_close(blend(torch.zeros(2, 1, 1)).double(), expected, atol=1e-6, rtol=0)
    assert blend.name == "0.35 blurry + 0.65 sharp"


def test_a_blend_resizes_the_low_picture_without_losing_light():
    low = torch.zeros(1, 3, 16, 16)
    low[:, :, 5, 6] = 1
    drawn = Blend(Fixed("blurry", low), Fixed("sharp", torch.zeros(1, 3, 4, 4)), share=1.0)(torch.zeros(1, 1, 1))
    assert drawn.shape == (1, 3, 4, 4)
    assert float(drawn[0, 0].sum()) * 16 == pytest.approx(1, rel=0.1)  # without antialiasing 0, or 4 at its centre
    drawn = Blend(Fixed("blurry", torch.full((1, 3, 2, 2), 0.2)), Fixed("sharp", torch.ones(1, 3, 8, 8)))(low)
    torch.testing.assert_close(drawn, torch.full((1, 3, 8, 8), 0.35 * 0.2 + 0.65))


def test_a_blend_names_both_and_refuses_other_shares():
    images = torch.zeros(1, 3, 2, 2)
    a, b, c = (Fixed(name, images) for name in "abc")
    made = [Blend(a, b), Blend(b, a), Blend(a, c), Blend(a, b, 0.25)]
    assert len({blend.fingerprint for blend in made}) == 4
    with pytest.raises(BrainDataError, match=r"a share from 0 to 1, got 1\.5"):
        Blend(a, b, 1.5)
