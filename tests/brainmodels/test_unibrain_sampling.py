"""Denoising and captions of UniBrain: times, seeds, and what is removed of repetitions."""

import numpy as np
import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.unibrain.generator import Latents
from brainmodels.systems.unibrain.sampling import Sampling, denoise, image_seeds, new_scheduler
from brainmodels.systems.unibrain.words import Vocabulary, clean
from tests.brainmodels.unibrain_small import forms, untrained

CPU = torch.device("cpu")


def test_times_are_those_of_versatile_diffusion():
    scheduler = new_scheduler(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("noise_at", "noised"), [("first_step", 721), ("brain_diffuser", 741)])
def test_strength_says_where_denoising_starts(noise_at, noised):
    seen = []

    def predict(x, time):
        seen.append((int(time[0]), x.clone()))
        return torch.zeros_like(x)

    z = torch.full((1, 3), 2.0)
    denoise(predict, z, (3,), Sampling(strength=0.75, steps=50, noise_at=noise_at), [7], CPU)
    assert [time for time, _ in seen] == list(range(721, 0, -20))
    kept = new_scheduler(50).alphas_cumprod[noised]
    noise = torch.randn(3, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(seen[0][1][0], kept.sqrt() * 2 + (1 - kept).sqrt() * noise)


def test_a_perfect_prediction_gives_the_latent_back():
    z, kept = torch.randn(4, 5), new_scheduler(50).alphas_cumprod

    def predict(x, time):
        share = kept[time][:, None]
        return (x - share.sqrt() * z) / (1 - share).sqrt()

    for start, strength in ((z, 0.5), (None, 0.5)):
        out = denoise(predict, start, (5,), Sampling(strength=strength), [1, 2, 3, 4], CPU)
        torch.testing.assert_close(out, z, atol=0.2, rtol=0)  # the last step ends at time 1, not at 0


def test_no_strength_is_no_change():
    def refuse(x, time):
        raise AssertionError("expected no step")

    z = torch.randn(2, 3)
    assert torch.equal(denoise(refuse, z, (3,), Sampling(strength=0.0), [1, 2], CPU), z)
    assert torch.equal(denoise(refuse, z, (3,), Sampling(strength=0.019, steps=50), [1, 2], CPU), z)


def test_what_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match=r"step 0 \(time 981\), row 1"):
        denoise(lambda x, t: x * torch.tensor([[1.0], [torch.nan]]), None, (3,), Sampling(), [1, 2], CPU)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_batch_order_and_subset_change_nothing(kind):
    generator = untrained()
    torch.manual_seed(3)
    for head in generator.flow.out.values():
        torch.nn.init.normal_(head.weight, std=0.1)
    shapes, rng = generator.shapes, np.random.default_rng(0)
    names = (f"z_{kind}", "c_image", "c_text")
    z, c_image, c_text = (rng.normal(size=(70, *shapes[name])).astype(np.float32) for name in names)
    ids = [f"a:{row}" for row in range(70)]
    options = {"sampling": Sampling(strength=0.5, steps=8, guidance=2.0, eta=0.3)}
    seeds = image_seeds(ids, 0)
    whole = generator.denoise(kind, z, c_image, c_text, seeds=seeds, **options)
    rows = [69, 3, 40]
    some = generator.denoise(kind, z[rows], c_image[rows], c_text[rows], seeds=[seeds[i] for i in rows], **options)
    np.testing.assert_allclose(some, whole[rows], atol=1e-5)
    assert np.abs(whole - z).max() > 0.1
    other = generator.denoise(kind, z, c_image, c_text, seeds=image_seeds(ids, 1), **options)
    assert np.abs(other - whole).max() > 0.1


def test_seeds_depend_on_the_id_and_not_on_the_process():
    assert len(set(image_seeds(["a", "b"], 0))) == 2
    assert image_seeds(["a", "b"], 0)[1] == image_seeds(["b"], 0)[0]
    assert image_seeds(["a"], 0, sample=1) != image_seeds(["a"], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_weight": 1.2}, "0 is the text context alone, 1 the image context alone"),
        ({"strength": -0.1}, "strength from 0 to 1"),
        ({"steps": 0}, "steps from 1"),
        ({"guidance": -1.0}, "guidance of at least 0"),
        ({"noise_at": "first"}, "near: first_step"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(BrainDataError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("text", "how", "cleaned"),
    [
        ("a a red red circle", "adjacent", "a red circle"),
        ("a red a red a red circle", "adjacent", "a red a red a red circle"),
        ("a red a red a red circle", "repeats", "a red circle"),
        ("a cat. a dog. a cat.", "repeats", "a cat. a dog."),
        ("the dog and the dog and the cat", "repeats", "the dog and the cat"),
        ("a a b", "none", "a a b"),
        ("", "repeats", ""),
    ],
)
def test_cleaning(text, how, cleaned):
    assert clean(text, how) == cleaned


def test_a_vocabulary_goes_both_ways_and_keeps_the_last_word():
    vocabulary = Vocabulary.of(["a red circle", "blue"], length=5)
    rows = vocabulary.encode(["a red circle", "blue"])
    assert vocabulary.decode(rows) == ["a red circle", "blue"]
    assert rows[0, -1] == vocabulary.end == len(vocabulary) - 1
    assert vocabulary.decode(rows[:, 1:4]) == ["a red circle", "blue"]  # no end token: the limit was reached
    with pytest.raises(BrainDataError, match="got green, cube"):
        vocabulary.encode(["a green cube"])
    for text in ("", "a red blue circle"):
        with pytest.raises(BrainDataError, match="1 to 3 words"):
            vocabulary.encode([text])


def test_captions_are_greedy_by_default_and_drawn_with_seeds():
    generator, z = untrained(), np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    torch.manual_seed(0)
    for parameter in generator.vae.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    greedy = generator.write(z, cleaning="none")
    assert greedy == generator.write(z, cleaning="none") and len(set(greedy)) > 1
    assert generator.write(z[[4]], cleaning="none") == [greedy[4]]
    drawn = generator.write(z, sampling="sample", seeds=range(6), cleaning="none")
    assert drawn == generator.write(z, sampling="sample", seeds=range(6), cleaning="none") != greedy
    assert generator.write(z[[4]], sampling="sample", seeds=[4], cleaning="none") == [drawn[4]]
    with pytest.raises(BrainDataError, match="a seed for each caption"):
        generator.write(z, sampling="sample")


def test_latents_of_other_shapes_are_refused():
    generator = untrained()
    with pytest.raises(AxisError, match="z_text"):
        generator.write(np.zeros((2, 63), np.float32))
    with pytest.raises(BrainDataError, match="z_image, row 1"):
        generator.draw(np.stack([np.zeros((8, 8, 8)), np.full((8, 8, 8), np.nan)]))
    with pytest.raises(AxisError, match="an id for each"):
        Latents(z_text=np.zeros((2, 64)), ids=["a"]).check(generator.shapes)
    with pytest.raises(AxisError, match="uint8"):
        generator.latents(np.zeros((1, 64, 64, 3)))
    with pytest.raises(AxisError, match="a caption for each"):
        generator.latents(np.zeros((1, 64, 64, 3), np.uint8), forms(0, 2, 1))
