"""What a forward pass costs: FLOPs as published and as counted, the break-even with a ViT, memory."""

import pytest
import timm
import torch

import veca
from veca.inspect.cost import (
    break_even_side,
    core_attention_flops,
    counted_flops,
    dense_attention_flops,
    forward_cost,
    num_patches,
    peak_bytes,
)

# GFLOPs of one attention sub-layer, VECA with 64 cores / dense with class token and four registers; batch 1
SUBLAYER = {
    384: "0.434/0.413 0.875/1.204 1.491/2.840 3.253/10.91 5.719/30.67",
    768: "1.623/1.441 3.259/3.778 5.549/8.108 12.09/27.27 21.25/71.02",
    1024: "2.835/2.468 5.687/6.256 9.680/12.97 21.09/41.21 37.06/103.3",
}
# GFLOPs of all blocks of the base model, patch embedding left out
MODEL = {256: (56, 45, 47), 384: (112, 100, 111), 512: (190, 176, 214), 768: (413, 394, 589)}
MODEL |= {1024: (726, 700, 1317), 2048: (2871, 2794, 12686)}


def hollow(name, **options):
    with torch.device("meta"):
        if name.startswith("veca"):
            return veca.create_model(name, **options)
        return timm.create_model(name, dynamic_img_size=True, num_classes=0, **options)


def digits(value, text):
    """A value in units of 1e9 with as many digits as the text that it is compared with."""
    return f"{value / 1e9:.{len(text.partition('.')[2])}f}"


@pytest.mark.parametrize("dim", SUBLAYER)
def test_flops_of_the_attention_sublayer_are_the_published_ones(dim):
    for size, cell in zip((256, 384, 512, 768, 1024), SUBLAYER[dim].split(), strict=True):
        patches = (size // 16) ** 2
        ours, dense = cell.split("/")
        assert digits(core_attention_flops(patches, 64, dim), ours) == ours
        assert digits(dense_attention_flops(patches + 5, dim), dense) == dense


def test_flops_of_the_base_model_are_the_published_ones():
    model = hollow("veca_base_patch16")
    vit = hollow("vit_base_patch16_224", reg_tokens=4)
    for size, expected in MODEL.items():
        blocks = [forward_cost(model, size, size, cores).block for cores in (64, 8)]
        blocks.append(forward_cost(vit, size, size).block)
        # the tables are rounded from sums that treat a few tokens differently
        assert [12 * block / 1e9 for block in blocks] == pytest.approx(expected, rel=0.012)
    assert forward_cost(model, 1024, 1024, 64).attention == 21_252_538_368


@pytest.mark.parametrize(("height", "width"), [(256, 256), (96, 224)])
def test_formulas_agree_with_the_operators_that_run(height, width):
    model, vit = hollow("veca_nano_patch16"), hollow("vit_tiny_patch16_224", depth=3)
    counts = set()
    for num_cores in (8, 64):
        counted = counted_flops(model, height, width, num_cores=num_cores)
        assert forward_cost(model, height, width, num_cores).model == counted
        counts.add(counted)
    counts.add(counted_flops(vit, height, width))
    assert forward_cost(vit, height, width).model in counts and len(counts) == 3


def test_odd_sizes_count_the_padded_patches():
    model = hollow("veca_nano_patch16")
    assert num_patches(model, 250, 33) == 16 * 3
    assert forward_cost(model, 250, 33, 8).model == counted_flops(model, 250, 33, num_cores=8)


def test_counting_leaves_the_model_alone():
    model = veca.create_model("veca_nano_patch16", depth=1)
    counted_flops(model, 32, 32)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_peak_memory_counts_what_lives_at_the_same_time():
    earlier = torch.zeros(1000)  # 4000 bytes each

    def call():
        a = earlier + 1  # 1 alive
        b = a + 1  # 2
        a.view(10, 100).t()  # shares memory
        del a  # 1
        c = b + b  # 2
        earlier.mul_(2)  # in place, was there before
        del b, c
        d = torch.zeros(500)  # half
        return d.sum()

    assert peak_bytes(call, torch.device("cpu")) == 8000
    with torch.inference_mode():
        assert peak_bytes(call, torch.device("cpu")) == 8000


def test_peak_memory_counts_tensors_at_the_addresses_of_those_that_were_there_before():
    earlier = [torch.zeros(1000) for _ in range(200)]

    def call():
        kept = [x + 1 for x in earlier]
        earlier.clear()  # the next ones may take their places
        return kept + [x + 1 for x in kept]

    assert peak_bytes(call, torch.device("cpu")) == 400 * 4000


def test_peak_memory_of_a_model_is_linear_in_the_patches():
    model = veca.create_model("veca_nano_patch16", depth=2).eval()
    with torch.inference_mode():
        peaks = [
            peak_bytes(lambda s=side: model.forward_features(torch.zeros(1, 3, s, s), 8), torch.device("cpu"))
            for side in (128, 256, 384)
        ]
    assert (peaks[2] - peaks[1]) / (peaks[1] - peaks[0]) == pytest.approx(5 / 3, rel=0.02)  # 576, 256, 64 patches


@pytest.mark.parametrize(("num_cores", "depth"), [(8, 3), (64, 3), (64, 1)])
def test_the_counter_changes_sides_at_the_break_even(num_cores, depth):
    with torch.device("meta"):
        model = veca.create_model("veca_nano_patch16", num_cores=64, depth=3)
        vit = timm.create_model("vit_tiny_patch16_224", depth=depth, dynamic_img_size=True, num_classes=0)
    side = break_even_side(model, vit, num_cores)
    assert side % 16 == 0

    def excess(pixels):
        return counted_flops(model, pixels, pixels, num_cores=num_cores) - counted_flops(vit, pixels, pixels)

    assert excess(side) <= 0 < excess(side - 16)


def test_the_budget_of_the_model_is_the_default():
    with torch.device("meta"):
        model = veca.create_model("veca_small_patch16")
        vit = timm.create_model("vit_small_patch16_224", dynamic_img_size=True, num_classes=0)
    assert break_even_side(model, vit) == break_even_side(model, vit, 64) == 352
    model.budget = 8
    assert break_even_side(model, vit) < 352


def test_published_share_of_interactions():
    """At 512 px, 64 cores save 87.1 % of the pairs of tokens that dense attention scores."""
    patches, cores, dim = 1024, 64, 768
    ours = core_attention_flops(patches, cores, dim) - 8 * (patches + cores) * dim**2
    dense = dense_attention_flops(patches, dim) - 8 * patches * dim**2
    assert round(100 * (1 - ours / dense), 1) == 87.1


def test_memory_of_a_training_step_is_linear_in_the_patches_and_that_of_scores_is_not():
    torch.manual_seed(0)
    model = veca.create_model("veca_nano_patch16", depth=2)

    def step(side):
        record = model.forward_features(torch.zeros(1, 3, side, side), 8)
        record.patches.square().mean().backward()
        model.zero_grad(set_to_none=True)

    def growth(call):
        peaks = [peak_bytes(lambda s=side: call(s), torch.device("cpu")) for side in (256, 512, 768)]
        return (peaks[2] - peaks[1]) / (peaks[1] - peaks[0])

    linear, squared = 1280 / 768, (2304**2 - 1024**2) / (1024**2 - 256**2)  # from 256, 1024 and 2304 patches
    assert growth(step) == pytest.approx(linear, rel=0.02)
    assert growth(lambda side: torch.zeros((side // 16) ** 2, (side // 16) ** 2)) == pytest.approx(squared)
