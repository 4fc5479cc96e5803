"""Decoded captions against captions that people wrote: words in common, and embeddings of a text tower.

    for score in caption_scores(references, hypotheses, text_encoder="open_clip_model.safetensors"):
        print(score)
    # meteor_exact_stem ↑ 0.169 [...], meteor_exact_stem[max5] ↑ ..., caption_clip_two_way ↑ ...

Texts are lower-cased, punctuation is removed, and white space separates the words. Word scores come in variants:

| name | compares with |
|---|---|
| meteor_exact_stem | the first caption |
| meteor_exact_stem[max5] | the best of five captions, if each image has five |
| meteor_exact_stem[distinct] | as the first, over one image for each distinct decoded text, if texts repeat |

BLEU, CIDEr, SPICE and METEOR with synonyms are left to their own tools. They give other numbers.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError, IdError, near_names
from ._porter import stem
from .record import Metric, Score
from .registry import metric, register
from .retrieval import correlation_matrix, similarity, two_way_pairs
from .slots import Network, missing_weights, open_text_slot
from .statistics import RESAMPLES, permutation_chance, score_images

__all__ = ["caption_scores", "meteor_exact_stem", "rouge1", "rouge_l", "words"]

_STEPS = 1_000_000  # bound of the search for the fewest chunks
_NOWHERE = -2  # place of a word without a match, which no place follows
_CAPTIONS = 5  # number of captions of each image in COCO


def words(text: str) -> list[str]:
    """Words of a text: lower case, without punctuation, split at white space."""
    kept = (letter for letter in text.lower() if not unicodedata.category(letter).startswith("P"))
    return "".join(kept).split()


def meteor_exact_stem(reference: str, hypothesis: str) -> float:
    """METEOR with exact and stem matches (Banerjee and Lavie, 2005; parameters of Lavie and Agarwal, 2007's code).

        P = m / |hypothesis|,  R = m / |reference|,  F = P R / (.9 P + .1 R)
        score = F (1 - .5 (chunks / m)^3)

    Each word is matched once at most, with an equal word or else with one of the same Porter stem. Of all alignments
    with the most matches m, and the most exact ones among them, the one with the fewest chunks counts. A chunk is a run
    of matches that follow each other in both texts. A perfect match of w words is one chunk, so it scores
    1 - .5 / w^3, not 1.

    The search is exact for captions. Long texts with many repeated words have too many alignments, so only the best
    partial ones are followed, in about a million steps at most. Their chunks may then be too many.

    Args:
        reference: Caption that a person wrote.
        hypothesis: Decoded caption.

    Raises:
        BrainDataError: A reference without words.
    """
    return _meteor(*_both(reference, hypothesis))


def rouge1(reference: str, hypothesis: str) -> float:
    """F1 of the words in common, each counted as often as in both texts (ROUGE-1; Lin, 2004).

    Raises:
        BrainDataError: A reference without words.
    """
    return _rouge1(*_both(reference, hypothesis))


def rouge_l(reference: str, hypothesis: str) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L; Lin, 2004).

    Raises:
        BrainDataError: A reference without words.
    """
    return _rouge_l(*_both(reference, hypothesis))


def caption_scores(
    references: Mapping[str, Sequence[str]],
    hypotheses: Mapping[str, str],
    text_encoder: Any = None,
    device: Any = "cpu",
    resamples: int = RESAMPLES,
    seed: int = 0,
    permutations: int = 40,
    **conditions,
) -> list[Score]:
    """All caption scores. References and hypotheses are matched by image id.

    Args:
        references: Captions that people wrote, by image id. The first one counts if a score uses a single reference.
        hypotheses: Decoded captions by image id, one for each image of `references`.
        text_encoder: File for the slot "clip_vit_l14_openai", what `open_text_slot` returned for one, or a callable
            from a list of texts to (n, d). The name of a callable becomes part of its scores' names:
            `caption_cosine[name]`, `caption_two_way[name]`. A list holds several of these. None makes the scores of
            the slot not available.
        device: Device of the network.
        resamples: Number of bootstrap samples over images.
        seed: Seed of the bootstrap and of the permutations.
        permutations: Number of permutations of the pairs, for the chance of word scores. Each takes as long as the
            scores themselves.
        conditions: Further fields of `Score`.

    Raises:
        IdError: An image has no decoded caption.
        BrainDataError: An image has no reference, or one without words.
        AxisError: Fewer than two images, or embeddings of a wrong shape.
    """
    ids = _check(references, hypotheses)
    said = [hypotheses[name] for name in ids]
    first: dict[tuple[str, ...], int] = {}
    for row, text in enumerate(said):
        first.setdefault(tuple(words(text)), row)
    parts = {"": list(range(len(ids)))}
    if 1 < len(first) < len(ids):
        parts["distinct"] = sorted(first.values())
    scores: list[Score] = []
    made: dict[str, Any] = {"resamples": resamples, "seed": seed} | conditions
    for part, rows in parts.items():
        chosen = [references[ids[row]] for row in rows], [said[row] for row in rows]
        found = dict(made)
        if part:
            note = f"{len(rows)} distinct captions of {len(ids)}"
            found["note"] = "; ".join(filter(None, [made.get("note"), note]))
        scores += _word_scores(*chosen, part, permutations, found)
        sources = text_encoder if isinstance(text_encoder, list) else [text_encoder]
        if not any(isinstance(source, str | Path | Network) for source in sources):
            bracket = f"[{part}]" if part else ""
            names = [f"caption_clip_{kind}{bracket}" for kind in ("cosine", "two_way")]
            scores += [missing_weights(metric(name), "clip_vit_l14_openai") for name in names]
        for source in sources:
            scores += [] if source is None else _embedding_scores(*chosen, part, source, device, found)
    return scores


def _word_scores(
    references: list[Sequence[str]], said: list[str], part: str, permutations: int, found: dict
) -> list[Score]:
    written = [[tuple(words(text)) for text in texts] for texts in references]
    spoken = [tuple(words(text)) for text in said]
    kinds = {"": [texts[:1] for texts in written]}
    if all(len(texts) == _CAPTIONS for texts in written):
        kinds[f"max{_CAPTIONS}"] = written
    scores = []
    for name, function in (("meteor_exact_stem", _meteor), ("rouge1", _rouge1), ("rougeL", _rouge_l)):
        for kind, texts in kinds.items():
            variant = ",".join(filter(None, (kind, part)))
            full = name + (f"[{variant}]" if variant else "")
            scores.append(_word_score(full, function, texts, spoken, permutations, found))
    return scores


def _word_score(
    name: str,
    function: Callable[..., float],
    texts: list[list[tuple]],
    said: list[tuple],
    permutations: int,
    found: dict,
) -> Score:
    @cache
    def one(row: int, column: int) -> float:
        return max(function(text, said[column]) for text in texts[row])

    chance = permutation_chance(
        lambda order: float(np.mean([one(row, int(column)) for row, column in enumerate(order)])),
        len(said),
        permutations,
        found["seed"],
    )
    found = {"chance": chance.mean, "chance_interval": chance.interval} | found
    return score_images(metric(name), np.array([one(row, row) for row in range(len(said))]), **found)


def _embedding_scores(
    references: list[Sequence[str]], said: list[str], part: str, source: Any, device: Any, found: dict
) -> list[Score]:
    """Cosine of embeddings with the first reference, and two-way identification by their Pearson correlation."""
    own = not callable(source)
    bracket = f"[{part}]" if part else ""
    scores = []
    network = open_text_slot(source, device)
    embedded = [np.asarray(network.features(list(texts))) for texts in ([texts[0] for texts in references], said)]
    for array in embedded:
        if array.ndim != 2 or len(array) != len(said):
            raise AxisError(f"expected embeddings ({len(said)}, d) from {network.name}, got {array.shape}")
    found = found | {"features": network.fingerprint}
    inside = ",".join(filter(None, (network.name, part)))
    scores += [
        score_images(metric(name), np.diagonal(table), table, **found)
        for kind, measure in _EMBEDDED.items()
        for name, table in [
            (f"caption_clip_{kind}{bracket}" if own else f"caption_{kind}[{inside}]", measure(*embedded))
        ]
    ]
    return scores


def _check(references: Mapping[str, Sequence[str]], hypotheses: Mapping[str, str]) -> list[str]:
    ids = list(references)
    if len(ids) < 2:
        raise AxisError(f"expected captions of two or more images, got {len(ids)}")
    for name in ids:
        if name not in hypotheses:
            raise IdError(f"expected a decoded caption of {name!r}, got none{near_names(name, list(hypotheses))}")
        texts = references[name]
        if isinstance(texts, str) or not texts or not all(words(text) for text in texts):
            raise BrainDataError(f"expected a list of reference captions with words for {name!r}, got {texts!r}")
        if not isinstance(hypotheses[name], str):
            raise BrainDataError(f"expected one decoded caption of {name!r}, got {hypotheses[name]!r}")
    return ids


def _both(reference: str, hypothesis: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = tuple(words(reference))
    if not known:
        raise BrainDataError("expected a reference caption with words, got none")
    return known, tuple(words(hypothesis))


def _meteor(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    count, chunks = _alignment(reference, hypothesis)
    if not count:
        return 0.0
    precision, recall = count / len(hypothesis), count / len(reference)
    f = precision * recall / (0.9 * precision + 0.1 * recall)
    return f * (1 - 0.5 * (chunks / count) ** 3)


def _alignment(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int]:
    """Largest number of matches, and the fewest chunks of the alignments with the most exact ones among them.

    The hypothesis is read word by word. A state is the place in the reference that the word before was matched with,
    and the set of places in use, as bits. Each state keeps its least cost. Places whose stem does not come again are
    dropped from the set, so that few states remain.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(reference):
        places.setdefault(_stem(word), []).append(place)
    stems = [_stem(word) for word in hypothesis]
    left = Counter(stems)
    wanted = {root: min(count, len(places.get(root, ()))) for root, count in left.items()}
    inexact = len(hypothesis) + 1  # cost of a match by stem, above that of all chunks
    limit = max(_STEPS // max(1, len(hypothesis) * max(map(len, places.values()))), 1)
    states = {(_NOWHERE, 0): 0}  # (place of the word before, places in use): cost
    for word, root in zip(hypothesis, stems, strict=True):
        left[root] -= 1
        here = places.get(root, [])
        bits = sum(1 << place for place in here)
        kept = -1 if left[root] else ~bits
        found: dict[tuple[int, int], int] = {}
        for (last, used), cost in states.items():
            options = [
                (j, used | 1 << j, cost + (j != last + 1) + inexact * (reference[j] != word))
                for j in here
                if not used >> j & 1
            ]
            if (used & bits).bit_count() + left[root] >= wanted[root]:
                options.append((_NOWHERE, used, cost))
            for place, now, total in options:
                state = place, now & kept
                found[state] = min(total, found.get(state, total))
        if len(found) > limit:
            found = dict(sorted(found.items(), key=lambda item: item[1])[:limit])
        states = found
    return sum(wanted.values()), min(states.values()) % inexact


def _rouge1(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    return _f1(sum((Counter(reference) & Counter(hypothesis)).values()), reference, hypothesis)


def _rouge_l(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    row = [0] * (len(hypothesis) + 1)
    for word in reference:
        previous, row = row, [0]
        for j, other in enumerate(hypothesis):
            row.append(previous[j] + 1 if word == other else max(previous[j + 1], row[j]))
    return _f1(row[-1], reference, hypothesis)


def _f1(common: int, reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """2 P R / (P + R) with P = common / |hypothesis| and R = common / |reference|."""
    return 2 * common / (len(reference) + len(hypothesis))


_stem = lru_cache(maxsize=65536)(stem)
_EMBEDDED = {
    "cosine": similarity,
    "two_way": lambda real, decoded: two_way_pairs(correlation_matrix(real, decoded)),
}

_VARIANTS = "max5: best of five captions; distinct: one image for each distinct decoded caption"
_CLIP_TEXT = "text embeddings of CLIP ViT-L/14 of first and decoded caption"
_CLIP_SLOT = "clip_vit_l14_openai"
_IDENTIFIED = "two-way identification by Pearson correlation, ties fail"
for _metric in (
    Metric("meteor_exact_stem", "text", "up", None, None, "METEOR, exact and Porter-stem matches; first caption"),
    Metric("rouge1", "text", "up", None, None, "F1 of words in common; first caption"),
    Metric("rougeL", "text", "up", None, None, "F1 of the longest common subsequence of words; first caption"),
):
    register(_metric)
    register(replace(_metric, name=f"{_metric.name}[{{variant}}]", protocol=f"{_metric.protocol}; {_VARIANTS}"))
for _metric in (
    Metric("caption_clip_cosine", "text", "up", None, _CLIP_SLOT, f"{_CLIP_TEXT}, mean cosine"),
    Metric("caption_clip_two_way", "text", "up", 0.5, _CLIP_SLOT, f"{_CLIP_TEXT}; {_IDENTIFIED}"),
):
    register(_metric)
    register(replace(_metric, name=f"{_metric.name}[{{variant}}]", protocol=f"{_metric.protocol}; {_VARIANTS}"))
register(Metric("caption_cosine[{encoder}]", "text", "up", None, None, "mean cosine of text embeddings, first caption"))
register(Metric("caption_two_way[{encoder}]", "text", "up", 0.5, None, f"text embeddings; {_IDENTIFIED}"))
