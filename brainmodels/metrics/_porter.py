"""Porter's stemmer (M. F. Porter, An algorithm for suffix stripping, Program 14(3), 1980), as first published."""

from collections.abc import Iterable

__all__ = ["stem"]

_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "abli": "able",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
}
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize".split()


def stem(word: str) -> str:
    """The stem of a lower-case English word; words of one or two letters, or with other characters, are their own."""
    if len(word) <= 2 or not (word.isascii() and word.isalpha()):
        return word
    word = _step_1(word)
    word = _replace(word, _STEP_2)
    word = _replace(word, _STEP_3)
    suffix = _longest(word, _STEP_4)
    rest = word.removesuffix(suffix)
    if suffix and _measure(rest) > 1 and (suffix != "ion" or rest.endswith(("s", "t"))):
        word = rest
    return _step_5(word)


def _step_1(word: str) -> str:
    """Plurals and participles."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    suffix = _longest(word, ("eed", "ed", "ing"))
    rest = word.removesuffix(suffix)
    if suffix == "eed":
        word = rest + "ee" if _measure(rest) > 0 else word
    elif suffix and "v" in _pattern(rest):
        word = _restore(rest)
    if word.endswith("y") and "v" in _pattern(word[:-1]):
        word = word[:-1] + "i"
    return word


def _restore(rest: str) -> str:
    """What is left of a participle, as a word again: conflat(ed) ends in ate, hopp(ing) has one p, fil(ing) an e."""
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if _double(rest) and rest[-1] not in "lsz":
        return rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _short(rest) else rest


def _step_5(word: str) -> str:
    """A final e, and a double l."""
    if word.endswith("e"):
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


def _replace(word: str, suffixes: dict[str, str]) -> str:
    suffix = _longest(word, suffixes)
    rest = word.removesuffix(suffix)
    return rest + suffixes[suffix] if suffix and _measure(rest) > 0 else word


def _longest(word: str, suffixes: Iterable[str]) -> str:
    """The longest suffix that the word ends with; empty where there is none."""
    return max((suffix for suffix in suffixes if word.endswith(suffix)), key=len, default="")


def _pattern(word: str) -> str:
    """One letter each: c for a consonant, v for a vowel; y is a vowel after a consonant."""
    kinds = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and kinds.endswith("c"))
        kinds += "v" if vowel else "c"
    return kinds


def _measure(word: str) -> int:
    """How often a consonant follows a vowel, m of [C](VC)^m[V]."""
    return _pattern(word).count("vc")


def _double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _pattern(word)[-1] == "c"


def _short(word: str) -> bool:
    """Ends consonant, vowel, consonant, the last not w, x or y."""
    return _pattern(word).endswith("cvc") and word[-1] not in "wxy"
