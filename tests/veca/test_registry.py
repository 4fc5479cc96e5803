import math

import pytest
import torch

import veca


@pytest.mark.parametrize(
    ("name", "hidden_dim", "parameters"),
    [
        ("veca_small_patch16", 1024, 21_628_961),
        ("veca_small_plus_patch16", 1536, 28_719_137),
        ("veca_base_patch16", 2048, 85_725_089),
        ("veca_large_patch16", 2730, 303_195_301),
    ],
)
def test_parameter_counts_golden(name, hidden_dim, parameters):
    with torch.device("meta"):
        model = veca.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.blocks[-1].mlp.fc2.in_features == hidden_dim


@pytest.mark.parametrize(("size", "depth"), [("nano", 6), ("tiny", 12)])
def test_our_own_sizes(size, depth):
    with torch.device("meta"):
        model = veca.create_model(f"veca_{size}_patch16")
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (192, depth, 3)
    assert model.blocks[0].mlp.fc2.in_features == 512


def test_multiple_of_changes_the_hidden_width_only():
    with torch.device("meta"):
        exact, rounded = (veca.create_model("veca_large_patch16", multiple_of=n).state_dict() for n in (1, 64))
    changed = {name for name in exact if exact[name].shape != rounded[name].shape}
    assert {name.split(".", 2)[2] for name in changed} == {"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"}
    assert rounded["blocks.0.mlp.fc2.weight"].shape == (1024, 2752)


def test_every_listed_model_has_head_dim_64():
    assert len(veca.list_models()) == 8
    with torch.device("meta"):
        for name in veca.list_models():
            assert veca.create_model(name).blocks[0].attn.head_dim == 64


@pytest.mark.parametrize("size", ["nano", "small"])
def test_patch_8_differs_in_the_patch_embedding_alone(size):
    with torch.device("meta"):
        fine, coarse = (veca.create_model(f"veca_{size}_patch{patch}").state_dict() for patch in (8, 16))
    changed = {name for name in coarse if fine[name].shape != coarse[name].shape}
    assert fine.keys() == coarse.keys() and changed == {"patch_embed.proj.weight"}
    assert fine["patch_embed.proj.weight"].shape[2:] == (8, 8)


def test_unknown_names_list_near_matches():
    with pytest.raises(ValueError, match="got 'veca_bass_patch16'; did you mean veca_base_patch16"):
        veca.create_model("veca_bass_patch16")
    with pytest.raises(ValueError, match=r"veca_nano_patch16, .*veca_large_patch16"):
        veca.create_model("resnet50!!")


def test_options_override_the_size_and_none_keeps_the_default():
    model = veca.create_model("veca_nano_patch16", depth=1, num_cores=8, num_classes=None, on_odd=None)
    assert len(model.blocks) == 1 and model.num_cores == 8 and model.on_odd == "pad" and model.num_classes == 0
    with pytest.raises(TypeError, match="num_core"):
        veca.create_model("veca_nano_patch16", num_core=8)


def test_random_weights_are_seeded():
    def outputs(seed):
        torch.manual_seed(seed)
        model = veca.create_model("veca_nano_patch16", depth=1, num_classes=3)
        return model(torch.ones(1, 3, 32, 32))

    assert torch.equal(outputs(0), outputs(0)) and not torch.equal(outputs(0), outputs(1))
    assert math.isfinite(outputs(0).abs().max().item())
