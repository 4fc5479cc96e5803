"""Caption scores against published stems, golden values, plain definitions and torchmetrics."""

from itertools import combinations

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.metrics import metric
from brainmodels.metrics._porter import stem
from brainmodels.metrics.text import caption_scores, meteor_exact_stem, rouge1, rouge_l, words

REFERENCE, HYPOTHESIS = "Red circles on blue background.", "a red circle on a blue background"
# examples of the paper, after all steps
STEMS = """caresses caress ponies poni ties ti cats cat feed feed agreed agre plastered plaster bled bled motoring motor
sing sing conflated conflat troubled troubl sized size hopping hop tanned tan falling fall hissing hiss fizzed fizz
failing fail filing file happy happi sky sky relational relat conditional condit rational ration valenci valenc
hesitanci hesit digitizer digit conformabli conform radicalli radic differentli differ vileli vile analogousli analog
vietnamization vietnam predication predic operator oper feudalism feudal decisiveness decis hopefulness hope
callousness callous formaliti formal sensitiviti sensit sensibiliti sensibl triplicate triplic formative form
formalize formal electriciti electr electrical electr hopeful hope goodness good revival reviv allowance allow
inference infer airliner airlin gyroscopic gyroscop adjustable adjust defensible defens irritant irrit replacement
replac adjustment adjust dependent depend adoption adopt homologou homolog communism commun activate activ
angulariti angular homologous homolog effective effect bowdlerize bowdler probate probat rate rate cease ceas
controll control roll roll by by a a"""

CAPTIONS = {
    "a": ["a dog runs on grass", "dog", "the brown dog", "running dogs", "a dog"],
    "b": ["two cats sleep on a red sofa", "cats", "sofa", "red sofa", "cats asleep on a sofa"],
    "c": ["a plane above the sea", "plane", "a jet", "sea", "flying plane"],
    "d": ["children eat ice cream", "ice cream", "kids eat", "children", "eating children"],
}


def by_name(scores):
    return {score.metric.name: score for score in scores}


def test_stems_of_the_paper():
    pairs = STEMS.split()
    for word, expected in zip(pairs[::2], pairs[1::2], strict=True):
        assert stem(word) == expected, word
    assert stem("café") == "café"


def test_words():
    assert words("  Don't stop, RED-hot\tdogs! ") == ["dont", "stop", "redhot", "dogs"]
    assert words("...") == []


def test_golden_meteor():
    assert meteor_exact_stem(REFERENCE, HYPOTHESIS) == pytest.approx(0.930769, abs=1e-6)
    six = "a red circle on blue ground"
    assert meteor_exact_stem(six, six) == pytest.approx(0.997685, abs=1e-6)
    assert meteor_exact_stem(six, "nothing") == meteor_exact_stem(six, "") == 0


def test_meteor_by_hand():
    """Exact matches go first: 'dog' takes the second word of the reference though its stem equals the first."""
    # matches dog-dog, then dogs-none; hypothesis "dog dogs" against "dogs dog": both exact, order reversed, two chunks
    assert meteor_exact_stem("dogs dog", "dog dogs") == pytest.approx(1 - 0.5)
    # repeated word: the one that makes one chunk is taken; P 2/3, R 2/2
    precision, recall = 2 / 3, 1.0
    f = precision * recall / (0.9 * precision + 0.1 * recall)
    assert meteor_exact_stem("a dog", "a dog a") == pytest.approx(f * (1 - 0.5 * (1 / 2) ** 3))


def every_alignment(reference, hypothesis):
    """(matches, exact ones, -chunks) of every alignment, by trying all."""

    def go(i, last, used, *found):
        if i == len(hypothesis):
            yield found
            return
        yield from go(i + 1, -2, used, *found)
        for j in set(range(len(reference))) - used:
            if stem(reference[j]) == stem(hypothesis[i]):
                now = found[0] + 1, found[1] + (reference[j] == hypothesis[i]), found[2] - (j != last + 1)
                yield from go(i + 1, j, used | {j}, *now)

    return go(0, -2, set(), 0, 0, 0)


def test_meteor_has_the_fewest_chunks_of_all_alignments():
    assert meteor_exact_stem("a cat and a dog", "a dog") == pytest.approx(0.398936, abs=1e-6)  # "a" is not the first
    rng = np.random.default_rng(3)
    for _ in range(150):
        texts = [list(rng.choice(["a", "the", "dog", "dogs", "runs", "run", "on"], rng.integers(1, 7))) for _ in "ab"]
        matches, _, chunks = max(every_alignment(*texts))
        p, r = matches / len(texts[1]), matches / len(texts[0])
        expected = p * r / (0.9 * p + 0.1 * r) * (1 - 0.5 * (-chunks / matches) ** 3) if matches else 0
        assert meteor_exact_stem(*map(" ".join, texts)) == pytest.approx(expected), texts


