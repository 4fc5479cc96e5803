"""Optimizers with named states, one that leaves inactive cores alone, and its groups of parameters."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model.backbone import VECA
from .bank import RowSlices
from .budgets import BudgetSampler
from .normuon import NorMuon
from .parallel import whole

__all__ = ["ElasticOptimizer", "NamedOptimizer", "parameter_groups"]

_DECAYS = ("default", "paper")
_KINDS = ("adamw", "sgd", "normuon")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    decay: str = "default",
    muon: bool = False,
    edges: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Put all trainable parameters in groups for an optimizer.

    Args:
        module: A VECA, or a module that holds one or none.
        weight_decay: Weight decay of the groups that decay.
        decay: "default" exempts parameters of one dimension and those that a model names in `no_weight_decay()`. For
            a VECA these are its cores, their coordinates and step sizes. "paper" exempts nothing.
        muon: Put the matrices of a VECA, or of a ViT of timm, in groups with `muon=True`. These are all linears but
            the coordinate heads, the second linear of the last MLP and the classifier. The fused qkv weights have a
            group with `splits=3`.
        edges: Rows at which a budget may end, from 0 to M. Cores and coordinates are cut there, see `RowSlices`;
            None keeps them whole.

    Returns:
        Dicts with `params`, `names`, `weight_decay`, `muon`, `splits` and `slices`, the `RowSlices` of the group. No
        group is empty.

    Raises:
        ValueError: an unknown `decay`.
    """
    if decay not in _DECAYS:
        raise ValueError(f"expected decay to be one of {', '.join(_DECAYS)}, got {decay!r}")
    exempt, bank = _exempt(module), _bank(module) if edges is not None else set()
    splits = _muon_splits(module) if muon else {}
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = decay == "paper" or (parameter.ndim > 1 and name not in exempt)
        key = (decays, splits.get(name, 0), name in bank)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if decays else 0.0,
                "muon": name in splits,
                "splits": splits.get(name, 1),
                "slices": [],
            },
        )
        named = [(name, parameter)]
        if edges is not None and name in bank:
            group["slices"].append(RowSlices(name, parameter, edges))
            named = list(group["slices"][-1].named_parameters())
        group["names"] += [name for name, _ in named]
        group["params"] += [parameter for _, parameter in named]
    return list(groups.values())


