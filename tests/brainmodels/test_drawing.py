"""Pictures from decoded tokens: components against numpy, planted reliabilities and keys, a small generator."""

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from brainmodels.drawing import (
    Generator,
    KeyedNearest,
    PictureBank,
    Reliability,
    TokenComponents,
    reader,
    recipes,
    train_generator,
)
from brainmodels.drawing.components import damaged, drawn_reliabilities
from brainmodels.drawing.flow import Conditions, FlowSize, PictureFlow
from brainmodels.drawing.keyed_nearest import scores_of
from brainmodels.drawing.patch_code import PatchCode, pixels_of
from brainmodels.drawing.reader import Reader
from brainmodels.drawing.scenes import SHIPPED, shipped_generator, shipped_nearest
from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError
from brainmodels.features import extractor
from brainmodels.simulated import scene_stimuli
from brainmodels.simulated.scenes import parse_scene_id, scene_pictures
from tests.brainmodels.pictured import normal, pictures
from veca.data.scenes import sample_scene

COUNT = 400


class Quadrants:
    """Pictures of four coloured quadrants; their tokens mix the colours, 4 x 4 of width 12."""

    fingerprint = "quadrants"

    def __init__(self):
        rng = np.random.default_rng(0)
        colours = rng.integers(0, 256, (COUNT, 2, 2, 3))
        self.images = colours.repeat(8, 1).repeat(8, 2).astype(np.uint8)
        tokens = colours.repeat(2, 1).repeat(2, 2).reshape(COUNT, 16, 3) / 128 - 1
        tokens = tokens @ rng.normal(size=(3, 12)) + 0.01 * rng.normal(size=(COUNT, 16, 12))
        self.tokens = tokens.astype(np.float32)
        self.pooled = np.concatenate([self.tokens.mean(1), self.tokens.max(1)], 1)
        self.ids = np.array([f"q{number:03d}" for number in range(COUNT)])

    def rows(self, ids):
        return [int(str(name)[1:]) for name in ids]

    def get(self, ids, what="pooled"):
        return {"tokens": self.tokens, "pooled": self.pooled}[what][self.rows(ids)]

    def pictures(self, ids, size):
        return self.images[self.rows(ids)]


@pytest.fixture(scope="module")
def quadrants():
    return Quadrants()


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with mock.patch.object(reader, "STEPS", 200):
        yield


@pytest.fixture(scope="module")
def nearest(quadrants, few_steps):
    kept = slice(0, 320)
    arrays = (x[kept] for x in (quadrants.tokens, quadrants.pooled, quadrants.images, quadrants.ids))
    return KeyedNearest.fit(*arrays, steps=200)


@pytest.fixture(scope="module")
def drawn(quadrants, tmp_path_factory):
    """(generator, its folder of training)."""
    folder = tmp_path_factory.mktemp("run")
    made = train_generator(folder, quadrants, quadrants.pictures, quadrants.ids[:320], recipes.tiny(), device="cpu")
    return made, folder


def test_components_are_those_of_numpy_and_go_back():
    tokens = normal(300, 16, 6) @ np.diag([3, 2, 1, 0.5, 0.2, 0.1]).astype(np.float32)
    made = TokenComponents.fit(tokens, count=20, width=4)
    scores = made(torch.from_numpy(tokens)).numpy()
    assert scores.shape == (300, 20)
    np.testing.assert_allclose(np.cov(scores.T, bias=True), np.eye(20), atol=1e-3)
    cells = made.reduced(torch.from_numpy(tokens)).numpy().reshape(300, -1)
    np.testing.assert_allclose(cells.reshape(300, 16, 4).std((0, 1)), 1, atol=1e-3)
    variances = np.linalg.eigvalsh(np.cov(cells.T, bias=True))[::-1]
    np.testing.assert_allclose(made.std.numpy() ** 2, variances[:20], rtol=1e-3)
    whole = TokenComponents.fit(tokens, count=64, width=4)
    back = whole.cells(whole(torch.from_numpy(tokens))).numpy()
    np.testing.assert_allclose(back.reshape(300, -1), cells, atol=1e-3)
    averaged = TokenComponents.fit(normal(50, 64, 6), count=5, width=3)
    assert averaged.size.side == 4 and averaged.size.cells == 16
    assert TokenComponents.fit(normal(50, 10, 6), count=5, width=3).size.side is None  # no grid


