"""The encoder's answers joined with those of a ridge on the same courses, so that it is no worse than that ridge.

The ridge of each fold's encoder is fitted to the same train objects. The share of the ridge is the one with which the
folds' encoders name most of the objects that they did not see. Ties go to the likelier answers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...baselines.sensors import SensorRidge
from ...data.objects import ObjectTrials
from .crossfit import Fold, encode
from .model import FusionEncoder
from .targets import Goals

__all__ = ["add_ridge", "chosen_shares", "join_ridges", "set_shares"]

SHARES = np.linspace(0, 1, 11)
_UNSEEN = -20.0  # logit of a label that no train object of a fold has


def join_ridges(
    final: Any, folds: Sequence[Fold], trials: ObjectTrials, goals: Goals, device: torch.device
) -> dict[str, float]:
    """Join the answers of the final encoder and of those of the folds with ridges; returns the shares of the ridges.

    Args:
        final: Encoder of all train trials, with `size.stack` as those of the folds.
        folds, trials, goals, device: As in `chosen_shares`.
    """
    encoders: list[Any] = [fold.encoder for fold in folds]
    for fold, encoder in zip(folds, encoders, strict=True):
        add_ridge(encoder, trials.take(~np.isin(trials.ids, fold.held)), goals)
    shares = chosen_shares(folds, trials, goals, device)
    add_ridge(final, trials, goals)
    for encoder in (final, *encoders):
        set_shares(encoder, shares)
    return shares


def add_ridge(encoder: FusionEncoder, trials: ObjectTrials, goals: Goals) -> None:
    """Fit the ridge to the train trials of an encoder with the same filters, and give it to the encoder.

    Args:
        encoder: Encoder with `size.stack`.
        trials: Its single train trials.
        goals: Goals of their objects.
    """
    goal, size = goals.of(trials.ids), encoder.size
    own: Any = encoder.votes
    bins = {name: size.token(name) for name in trials.streams}
    labels = {"class": goal.label.numpy()}
    if len(own["color"].bias):
        labels["color"] = goal.color.numpy()
    present = {name: np.unique(numbers, return_inverse=True) for name, numbers in labels.items()}
    compact: dict[str, Any] = {name: numbers for name, (_, numbers) in present.items()}
    ridge = SensorRidge(bins, components=size.components).fit(trials, compact["class"], colors=compact.get("color"))
    for name, coef in ridge.coef_.items():
        sharpness, votes, columns = ridge.sharpness_[name], own[name], present[name][0]
        votes.weight.zero_()
        votes.bias.fill_(_UNSEEN)
        votes.weight[:, columns] = torch.from_numpy(sharpness * coef).float()
        votes.bias[columns] = torch.from_numpy(sharpness * ridge.intercept_[name]).float()


def set_shares(encoder: FusionEncoder, shares: dict[str, float]) -> None:
    """Set how much of the answers comes from the ridge, by "class" and "color"."""
    own: Any = encoder.votes
    for name, share in shares.items():
        own[name].share.fill_(share)


def chosen_shares(folds: Sequence[Fold], trials: ObjectTrials, goals: Goals, device: torch.device) -> dict[str, float]:
    """Shares of the ridge, "class" and "color", with which the folds' encoders name most objects that they did not see.

    Args:
        folds: Encoders of the folds, each with its ridge.
        trials: Single train trials of all objects; the means of an object's presentations are named.
        goals: Goals of the objects.
        device: Where to encode.
    """
    means = trials.averaged()
    parts = [means.take(np.isin(means.ids, fold.held)) for fold in folds]
    found: dict[str, list[tuple[float, float, float]]] = {"class": [], "color": []}
    for share in SHARES.tolist():
        told: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"class": [], "color": []}
        for fold, part in zip(folds, parts, strict=True):
            assert isinstance(fold.encoder, FusionEncoder)  # of a recipe with stack
            set_shares(fold.encoder, {"class": share, "color": share})
            said, goal = encode(fold.encoder, part, device), goals.of(part.ids)
            told["class"].append((said.shape.numpy(), goal.label.numpy()))
            told["color"].append((said.color.numpy(), goal.color.numpy()))
        for name, pairs in told.items():
            probable, labels = (np.concatenate(column) for column in zip(*pairs, strict=True))
            if probable.shape[1]:
                right = (probable.argmax(1) == labels).mean()
                likely = np.log(probable[np.arange(len(labels)), labels] + 1e-12).mean()
                found[name].append((float(right), float(likely), share))
    return {name: max(rows)[2] for name, rows in found.items() if rows}
