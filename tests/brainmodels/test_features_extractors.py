"""Extractors: fingerprints, and networks against the models themselves."""

import hashlib
import json
import logging
import os

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from brainmodels.errors import AxisError, BrainDataError, LayoutError, NormalizationError, UnsafePickleError
from brainmodels.features import VECAFeatures, base, extractor
from tests.models import small_veca, tiny_veca
from tests.processes import start
from veca.model.features import pool

TIMM = "vit_tiny_patch16_224"
SMALL_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


def pictures(size, batch=2, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small_model(**options):
    return small_veca(torch.float32, img_size=16, trained_budgets=[3, 4, 5, 8], **options)


def small(**options):
    return VECAFeatures(small_model(), **options)


def normalised(images, model):
    return (images - torch.tensor(model.mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]


# fingerprints


def variants():
    """Extractors that differ from the first in one field each."""
    nudged = small_model()
    with torch.no_grad():
        nudged.blocks[0].attn.qkv.weight[0, 0] += 1e-6
    other_std = small_model(std=(0.2, 0.2, 0.2))
    other_base = small_model(rope_base=101.0)
    plain = {"layer": 1}
    yield "plain", small(**plain)
    yield "weights", VECAFeatures(nudged, **plain)
    yield "random", small(random_seed=0, **plain)
    yield "random seed", small(random_seed=1, **plain)
    yield "std", VECAFeatures(other_std, **plain)
    yield "model", VECAFeatures(other_base, **plain)
    changes = {
        "layer": 0,
        "num_cores": 4,
        "tokens": "cores",
        "pooled": "patch_mean",
        "norm": False,
        "size": 32,
        "dtype": "bfloat16",
        "value_map": "mindeye2",
        "name": "other",
    }
    for name, value in changes.items():
        yield name, small(**(plain | {name: value}))


def test_fingerprint_changes_with_each_field(monkeypatch):
    prints = {name: item.fingerprint() for name, item in variants()}
    with monkeypatch.context() as patch:
        patch.setattr(base, "release", lambda name: "0.0")
        prints["versions"] = small(layer=1).fingerprint()
    assert len(set(prints.values())) == len(prints), prints
    assert prints["plain"] == small(layer=1).fingerprint()
    assert all(len(value) == 12 and set(value) <= set("0123456789abcdef") for value in prints.values())


def test_fingerprint_is_the_hash_of_canonical_json():
    item = extractor("gabor", scales=2)
    config = item.config()
    assert config == json.dumps(json.loads(config), sort_keys=True, separators=(",", ":"))
    assert item.fingerprint() == hashlib.sha256(config.encode()).hexdigest()[:12]


def test_layers_from_both_ends_have_one_fingerprint():
    assert small(layer=-1).fingerprint() == small(layer=2).fingerprint()


def print_fingerprints(folder):
    """Of three extractors; and a hash of Python, which differs between processes."""
    items = extractor("veca", weights=folder), extractor("gabor"), extractor("random_conv", seed=3)
    print(hash("veca"), *[item.fingerprint() for item in items], flush=True)


def test_fingerprint_is_equal_across_processes(tmp_path, capsys):
    tiny_veca(img_size=32).save_pretrained(tmp_path / "model")
    process = start(print_fingerprints, tmp_path / "model", log=tmp_path / "log")
    process.join()
    assert process.exitcode == 0
    print_fingerprints(tmp_path / "model")
    here, there = capsys.readouterr().out.split(), (tmp_path / "log").read_text().split()
    assert here[1:] == there[1:] and (here[0] != there[0] or "PYTHONHASHSEED" in os.environ)


# input


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (pictures(16) * 2 - 1, NormalizationError, r"expected images in \[0, 1\]"),
        (pictures(16) * 255, NormalizationError, "255|254"),
        (torch.full((1, 3, 16, 16), float("nan")), NormalizationError, "nan"),
        (pictures(16)[0], AxisError, r"\(3, 16, 16\)"),
        (pictures(16).permute(0, 2, 3, 1), AxisError, r"\(2, 16, 16, 3\)"),
        ((pictures(16) * 255).byte(), AxisError, "uint8"),
    ],
)
def test_wrong_images_are_refused(images, error, text):
    with pytest.raises(error, match=text):
        extractor("pixels").encode(images)


def test_names_nobody_knows_list_the_nearest():
    with pytest.raises(BrainDataError, match="got 'gabr'; near: gabor"):
        extractor("gabr")
    with pytest.raises(BrainDataError, match="near: ViT-B-32"):
        extractor("open_clip:ViT-B-23", weights="random")
    with pytest.raises(TypeError, match="scale"):
        extractor("gabor", scale=3)