def test_reliability_is_what_was_planted():
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 64, generator=rng)
    planted = 0.95 - 0.2 * torch.arange(1, 65).log()
    decoded = 3 + 2 * damaged(true, planted.expand_as(true), rng)
    found = Reliability.measured(decoded, true)
    assert (found.r - planted).abs().max() < 0.1 and (found.mean - 3).abs().max() < 0.2  # r is smoothed
    calibrated = found.calibrated(decoded)
    assert calibrated.mean().abs() < 0.01 and (calibrated.std(0) - 1).abs().max() < 0.1
    with pytest.raises(AxisError, match="three images or more"):
        Reliability.measured(decoded[:2], true[:2])


def test_drawn_reliabilities_are_of_all_kinds_and_often_the_usual():
    rng, usual = torch.Generator().manual_seed(0), torch.linspace(0.9, 0, 32)
    r = drawn_reliabilities(6000, 32, rng, usual)
    assert r.min() == 0 and r.max() < 1
    assert 0.06 < (r.amax(1) == 0).float().mean() < 0.11 and 0.06 < (r.amin(1) > 0.999).float().mean() < 0.11
    alike = ((r - usual).abs() < 0.35 * usual + 1e-6).all(1).float().mean()
    assert 0.4 < alike < 0.5
    assert torch.equal(drawn_reliabilities(5, 8, rng.manual_seed(1)), drawn_reliabilities(5, 8, rng.manual_seed(1)))


def test_a_reader_finds_what_no_linear_map_can():
    """The product of two components: correlation 0 with each, known where both are reliable."""
    scores = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    wanted = (scores[:, 0] * scores[:, 1])[:, None]
    made = Reader.fit(scores, wanted, steps=600)
    exact, nothing = torch.full((1000, 4), 0.9999), torch.zeros(1000, 4)
    fresh = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1))
    truth = fresh[:, 0] * fresh[:, 1]
    assert torch.corrcoef(torch.stack([made(fresh, exact)[:, 0], truth]))[0, 1] > 0.9
    assert made(fresh, nothing).std() < 0.3 * made(fresh, exact).std()  # and where they are not, it says so


def test_exact_tokens_find_their_own_picture(nearest, quadrants):
    assert nearest.ids_of(torch.from_numpy(quadrants.tokens[:20])) == quadrants.ids[:20].tolist()
    found = nearest(torch.from_numpy(quadrants.tokens[:3]))
    np.testing.assert_array_equal((found * 255).round().byte().movedim(1, -1).numpy(), quadrants.images[:3])


def test_a_picture_itself_can_be_left_out(nearest, quadrants):
    scores = scores_of(nearest.components, quadrants.tokens[:320])
    r = torch.full_like(scores, 0.9999)
    assert torch.equal(nearest.nearest(scores, r), torch.arange(320))
    others = nearest.nearest(scores, r, without=torch.arange(320))
    assert (others != torch.arange(320)).all()
    assert torch.equal(nearest.nearest(scores, r, without=torch.arange(320) + 320), torch.arange(320))


def test_calibration_undoes_what_a_decoder_does_to_scales(nearest, quadrants):
    """Tokens that are shrunk, shifted and noisy: calibrated, they find pictures that are nearer to the true ones."""
    rng = np.random.default_rng(1)
    true = quadrants.tokens[320:]
    bent = (0.2 * true + 0.05 * rng.permutation(true) + 4).astype(np.float32)  # a little of another image
    told = nearest.calibrated(bent[:40], true[:40], quadrants.pooled[320:360])
    assert told.reliability.r.max() > 0.9 and nearest.reliability.r.min() > 0.999
    wanted = quadrants.images[360:].astype(float)
    apart = [
        np.abs(near(torch.from_numpy(bent[40:])).movedim(1, -1).numpy() * 255 - wanted).mean()
        for near in (nearest, told)
    ]
    assert apart[1] < 0.85 * apart[0]
    assert told.share in np.linspace(0, 1, 11).round(1)
    other = nearest.calibrated(bent[:40], true[:40], quadrants.pooled[320:360], seed=1)
    other.share = told.share
    assert len({near.fingerprint for near in (nearest, told, other)}) == 3  # of one reliability, with another reader


