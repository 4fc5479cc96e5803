"""Log-mel bands against their definition, speech models from tiny random folders, and the clock that both share."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from brainmodels.data.clips import frame_count
from brainmodels.data.sound import to_rate
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, LayoutError
from brainmodels.features.audio import AudioModel, AudioScale, LogMel, align_to_frames, audio_features

RATE = 16000
FPS = (24, 25, 29.97, 30)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",  # as in large models: no statistics over time, which would spread a click
    "do_stable_layer_norm": True,
}
KINDS = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}
LOST = "encoder.layers.1.attention.k_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random models as their users have them: a folder with weights and a preprocessor file."""
    root = tmp_path_factory.mktemp("speech")
    torch.manual_seed(0)
    for name, (config, model) in KINDS.items():
        model(config(**SMALL)).save_pretrained(root / name)
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(root / name)
    whisper = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_source_positions=100,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    WhisperModel(whisper).save_pretrained(root / "whisper")
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(root / "whisper")
    return root


@pytest.fixture(scope="module")
def models(folders):
    return {kind: AudioModel(folders / kind) for kind in (*KINDS, "whisper")} | {"log_mel": LogMel()}


def changed(folder: Path, target: Path, change) -> Path:
    """A copy of a folder, with other weights."""
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return target


def noise(seconds, seed=0, rate=RATE, level=0.1):
    return np.random.default_rng(seed).normal(0, level, round(seconds * rate)).astype(np.float32)


def loudest(extract, times, fps, frames, rate=RATE):
    """Frame in which the features of a click differ most from those without it, for each time."""
    quiet = noise(frames / fps, level=1e-3, rate=rate)
    base, found = extract(quiet, rate, fps, frames), []
    for time in times:
        click = quiet.copy()
        click[round(time * rate)] = 0.9
        found.append(int(np.abs(extract(click, rate, fps, frames) - base).sum((1, 2)).argmax()))
    return found


# the clock


def test_align_interpolates_at_the_middles_of_subframes():
    times = np.cumsum(np.random.default_rng(0).random(40) + 0.1) / 20
    line = np.stack((3 * times - 1, -2 * times), 1)
    found = align_to_frames(line, times, 10, 20, 4)
    at = (np.arange(20)[:, None] + (np.arange(4) + 0.5) / 4) / 10
    expected = np.stack([np.interp(at, times, column) for column in line.T], -1)
    assert found.shape == (20, 4, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    inside = (at > times[0]) & (at < times[-1])
    np.testing.assert_allclose(found[inside][:, 0], 3 * at[inside] - 1, atol=1e-6)
    assert (found[at < times[0]] == line[0].astype(np.float32)).all() and (at < times[0]).any()
    assert (found[at > times[-1]] == line[-1].astype(np.float32)).all() and (at > times[-1]).any()


def test_align_holds_a_single_feature():
    assert (align_to_frames(np.full((1, 3), 2.0), np.array([0.1]), 25, 4, 2) == 2).all()


@pytest.mark.parametrize(
    ("features", "times", "error"),
    [
        (np.ones((3, 2)), np.arange(2.0), AxisError),
        (np.ones(3), np.arange(3.0), AxisError),
        (np.ones((0, 2)), np.zeros(0), AxisError),
        (np.ones((3, 2)), np.array([0.0, 2.0, 1.0]), BrainDataError),
    ],
)
def test_align_refuses(features, times, error):
    with pytest.raises(error, match="expected"):
        align_to_frames(features, times, 25, 4, 2)


@pytest.mark.parametrize("fps", FPS)
@pytest.mark.parametrize("seconds", [0.1, 0.2, 1, 2, 4, 10])
def test_one_feature_row_a_frame(fps, seconds):
    frames = frame_count(round(seconds * RATE), RATE, fps)
    assert abs(frames - seconds * fps) <= 0.5
    found = LogMel()(noise(seconds), RATE, fps, frames)
    assert found.shape == (frames, 4, 80) and found.dtype == np.float32 and np.isfinite(found).all()
    with pytest.raises(AlignmentError, match=f"for {frames + 2} frames at {fps:g} fps"):
        LogMel()(noise(seconds), RATE, fps, frames + 2)


def test_no_drift_in_ten_minutes(monkeypatch):
    audio = np.zeros(600 * RATE, np.float32)
    clicks = np.arange(5, 600, 7.3)
    audio[np.round(clicks * RATE).astype(int)] = 0.9
    extract = LogMel()
    spectra = extract.spectra(audio)
    monkeypatch.setattr(extract, "spectra", lambda sound: spectra)  # once for all rates
    for fps in FPS:
        found = extract(audio, RATE, fps, frame_count(len(audio), RATE, fps)).sum(-1).ravel()
        subframe = 1 / (4 * fps)
        for click in clicks:
            near = np.arange(int((click - 0.2) / subframe), int((click + 0.2) / subframe))
            peak = (near[found[near].argmax()] + 0.5) * subframe
            assert abs(peak - click) < 0.005 + subframe  # half a step of the spectra, and one sub-frame


@pytest.mark.parametrize("fps", FPS)
@pytest.mark.parametrize("kind", ["log_mel", "wav2vec2"])
def test_click_peaks_in_its_frame(kind, fps, models):
    hit = np.array([3, 17, 18, 40])
    assert loudest(models[kind], (hit + 0.5) / fps, fps, frame_count(2 * RATE, RATE, fps)) == hit.tolist()


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "whisper"])
def test_click_peaks_in_its_frame_through_other_models(kind, models):
    hit = [10, 44, 60, 110]  # Whisper reads pieces of 2 s, which are 50 frames
    assert loudest(models[kind], (np.array(hit) + 0.5) / 25, 25, 125) == hit


