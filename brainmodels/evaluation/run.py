"""One study from end to end: data, alignment, features, encoding, decoding, record and report."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from veca.report.machine import describe_machine

from ..data import BrainDataset, Split, Subject
from ..data.align import AlignmentReport, check_alignment
from ..data.anatomy import check_maps
from ..data.leakage import duplicates_of
from ..data.normalize import default_normalizer, fit_normalizer
from ..features import FeatureCache
from ..features.sets import FeatureSet, feature_rows
from ..metrics.slots import slot_files
from ..records import plain
from ..simulated import SimulatedDataset
from .checks import check_settings, check_study
from .decoding import Decoded, decode, decode_shuffled
from .encoding import (
    Encoded,
    Study,
    encode,
    encode_controls,
    encode_shrunk,
    learning_curve,
    planted_oracle,
    reliability,
)
from .generation import Generation, evaluate_generation
from .layers import BestLayers, best_layers, check_layers
from .models import ModelEvaluation, evaluate_model
from .opened import OpenedModel
from .partition import Partition, check_partition, partition_of
from .pictures import Pictures, draw_pictures, drawing_of
from .protocol_rows import Protocol, check_protocols, protocol_scores
from .published_images import PublishedImages
from .settings import EvaluationSettings
from .significance import Significance, ceiling_of, significance_of
from .user_pictures import UserFunction
from .verdict import Verdict, seed_spread, verdicts

__all__ = [
    "Evaluation",
    "evaluate",
    "feature_cache",
    "normalizer_name",
    "study_of",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores and outputs of one evaluation.

    Attributes:
        record: All numbers as JSON, written to record.json.
        encoded, decoded: One entry for each model or set of features.
        study: Responses of the subject.
        dataset: The data set with the stimuli.
        models: Scores of trained models; their encoding is also among `encoded`.
        pictures: Pictures of what they decode.
        generated: Pictures and captions of models that make them, with their scores.
        layers: Encoding from the best layer of each region; also among `encoded`.
        protocols: Scores under the protocols of papers.
        verdict: Rows of the first table: what each model reaches, and its difference to ridge.
        significance: Tests of every voxel for each row of `encoded`.
        partition: Unique and shared parts of the sets of features, if they were asked for.
    """

    record: dict[str, Any]
    encoded: Sequence[Encoded]
    decoded: Sequence[Decoded]
    study: Study
    dataset: BrainDataset
    models: Sequence[ModelEvaluation] = ()
    pictures: Sequence[Pictures] = ()
    generated: Sequence[Generation] = ()
    layers: Sequence[BestLayers] = ()
    protocols: Sequence[Protocol] = ()
    verdict: Sequence[Verdict] = ()
    significance: Significance | None = None
    partition: Partition | None = None