def test_a_folder_holds_all_but_the_pictures(nearest, quadrants, tmp_path):
    nearest.save(tmp_path)
    again = KeyedNearest.load(tmp_path, lambda ids: quadrants.pictures(ids, 16))
    query = torch.from_numpy(quadrants.tokens[320:])
    assert np.mean([a == b for a, b in zip(again.ids_of(query), nearest.ids_of(query), strict=True)]) > 0.9  # int8
    state = load_file(tmp_path / "nearest.safetensors")
    save_file(
        {name: value for name, value in state.items() if name != "components.mean"}, tmp_path / "nearest.safetensors"
    )
    with pytest.raises(LayoutError, match=r"(?s)do not fit: .*components\.mean"):
        KeyedNearest.load(tmp_path, lambda ids: quadrants.pictures(ids, 16))
    content = json.loads((tmp_path / "nearest.json").read_text())
    (tmp_path / "nearest.json").write_text(json.dumps(content | {"format": 9}))
    with pytest.raises(LayoutError, match=r"expected format 1 .* got 9"):
        KeyedNearest.load(tmp_path, lambda ids: quadrants.pictures(ids, 16))
    with pytest.raises(LayoutError, match=r"a folder that KeyedNearest\.save has written"):
        KeyedNearest.load(tmp_path / "nowhere", lambda ids: quadrants.pictures(ids, 16))


def test_mistakes(nearest, quadrants):
    tokens = torch.from_numpy(quadrants.tokens[:3])
    with pytest.raises(AxisError, match=r"\(n, 16, 12\), got \(3, 16, 5\)"):
        nearest(tokens[..., :5])
    with pytest.raises(BrainDataError, match="finite tokens"):
        nearest(tokens * torch.nan)
    with pytest.raises(BrainDataError, match="share from 0 to 1, got 2"):
        KeyedNearest(nearest.components, nearest.reader, nearest.bank, share=2)
    with pytest.raises(IdError, match="got 1 that repeat"):
        PictureBank(np.array(["a", "a"]), torch.zeros(2, 3), torch.zeros(2, 4), lambda rows: pictures(2))
    with pytest.raises(AxisError, match="ids of the same images, got 3, 3 and 2"):
        KeyedNearest.fit(quadrants.tokens[:3], quadrants.pooled[:3], quadrants.images[:3], ["a", "b"])
    with pytest.raises(BrainDataError, match="directions in which these tokens vary"):
        TokenComponents.fit(np.ones((4, 16, 3), np.float32))


def test_the_code_is_linear_and_nearly_whole():
    images = pixels_of(scene_pictures([f"sim3:{number:06d}" for number in range(60)], 32))
    code = PatchCode.fit((images * 255).byte().movedim(1, -1).numpy(), 4, 48)
    codes = code.encode(images)
    assert codes.shape == (60, 48, 8, 8)
    assert (code.decode(codes) - images).abs().max() < 2e-3  # all components
    few = PatchCode.fit((images * 255).byte().movedim(1, -1).numpy(), 4, 12)
    assert (few.decode(few.encode(images)) - images).square().mean() < 0.05 * images.var()
    torch.testing.assert_close(few.encode(images).std((0, 2, 3)) ** 2, few.roots**2, rtol=0.02, atol=1e-5)


def test_steps_of_euler_end_where_a_network_that_knows_points_to():
    flow = PictureFlow(FlowSize(4, 2, 1, 1, 3, 2, (16, 32)))
    target, noise = torch.randn(2, 3, 2, 4, 4).unbind()
    flow.forward = lambda z, t, given: target
    given = Conditions(torch.zeros(3, flow.size.given, 4, 4), torch.zeros(3, 7))
    torch.testing.assert_close(flow.draw(given, noise, steps=5), target, atol=2e-3, rtol=0)
    begun = []
    flow.forward = lambda z, t, given: begun.append((z.clone(), t[0].item())) or target
    flow.draw(given, noise, steps=4, guidance=1, start=target, since=0.5)
    torch.testing.assert_close(begun[0][0], 0.5 * target + 0.5 * noise)
    assert [time for _, time in begun] == pytest.approx([0.5, 0.75])


