"""The regressors and the decoding of UniBrain, with a generator whose right answers are known."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import StimulusSet
from brainmodels.data.stimuli import ArrayImages
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, LeakageError, NormalizationError
from brainmodels.systems.unibrain import Latents, Penalties, Regressors, UniBrain, nano, paper
from tests.brainmodels.toy.generator import ToyGenerator

WORDS = ("red", "blue", "green", "circle", "square", "star")
COUNT = 260


@pytest.fixture(scope="module")
def generator():
    return ToyGenerator(WORDS, 2)


@pytest.fixture(scope="module")
def stimuli():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    images = np.repeat(np.repeat(cells, 4, 1), 4, 2)
    texts = [f"{rng.choice(WORDS[:3])} {rng.choice(WORDS[3:])}" for _ in range(COUNT)]
    ids = [f"toy:{row:04d}" for row in range(COUNT)]
    captions = {name: ["x", text] for name, text in zip(ids, texts, strict=True)}
    return StimulusSet(ids, ArrayImages(images), captions)


@pytest.fixture(scope="module")
def true(stimuli, generator):
    texts = [stimuli.captions(str(name))[1] for name in stimuli.ids]
    return replace(generator.latents(stimuli.images(stimuli.ids, 16), texts), ids=stimuli.ids.tolist())


def responses_of(true, noise=0.0, seed=1):
    """Responses that hold all latents, mixed by a random rotation; with noise in sds of the latents."""
    rng = np.random.default_rng(seed)
    signal = np.concatenate([true.z_image.reshape(len(true), -1), true.z_text], 1)
    signal = (signal - signal.mean(0)) / np.maximum(signal.std(0), 1e-6)
    signal = signal[:, signal.std(0) > 0.5]
    mixed, _ = np.linalg.qr(rng.normal(size=(signal.shape[1],) * 2))
    return ((signal + noise * rng.normal(size=signal.shape)) @ mixed + 3).astype(np.float32)


def recipe(**changes):
    exact = Penalties(*[1e-6] * 4)
    return replace(nano(), penalties=exact, response_scale="train_z", drawer="denoised", **changes)


def fitted(stimuli, generator, X, rows, **changes):
    model = UniBrain(recipe(**changes), generator, device="cpu")
    return model.fit(stimuli, X[rows], image_ids=stimuli.ids[rows], alignment="off")


TRAIN, TEST = np.arange(200), np.arange(200, COUNT)


def test_planted_regressors_are_recovered(stimuli, generator, true):
    X = responses_of(true)
    model = fitted(stimuli, generator, X, TRAIN, calibration="none")
    guess = model.latents(X[TEST])
    for name, block in guess.blocks().items():
        np.testing.assert_allclose(block, getattr(true, name)[TEST], atol=1e-4, err_msg=name)
    own, best = (model.reconstruct(replace(x, ids=true.ids[200:])) for x in (guess, true.take(TEST)))
    np.testing.assert_allclose(own.images, best.images, atol=1e-4)
    assert own.captions == best.captions == [stimuli.captions(str(name))[1] for name in stimuli.ids[200:]]


def test_r2_is_that_of_the_noise(generator):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(4000, 5)).astype(np.float32)
    noise = 0.7
    X = values + noise * rng.normal(size=values.shape).astype(np.float32)
    latents = Latents(z_text=values)
    guess = Regressors.fit(X[:3000], latents.take(range(3000)), Penalties()).predict(X[3000:], calibrated=False).z_text
    r2 = 1 - np.square(guess - values[3000:]).sum() / np.square(values[3000:] - values[3000:].mean(0)).sum()
    assert r2 == pytest.approx(1 / (1 + noise**2), abs=0.02)


def test_score_is_pooled_over_the_columns_of_each_block(stimuli, generator, true):
    X = responses_of(true, noise=1.0)
    model = fitted(stimuli, generator, X, TRAIN)
    shown = [str(name) for name in stimuli.ids[TEST]]
    guess = model.latents(X[TEST], calibrated=False).z_image.reshape(60, -1)
    real = true.z_image[TEST].reshape(60, -1)
    best = 1 - np.square(real - guess).sum() / np.square(real - real.mean(0)).sum()
    with pytest.raises(BrainDataError):
        model.score(stimuli, X[TEST])  # an array does not know its images
    scored = model.stimulus_latents(stimuli).blocks(shown)
    np.testing.assert_allclose(scored.z_image, true.z_image[TEST])
    assert 0 < best < 1


def test_one_fit_equals_four_and_the_kernel_equals_the_plain_form(true):
    X = responses_of(true, noise=0.5)[:, :40]
    part = true.take(range(150))
    whole = Regressors.fit(X[:150], part, Penalties()).predict(X[150:])
    for name, block in part.blocks().items():
        alone = Regressors.fit(X[:150], Latents(**{name: block}), Penalties()).predict(X[150:])
        np.testing.assert_allclose(getattr(alone, name), getattr(whole, name), atol=1e-5)
    wide = np.concatenate([X, np.zeros((COUNT, 120), np.float32)], 1)  # more columns than rows: the dual form
    fits = Regressors.fit(wide[:150], part, Penalties())
    assert fits.fits[0][1].dual_coef_ is not None
    np.testing.assert_allclose(fits.predict(wide[150:]).c_text, whole.c_text, atol=1e-3)
    weights, bias = Regressors.fit(X[:150], part, Penalties()).affine("c_image")
    np.testing.assert_allclose(X[150:] @ weights + bias, whole.c_image.reshape(COUNT - 150, -1), atol=1e-3)


def test_calibration_restores_the_spread_of_every_block(stimuli, generator, true):
    X = responses_of(true, noise=1.5)
    spread = {}
    for calibration in ("train_cv", "none"):
        model = UniBrain(replace(nano(), calibration=calibration, response_scale="train_z"), generator, device="cpu")
        model.fit(stimuli, X[TRAIN], image_ids=stimuli.ids[TRAIN], alignment="off")
        guess = model.latents(X[TEST])
        spread[calibration] = {name: np.std(x - x.mean(0)) for name, x in guess.blocks().items()}
    for name, block in true.blocks().items():
        real = np.std(block[TRAIN] - block[TRAIN].mean(0))
        assert spread["train_cv"][name] == pytest.approx(real, rel=0.1), name
        assert spread["none"][name] < 0.8 * real, name


def test_calibration_on_the_test_batch_is_transductive_and_says_so(stimuli, generator, true):
    X = responses_of(true, noise=1.0)
    model = fitted(stimuli, generator, X, TRAIN, calibration="test_batch")
    one, two = (model.latents(X[TEST[:count]]).z_text[:20] for count in (20, 21))
    assert np.abs(one - two).max() > 1e-3
    assert model.decode(X[TEST]).transductive
    with pytest.raises(BrainDataError, match="several rows"):
        model.latents(X[TEST[:1]])
    assert not fitted(stimuli, generator, X, TRAIN).decode(X[TEST]).transductive


def test_repeats_are_averaged_before_or_after_the_regression(stimuli, generator, true):
    X = responses_of(true, noise=0.5)
    twice = np.concatenate([responses_of(true, 0.5, seed=1), responses_of(true, 0.5, seed=1) + 1])
    model = UniBrain(recipe(), generator, device="cpu")
    ids = np.concatenate([stimuli.ids, stimuli.ids])
    train = np.concatenate([TRAIN, TRAIN + COUNT])
    model.fit(stimuli, twice[train], image_ids=ids[train], alignment="off")
    assert model.meta_["train_images"] == 200
    a, b = model.latents(X[TEST]).z_text, model.latents(X[TEST], repeats="avg_outputs").z_text
    np.testing.assert_allclose(a, b, atol=1e-4)  # one row for each image: the same
    with pytest.raises(BrainDataError, match="near: avg_voxels"):
        model.latents(X[TEST], repeats="avg_voxel")


@pytest.fixture(scope="module")
def model(stimuli, generator, true):
    return fitted(stimuli, generator, responses_of(true), TRAIN)


def test_modes_use_what_they_say(model, true):
    latents = true.take(TEST)
    captions = [model.generator_.write(latents.z_text[[row]])[0] for row in range(60)]
    swapped = replace(latents, c_text=np.roll(latents.c_text, 1, 0), c_image=np.roll(latents.c_image, 1, 0))
    made = {mode: model.reconstruct(swapped, mode=mode, strength=0.9) for mode in ("only_z", "without_c_image")}
    assert made["only_z"].captions == captions
    assert made["without_c_image"].captions == captions[-1:] + captions[:-1]  # w = 0 and almost all by the context
    assert model.reconstruct(swapped, mode="only_c_text").captions == captions[-1:] + captions[:-1]
    drawn = model.reconstruct(swapped, mode="only_c_image").images
    np.testing.assert_allclose(drawn, model.generator_.draw(np.roll(latents.z_image, 1, 0)), atol=0.06)
    assert np.abs(model.reconstruct(swapped, mode="prior", what="images").images).max() < 0.1
    with pytest.raises(BrainDataError, match="near: only_z"):
        model.reconstruct(latents, mode="only-z")
    with pytest.raises(BrainDataError, match="image_weight from 0 to 1"):
        model.reconstruct(latents, image_weight=1.5)
    with pytest.raises(BrainDataError, match=r"expected a setting to be one of image_weight, .*, got 'image_wight'"):
        model.reconstruct(latents, image_wight=0.5)
    with pytest.raises(TypeError, match="mixing"):
        model.decode(np.zeros((2, 3)), mixing=0.5)


def test_samples_share_all_but_the_noise(model, true):
    latents = true.take(TEST)
    made = model.reconstruct(latents, n_samples=3)
    assert len(made.samples) == 2 and not np.array_equal(made.images, made.samples[0].images)
    again = model.reconstruct(latents.take(range(5)), n_samples=3)
    np.testing.assert_array_equal(again.samples[1].images, made.samples[1].images[:5])
    other = model.reconstruct(latents, seed=1)
    assert not np.array_equal(made.images, other.images)
    assert made.settings["captions"]["guidance"] == 3.0 and made.generator.startswith("toy ")


def test_a_model_is_saved_and_loaded(model, generator, true, tmp_path):
    X = responses_of(true)
    model.save(tmp_path / "model")
    loaded = UniBrain.load(tmp_path / "model", device="cpu", generator=generator)
    one, two = (x.decode(X[TEST]) for x in (model, loaded))
    np.testing.assert_array_equal(one.images, two.images)
    assert one.captions == two.captions and loaded.meta_ == model.meta_
    with pytest.raises(NormalizationError, match="expected the generator toy toytoytoy000"):
        UniBrain.load(tmp_path / "model", device="cpu", generator=ToyGenerator(WORDS, 2, fingerprint="other"))
    with pytest.raises(AxisError, match="voxels"):
        loaded.latents(X[TEST][:, :-1])
    with pytest.raises(NormalizationError, match="latents of the generator"):
        loaded.reconstruct(replace(true, generator="another"))
    with pytest.raises(LeakageError, match="'toy:0000'"):
        loaded.check_unseen(["toy:0000", "toy:0250"])
    assert loaded.check_unseen(["toy:0250"])


def test_targets_on_disk_are_those_in_memory(model, stimuli, true, tmp_path):
    kept, plain = (model.stimulus_latents(stimuli, cache) for cache in (tmp_path, None))
    kept.prepare(stimuli.ids[:100])
    again = model.stimulus_latents(stimuli, tmp_path)
    again.prepare(stimuli.ids[:100])
    assert len(list(tmp_path.glob("latents-*"))) == 1
    for name, block in plain.blocks(stimuli.ids[50:60]).blocks().items():
        for other in (kept, again):
            np.testing.assert_allclose(getattr(other.blocks(stimuli.ids[50:60]), name), block, atol=1e-3)


def test_the_mean_over_captions_is_that_of_their_latents(stimuli, generator):
    texts = {str(name): ["red circle", "blue star"] for name in stimuli.ids}
    both = StimulusSet(stimuli.ids, stimuli.source, texts)
    model = UniBrain(recipe(z_caption="mean", c_caption=0), generator)
    model.generator_ = generator
    found = model.stimulus_latents(both).blocks(stimuli.ids[:3])
    single = generator.latents(captions=["red circle", "blue star"])
    np.testing.assert_allclose(found.z_text[0], single.z_text.mean(0))
    np.testing.assert_allclose(found.c_text[0], single.c_text[0])


def test_what_cannot_be_fitted_is_refused(stimuli, generator, true):
    X = responses_of(true)
    options = {"image_ids": stimuli.ids[TRAIN], "alignment": "off"}
    silent = StimulusSet(stimuli.ids, stimuli.source)
    with pytest.raises(BrainDataError, match="caption 1 of image 'toy:0000'"):
        UniBrain(recipe(), generator, device="cpu").fit(silent, X[TRAIN], **options)
    empty = StimulusSet(stimuli.ids, stimuli.source, {str(name): ["x", " "] for name in stimuli.ids})
    with pytest.raises(BrainDataError, match="an empty one"):
        UniBrain(recipe(), generator, device="cpu").fit(empty, X[TRAIN], **options)
    seen = StimulusSet([f"seen:{row}" for row in range(COUNT)], stimuli.source)
    with pytest.raises(LeakageError, match="such as seen:0"):
        UniBrain(recipe(), generator, device="cpu").fit(seen, X[TRAIN], image_ids=seen.ids[TRAIN])
    with pytest.raises(BrainDataError, match="StimulusSet"):
        UniBrain(recipe(), generator, device="cpu").fit(np.zeros((3, 3)), X[TRAIN], **options)
    with pytest.raises(BrainDataError, match="before fit"):
        UniBrain(recipe(), generator).latents(X[TEST])
    with pytest.raises(BrainDataError, match="pairing='ids'"):
        UniBrain(recipe(), generator, pairing="rows")
    with pytest.raises(BrainDataError, match="penalty of z_text"):
        Penalties(z_text=0.0)
    with pytest.raises(BrainDataError, match="stack=None"):
        recipe(stack="ridge")


def test_responses_and_captions_of_other_images_are_noticed(stimuli, generator, true):
    X = responses_of(true)
    order = np.random.default_rng(0).permutation(200)
    with pytest.raises(AlignmentError):
        UniBrain(recipe(), generator, device="cpu").fit(stimuli, X[TRAIN][order], image_ids=stimuli.ids[TRAIN])
    texts = {str(name): ["x", f"{WORDS[row % 3]} {WORDS[3 + row % 3]}"] for row, name in enumerate(stimuli.ids)}
    unrelated = StimulusSet(stimuli.ids, stimuli.source, texts)  # captions that tell nothing of the pictures
    with pytest.raises(AlignmentError, match="captions"):
        UniBrain(recipe(), generator, device="cpu").fit(unrelated, X[TRAIN], image_ids=stimuli.ids[TRAIN])


def test_nan_is_named_with_its_kind_and_ids(model, true):
    broken = true.take(TEST[:3])
    weights = model.generator_
    model.generator_ = Broken(WORDS, 2)
    try:
        with pytest.raises(FloatingPointError, match=r"captions: .*toy:0200"):
            model.reconstruct(broken, what="captions")
    finally:
        model.generator_ = weights


class Broken(ToyGenerator):
    def denoise(self, *args, **options):
        raise FloatingPointError("expected finite latents, got others in step 3")


def test_the_paper_has_the_penalties_of_brain_diffuser():
    settings = paper()
    assert (settings.penalties.c_image, settings.penalties.z_image) == (60_000, 50_000)
    assert settings.images.image_weight == 0.6 and settings.captions.image_weight == 0.9
    assert settings.images.todo == 37 and settings.calibration == "test_batch"
    assert type(settings).from_json(settings.to_json()) == settings
