"""Responses that trained encoding models predict for images: an in-silico subject of BERG.

    berg = BERG(berg_dir="berg")                                # the toolbox and its weights are yours
    models = {roi: berg.get_encoding_model("fmri-nsd-fwrf", subject=1, selection={"roi": roi}) for roi in ("V1", "V4")}
    subject = from_berg(berg, models, stimuli)                  # one trial for each image

BERG is the Brain Encoding Response Generator of Gifford and colleagues, https://github.com/gifale95/BERG. Nothing is
downloaded here. Predictions have no noise of measurement. Scores of an in-silico subject tell how well one model
imitates another one, and nothing of a brain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError
from .dataset import Subject
from .responses import Responses, TrialTable
from .spaces import SensorSpace, VoxelSpace
from .stimuli import StimulusSet

__all__ = ["from_berg"]


def from_berg(
    berg: Any,
    models: Any,
    stimuli: StimulusSet,
    ids: Sequence[str] | None = None,
    *,
    subject: str = "berg",
    size: int = 224,
    batch: int = 100,
    unit: str = "unknown",
) -> Subject:
    """A subject whose responses are predictions of BERG's models.

    Args:
        berg: Object with BERG's `encode(model, images, return_metadata=True)`; images are uint8 (n, 3, size, size).
        models: A model, or models of fMRI by the name of their region. Their voxels are joined.
        stimuli: Images to respond to.
        ids: Ids of the images; None takes all.
        subject: Id of the subject.
        size: Side in pixels of the squares that the models see.
        batch: Number of images that are encoded at once.
        unit: Physical unit of the predictions, which BERG's description of the model tells.

    Returns:
        Of fMRI one trial for each image. Voxels have no known places, and no reliability: that of the measured voxels
        is not that of noiseless predictions. Of EEG or MEG a trial for each image and repeat. Repeats are models of
        single repeats; their differences are not noise.

    Raises:
        AxisError: Predictions of another shape, or not one for each image.
        BrainDataError: There is no model, predictions are not finite, sensors have no names and times, or several
            models predict sensors.
    """
    named = dict(models) if isinstance(models, Mapping) else {"": models}
    ids = list(stimuli.ids) if ids is None else list(ids)
    if not named or not ids or batch < 1:
        raise BrainDataError(
            f"expected models, images and batch >= 1, got {len(named)} models, {len(ids)} images, {batch}"
        )
    found = {name: _encoded(berg, model, stimuli, ids, size, batch, name) for name, model in named.items()}
    values = [array for array, _ in found.values()]
    told = {"layout": "berg", "in_silico": True, "models": {name: _named(model) for name, model in named.items()}}
    if any(array.ndim == 4 for array in values):
        if len(named) > 1:
            raise BrainDataError(f"expected one model of sensors, got {', '.join(named)}")
        space = _sensors(next(iter(found.values()))[1], values[0].shape[2:], unit)
        repeats = values[0].shape[1]
        trials = TrialTable.of(np.repeat(ids, repeats))
        flat = values[0].reshape(-1, *values[0].shape[2:])
        return Subject(subject, Responses(flat, trials, unit=unit), space, provenance=told)
    joined = np.concatenate(values, 1)
    ends = np.cumsum([0, *(array.shape[1] for array in values)])
    places = np.arange(joined.shape[1])
    rois = {name: (places >= a) & (places < b) for name, a, b in zip(named, ends[:-1], ends[1:], strict=True) if name}
    index = np.stack([places, 0 * places, 0 * places], 1)
    space = VoxelSpace("berg", index, (len(places), 1, 1), rois=rois)
    return Subject(subject, Responses(joined, TrialTable.of(ids), unit=unit), space, provenance=told)


def _encoded(
    berg: Any, model: Any, stimuli: StimulusSet, ids: list[str], size: int, batch: int, name: str
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Predictions of one model for all images, fp32, and what BERG says of it."""
    parts, metadata = [], {}
    for start in range(0, len(ids), batch):
        some = ids[start : start + batch]
        pictures = np.ascontiguousarray(stimuli.images(some, size).transpose(0, 3, 1, 2))
        made = berg.encode(model, pictures, return_metadata=True)
        made, metadata = made if isinstance(made, tuple) else (made, {})  # BERG warns where it has no metadata
        made, what = np.asarray(made, np.float32), f"the model {name or _named(model)}"
        if made.ndim not in (2, 4) or len(made) != len(some):
            wanted = f"({len(some)}, voxels) or ({len(some)}, repeats, channels, times)"
            raise AxisError(f"expected predictions {wanted} of {what}, got {made.shape}")
        if not np.isfinite(made).all():
            raise BrainDataError(f"expected finite predictions of {what}, got NaN or infinity for {some[0]!r} or later")
        parts.append(made)
    return np.concatenate(parts), metadata


def _named(model: Any) -> str:
    """The id that BERG gives a model, or else its class."""
    tell = getattr(model, "get_model_id", None)
    return str(tell()) if callable(tell) else type(model).__name__


def _sensors(metadata: Mapping[str, Any], shape: tuple[int, ...], unit: str) -> SensorSpace:
    """Channels and times of a model of sensors."""
    told = next((metadata[kind] for kind in ("eeg", "meg") if kind in metadata), {})
    if "ch_names" not in told or "times" not in told:
        raise BrainDataError(f"expected ch_names and times in BERG's metadata, got {', '.join(told) or 'none'}")
    names, times = [str(name) for name in told["ch_names"]], np.asarray(told["times"], np.float64)
    if (len(names), len(times)) != shape or len(times) < 2:
        raise AxisError(
            f"expected predictions of {len(names)} channels and {len(times)} times, as BERG's metadata say, got "
            f"{shape}; take all channels and times"
        )
    return SensorSpace(names, float(np.round(1 / np.diff(times).mean(), 6)), times, unit=unit)