class NamedOptimizer:
    """Torch optimizers whose states are saved under the names of their parameters.

    Args:
        named: All parameters of the optimizers, by name.
        optimizers: Optimizers over these parameters.

    Attributes:
        optimizers: See above.
        parameters: Parameters whose gradients a step uses.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)
        self.parameters = list(named.values())
        self._names = {parameter: name for name, parameter in named.items()}

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all groups; one with an "lr_scale" has this multiple of it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Move all parameters that have a gradient.

        Args:
            scaler: Scaler that steps in place of the optimizers, and leaves a step out whose gradients overflow.
        """
        for optimizer in self.optimizers:
            optimizer.step() if scaler is None else scaler.step(optimizer)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states as whole tensors called "<parameter>.<what>"; there are none before the first step."""
        return {
            f"{name}.{key}": whole(value)
            for name, parameter, optimizer in self._named()
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave.

        Args:
            state: State of optimizers of the same kind over parameters of the same names and shapes.

        Raises:
            ValueError: A parameter is unknown or has another number of rows.
        """
        known = {name: (parameter, optimizer) for name, parameter, optimizer in self._named()}
        foreign = sorted({key.rpartition(".")[0] for key in state} - known.keys())
        if foreign:
            raise ValueError(f"expected the state of this optimizer's parameters, got one of {', '.join(foreign[:3])}")
        for _, parameter, optimizer in self._named():
            optimizer.state.pop(parameter, None)
        for name_key, value in state.items():
            name, _, key = name_key.rpartition(".")
            parameter, optimizer = known[name]
            if value.ndim and len(value) != len(parameter):
                raise ValueError(f"expected {name_key} with {len(parameter)} rows, got {tuple(value.shape)}")
            value = value.to(parameter.device, copy=True)
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            optimizer.state[parameter][key] = value

    def _named(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield self._names[parameter], parameter, optimizer


class ElasticOptimizer(NamedOptimizer):
    """An optimizer whose step changes neither cores beyond the budget nor the state it keeps for them.

        optimizer = ElasticOptimizer(model, lr=4e-4, weight_decay=0.01)
        model.forward_features(images, num_cores=16).global_token.square().mean().backward()
        optimizer.step(num_cores=16)
        optimizer.zero_grad()

    Args:
        module: A VECA, or a module that holds one or none, already on its device.
        kind: "adamw", "sgd" with momentum 0.9, or "normuon" for the matrices of a VECA or a ViT and AdamW for the rest.
        lr: Learning rate of all groups.
        weight_decay, decay: Arguments of `parameter_groups`.
        edges: Rows at which a budget may end; None takes those of `BudgetSampler(M)`, the multiples of 8. Two
            optimizers exchange states only where their edges are the same.

    Attributes:
        optimizers: One or two torch optimizers.
        slices: The `RowSlices` of the cores and of their coordinates.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: str = "adamw",
        lr: float = 4e-4,
        weight_decay: float = 0.01,
        decay: str = "default",
        edges: Sequence[int] | None = None,
    ):
        if kind not in _KINDS:
            raise ValueError(f"expected kind to be one of {', '.join(_KINDS)}, got {kind!r}")
        sizes = [model.num_cores for model in module.modules() if isinstance(model, VECA)]
        if edges is None and sizes:
            edges = BudgetSampler(sizes[0]).edges
        groups = parameter_groups(module, weight_decay, decay, kind == "normuon", edges)
        self.slices = [slices for group in groups for slices in group.pop("slices")]
        named = {name: p for group in groups for name, p in zip(group.pop("names"), group["params"], strict=True)}
        muon: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for group in groups:
            (muon if group.pop("muon") else rest).append(group)
        super().__init__(named, _optimizers(kind, muon, rest, lr))
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]  # without slices

    def step(self, num_cores: int | None = None, scaler: torch.amp.GradScaler | None = None) -> None:
        """Move all parameters that have a gradient, and the first rows of the bank.

        Args:
            num_cores: Largest budget that the gradients come from; None means all cores.
            scaler: See `NamedOptimizer.step`.
        """
        for slices in self.slices:
            slices.take_gradients(len(slices.parameter) if num_cores is None else num_cores)
        super().step(scaler)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        super().zero_grad()
        for slices in self.slices:
            slices.drop_gradients()


def _optimizers(kind: str, muon: list[dict], rest: list[dict], lr: float) -> list[torch.optim.Optimizer]:
    if kind == "sgd":
        return [torch.optim.SGD(rest, lr, momentum=0.9)]
    adamw = torch.optim.AdamW(rest, lr, fused=True)
    if kind == "adamw":
        return [adamw]
    if not muon:
        raise ValueError("expected a module that holds a VECA or a ViT of timm for 'normuon', got none")
    if any(isinstance(parameter, DTensor) for group in muon for parameter in group["params"]):
        raise ValueError("expected whole matrices for 'normuon', got sharded ones; use 'adamw' with FSDP")
    return [NorMuon(muon, lr), adamw]


def _exempt(module: nn.Module) -> set[str]:
    """Return the full names of the parameters that the models inside exempt from decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        for name in getattr(child, "no_weight_decay", set)()
    }


def _bank(module: nn.Module) -> set[str]:
    return {
        f"{prefix}.core_bank.{name}" if prefix else f"core_bank.{name}"
        for prefix, child in module.named_modules()
        if isinstance(child, VECA)
        for name in ("tokens", "raw_xy")
    }


def _muon_splits(module: nn.Module) -> dict[str, int]:
    """Return the full names of the matrices for Muon, with the number of matrices that each stacks."""
    splits = {}
    for prefix, model in module.named_modules():
        if not isinstance(model, VECA | VisionTransformer | Eva):
            continue
        fused = {id(child.qkv) for child in model.modules() if isinstance(getattr(child, "qkv", None), nn.Linear)}
        for name, child in model.named_modules():
            last = name == f"blocks.{len(model.blocks) - 1}.mlp.fc2"
            if isinstance(child, nn.Linear) and not last and name.split(".")[0] in ("blocks", "output"):
                full = f"{prefix}.{name}.weight" if prefix else f"{name}.weight"
                splits[full] = 3 if id(child) in fused else 1
    return splits
