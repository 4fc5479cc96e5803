"""Scores of decoded pictures as published tables have them, by networks whose weights the user provides.

    published = PublishedImages.of(slot_files(["alexnet=alexnet.safetensors"]), study, dataset)
    published.scores(pictures, "NeuroFlow")  # pixcorr, ssim_2d, alexnet2 and alexnet5

Both sets of pictures are brought to the sizes of MindEye2's tables, whatever size they were drawn at. SSIM is the
two-dimensional one, which recent versions of scikit-image compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import BrainDataset
from ..drawing.patch_code import pixels_of
from ..metrics import Score
from ..metrics.image import PROTOCOLS, image_scores
from ..metrics.slots import Network, open_slot, open_text_slot
from .encoding import Study

__all__ = ["PublishedImages"]

PROTOCOL, SIDE = "mindeye2", 256  # the side to which the protocol resizes both sets first
_CLIP = "clip_vit_l14_openai"


@dataclass(frozen=True)
class PublishedImages:
    """The networks of published scores, and the test images as those scores see them.

    Attributes:
        study: Responses of the subject, for the conditions of the scores.
        real: Test images (n, 3, 256, 256) in [0, 1].
        networks: Opened networks by slot.
        text: Text tower of CLIP, in a tuple; empty without its weights.
        device: Device of the networks.
    """

    study: Study
    real: torch.Tensor
    networks: Mapping[str, Network]
    text: tuple[Network, ...]
    device: str

    @classmethod
    def of(
        cls,
        files: Mapping[str, Path],
        study: Study,
        dataset: BrainDataset,
        device: str = "cpu",
        captions: bool = False,
    ) -> "PublishedImages | None":
        """Open the networks; None without files.

        Args:
            files: Files of weights by slot, see `brainmodels.metrics.slots.slot_files`.
            study, dataset: Responses to the test images, and the images.
            device: Device of the networks.
            captions: Whether captions are judged too, by the text tower of CLIP.

        Raises:
            LayoutError: Weights that are not those of their slot.
            UnsafePickleError: A file of torch that holds more than tensors.
        """
        if not files:
            return None
        networks = {slot: open_slot(slot, file, device) for slot, file in files.items()}
        text = (open_text_slot(files[_CLIP], device),) if captions and _CLIP in files else ()
        real = pixels_of(dataset.stimuli.images(study.test.image_ids, SIDE))
        return cls(study, real, networks, text, device)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots that have weights."""
        return tuple(self.networks)

    def scores(self, pictures: torch.Tensor, decoder: str) -> list[Score]:
        """Scores of the pixels, then of the networks in the order of published tables.

        Args:
            pictures: Pictures of the test images (n, 3, H, W) in [0, 1], in the order of the study.
            decoder: Text that says what made them.
        """
        study, ids = self.study, self.study.test.image_ids
        options = {"resamples": study.resamples, "seed": study.seed, "decoder": decoder}
        if pictures.shape[-1] < PROTOCOLS[PROTOCOL].pixels:
            options["note"] = f"drawn at {pictures.shape[-1]} px, which published models are not"
        found = image_scores(
            self.real,
            pictures,
            ids,
            ids,
            self.networks,
            protocol=PROTOCOL,
            device=self.device,
            variants=("2d",),
            **options,
        )
        return [score.under(study.test) for score in found if score.available]
