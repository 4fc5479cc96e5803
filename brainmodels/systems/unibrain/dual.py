"""Two contexts in the UNets of diffusers: each context block is replaced by a mixture of two that are shared."""

from typing import Any

from torch import Tensor, nn

from ...errors import LayoutError, need
from .model import DualContext

try:
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
except ImportError as error:
    raise need("diffusers", "brainmodels.systems.unibrain") from error

__all__ = ["DualTransformer", "share_contexts"]


class DualTransformer(nn.Module):
    """A `DualContext` that can stand for a `Transformer2DModel`.

    Both contexts come as one tensor: first the tokens of the image, then those of the text.

    Args:
        image, text: The transformers of the two UNets, shared and not copied.
        image_tokens: Number of tokens of the image context.
    """

    def __init__(self, image: nn.Module, text: nn.Module, image_tokens: int):
        super().__init__()
        self.both, self.image_tokens, self.image_weight = (
            DualContext(_Sampled(image), _Sampled(text)),
            image_tokens,
            1.0,
        )

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False, **_: Any) -> Any:
        """(mixture,), as the blocks of a UNet expect it without `return_dict`."""
        c_image, c_text = encoder_hidden_states.tensor_split([self.image_tokens], 1)
        return (self.both(hidden_states, c_image, c_text, self.image_weight),)


class _Sampled(nn.Module):
    """A transformer of diffusers as a function that returns its tensor."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, h: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.transformer(h, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]


def share_contexts(image_unet: nn.Module, text_unet: nn.Module, image_tokens: int) -> list[DualTransformer]:
    """Put a `DualTransformer` in place of every context block of both UNets.

    Args:
        image_unet: UNet whose context blocks are of images.
        text_unet: UNet whose context blocks are of captions.
        image_tokens: Number of tokens of the image context.

    Returns:
        The blocks, whose `image_weight` can be set.

    Raises:
        LayoutError: The two have context blocks in other places.
    """
    places = [_contexts_of(unet) for unet in (image_unet, text_unet)]
    if places[0].keys() != places[1].keys() or not places[0]:
        differ = sorted(places[0].keys() ^ places[1].keys())
        raise LayoutError(
            f"expected equal names of context blocks in both UNets, got {', '.join(differ[:4]) or 'none'}"
        )
    made = []
    for name, image in places[0].items():
        dual = DualTransformer(image, places[1][name], image_tokens)
        made.append(dual)
        parent, _, index = name.rpartition(".")
        for unet in (image_unet, text_unet):
            blocks = unet.get_submodule(parent)
            assert isinstance(blocks, nn.ModuleList)  # of attentions, in every block of diffusers
            blocks[int(index)] = dual
    return made


def _contexts_of(unet: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)}
