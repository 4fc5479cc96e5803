"""Two models against the clock, by turns, within a time limit.

Sizes come smallest first, and each case runs once before any runs again. What a run will take is predicted from
those made: for full attention t = b P + c P^2 with P patches, for VECA t = a + b FLOPs. Within a size all cases
take turns (A B C A B C ...), so that whatever slows the machine slows all of them; reported is the median. An
untimed run comes first where a run is short; where it is long the first timed run also measures memory. A case
that would not fit into the time left is left out, and the ViT measured at a smaller size instead.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..inspect.cost import num_patches, peak_bytes

__all__ = ["Case", "Measured", "Stopwatch", "fit_time"]

_LONG = 1.5  # seconds; a case predicted above gets no untimed run
_MOST_ROUNDS = 5
_STEP = 128  # pixels; a size made smaller is a multiple of this
_MARGIN = 1.15  # on predictions


@dataclass(frozen=True)
class Case:
    """A model at a size. `num_cores` None is the ViT."""

    size: int
    num_cores: int | None

    @property
    def label(self) -> str:
        return "ViT" if self.num_cores is None else f"VECA with {self.num_cores} cores"


@dataclass
class Measured:
    """What the clock said.

    Attributes:
        case: what ran.
        seconds: of each timed run; empty where there was no time for one.
        peak_bytes: beyond weights and input; None where nothing ran.
        warm: whether an untimed run came first.
        predicted: seconds expected before the first run at this size; None at the smallest size.
        note: why this size, where nobody asked for it.
    """

    case: Case
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    warm: bool = False
    predicted: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        ordered = sorted(self.seconds)
        middle = len(ordered) // 2
        if not ordered:
            return None
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def fit_time(sizes: Sequence[int], seconds: Sequence[float], powers: tuple[int, int]) -> Callable[[int], float]:
    """Least squares fit t = x s^i + y s^j with x, y >= 0.

    Args:
        sizes: s, at least two different ones.
        seconds: t at each.
        powers: (i, j).

    Returns:
        s -> t.
    """
    unit = max(sizes)
    scaled = torch.tensor(sizes, dtype=torch.float64) / unit
    t = torch.tensor(seconds, dtype=torch.float64)
    columns = torch.stack([scaled**power for power in powers], 1)
    weights = torch.linalg.lstsq(columns, t[:, None]).solution.flatten()
    if (weights < 0).any():  # the other term alone
        alone = (columns * t[:, None]).sum(0) / columns.square().sum(0)
        weights = torch.where(weights < 0, 0.0, alone)
    x, y = weights.tolist()
    return lambda size: x * (size / unit) ** powers[0] + y * (size / unit) ** powers[1]


class Stopwatch:
    """Runs cases until `deadline`.

    Args:
        veca, vit: the models.
        image_of: (size, round) -> normalised image (1, 3, size, size) on the device.
        flops_of: FLOPs of a case.
        device: where the models are.
        deadline: `time.monotonic()` at which the last run should be over.
        report: called with a few words before each run.
    """

    def __init__(
        self,
        veca: nn.Module,
        vit: nn.Module,
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
        """All cases once, smallest size first; may be called again with larger sizes and another `deadline`.

        When time is short, the largest budget and the ViT matter most, the ViT at a smaller size if need be.

        Args:
            sizes: pixels.
            budgets: numbers of cores.
            grace: seconds beyond the deadline that those two may take before a smaller size is tried.
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
                if _MARGIN * self.predict(pair[0]) <= 0.4 * self._left():
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
        """Further rounds, always at the size with the fewest, until the deadline or five of each."""
        while True:
            rounds = []
            for size in {m.case.size for m in self.measured}:
                entries = [m for m in self.measured if m.case.size == size and m.seconds]
                seconds = sum(m.median for m in entries)
                count = min((len(m.seconds) for m in entries), default=_MOST_ROUNDS)
                if count < _MOST_ROUNDS and _MARGIN * seconds <= self._left():
                    rounds.append((count, seconds, size, entries))
            if not rounds:
                return
            count, _, size, entries = min(rounds, key=lambda candidate: candidate[:3])
            for entry in entries:
                self.report(f"{size} px, {entry.case.label}, run {count + 1}")
                self._once(entry, count, timed=True)

    def predict(self, case: Case) -> float | None:
        """Seconds of a run, from what has been measured; None before anything was."""
        timed = [m for m in self.measured if m.seconds]
        vit = case.num_cores is None
        known = [m for m in timed if (m.case.num_cores is None) == vit]
        if not timed:
            return None
        if len({m.case.size for m in known}) < 2:
            last = (known or timed)[-1]
            return last.median * self.flops_of(case) / self.flops_of(last.case)
        sizes = self._patches if vit else self.flops_of
        fit = fit_time([sizes(m.case) for m in known], [m.median for m in known], (1, 2) if vit else (0, 1))
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
        """The first timed run of each, after an untimed one of each where those are short."""
        planned = [Measured(case, predicted=self.predict(case), note=note) for case in cases]
        for entry in planned:
            if (entry.predicted or 0.0) <= _LONG:
                self.report(f"{entry.case.size} px, {entry.case.label}, untimed")
                self._once(entry, 0, timed=False)
        for position, entry in enumerate(planned):
            # the machine may have become slower than any prediction
            if position < 2 or entry.warm or entry.predicted <= self._left():
                expected = f", about {entry.predicted:.0f} s" if (entry.predicted or 0) > _LONG else ""
                self.report(f"{entry.case.size} px, {entry.case.label}, run 1{expected}")
                self._once(entry, 0, timed=True)
        self.measured += [entry for entry in planned if entry.seconds]

    def _run_smaller(self, size: int, main: int) -> None:
        """The ViT at the largest size below `size` that fits into the time left, beside VECA at the same size."""
        known = max((m.case.size for m in self.measured if m.seconds and m.case.num_cores is None), default=size)
        for smaller in range((size - 1) // _STEP * _STEP, known, -_STEP):
            pair = [Case(smaller, main), Case(smaller, None)]
            if self._fits(pair):
                self._run_first(pair, f"in place of {size} px")
                return

    def _once(self, entry: Measured, round_index: int, timed: bool) -> None:
        """One forward pass; the first one of a case also measures memory."""
        images = self.image_of(entry.case.size, round_index)
        cores = entry.case.num_cores

        def call() -> object:
            return self.vit.forward_features(images) if cores is None else self.veca.forward_features(images, cores)

        self._synchronize()
        started = time.perf_counter()
        if entry.peak_bytes is None:
            entry.peak_bytes = peak_bytes(call, self.device)
        else:
            call()
        self._synchronize()
        if timed:
            entry.seconds.append(time.perf_counter() - started)
        else:
            entry.warm = True

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
