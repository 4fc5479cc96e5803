"""What an estimator is given, as recordings of trials and sources of features that are joined by image id."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from ..data.ids import Ids
from ..errors import AxisError, BrainDataError, IdError, NormalizationError
from ..features import ArrayFeatures, FeatureSource
from .trials import Recording, Trials

__all__ = ["Features", "check_fingerprint", "recording_of", "source_of"]

Features = FeatureSource | np.ndarray | Tensor


def recording_of(responses: Trials, image_ids: Ids | None, pairing: str, count: int) -> Recording:
    """Trials with the image that each shows.

    Args:
        responses: Trials of one subject.
        image_ids: Images of the trials of an array; None for responses that know them.
        pairing: "ids", or "rows", where trial i belongs to row i of the features.
        count: Number of rows of the features.

    Raises:
        IdError: Ids are missing, or are given with pairing "rows".
        AxisError: There are not as many trials as rows of features.
    """
    if pairing == "ids":
        recording = Recording.of(responses, image_ids)
        if not recording.image_ids.all():
            raise IdError(
                "expected image_ids of the trials, got responses without; pass image_ids=, or pairing='rows' where "
                "row i of the features belongs to trial i"
            )
        return recording
    if image_ids is not None:
        raise IdError("expected no image_ids with pairing='rows', which joins by position, got some")
    recording = Recording.of(responses)
    if len(recording) != count:
        raise AxisError(f"expected a row of features for each of {len(recording)} trials, got {count}")
    return replace(recording, image_ids=np.array(_row_ids(count)))


def source_of(features: Features, feature_ids: Ids | None, pairing: str) -> FeatureSource:
    """A source of features by image id.

    Args:
        features: A source, or an array with a row for each id.
        feature_ids: Ids of the rows of an array.
        pairing: "ids", or "rows", which takes an array without ids.

    Raises:
        IdError: Ids are missing, or are given for a source that has its own.
        BrainDataError: Anything but an array without ids is given with pairing "rows".
    """
    if pairing == "rows":
        if feature_ids is not None or not isinstance(features, np.ndarray | Tensor):
            got = "feature_ids" if feature_ids is not None else type(features).__name__
            raise BrainDataError(f"expected an array of features without ids with pairing='rows', got {got}")
        return ArrayFeatures(features, _row_ids(len(features)))
    if isinstance(features, np.ndarray | Tensor):
        if feature_ids is None:
            raise IdError("expected feature_ids, one for each row of the features, got none")
        return ArrayFeatures(features, feature_ids)
    if feature_ids is not None:
        raise IdError(f"expected no feature_ids with {type(features).__name__}, which has its own, got some")
    return features


def check_fingerprint(expected: str, given: str) -> None:
    """Refuse features of another extractor; those of an array have no fingerprint and cannot be told apart."""
    if expected and given and expected != given:
        raise NormalizationError(f"expected features of the extractor {expected}, as in the fit, got those of {given}")


def _row_ids(count: int) -> list[str]:
    return [f"row:{row:07d}" for row in range(count)]
