"""What the page opens with: pictures and captions from responses, of every model, for the same random test images."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.models import SAME_TOKENS
from ..evaluation.pictures import ANOTHER
from . import figures
from .figures import PictureRow

if TYPE_CHECKING:
    from ..evaluation.run import Evaluation

__all__ = ["opening_view"]

COLUMNS = 6
LINE = 19  # characters of a caption
_CHANCE = "chance:\nanother image"


def opening_view(evaluation: "Evaluation", out: Path) -> dict[str, Any] | None:
    """Draw the grid into `out`, and collect what the template says of it; None without pictures and captions."""
    rows = _rows(evaluation)
    if not rows:
        return None
    count = len(evaluation.study.test)
    chosen = np.random.default_rng(evaluation.study.seed).permutation(count)[:COLUMNS]
    lines = []
    for name, images, captions in rows:
        told = () if captions is None else [textwrap.fill(captions[row], LINE) for row in chosen]
        blank = np.full((1, 1, 3), 255, np.uint8)
        lines.append(PictureRow(name, [blank if images is None else images[row] for row in chosen], told))
    figures.picture_grid([lines], out / "opening.png")
    drawers = [made.drawn[0].drawer for made in evaluation.pictures]
    drawers += [str(item.settings["drawer"]) for item in evaluation.generated if item.rows[0].images is not None]
    banks = [made.bank for made in evaluation.pictures]
    return {
        "file": "opening.png",
        "count": len(chosen),
        "found": any(drawer.startswith("nearest") for drawer in drawers),
        "drawn": any(drawer.startswith("generator") for drawer in drawers),
        "bank": banks[0] if banks else "drawn scenes that no subject has seen",
        "captions": any(captions is not None for _, _, captions in rows[1:]),
        "chance": rows[-1][0] == _CHANCE,
    }


def _rows(evaluation: "Evaluation") -> list[tuple[str, Any, Any]]:
    """Name, pictures and captions of each row: what was shown, ridge, the models, and what another image gives."""
    rows, chance, shown, said = [], [], None, None
    for made in evaluation.pictures:
        drawer = made.drawn[0].drawer.partition(" ")[0]
        found = {x.source: x.images for x in made.drawn if x.drawer.startswith(drawer)}
        shown, ridge = made.shown, found[SAME_TOKENS]
        named = {name: found[name] for name in (made.model, made.alone) if name in found}
        same = [name for name, images in named.items() if np.array_equal(images, ridge)]
        if same or not rows:
            rows.append(("\n= ".join(["ridge", *same]), ridge, None))
        rows += [(name, images, None) for name, images in named.items() if name not in same]
        chance = chance or [(_CHANCE, images, None) for source, images in found.items() if source == ANOTHER]
    for item in evaluation.generated:
        row = item.rows[0]
        shown = item.shown if shown is None else shown
        said = item.references if row.captions is not None else said
        rows.append((item.opened.name, row.images, row.captions))
        other = item.row("other_images")
        chance = chance or [(_CHANCE, other.images, other.captions)]
    return [("shown", shown, said), *rows, *chance] if rows else []
