"""Parts that two or more systems are built of: residual stacks, the transformer over tokens, flows, shared losses."""

from .flow import FlowPath, flow_matching_loss, integrate
from .gaussian import Posterior
from .losses import softclip, softclip_floor, squared_error
from .sit import SiT
from .stack1d import DownStack1d, ResBlock1d, UpStack1d, group_norm

__all__ = [
    "DownStack1d",
    "FlowPath",
    "Posterior",
    "ResBlock1d",
    "SiT",
    "UpStack1d",
    "flow_matching_loss",
    "group_norm",
    "integrate",
    "softclip",
    "softclip_floor",
    "squared_error",
]
