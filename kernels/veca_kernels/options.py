"""The options of a joint attention call, in one record from the checks to the launches."""

from typing import NamedTuple

from torch import Tensor


class Options(NamedTuple):
    """What a joint call is told beside q, k and v, checked and filled in, in the order of the public functions.

    Attributes:
        num_cores: C. The first C tokens are cores.
        active_cores: Number of leading cores that take part, an int or int32 (B,) with one number per image.
        patch_lengths: Number of valid patches per image, int32 (B,). None means all.
        patch_rope: Rotation of the patches (cos, sin), each (P, D/2) or (B, P, D/2). None rotates nothing.
        scale: Factor of the scores.
        core_self: Whether cores attend to cores.
        patch_self: Whether a patch attends to its own key.
    """

    num_cores: int
    active_cores: int | Tensor
    patch_lengths: Tensor | None
    patch_rope: tuple[Tensor, Tensor] | None
    scale: float
    core_self: bool
    patch_self: bool