def evaluate(
    dataset: BrainDataset,
    sets: Sequence[FeatureSet],
    settings: EvaluationSettings,
    models: Sequence[OpenedModel] = (),
    whole: Split | None = None,
) -> Evaluation:
    """All scores of one subject; nothing is drawn or written but the cache of features.

    Args:
        dataset: with the subject and the split of the settings.
        sets: sets of features; the first is the one that curves are of.
        settings: see there; `data`, `features` and `models` are only written down.
        models: fitted to the train part.
        whole: Split whose train trials tell the noise ceiling and the alignment; None is that of the settings.

    Raises:
        BrainDataError: a model was fitted to other data, features or scales.
        AlignmentError: The responses identify their images at chance.
        LeakageError: A test picture is also a train picture, under another id.
    """
    subject = dataset.subject(next(iter(settings.subject or dataset.subjects)))
    split = dataset.split(settings.split or next(iter(dataset.splits), "none"))
    check_settings(settings.pictures, settings.published, isinstance(dataset, SimulatedDataset))
    check_study(subject, split, sets, few=bool(settings.context))
    check_partition(settings.partition, [item.name for item in sets])
    files, drawing = slot_files(settings.weights), drawing_of(settings.pictures)
    check_maps(subject.space, settings.anatomy, settings.to_mni)
    bar = tqdm(total=2 * len(sets) + 5 + 2 * len(models), disable=not settings.progress, desc="evaluate", unit="step")
    duplicates = duplicates_of(dataset.stimuli, split, settings.allow_duplicates, [subject])
    alignment = check_alignment(dataset, subject.id, whole or split, settings.check_alignment, seed=settings.seed)
    _step(bar, "noise ceiling")
    study = study_of(dataset, subject, split, settings, whole)
    check_protocols(settings.protocol, study)
    check_layers(sets, dataset, study)
    for item in models:
        item.check(study)

    encoded, decoded, rows = _linear(sets, study, dataset, settings, bar)
    layers = best_layers(sets, study, dataset, rows, _cache_folder(settings), settings.device)
    encoded += [item.encoded for item in layers]
    published = PublishedImages.of(files, study, dataset, settings.device, any(item.generates for item in models))
    tokens = [item for item in models if not item.generates]
    told, pictures = _models(tokens, sets, study, dataset, settings, bar, drawing, published)
    generated = []
    for item in models:
        if item.generates:
            _step(bar, item.name)
            options = {"device": settings.device, "ablations": settings.ablations, "cache": _cache_folder(settings)}
            options["published"] = published
            generated.append(evaluate_generation(item, study, dataset, **options))
    encoded += _once([row for item in told for row in item.encoded])
    _step(bar, "controls")
    first, (X, X_test) = sets[0], rows[sets[0].name]
    mark, note = first.extractor.fingerprint(), first.extractor.note
    encoded += encode_shrunk(study, first.name, mark, X, X_test, note)
    encoded += encode_controls(study, first.name, mark, X, X_test, note)
    decoded.append(decode_shuffled(study, first.name, mark, X, X_test, note))
    if isinstance(dataset, SimulatedDataset):
        encoded.append(planted_oracle(study, dataset))
    _step(bar, "learning curve")
    counts = [count for count in settings.curve if count < len(X)] + [len(X)]
    curve = learning_curve(study, X, X_test, counts)
    partition = partition_of(study, rows) if settings.partition else None
    _step(bar, "significance")
    tests = significance_of(study, encoded, ceiling_of(dataset, study, whole))
    verdict = verdicts(study, encoded[: len(sets)], decoded[: len(sets)], told)
    _step(bar, "done")
    bar.close()
    named = {item.name: item for item in sets}
    named |= {f"{x.tokens_of.name} of {x.name}": x.tokens_of for x in tokens if x.tokens_of not in sets}
    record = _record(settings, dataset, study, alignment, named) | {
        "duplicates": duplicates,
        "verdict": [row.to_json() for row in verdict],
        "significance": tests.to_json(encoded, study),
        "seeds": seed_spread(told),
        "encoding": [item.to_json() for item in encoded],
        "decoding": [item.to_json() for item in decoded],
        "learning_curve": {
            "features": first.name,
            "points": {str(count): list(point) for count, point in curve.items()},
        },
    }
    if partition is not None:
        record["partition"] = partition.to_json()
    protocols = protocol_scores(settings.protocol, study, dataset, rows, decoded, told)
    if protocols:
        record["protocols"] = [item.to_json() for item in protocols]
    if layers:
        record["layers"] = [item.to_json() for item in layers]
    if models:
        record["models"] = [item.to_json() for item in told]
        record["pictures"] = [item.to_json() for item in pictures]
    if generated:
        record["generation"] = [item.to_json() for item in generated]
    more = {"layers": layers, "protocols": protocols, "verdict": verdict, "significance": tests}
    more["partition"] = partition
    return Evaluation(record, encoded, decoded, study, dataset, told, pictures, generated, **more)


def study_of(
    dataset: BrainDataset, subject: Subject, split: Split, settings: EvaluationSettings, repeats: Split | None = None
) -> Study:
    """Responses of train and test images of a subject, scaled and averaged, with the noise ceiling.

    Args:
        dataset, subject, split: The data.
        settings: Their normaliser, threshold, resamples and seed.
        repeats: Split whose train trials the noise ceiling is estimated from; None is `split`.
    """
    name = normalizer_name(settings.normalizer, subject, few=bool(settings.context))
    scale = None if name == "none" else fit_normalizer(name, subject, split)
    train, test = (dataset.pairs(subject.id, split, part, "repeats", scale) for part in ("train", "test"))
    ncsnr = reliability(subject, dataset.pairs(subject.id, repeats or split, "train", "none", scale))
    return Study.of(train, test, ncsnr, settings.threshold, settings.resamples, settings.seed, settings.shuffles)


def normalizer_name(name: str, subject: Subject, few: bool) -> str:
    """Name of the normaliser; "auto" is the default of the subject.

    Sessions have too few trials of a small number of train images. Where the default takes statistics by session from
    train trials, `few` takes them from all trials of the subject that show no test image.

    Args:
        name: Name of a normaliser, or "auto".
        subject: Subject whose responses are normalised.
        few: Whether the subject has a small number of train images.
    """
    if name != "auto":
        return name
    default = default_normalizer(subject)
    return {"session_z_train": "session_z_unlabelled"}.get(default, default) if few else default


