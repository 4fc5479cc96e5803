"""How well responses of a new subject are aligned to a known one, and which voxels and regions the map joins.

study = study_of(dataset, known, split, settings)              # responses of the known subject
predicted = aligned_predictions(model, study, test, cache)     # test: averaged responses of the new subject
rows = alignment_scores(model, study, predicted)               # one `Encoded` for each map
regions = region_scores(study, predicted)                      # within each region of the known subject
maps = transfer_maps(model, study, trials, cache)              # trials: train trials of the new subject
curve = trial_curve(model, study, trials, test, cache, counts=(50, 100, 200))

Aligned responses are scored as predictions of what was measured in the known subject for the same test images. The
model is a fitted MindAligner. What the functions return is arrays, records of scores, or JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..baselines import VoxelModel
from ..data import Pairs, Subject
from ..errors import BrainDataError, IdError, check_choice
from ..features import FeatureSource
from ..metrics import Score
from ..metrics.protocols import encoding_scores, join
from ..metrics.retrieval import full_gallery, similarity
from ..simulated import SimulatedDataset
from ..simulated.tuning import pool
from ..systems.mindaligner import AffineMap, MindAligner, Side, posterior_mean_map, region_flow, transfer_quantity
from ..systems.mindaligner.closed_forms import encode_align, encode_invert_encode, no_alignment
from ..systems.mindaligner.transfer import pattern_blocks, weight_blocks
from ..training.trials import Recording
from .encoding import Encoded, Study, judge, ridge_prediction
from .models import filled

__all__ = [
    "ITSELF",
    "OWN",
    "TransferMap",
    "aligned_predictions",
    "alignment_scores",
    "planted_map",
    "region_scores",
    "sides_of",
    "transfer_maps",
    "trial_curve",
]

ITSELF, OWN = "known encoder, image itself", "known subject's own responses"
REFITS = 20  # with wrong images, whose range is the band
_RESAMPLES = 2  # a point of a curve is a value alone


def aligned_predictions(
    model: MindAligner, study: Study, test: Pairs, features: FeatureSource
) -> dict[str, np.ndarray]:
    """What each map predicts of the known subject's test responses, fp32 (images, V known) by name.

    The model comes first, then the closed forms on the same data. Last is the known subject's own ridge encoder, which
    sees the image and no response of the new subject.

    Args:
        model: The model.
        study: Responses of the known subject.
        test: Responses of the new subject to the same test images, averaged over repeats.
        features: Features that the model was fitted to.

    Raises:
        IdError: The study is of another subject, or a test image has no response of the new subject.
        LeakageError: A test image was seen in the fit.
    """
    _check(model, study)
    maps = {model.label: model.transform(test)} | model.reference_transforms(test)
    found = {name: _placed(study, test, values) for name, values in maps.items()}
    X, X_test = (_embeddings(model, features, pairs) for pairs in (study.train, study.test))
    return found | {ITSELF: ridge_prediction(study, X, X_test)}


def alignment_scores(model: MindAligner, study: Study, predicted: Mapping[str, np.ndarray]) -> list[Encoded]:
    """Scores of aligned responses, with intervals, chance and ceiling, over all voxels and by region.

    Args:
        model: The model.
        study: Responses of the known subject.
        predicted: Predictions (images, V known) by name, see `aligned_predictions`.
    """
    source = f"responses of {model.new_}"
    return [
        judge(study, values, name, "images" if name == ITSELF else source, features_of=model.fingerprint_)
        for name, values in predicted.items()
    ]


def region_scores(study: Study, predicted: Mapping[str, np.ndarray]) -> dict[str, dict[str, list[Score]]]:
    """All scores of `encoding_scores` within each region of the known subject, by region and name of the map.

    Functional similarity of a region is "voxel_r_mean", over images, or "sample_r", over the voxels of the region.

    Args:
        study: Responses of the known subject.
        predicted: Predictions (images, V known) by name, see `aligned_predictions`.
    """
    found: dict[str, dict[str, list[Score]]] = {}
    for region, mask in study.rois.items():
        voxels = np.flatnonzero(mask)
        test, ncsnr = _columns(study.test, voxels), None if study.ncsnr is None else study.ncsnr[voxels]
        options = {"resamples": study.resamples, "seed": study.seed, "roi": region}
        found[region] = {
            name: encoding_scores(
                test, values[:, voxels], test.image_ids, ncsnr, study.threshold, decoder=name, **options
            )
            for name, values in predicted.items()
        }
    return found


@dataclass(frozen=True)
class TransferMap:
    """How much of a map each voxel and each pair of regions has, beside refits with wrong images.

    Quantities are divided by their mean over voxels. Fits to wrong images have small weights everywhere, so that even
    voxels without signal would exceed them otherwise.

    Attributes:
        new, known: Relative transfer quantity (V,) of the voxels of either subject; NaN where the fit left them out.
        flow: (regions of the new, regions of the known subject) Relative share of the map, see `region_flow`; 1 is
            chance.
        new_band, known_band, flow_band: (2, ...) Least and greatest of the refits.
        regions: Names of the regions of the new and of the known subject.
    """

    new: np.ndarray
    known: np.ndarray
    flow: np.ndarray
    new_band: np.ndarray
    known_band: np.ndarray
    flow_band: np.ndarray
    regions: tuple[tuple[str, ...], tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Flow, and the shares of voxels above their bands; arrays of voxels are left out."""
        sides = {"new": (self.new, self.new_band), "known": (self.known, self.known_band)}
        above = {name: float((x > band[1])[np.isfinite(x)].mean()) for name, (x, band) in sides.items()}
        regions = {"new": list(self.regions[0]), "known": list(self.regions[1])}
        flow = {"flow": self.flow.tolist(), "flow_band": self.flow_band.tolist()}
        return {"regions": regions, **flow, "share_above_band": above}