def test_a_small_generator_paints_what_tokens_say(drawn, quadrants):
    """It beats the nearest picture by far on pictures that are in no bank, and whole tokens beat reduced ones."""
    made, _ = drawn
    tokens, real = torch.from_numpy(quadrants.tokens[320:]), pixels_of(quadrants.images[320:])
    error = {
        name: float((drawer(tokens) - real).abs().mean())
        for name, drawer in (("whole", made.told(whole=True)), ("drawn", made), ("nearest", made.nearest))
    }
    assert error["whole"] < error["drawn"] < 0.75 * error["nearest"]
    assert torch.equal(made(tokens[:5]), made(tokens[:5]))
    samples = made.samples(tokens[:5], 2)
    assert torch.equal(samples[0], made(tokens[:5])) and not torch.equal(samples[0], samples[1])


def test_a_generator_draws_beside_a_bank_that_is_there(nearest, quadrants, tmp_path):
    tiny = recipes.tiny()
    recipe = replace(tiny, components=nearest.components.size.count, flow=replace(tiny.flow, steps=2))
    options = {"nearest": nearest, "device": "cpu"}
    made = train_generator(tmp_path, quadrants, quadrants.pictures, quadrants.ids, recipe, **options)
    assert made.nearest is nearest and made.trained["nearest"] == nearest.fingerprint


def test_a_generator_is_saved_and_its_training_goes_on(drawn, quadrants, tmp_path):
    made, folder = drawn
    made.save(tmp_path / "generator")
    again = Generator.load(tmp_path / "generator", quadrants.pictures)
    tokens = torch.from_numpy(quadrants.tokens[320:340])
    assert (again(tokens) - made(tokens)).abs().mean() < 0.02 and again.trained["steps"] == 150
    ended = train_generator(folder, quadrants, quadrants.pictures, quadrants.ids[:320], recipes.tiny(), device="cpu")
    assert torch.equal(ended(tokens), made(tokens))  # nothing was left to train
    with pytest.raises(BrainDataError, match="expected the images with which the run"):
        train_generator(folder, quadrants, quadrants.pictures, quadrants.ids[:300], recipes.tiny(), device="cpu")
    with pytest.raises(BrainDataError, match="a bank of the first training images, got another one"):
        train_generator(
            tmp_path / "other", quadrants, quadrants.pictures, quadrants.ids[1:9], recipes.tiny(), nearest=made.nearest
        )
    with pytest.raises(LayoutError, match=r"a folder that Generator\.save has written"):
        Generator.load(tmp_path, quadrants.pictures)
    with pytest.raises(BrainDataError, match="expected a recipe of nano, base, tiny, got 'nanno'; near: nano"):
        recipes.named("nanno")


class TestShipped:
    """The bank of drawn scenes, as a user without a brain sees it."""

    def test_held_out_scenes_find_their_shape_and_colour(self):
        kind = extractor("veca_nano_patch8", pretrained=True)
        nearest = shipped_nearest(kind)
        assert nearest is not None and len(nearest.bank.ids) == 8000
        scenes = scene_stimuli(424242, 60)
        with torch.no_grad():
            tokens = kind.encode(pixels_of(scenes.images(scenes.ids, kind.input_size))).tokens
        found = [sample_scene(index, seed).objects[0] for seed, index in map(parse_scene_id, nearest.ids_of(tokens))]
        right = {
            name: np.mean([getattr(x, name) for x in found] == scenes.labels[name])
            for name in ("shape", "color", "size")
        }
        assert right["shape"] > 0.85 and right["color"] > 0.5 and right["size"] > 0.7  # chance 0.125, 0.125, 0.33

    def test_it_belongs_to_one_extractor(self):
        assert shipped_nearest(extractor("veca_nano_patch8", pretrained=True, num_cores=8)) is None
        assert shipped_nearest(extractor("vit_nano_patch8")) is None
        assert shipped_generator(extractor("vit_nano_patch8")) is None
        assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 14e6

    def test_the_generator_draws_the_shown_scene_from_true_tokens(self):
        kind, scenes = extractor("veca_nano_patch8", pretrained=True), scene_stimuli(424242, 8)
        made = shipped_generator(kind)
        assert made is not None and made.trained["steps"] == 5000
        shown = pixels_of(scenes.images(scenes.ids, 64))
        with torch.no_grad():
            tokens = kind.encode(pixels_of(scenes.images(scenes.ids, kind.input_size))).tokens
        drawn = made.told(whole=True)(tokens)
        a, b = ((x - x.mean()).flatten(1) for x in (drawn, shown))
        own, other = (torch.nn.functional.cosine_similarity(a, x) for x in (b, b.roll(1, 0)))
        assert own.mean() > 0.6 > other.mean() + 0.3
