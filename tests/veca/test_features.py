"""Features for downstream heads: intermediate layers, maps, pruning, groups of parameters, `veca features`."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from timm.optim import param_groups_layer_decay

from veca import VECA, cli
from veca.inspect.extract import extract_features, read_image


def tiny(**options):
    torch.manual_seed(0)
    return VECA(**(dict(embed_dim=32, depth=4, num_heads=2, num_cores=8, trained_budgets=[4, 8]) | options)).eval()


def images(height=32, width=48, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("n", "blocks"), [(1, [3]), (2, [2, 3]), ([0, -2], [0, 2])], ids=str)
@pytest.mark.parametrize("norm", [None, False])
def test_intermediate_layers_equal_hooks(n, blocks, norm):
    model, x = tiny(), images()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    model.forward_features(x, 4)
    expected = [seen[index] if norm is False else model.norm(seen[index]) for index in blocks]
    given = {} if norm is None else dict(norm=norm)
    pairs = model.get_intermediate_layers(x, n, return_cores=True, num_cores=4, **given)
    maps = model.get_intermediate_layers(x, n, reshape=True, num_cores=4, **given)
    assert isinstance(pairs, tuple) and len(pairs) == len(maps) == len(blocks)
    for tokens, (patches, cores), image_map in zip(expected, pairs, maps, strict=True):
        assert torch.equal(torch.cat((cores, patches), 1), tokens)
        assert image_map.shape == (2, 32, 2, 3)
        for row in range(2):
            for col in range(3):
                assert torch.equal(image_map[:, :, row, col], tokens[:, 4 + 3 * row + col])


def test_intermediate_layers_run_no_block_that_nobody_asked_for():
    model = tiny()
    calls = []
    model.blocks[2].register_forward_hook(lambda *args: calls.append(1))
    model.get_intermediate_layers(images(), [0, 1])
    assert not calls


def test_the_records_maps_are_row_major():
    record = tiny().forward_features(images())
    for row in range(2):
        for col in range(3):
            assert torch.equal(record.maps()[:, :, row, col], record.patches[:, 3 * row + col])


def test_pruned_models_give_what_the_whole_gave():
    model, x = tiny(num_classes=3), images()
    full = model.forward_intermediates(x, [0, 2], intermediates_only=True)
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([-2, 0], prune_norm=True) == [0, 2]
    assert len(pruned.blocks) == 3 and len(pruned.core_steps) == 2 and pruned.num_classes == 0
    for a, b in zip(pruned.forward_intermediates(x, [0, 2], intermediates_only=True), full, strict=True):
        assert torch.equal(a, b)
    assert not {"norm.weight", "head.weight", "core_steps.2.alpha"} & set(pruned.state_dict())
    assert len(model.blocks) == 4


def test_learning_rates_fall_from_head_to_stem():
    model = tiny(num_classes=3, output_dim=48)
    exempt = model.no_weight_decay()
    groups = param_groups_layer_decay(model, weight_decay=0.1, no_weight_decay_list=exempt, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales, decays = {}, {}
    for group in groups:
        for parameter in group["params"]:
            scales[names[id(parameter)]] = group["lr_scale"]
            decays[names[id(parameter)]] = group["weight_decay"]
    assert set(scales) == set(names.values())
    order = ["patch_embed.proj.weight", *(f"blocks.{index}.mlp.fc1.weight" for index in range(4)), "head.weight"]
    found = [scales[name] for name in order]
    assert found[-1] == 1.0 and all(2 * low == high for low, high in pairwise(found))
    assert scales["core_bank.tokens"] == found[0] and scales["core_steps.1.head.weight"] == found[2]
    assert scales["norm.weight"] == scales["output.weight"] == found[-2]  # with the last block, as in timm's ViTs
    undecayed = {name for name, decay in decays.items() if not decay}
    assert exempt <= undecayed and "blocks.0.attn.qkv.weight" not in undecayed


def test_reset_classifier_can_change_what_it_reads():
    model, x = tiny(num_classes=3), images()
    model.reset_classifier(5, "patch_mean")
    expected = model.forward_features(x).patches.mean(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), expected)
    model.reset_classifier(0)
    assert model.global_from == "patch_mean" and torch.equal(model(x), model.forward_features(x).global_token)
    model.reset_classifier(5, "token")
    assert model.global_from == model.config["global_from"] == "core0"
    model.reset_classifier(2, "")
    features = model.forward_features(x)
    assert torch.equal(model(x), model.head(torch.cat((features.cores, features.patches), 1)))
    assert torch.equal(model.forward_head(features, pre_logits=True), features.tokens())
    assert torch.equal(features.global_token, features.cores[:, 0])
    with pytest.raises(ValueError, match=r"global_from to be one of core0, .*, \"\", got 'max'"):
        model.reset_classifier(5, "max")


def test_nominal_size():
    model = tiny(patch_size=8, img_size=64)
    model.set_input_size((80, 120))
    assert model.patch_embed.grid_size == (10, 15) and model.pretrained_cfg["input_size"] == (3, 80, 120)
    with pytest.raises(ValueError, match="patch_size 8 x 8, the weights', got 16"):
        model.set_input_size(patch_size=16)


@pytest.fixture
def photograph(tmp_path):
    """A picture whose pixels name their places: red grows to the right, green downwards."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 4 * np.arange(60), 6 * np.arange(40)[:, None]
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    return tmp_path / "ramp.png"