def test_meteor_of_long_texts_is_bounded(monkeypatch):
    text = " ".join(np.random.default_rng(4).choice(["a", "dog"], 120))
    monkeypatch.setattr("brainmodels.metrics.text._STEPS", 20_000)
    assert meteor_exact_stem(text, text) == pytest.approx(1, abs=1e-6)


def brute_force_lcs(first, second):
    for size in range(min(len(first), len(second)), 0, -1):
        subsequences = set(combinations(first, size))
        if any(tuple(x) in subsequences for x in combinations(second, size)):
            return size
    return 0


def test_rouge_against_definitions():
    rng = np.random.default_rng(0)
    for _ in range(30):
        first, second = (list(rng.choice(list("abcd"), rng.integers(1, 8))) for _ in range(2))
        common = sum(min(first.count(w), second.count(w)) for w in set(first))
        for score, hits in ((rouge1, common), (rouge_l, brute_force_lcs(first, second))):
            p, r = hits / len(second), hits / len(first)
            expected = 2 * p * r / (p + r) if hits else 0
            assert score(" ".join(first), " ".join(second)) == pytest.approx(expected)
    assert rouge1("dogs", "dog") == 0  # no stems here


def test_best_captions_and_directions():
    found = by_name(caption_scores(CAPTIONS, {name: texts[0] for name, texts in CAPTIONS.items()}, resamples=50))
    for name in ("rouge1", "rougeL", "rouge1[max5]"):
        assert found[name].value == 1 and metric(name).better(1, found[name].chance)
        assert 0 < found[name].chance < 0.5
    assert found["meteor_exact_stem"].value > 0.98
    assert "rouge1[distinct]" not in found


def test_first_and_max5():
    said = {"a": "the brown dog", "b": "cats", "c": "nothing", "d": "eating children"}
    found = by_name(caption_scores(CAPTIONS, said, resamples=50))
    assert found["rouge1[max5]"].value == pytest.approx(3 / 4)
    assert found["rouge1"].value == pytest.approx(np.mean([2 / 8, 2 / 8, 0, 2 / 6]))
    four = {name: texts[:4] for name, texts in CAPTIONS.items()}
    assert "rouge1[max5]" not in by_name(caption_scores(four, said, resamples=50))


def test_duplicates_are_scored_with_and_without():
    said = {"a": "A dog!", "b": "a dog", "c": "a plane", "d": "a dog"}
    found = by_name(caption_scores(CAPTIONS, said, resamples=50))
    assert found["rouge1"].n == 4 and found["rouge1[distinct]"].n == 2
    assert found["rouge1[distinct]"].value == pytest.approx((2 * 2 / 7 + 2 * 2 / 7) / 2)
    assert "2 distinct captions of 4" in found["rouge1[max5,distinct]"].note


def test_joined_by_id():
    said = {name: texts[0] for name, texts in reversed(CAPTIONS.items())}
    assert by_name(caption_scores(CAPTIONS, said, resamples=50))["rouge1"].value == 1
    with pytest.raises(IdError, match="'d'"):
        caption_scores(CAPTIONS, {name: "x" for name in "abc"})
    with pytest.raises(BrainDataError, match="with words"):
        caption_scores(CAPTIONS | {"a": ["!"]}, said)
    with pytest.raises(BrainDataError, match="list of reference"):
        caption_scores(CAPTIONS | {"a": "a dog"}, said)


def letters(texts):
    """Counts of letters: an embedding that needs no network."""
    return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnoprstuv"] for text in texts], float)


def test_embeddings_of_a_callable_name_their_columns():
    said = {"a": "a dog", "b": "two cats on a sofa", "c": "the sea", "d": "a child eats"}
    found = by_name(caption_scores(CAPTIONS, said, letters, resamples=50))
    real, decoded = letters([texts[0] for texts in CAPTIONS.values()]), letters(said.values())
    cosines = [a @ b / np.sqrt(a @ a * (b @ b)) for a, b in zip(real, decoded, strict=True)]
    assert found["caption_cosine[letters]"].value == pytest.approx(np.mean(cosines))
    r = np.corrcoef(real, decoded)[:4, 4:]
    s = [sum(r[i, j] < r[j, j] for i in range(4) if i != j) / 3 for j in range(4)]
    assert found["caption_two_way[letters]"].value == pytest.approx(np.mean(s))
    for name in ("caption_clip_cosine", "caption_clip_two_way"):
        assert not found[name].available and "clip_vit_l14_openai" in found[name].note
    with pytest.raises(BrainDataError, match="callable with a name"):
        caption_scores(CAPTIONS, said, lambda texts: letters(texts), resamples=50)
    with pytest.raises(AxisError, match="embeddings"):

        def flat(texts):
            return np.zeros(len(texts))

        caption_scores(CAPTIONS, said, flat, resamples=50)
