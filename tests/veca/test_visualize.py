import math

import pytest
import torch

from veca import VECA
from veca.inspect import visualize


def tiny(**options):
    torch.manual_seed(0)
    model = VECA(**(dict(embed_dim=32, depth=3, num_heads=2, num_cores=8, trained_budgets=[4, 8]) | options)).eval()
    with torch.no_grad():  # maps of small weights are flat, and a wrong one is flat too
        for block in model.blocks:
            block.attn.qkv.weight.mul_(12)
            block.attn.qkv.bias.normal_()
        for step in model.core_steps:
            step.alpha.fill_(1.0)
    return model


def images(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def brute_force_shares(model, x, num_cores, block, core, image):
    """P ||sum_h A v W_o|| / sum over patches, one patch at a time, from hooks and the raw reads."""
    seen = {}
    layer = model.blocks[block].attn
    handle = layer.qkv.register_forward_hook(lambda module, args, out: seen.update(qkv=out))
    read = model.attention_maps(x, num_cores, block=block).core_read  # checked against outputs in test_backbone
    handle.remove()
    v = seen["qkv"].unflatten(-1, (3, 2, 16))[image, :, 2]  # (T, H, D)
    norms = []
    for patch in range(num_cores, v.shape[0]):
        heads = [read[image, h, core, patch] * v[patch, h] for h in range(2)]
        norms.append((layer.proj.weight @ torch.cat(heads)).norm())
    norms = torch.stack(norms)
    return len(norms) * norms / norms.sum()


@pytest.mark.parametrize("block", [0, 1, 2])
def test_core_shares_equal_their_definition(block):
    model, x = tiny(), images(32, 48)
    shares = visualize.core_shares(model.attention_maps(x, 4, block=block), [3, 0], image=1)
    assert shares.shape == (2, 2, 3)
    for row, core in enumerate([3, 0]):
        expected = brute_force_shares(model, x, 4, block, core, image=1)
        assert expected.std() > 0.1  # otherwise any map would do
        torch.testing.assert_close(shares[row].flatten(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares.mean((1, 2)), torch.ones(2))


def test_core_shares_refuse_inactive_cores():
    maps = tiny().attention_maps(images(32, 32), 4)
    with pytest.raises(ValueError, match=r"cores from 0 to 3, got \[4, -1\]"):
        visualize.core_shares(maps, [0, 4, -1])


def planted(count, seed=0):
    """Features that vary along three known directions, with standard deviations 5, 3 and 1, and little else."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(9)).double())[0].T
    scores = torch.randn(count, 3, generator=generator).double() * torch.tensor([5.0, 3.0, 1.0])
    noise = 0.01 * torch.randn(count, 12, generator=generator).double()
    return directions, scores, 7.0 + scores @ directions + noise


def test_pca_recovers_planted_components():
    directions, _, features = planted(4000)
    pca = visualize.fit_patch_pca(features)
    alignment = (pca.components * directions).sum(1)
    torch.testing.assert_close(alignment.abs(), torch.ones(3).double(), rtol=0, atol=2e-3)
    torch.testing.assert_close(pca.explained, torch.tensor([25.0, 9.0, 1.0]).double() / 35, rtol=0.1, atol=0)
    largest = pca.components.gather(1, pca.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()  # the sign is fixed, so colours repeat


def test_colours_follow_the_components_and_one_basis_serves_all_sizes():
    directions, _, features = planted(4000)
    pca = visualize.fit_patch_pca(features)
    signs = (pca.components * directions).sum(1).sign()
    _, scores, others = planted(50, seed=3)
    colors = visualize.pca_rgb(others, pca)
    assert colors.shape == (50, 3) and colors.dtype == torch.float32
    # linear between 1 % and 99 % of a normal distribution, +-2.326 standard deviations
    expected = 0.5 + signs * scores / (2 * 2.326 * torch.tensor([5.0, 3.0, 1.0]))
    torch.testing.assert_close(colors.double(), expected.clamp(0, 1), rtol=0, atol=0.05)
    same = visualize.pca_rgb(others.unflatten(0, (5, 10)), pca)
    assert torch.equal(same.flatten(0, 1), colors)


def test_the_colour_range_leaves_out_the_ends():
    features = torch.zeros(201, 3)
    features[:, 0] = torch.arange(201.0)
    pca = visualize.fit_patch_pca(features, clip=0.05)
    red = visualize.pca_rgb(features, pca)[:, 0]
    assert red[10] == 0 and red[190] == 1 and red[100] == 0.5 and 0 < red[11] < red[189] < 1


def test_pca_refuses_what_has_no_three_components():
    for shape in ((5, 2), (1, 8), (2, 5, 8)):
        with pytest.raises(ValueError, match=r"patches \(N, E\)"):
            visualize.fit_patch_pca(torch.zeros(shape))


def test_positions_in_pixels():
    xy = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [-1 + 3 / 6, -1 + 5 / 4]])
    expected = torch.tensor([[-0.5, -0.5], [5.5, 3.5], [2.5, 1.5], [1.0, 2.0]])  # the last: centre of cell (1, 2)
    torch.testing.assert_close(visualize.core_pixels(xy, height=4, width=6), expected)


def test_the_scale_of_maps_is_symmetric_and_bounded():
    shares = torch.full((1000,), 1.0)
    shares[:10] = 0.5  # 1 %, so within the 99.5 % that the scale covers
    assert visualize.map_limit(shares) == pytest.approx(2.0)
    shares[:10] = 2.0
    assert visualize.map_limit(shares) == pytest.approx(2.0)
    shares[:10] = 100.0
    assert visualize.map_limit(shares) == 32.0
    assert visualize.map_limit(torch.ones(4)) == 1.05


def test_drawn_maps_hold_the_logarithms_and_the_dot_is_where_the_core_is():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    share = torch.tensor([[1.0, 2.0, 0.5], [8.0, 1.0, 1.0]])
    shown = visualize.draw_core_map(axes, share, torch.tensor([1 / 3, -0.5]), limit=4.0)
    expected = torch.tensor([[0.0, 1, -1], [2, 0, 0]]).double() * math.log(2)  # 8 is cut at 4
    torch.testing.assert_close(torch.as_tensor(shown.get_array().data), expected)
    assert axes.collections[0].get_offsets().tolist()[0] == pytest.approx([1.5, 0.0], abs=1e-6)


def test_drawn_images_show_every_core_and_ring_the_first():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    image = torch.rand(3, 20, 40, generator=torch.Generator().manual_seed(0))
    visualize.draw_image(axes, image, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]))
    assert torch.equal(torch.as_tensor(axes.images[0].get_array().data), image.permute(1, 2, 0))
    dots, *rings = [collection.get_offsets().tolist() for collection in axes.collections]
    assert dots == [[19.5, 9.5], [9.5, 14.5]] and rings == [[[19.5, 9.5]]] * 2


def test_the_figure_compares_budgets_and_puts_cores_where_they_are():
    pytest.importorskip("matplotlib")
    model = tiny(patch_size=8, depth=2, num_cores=16, trained_budgets=[2, 4, 16], mean=(0.5,) * 3, std=(0.25,) * 3)
    image = torch.rand(3, 28, 40, generator=torch.Generator().manual_seed(0))  # 4 pixels are padded below
    figure, features = visualize.feature_figure(model, image, title="a title")
    expected = model.forward_features((image[None] - 0.5) / 0.25)
    torch.testing.assert_close(features.patches, expected.patches)
    above, below = figure.axes[:4], figure.axes[4:8]
    dots = torch.as_tensor(above[0].collections[0].get_offsets().data).float()
    in_pixels = (expected.core_xy[0] + 1) / 2 * torch.tensor([40, 32]) - 0.5
    torch.testing.assert_close(dots, in_pixels.detach(), rtol=0, atol=1e-4)
    few = model.forward_features((image[None] - 0.5) / 0.25, 2)
    cosine = torch.nn.functional.cosine_similarity(few.patches, expected.patches, dim=-1).mean()
    titles = [axes.get_title() for axes in above]
    assert titles[1] == "patches with 16 cores" and titles[3] == f"patches with 2 cores, cosine {cosine:.3f}"
    pca = visualize.fit_patch_pca(expected.patches[0].detach())
    shown = torch.as_tensor(above[3].images[0].get_array().data)
    torch.testing.assert_close(shown, visualize.pca_rgb(few.patches[0].detach(), pca).unflatten(0, (4, 5)))
    shares = visualize.core_shares(model.attention_maps((image[None] - 0.5) / 0.25), [2])[0]
    drawn = torch.as_tensor(below[2].images[0].get_array().data).exp()
    inside = (drawn < drawn.max() - 1e-6) & (drawn > drawn.min() + 1e-6)  # the scale is cut at both ends
    assert inside.sum() > 15
    torch.testing.assert_close(drawn[inside].float(), shares[inside].detach(), rtol=1e-3, atol=1e-4)
    assert figure.get_suptitle() == "a title"


def test_a_single_core_has_a_figure_too():
    pytest.importorskip("matplotlib")
    model = tiny(num_cores=1, trained_budgets=[1])
    figure, features = visualize.feature_figure(model, torch.rand(3, 32, 64))
    filled = [axes.has_data() for axes in figure.axes[:8]]
    assert features.num_cores == 1 and filled == [True, True, False, False, True, False, False, False]
