"""Encoding scores computed as three papers do: SynBrain, NeuroFlow and BraInCoRL."""

from collections.abc import Sequence

import numpy as np

from ..data import Pairs
from ..data.reliability import noise_ceiling
from ..errors import AxisError, BrainDataError, NormalizationError
from .ceilings import mask_in_words
from .encoding import ev, usable_voxels
from .protocols import IMAGE_WISE, MatchedResponses, centred_interval, image_score, resampled_scores, space_ncsnr
from .record import Score
from .registry import metric
from .statistics import RESAMPLES, bootstrap_weights

__all__ = ["scores_as_in_braincorl", "scores_as_in_neuroflow", "scores_as_in_synbrain"]

_CONTEXT_DRAWS = 5  # of BraInCoRL
_RIDGES = (
    "its ridge baselines are two: as released (intercept penalised, folds averaged) and refit (intercept free, one fit "
    "of the whole context)"
)


def scores_as_in_synbrain(
    test: Pairs,
    predicted: np.ndarray,
    predicted_ids: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """SynBrain's comparison (arXiv 2508.10298): each prediction against every single trial of its image, betas / 2000.

    1000 images of three trials are 3000 comparisons; `mse`, `sample_r` and `cosine` over all voxels, nothing centred.

    Args:
        test: single trials, normaliser "div2000".
        predicted: (images, voxels) in the same units.
        predicted_ids: (images,).
        resamples, seed: of the bootstrap, and of as many permutations.
        conditions: further fields of `Score`.

    Raises:
        NormalizationError: the responses are on another scale.
    """
    _check_scale(test, "div2000")
    if test.average != "none":
        raise BrainDataError(f"expected single trials, average='none', got average={test.average!r}")
    matched = MatchedResponses.of(test, predicted, predicted_ids)
    return _paper("protocol synbrain", test, matched, resamples, seed, conditions)


def scores_as_in_neuroflow(
    test: Pairs,
    predicted: np.ndarray,
    predicted_ids: Sequence[str],
    train: Pairs,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """NeuroFlow's comparison (arXiv 2604.09817): session-z predictions mapped back, against the mean of the trials.

    p * sd + mean, with the deviation (ddof 0) and mean of each voxel over the repeat-averaged train images in betas /
    2000.

    Args:
        test: averaged repeats, normaliser "div2000".
        predicted: (images, voxels), z-scored per session.
        predicted_ids: (images,).
        train: averaged repeats of the same subject and voxels, normaliser "div2000".
        resamples, seed: of the bootstrap, and of as many permutations.
        conditions: further fields of `Score`.

    Raises:
        NormalizationError: responses are on another scale.
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
    predicted_ids: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """BraInCoRL's comparison (arXiv 2505.15813): `ev` on the shared images, mean over voxels and five context draws.

    `ev` is not R2: a bias of a voxel costs nothing. Which voxels the paper's mean is over is not known; here it is over
    all that vary, a region is chosen by `roi` of `test`. That repeats are averaged is inferred from the authors' other
    code. The interval resamples images, the same for all draws, centred on the value as in `encoding_scores`; the
    standard deviation over draws is in the note.

    A row of ridge regression says in `decoder` which of two it is. "As released" penalises the intercept and averages
    the coefficients of the folds without a refit, as in the paper's table; "refit" leaves the intercept free and is
    fitted once more on the whole context with the penalty that was chosen. The first is the weaker baseline.

    Args:
        test: averaged repeats of the shared images.
        predicted: (images, voxels) of each context draw, five or more, in units of the responses.
        predicted_ids: (images,) whose prediction each row is, of every draw.
        resamples, seed: of the bootstrap.
        conditions: further fields of `Score`.
    """
    if test.average != "repeats":
        raise BrainDataError(f"expected repeats averaged, average='repeats', got average={test.average!r}")
    if len(predicted) < _CONTEXT_DRAWS:
        raise BrainDataError(f"expected predictions of {_CONTEXT_DRAWS} context draws or more, got {len(predicted)}")
    weights = bootstrap_weights(len(test), resamples, seed)
    values, drawn = [], []
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
        raise NormalizationError(f"expected responses normalised by {expected!r}, as the paper's, got {got!r}")
