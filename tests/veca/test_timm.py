import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import nn

import veca


def small(**options):
    torch.manual_seed(0)
    return timm.create_model("veca_nano_patch16", **(dict(depth=3, num_cores=8) | options))


def images(height=48, width=80, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_timm_knows_every_name_and_builds_the_same_model():
    assert set(timm.list_models("veca_*")) == set(veca.list_models())
    torch.manual_seed(0)
    ours = veca.create_model("veca_nano_patch16", depth=3, num_cores=8)
    theirs = small()
    assert type(theirs) is veca.VECA and theirs.config == ours.config
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with torch.device("meta"):
        assert timm.create_model("veca_small_plus_patch16").config["mlp_ratio"] == 4.0
        assert timm.create_model("veca_nano_patch8").patch_embed.patch_size == (8, 8)


def test_features_only_gives_the_maps_of_the_blocks_asked_for():
    pyramid, whole, x = small(features_only=True, out_indices=(0, 1)), small(), images()
    seen = []
    for block in whole.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out[:, 8:]))
    whole(x)
    maps = pyramid(x)
    assert len(maps) == 2 and len(pyramid.model.blocks) == 2  # the third is cut off
    for got, tokens in zip(maps, seen, strict=False):
        assert torch.equal(got, tokens.transpose(1, 2).unflatten(2, (3, 5)))
    assert pyramid.feature_info.channels() == [192, 192] and pyramid.feature_info.reduction() == [16, 16]
    assert pyramid.feature_info.module_name() == ["blocks.0", "blocks.1"]
    assert len(veca.create_model("veca_nano_patch16", features_only=True)(x)) == 3
    pyramid.model.budget = 4
    with pytest.warns(UserWarning, match="num_cores=4 is not among the trained budgets 8"):
        assert not torch.equal(pyramid(x)[0], maps[0])


class Segmenter(nn.Module):
    """The smallest head that a segmentation library puts on a timm backbone: sum, classify, enlarge."""

    def __init__(self, name, classes, **options):
        super().__init__()
        self.backbone = timm.create_model(name, features_only=True, **options)
        self.laterals = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in self.backbone.feature_info.channels())
        self.classify = nn.Conv2d(32, classes, 1)

    def forward(self, x):
        summed = sum(lateral(m) for lateral, m in zip(self.laterals, self.backbone(x), strict=True))
        return F.interpolate(self.classify(summed.relu()), size=x.shape[2:], mode="bilinear")


