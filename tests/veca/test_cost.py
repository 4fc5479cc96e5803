"""Costs beyond those in the demo's tests: where VECA and a plain ViT break even, pairs, memory of training."""

import pytest
import timm
import torch

import veca
from veca.cost import break_even_side, core_attention_flops, counted_flops, dense_attention_flops, peak_bytes


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
