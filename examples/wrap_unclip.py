"""Draw what a brain model decodes with an unCLIP of your own. Toy modules stand in for it, so that this runs anywhere.

    python examples/wrap_unclip.py
    veca brain evaluate --data prepared/subj01 --models runs/neuroflow --pictures examples/wrap_unclip.py:UnCLIP

Replace `clip_tokens` by the image tower of your unCLIP, and `unclip` by its generator; both read local files. The class
learns the way between the two kinds of tokens on train images. Prints how well pictures from the tokens of new images
correlate with these images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from brainmodels.nn.token_adapter import AdaptedGenerator, AdapterSize, TokenAdapter


def clip_tokens(pixels: Tensor) -> Tensor:
    """Tokens (n, 64, 3) of images (n, 3, 64, 64) in [0, 1]: the mean colour of each cell."""
    return F.avg_pool2d(pixels, 8).flatten(2).mT


def unclip(tokens: Tensor) -> Tensor:
    """Images (n, 3, 64, 64) in [0, 1] from such tokens."""
    return F.interpolate(tokens.mT.unflatten(2, (8, 8)), 64, mode="bilinear").clamp(0, 1)


class UnCLIP:
    """Pictures from tokens of a brain model; the argument of `--pictures`."""

    def __init__(self, tokens: Tensor, images, device: str):
        pixels = torch.from_numpy(images(64)).permute(0, 3, 1, 2).to(device) / 255
        targets = clip_tokens(pixels)
        size = AdapterSize(*tokens.shape[1:], *targets.shape[1:], width=64, depth=1, heads=4)  # small, for toy tokens
        adapter = TokenAdapter.fit(tokens, targets, size, steps=150, noise=0.5, lr=3e-3, device=device)
        self.draw = AdaptedGenerator(adapter, unclip, "toy_unclip", fingerprint="without weights")
        self.name, self.fingerprint = self.draw.name, self.draw.fingerprint

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.draw(tokens)


if __name__ == "__main__":
    from brainmodels.evaluation.user_pictures import UserFunction
    from brainmodels.features import extractor
    from brainmodels.simulated.scenes import scene_pictures

    pictures = scene_pictures([f"sim1:{number:06d}" for number in range(160)], 64)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    tokens = extractor("veca_nano_patch8", pretrained=True).encode(pixels).tokens
    assert tokens is not None  # of an extractor with places
    function = UserFunction.of(f"{__file__}:UnCLIP")
    draw = function.made(tokens[:120].numpy(), lambda side: pictures[:120], "cpu")
    both = torch.stack([draw(tokens[120:]).flatten(1), pixels[120:].flatten(1)])
    r = torch.nn.functional.cosine_similarity(*(both - both.mean(2, keepdim=True)), dim=1).mean()
    print(f"{draw.name}: correlation of pixels with the shown images {r:.2f}")
