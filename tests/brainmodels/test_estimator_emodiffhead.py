"""EmoDiffHead fitted to drawn clips: what it trains on, what it returns, sound of every length, files, and refusals."""

import copy
import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainmodels.data.clips import EMOTIONS, TalkingClip
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, LayoutError
from brainmodels.heads import ToyHead
from brainmodels.systems import load_model
from brainmodels.systems.emodiffhead import EmoDiffHead, EmoDiffHeadRecipe, EmotionSource, full, nano, tiny
from brainmodels.systems.emodiffhead.batches import ClipSeries, MotionRows, RenderRows, neutral_coefficients
from brainmodels.systems.emodiffhead.model import trajectories
from brainmodels.systems.emodiffhead.pictures import FrameSpace, frames_of, resized
from brainmodels.training import run
from tests.brainmodels.head_fits import RATE, SMALL, fitted, picture, small, small_clips, speech

NETWORKS = ("generator", "denoiser")


def weights(module):
    return np.concatenate([x.detach().numpy().ravel() for x in module.state_dict().values()])


def without(clip, *names):
    """The clip without some of what it knows."""
    return replace(clip, **dict.fromkeys(names))


class TestTrainedOn:
    def test_a_stage_uses_the_clips_that_have_what_it_needs_and_says_why_it_skips_others(self):
        clips = small_clips().of("train")
        short = replace(
            clips[0], id="short", exp=clips[0].exp[:6], jaw=clips[0].jaw[:6], alpha=None, pose=None, mouth_box=None,
            audio=clips[0].audio[: 6 * RATE // 25], frames=None,
        )  # fmt: skip
        given = [without(clips[0], "frames"), without(clips[1], "emotion", "alpha"), *clips[2:], short]
        model = fitted(clips=given)
        assert model.meta_["clips"] == {
            "expression": {"used": 8, "skipped": {"fewer than 8 frames": 1}},
            "render": {"used": 7, "skipped": {"no pictures": 1, "fewer than 8 frames": 1}},
        }
        with pytest.raises(BrainDataError, match=r"expected clips for the stage render, got \{'no pictures': 8\}"):
            fitted(clips=[without(clip, "frames") for clip in clips])

    def test_one_stage_leaves_the_other_at_its_first_weights(self):
        model = fitted(stages=("expression",), clips=[without(x, "frames") for x in small_clips().of("train")])
        assert np.array_equal(weights(model.generator), weights(small().generator))
        assert not np.array_equal(weights(model.denoiser), weights(small().denoiser))
        assert model.motion(speech(), "happy", sample_rate=RATE).exp.shape == (16, 12)
        with pytest.raises(BrainDataError, match="expected a model whose stage render was trained, got one with expre"):
            model.animate(picture(), speech(), sample_rate=RATE)

    def test_scales_come_from_the_train_clips(self):
        clips = small_clips().of("train")
        exp = np.concatenate([clip.exp for clip in clips])
        whitened = small().space_.whiten(exp, np.concatenate([clip.jaw for clip in clips]))
        np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(np.cov(whitened[:, :12].T), np.eye(12), atol=2e-2)
        sound = np.concatenate([small()._features(x.audio, RATE, x.num_frames).reshape(-1, 80) for x in clips])
        np.testing.assert_allclose(sound.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(sound.std(0), 1, atol=1e-2)

    def test_neutral_faces_are_subtracted_where_the_recipe_says_so(self):
        clips = [replace(clip, exp=clip.exp + 3) for clip in small_clips().of("train")]
        neutral = neutral_coefficients(clips)
        own = [clip for clip in clips if clip.emotion == "neutral"]
        assert set(neutral) == {clip.identity for clip in own}
        np.testing.assert_allclose(neutral[own[0].identity][0], own[0].exp.mean(0), rtol=1e-6)
        shifted, plain = (replace(SMALL, neutral=x) for x in ("clips", "zeros"))
        assert np.abs(fitted(shifted, clips).space_.state()["mean"]).max() < 1.5
        assert np.abs(fitted(plain, clips).space_.state()["mean"]).max() > 2

    def test_windows_cover_each_clip_and_end_with_it(self):
        clip = small_clips().of("train")[0]
        series = ClipSeries(
            clip, np.zeros((16, 4, 80), np.float32), np.arange(16 * 15, dtype=np.float32).reshape(16, 15)
        )
        rows = MotionRows([series], 7)
        assert (
            rows.rows == [(0, 0), (0, 7), (0, 9)]
            and rows.sizes("train") == {"clips": 3}
            and rows.sizes("val") == {"clips": 0}
        )
        batch = rows.batch("train", "clips", np.array([2, 1]))
        assert torch.equal(batch.target, torch.from_numpy(np.stack([series.full[9:], series.full[7:14]])))
        assert batch.label.tolist() == [EMOTIONS.index(clip.emotion)] * 2
        np.testing.assert_array_equal(batch.alpha[0], clip.alpha[9:])

    def test_a_row_of_the_renderer_has_frames_boxes_and_portrait_of_one_clip(self):
        clips = small_clips().of("train")[:2]
        series = [ClipSeries(x, np.zeros((16, 4, 80), np.float32), np.zeros((16, 15), np.float32)) for x in clips]
        faces = {clip.id: (np.full((2, 8, 8, 3), i, np.uint8), np.full((2, 3, 2), i)) for i, clip in enumerate(clips)}
        rows = RenderRows(series, 8, 8, lambda item: item.full + 25, faces)
        batch = rows.batch("train", "clips", np.array([3]))  # the second window of the second clip
        wanted, box = frames_of(clips[1], 8)
        np.testing.assert_array_equal(batch.frames[0], wanted[8:])
        np.testing.assert_allclose(batch.box[0], clips[1].mouth_box[8:] / 2, rtol=1e-6)
        assert (batch.hidden == 25).all() and box.shape == (16, 4)
        # the reference is of the other clip of this person
        assert clips[0].identity == clips[1].identity
        assert (batch.references == 0).all() and (batch.portraits == 0).all()
        alone = RenderRows(series[1:], 8, 8, lambda item: item.full, faces).batch("train", "clips", np.array([0]))
        assert (alone.references == 1).all() and (alone.portraits == 1).all()

    def test_a_fit_that_was_stopped_ends_with_the_same_bits(self, tmp_path, monkeypatch):
        few = replace(SMALL, render=replace(SMALL.render, steps=4), expression=replace(SMALL.expression, steps=4))
        whole = fitted(few, out=tmp_path / "whole", save_every=2)
        with monkeypatch.context() as stopping:
            stopping.setattr(run, "train_stage", functools.partial(run.train_stage, stop_at=2))
            half = fitted(few, out=tmp_path / "half", save_every=2)
        assert [stage["ended"] for stage in half.meta_["stages"]] == ["stop_at", "stop_at"]
        again = fitted(few, out=tmp_path / "half", save_every=2)
        for name in NETWORKS:
            assert np.array_equal(weights(getattr(again, name)), weights(getattr(whole, name)))
        with pytest.raises(BrainDataError, match=r"expected the recipe with which the run in .* began"):
            fitted(replace(few, steps=3), out=tmp_path / "half")


class TestMotion:
    @pytest.mark.parametrize("alpha", [0.3, 0.8])
    def test_coefficients_are_affine_in_the_intensity(self, alpha):
        model, sound = small(), speech()
        ends = [model.expressions(sound, "angry", x, sample_rate=RATE) for x in (0.0, 1.0)]
        found = model.expressions(sound, "angry", alpha, sample_rate=RATE)
        np.testing.assert_allclose(found, (1 - alpha) * ends[0] + alpha * ends[1], atol=1e-5)
        assert np.abs(ends[1] - ends[0]).max() > 1e-2

    def test_intensity_is_a_curve_or_a_function_of_seconds(self):
        model, sound = small(), speech()
        times = np.arange(16) / 25
        curve = model.expressions(sound, "sad", 1 - times, sample_rate=RATE)
        np.testing.assert_array_equal(curve, model.expressions(sound, "sad", lambda t: 1 - t, sample_rate=RATE))
        ends = [model.expressions(sound, "sad", x, sample_rate=RATE) for x in (0.0, 1.0)]
        np.testing.assert_allclose(curve, ends[0] + (1 - times)[:, None] * (ends[1] - ends[0]), atol=1e-5)
        with pytest.raises(AxisError, match="expected an intensity of each of 16 frames"):
            model.motion(sound, "sad", np.ones(4), sample_rate=RATE)

    def test_at_zero_every_emotion_gives_the_same_array(self):
        found = [small().expressions(speech(), name, 0.0, sample_rate=RATE) for name in EMOTIONS]
        assert all(np.array_equal(found[0], x) for x in found[1:])

    def test_intensity_beyond_the_trained_range_raises_or_warns(self, caplog):
        with pytest.raises(BrainDataError, match=r"intensities from 0 to 1, the largest trained sum, got 1\.5"):
            small().motion(speech(), "happy", 1.5, sample_rate=RATE)
        small().motion(speech(), "happy", 1.5, sample_rate=RATE, allow_extrapolation=True)
        assert "coefficients extrapolate" in caplog.text
        with pytest.raises(BrainDataError, match=r"got 1\.2"):
            small().motion(speech(), {"happy": 0.7, "sad": 0.5}, sample_rate=RATE)

    def test_a_source_of_clips_moves_the_face_as_its_name_says(self):
        model, clips = small(), small_clips()
        source = EmotionSource.from_clips(clips.of("train"), "happy")
        wanted = np.mean([clip.exp.mean(0) for clip in clips.of("train") if clip.emotion == "happy"], 0)
        found = model.motion(speech(), source, sample_rate=RATE)
        np.testing.assert_allclose(found.exp.mean(0), wanted, atol=0.05)  # a clip below 2 s hides the mean of its mouth


class TestPictures:
    def test_frames_follow_the_sound_and_the_seed(self):
        model, sound = small(), speech()
        options = {"emotion": "happy", "intensity": 0.8, "sample_rate": RATE}
        first = model.animate(picture(), sound, **options)
        assert first.video.shape == (16, 16, 16, 3) and first.video.dtype == np.uint8 and first.fps == 25
        assert np.array_equal(first.video, model.animate(picture(), sound, **options).video)
        assert not np.array_equal(first.video, model.animate(picture(), sound, **options, seed=1).video)
        assert not np.array_equal(first.video, model.animate(picture(), -sound[::-1], **options).video)
        told = first.provenance
        assert (told["emotion"]["emotion"], told["intensity"], told["seed"]) == ("happy", 0.8, 0)
        assert told["model"] == model.fingerprint and told["versions"]["torch"] == model.meta_["versions"]["torch"]

    @pytest.mark.parametrize(
        ("sound", "frames"),
        [
            (np.zeros(RATE // 10, np.float32), 3),
            (np.zeros(RATE, np.float32), 25),
            (0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32), 25),
            (np.zeros(1, np.float32), 1),
        ],
    )
    def test_short_silent_and_noisy_sound_is_legal(self, sound, frames):
        found = small().animate(picture(), sound, sample_rate=RATE)
        assert len(found.video) == frames == len(found.motion.exp) and np.isfinite(found.motion.exp).all()

    def test_another_rate_gives_the_same_motion(self):
        from scipy.signal import resample_poly

        sound = speech(1.0)
        other = resample_poly(sound.astype(np.float64), 3, 1).astype(np.float32)
        first, second = (
            small().motion(x, "happy", sample_rate=rate).exp for x, rate in ((sound, RATE), (other, 3 * RATE))
        )
        # both are low-passed once more or less near 8 kHz
        assert first.shape == second.shape and np.abs(first - second).max() < 0.1 * np.abs(first).max()

    def test_a_longer_recording_leaves_whole_chunks_before_its_end_as_they_are(self):
        whole = speech(1.28)
        exp, jaw = np.zeros((32, 12), np.float32), np.zeros((32, 3), np.float32)
        long = small().render(picture(), whole, exp, jaw, sample_rate=RATE).video
        short = small().render(picture(), whole[: RATE * 16 // 25], exp[:16], jaw[:16], sample_rate=RATE).video
        assert np.array_equal(long[:12], short[:12])  # the last chunk hears two frames more

    def test_the_mouth_in_the_coefficients_is_seen_only_when_asked_for(self):
        """A lip motion that `hide` removes changes nothing with lips="audio" and something with lips="expression"."""
        head, sound = small_clips().head, speech()
        exp, jaw = np.zeros((16, 12), np.float32), np.zeros((16, 3), np.float32)
        moved = jaw.copy()
        moved[:, 0] = 0.3 * np.sin(np.arange(16) * np.pi / 2)  # of mean 0
        assert head.n_jaw == 3
        for lips, same in (("audio", True), ("expression", False)):
            found = [small().render(picture(), sound, exp, x, sample_rate=RATE, lips=lips).video for x in (jaw, moved)]
            assert np.array_equal(*found) == same, lips

    def test_guidance_of_one_is_one_plain_evaluation_and_others_differ(self):
        exp, jaw = np.ones((16, 12), np.float32), np.zeros((16, 3), np.float32)
        plain, guided = (
            small().render(picture(), speech(), exp, jaw, sample_rate=RATE, audio_scale=x).video for x in (1.0, 4.0)
        )
        assert not np.array_equal(plain, guided)

    def test_a_preview_has_every_fifth_frame(self):
        found = small().animate(picture(), speech(), emotion="sad", sample_rate=RATE, preview=True)
        assert len(found.video) == len(found.motion.exp) == 4 and found.fps == 5
        np.testing.assert_allclose(found.motion.times, [0, 0.2, 0.4, 0.6])

    def test_predict_takes_the_clips_own_coefficients_and_sound(self):
        clip = small_clips().of("test")[0]
        (found,) = small().predict([clip]).values()
        wanted = small().render(clip.pictures()[0], clip.audio, clip.exp, clip.jaw, sample_rate=RATE)
        assert np.array_equal(found.video, wanted.video)

    def test_pictures_are_averaged_when_they_get_smaller(self):
        board = np.zeros((1, 16, 16, 3), np.uint8)
        board[:, ::2, ::2] = board[:, 1::2, 1::2] = 200
        assert np.abs(resized(board, 4).astype(int) - 100).max() <= 2
        with pytest.raises(AxisError, match="expected square pictures, got 8 x 16"):
            resized(board[:, :8], 4)

    def test_pixels_survive_the_space_of_the_diffusion(self):
        frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
        space = FrameSpace(SMALL)
        assert np.array_equal(space.decode(space.encode(torch.from_numpy(frames)[None])[0]), frames)


class TestFiles:
    def test_a_saved_model_gives_equal_frames_and_holds_no_head(self, tmp_path):
        model = small()
        folder = model.save(tmp_path / "model")
        again = load_model(folder, "cpu")
        assert again.fingerprint == model.fingerprint
        options = {"emotion": "fear", "sample_rate": RATE}
        assert np.array_equal(
            again.animate(picture(), speech(), **options).video, model.animate(picture(), speech(), **options).video
        )
        stored = [x for name in ("weights", "stats") for x in _tensors(folder / f"{name}.safetensors").values()]
        basis = model.head.exp_basis().numpy()
        assert not any(x.size == basis.size for x in stored)
        assert json.loads((folder / "meta.json").read_text())["head"]["fingerprint"] == model.head.fingerprint

    def test_another_head_or_none_is_refused(self, tmp_path):
        folder = small().save(tmp_path / "model")
        with pytest.raises(BrainDataError, match=r"expected the toy head with fingerprint \w{12} of the fit, got toy"):
            EmoDiffHead.load(folder, "cpu", head=ToyHead(mixing=None))
        meta = json.loads((folder / "meta.json").read_text())
        del meta["head"]["toy"]
        (folder / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(
            BrainDataError, match=r"expected head=, the toy head with fingerprint \w{12} of the fit, got no"
        ):
            load_model(folder, "cpu")
        assert load_model(folder, "cpu", head=ToyHead()).head.mixing == "orthogonal"

    def test_other_features_of_sound_are_refused(self, tmp_path):
        folder = small().save(tmp_path / "model")
        meta = json.loads((folder / "meta.json").read_text())
        meta["audio"]["fingerprint"] = "0" * 12
        (folder / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(BrainDataError, match="expected features of sound with fingerprint 000000000000"):
            load_model(folder, "cpu")

    def test_a_damaged_folder_is_refused(self, tmp_path):
        folder = small().save(tmp_path / "model")
        (folder / "stats.safetensors").write_bytes(b"")
        with pytest.raises(LayoutError):
            load_model(folder, "cpu")

    def test_a_trained_reader_of_portraits_is_part_of_the_model(self, tmp_path):
        from brainmodels.systems.emodiffhead.reader import portrait_model

        first = portrait_model("veca_nano_patch8").core_bank.tokens.detach().clone()
        recipe = replace(SMALL, portrait="train", render=replace(SMALL.render, steps=2))
        model = fitted(recipe)
        trained = model.denoiser.portrait_reader.model.core_bank.tokens.detach()
        assert (trained - first).abs().max() > 1e-5
        again = load_model(model.save(tmp_path / "model"), "cpu")
        assert torch.equal(again.denoiser.portrait_reader.model.core_bank.tokens, trained)
        assert np.array_equal(*(x.animate(picture(), speech(), sample_rate=RATE).video for x in (model, again)))


class TestRefused:
    @pytest.mark.parametrize(
        ("sound", "rate", "error", "match"),
        [
            (np.zeros(0, np.float32), RATE, AxisError, "expected mono samples"),
            (np.zeros((RATE, 2), np.float32), RATE, AxisError, "mix channels by their mean"),
            (np.full(RATE, np.nan, np.float32), RATE, BrainDataError, "expected finite samples"),
            (np.zeros(RATE, np.int16), RATE, BrainDataError, "divide 16-bit samples"),
            (np.zeros(RATE, np.float32), None, BrainDataError, "expected sample_rate= in hertz"),
            (np.zeros(RATE, np.float32), -1, BrainDataError, "positive sample rate"),
        ],
    )
    def test_bad_sound(self, sound, rate, error, match):
        with pytest.raises(error, match=match):
            small().animate(picture(), sound, sample_rate=rate)

    def test_bad_pictures_emotions_and_settings(self):
        model, sound = small(), speech()
        with pytest.raises(BrainDataError, match="crop="):
            model.animate(np.zeros((16, 20, 3), np.uint8), sound, sample_rate=RATE)
        cropped = model.animate(np.zeros((16, 20, 3), np.uint8), sound, sample_rate=RATE, crop=(2, 0, 18, 16))
        assert cropped.video.shape == (16, 16, 16, 3)
        with pytest.raises(BrainDataError, match="joyful"):
            model.animate(picture(), sound, emotion="joyful", sample_rate=RATE)
        with pytest.raises(BrainDataError, match="expected lips to be one of audio, expression"):
            model.animate(picture(), sound, sample_rate=RATE, lips="sound")
        with pytest.raises(AlignmentError, match="expected coefficients of 16 frames as the sound has, got 3"):
            model.render(picture(), sound, np.zeros((3, 12)), np.zeros((3, 3)), sample_rate=RATE)
        with pytest.raises(BrainDataError, match="expected a fitted EmoDiffHead"):
            EmoDiffHead(SMALL).animate(picture(), sound, sample_rate=RATE)

    def test_bad_clips_and_heads(self):
        clips = small_clips().of("train")
        slow = replace(clips[0], fps=12.5, audio=np.zeros(2 * len(clips[0].audio), np.float32))
        with pytest.raises(BrainDataError, match="expected clips of one frame rate and width of coefficients"):
            fitted(clips=[slow, *clips[1:]])
        other = TalkingClip("a", "b", "c", 25, np.zeros((16, 5)), np.zeros((16, 3)), np.zeros(RATE * 16 // 25), RATE)
        with pytest.raises(AxisError, match=r"expected coefficients \(12, 3\) of the head, got \(5, 3\)"):
            fitted(clips=[other], stages=("expression",))
        with pytest.raises(BrainDataError, match="expected a head model, such as"):
            EmoDiffHead(SMALL, head="toy")
        with pytest.raises(BrainDataError, match="head"):
            fitted(head=False)  # without a head nothing knows the mouth part that the recipe hides
        with pytest.raises(BrainDataError, match="expected a stage to be one of expression, render"):
            fitted(stages=("both",))

    def test_hidden_syllables_are_those_that_the_generator_makes_of_the_sound(self):
        model, clip = small(), small_clips().of("test")[0]
        told = copy.copy(model)
        told.config = replace(SMALL, syllables="generator")
        space, x = model.space_, model.space_.whiten(clip.exp, clip.jaw)
        sounds = [model._features(speech(seed=seed), RATE, len(x)) for seed in (5, 6)]
        seen = [told._seen(x, sound, "audio")[0] for sound in sounds]
        for own, sound in zip(seen, sounds, strict=True):
            spoken = trajectories(model.generator, sound, [0], 0)[0]
            np.testing.assert_allclose(own - space.mouth(own), x - space.mouth(x), atol=1e-5)  # all but the mouth stays
            moved = space.mouth(own) - space.mouth(own).mean(0)
            np.testing.assert_allclose(moved, space.mouth(spoken) - space.mouth(spoken).mean(0), atol=1e-5)
            np.testing.assert_allclose(space.mouth(own).mean(0), space.mouth(x).mean(0), atol=1e-5)
        assert not np.allclose(*seen, atol=1e-3)
        np.testing.assert_array_equal(told._seen(x, sounds[0], "expression")[0], x)

    def test_syllables_of_the_generator_need_a_trained_generator(self):
        with pytest.raises(BrainDataError, match=r"expected the stage expression before render with syllables='gen"):
            fitted(replace(SMALL, syllables="generator"), stages=("render", "expression"))
        model = fitted(replace(SMALL, syllables="generator"))
        clip = small_clips().of("test")[0]
        made = model.predict([clip])[clip.id].video
        plain = small().predict([clip])[clip.id].video
        assert made.shape == plain.shape and (made != plain).any()

    def test_syllables_far_from_the_end_do_not_depend_on_a_longer_recording(self):
        """A window of one second takes their slow part away, and the sound is read two frames ahead."""
        told = copy.copy(small())
        told.config = replace(SMALL, syllables="generator")
        sound, still = speech(3.2), np.zeros((80, 15), np.float32)
        heard = [told._features(sound[: RATE * frames // 25], RATE, frames) for frames in (80, 60)]
        long, short = (told._hidden(still[: len(x)], x) for x in heard)
        np.testing.assert_allclose(long[: 60 - 15], short[: 60 - 15], atol=1e-5)
        assert np.abs(long[:60] - short).max() > 1e-3

    def test_a_model_trained_without_the_mouth_cannot_show_it(self):
        model = fitted(replace(SMALL, hide="always"), stages=("render",))
        with pytest.raises(BrainDataError, match="expected lips='audio' with a model of hide='always'"):
            model.predict(small_clips().of("test")[:1], lips="expression")


class TestRecipes:
    def test_recipes_survive_json(self):
        for recipe in (tiny(), nano(), full(), SMALL):
            assert EmoDiffHeadRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        with pytest.raises(BrainDataError, match="near: hide"):
            EmoDiffHeadRecipe.from_json(tiny().to_json() | {"hid": "never"})

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"hide": "sometimes"}, "expected hide to be one of"),
            ({"size": 64}, "expected a denoiser of side 64"),
            ({"window": 1}, "a chunk and its motion frames, got 1"),
            ({"dropout": (0.5, 0.5, 0.1, 0.0)}, "a sum below 1"),
            ({"denoiser_size": {"attention": (7,)}}, r"attention at sides of \[32, 16, 8\], got \[7\]"),
            ({"prediction": "v_prediction"}, "expected prediction='sample' with a residual denoiser, got 'v_pred"),
            ({"denoiser_size": {"heads": 3}}, "widths divisible by 3 heads"),
            ({"denoiser_size": {"reference": "veca"}}, "expected a number of cores"),
            ({"denoiser_size": {"side": 30}}, "expected a side divisible by 4"),
            ({"denoiser_size": {"maps": -1}}, "motion >= 0 and maps >= 0, got 8, 2 and -1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, changes, match):
        with pytest.raises(BrainDataError, match=match):
            EmoDiffHeadRecipe.from_json(tiny().to_json() | changes)


def _tensors(path):
    from safetensors.numpy import load_file

    return load_file(path)
