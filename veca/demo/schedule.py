"""The schedule of the measurements: two models run by turns within a time limit.

Sizes come smallest first, and each case runs once before any case runs again. Within a size all cases take turns (A B C
A B C ...), so that a slow moment of the machine affects all of them. Both models with the largest budget, a pair, come
first until each size has `PAIRS` of them. The report shows medians.

The time of a run is predicted from earlier runs. With P patches, full attention is fitted by t = b P + c P^2, and VECA
by t = a + b FLOPs. A short run is preceded by an untimed one. If a run is long, the first timed run also measures
memory. A case that does not fit into the time left is left out, and the ViT is measured at a smaller size instead.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..inspect.cost import num_patches, peak_bytes
from ..inspect.stopwatch import wall_seconds
from ..model.backbone import VECA

__all__ = ["PAIRS", "Case", "Measured", "Schedule", "fit_time"]

PAIRS = 3  # runs of either model, in turns, whose medians make a headline
_LONG = 1.5  # seconds; a case with a longer prediction gets no untimed run
_MOST_ROUNDS = 5
_STEP = 128  # pixels; a size made smaller is a multiple of this
_MARGIN = 1.15  # factor on predictions


@dataclass(frozen=True)
class Case:
    """One model at one image side in pixels. `num_cores` is None for the ViT."""

    size: int
    num_cores: int | None

    @property
    def label(self) -> str:
        return "ViT" if self.num_cores is None else f"VECA with {self.num_cores} cores"


@dataclass
class Measured:
    """The measurements of one case.

    Attributes:
        case: Model and image side.
        seconds: Duration of each timed run, in seconds; empty if there was no time for a run.
        peak_bytes: Peak memory beyond weights and input; None if nothing ran.
        warm: Whether an untimed run came first.
        predicted: Seconds that were expected before the first run; None at the smallest size.
        note: Why this size was measured, if it was not asked for.
    """

    case: Case
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    warm: bool = False
    predicted: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


def fit_time(sizes: Sequence[int], seconds: Sequence[float], powers: tuple[int, int]) -> Callable[[int], float]:
    """Fit t = x s^i + y s^j with x, y >= 0 by least squares.

    Args:
        sizes: Values of s, at least two different ones.
        seconds: Time t of each size.
        powers: The powers (i, j).

    Returns:
        A function from s to t.
    """
    unit = max(sizes)
    scaled = torch.tensor(sizes, dtype=torch.float64) / unit
    t = torch.tensor(seconds, dtype=torch.float64)
    columns = torch.stack([scaled**power for power in powers], 1)
    weights = torch.linalg.lstsq(columns, t[:, None]).solution.flatten()
    if (weights < 0).any():  # fit the other term alone
        alone = (columns * t[:, None]).sum(0) / columns.square().sum(0)
        weights = torch.where(weights < 0, 0.0, alone)
    x, y = weights.tolist()
    return lambda size: x * (size / unit) ** powers[0] + y * (size / unit) ** powers[1]


class Schedule:
    """Decides which cases run next, and runs them until `deadline`.

    Args:
        veca: VECA, on its device.
        vit: ViT of the same width and depth.
        image_of: Function (size, round) -> normalised image (1, 3, size, size) on the device.
        flops_of: Function from a case to its FLOPs.
        device: Device of both models.
        deadline: Time on `time.monotonic()` at which the last run should end.
        report: Function that receives a short message before each run.
    """

    def __init__(
        self,
        veca: VECA,
        vit: Any,
        image_of: Callable[[int, int], Tensor],
        flops_of: Callable[[Case], int],
        device: torch.device,
        deadline: float,
        report: Callable[[str], None],
    ):
        self.veca, self.vit = veca, vit
        self.image_of, self.flops_of = image_of, flops_of
        self.device, self.deadline, self.report = device, deadline, report
        self.measured: list[Measured] = []

    @torch.inference_mode()
    def run(self, sizes: Sequence[int], budgets: Sequence[int], grace: float = 0.0) -> None:
        """Run all cases once, smallest size first. Further calls may add larger sizes with another `deadline`.

        When time is short, the largest budget and the ViT come first, the ViT at a smaller size if needed.

        Args:
            sizes: Image sides in pixels.
            budgets: Numbers of cores.
            grace: Seconds that those two may take beyond the deadline before a smaller size is tried.
        """
        main = max(budgets)
        for size in sorted(sizes):
            pair = [Case(size, main), Case(size, None)]
            others = [Case(size, cores) for cores in sorted(set(budgets) - {main})]
            if self._fits(pair, grace) or not self.measured:  # the smallest size is measured however late it is
                chosen = pair
                for case in others:
                    chosen = [*chosen, case] if self._fits([*chosen, case]) else chosen
                self._run_first(chosen)
            else:
                if _MARGIN * (self.predict(pair[0]) or 0.0) <= 0.4 * self._left():
                    self._run_first(pair[:1])
                self._run_smaller(size, main)
            for case in (pair[0], *others):  # now that more is known, some may fit after all
                if not self._ran(case) and self._fits([case]):
                    self._run_first([case])
            for case in (*pair, *others):
                if not self._ran(case):
                    self.measured.append(Measured(case, predicted=self.predict(case)))
        self.measured.sort(key=lambda m: m.case.size)

    @torch.inference_mode()
    def repeat(self) -> None:
        """Run further rounds, pairs first, always at the size with the fewest, until the deadline or five rounds."""
        while True:
            rounds = []
            for size in {m.case.size for m in self.measured}:
                entries = [m for m in self.measured if m.case.size == size and m.seconds]
                largest = max((m.case.num_cores or 0 for m in entries), default=0)
                pair = [m for m in entries if m.case.num_cores in (None, largest)]
                for chosen, most in ((pair, PAIRS), (entries, _MOST_ROUNDS)):
                    seconds = sum(m.median for m in chosen if m.median is not None)
                    count = min((len(m.seconds) for m in chosen), default=most)
                    if count < most and _MARGIN * seconds <= self._left():
                        rounds.append((most, count, seconds, size, chosen))
            if not rounds:
                return
            *_, size, chosen = min(rounds, key=lambda candidate: candidate[:4])
            for entry in chosen:
                self.report(f"{size} px, {entry.case.label}, run {len(entry.seconds) + 1}")
                self._once(entry, len(entry.seconds), timed=True)

    def predict(self, case: Case) -> float | None:
        """Seconds that a run should take, from earlier runs; None before the first run."""
        timed = [(m.case, m.median) for m in self.measured if m.median is not None]
        vit = case.num_cores is None
        known = [(other, seconds) for other, seconds in timed if (other.num_cores is None) == vit]
        if not timed:
            return None
        if len({other.size for other, _ in known}) < 2:
            last, seconds = (known or timed)[-1]
            return seconds * self.flops_of(case) / self.flops_of(last)
        sizes = self._patches if vit else self.flops_of
        fit = fit_time(
            [sizes(other) for other, _ in known], [seconds for _, seconds in known], (1, 2) if vit else (0, 1)
        )
        return fit(sizes(case))

    def _patches(self, case: Case) -> int:
        return num_patches(self.veca, case.size, case.size)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _fits(self, cases: Sequence[Case], grace: float = 0.0) -> bool:
        return _MARGIN * sum(self.predict(case) or 0.0 for case in cases) <= self._left() + grace

    def _ran(self, case: Case) -> bool:
        return any(m.case == case and m.seconds for m in self.measured)

    def _run_first(self, cases: Sequence[Case], note: str = "") -> None:
        """Make the first timed run of each case, after an untimed run of each case that is short."""
        planned = [Measured(case, predicted=self.predict(case), note=note) for case in cases]
        for entry in planned:
            if (entry.predicted or 0.0) <= _LONG:
                self.report(f"{entry.case.size} px, {entry.case.label}, untimed")
                self._once(entry, 0, timed=False)
        for position, entry in enumerate(planned):
            # the machine may have become slower than any prediction
            if position < 2 or entry.warm or (entry.predicted or 0.0) <= self._left():
                expected = f", about {entry.predicted:.0f} s" if (entry.predicted or 0) > _LONG else ""
                self.report(f"{entry.case.size} px, {entry.case.label}, run 1{expected}")
                self._once(entry, 0, timed=True)
        self.measured += [entry for entry in planned if entry.seconds]

    def _run_smaller(self, size: int, main: int) -> None:
        """Run both models at the largest size below `size` that fits into the time left."""
        known = max((m.case.size for m in self.measured if m.seconds and m.case.num_cores is None), default=size)
        for smaller in range((size - 1) // _STEP * _STEP, known, -_STEP):
            pair = [Case(smaller, main), Case(smaller, None)]
            if self._fits(pair):
                self._run_first(pair, f"in place of {size} px")
                return

    def _once(self, entry: Measured, round_index: int, timed: bool) -> None:
        """Run one forward pass. The first one of a case also measures memory."""
        images = self.image_of(entry.case.size, round_index)
        cores = entry.case.num_cores

        def call() -> object:
            return self.vit.forward_features(images) if cores is None else self.veca.forward_features(images, cores)

        def call_with_memory() -> None:
            entry.peak_bytes = peak_bytes(call, self.device)

        seconds = wall_seconds(call_with_memory if entry.peak_bytes is None else call, self.device)
        if timed:
            entry.seconds.append(seconds)
        else:
            entry.warm = True
