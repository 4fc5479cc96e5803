"""Parts that systems are built of: residual stacks, the transformer over tokens, flows, losses, tokens to pictures."""

from .flow import FlowPath, flow_matching_loss, integrate
from .gaussian import Posterior
from .losses import softclip, softclip_floor, squared_error
from .sit import SiT
from .stack1d import DownStack1d, ResBlock1d, UpStack1d, group_norm
from .token_adapter import AdaptedGenerator, AdapterSize, TokenAdapter
from .tokens_to_image import Blend, ConvDecoder, DecoderSize, NearestImage, TokensToImage

__all__ = [
    "AdaptedGenerator",
    "AdapterSize",
    "Blend",
    "ConvDecoder",
    "DecoderSize",
    "DownStack1d",
    "FlowPath",
    "NearestImage",
    "Posterior",
    "ResBlock1d",
    "SiT",
    "TokenAdapter",
    "TokensToImage",
    "UpStack1d",
    "flow_matching_loss",
    "group_norm",
    "integrate",
    "softclip",
    "softclip_floor",
    "squared_error",
]
