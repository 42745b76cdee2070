"""Stopping a run in order: SIGINT and SIGTERM set a flag that the loop reads."""

import signal
import sys
from pathlib import Path


class Interrupted(Exception):
    """The run was asked to stop, and stopped after writing a checkpoint.

    Attributes:
        signal: the signal that asked; SIGTERM if it reached another host.
    """

    def __init__(self, step: int, checkpoints: Path, received: signal.Signals | None):
        self.signal = received or signal.SIGTERM
        asked = received.name if received else "a signal to another host"
        super().__init__(
            f"Stopped by {asked} at step {step}; a checkpoint is in {checkpoints}. "
            "The same command resumes from there."
        )


class InterruptFlag:
    """Context in which SIGINT and SIGTERM only set a flag.

    A second SIGINT raises `KeyboardInterrupt` as usual.

    Attributes:
        received: the signal that was received, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}

    def _note(self, number, frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(
            f"\n{self.received.name}: stopping after this step, with a checkpoint.",
            file=sys.stderr,
        )

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs there handles signals
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
