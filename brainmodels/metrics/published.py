"""Encoding scores computed as in three papers: SynBrain, NeuroFlow and BraInCoRL.

    trials = dataset.pairs("subj01", split, "test")           # single trials, normaliser "div2000"
    scores = scores_as_in_synbrain(trials, predicted, ids)    # mse, sample_r and cosine

Their numbers are on other scales. Do not put them into one column with each other or with
`brainmodels.metrics.protocols.encoding_scores`.
"""

from collections.abc import Sequence

import numpy as np

from ..data import Pairs
from ..data.ids import Ids
from ..data.reliability import noise_ceiling
from ..errors import AxisError, BrainDataError, NormalizationError
from .ceilings import mask_in_words
from .encoding import ev, usable_voxels
from .protocols import IMAGE_WISE, MatchedResponses, centred_interval, image_score, resampled_scores, space_ncsnr
from .record import Score
from .registry import metric
from .statistics import RESAMPLES, bootstrap_weights

__all__ = ["scores_as_in_braincorl", "scores_as_in_neuroflow", "scores_as_in_synbrain"]

_CONTEXT_DRAWS = 5  # number of draws in BraInCoRL's tables
_RIDGES = (
    "there are two ridge baselines: as released (intercept penalised, folds averaged) and refit (intercept free, "
    "one fit of the whole context)"
)


