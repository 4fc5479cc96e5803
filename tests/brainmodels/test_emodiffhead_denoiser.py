"""The denoiser of talking heads: what each condition reaches, and what it does not."""

import pytest
import torch
from torch import nn

import veca
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.emodiffhead.denoiser import Conditions, HeadDenoiser, audio_windows
from brainmodels.systems.emodiffhead.reader import PortraitReader, portrait_model
from brainmodels.systems.emodiffhead.unet import _JoinedAttention, blocks
from tests.brainmodels.blob_heads import AUDIO, CORES, EXPRESSION, PORTRAIT, SUBFRAMES, blob_recipe

pytestmark = pytest.mark.filterwarnings("ignore:num_cores")  # of a portrait, among budgets that were not trained
CLIPS, FRAMES = 3, 4
REFERENCES = ("concat", "unet", "veca")


def small(side=8, randomised=True, **sizes) -> HeadDenoiser:
    """A small denoiser. Layers that begin at zero are randomised, as all paths are open after some training."""
    size = blob_recipe(side, **({"width": 8, "attention": (side // 2,), "heads": 2, "cores": CORES} | sizes))
    torch.manual_seed(0)
    denoiser = HeadDenoiser(size.denoiser_size, EXPRESSION, AUDIO, SUBFRAMES, PORTRAIT, reach=1).eval()
    if randomised:
        for name, parameter in denoiser.named_parameters():
            if "proj_out" in name or "leave" in name:
                nn.init.normal_(parameter, std=0.2)
    return denoiser


def given_to(denoiser: HeadDenoiser, frames=FRAMES, seed=0, **changes) -> Conditions:
    """Random conditions of three clips, with nothing left out."""
    size, generator = denoiser.size, torch.Generator().manual_seed(seed)
    frame, patches = (size.channels, size.side, size.side), 16 if size.reference == "veca" else 0

    def drawn(*shape):
        return torch.randn(CLIPS, *shape, generator=generator)

    no, yes = torch.zeros(CLIPS, dtype=torch.bool), torch.ones(CLIPS, dtype=torch.bool)
    given = Conditions(
        drawn(frames, EXPRESSION),
        yes,
        drawn(frames, 3 * SUBFRAMES, AUDIO),
        drawn(*frame),
        drawn(size.motion, *frame),
        yes,
        torch.full((CLIPS,), 0.05),
        drawn(1 + CORES + patches, PORTRAIT),
        no,
        no,
        no,
    )
    return given._replace(**changes)


def said(denoiser, given, seed=1, time=(0, 500, 999)):
    size, frames = denoiser.size, given.expression.shape[1]
    noise = torch.Generator().manual_seed(seed)
    noisy = torch.randn(CLIPS, frames, size.channels, size.side, size.side, generator=noise)
    with torch.no_grad():
        return denoiser(noisy, torch.tensor(time), given)


def changed(denoiser, given, **changes):
    """(B, F) bool, frames that change with some conditions."""
    difference = said(denoiser, given) - said(denoiser, given._replace(**changes))
    return difference.abs().amax((2, 3, 4)) > 1e-6


def test_sound_around_a_frame_is_held_at_the_ends():
    audio = torch.arange(2 * 5 * 2 * 3).reshape(2, 5, 2, 3)
    found = audio_windows(audio, reach=2)
    assert found.shape == (2, 5, 10, 3)
    for frame in range(5):
        places = [min(max(frame + step, 0), 4) for step in range(-2, 3)]
        assert torch.equal(found[:, frame], torch.cat([audio[:, place] for place in places], 1))


@pytest.mark.parametrize("reference", REFERENCES)
def test_order_of_clips_is_the_order_of_outputs(reference):
    denoiser = small(reference=reference)
    given, order = given_to(denoiser), torch.tensor([2, 0, 1])
    moved = Conditions._make([*[x[order] for x in given[:-1]], None])
    noisy = torch.randn(CLIPS, FRAMES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0, 500, 999])
    with torch.no_grad():
        whole, other = denoiser(noisy, time, given), denoiser(noisy[order], time[order], moved)
    torch.testing.assert_close(other, whole[order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other, whole, atol=1e-3)


def test_one_frame_is_what_a_network_without_time_says_at_first():
    timed, still = [small(randomised=False, time=time) for time in ("lowest", None)]
    nn.init.normal_(timed.decoder.leave.weight)
    still.load_state_dict({k: v for k, v in timed.state_dict().items() if "temporal" not in k})
    given = given_to(timed, frames=1)
    torch.testing.assert_close(said(timed, given), said(still, given), atol=1e-4, rtol=1e-4)
    assert said(timed, given).abs().max() > 0.1


@pytest.mark.parametrize(("time", "reached"), [(None, [0, 1, 2]), ("lowest", [0, 1, 2, 3]), ("all", [0, 1, 2, 3])])
def test_frames_hear_their_own_window_unless_there_is_attention_over_time(time, reached):
    denoiser = small(time=time)
    given = given_to(denoiser)
    sound = torch.randn(CLIPS, FRAMES, SUBFRAMES, AUDIO, generator=torch.Generator().manual_seed(3))
    other = sound.clone()
    other[:, 1] += 1
    before = given._replace(audio=audio_windows(sound, 1))
    found = changed(denoiser, before, audio=audio_windows(other, 1))
    assert found[0].nonzero().flatten().tolist() == reached


@pytest.mark.parametrize(("name", "without"), [("expression", "no_expression"), ("audio", "no_audio")])
def test_what_is_left_out_is_not_heard_and_is_not_zero(name, without):
    denoiser = small()
    given = given_to(denoiser)
    other = {name: getattr(given, name) + 1}
    assert changed(denoiser, given, **other).all()
    drop = torch.tensor([True, False, True])
    silent = given._replace(**{without: drop})
    assert changed(denoiser, silent, **other).any(1).tolist() == [False, True, False]
    zero = said(denoiser, given._replace(**{name: torch.zeros_like(getattr(given, name))}))
    assert not torch.allclose(zero[0], said(denoiser, silent)[0], atol=1e-3)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_is_read_unless_it_is_left_out(reference):
    denoiser = small(reference=reference)
    given = given_to(denoiser)
    patches = given.portrait.clone()
    patches[:, 1 + CORES :] += torch.randn(patches[:, 1 + CORES :].shape)
    picture = given.reference + torch.randn(given.reference.shape)
    cores = given.portrait.clone()
    cores[:, : 1 + CORES] += torch.randn(cores[:, : 1 + CORES].shape)
    what = {"portrait": patches} if reference == "veca" else {"reference": picture}
    assert changed(denoiser, given, **what).all()
    assert changed(denoiser, given, portrait=cores).all()
    none = given._replace(no_reference=torch.ones(CLIPS, dtype=torch.bool))
    assert not changed(denoiser, none, **what).any()
    assert not changed(denoiser, none, portrait=cores).any()


def test_a_residual_network_that_says_nothing_shows_the_reference():
    denoiser = small(residual=True)
    nn.init.zeros_(denoiser.decoder.leave.weight)
    nn.init.zeros_(denoiser.decoder.leave.bias)
    given = given_to(denoiser)
    assert torch.equal(said(denoiser, given), given.reference[:, None].expand(-1, FRAMES, -1, -1, -1))
    without = said(denoiser, given._replace(no_reference=torch.ones(CLIPS, dtype=torch.bool)))
    assert torch.equal(without, denoiser.no_reference.expand_as(without))


@pytest.mark.parametrize("reference", ["concat", "unet", "veca"])
def test_the_network_knows_places(reference):
    denoiser = small(reference=reference, cores=CORES)
    given = given_to(denoiser)
    before = said(denoiser, given)
    with torch.no_grad():
        denoiser.places[..., 0, 0] += 1
    assert (said(denoiser, given) - before).abs().max() > 1e-4


def test_frames_before_the_chunk_are_read_only_where_there_are_any():
    denoiser = small()
    given = given_to(denoiser, has_motion=torch.tensor([True, False, True]))
    assert changed(denoiser, given, motion=given.motion + 1).any(1).tolist() == [True, False, True]
    assert changed(denoiser, given, motion_level=2 * given.motion_level).any(1).tolist() == [True, False, True]
    unread = given.motion.clone()
    unread[1] = float("nan")
    assert said(denoiser, given._replace(motion=unread)).isfinite().all()


def test_the_flag_and_the_time_are_read():
    denoiser = small()
    given = given_to(denoiser)
    assert changed(denoiser, given, hidden=~given.hidden).all()
    assert not torch.allclose(said(denoiser, given), said(denoiser, given, time=(1, 501, 998)), atol=1e-6)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_prepared_reference_says_the_same(reference):
    denoiser = small(reference=reference)
    given = given_to(denoiser)
    prepared = denoiser.prepared(given)
    blank = prepared._replace(reference=torch.zeros_like(given.reference))
    assert torch.equal(said(denoiser, blank), said(denoiser, given))


@pytest.mark.parametrize("time", ["lowest", "all"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_every_weight_learns(reference, time):
    denoiser = small(reference=reference, time=time, attention=(8, 4))
    mixed = torch.tensor([True, False, False])
    given = given_to(denoiser, has_motion=mixed, no_audio=mixed, no_expression=mixed, hidden=mixed, no_reference=mixed)
    noisy = torch.randn(CLIPS, FRAMES, 3, 8, 8)
    denoiser(noisy, torch.tensor([0, 500, 999]), given).square().sum().backward()
    still = [name for name, x in denoiser.named_parameters() if x.grad is None or not x.grad.any()]
    unused = {"concat": [], "unet": [], "veca": ["no_reference"]}[reference]
    assert still == unused


def test_no_two_names_share_a_tensor():
    places = [x.data_ptr() for x in small(reference="unet").state_dict().values()]
    assert len(set(places)) == len(places)  # safetensors refuses to save tensors twice


def test_joined_tokens_are_more_keys_and_values():
    torch.manual_seed(0)
    block = blocks().BasicTransformerBlock(8, 2, 4)
    attention = block.attn1
    attention.set_processor(_JoinedAttention())
    x, joined = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    keys = torch.cat((x, joined), 1)
    q, k, v = [
        f(y).unflatten(2, (2, 4)).transpose(1, 2)
        for f, y in zip((attention.to_q, attention.to_k, attention.to_v), (x, keys, keys), strict=True)
    ]
    weights = (q @ k.transpose(2, 3) / 2).softmax(-1)  # the head dim is 4
    wanted = attention.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, joined=joined), wanted)


def test_wrong_shapes_are_named():
    denoiser = small()
    given = given_to(denoiser)
    with pytest.raises(AxisError, match=r"up to 4 frames"):
        said(denoiser, given_to(denoiser, frames=5))
    with pytest.raises(AxisError, match=r"expected audio \(3, 4, 6, 3\)"):
        said(denoiser, given._replace(audio=given.audio[:, :, 1:]))
    with pytest.raises(BrainDataError, match="number of cores"):
        small(reference="veca", cores=None)
    veca_like = small(reference="veca")
    with pytest.raises(AxisError, match="square portrait"):
        said(veca_like, given_to(veca_like)._replace(portrait=torch.randn(CLIPS, 1 + CORES + 5, PORTRAIT)))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return lambda: veca.VECA(embed_dim=16, depth=3, num_heads=2, patch_size=8, img_size=32, num_cores=6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (250, 250), (1024, 1024)])
def test_portraits_of_any_size_and_number_of_cores(backbone, height, width):
    model = backbone()
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    for cores in (2, 6):
        assert PortraitReader(model, cores)(picture).shape == (1, 1 + cores, 16)
    found = PortraitReader(model, 4, patches=True)(picture)
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))
    with torch.no_grad():
        last = model.forward_features((picture - mean) / std, 4)
        ((_, cores),) = model.forward_intermediates(
            (picture - mean) / std, [-2], return_prefix_tokens=True, norm=True, intermediates_only=True, num_cores=4
        )
    torch.testing.assert_close(found, torch.cat((last.global_token[:, None], cores, last.patches), 1))


def test_a_frozen_portrait_reader_learns_nothing_and_a_trained_one_does(backbone):
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frozen = PortraitReader(backbone(), 4).train()
    assert not frozen.model.training
    assert not frozen(picture).requires_grad
    trained = PortraitReader(backbone(), 4, train=True)
    trained(picture)[:, 1:].square().sum().backward()
    bank = [x.grad for name, x in trained.model.named_parameters() if "core_bank" in name]
    assert bank
    assert all(x is not None and x.abs().sum() > 0 for x in bank)


def test_portrait_readers_refuse_what_they_cannot_read(backbone, tmp_path):
    model = backbone()
    with pytest.raises(BrainDataError, match="cores"):
        PortraitReader(model, 7)
    with pytest.raises(AxisError, match="at most 1024 px"):
        PortraitReader(model, 2)(torch.zeros(1, 3, 32, 1032))
    with pytest.raises(AxisError, match="square portrait"):
        PortraitReader(model, 2, patches=True)(torch.zeros(1, 3, 32, 64))
    with pytest.raises(BrainDataError, match="no_such_model"):
        portrait_model("no_such_model")
    model.save_pretrained(tmp_path / "own")
    again = portrait_model(str(tmp_path / "own"))
    assert all(torch.equal(x, y) for x, y in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_stacked_conditions_are_those_of_more_clips():
    denoiser = small()
    parts = [denoiser.prepared(given_to(denoiser, seed=seed)) for seed in (0, 1)]
    whole = Conditions.stacked(parts)
    assert all(len(x) == 2 * CLIPS for x in whole[:-1])
    assert whole.maps is not None
    assert parts[0].maps is not None
    assert torch.equal(whole.maps[0][:CLIPS], parts[0].maps[0])
    assert torch.equal(whole.audio[CLIPS:], parts[1].audio)


@pytest.mark.parametrize("side", [8, 32])  # maps of 32 px are made at 16 px
def test_maps_bring_expression_and_sound_to_the_entry(side):
    """Where nothing scales the residual blocks, only the maps know of expression and sound."""
    still, told = (small(side, time=None, attention=(), motion=0, maps=maps) for maps in (0, 3))
    for denoiser in (still, told):
        for level in denoiser.modules():
            if isinstance(level, blocks().ResnetBlock2D):
                nn.init.zeros_(level.time_emb_proj.weight)
        given = given_to(denoiser)
        expression, audio = given.expression.clone(), given.audio.clone()
        expression[:, 1] += 1
        audio[:, 2] += 1
        wanted = [0.0, 1.0, 1.0, 0.0] if denoiser is told else [0.0] * 4
        assert changed(denoiser, given, expression=expression, audio=audio).float().mean(0).tolist() == wanted
    added = [(name, x.shape) for name, x in told.named_parameters() if name not in dict(still.named_parameters())]
    width = 4 * told.size.width
    assert added[0] == ("told_maps.weight", (3 * min(side, 16) ** 2, width)) and len(added) == 3


@pytest.mark.parametrize(
    "sizes", [{"attention": (), "motion": 0, "maps": 3, "time": None}, {}], ids=["plain", "attending"]
)
def test_every_weight_gets_a_gradient(sizes):
    """Training on many processes waits for all of them."""
    denoiser = small(**sizes)
    noisy = torch.randn(CLIPS, FRAMES, 3, 8, 8)
    denoiser(noisy, torch.tensor([0, 500, 999]), given_to(denoiser)).square().sum().backward()
    assert not [name for name, parameter in denoiser.named_parameters() if parameter.grad is None]
