"""Words of the command line that name features: NAME[@CORES][:OPTION=VALUE,...][=WEIGHTS].

word = Word.of("open_clip:ViT-L-14:layer=6,tag=laion2b_s32b_b82k=laion.safetensors")
word.name, word.options, word.weights  # "open_clip:ViT-L-14", {"layer": 6, "tag": ...}, "laion.safetensors"
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BrainDataError, near_names

__all__ = ["SELECTIONS", "Word"]

SELECTIONS = ("validation", "folds")  # images on which the best of several layers is chosen
_PARTS = re.compile(
    r"(?P<name>(?:open_clip:|torchvision:)?[^:=@,]+)"
    r"(?:@(?P<cores>[^:=]*))?"
    r"(?::(?P<options>[^:=,]+=[^=,]*(?:,[^=,]+=[^=,]*)*))?"
    r"(?:=(?P<weights>.*))?",
    re.DOTALL,
)
_NAMED = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Word:
    """A word in its parts.

    Attributes:
        shown: The word without its weights, the name for tables.
        name: Name of an extractor.
        options: Options of the extractor by name.
        weights: Path of weights, "random", or "" without any.
        layers: Layers of which the best is chosen; empty for one layer.
        select: Images on which it is chosen, one of `SELECTIONS`.
    """

    shown: str
    name: str
    options: dict[str, Any]
    weights: str = ""
    layers: tuple[Any, ...] = ()
    select: str = SELECTIONS[0]

    @classmethod
    def of(cls, text: str) -> "Word":
        """Take a word apart.

        Values of options are numbers, true, false, none or text. A plus joins several values, as in mean=0.5+0.5+0.5.

        Args:
            text: A word, such as "vit_base_patch16_224:layer=6=weights.safetensors".

        Raises:
            BrainDataError: Another form, an option that is named twice, or `layers` of which none can be chosen.
        """
        found = _PARTS.fullmatch(text)
        if found is None:
            raise BrainDataError(
                "expected features as NAME, NAME@CORES, NAME:OPTION=VALUE,OPTION=VALUE or one of these and =WEIGHTS, "
                f"such as vit_base_patch16_224:layer=6=weights.safetensors, got {text!r}"
            )
        cores, weights = found["cores"], found["weights"] or ""
        if cores is not None and not cores.isdigit():
            raise BrainDataError(f"expected a number of cores after @, such as veca@16, got {text!r}")
        options: dict[str, Any] = {"num_cores": int(cores)} if cores else {}
        for part in (found["options"] or "").split(","):
            name, _, value = part.partition("=")
            if name in options:
                raise BrainDataError(f"expected each option once, got {name} twice in {text!r}")
            if name:
                options[name] = _value(value)
        layers, select = _layers(options, text)
        shown = text if found["weights"] is None else text[: found.start("weights") - 1]
        return cls(shown, found["name"], options, weights, layers, select)

    def check(self, defaults: Mapping[str, Any]) -> None:
        """Refuse options and weights that the extractor does not take.

        Args:
            defaults: Defaults of its options by name, and "weights" if it takes a file.

        Raises:
            BrainDataError: See above.
        """
        known = [name for name in defaults if name != "weights"]
        accepted = [*known, *(["layers", "select"] if "layer" in known else [])]
        for name, value in self.options.items():
            if name not in known and name != "num_cores":
                raise BrainDataError(
                    f"expected options of {self.name} ({', '.join(accepted) or 'it has none'}), got {name!r} in "
                    f"{self.shown!r}{near_names(name, accepted)}"
                )
            kind = type(defaults.get(name))
            if kind in (bool, int) and name != "layer" and type(value) is not kind:
                wanted = "true or false" if kind is bool else "a whole number"
                raise BrainDataError(f"expected {name} of {self.name} to be {wanted}, got {value!r} in {self.shown!r}")
        if "num_cores" in self.options and not self.name.startswith("veca"):
            raise BrainDataError(f"expected a VECA model before @, got {self.shown!r}")
        if self.weights and "weights" not in defaults:
            raise BrainDataError(f"expected {self.name} without weights, of which it takes none, got {self.weights!r}")
        if self.layers and "layer" not in known:
            raise BrainDataError(f"expected a network with layers for {self.shown!r}, got {self.name}")


def _layers(options: dict[str, Any], text: str) -> tuple[tuple[Any, ...], str]:
    """The layers of a word and how one is chosen, which are taken out of the options."""
    if "layers" not in options:
        if "select" in options:
            raise BrainDataError(f"expected layers= with select=, such as layers=2+5+8, got {text!r}")
        return (), SELECTIONS[0]
    layers, select = options.pop("layers"), options.pop("select", SELECTIONS[0])
    if not isinstance(layers, tuple) or len(set(layers)) != len(layers) or "layer" in options:
        raise BrainDataError(
            f"expected two or more different layers, such as layers=2+5+8, and no layer=, got {text!r}"
        )
    if select not in SELECTIONS:
        raise BrainDataError(f"expected select= one of {', '.join(SELECTIONS)}, got {select!r} in {text!r}")
    return layers, select


def _value(text: str) -> Any:
    """A value of an option."""
    if "+" in text and not re.fullmatch(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?", text):
        return tuple(_value(part) for part in text.split("+"))
    if text.lower() in _NAMED:
        return _NAMED[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