def scores_as_in_synbrain(
    test: Pairs,
    predicted: np.ndarray,
    predicted_ids: Ids,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """SynBrain's comparison (arXiv 2508.10298): each prediction against every single trial of its image, in betas /
    2000.

    A test set of 1000 images with three trials each gives 3000 comparisons. The scores are `mse`, `sample_r` and
    `cosine` over all voxels; nothing is centred.

    Args:
        test: Single trials, with normaliser "div2000".
        predicted: (images, voxels) Predictions in the same units.
        predicted_ids: (images,) Ids of the images, one for each row of `predicted`.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        conditions: Further fields of `Score`.

    Raises:
        NormalizationError: The responses are on another scale.
        BrainDataError: The responses are not single trials.
    """
    _check_scale(test, "div2000")
    if test.average != "none":
        raise BrainDataError(f"expected single trials, average='none', got average={test.average!r}")
    matched = MatchedResponses.of(test, predicted, predicted_ids)
    return _paper("protocol synbrain", test, matched, resamples, seed, conditions)


def scores_as_in_neuroflow(
    test: Pairs,
    predicted: np.ndarray,
    predicted_ids: Ids,
    train: Pairs,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """NeuroFlow's comparison (arXiv 2604.09817): predictions are mapped back from session z-scores and compared with
    means.

    The mapped prediction is p * sd + mean. Deviation (ddof 0) and mean of each voxel are those of the repeat-averaged
    train images, in betas / 2000. It is compared with the mean over trials of each test image.

    Args:
        test: Responses averaged over repeats, with normaliser "div2000".
        predicted: (images, voxels) Predictions, z-scored within sessions.
        predicted_ids: (images,) Ids of the images, one for each row of `predicted`.
        train: Responses averaged over repeats, of the same subject and voxels, with normaliser "div2000".
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        conditions: Further fields of `Score`.

    Raises:
        NormalizationError: Responses are on another scale.
        BrainDataError: Repeats are not averaged, or `train` is not the train part of the same subject.
        AxisError: Predictions have another number of voxels.
    """
    for pairs in (test, train):
        _check_scale(pairs, "div2000")
        if pairs.average != "repeats":
            raise BrainDataError(f"expected repeats averaged, average='repeats', got average={pairs.average!r}")
    if (train.part, train.subject.id) != ("train", test.subject.id):
        raise BrainDataError(
            f"expected train images of {test.subject.id}, got {train.part} images of {train.subject.id}"
        )
    known = train.array().astype(np.float64)
    if known.shape[1] != np.shape(predicted)[-1]:
        raise AxisError(f"expected predictions of {known.shape[1]} voxels, got {np.shape(predicted)}")
    mapped = np.asarray(predicted, dtype=np.float64) * known.std(0) + known.mean(0)
    return _paper(
        "protocol neuroflow", test, MatchedResponses.of(test, mapped, predicted_ids), resamples, seed, conditions
    )


def scores_as_in_braincorl(
    test: Pairs,
    predicted: Sequence[np.ndarray],
    predicted_ids: Ids,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """BraInCoRL's comparison (arXiv 2505.15813): `ev` on the shared images, mean over voxels and over five context
    draws.

    Explained variance differs from R2: it ignores a constant bias of a voxel. Two facts are not in the paper. The mean
    here is over all voxels that vary, and the `roi` of `test` chooses a region. That repeats are averaged is inferred
    from the authors' other code. The interval resamples images, the same for all draws, and is centred on the value as
    in `encoding_scores`. The note holds the standard deviation over draws.

    Say in `decoder` which ridge baseline a row is:

    | baseline | intercept | coefficients |
    |---|---|---|
    | "as released", as in the paper's table | penalised | averaged over the folds, without a refit |
    | "refit" | free | fitted once more on the whole context, with the chosen penalty |

    The first is the weaker baseline.

    Args:
        test: Responses to the shared images, averaged over repeats.
        predicted: (images, voxels) Predictions of each context draw, five or more, in units of the responses.
        predicted_ids: (images,) Ids of the images, one for each row of every draw.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        conditions: Further fields of `Score`.

    Raises:
        BrainDataError: Repeats are not averaged, fewer than five draws, or no voxel varies.
        AxisError: Shapes do not match.
        IdError: An image has no prediction, or two.
    """
    if test.average != "repeats":
        raise BrainDataError(f"expected repeats averaged, average='repeats', got average={test.average!r}")
    if len(predicted) < _CONTEXT_DRAWS:
        raise BrainDataError(f"expected predictions of {_CONTEXT_DRAWS} context draws or more, got {len(predicted)}")
    weights = bootstrap_weights(len(test), resamples, seed)
    values, drawn, usable = [], [], np.zeros(0, bool)
    for draw in predicted:
        matched = MatchedResponses.of(test, draw, predicted_ids)
        usable = usable_voxels(matched.measured)
        if not usable.any():
            raise BrainDataError(f"expected voxels that vary over {len(test)} images, got none of {len(usable)}")
        matched = matched.select(usable)
        values.append(ev(matched.measured, matched.predicted, axis=0).mean())
        drawn.append(np.nanmean(resampled_scores(matched.measured, matched.predicted, weights)["ev"], axis=-1))
    value = float(np.mean(values))
    words = f"protocol braincorl: mean over {len(values)} context draws, sd {np.std(values, ddof=1):.3g}; {_RIDGES}"
    ncsnr, ceiling = space_ncsnr(test), None
    if ncsnr is None:
        words = f"{words}; no noise ceiling: ncsnr unknown"
    else:
        ceiling = float(np.nanmean(noise_ceiling(ncsnr, [len(rows) for rows in test.trials])[usable]))
    found = {"mask": mask_in_words(usable, int((~usable).sum())), "seed": seed, "ceiling": ceiling}
    found["interval"] = centred_interval(np.mean(drawn, axis=0), value)
    found["note"] = "; ".join(filter(None, [words, conditions.pop("note", "")]))
    found |= conditions
    return [Score(metric("ev_mean"), value, len(test), **found).under(test)]


def _paper(
    note: str, test: Pairs, matched: MatchedResponses, resamples: int, seed: int, conditions: dict
) -> list[Score]:
    usable = usable_voxels(matched.measured)
    found = {"mask": mask_in_words(usable, int((~usable).sum())), "n_of": matched.unit, "seed": seed, "note": note}
    matched = matched.select(usable)
    return [image_score(name, matched, resamples, seed, found | conditions).under(test) for name in IMAGE_WISE]


def _check_scale(pairs: Pairs, expected: str) -> None:
    if pairs.normalizer != expected:
        got = pairs.normalizer
        raise NormalizationError(f"expected responses normalised by {expected!r}, as in the paper, got {got!r}")
