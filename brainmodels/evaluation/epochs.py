"""Everything that is said of epochs of EEG or MEG: encoding and decoding over time, and what noise allows.

evaluation = evaluate_epochs(dataset, [FeatureSet.parse("veca")], EvaluationSettings(out="out/eeg"))
evaluation.decoded[0].course.onset   # seconds; None where nothing is above chance
print(evaluation.decoded[0].scores[0])
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from veca.report.machine import describe_machine

from ..data import BrainDataset, SensorSpace, Split, Subject
from ..data.leakage import duplicates_of
from ..errors import BrainDataError
from ..features import FeatureCache
from ..features.sets import FeatureSet, feature_rows
from ..metrics import Score
from ..metrics.controls import all_at_chance
from ..records import plain
from ..simulated import SimulatedDataset
from .checks import refuse_changed
from .epoch_data import Band, EpochData, collect
from .epoch_results import DecodedEpochs, EncodedEpochs, EpochOptions, Generalization, Targets
from .epoch_scores import decode_epochs, encode_epochs, generalize, pairwise_classification
from .epoch_sensors import Occluded, occlude_regions
from .epoch_statistics import Course
from .settings import EvaluationSettings

__all__ = ["EpochEvaluation", "are_epochs", "evaluate_epochs"]

_log = logging.getLogger(__name__)
LEAST = {"train": 10, "test": 4}  # images of a part
_OF_VOXELS = (
    "models",
    "pictures",
    "weights",
    "protocol",
    "anatomy",
    "to_mni",
    "ablations",
    "partition",
    "published",
    "context",
    "draws",
    "curve",
    "check_alignment",
    "normalizer",
)  # settings that studies of epochs do not have


@dataclass(frozen=True, eq=False)
class EpochEvaluation:
    """Scores and outputs of one study of epochs.

    Attributes:
        record: All numbers as JSON, written to record.json.
        data: Responses of the subject.
        encoded, decoded: One entry for each set of features, then one for each band with the first set.
        generalization: Decoders of each time at all others, with the first set.
        classification: Pairs of test images told apart without features. None where test images were shown once.
        occluded: What is lost without each region of channels.
        dataset: The data set with the stimuli.
        seed: Seed of the study.
    """

    record: dict[str, Any]
    data: EpochData
    encoded: Sequence[EncodedEpochs]
    decoded: Sequence[DecodedEpochs]
    generalization: Generalization
    classification: Course | None
    occluded: Sequence[Occluded]
    dataset: BrainDataset
    seed: int

    @property
    def judged(self) -> list[Score]:
        """Scores that decide whether anything is above chance."""
        encoded = [score for item in self.encoded for score in item.scores if score.metric.name == "epoch_r"]
        names = ("image_given_brain_top1", "two_way[", "two_way_over_time")
        decoded = [score for item in self.decoded for name in names if (score := item.score(name)) is not None]
        return encoded + decoded

    @property
    def at_chance(self) -> str | None:
        """Text for the page if every score lies in its chance interval, else None."""
        return all_at_chance(self.judged)


def are_epochs(subject: Subject) -> bool:
    """Whether responses are those of sensors over time."""
    return isinstance(subject.space, SensorSpace) and subject.responses.values.ndim == 3


def evaluate_epochs(dataset: BrainDataset, sets: Sequence[FeatureSet], settings: EvaluationSettings) -> EpochEvaluation:
    """All scores of one subject. Nothing is drawn or written but the cache of features.

    Args:
        dataset: Data set with the subject and the split of the settings.
        sets: Sets of features. Temporal generalisation, occlusion and bands use the first.
        settings: Settings of the study. `data` and `features` are only written down.

    Raises:
        BrainDataError: The responses are no epochs, images are too few, or a setting is one of studies of voxels.
        LeakageError: A test picture is also a train picture, under another id.
    """
    refuse_changed(settings, _OF_VOXELS, "epochs of sensors, which do not have it")
    subject = dataset.subject(next(iter(settings.subject or dataset.subjects)))
    split = dataset.split(settings.split or next(iter(dataset.splits), "none"))
    _check(subject, split, sets)
    bands = [Band.parse(word) for word in settings.bands]
    bar = tqdm(total=2 + 2 * len(sets) + 2 * len(bands), disable=not settings.progress, desc="evaluate", unit="step")
    _step(bar, "epochs")
    duplicates = duplicates_of(dataset.stimuli, split, settings.allow_duplicates, [subject])
    data = collect(dataset, subject, split, settings.time_bin, seed=settings.seed)
    options = EpochOptions(settings.resamples, settings.shuffles, settings.threshold, settings.seed)
    encoded, decoded, targets = [], [], []
    for item in sets:
        _step(bar, f"features of {item.name}")
        targets.append(_targets(item, dataset, data, settings))
        _step(bar, f"models of {item.name}")
        started = time.perf_counter()
        encoded.append(encode_epochs(data, targets[-1], options))
        decoded.append(decode_epochs(data, targets[-1], options))
        _log.info("models of %s: %.1f s", item.name, time.perf_counter() - started)
    _step(bar, "temporal generalisation and regions")
    generalization = generalize(data, targets[0], options)
    classification = pairwise_classification(data, options)
    occluded = occlude_regions(data, targets[0], options)
    for band in bands:
        _step(bar, str(band))
        power = collect(dataset, subject, split, settings.time_bin, band, settings.seed)
        _step(bar, f"models of {band}")
        encoded.append(encode_epochs(power, targets[0], options))
        decoded.append(decode_epochs(power, targets[0], options))
    bar.close()
    record = _record(settings, dataset, data, split, sets) | {
        "duplicates": duplicates,
        "encoding": [item.to_json() for item in encoded],
        "decoding": [item.to_json() for item in decoded],
        "generalization": generalization.to_json(),
        "classification": None if classification is None else classification.to_json(),
        "occlusion": [row.to_json() for row in occluded],
    }
    parts = (encoded, decoded, generalization, classification, occluded)
    return EpochEvaluation(plain(record), data, *parts, dataset, settings.seed)


def _targets(item: FeatureSet, dataset: BrainDataset, data: EpochData, settings: EvaluationSettings) -> Targets:
    """Features of the train and the test images, in the order of the responses."""
    cache = FeatureCache(Path(settings.out) / "features", item.extractor, dataset.stimuli)
    cache.extract([*data.train_ids, *data.test_ids], device=settings.device, progress=settings.progress)
    rows = feature_rows(cache, data.train_ids), feature_rows(cache, data.test_ids)
    return Targets.of(item.name, item.extractor.fingerprint(), *rows, item.extractor.note)


def _check(subject: Subject, split: Split, sets: Sequence[FeatureSet]) -> None:
    names = [item.name for item in sets]
    if not names or len(set(names)) != len(names):
        raise BrainDataError(f"expected sets of features with names of their own, got {', '.join(names) or 'none'}")
    if not are_epochs(subject):
        raise BrainDataError(
            f"expected epochs (trials, channels, times) of sensors of {subject.id}, got shape "
            f"{subject.responses.values.shape}"
        )
    trials = subject.responses.trials
    for part, least in LEAST.items():
        count = len(np.unique(trials.image_id[split.rows(trials, part, subject.id)]))
        if count < least:
            raise BrainDataError(
                f"expected {least} {part} images or more with epochs of {subject.id} in split {split.name!r}, got "
                f"{count}"
            )


def _record(
    settings: EvaluationSettings, dataset: BrainDataset, data: EpochData, split: Split, sets: Sequence[FeatureSet]
) -> dict[str, Any]:
    """What was done to what."""
    subject = data.pairs.subject
    space, trials = subject.space, subject.responses.trials
    assert isinstance(space, SensorSpace)
    simulated = isinstance(dataset, SimulatedDataset)
    return {
        "kind": "epochs",
        "settings": asdict(settings),
        "machine": describe_machine(torch.device("cpu"), torch.float32),
        "data": {
            "name": "simulated" if simulated else str(subject.provenance.get("layout", "own data")),
            "simulated": simulated,
            "subject": subject.id,
            "split": split.name,
            "split_hash": split.hash,
            "train_images": len(data.train_ids),
            "test_images": len(data.test_ids),
            "trials": len(trials),
            "sessions": len(np.unique(trials.session)),
            "channels": list(space.ch_names),
            "sfreq": float(space.sfreq),
            "tmin": float(space.times[0]),
            "tmax": float(space.times[-1]),
            "unit": space.unit,
            "bins": data.space.times.tolist(),
            "bin_seconds": 1 / data.space.sfreq,
            "test_repeats": [min(map(len, data.groups)), max(map(len, data.groups))],
            "white": data.whitening is not None,
            "ceiling_from": data.ceiling_from,
            "normalizer": data.pairs.normalizer,
            "recipe": subject.provenance.get("recipe"),
        },
        "features": {item.name: json.loads(item.extractor.config()) for item in sets},
        "fingerprints": {item.name: item.extractor.fingerprint() for item in sets},
    }


def _step(bar: tqdm, text: str) -> None:
    bar.set_postfix_str(text)
    bar.update()