def transfer_maps(
    model: MindAligner,
    study: Study,
    trials: Pairs,
    features: FeatureSource,
    kind: str = "weights",
    refits: int = REFITS,
    seed: int = 0,
) -> dict[str, TransferMap]:
    """Transfer quantity and flow between regions, of the model and of `encode_align`, by name.

    Bands are of `encode_align` fitted to responses of the new subject to other images.

    Args:
        model: The model.
        study: Responses of the known subject.
        trials: Train trials of the new subject.
        features: Features that the model was fitted to.
        kind: "weights" or "pattern", see `MindAligner.transfer`.
        refits: Number of refits.
        seed: Seed of the wrong images.

    Raises:
        BrainDataError: A subject has no regions.
    """
    check_choice("kind", kind, ("weights", "pattern"))
    new, known = sides_of(model, trials, study, features)
    kept = [model.scales_[name].kept for name in (model.new_, model.known_)]
    people = trials.subject, study.test.subject
    regions = [_regions(person, mask) for person, mask in zip(people, kept, strict=True)]

    def measured(left: np.ndarray, right: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if kind == "pattern":
            aligned = new.responses @ left if right is None else new.responses @ left @ right
        blocks = [
            weight_blocks(left, right) if kind == "weights" else pattern_blocks(new.responses, aligned)
            for _ in range(2)
        ]
        quantity, flow = transfer_quantity(blocks[0]), region_flow(blocks[1], *regions)
        return _relative(quantity.new, kept[0]), _relative(quantity.known, kept[1]), flow

    rng, wrong = np.random.default_rng(seed), []
    for _ in range(refits):
        shuffled = replace(new, responses=new.responses[rng.permutation(len(new.responses))])
        wrong.append(measured(encode_align(shuffled, known).matrix))
    bands = [np.stack([np.min(parts, 0), np.max(parts, 0)]) for parts in zip(*wrong, strict=True)]
    own = (x.detach().cpu().numpy() for x in (model.map_.A, model.map_.B))
    found = {model.label: measured(*own), "encode_align": measured(encode_align(new, known).matrix)}
    names = tuple(regions[0]), tuple(regions[1])
    return {
        name: TransferMap(quantity, other, flow, bands[0], bands[1], bands[2], names)
        for name, (quantity, other, flow) in found.items()
    }


def trial_curve(
    model: MindAligner,
    study: Study,
    trials: Pairs,
    test: Pairs,
    features: FeatureSource,
    counts: Sequence[int],
    draws: int = 1,
    seed: int = 0,
    fit: Callable[[Pairs], MindAligner] | None = None,
) -> dict[str, Any]:
    """Scores against the number of trials of the new subject: of closed forms, and of maps that are trained again.

    Aligned responses have the share of the known subject's explainable variance, or the median correlation of a voxel
    where there is no ceiling. What the model's decoder reads from them has top-1 among the test images, and so does
    ridge from the new subject straight to the tokens ("no_alignment").

    Args:
        model: Gives tokens, embeddings and the decoder, which do not depend on the number of trials.
        study: Responses of the known subject.
        trials: Train trials of the new subject, of which `counts` are drawn; those of a smaller number are among them.
        test: Responses of the new subject to the test images, averaged over repeats.
        features: Features that the model was fitted to.
        counts: Numbers of trials.
        draws: Number of random draws.
        seed: Seed of the draws.
        fit: Function from fewer trials to a model that is fitted to them; None trains none.

    Returns:
        {"draws": number, "curves": [{"metric": name, "chance": value, "references": {name: value}, "points": {row:
        {number of trials: [value of each draw]}}}]}, ready for JSON. Only the first curve exists without a decoder,
        beside that of "no_alignment".

    Raises:
        BrainDataError: There are fewer trials than the largest number.
    """
    if max(counts) > len(trials):
        raise BrainDataError(f"expected counts of at most {len(trials)} trials of {model.new_}, got {max(counts)}")
    curve = _Curve(model, replace(study, resamples=_RESAMPLES), test, features)
    new, known = sides_of(model, trials, study, features)
    tokens = model.tokens(features, trials.image_ids).reshape(len(trials), -1)
    measured, scale = _measured(model, test, model.new_), model.scales_[model.known_]
    for draw in range(draws):
        order = np.random.default_rng([seed, draw]).permutation(len(trials))
        for count in counts:
            rows = np.sort(order[:count])
            few = Side(new.responses[rows], new.embeddings[rows], new.image_ids[rows])
            for form in (encode_align, encode_invert_encode):
                curve.align(form.__name__, count, scale.undo(form(few, known).transform(measured)))
            direct = no_alignment(replace(few, embeddings=tokens[rows])).transform(measured)
            curve.decode("no_alignment", count, direct)
            if fit is not None:
                trained = fit(_rows(trials, rows))
                curve.align(trained.label, count, trained.transform(test))
    return {"draws": draws, "curves": curve.to_json()}


def sides_of(model: MindAligner, trials: Pairs, study: Study, features: FeatureSource) -> tuple[Side, Side]:
    """What the closed forms see of the new and of the known subject, in the units and voxels of the model.

    Args:
        model: The model.
        trials: Train trials of the new subject.
        study: Responses of the known subject.
        features: Features that the model was fitted to.
    """
    _check(model, study)
    parts = (trials, model.new_), (study.train, model.known_)
    new, known = (
        Side(_measured(model, pairs, name), _embeddings(model, features, pairs), pairs.image_ids)
        for pairs, name in parts
    )
    return new, known


def planted_map(dataset: SimulatedDataset, new: str, known: str, repeats: int = 1) -> AffineMap:
    """The best linear map between two simulated subjects, from their true weights and noise: an oracle.

    It is for z-scored responses and ignores drift.

    Args:
        dataset: Simulated subjects with linear tuning.
        new, known: Names of the subjects.
        repeats: Number of trials in the average of the responses that are aligned.

    Raises:
        BrainDataError: The tuning of a subject is not linear.
    """
    sides = []
    for name, count in ((new, repeats), (known, 1)):
        truth: Any = dataset.truth[name]
        if truth.tuning.conjunctions is not None:
            raise BrainDataError(f"expected linear tuning of {name}, got nonlinear")
        scale = np.sqrt(1 + truth.ncsnr**2)
        weights, noise = truth.tuning.weights * truth.ncsnr / scale, 1 / scale**2 / count
        sides.append(VoxelModel(weights, np.zeros(len(noise)), "truth", (), noise))
    return posterior_mean_map(sides[0], sides[1], np.zeros(len(pool().mean)), pool().correlation)


class _Curve:
    """Points of the curves of `trial_curve`."""

    def __init__(self, model: MindAligner, study: Study, test: Pairs, features: FeatureSource):
        self.model, self.study, self.test = model, study, test
        self.truth = model.tokens(features, study.test.image_ids)
        self.reads = model.meta_["decoder"] is not None
        self.curves: dict[str, dict[str, Any]] = {}
        X, X_test = (_embeddings(model, features, pairs) for pairs in (study.train, study.test))
        self._refer(ITSELF, self._aligned(ITSELF, ridge_prediction(study, X, X_test)))
        if self.reads:
            self._refer(OWN, self._found(model.tokens(model.decode(study.test, subject=model.known_))))

    def align(self, row: str, count: int, aligned: np.ndarray) -> None:
        """Add aligned test responses (m, V known), and what the decoder reads from them."""
        self._add(row, count, self._aligned(row, _placed(self.study, self.test, aligned)))
        if self.reads:
            self.decode(row, count, self.model.tokens(self.model.decode(aligned, subject=self.model.known_)))

    def decode(self, row: str, count: int, tokens: np.ndarray) -> None:
        """Add tokens (m, ...) that were read from the test responses."""
        self._add(row, count, self._found(join(self.study.test.image_ids, self.test.image_ids, tokens)))

    def to_json(self) -> list[dict[str, Any]]:
        return list(self.curves.values())

    def _aligned(self, row: str, predicted: np.ndarray) -> Score:
        encoded = judge(self.study, predicted, row, "")
        score = encoded.score("nr2") or encoded.score("voxel_r")
        assert score is not None  # every prediction has the second one
        return score

    def _found(self, tokens: np.ndarray) -> Score:
        table = similarity(tokens.reshape(len(tokens), -1), self.truth.reshape(len(tokens), -1))
        return full_gallery(table, (1,), self.study.resamples, self.study.seed)[0]

    def _curve(self, score: Score) -> dict[str, Any]:
        new = {"metric": score.metric.name, "chance": score.chance, "references": {}, "points": {}}
        return self.curves.setdefault(score.metric.name, new)

    def _refer(self, row: str, score: Score) -> None:
        self._curve(score)["references"][row] = score.value

    def _add(self, row: str, count: int, score: Score) -> None:
        points = self._curve(score)["points"].setdefault(row, {})
        points.setdefault(str(count), []).append(score.value)


def _check(model: MindAligner, study: Study) -> None:
    """Refuse a study of another subject, and test images of the fit."""
    if study.test.subject.id != model.known_:
        raise IdError(f"expected a study of {model.known_}, the known subject, got one of {study.test.subject.id}")
    model.check_unseen(study.test.image_ids)


def _placed(study: Study, test: Pairs, values: np.ndarray) -> np.ndarray:
    """Aligned test responses in the order of the study, with the train mean in voxels that the model leaves out."""
    return filled(join(study.test.image_ids, test.image_ids, values), study)


def _embeddings(model: MindAligner, features: FeatureSource, pairs: Pairs) -> np.ndarray:
    """Embeddings (m, E) of the images of pairs."""
    scaler: Any = model.scaler_
    return scaler.transform(features.get(pairs.image_ids, "pooled"))


def _measured(model: MindAligner, pairs: Pairs, name: str) -> np.ndarray:
    """Responses (m, V kept) in units of the model."""
    recording = Recording.of(pairs)
    return model.scales_[name].apply(recording, np.arange(len(recording)))


def _regions(person: Subject, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (V kept,) of the regions that have voxels there."""
    masks = {name: mask[kept] for name, mask in getattr(person.space, "rois", {}).items() if mask[kept].any()}
    if not masks:
        raise BrainDataError(f"expected regions of {person.id}, got none")
    return masks


def _relative(quantity: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Quantity (V,) by its mean, NaN in voxels that were left out."""
    found = np.full(len(kept), np.nan)
    found[kept] = quantity / quantity.mean()
    return found


def _columns(pairs: Pairs, voxels: np.ndarray) -> Pairs:
    """The pairs with some of their voxels."""
    columns = voxels if pairs.columns is None else pairs.columns[voxels]
    known = (pairs.subject, pairs.split, pairs.part, pairs.image_ids, pairs.trials, pairs.average, pairs.transform)
    return Pairs(*known, columns)


def _rows(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """Some of the pairs."""
    trials = [pairs.trials[row] for row in rows]
    known = (pairs.image_ids[rows], trials, pairs.average, pairs.transform, pairs.columns)
    return Pairs(pairs.subject, pairs.split, pairs.part, *known)