def squares(seed, count=4):
    """Noise with a bright rectangle, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, 3, 64, 96, generator=generator)
    masks = torch.zeros(count, 64, 96, dtype=torch.long)
    for image, mask in zip(x, masks, strict=True):
        top, left = (torch.randint(0, n, (), generator=generator).item() for n in (5, 9))
        mask[8 * top : 8 * top + 32, 8 * left : 8 * left + 32] = 1
        image += 2.0 * mask
    return x, masks


def test_a_segmentation_head_learns_on_the_backbone():
    torch.manual_seed(0)
    model = Segmenter("veca_nano_patch8", 2, out_indices=(0, 1), num_cores=8, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, masks = squares(0, 8)
    for _ in range(20):
        loss = F.cross_entropy(model(x), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.backbone.model.blocks.parameters())
    x, masks = squares(1)
    found = model.eval()(x).argmax(1)
    overlap = ((found == 1) & (masks == 1)).sum() / ((found == 1) | (masks == 1)).sum()
    assert overlap > 0.8


def test_what_heads_read():
    model = small(num_classes=7, img_size=(64, 96))
    assert (model.num_features, model.embed_dim, model.num_prefix_tokens, model.num_classes) == (192, 192, 8, 7)
    assert model.patch_embed.grid_size == (4, 6)
    assert [row["module"] for row in model.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
    cfg = model.default_cfg
    assert (cfg["architecture"], cfg["num_classes"], cfg["input_size"]) == ("veca_nano_patch16", 7, (3, 64, 96))
    modules = dict(model.named_modules())
    assert modules[cfg["classifier"]] is model.get_classifier() and isinstance(modules[cfg["first_conv"]], nn.Conv2d)
    model.reset_classifier(2)
    assert model.default_cfg["num_classes"] == 2 and model(images()).shape == (2, 2)


def test_data_config_is_the_models_own():
    model = veca.VECA(embed_dim=32, depth=1, num_heads=1, img_size=96, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, 96, 96) and data["mean"] == (0.1, 0.2, 0.3) and data["std"] == (1, 2, 3)
    gray = small(in_chans=1)
    assert gray.default_cfg["input_size"] == (1, 224, 224) and gray.mean == (0.5,)
    assert gray(torch.zeros(1, 1, 32, 32)).isfinite().all()


def test_timms_words_for_any_size_are_taken_and_unknown_ones_refused():
    model, plain, x = small(dynamic_img_size=True), small(), images(50, 33)
    assert torch.equal(model(x), plain(x))
    with pytest.raises(TypeError, match="reg_tokens"):
        small(reg_tokens=4)


def test_pretrained_names_what_ships():
    with pytest.raises(ValueError, match=r"weights in this package .* got 'veca_nano_patch16' with pretrained=True"):
        small(pretrained=True)


TRAIN_PY = dict(  # what timm's training script passes to every model
    in_chans=3, num_classes=10, drop_rate=0.0, drop_path_rate=None, drop_block_rate=None, global_pool=None,
    bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="", device=torch.device("cpu"),
    dtype=torch.float32,
)  # fmt: skip


def test_words_of_timms_scripts():
    """Each word does what it says, or is refused by name."""
    x = images()
    torch.manual_seed(0)
    plain = veca.create_model("veca_nano_patch16", num_classes=10, depth=3, num_cores=8)
    assert torch.equal(small(**TRAIN_PY)(x), plain(x))
    assert torch.equal(small(num_classes=10, proj_drop_rate=0.0, attn_drop_rate=0)(x), plain(x))
    for word, source in (("avg", "patch_mean"), ("token", "core0"), ("", ""), ("core_mean", "core_mean")):
        assert small(global_pool=word).config["global_from"] == source
    unpooled = small(global_pool="", num_classes=10)
    assert torch.equal(unpooled(x), plain.head(plain.forward_features(x).tokens()))
    half = small(dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in small(device="meta").parameters()} == {"meta"}
    for name in ("drop_rate", "proj_drop_rate", "attn_drop_rate"):
        with pytest.raises(ValueError, match=rf"expected {name}=0, the model has no dropout, got 0\.1"):
            small(**{name: 0.1})
    with pytest.raises(ValueError, match=r"global_from to be one of core0, .* got 'avgmax'"):
        small(global_pool="avgmax")
    with pytest.raises(ValueError, match="expected global_pool or global_from, got 'patch_mean' and 'core0'"):
        small(global_pool="avg", global_from="core0")


def test_shipped_weights_are_listed_and_take_grey_images():
    """Grey images through one channel have the features of their RGB form through three."""
    assert timm.list_models("veca_*", pretrained=True) == veca.list_models(pretrained=True) == ["veca_nano_patch8"]
    assert timm.is_model_pretrained("veca_nano_patch8") and not timm.is_model_pretrained("veca_nano_patch16")
    color, grey = (timm.create_model("veca_nano_patch8", pretrained=True, in_chans=n).eval() for n in (3, 1))
    levels = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    for model in (color, grey):
        mean, std = (torch.tensor(v)[:, None, None] for v in (model.mean, model.std))
        seen.append(model.forward_features((levels.expand(-1, len(mean), -1, -1) - mean) / std).patches)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)
    many = timm.create_model("veca_nano_patch8", pretrained=True, in_chans=5, num_classes=4)
    weight = color.patch_embed.proj.weight
    torch.testing.assert_close(many.patch_embed.proj.weight, 0.6 * torch.cat((weight, weight[:, :2]), 1))


@pytest.mark.parametrize("name", veca.list_models())
def test_timms_contracts(name):
    """What timm's own tests ask of every model, on two narrow blocks and small images."""
    x, size = images(32, 48), dict(embed_dim=64, num_heads=1, depth=2)
    model = timm.create_model(name, num_classes=42, num_cores=8, **size)
    assert model(x).shape == (2, 42)
    model(x).mean().backward()
    assert all(p.grad is not None for p in model.parameters())

    model.eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert f"{cfg['classifier']}.weight" in state and f"{cfg['first_conv']}.weight" in state
    assert cfg["input_size"][0] == model.in_chans == 3 and model.head_hidden_size == model.num_features
    with torch.no_grad():
        features, maps = model.forward_intermediates(x, norm=True)
        model.set_grad_checkpointing()
        assert_same(model.forward_features(x).tokens(), features.tokens())
    assert_same(maps[-1].flatten(2).mT, features.patches)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.reset_classifier(7, "avg")
    assert not model.head.training and model.head.weight.requires_grad and model(x).shape == (2, 7)
    assert model.head.weight.device == x.device and model.head.weight.dtype == x.dtype
    assert model.train().training and (model.reset_classifier(3), model.head.training)[1]
    model.eval().reset_classifier(0)
    assert_same(model(x), features.patches.mean(1))
    model.reset_classifier(0, "")
    assert_same(model(x), features.tokens())

    taken = model.prune_intermediate_layers([0], prune_norm=True)
    assert taken == [0] and len(model.blocks) == 1
    assert_same(model.forward_intermediates(x, taken, norm=True, intermediates_only=True)[0], first_map(model, x))
    pyramid = timm.create_model(name, features_only=True, out_indices=(-2, -1), **size)
    widths = pyramid.feature_info.channels()
    assert [m.shape[:2] for m in pyramid(x)] == [(2, width) for width in widths]


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def first_map(model, x):
    return model(x)[:, model.num_prefix_tokens :].mT.unflatten(
        2, [n // model.patch_embed.patch_size[0] for n in (32, 48)]
    )


def test_a_model_from_the_meta_device_is_filled():
    options = dict(init_values=0.1, qk_norm=True, core_step_norm=True, output_dim=64, num_classes=5)
    model = small(device="meta", **options).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(5)
    model.init_weights()
    for (name, got), new in zip(model.state_dict().items(), small(**options).state_dict().values(), strict=True):
        if new.unique().numel() > 2 and name != "core_bank.raw_xy":  # drawn
            assert 0.9 < got.std() / new.std() < 1.1 and not torch.equal(got, new), name
        else:
            assert torch.equal(got, new), name
    assert torch.isfinite(model(images())).all()