def _linear(
    sets: Sequence[FeatureSet], study: Study, dataset: BrainDataset, settings: EvaluationSettings, bar: tqdm
) -> tuple[list[Encoded], list[Decoded], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Ridge in both directions on each set of features, and the rows of features of train and test images by set."""
    encoded, decoded, rows = [], [], {}
    for item in sets:
        _step(bar, f"features of {item.name}")
        started = time.perf_counter()
        cache = feature_cache(item, dataset, study, settings)
        own = feature_rows(cache, study.train.image_ids), feature_rows(cache, study.test.image_ids)
        rows[item.name] = own
        _log.info("features of %s: %.1f s", item.name, time.perf_counter() - started)
        _step(bar, f"models of {item.name}")
        case = (study, item.name, item.extractor.fingerprint(), *own, item.extractor.note)
        encoded.append(encode(*case))
        decoded.append(decode(*case))
    return encoded, decoded, rows


def _record(
    settings: EvaluationSettings,
    dataset: BrainDataset,
    study: Study,
    alignment: AlignmentReport,
    sets: Mapping[str, FeatureSet],
) -> dict[str, Any]:
    """What was done to what, ready for JSON."""
    return {
        "settings": plain(asdict(settings)),
        "machine": describe_machine(torch.device("cpu"), torch.float32),
        "data": _describe(dataset, study),
        "alignment": str(alignment),
        "features": {name: json.loads(item.extractor.config()) for name, item in sets.items()},
        "fingerprints": {name: item.extractor.fingerprint() for name, item in sets.items()},
    }


def _models(
    models: Sequence[OpenedModel],
    sets: Sequence[FeatureSet],
    study: Study,
    dataset: BrainDataset,
    settings: EvaluationSettings,
    bar: tqdm,
    drawing: Path | UserFunction | None,
    published: PublishedImages | None,
) -> tuple[list[ModelEvaluation], list[Pictures]]:
    """What the models say, and pictures of each that decodes; without such a one, from what ridge decodes."""
    spaces, told, caches = [], [], []
    for item in models:
        _step(bar, item.name)
        caches.append(feature_cache(item.tokens_of, dataset, study, settings, verify=item.tokens_of not in sets))
        told.append(evaluate_model(item, study, caches[-1], spaces))
    pictures = []
    decoding = [item for item in told if item.opened.decodes] or told[:1]
    for item, cache in zip(told, caches, strict=True):
        _step(bar, f"pictures of {item.opened.name}")
        if settings.pictures != "none" and item in decoding:
            others = [other for other in told if other.space is item.space and other not in decoding]
            options = {"others": others, "device": settings.device, "progress": settings.progress}
            pictures.append(draw_pictures(item, study, dataset, cache, drawing, published=published, **options))
    return told, pictures


def _once(rows: Sequence[Encoded]) -> list[Encoded]:
    """Rows of ridge on tokens that several models see are one row."""
    kept: list[Encoded] = []
    for row in rows:
        if not any((row.model, row.features, list(row.scores)) == (x.model, x.features, list(x.scores)) for x in kept):
            kept.append(row)
    return kept


def _cache_folder(settings: EvaluationSettings) -> Path:
    """Where features and latents of images are kept."""
    return Path(settings.out) / "features"


def feature_cache(
    item: FeatureSet, dataset: BrainDataset, study: Study, settings: EvaluationSettings, verify: bool = True
) -> FeatureCache:
    """With the features of the train and the test images."""
    cache = FeatureCache(_cache_folder(settings), item.extractor, dataset.stimuli)
    ids = [*study.train.image_ids, *study.test.image_ids]
    cache.extract(ids, device=settings.device, progress=settings.progress, verify=verify)
    return cache


def _describe(dataset: BrainDataset, study: Study) -> dict[str, Any]:
    subject, split = study.test.subject, study.test.split
    trials = subject.responses.trials
    return {
        "name": "simulated"
        if isinstance(dataset, SimulatedDataset)
        else str(subject.provenance.get("layout", "own data")),
        "simulated": isinstance(dataset, SimulatedDataset),
        "subject": subject.id,
        "split": split.name,
        "split_hash": split.hash,
        "train_images": len(study.train),
        "test_images": len(study.test),
        "trials": len(trials),
        "sessions": len(np.unique(trials.session)),
        "voxels": subject.responses.num_voxels,
        "voxels_counted": int(study.voxels.sum()),
        "rois": {name: int(mask.sum()) for name, mask in study.rois.items()},
        "normalizer": study.test.normalizer,
        "normalizer_trials": getattr(study.test.transform, "num_trials", 0),
        "transductive": study.test.transductive,
        "repeats": "averaged",
        "ceiling": study.ceiling is not None,
    }


def _step(bar: tqdm, text: str) -> None:
    bar.set_postfix_str(text)
    bar.update()
