"""Signals that ask a training to end: it finishes its step, writes a checkpoint, and exits with 128 + the signal.

| signal | who sends it | exit status |
|---|---|---|
| SIGINT | Ctrl-C | 130 |
| SIGUSR1 | Slurm's `--signal`, if it is chosen there | 138 |
| SIGTERM | Slurm before a job is requeued, `kill`, a machine that shuts down | 143 |
"""

import os
import signal
import threading
from types import FrameType
from typing import Self

__all__ = ["StopSignals", "ignore_stop_signals"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """A context that notes signals which ask the program to end, instead of ending it.

    Ctrl-C a second time ends a single process at once. Signals that the caller ignores stay ignored. In a thread other
    than the main one the context has no effect.

    Attributes:
        number: The last signal that came; None before.
    """

    def __init__(self):
        self.number: int | None = None
        self._before = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes a Ctrl-C on to processes that have had it from the terminal already
        if number == self.number == signal.SIGINT and int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise KeyboardInterrupt
        self.number = number


def ignore_stop_signals(worker: int = 0) -> None:
    """Ignore these signals in a process that prepares batches, which its parent ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
