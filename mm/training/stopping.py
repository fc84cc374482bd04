"""Training that stops when it is told to by a signal, between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedAtOnce(SIGTERMException):
    """The run ends wherever it is: training hasn't begun, or Ctrl-C was pressed again."""


class StopOnSignal(L.Callback):
    """Lets a run end between two steps, or between two batches of validation, after SIGTERM or Ctrl-C.

    Before that, the signal handler does nothing but take note. All ranks stop at the same step, whichever of them the
    signal was sent to. Lightning then raises a ``SIGTERMException``, whereupon ``LastCheckpoint`` saves.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.trainer: L.Trainer | None = None
        self._running = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listens to the signals: they end a run at once that hasn't begun."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                _handle(number, handler)

    def _listen(self) -> None:
        for number in SIGNALS:
            _handle(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and number == signal.SIGINT  # SIGTERM is often sent to process and group
        self.received = self.received or signal.Signals(number)
        if again or not self._running:
            raise StoppedAtOnce

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Takes the place of Lightning's signal handler, which lets ranks wait for each other inside it."""
        self.trainer = trainer
        connector = trainer._signal_connector
        register = connector.register_signal_handlers

        def register_and_replace() -> None:
            register()
            self._running = True
            self._listen()

        connector.register_signal_handlers = register_and_replace  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops where the signal came before the first step."""
        if self._agreed(trainer):
            raise SIGTERMException

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Lets Lightning stop as soon as it is done with the step; not before all gradients of a step are there."""
        if not trainer.fit_loop._should_accumulate():
            self._stop_soon(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Lets Lightning stop before the next batch."""
        self._stop_soon(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Lets Lightning stop before the next batch."""
        self._stop_soon(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ends the other ranks of this machine, if this one doesn't wait for them."""
        if isinstance(exception, StoppedAtOnce) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)

    def _stop_soon(self, trainer: L.Trainer) -> None:
        if self._agreed(trainer):
            trainer._signal_connector.received_sigterm = True

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Tells whether any of the ranks was told to stop, and takes note of the signal."""
        if trainer.world_size > 1:
            number = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
            highest = int(trainer.strategy.all_gather(number).max())
            self.received = self.received or (signal.Signals(highest) if highest else None)
        return self.received is not None


def _handle(number: signal.Signals, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # others can't
        signal.signal(number, handler)
