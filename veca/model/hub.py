"""Models are saved as folders: config.json has every argument, model.safetensors every weight. Nothing is pickled.

    model.save_pretrained("folder")
    model = veca.VECA.from_pretrained("folder")  # or the name of a repository, "owner/name"

Loading is strict. An error names each weight that is missing, unknown or of another shape.
"""

import difflib
import json
import pickle
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .cores import CORE_WEIGHTS, DEFAULT_CORES, default_budgets

__all__ = [
    "HubMixin",
    "check_names",
    "load_weights",
    "plain_name",
    "put_weights",
    "read_content",
    "weights_in",
    "with_fewer_cores",
]

_SHOWN = 8  # names that an error lists before it counts the rest
_TORCH_STARTS = (b"PK", b"\x80\x02")  # of the files of torch.save: a zip archive, or before torch 1.6 a pickle
_CHECKPOINT_KEYS = ("student", "state_dict", "model")  # where training scripts keep the weights of the model
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


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

    _hub_mixin_config: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """All arguments that build this model again, with defaults: `VECA(**model.config)`."""
        return dict(self._hub_mixin_config)

    def _set_option(self, name: str, value: Any) -> None:
        """Record in `config` a value that has changed since the model was built."""
        self._hub_mixin_config = self._hub_mixin_config | {name: value}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model from a folder or a repository, in evaluation mode.

        Args:
            pretrained_model_name_or_path: folder that `save_pretrained` has written, or a repository "owner/name".
            options: arguments of the model that replace the saved ones; a smaller `num_cores` keeps the first cores.
                Also `map_location`, a device, and `strict`, both of `load_weights`, and the words of
                `huggingface_hub.ModelHubMixin.from_pretrained`, such as `revision`.

        Raises:
            FileNotFoundError: no config or no weights.
            ValueError: a config that is not a JSON object, unknown arguments, or weights that do not fit.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            file = f"{constants.CONFIG_NAME} of {str(pretrained_model_name_or_path)!r}"
            raise ValueError(f"expected {file} to be a JSON object, got {error}") from error

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
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **options: Any,
    ) -> Self:
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
        model = cls(**with_fewer_cores(config, options))
        assert isinstance(model, nn.Module)
        load_weights(model.to(map_location), file, strict)
        return model.eval()


def with_fewer_cores(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model with the first cores of a saved one: of its budgets, those that are left.

    A saved default budget of more cores is left out.

    Args:
        saved: arguments of the saved model.
        given: arguments that replace them. With as many cores as saved, or more, they are not changed.
    """
    merged = saved | given
    total, kept = (options.get("num_cores", DEFAULT_CORES) for options in (saved, merged))
    if kept >= total:
        return merged
    trained = merged.get("trained_budgets") or default_budgets(total)
    if (saved.get("budget") or 0) > kept and merged["budget"] == saved["budget"]:
        merged["budget"] = None
    return merged | {"trained_budgets": [budget for budget in trained if budget <= kept] or [min(trained)]}


def read_content(file: str | Path) -> dict[str, Any]:
    """Read a safetensors file, or a file of `torch.save`, of which no code is run.

    Args:
        file: the file. Tensors come to the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither kind of file, or one that holds more than tensors and plain values.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected a safetensors file of weights, found none at {file}")
    with file.open("rb") as opened:
        start = opened.read(2)
    try:
        if start not in _TORCH_STARTS:
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"expected a safetensors file, got {file}: {error}") from error
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected a file of torch.save with tensors and plain values, got {file}: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"expected {file} to hold a dict of weights, got {type(content).__name__}")
    return content


def weights_in(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a file: those of the checkpoint's model, if it holds more than weights."""
    for name in _CHECKPOINT_KEYS:
        if isinstance(content.get(name), dict):
            content = content[name]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def plain_name(name: str) -> str:
    """A weight's name without the words of DistributedDataParallel, torch.compile, FSDP and checkpointing."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def load_weights(model: nn.Module, file: str | Path, strict: bool = True) -> None:
    """Load a file of weights into a model.

    Args:
        model: any module. Its dtype and device do not change.
        file: safetensors file, as `save_pretrained` writes it, or a checkpoint of `torch.save`. Prefixes such as
            "module." and "_orig_mod." are taken off names that the model does not have. A core bank with more cores
            than the model gives the first ones.
        strict: the file must have all weights of the model and no others. False loads those that both have, and warns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names or shapes differ. The message lists them, with the nearest name for each unknown one.
    """
    put_weights(model, weights_in(read_content(file)), file, strict)


def put_weights(model: nn.Module, given: dict[str, Tensor], file: str | Path, strict: bool = True) -> None:
    """The part of `load_weights` after reading; `file` is named in errors."""
    wanted = model.state_dict()
    given = {name if name in wanted else plain_name(name): value for name, value in given.items()}
    for name in CORE_WEIGHTS:
        if name in wanted and name in given and given[name].shape[0] > wanted[name].shape[0]:
            given[name] = given[name][: wanted[name].shape[0]]
    missing, unknown, reshaped, wrong = _mismatches(wanted, given)
    problems = [*missing, *unknown, *reshaped, *wrong] if strict else [*reshaped, *wrong]
    if problems:
        raise ValueError(f"{file} does not fit this {type(model).__name__}:\n" + "\n".join(problems))
    if missing or unknown:
        text = "\n".join(missing + unknown)
        warnings.warn(f"{file} fits this {type(model).__name__} only in part:\n{text}", stacklevel=3)
    model.load_state_dict(given, strict=strict)


def check_names(what: str, given: list[str], known: list[str]) -> None:
    """Raise a ValueError if a given name is not a known one, with the nearest known names.

    Args:
        what: what the names are, for the message.
        given: names to check.
        known: allowed names.
    """
    if unknown := [name + _hint(name, known) for name in dict.fromkeys(given) if name not in known]:
        raise ValueError(f"expected only {what}, got {', '.join(unknown)}")


def _mismatches(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> list[list[str]]:
    """Missing, unknown, reshaped weights and those of another kind: a list with one line for each, or an empty one."""
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    reshaped = [
        f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(given[name].shape)}"
        for name in wanted
        if name in given and wanted[name].shape != given[name].shape
    ]
    wrong = [
        f"{name}: expected a floating dtype, got {given[name].dtype}"
        for name in wanted
        if name in given and wanted[name].is_floating_point() and not given[name].is_floating_point()
    ]
    lines = []
    for title, names in (
        ("missing in the file", missing),
        ("unknown to the model", [name + _hint(name, missing) for name in unknown]),
        ("of another shape", reshaped),
        ("of another kind", wrong),
    ):
        rest = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append([f"  {len(names)} {title}: {'; '.join(names[:_SHOWN])}{rest}"] if names else [])
    return lines


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (near {near[0]})" if near else ""