def test_images_are_read_upright(photograph, tmp_path):
    image = read_image(photograph)
    assert image.shape == (3, 40, 60) and image.max() <= 1
    torch.testing.assert_close(image[0, 7, 50], torch.tensor(200 / 255))
    torch.testing.assert_close(image[1, 30, 7], torch.tensor(180 / 255))
    assert read_image(photograph, 30).shape == (3, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.open(photograph).save(tmp_path / "turned.png", exif=exif)
    torch.testing.assert_close(read_image(tmp_path / "turned.png"), image.transpose(1, 2).flip(2))


def test_arrays_are_the_models_features_of_the_normalised_image(photograph, tmp_path):
    pytest.importorskip("matplotlib")
    model = tiny(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    ((arrays, picture),) = extract_features(model, [photograph], tmp_path / "out", num_cores=4)
    pixels = np.asarray(Image.open(photograph)).astype(np.float32) / 255
    x = torch.from_numpy((pixels - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 0.6, 0.7])).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model.forward_features(x, 4)
    with np.load(arrays, allow_pickle=False) as saved:
        assert saved["image_size"].tolist() == [40, 60] and saved["patches"].shape == (3, 4, 32)
        got = [saved[name] for name in ("global_token", "patches", "cores", "core_xy")]
    for a, b in zip(got, expected[:4], strict=True):
        np.testing.assert_allclose(a.reshape(b[0].shape), b[0], atol=1e-5)
    with Image.open(picture) as drawn:
        assert drawn.width > 1000 and len(drawn.convert("RGB").getcolors(2**20)) > 50


def test_the_command_writes_one_pair_a_file_and_says_that_weights_are_random(photograph, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["features", str(photograph), "--out", str(tmp_path / "out"), "--model", "veca_nano_patch16"]
    cli.main([*words, "--size", "64", "--num-cores", "8"])
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "out" / f"ramp.{kind}") for kind in ("npz", "png")]
    assert "no weights ship for veca_nano_patch16, so they are random" in printed.err
    with np.load(tmp_path / "out/ramp.npz") as saved:
        assert saved["patches"].shape == (3, 4, 192) and saved["cores"].shape == (8, 192)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.png"], "expected an image file, got nothing at absent.png"),
        (["setup.cfg"], r"expected a readable image, got .*setup\.cfg"),
        (["a/x.png", "b/x.jpg"], "several called x"),
        (["x.png", "--model", "veca_nano_patch17"], "did you mean veca_nano_patch16"),
        (["x.png", "--num-cores", "80"], "num_cores from 1 to 64"),
        (["x.png", "--size", "0"], "size of at least 1 pixel, got 0"),
    ],
)
def test_mistakes_end_in_one_line(words, message, tmp_path, monkeypatch, photograph):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("no image")
    photograph.rename(tmp_path / "x.png")
    model = [] if "--model" in words else ["--model", "veca_nano_patch16"]
    with pytest.raises(SystemExit, match=f"^veca features: .*{message}"):
        cli.main(["features", *words, *model])
