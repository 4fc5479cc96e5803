"""Networks of the slots: random weights go through a file, features are those of the layers that tables mean."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from brainmodels.errors import BrainDataError, LayoutError
from brainmodels.metrics import slots
from brainmodels.metrics.image import image_scores
from brainmodels.metrics.slots import open_slot, open_text_slot
from brainmodels.metrics.text import caption_scores
from veca.data import render_scenes

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def write(model, path):
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP of open_clip with two narrow blocks in each tower, as the architecture of the slot, and its weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    tower = {"width": 32, "layers": 1}
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": tower | {"image_size": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": tower | {"context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    (folder / "ViT-L-14-tiny-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    return model, write(model, folder / "clip.safetensors")


@pytest.mark.slow
def test_alexnet_layers(tmp_path):
    """The second and fifth convolution, after their ReLU, of images that the slot normalises."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    model = alexnet().eval()
    network = open_slot("alexnet", write(model, tmp_path / "alexnet.safetensors"))
    images = torch.rand(2, 3, 64, 64)
    found = network.features(images)
    x = (images - MEAN) / STD
    with torch.no_grad():
        for layer in ("features.4", "features.11"):
            expected = model.features[: int(layer.split(".")[1]) + 1](x)
            assert expected.min() == 0  # after a ReLU
            torch.testing.assert_close(found[layer], expected)
    convolutions = [i for i, module in enumerate(model.features) if isinstance(module, nn.Conv2d)]
    assert (convolutions[1] + 1, convolutions[4] + 1) == (4, 11)
    assert network.own and len(network.fingerprint) == 12


def test_weights_change_the_fingerprint_and_not_the_random_numbers(tmp_path):
    from torchvision.models import efficientnet_b1

    torch.manual_seed(1)
    model = efficientnet_b1().eval()
    path = write(model, tmp_path / "b1.safetensors")
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    first = open_slot("efficientnet_b1", path)
    assert torch.rand(1) == expected
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pooled = model.features((images - MEAN) / STD).mean((2, 3))
    torch.testing.assert_close(first.features(images)["avgpool"].flatten(1), pooled, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.classifier[1].bias += 1
    second = open_slot("efficientnet_b1", write(model, tmp_path / "other.safetensors"))
    assert first.fingerprint != second.fingerprint
    state = model.state_dict()
    del state["classifier.1.bias"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(LayoutError, match=r"classifier\.1\.bias"):
        open_slot("efficientnet_b1", tmp_path / "less.safetensors")


@pytest.mark.slow
def test_inception_transforms_its_input(tmp_path):
    """Published weights expect [-1, 1]: (x - 0.5) / 0.5 of the picture, whatever was normalised before."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    model = inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    network = open_slot("inception_v3", write(model, tmp_path / "inception.safetensors"))
    images = torch.rand(1, 3, 96, 96)
    kept = []
    model.avgpool.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        model((images - 0.5) / 0.5)
    torch.testing.assert_close(network.features(images)["avgpool"], kept[0], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_swav_is_checked_whole(tmp_path):
    """The published file has a prefix, a projection head, prototypes, and no classifier."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    model = resnet50().eval()
    state = {f"module.{k}": v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    head = nn.Sequential(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128))
    state |= {f"module.projection_head.{k}": v for k, v in head.state_dict().items()}
    state["module.prototypes.weight"] = torch.zeros(3000, 128)
    torch.save(state, tmp_path / "swav.pth.tar")
    network = open_slot("swav_rn50", tmp_path / "swav.pth.tar")
    images = torch.rand(1, 3, 64, 64)
    model.fc = nn.Identity()
    with torch.no_grad():
        expected = model((images - MEAN) / STD)
    torch.testing.assert_close(network.features(images)["avgpool"].flatten(1), expected)
    del state["module.layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "less.pth.tar")
    with pytest.raises(LayoutError, match=r"layer1\.0\.conv1\.weight"):
        open_slot("swav_rn50", tmp_path / "less.pth.tar")


def test_scores_of_a_file(tmp_path, tiny_clip, monkeypatch):
    """From the file to the table: CLIP in its slot, with its own names, images and captions."""
    model, path = tiny_clip
    monkeypatch.setattr(slots, "CLIP", "ViT-L-14-tiny-quickgelu")
    real = render_scenes(range(6), 32)["image"]
    decoded = (real + render_scenes(range(40, 46), 32)["image"]) / 2
    names = [f"sim0:{i}" for i in range(6)]
    scores = image_scores(real, decoded, names, names, {"clip_vit_l14_openai": path}, resamples=20)
    found = {score.metric.name: score for score in scores}
    assert found["clip"].available and len(found["clip"].features) == 12 and not found["alexnet2"].available
    network = open_text_slot(path)
    texts = ["a red ring", "two dogs"]
    import open_clip

    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("ViT-L-14-tiny-quickgelu")(texts)).numpy()
    np.testing.assert_allclose(network.features(texts), expected, atol=1e-6)
    references = {"a": ["a red ring"], "b": ["two dogs"], "c": ["a blue sea"]}
    rows = caption_scores(references, {name: texts[0] for name, texts in references.items()}, path, resamples=20)
    found = {score.metric.name: score for score in rows}
    assert found["caption_clip_cosine"].value == pytest.approx(1) and found["caption_clip_two_way"].value == 1
    with pytest.raises(LayoutError, match="no such file"):
        open_text_slot(tmp_path / "absent.safetensors")


def test_unknown_slots():
    with pytest.raises(BrainDataError, match="near: inception_v3"):
        open_slot("inception", F.relu)
