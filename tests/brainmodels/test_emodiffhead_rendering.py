"""The loss of the renderer on chunks, and frames chunk after chunk, with networks that know the answer."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import veca
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.diffusion import PREDICTIONS, SAMPLERS, Levels, convert, levels, new_scheduler
from brainmodels.systems.emodiffhead.denoiser import HeadDenoiser
from brainmodels.systems.emodiffhead.reader import PortraitReader
from brainmodels.systems.emodiffhead.rendering import (
    RenderBatch,
    RenderTask,
    pixels,
    render_batch,
    render_frames,
    render_loss,
)
from tests.brainmodels.blob_heads import (
    AUDIO,
    CORES,
    EXPRESSION,
    PORTRAIT,
    SUBFRAMES,
    blob_batch,
    blob_recipe,
    mouth_of,
)

SIDE = 8


class Answers(nn.Module):
    """A network that says what a function of its inputs gives, and keeps what it was told."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer, self.seen = answer, []

    def prepared(self, given):
        return given

    def forward(self, noisy, time, given):
        self.seen.append((noisy, time, given))
        return self.answer(noisy, time, given)


def numbered(clips=64, frames=12) -> RenderBatch:
    """Windows whose frames, sound and hidden expression hold the frame's number, and whose full one is negative.

    References and portraits hold 20 and 21.
    """
    number = torch.arange(frames).expand(clips, frames)
    picture = (10 * number)[..., None, None, None].expand(-1, -1, SIDE, SIDE, 3).to(torch.uint8)
    told = number[..., None].expand(-1, -1, EXPRESSION).float()
    sound = told[:, :, None].expand(-1, -1, SUBFRAMES, AUDIO)
    others = torch.tensor([20, 21]).expand(clips, 2)
    references = (10 * others)[..., None, None, None].expand(-1, -1, SIDE, SIDE, 3).to(torch.uint8)
    portraits = others[..., None, None].expand(-1, -1, 1 + CORES, PORTRAIT).float()
    known = (references, portraits, torch.zeros(clips, frames, 4))
    return RenderBatch("", np.arange(clips), picture, -1 - told, told, sound, *known)


def number_of(frames):
    return ((frames + 1) * 12.75).mean((-3, -2, -1))


def told_in_training(recipe, seed=0, **options) -> Any:
    """What a network is told in one step."""
    network: Any = Answers(lambda noisy, time, given: noisy)
    RenderTask(network, recipe)(numbered(**options), torch.Generator().manual_seed(seed))
    return network.seen[0]


def test_pixels_fill_the_range():
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 3)  # one pixel
    assert pixels(frames).flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_a_chunk_goes_on_from_the_frames_before_it_and_its_reference_is_given():
    recipe = blob_recipe(SIDE, motion_noise=0.0, motion_dropout=0.3)
    _, _, given = told_in_training(recipe, clips=200)
    chunk = given.expression.abs().amax(2)
    chunk = torch.where(given.hidden[:, None], chunk, chunk - 1)
    assert torch.equal(chunk - chunk[:, :1], torch.arange(4).expand(200, 4).float())
    there = given.has_motion
    assert 0.6 < there.float().mean() < 0.8
    before = chunk[there, :1] + torch.tensor([-2, -1])
    torch.testing.assert_close(number_of(given.motion)[there], before, atol=1e-4, rtol=0)
    assert set(chunk[there, 0].tolist()) == set(range(2, 9))
    assert set(chunk[~there, 0].tolist()) == set(range(9))
    reference = number_of(given.reference).round()
    assert set(reference.tolist()) == {20, 21}
    assert (given.portrait[:, 0, 0] == reference).all()  # what was read from the same picture
    assert (given.audio[:, :, SUBFRAMES, 0] == chunk).all()  # windows have one frame on each side