# VECA


@pytest.mark.parametrize("num_cores", [None, 3])
def test_veca_features_are_the_models_own(num_cores):
    images = pictures(16)
    model = small_model()
    truth = model.forward_features(normalised(images, model), num_cores)
    for tokens, expected in (
        ("patches", truth.patches),
        ("cores", truth.cores),
        ("cores+patches", torch.cat((truth.cores, truth.patches), 1)),
    ):
        out = small(num_cores=num_cores, tokens=tokens).encode(images)
        torch.testing.assert_close(out.tokens, expected)
        torch.testing.assert_close(out.pooled, truth.global_token)
    out = small(num_cores=num_cores, tokens=None, pooled="patch_mean").encode(images)
    assert out.tokens is None
    torch.testing.assert_close(out.pooled, truth.patches.mean(1))


@pytest.mark.parametrize("norm", [False, True])
def test_veca_features_of_a_layer(norm):
    images = pictures(16)
    model = small_model()
    ((patches, cores),) = model.forward_intermediates(
        normalised(images, model),
        [1],
        return_prefix_tokens=True,
        norm=norm,
        output_fmt="NLC",
        intermediates_only=True,
        num_cores=5,
    )
    out = small(num_cores=5, layer=-2, tokens="cores", pooled="core0+patch_mean", norm=norm).encode(images)
    torch.testing.assert_close(out.tokens, cores)
    torch.testing.assert_close(out.pooled, pool(cores, patches, "core0+patch_mean"))


def test_half_precision_is_given_as_single():
    images = pictures(16)
    half, full = small(dtype="bfloat16").encode(images).pooled, small().encode(images).pooled
    assert half.dtype == torch.float32
    assert 1e-5 < (half - full).norm() / full.norm() < 0.1


def test_a_stray_layer_is_refused():
    with pytest.raises(BrainDataError, match="from -3 to 2, got 3"):
        small(layer=3)


def test_extractors_stay_frozen_and_in_evaluation_mode():
    item = small()
    torch.nn.Sequential(item).train()
    assert not item.model.training
    assert not any(p.requires_grad for p in item.parameters())


def test_mindeye2_maps_values_before_the_normalisation():
    images = pictures(16)
    plain, mapped = small(), small(value_map="mindeye2")
    torch.testing.assert_close(mapped.encode(images).pooled, plain.encode((images + 1) / 2).pooled)


def test_a_folder_gives_the_model_that_was_saved(tmp_path):
    model = tiny_veca(img_size=32)
    model.save_pretrained(tmp_path)
    images = pictures(32)
    item = extractor("veca", weights=tmp_path)
    truth = model.eval().forward_features(normalised(images, model)).global_token
    torch.testing.assert_close(item.encode(images).pooled, truth.detach())
    assert item.note == ""
    with pytest.raises(LayoutError, match="embed_dim=192"):
        extractor("veca_nano_patch16", weights=tmp_path)


