from __future__ import annotations

import os
import signal
import time
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mm.data.workers import quiet_worker


class Pids(Dataset[int]):
    """Tells which process an item comes from."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return os.getpid()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_signals_to_all_processes_leave_workers_at_work() -> None:
    """Such as those of another process, here one that it forks."""
    batches: Any = iter(DataLoader(Pids(), batch_size=2, num_workers=1, worker_init_fn=quiet_worker))
    worker = int(next(batches)[0])
    assert worker != os.getpid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        if (sender := os.fork()) == 0:
            os.kill(worker, number)
            os._exit(0)
        os.waitpid(sender, 0)
    assert all(int(pid) == worker for batch in batches for pid in batch)


def test_the_main_process_ends_a_worker() -> None:
    batches: Any = iter(DataLoader(Pids(), batch_size=2, num_workers=1, worker_init_fn=quiet_worker))
    worker = int(next(batches)[0])
    (process,) = batches._workers
    process.terminate()
    process.join(10)
    assert process.exitcode == 0 and gone(worker)
