"""Captions as rows of word numbers, and back.

    vocabulary = Vocabulary.of(["a red circle", "a blue square"], length=8)
    ids = vocabulary.encode(["a blue circle"])  # (1, 8): start, words, end, padding
    vocabulary.decode(ids)                      # ["a blue circle"]

Row layout of a caption: the start token, its words, the end token, then padding.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...errors import BrainDataError, near_names
from ...metrics.text import words

__all__ = ["CLEANINGS", "Vocabulary", "clean"]

CLEANINGS = ("none", "adjacent", "repeats")
PAD, START = 0, 1


class Vocabulary:
    """The words that captions may have, with a number for each.

    Padding is 0 and the start is 1. The end has the highest number, as in CLIP.

    Args:
        words: Words in the order of their numbers, which begin at 2.
        length: Number of tokens of a row, start and end included.

    Raises:
        BrainDataError: A word repeats, or rows have no room for a word.
    """

    def __init__(self, words: Sequence[str], length: int):
        self.words, self.length = tuple(words), length
        if len(set(self.words)) != len(self.words) or length < 3:
            raise BrainDataError(f"expected unique words and rows of 3 tokens or more, got {len(words)} and {length}")
        self._numbers = {word: number for number, word in enumerate(self.words, 2)}

    @classmethod
    def of(cls, captions: Iterable[str], length: int) -> "Vocabulary":
        """The words of captions, in alphabetical order."""
        return cls(sorted({word for text in captions for word in words(text)}), length)

    def __len__(self) -> int:
        return len(self.words) + 3

    @property
    def end(self) -> int:
        """Number of the end token."""
        return len(self.words) + 2

    def number(self, word: str) -> int:
        """The number of a word. An unknown word is a `BrainDataError`."""
        if word not in self._numbers:
            raise BrainDataError(
                f"expected a word of the {len(self.words)} that the generator knows, got {word!r}"
                f"{near_names(word, self.words)}"
            )
        return self._numbers[word]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Rows (n, length) int64 of captions.

        Raises:
            BrainDataError: A caption is empty, has more words than fit, or has unknown ones, which are listed.
        """
        rows = torch.full((len(captions), self.length), PAD, dtype=torch.long)
        unknown: dict[str, None] = {}
        for row, text in enumerate(captions):
            found = words(text)
            unknown |= dict.fromkeys(word for word in found if word not in self._numbers)
            if not found or len(found) > self.length - 2:
                raise BrainDataError(
                    f"expected captions of 1 to {self.length - 2} words, got {len(found)} in caption {row}, {text!r}"
                )
            numbers = [START, *(self._numbers.get(word, PAD) for word in found), self.end]
            rows[row, : len(numbers)] = torch.tensor(numbers)
        if unknown:
            raise BrainDataError(
                f"expected words that the generator knows ({', '.join(self.words)}), got {', '.join(unknown)}"
            )
        return rows

    def empty(self, count: int = 1) -> Tensor:
        """Rows (count, length) of the caption without words, which guidance needs."""
        rows = torch.full((count, self.length), PAD, dtype=torch.long)
        rows[:, 0], rows[:, 1] = START, self.end
        return rows

    def decode(self, rows: Tensor) -> list[str]:
        """Captions of rows (n, any length): the words up to the first end token. Start and padding are left out."""
        captions = []
        for row in rows.tolist():
            kept = row[: row.index(self.end)] if self.end in row else row
            captions.append(" ".join(self.words[number - 2] for number in kept if number > START))
        return captions


def clean(text: str, how: str = "repeats") -> str:
    """A caption without repetitions, which language models sometimes write.

    | how | removes |
    |---|---|
    | "none" | nothing |
    | "adjacent" | a word that follows itself |
    | "repeats" | any run of words that follows itself, longest first, and sentences that were there before |

    Args:
        text: Caption to clean.
        how: One of the three.

    Raises:
        BrainDataError: An unknown way of cleaning.
    """
    if how not in CLEANINGS:
        raise BrainDataError(f"expected clean of {', '.join(CLEANINGS)}, got {how!r}{near_names(how, CLEANINGS)}")
    if how == "none":
        return text
    if how == "repeats":
        sentences = [part.strip() for part in text.split(".")]
        kept = list(dict.fromkeys(part for part in sentences if part))
        text = ". ".join(kept) + ("." if text.rstrip().endswith(".") and kept else "")
    said = text.split()
    for span in range(len(said) // 2 if how == "repeats" else 1, 0, -1):
        place = 0
        while place + 2 * span <= len(said):
            if said[place : place + span] == said[place + span : place + 2 * span]:
                del said[place + span : place + 2 * span]
            else:
                place += 1
    return " ".join(said)
