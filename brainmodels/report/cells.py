"""Scores as words and as cells of tables."""

from collections.abc import Callable

from ..metrics import Score

__all__ = ["ceiling_cell", "chance_cell", "interval_words", "percent", "score_cell", "two_digits"]


def percent(value: float) -> str:
    digits = 0 if abs(value) >= 0.1 or value == 0 else 1
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def two_digits(value: float) -> str:
    return f"{value:.2f}"


def interval_words(score: Score, text: Callable[[float], str] = two_digits) -> str:
    low, high = text(score.interval.low), text(score.interval.high)
    return f"95\N{NO-BREAK SPACE}% interval {low} to {high}"


def ceiling_cell(score: Score | None) -> str:
    return "–" if score is None or score.ceiling is None else f"{score.ceiling:.3f}"


def chance_cell(score: Score | None) -> str:
    if score is None or score.chance_interval is None:
        return "–"
    interval = score.chance_interval
    mean = "" if score.chance is None else f"{score.chance:.3f}"
    return f"{mean}<small>{interval.low:.3f} to {interval.high:.3f}</small>"


def score_cell(score: Score | None) -> str:
    if score is None or not score.available:
        return "–"
    interval = score.interval
    small = f"<small>{interval.low:.3f} to {interval.high:.3f}</small>" if interval else ""
    return f"{score.value:.3f}{small}"
