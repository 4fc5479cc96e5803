"""The weights that ship: they load, they are trained, and a budget of eight cores is enough for what they know."""

import pytest
import torch

import veca
from veca.data import imagenet_normalize, render_scenes
from veca.zoo.plain_vit import load_vit_nano

TRAIN, TEST = range(240), range(240, 360)


@pytest.fixture(scope="module")
def scenes():
    """Scenes that the run has not seen, normalised, with the shape of the main object."""
    batch = render_scenes(range(360), 64, seed=77)
    return imagenet_normalize(batch["image"]), batch["label"]


def probe(features, labels):
    """Accuracy of a ridge classifier on the last 120 rows, trained on the others; fp64."""
    features = (features - features[:240].mean(0)).double() / features[:240].std(0).clamp(min=1e-6)
    X, Y = features[:240], torch.nn.functional.one_hot(labels[:240]).double()
    weights = torch.linalg.solve(X.T @ X + 100 * torch.eye(X.shape[1], dtype=X.dtype), X.T @ (Y - Y.mean(0)))
    return ((features[240:] @ weights).argmax(1) == labels[240:]).double().mean().item()


@torch.no_grad()
def global_tokens(model, images, **options):
    return torch.cat([model.forward_features(part, **options).global_token for part in images.split(100)])


def test_shapes_can_be_read_from_the_global_token_at_every_budget(scenes):
    images, labels = scenes
    model = veca.create_model("veca_nano_patch8", pretrained=True).eval()
    largest, smallest = (probe(global_tokens(model, images, num_cores=cores), labels) for cores in (64, 8))
    torch.manual_seed(0)
    untrained = probe(global_tokens(veca.create_model("veca_nano_patch8", img_size=64).eval(), images), labels)
    assert largest > 0.8 and smallest > 0.93 * largest
    assert untrained < 0.4


def test_the_plain_vit_reads_them_too(scenes):
    images, labels = scenes
    vit = load_vit_nano()
    with torch.no_grad():
        tokens = torch.cat([vit.forward_features(part)[:, 0] for part in images.split(100)])
    assert probe(tokens, labels) > 0.75


def test_loading_is_by_name_and_offline():
    assert veca.list_models(pretrained=True) == ["veca_nano_patch8"]
    model, transform = veca.load("veca_nano_patch8")
    assert model.num_cores == 64 and list(model.trained_budgets) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert transform.transforms[1].size == 64
    other = veca.create_model("veca_nano_patch8", pretrained=True, num_classes=5)
    assert torch.equal(other.core_bank.tokens, model.core_bank.tokens) and other.head.out_features == 5
