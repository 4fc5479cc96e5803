"""Reports: one HTML page without scripts or network, and numbers as text. Cells are HTML; all else is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

__all__ = ["document", "factor", "figure", "gflops", "megabytes", "millions", "seconds", "span_of", "table"]


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page of sections of HTML, with its style inside."""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def figure(file: str, caption: str, kind: str = "") -> str:
    text = escape(caption)
    return f'<figure class="{kind}"><img src="{escape(file)}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: int = 1,
    group: int = 0,
    wide_last: bool = False,
) -> str:
    """A table.

    Args:
        head: names of the columns.
        rows: cells; the last one of a row that is too short spans the columns left.
        left: how many columns hold text; the others hold numbers, which are set flush right.
        group: rule a line above every so many rows; 0 for none.
        wide_last: the last column holds sentences.
    """

    def line(tag: str, cells: Sequence[str], kind: str = "") -> str:
        kinds = ["left" if i < left else "" for i in range(len(cells))]
        if wide_last:
            kinds[-1] = "wide"
        spans = [""] * (len(cells) - 1) + [f' colspan="{len(head) - len(cells) + 1}"']
        inner = "".join(
            f'<{tag} class="{k}"{span}>{cell}</{tag}>' for k, span, cell in zip(kinds, spans, cells, strict=True)
        )
        return f'<tr class="{kind}">{inner}</tr>\n'

    body = "".join(line("td", row, "group" if group and i % group == 0 else "") for i, row in enumerate(rows))
    return f'<div class="scroll"><table>\n{line("th", [escape(name) for name in head])}{body}</table></div>\n'


def factor(ratio: float | None) -> str:
    """A ratio of ViT over VECA in brackets, blue where VECA is the cheaper one, red where it is not."""
    if ratio is None:
        return ""
    return f' <span class="{"better" if ratio >= 1 else "worse"}">({span_of(ratio)})</span>'


def span_of(ratio: float) -> str:
    """How many times: two digits, which is what a measured ratio holds."""
    return f"{ratio:.2f}×" if ratio < 2 else f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def seconds(value: float) -> str:
    return f"{_three(value * 1e3)} ms" if value < 1 else f"{_three(value)} s"


def megabytes(value: float) -> str:
    return f"{_three(value / 1e6)} MB" if value < 1e9 else f"{_three(value / 1e9)} GB"


def gflops(value: float) -> str:
    return f"{_three(value / 1e9)} GFLOPs" if value < 1e12 else f"{_three(value / 1e12)} TFLOPs"


def millions(value: float) -> str:
    return f"{value / 1e6:.2f} M"


def _three(value: float) -> str:
    """Three significant digits, zeros kept."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"