def test_times_of_training_are_drawn_by_their_power():
    for bias, mean in ((1.0, 0.5), (3.0, 0.75)):  # of u^(1/p), p / (p + 1)
        network: Any = Answers(lambda noisy, time, given: noisy)
        RenderTask(network, blob_recipe(SIDE, noise_bias=bias))(numbered(4000), torch.Generator().manual_seed(0))
        time = network.seen[0][1]
        assert time.min() >= 0 and time.max() <= 999
        assert time.float().mean() == pytest.approx(1000 * mean, abs=15)


def test_frames_before_a_chunk_have_the_noise_that_is_told():
    recipe = blob_recipe(SIDE, motion_noise=0.1)
    _, _, given = told_in_training(recipe, clips=200)
    clean = number_of(given.motion).round() / 12.75 - 1
    spread = (given.motion - clean[..., None, None, None]).flatten(1).std(1)
    there = given.has_motion
    assert given.motion_level.min() < 0.01
    assert 0.09 < given.motion_level.max() <= 0.1
    torch.testing.assert_close(spread[there], given.motion_level[there], atol=0.02, rtol=0)


def test_shares_of_what_is_left_out():
    shares = (0.2, 0.1, 0.15, 0.05)
    _, _, given = told_in_training(blob_recipe(SIDE, dropout=shares), clips=8000)
    no = torch.stack((given.no_expression, given.no_audio, given.no_reference), 1).int()
    wanted = {(1, 0, 0): 0.2, (0, 1, 0): 0.1, (1, 1, 0): 0.15, (1, 1, 1): 0.05, (0, 0, 0): 0.5}
    for pattern, share in wanted.items():
        assert (no == torch.tensor(pattern)).all(1).float().mean().item() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("hide", "share"), [("flagged", 0.5), ("always", 1), ("jaw", 1), ("never", 0)])
