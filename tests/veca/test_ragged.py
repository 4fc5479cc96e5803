import pytest
import torch

from veca import VECA
from veca.model.features import Features

SIZES = [(32, 48), (80, 16), (33, 50), (16, 16)]
GRIDS = ((2, 3), (5, 1), (3, 4), (1, 1))  # the third is padded with zeros to whole patches


def tiny(**options):
    torch.manual_seed(0)
    model = VECA(**(dict(embed_dim=64, depth=3, num_heads=2, num_cores=8, trained_budgets=[4, 8]) | options))
    with torch.no_grad():  # so that cores and positions of an image depend on it
        for step in model.core_steps:
            step.alpha.fill_(1.0)
        for block in model.blocks:
            block.attn.qkv.weight.mul_(6)
    return model


def ragged(sizes=SIZES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def loss_of(record: Features, image: int):
    """A number that every output of one image takes part in, its padding not."""
    count = record.patches.shape[1] if record.patch_lengths is None else record.patch_lengths[image]
    parts = (record.patches[image, :count], record.cores[image], record.global_token[image], record.core_xy[image])
    return sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in parts)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(patch_self=True, core_self=False),
        dict(global_from="core0+patch_mean", core_logit_log_scale=4),
        dict(global_from="core_mean", coord_norm="max", impl="reference"),
        dict(update="sequential", global_from="patch_mean", on_odd="crop"),
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
def test_equals_each_image_alone_forward_and_backward(options):
    model, images = tiny(**options), ragged()
    record = model.forward_features(images, 4)
    alone = [model.forward_features(image[None], 4) for image in images]
    assert record.grid_size == tuple(single.grid_size for single in alone)
    assert record.grid_size == GRIDS or model.on_odd == "crop"
    assert record.patch_lengths.tolist() == [single.patches.shape[1] for single in alone]
    for i, single in enumerate(alone):
        count = single.patches.shape[1]
        torch.testing.assert_close(record.patches[i, :count], single.patches[0])
        assert record.patches[i, count:].count_nonzero() == 0
        for name in ("global_token", "cores", "core_xy"):
            torch.testing.assert_close(getattr(record, name)[i], getattr(single, name)[0], msg=f"{name} of {i}")
        torch.testing.assert_close(record.maps()[i], single.maps()[0])
    together = torch.autograd.grad(sum(loss_of(record, i) for i in range(4)), model.parameters(), allow_unused=True)
    apart = torch.autograd.grad(sum(loss_of(single, 0) for single in alone), model.parameters(), allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    for name, got, wanted in zip(names, together, apart, strict=True):
        assert (got is None) == (wanted is None), name
        if got is not None:
            scale = wanted.abs().max().clamp_min(1.0)
            assert (got - wanted).abs().max() / scale < 1e-4, name


def test_what_padding_tokens_hold_changes_nothing():
    """Tokens after the last patch of an image are overwritten with large values before every block."""
    model, images = tiny(global_from="patch_mean"), ragged()
    plain = model.forward_features(images)
    clean = torch.autograd.grad(sum(loss_of(plain, i) for i in range(4)), model.parameters(), allow_unused=True)
    filled = 0

    def fill(block, arguments):
        nonlocal filled
        tokens, num_cores, *rest = arguments
        padding = torch.arange(tokens.shape[1] - num_cores)[None] >= rest[-1][:, None]
        padding = torch.cat((torch.zeros(len(tokens), num_cores, dtype=torch.bool), padding), 1)
        filled += padding.sum().item()
        return tokens.masked_fill(padding[..., None], 1e3), num_cores, *rest

    for block in model.blocks:
        block.register_forward_pre_hook(fill)
    record = model.forward_features(images)
    assert filled == 3 * (4 * 12 - 6 - 5 - 12 - 1)
    for name, a, b in zip(record._fields[:4], record, plain, strict=False):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    again = torch.autograd.grad(sum(loss_of(record, i) for i in range(4)), model.parameters(), allow_unused=True)
    for a, b in zip(again, clean, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b)


def test_pixels_outside_a_slice_are_never_read():
    """A batch that a loader has padded becomes a list of slices of it."""
    model, images = tiny(), ragged()
    padded = torch.full((4, 3, 80, 50), float("nan"))
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    slices = [row[:, :height, :width] for row, (height, width) in zip(padded, SIZES, strict=True)]
    assert torch.equal(model.forward_features(slices).patches, model.forward_features(images).patches)


def test_budgets_per_image_and_the_classifier_take_lists_too():
    model, images = tiny(num_classes=3), ragged()
    budgets = torch.tensor([4, 8, 4, 8], dtype=torch.int32)
    logits = model(images, active_cores=budgets)
    for i, budget in enumerate(budgets.tolist()):
        torch.testing.assert_close(logits[i], model(images[i][None], budget)[0])


def test_inference_in_pieces_keeps_lengths():
    """Long enough for the CPU path that visits the patches in pieces, some of which hold nothing of an image."""
    images = ragged([(80, 8 * 4000), (16, 16)])
    model = tiny(patch_size=8, depth=2).eval()
    with torch.no_grad():
        record = model.forward_features(images)
        for i, image in enumerate(images):
            single = model.forward_features(image[None])
            torch.testing.assert_close(record.global_token[i], single.global_token[0], rtol=1e-4, atol=1e-4)
            count = single.patches.shape[1]
            torch.testing.assert_close(record.patches[i, :count], single.patches[0], rtol=1e-4, atol=1e-4)
    assert record.patches[1, 4:].count_nonzero() == 0


def test_intermediates_of_lists():
    model, images = tiny(), ragged()
    outs = model.get_intermediate_layers(images, [0, -1], return_cores=True)
    for i, image in enumerate(images):
        alone = model.get_intermediate_layers(image[None], [0, -1], return_cores=True)
        for (patches, cores), (one_patches, one_cores) in zip(outs, alone, strict=True):
            count = one_patches.shape[1]
            torch.testing.assert_close(patches[i, :count], one_patches[0])
            torch.testing.assert_close(cores[i], one_cores[0])
            assert patches[i, count:].count_nonzero() == 0


def test_checkpointing_takes_lists():
    model, images = tiny(), ragged()
    plain = torch.autograd.grad(loss_of(model.forward_features(images), 1), model.core_bank.tokens)[0]
    model.set_grad_checkpointing()
    torch.testing.assert_close(
        torch.autograd.grad(loss_of(model.forward_features(images), 1), model.core_bank.tokens)[0], plain
    )


def test_lists_compile_to_one_graph():
    model, images = tiny().eval(), ragged()
    compiled = torch.compile(model.forward_features, fullgraph=True, backend="eager")
    record, expected = compiled(images), model.forward_features(images)
    assert record.grid_size == GRIDS
    for a, b in zip(record[:4], expected[:4], strict=True):
        torch.testing.assert_close(a, b)


def test_refusals():
    model, images = tiny(), ragged()
    with pytest.raises(ValueError, match="at least one image, got an empty list"):
        model([])
    with pytest.raises(ValueError, match=r"\(channels, height, width\), got \(1, 3, 32, 48\)"):
        model([images[0][None]])
    with pytest.raises(ValueError, match=r"got \(1, 1, 32, 48\)"):
        model([images[0], images[0][:1]])
    with pytest.raises(TypeError, match="normalised floating tensor, got ndarray"):
        model([images[0].numpy()])
    with pytest.raises(ValueError, match="output_fmt 'NLC' with a list of images, got 'NCHW'"):
        model.forward_intermediates(images, 1)
    with pytest.raises(ValueError, match="images of one size as one tensor for maps, got a list"):
        model.attention_maps(images)
