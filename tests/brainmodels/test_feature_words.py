"""Words that name features: their parts, weights without a head or a text tower, and the best layer by region."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from brainmodels.errors import BrainDataError, LayoutError
from brainmodels.evaluation.encoding import Study
from brainmodels.evaluation.layers import BEST_LAYER, best_layers, check_layers
from brainmodels.features import extractor, timm_features
from brainmodels.features.sets import FeatureSet, LayerOf
from brainmodels.features.weights import HEADLESS, TOWER
from brainmodels.features.words import Word
from tests.brainmodels.made import made_dataset

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}
TIMM = "vit_tiny_patch16_224"


def pictures(size=32, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "text, name, options, weights",
    [
        ("veca@8", "veca", {"num_cores": 8}, ""),
        ("veca@8:layer=-2,tokens=cores=run/a", "veca", {"num_cores": 8, "layer": -2, "tokens": "cores"}, "run/a"),
        ("open_clip:ViT-L-14:layer=6,tag=openai=F", "open_clip:ViT-L-14", {"layer": 6, "tag": "openai"}, "F"),
        ("vit:pooled=none,norm=false=a=b,c:d=e", "vit", {"pooled": None, "norm": False}, "a=b,c:d=e"),
        ("vit:mean=0.5+0.25+1e-1", "vit", {"mean": (0.5, 0.25, 0.1)}, ""),
        ("torchvision:resnet50:layer=layer3=C:/w.pth", "torchvision:resnet50", {"layer": "layer3"}, "C:/w.pth"),
    ],
)
def test_a_word_has_parts(text, name, options, weights):
    word = Word.of(text)
    assert (word.name, word.options, word.weights) == (name, options, weights)
    assert text == word.shown + (f"={weights}" if weights else "")


@pytest.mark.parametrize(
    "text, message",
    [
        ("open_clip:ViT-L-14,layer=6=F", "NAME:OPTION=VALUE"),
        ("veca@many", "a number of cores"),
        (f"{TIMM}:lyer=6=random", r"expected options of vit_tiny.*layer.*got 'lyer'.*near: layer"),
        (f"{TIMM}:norm=maybe=random", "norm of vit_tiny.* to be true or false, got 'maybe'"),
        (f"{TIMM}:layer=12=random", "from -12 to 11, got 12"),
        (f"{TIMM}:layer=six=random", "got 'six'"),
        (f"{TIMM}@4=random", "VECA model before @"),
        ("pixels:layer=3", r"expected options of pixels \(size\)"),
        ("gabor=file", "gabor without weights"),
        ("veca:layer=1,layer=2", "layer twice"),
        ("veca:layers=2", "two or more different layers"),
        ("veca:layers=2+2", "two or more different layers"),
        ("veca:layers=2+3,select=test", "validation, folds, got 'test'"),
        ("veca:select=folds", "layers= with select="),
        ("veca:layers=2+3", "one layer, such as layer=2"),
        ("torchvision:resnet18:layer=layer9=random", "near: layer"),
        ("torchvision:resnet5=random", "near: resnet50"),
        ("torchvision:vit_b_16=random", "expected tag= .*IMAGENET1K_SWAG_E2E_V1"),
        ("open_clip:ViT-L-14:tag=nope=random", "expected a tag of ViT-L-14 .*laion2b_s32b_b82k.*got 'nope'"),
        ("open_clip:ViT-L-14:tag=openai=random", "use the name ViT-L-14-quickgelu"),
    ],
)
def test_a_wrong_word_says_what_is_accepted(text, message):
    with pytest.raises(BrainDataError, match=message):
        FeatureSet.parse(text)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_checkpoint_may_lack_its_whole_classifier_and_nothing_else(tmp_path, kind):
    torch.manual_seed(1)
    state = timm.create_model(TIMM, **SMALL).state_dict()

    def features(left_out, **options):
        kept = {name: value for name, value in state.items() if name not in left_out}
        file = tmp_path / f"{len(kept)}.{kind}"
        save_file(kept, file) if kind == "safetensors" else torch.save(kept, file)
        return timm_features(TIMM, weights=file, model_options=SMALL, layer=1, **options)

    whole, headless = features(()), features(("head.weight", "head.bias"))
    for one, other in zip(whole.encode(pictures()), headless.encode(pictures()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (whole.note, headless.note) == ("", HEADLESS)
    assert headless.fingerprint() == features(("head.weight", "head.bias"), seed=5).fingerprint()  # no random weight
    for left_out, named in (
        (("head.bias",), r"head\.bias"),
        (("head.weight", "head.bias", "norm.bias"), r"norm\.bias"),
    ):
        with pytest.raises(LayoutError, match=named):
            features(left_out)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Files of a small CLIP: all weights, its image tower with and without the prefix, and its text tower."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "ViT-words-8.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "ViT-words-8.json")
    torch.manual_seed(0)
    state = open_clip.create_model("ViT-words-8").state_dict()
    visual = {name: value for name, value in state.items() if name.startswith("visual.")}
    parts = {
        "whole": state,
        "prefixed": visual,
        "plain": {name.removeprefix("visual."): value for name, value in visual.items()},
        "text": {name: value for name, value in state.items() if name not in visual},
    }
    for name, part in parts.items():
        save_file(part, folder / f"{name}.safetensors")
    return folder


def test_an_image_tower_of_open_clip_may_come_alone(clip):
    def word(name):
        return f"open_clip:ViT-words-8:layer=1,mean=0.5+0.5+0.5,std=0.2+0.2+0.2={clip / name}.safetensors"

    found = {name: FeatureSet.parse(word(name)).extractor for name in ("whole", "prefixed", "plain")}
    assert {item.fingerprint() for item in found.values()} == {found["whole"].fingerprint()}
    assert [item.note for item in found.values()] == ["", TOWER, TOWER]
    assert FeatureSet.parse(word("plain")).name.startswith("open_clip:ViT-words-8:layer=1,")
    with pytest.raises(LayoutError, match=r"text\.safetensors does not fit"):
        FeatureSet.parse(word("text"))


def test_layers_of_torchvision_are_those_that_it_extracts_itself(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "all.pth")
    torch.save({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}, tmp_path / "headless.pth")
    item = extractor("torchvision:resnet18", weights=tmp_path / "all.pth", layer="layer3")
    images = pictures(224, 1)
    out = create_feature_extractor(model, ["layer3", "flatten"])(item._prepare(images))
    found = item.encode(images)
    torch.testing.assert_close(found.tokens, out["layer3"].flatten(2).mT)
    torch.testing.assert_close(found.pooled, out["flatten"])
    torch.testing.assert_close(item.at_layer(2).encode(images).tokens, found.tokens, rtol=0, atol=0)
    bare = extractor("torchvision:resnet18", weights=tmp_path / "headless.pth", layer="layer3")
    torch.testing.assert_close(bare.encode(images).pooled, found.pooled, rtol=0, atol=0)
    assert bare.note == HEADLESS


def test_layers_of_one_word_share_a_model_and_are_those_of_single_words():
    sets = FeatureSet.parse_all(["veca:layers=1+4,select=folds,pooled=none", "pixels"])
    assert [item.name for item in sets] == ["veca:layer=1,pooled=none", "veca:layer=4,pooled=none", "pixels"]
    assert sets[1].layer_of == LayerOf("veca:layers=1+4,select=folds,pooled=none", 4, "folds")
    assert sets[0].extractor.model is sets[1].extractor.model and sets[2].layer_of is None
    for item in sets[:2]:
        assert item.extractor.fingerprint() == FeatureSet.parse(item.name).extractor.fingerprint()


@pytest.fixture(scope="module")
def planted():
    """(data set, study, rows): V1 follows the features of layer 1, all other voxels those of layer 4."""
    dataset = made_dataset(num_images=150, repeats=2)
    subject, split = dataset.subject("subj01"), dataset.split("made")
    pairs = [dataset.pairs("subj01", split, part, "repeats") for part in ("train", "test")]
    study = Study.of(*pairs, None, 0.1, 20, 0, 2)
    rng = np.random.default_rng(0)
    rows, voxels, first = {}, len(study.voxels), subject.space.rois["V1"]
    measured = [np.zeros((len(part), voxels)) for part in pairs]
    for layer, mask in ((1, first), (4, ~first)):
        rows[f"veca:layer={layer}"] = tuple(rng.normal(size=(len(x), 6)).astype(np.float32) for x in measured)
        map_ = rng.normal(size=(6, mask.sum()))
        for out, X in zip(measured, rows[f"veca:layer={layer}"], strict=True):
            out[:, mask] = X @ map_ + rng.normal(size=(len(X), mask.sum()))
    train, test = (x.astype(np.float32) for x in measured)
    return dataset, replace(study, measured_train=train, measured=test), rows


def test_the_best_layer_of_each_region_is_found_without_test_images(planted, tmp_path):
    dataset, study, rows = planted
    sets = FeatureSet.parse_all(["veca:layers=1+4,select=folds"])
    (best,) = best_layers(sets, study, dataset, rows, tmp_path)
    assert {name: choice.layer for name, choice in best.regions.items()} == {"V1": 1, "outside of all regions": 4}
    assert best.encoded.model == BEST_LAYER and best.images == len(study.train)
    assert np.nanmin(best.encoded.r) > 0.5  # each voxel has its own layer
    noise = replace(study, measured=np.random.default_rng(1).normal(size=study.measured.shape).astype(np.float32))
    (again,) = best_layers(sets, noise, dataset, rows, tmp_path)
    assert again.regions == best.regions
    assert json.dumps(best.to_json()) and best.to_json()["regions"]["V1"]["voxels"] == 3


def test_the_best_layer_is_chosen_on_validation_images_where_there_are_enough(planted, tmp_path):
    dataset, study, rows = planted
    sets = FeatureSet.parse_all(["veca:layers=1+4"])
    with pytest.raises(BrainDataError, match=r"expected 10 validation images or more .*got 1; pass select=folds"):
        check_layers(sets, dataset, study)
    split = study.test.split
    val = frozenset(sorted(split.train)[:12])
    held = replace(split, train=split.train - val, val=split.val | val)
    other = dataset.with_splits(held)
    pairs = [other.pairs("subj01", held, part, "repeats") for part in ("train", "test")]
    study = Study.of(*pairs, None, 0.1, 20, 0, 2)
    rng = np.random.default_rng(2)
    rows = {name: tuple(rng.normal(size=(len(x), 3072 + 192)).astype(np.float32) for x in pairs) for name in rows}
    (best,) = best_layers(sets, study, other, rows, tmp_path)
    assert best.images == 13 and best.select == "validation"
    seen = {path.name for path in (tmp_path).iterdir()}
    assert seen == {item.extractor.fingerprint() for item in sets}
