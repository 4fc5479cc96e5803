"""Building blocks that several systems share: residual stacks, a token transformer, flows, losses, and token decoders.

    flow = SiT(num_tokens=256, token_width=1664, depth=8, num_heads=13)
    loss = flow_matching_loss(flow, FlowPath("linear"), z_0, z_1)
    decoder = ConvDecoder.fit(tokens, images)   # tokens (n, m, d) to pictures (n, 3, H, W)

Modules state their shapes as (B, m, d): batch, tokens, token width.
"""

from .flow import FlowPath, flow_matching_loss, integrate
from .gaussian import Posterior
from .losses import info_nce, softclip, softclip_floor, squared_error
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
    "info_nce",
    "integrate",
    "softclip",
    "softclip_floor",
    "squared_error",
]