def test_the_mouth_is_hidden_where_the_flag_says_so(hide, share):
    _, _, given = told_in_training(blob_recipe(SIDE, hide=hide), clips=1000)
    assert given.hidden.float().mean().item() == pytest.approx(share, abs=0.05)
    assert torch.equal((given.expression >= 0).all(2).all(1), given.hidden)  # the full one is negative


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_answer_has_no_loss(prediction):
    recipe = blob_recipe(SIDE, prediction=prediction, motion_noise=0.0)
    scheduler = new_scheduler("ddpm", prediction)

    def oracle(noisy, time, given):
        number = given.expression[..., 0]
        clean = torch.where(given.hidden[:, None], number, -1 - number) / 12.75 - 1
        clean = clean[..., None, None, None].expand_as(noisy)
        return convert(clean, noisy, levels(scheduler, time, 5), "sample", prediction)

    batch = numbered()._replace(box=torch.tensor([2.0, 2, 6, 6]).expand(64, 12, 4))
    network: Any = Answers(oracle)
    found = RenderTask(network, recipe)(batch, torch.Generator().manual_seed(0))
    assert all(value < 1e-5 for value in found.values())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_its_definition(prediction):
    generator = torch.Generator().manual_seed(0)
    said, clean, noise = torch.randn(3, 2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    signal = torch.tensor([0.6, 0.8], dtype=torch.float64).reshape(2, 1, 1, 1, 1)
    level = Levels(signal, (1 - signal**2).sqrt())
    box = torch.tensor([[2.0, 4, 6, 8], [0, 0, 0, 0]]).expand(2, 2, 4)  # in pixels of pictures of 8 x 8
    recipe = blob_recipe(SIDE, prediction=prediction, mouth_weight=0.7)
    found = render_loss(said, clean, noise, level, box, 8, recipe)
    noisy = level.signal * clean + level.noise * noise
    if prediction == "sample":
        wanted, estimate = clean, said
    elif prediction == "epsilon":
        wanted, estimate = noise, (noisy - level.noise * said) / level.signal
    else:
        wanted, estimate = level.signal * noise - level.noise * clean, level.signal * noisy - level.noise * said
    mse = (said - wanted).square().mean()
    error = (estimate - clean).square() * (level.signal.square() if prediction == "epsilon" else 1)
    mouth = error[:, 0, :, 2:4, 1:3].mean()
    torch.testing.assert_close(found["mse"], mse)
    torch.testing.assert_close(found["mouth"], mouth)
    torch.testing.assert_close(found["loss"], mse + 0.7 * mouth)


def test_without_boxes_the_log_says_so_once(caplog):
    network: Any = Answers(lambda noisy, time, given: noisy)
    task = RenderTask(network, blob_recipe(SIDE))
    with caplog.at_level("INFO"):
        found = [task(numbered(clips=2), torch.Generator().manual_seed(0)) for _ in range(2)]
    assert found[0]["mouth"] == 0
    assert torch.equal(found[0]["loss"], found[0]["mse"])
    assert [record.message for record in caplog.records] == ["no mouth boxes: the loss has no term of the mouth"]


def test_windows_that_are_too_short_are_refused():
    with pytest.raises(AxisError, match="windows of 6 frames"):
        told_in_training(blob_recipe(SIDE), frames=5)


def test_frames_may_be_encoded_and_portraits_read_in_training():
    recipe = blob_recipe(SIDE, channels=4, portrait="train")
    torch.manual_seed(0)
    model = veca.VECA(embed_dim=16, depth=2, num_heads=2, patch_size=8, img_size=16, num_cores=CORES)
    denoiser = HeadDenoiser(recipe.denoiser_size, EXPRESSION, AUDIO, SUBFRAMES, 16, 1)
    nn.init.normal_(denoiser.decoder.leave.weight)

    def encode(frames):
        return torch.cat((pixels(frames), pixels(frames)[:, :, :1]), 2)

    batch = blob_batch(2, 8, SIDE)._replace(portraits=torch.randint(256, (2, 3, 16, 16, 3), dtype=torch.uint8))
    with pytest.raises(BrainDataError, match="a reader for pictures"):
        RenderTask(denoiser, recipe, None, encode)(batch, torch.Generator().manual_seed(0))
    task = RenderTask(denoiser, recipe, PortraitReader(model, train=True), encode)
    task(batch, torch.Generator().manual_seed(0))["loss"].backward()
    assert all(x.grad is not None and x.grad.any() for x in model.core_bank.parameters())


def series(total, clips=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    expression = torch.randn(clips, total, EXPRESSION, generator=generator)
    return expression, torch.randn(clips, total, SUBFRAMES, AUDIO, generator=generator)


def asked(network, recipe, total=11, seed=0, clips=2, **options):
    """Frames of random series."""
    reference = torch.zeros(clips, recipe.denoiser_size.channels, SIDE, SIDE)
    hidden, portrait = torch.ones(clips, dtype=torch.bool), torch.zeros(clips, 1 + CORES, PORTRAIT)
    known = series(total, clips)
    return render_batch(network, recipe, reference, *known, hidden, portrait, seed=seed, **options)


def real(**changes):
    """A small network whose output depends on all that it is told, and its recipe."""
    recipe = blob_recipe(SIDE, **({"width": 8, "heads": 2} | changes))
    torch.manual_seed(0)
    denoiser = HeadDenoiser(recipe.denoiser_size, EXPRESSION, AUDIO, SUBFRAMES, PORTRAIT, 1)
    for name, parameter in denoiser.named_parameters():
        if "proj_out" in name or "leave" in name:
            nn.init.normal_(parameter, std=0.1)
    return denoiser, recipe


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_oracle_renders_the_true_frames(prediction, sampler):
    recipe = blob_recipe(SIDE, prediction=prediction)
    scheduler = new_scheduler(sampler, prediction)

    def oracle(noisy, time, given):
        clean = given.expression[..., :3].tanh()[..., None, None].expand_as(noisy)
        return convert(clean, noisy, levels(scheduler, time, 5), "sample", prediction)

    found = asked(Answers(oracle), recipe, sampler=sampler)
    truth = series(11, 2)[0].tanh()[..., None, None].expand_as(found)
    assert found.shape == (2, 11, 3, SIDE, SIDE)
    torch.testing.assert_close(found, truth, atol=2e-2 if prediction == "epsilon" else 1e-4, rtol=0)


def test_longer_sound_leaves_earlier_chunks_as_they_are():
    denoiser, recipe = real()
    reference, portrait = torch.rand(3, SIDE, SIDE), torch.randn(1 + CORES, PORTRAIT)
    expression, sound = (x[0] for x in series(15))
    made = {
        total: render_frames(denoiser, recipe, reference, expression[:total], sound[:total], True, portrait, steps=2)
        for total in (9, 11, 15)
    }
    assert [len(x) for x in made.values()] == [9, 11, 15]
    assert torch.equal(made[9][:8], made[15][:8])  # the ninth frame begins a chunk
    assert torch.equal(made[11][:8], made[15][:8])
    assert not torch.equal(made[11][:11], made[15][:11])  # sound after the end was held


def test_seeds_decide_the_noise_and_chunks_have_their_own():
    denoiser, recipe = real()
    first, again, other = [asked(denoiser, recipe, seed=seed, steps=2) for seed in (0, 0, 1)]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    network = Answers(lambda noisy, time, given: torch.zeros_like(noisy))
    asked(network, blob_recipe(SIDE), total=12, steps=1)
    noises = [noisy for noisy, _, _ in network.seen]
    assert len(noises) == 3
    assert torch.equal(noises[0][0], noises[0][1])  # clips of a batch share it
    assert abs(torch.corrcoef(torch.stack([x[0].flatten() for x in noises[:2]]))[0, 1]) < 0.2
    with pytest.raises(BrainDataError, match="seed of 0 or more"):
        asked(network, recipe, seed=-1)


def test_a_chunk_is_told_the_last_frames_before_it():
    recipe = blob_recipe(SIDE, motion_noise=0.0)
    network = Answers(lambda noisy, time, given: given.expression[..., :3].tanh()[..., None, None].expand_as(noisy))
    found = asked(network, recipe, total=12, steps=1)
    given = [given for _, _, given in network.seen]
    assert [x.has_motion.all().item() for x in given] == [False, True, True]
    torch.testing.assert_close(given[1].motion, found[:, 2:4])
    torch.testing.assert_close(given[2].motion, found[:, 6:8])
    noisy = Answers(network.answer)
    found = asked(noisy, blob_recipe(SIDE, motion_noise=0.1), total=8, steps=1)
    difference = noisy.seen[1][2].motion - found[:, 2:4]
    assert difference.std().item() == pytest.approx(0.05, rel=0.15)
    assert noisy.seen[1][2].motion_level.tolist() == pytest.approx([0.05, 0.05])


def test_clean_frames_may_come_before_the_first_chunk():
    recipe = blob_recipe(SIDE, motion_noise=0.0, frames=1)
    network = Answers(lambda noisy, time, given: given.expression[..., :3].tanh()[..., None, None].expand_as(noisy))
    first = torch.rand(2, 2, 3, SIDE, SIDE)
    found = asked(network, recipe, total=3, steps=1, first=first)
    told = [given.motion for _, _, given in network.seen]
    torch.testing.assert_close(told[0], first)
    torch.testing.assert_close(told[1], torch.cat((first[:, 1:], found[:, :1]), 1))
    torch.testing.assert_close(told[2], found[:, :2])
    network.seen.clear()
    found = asked(network, recipe, total=2, steps=1)
    torch.testing.assert_close(network.seen[1][2].motion, found[:, [0, 0]])  # one frame has been made, two are told
    with pytest.raises(AxisError, match="expected first"):
        asked(network, recipe, first=first[:, :1])


def test_chunks_without_frames_before_them():
    denoiser, recipe = real(motion=0)
    assert asked(denoiser, recipe, total=6, steps=2).isfinite().all()
    terms = RenderTask(denoiser, recipe)(blob_batch(2, 8, SIDE), torch.Generator().manual_seed(0))
    assert terms["loss"].isfinite()


def test_guidance_asks_once_where_it_changes_nothing_and_is_nested_elsewhere():
    recipe = blob_recipe(SIDE)

    def answer(noisy, time, given):
        level = 0.1 + 0.2 * (~given.no_audio).float() + 0.3 * (~given.no_expression).float() * (~given.no_audio)
        return level[:, None, None, None, None].expand_as(noisy)

    plain, scaled = Answers(answer), Answers(answer)
    torch.testing.assert_close(asked(plain, recipe, total=4).mean().item(), 0.6)
    assert [len(noisy) for noisy, _, _ in plain.seen] == [2] * 4
    found = asked(scaled, recipe, total=4, audio_scale=1.5, emotion_scale=0.5)
    assert found.mean().item() == pytest.approx(0.1 + 1.5 * 0.2 + 0.5 * 0.3)
    assert [len(noisy) for noisy, _, _ in scaled.seen] == [6] * 4
    torch.testing.assert_close(asked(scaled, recipe, audio_scale=1.0, emotion_scale=1.0), asked(plain, recipe))


def test_every_third_frame_hears_the_sound_around_it():
    recipe = blob_recipe(SIDE, frames=2)
    network = Answers(lambda noisy, time, given: given.expression[..., :3].tanh()[..., None, None].expand_as(noisy))
    found = asked(network, recipe, total=8, steps=1, every=3)
    expression, sound = series(8, 2)
    torch.testing.assert_close(found[..., 0, 0], expression[:, ::3, :3].tanh())
    around = sound[:, [2, 3, 4]].flatten(1, 2)  # around frame 3, the second that is rendered
    assert torch.equal(network.seen[0][2].audio[:, 1], around)
    with pytest.raises(BrainDataError, match="every >= 1"):
        asked(network, recipe, every=0)


def test_the_reference_network_runs_once_a_clip():
    denoiser, recipe = real(reference="unet")
    calls = []
    denoiser.reference.register_forward_hook(lambda *_: calls.append(1))
    told = []
    asked(denoiser, recipe, total=12, steps=3, progress=lambda *x: told.append(x))
    assert len(calls) == 1
    assert told == [(done, 9) for done in range(1, 10)]


def test_series_of_unequal_length_are_refused():
    denoiser, recipe = real()
    expression, sound = (x[0] for x in series(5))
    with pytest.raises(AxisError, match="sound of 5 frames"):
        render_frames(denoiser, recipe, torch.zeros(3, SIDE, SIDE), expression, sound[1:], True, torch.zeros(3, 6))


def trained(recipe, steps, batch_size):
    torch.manual_seed(0)
    denoiser = HeadDenoiser(recipe.denoiser_size, EXPRESSION, AUDIO, SUBFRAMES, PORTRAIT, 1)
    task, generator = RenderTask(denoiser, recipe), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = task(blob_batch(batch_size, 8, seed=step + 10), generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return denoiser


def correlation(*values):
    return torch.corrcoef(torch.stack([x.flatten() for x in values]))[0, 1].item()


def test_a_trained_network_follows_the_sound_where_the_mouth_is_hidden():
    recipe = blob_recipe(16, width=8, heads=2, frames=2, motion=1, noise_bias=3.0)
    denoiser = trained(recipe, 100, 8)
    old, new = blob_batch(24, 8, seed=1), blob_batch(24, 8, seed=2)
    reference, hidden = pixels(old.frames[:, -1]), torch.ones(24, dtype=torch.bool)
    found = render_batch(denoiser, recipe, reference, old.hidden, new.audio, hidden, old.portraits[:, 0])
    mouth = mouth_of(found)
    assert correlation(mouth, mouth_of(pixels(new.frames))) > 0.75
    assert abs(correlation(mouth, mouth_of(pixels(old.frames)))) < 0.25
    colors = [x[..., 0, :].mean(-1).mean(1) for x in (found, pixels(old.frames))]  # the top row is the background
    assert correlation(*colors) > 0.3