def test_strict_loading_fails_on_a_missing_key(tmp_path):
    model = tiny_veca()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["blocks.1.attn.qkv.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(LayoutError, match=r"missing in the file: blocks\.1\.attn\.qkv\.weight"):
        extractor("veca", weights=tmp_path)


def test_weights_are_never_silently_random(tmp_path):
    for name in ("veca_nano_patch16", TIMM, "open_clip:ViT-B-32"):
        with pytest.raises(BrainDataError, match="got none"):
            extractor(name)
        with pytest.raises(BrainDataError, match="got ''"):
            extractor(name, weights="")
        with pytest.raises(LayoutError, match="no such file"):
            extractor(name, weights=tmp_path / "absent.safetensors")
    with pytest.raises(BrainDataError, match="got both"):
        extractor("veca_nano_patch16", weights="random", pretrained=True)


def test_random_weights_are_labelled_and_seeded(caplog):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    images = pictures(224, batch=1)
    options = {"weights": "random", "model_options": {"num_cores": 8}}
    with caplog.at_level(logging.WARNING):
        items = [extractor("veca_nano_patch16", seed=seed, **options) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert "random weights (seed 1): not comparable" in items[0].note
    assert "not comparable" in caplog.text
    assert json.loads(items[2].config())["settings"]["weights"] == "random:2"
    first, again, other = (item.encode(images).pooled for item in items)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# timm and open_clip


def small_timm(**options):
    return extractor(TIMM, weights="random", seed=2, model_options=SMALL_VIT, **options)


def test_timm_features_are_the_models_own():
    images = pictures(32)
    item = small_timm(tokens="prefix+patches")
    model = item.model
    x = (images - 0.5) / 0.5  # of this model's data config
    out = item.encode(images)
    with torch.no_grad():
        last = model.forward_features(x)
        torch.testing.assert_close(out.tokens, last)
        torch.testing.assert_close(out.pooled, last[:, 0])
        first = model.blocks[0](model._pos_embed(model.patch_embed(x)))
    out = small_timm(layer=0, pooled="mean", norm=False).encode(images)
    torch.testing.assert_close(out.tokens, first[:, 1:])
    torch.testing.assert_close(out.pooled, first[:, 1:].mean(1))
    out = small_timm(layer=-2, pooled="cls", tokens=None).encode(images)
    torch.testing.assert_close(out.pooled, model.norm(first)[:, 0].detach())


def test_a_convolutional_network_gives_its_map_as_tokens():
    images = pictures(64, batch=1)
    item = extractor("resnet10t", weights="random", size=64)
    with torch.no_grad():
        last = item.model.forward_features((images - item.mean) / item.std)  # (1, 512, 2, 2)
    out = item.encode(images)
    torch.testing.assert_close(out.tokens[0, 1], last[0, :, 0, 1])
    torch.testing.assert_close(out.pooled, last.mean((2, 3)))
    with pytest.raises(BrainDataError, match="has none"):
        extractor("resnet10t", weights="random", size=64, tokens="prefix+patches").encode(images)


def test_timm_weights_load_strictly_from_either_kind_of_file(tmp_path):
    torch.manual_seed(5)
    model = timm.create_model(TIMM, **SMALL_VIT).eval()
    state = model.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    torch.save(model, tmp_path / "code.pth")
    state.pop("norm.bias")
    save_file(state, tmp_path / "short.safetensors")
    torch.save(state, tmp_path / "short.pth")
    first, second = (extractor(TIMM, weights=tmp_path / x, model_options=SMALL_VIT) for x in ("a.safetensors", "b.pth"))
    images = pictures(32)
    truth = model.forward_features((images - 0.5) / 0.5)[:, 0].detach()
    torch.testing.assert_close(first.encode(images).pooled, truth)
    assert first.fingerprint() == second.fingerprint()
    for name in ("short.safetensors", "short.pth"):
        with pytest.raises(LayoutError, match=r"norm\.bias"):
            extractor(TIMM, weights=tmp_path / name, model_options=SMALL_VIT)
    with pytest.raises(UnsafePickleError, match="only tensors"):
        extractor(TIMM, weights=tmp_path / "code.pth", model_options=SMALL_VIT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of two small towers, known to open_clip by its name, and a file of its weights."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (folder / "ViT-test-8.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "ViT-test-8.json")
    torch.manual_seed(3)
    model = open_clip.create_model("ViT-test-8").eval()
    torch.nn.init.normal_(model.visual.ln_post.weight)
    save_file(model.state_dict(), folder / "clip.safetensors")
    return model, folder / "clip.safetensors"


def test_open_clip_features_are_the_models_own(clip, caplog):
    model, file = clip
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    options = {"weights": file, "mean": mean, "std": std, "tokens": "prefix+patches"}
    item = extractor("open_clip:ViT-test-8", **options)
    assert "initialized randomly" not in caplog.text
    images = pictures(32)
    out = item.encode(images)
    x = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(out.pooled, model.encode_image(x).detach())
    before = extractor("open_clip:ViT-test-8", norm=False, **options).encode(images).tokens
    torch.testing.assert_close(out.tokens, model.visual.ln_post(before).detach())
    cls = extractor("open_clip:ViT-test-8", pooled="cls", **options).encode(images).pooled
    torch.testing.assert_close(cls @ model.visual.proj.detach(), out.pooled)


def test_open_clip_asks_for_the_normalisation_it_cannot_know(clip, tmp_path):
    _, file = clip
    with pytest.raises(BrainDataError, match="mean= and std="):
        extractor("open_clip:ViT-test-8", weights=file)
    with pytest.raises(BrainDataError, match="2 kinds of normalisation"):  # laion2b_s32b_b82k was trained with 0.5
        extractor("open_clip:ViT-L-14", weights="random")
    with pytest.raises(BrainDataError, match="name ViT-B-32-quickgelu"):
        extractor("open_clip:ViT-B-32", weights="random", tag="openai")
    state = load_file(file)
    del state["visual.ln_post.bias"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(LayoutError, match=r"visual\.ln_post\.bias"):
        extractor("open_clip:ViT-test-8", weights=tmp_path / "short.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)
