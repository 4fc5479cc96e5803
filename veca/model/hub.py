"""Models are saved as folders: config.json has every argument, model.safetensors every weight. Nothing is pickled.

    model.save_pretrained("folder")
    model = veca.VECA.from_pretrained("folder")  # or the name of a repository, "owner/name"

Loading is strict. An error names each weight that is missing, unknown or of another shape.
"""

import difflib
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["HubMixin", "check_names", "load_weights"]

_SHOWN = 8  # names that an error lists before it counts the rest


_CARD = """---
{{ card_data }}
---

# A VECA backbone

```python
import veca

model, transform = veca.load("...")  # this folder, or its repository
features = model.forward_features(transform(image)[None])
```

`config.json` holds every argument of the model, `model.safetensors` its weights.
"""


class HubMixin(
    PyTorchModelHubMixin, library_name="veca", tags=["vision", "arxiv:2605.12491"], model_card_template=_CARD
):
    """This mixin makes `save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub strict."""

    @property
    def config(self) -> dict[str, Any]:
        """All arguments that build this model again, with defaults: `VECA(**model.config)`."""
        return dict(self._hub_mixin_config)

    def _set_option(self, name: str, value: Any) -> None:
        """Record in `config` a value that has changed since the model was built."""
        self._hub_mixin_config = self._hub_mixin_config | {name: value}

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> "HubMixin":
        """Build the model of a config and load its weights. `options` already holds the config's values."""
        if config is None:
            raise FileNotFoundError(f"expected {constants.CONFIG_NAME} beside the weights, found none in {model_id!r}")
        known = list(cls._hub_mixin_init_parameters)
        check_names(f"arguments of {cls.__name__} in the config of {model_id!r}", [*config, *options], known)
        folder, name = Path(model_id), constants.SAFETENSORS_SINGLE_FILE
        if folder.is_dir():
            file = folder / name
        else:
            file = hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model = cls(**options)
        load_weights(model, file)
        return model.eval()


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load a safetensors file into a model. The file must have all weights of the model and no others.

    Args:
        model: any module. Its dtype and device do not change.
        file: file of weights, as `save_pretrained` writes it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names or shapes differ. The message lists them, with the nearest name for each unknown one.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected a safetensors file of weights, found none at {file}")
    try:
        given = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"expected a safetensors file, got {file}: {error}") from error
    if problems := _mismatches(model.state_dict(), given):
        raise ValueError(f"{file} does not fit this {type(model).__name__}:\n" + "\n".join(problems))
    model.load_state_dict(given)


def check_names(what: str, given: list[str], known: list[str]) -> None:
    """Raise a ValueError if a given name is not a known one, with the nearest known names.

    Args:
        what: what the names are, for the message.
        given: names to check.
        known: allowed names.
    """
    if unknown := [name + _hint(name, known) for name in dict.fromkeys(given) if name not in known]:
        raise ValueError(f"expected only {what}, got {', '.join(unknown)}")


def _mismatches(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """One line for each kind of difference between two sets of weights."""
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    reshaped = [
        f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(given[name].shape)}"
        for name in wanted
        if name in given and wanted[name].shape != given[name].shape
    ]
    lines = []
    for title, names in (
        ("missing in the file", missing),
        ("unknown to the model", [name + _hint(name, missing) for name in unknown]),
        ("of another shape", reshaped),
    ):
        if names:
            rest = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"  {len(names)} {title}: {'; '.join(names[:_SHOWN])}{rest}")
    return lines


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (near {near[0]})" if near else ""
