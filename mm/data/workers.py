"""Processes that load data, and the signals that aren't meant for them."""

from __future__ import annotations

import os
import signal
import threading


def quiet_worker(worker_id: int) -> None:
    """Leaves it to the main process when a process that loads data ends; a DataLoader's ``worker_init_fn``.

    Ctrl-C and a scheduler's SIGTERM reach all processes of a run. The main process has batches left to train on then,
    and a checkpoint to save.

    Args:
        worker_id: its number, which doesn't matter.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # otherwise there is no telling who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process on a SIGTERM from its parent, and on no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