def test_click_at_another_sample_rate(models):
    assert loudest(models["log_mel"], [3.5 / 25, 17.5 / 25], 25, 25, rate=44100) == [3, 17]


@pytest.mark.parametrize("kind", ["log_mel", *KINDS])
def test_sound_one_frame_later_gives_features_one_frame_later(kind, models):
    first, later = np.zeros((2, 40 * 640), np.float32)
    first[6400:12800] = noise(0.4)
    later[6400 + 640 : 12800 + 640] = noise(0.4)
    found, moved = (models[kind](audio, RATE, 25, 40) for audio in (first, later))
    np.testing.assert_allclose(moved[6:30], found[5:29], atol=1e-3)
    assert np.abs(moved[6:30] - found[6:30]).max() > 1


# log-mel


def test_log_mel_is_its_definition():
    audio = noise(0.9, seed=3)  # 88 spectra, more than one block
    spectra = LogMel().spectra(audio)
    assert spectra.shape == (1 + (len(audio) - 400) // 160, 80)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82)
    corners = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(257) * RATE / 512
    rising = (bins[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - bins[:, None]) / np.diff(corners)[1:]
    filters = np.maximum(0, np.minimum(rising, falling))  # (257, 80)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    for row in (0, 63, 64, 87):
        magnitude = np.abs(waves @ (window * audio[row * 160 : row * 160 + 400].astype(np.float64)))
        np.testing.assert_allclose(spectra[row], np.log(np.maximum(magnitude @ filters, 1e-5)), atol=2e-5)


def test_longer_sound_leaves_earlier_features_bit_equal():
    audio, extract = noise(4), LogMel()
    whole = extract(audio, RATE, 25, 100)
    for frames in (1, 13, 40, 41, 99):
        part = extract(audio[: frames * 640], RATE, 25, frames)
        assert (part[:-1] == whole[: frames - 1]).all()


def test_silence_and_very_short_sound():
    extract = LogMel()
    np.testing.assert_allclose(extract(np.zeros(1600), RATE, 25, 3), np.log(1e-5), rtol=1e-6)
    short = noise(0.01)
    filled = np.pad(short, (0, 400 - len(short)))
    assert (extract(short, RATE, 25, 1) == extract(filled, RATE, 25, 1)).all()


def test_other_rates_are_resampled():
    audio = noise(1, rate=44100)
    found = LogMel()(audio, 44100, 25, 25)
    assert (found == LogMel()(to_rate(audio, 44100, RATE), RATE, 25, 25)).all()
    assert np.abs(found - LogMel()(audio[:RATE], RATE, 25, 25)).max() > 0.1


@pytest.mark.parametrize(
    ("audio", "rate", "error", "match"),
    [
        (np.zeros((RATE, 2)), RATE, AxisError, "mix channels"),
        (np.zeros(0), RATE, AxisError, "expected"),
        (np.where(np.arange(RATE) == 5, np.nan, 0), RATE, BrainDataError, "1 that are not"),
        (np.zeros(RATE, np.int16), RATE, BrainDataError, "int16"),
        (np.zeros(RATE), 16000.5, BrainDataError, "integer"),
        (np.zeros(RATE), 0, BrainDataError, "positive"),
    ],
)
@pytest.mark.parametrize("kind", ["log_mel", "wav2vec2"])
def test_refused_sound(audio, rate, error, match, kind, models):
    with pytest.raises(error, match=match):
        models[kind](audio, rate, 25, 25)


# speech models


@pytest.mark.parametrize("kind", KINDS)
def test_old_names_of_weights_give_equal_features(kind, folders, models, tmp_path):
    def old(weights):
        names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        renamed = {}
        for name, weight in weights.items():
            for new, other in names.items():
                name = name.replace(new, other)
            renamed[name] = weight
        assert sum("weight_g" in name or "weight_v" in name for name in renamed) == 2
        return renamed

    new, aged = models[kind], AudioModel(changed(folders / kind, tmp_path / "old", old))
    audio = noise(1)
    found = new(audio, RATE, 25, 25)
    assert (aged(audio, RATE, 25, 25) == found).all() and aged.fingerprint == new.fingerprint
    assert found.shape == (25, 2, 32) and (new.width, new.subframes) == (32, 2)


def test_features_are_the_hidden_states_of_the_model(folders):
    audio = noise(1)
    model = KINDS["hubert"][1].from_pretrained(folders / "hubert").eval()
    with torch.inference_mode():
        out = model(torch.from_numpy(audio)[None], output_hidden_states=True)
    times = (200 + 320 * np.arange(49)) / RATE
    for layer, states in ((None, out.last_hidden_state), (0, out.hidden_states[0]), (-2, out.hidden_states[1])):
        expected = align_to_frames(states[0].numpy(), times, 25, 25, 2)
        np.testing.assert_allclose(AudioModel(folders / "hubert", layer)(audio, RATE, 25, 25), expected, atol=1e-6)
    with pytest.raises(BrainDataError, match="from 0 to 2, got 3"):
        AudioModel(folders / "hubert", 3)


def test_normalisation_is_that_of_the_preprocessor_file(folders, models, tmp_path):
    folder = shutil.copytree(folders / "wav2vec2", tmp_path / "normalised")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    plain, normalised = models["wav2vec2"], AudioModel(folder)
    audio = np.clip(noise(1), -0.3, 0.3) + 0.2
    scaled = (audio - audio.mean()) / audio.std()
    assert np.abs(scaled).max() < 4
    np.testing.assert_allclose(normalised(audio, RATE, 25, 25), plain(scaled, RATE, 25, 25), atol=1e-3)
    assert normalised.fingerprint != plain.fingerprint


def test_short_sound_and_silence_through_a_model(models):
    for kind in (*KINDS, "whisper"):
        assert np.isfinite(models[kind](np.zeros(RATE // 10), RATE, 25, 3)).all()
        assert models[kind](noise(0.01), RATE, 25, 1).shape == (1, 2, 32)


def test_missing_and_changed_weights_are_refused(folders, tmp_path):
    lost = changed(folders / "wav2vec2", tmp_path / "lost", lambda x: {k: v for k, v in x.items() if k != LOST})
    with pytest.raises(LayoutError, match=rf"got no {LOST} \(1 in all\)"):
        AudioModel(lost)
    other = changed(folders / "wav2vec2", tmp_path / "other", lambda x: {**x, LOST: torch.zeros(8, 32)})
    with pytest.raises(LayoutError, match=f"other shapes of {LOST}"):
        AudioModel(other)


def test_what_training_alone_reads_may_be_missing(folders, models, tmp_path):
    assert "masked_spec_embed" in load_file(folders / "wav2vec2" / "model.safetensors")
    folder = changed(
        folders / "wav2vec2", tmp_path / "x", lambda x: {k: v for k, v in x.items() if k != "masked_spec_embed"}
    )
    whole, bare = models["wav2vec2"], AudioModel(folder)
    assert bare.fingerprint == whole.fingerprint == AudioModel(folder).fingerprint
    audio = noise(0.4)
    assert (bare(audio, RATE, 25, 10) == whole(audio, RATE, 25, 10)).all()


def test_an_adapter_that_changes_the_rate_is_refused(tmp_path):
    Wav2Vec2Model(Wav2Vec2Config(**SMALL, add_adapter=True, num_adapter_layers=1)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    with pytest.raises(BrainDataError, match=r"expected 49 states from .* without an adapter, got 25; choose a layer"):
        AudioModel(tmp_path)(noise(1), RATE, 25, 25)
    assert AudioModel(tmp_path, layer=2)(noise(1), RATE, 25, 25).shape == (25, 2, 32)


def test_the_head_of_a_recogniser_is_left_out(folders, models, tmp_path):
    recogniser = HubertForCTC(HubertConfig(**SMALL, vocab_size=8))
    recogniser.hubert.load_state_dict(load_file(folders / "hubert" / "model.safetensors"))
    recogniser.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    audio = noise(0.4)
    found = AudioModel(tmp_path)(audio, RATE, 25, 10)
    assert (found == models["hubert"](audio, RATE, 25, 10)).all()


def test_fingerprints_change_with_what_changes_features(folders, models, tmp_path):
    other = changed(folders / "wav2vec2", tmp_path / "other", lambda x: {**x, LOST: x[LOST] + 1e-3})
    copied = shutil.copytree(folders / "wav2vec2", tmp_path / "elsewhere")
    found = [model.fingerprint for model in models.values()]
    found += [AudioModel(other).fingerprint, AudioModel(copied, 1).fingerprint]
    assert len(set(found)) == len(found) == 7 and all(len(x) == 12 and int(x, 16) >= 0 for x in found)
    assert AudioModel(copied).fingerprint == models["wav2vec2"].fingerprint


def test_folders_that_hold_no_speech_model(folders, tmp_path):
    with pytest.raises(LayoutError, match="which is no folder"):
        audio_features("facebook/wav2vec2-base")
    bare = shutil.copytree(folders / "hubert", tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(LayoutError, match="and its preprocessor in"):
        AudioModel(bare)
    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    BertModel(small).save_pretrained(tmp_path / "bert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "bert")
    with pytest.raises(BrainDataError, match="got bert"):
        AudioModel(tmp_path / "bert")


def test_words():
    assert isinstance(audio_features("log_mel"), LogMel)


# scale


def test_scale_has_the_moments_of_all_clips():
    rng = np.random.default_rng(0)
    clips = [rng.normal([1, -40, 5], [2, 0.1, 0], size=(frames, 4, 3)).astype(np.float32) for frames in (5, 31, 12)]
    scale = AudioScale.fit(clips)
    every = np.concatenate(clips).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(scale.mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale.std, [*every.std(0)[:2], 1], rtol=1e-5)
    scaled = np.concatenate([scale.apply(clip) for clip in clips]).reshape(-1, 3)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=1e-4)
    assert scaled.dtype == np.float32
    again = AudioScale.from_state(scale.state())
    assert (again.apply(clips[0]) == scale.apply(clips[0])).all()


def test_scale_refuses():
    with pytest.raises(BrainDataError, match="got none"):
        AudioScale.fit([])
    with pytest.raises(AxisError, match="one width"):
        AudioScale.fit([np.zeros((3, 4, 2)), np.zeros((3, 4, 5))])
    with pytest.raises(BrainDataError, match="finite"):
        AudioScale.fit([np.full((3, 4, 2), np.nan)])
    with pytest.raises(AxisError, match="width 2"):
        AudioScale.fit([np.ones((3, 4, 2))]).apply(np.zeros((3, 4, 5)))
