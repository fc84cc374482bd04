"""A disk that is full when a checkpoint is to be saved."""

from __future__ import annotations

import re
import resource
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from fitting import assert_same_end, last_checkpoint, logged, mm_fit, write_config
from running import fit, made_data, trainer, training

from mm import files
from mm.errors import OutputError
from mm.training.callbacks import AveragedWeights, BestCheckpoint, LastCheckpoint
from mm.training.saving import WholeCheckpoints

NO_SPACE = OSError(28, "No space left on device")


class SmallDisk:
    """Opens files that take only so many bytes, then fail as on a full disk.

    Args:
        room: how many bytes each takes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.failures = 0

    def open(self, path: Path) -> tuple[Path, Any]:
        """Stands for what opens a temporary file."""
        temporary, file = REAL_TEMPORARY(path)
        if path.suffix == ".ckpt":
            write, left = file.write, self.room

            def limited(content: bytes) -> int:
                nonlocal left
                left -= len(content)
                if left < 0:
                    self.failures += 1
                    raise NO_SPACE
                return int(write(content))

            file = Wrapped(file, limited)
        return temporary, file


class Wrapped:
    """A file with another ``write``."""

    def __init__(self, file: Any, write: Any) -> None:
        self.file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Wrapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


REAL_TEMPORARY = files._temporary


def runner(root: Path, *callbacks: L.Callback) -> L.Trainer:
    """A trainer that writes checkpoints as ``mm fit`` does."""
    return trainer(root, callbacks=list(callbacks), plugins=[WholeCheckpoints()])


@pytest.mark.parametrize("room", [0, 100, 200_000])
def test_a_full_disk_in_the_middle_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Training ends with what is needed, and the checkpoint from before is untouched."""
    module = training(tmp_path)
    disk = SmallDisk(room)
    before = b""

    def fill(step: int) -> None:
        nonlocal before
        if step == 4:
            before = last.read_bytes()
            monkeypatch.setattr(files, "_temporary", disk.open)

    module.during = fill
    root = tmp_path / "run"
    last = root / "checkpoints/last.ckpt"
    with pytest.raises(OutputError) as caught:
        fit(runner(root, AveragedWeights(0.5), LastCheckpoint(0)), module, made_data(tmp_path))
    assert last.read_bytes() == before
    assert list(last.parent.iterdir()) == [last]
    assert disk.failures > 0
    message = str(caught.value)
    found = re.fullmatch(
        rf"{last}: can't be saved \(No space left on device\); the checkpoint takes ([\d,]+) bytes, and ([\d,]+) are "
        rf"free in {last.parent}; the last good one is intact: make room, then go on with --ckpt_path last",
        message,
    )
    assert found, message
    assert int(found[1].replace(",", "")) == pytest.approx(len(before), rel=0.01)
    assert int(found[2].replace(",", "")) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_the_first_checkpoint_says_that_there_is_none_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_temporary", SmallDisk(100).open)
    with pytest.raises(OutputError, match="there is none yet: make room, then start again"):
        fit(runner(tmp_path, BestCheckpoint()), training(tmp_path), made_data(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_full_disk_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another error, on which a checkpoint can't be saved, is the one that is raised."""
    module = training(tmp_path)

    def fail(step: int) -> None:
        if step == 4:
            monkeypatch.setattr(files, "_temporary", SmallDisk(100).open)
            raise RuntimeError("broken")

    module.during = fail
    with pytest.raises(RuntimeError, match="broken"):
        fit(runner(tmp_path, LastCheckpoint()), module, made_data(tmp_path))
    assert any("can't be saved (No space left on device)" in message for message in caplog.messages)


def limit_files() -> None:
    """Lets the system refuse to write more than 64 KiB to a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


@pytest.mark.slow
def test_mm_fit_says_what_was_needed_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    made_data(tmp_path)
    config = write_config(tmp_path)
    short = ["--trainer.max_epochs", "2"]
    status, errors = mm_fit(config, tmp_path / "whole", *short)
    assert status == 0, errors
    root = tmp_path / "full"
    stop = {"class_path": "fitting.SignalAt", "init_args": {"hook": "on_before_optimizer_step", "step": 1}}
    status, errors = mm_fit(write_config(tmp_path, stop), root, *short)
    assert status == 143, errors
    config = write_config(tmp_path)
    last = root / "checkpoints/last.ckpt"
    before = last.read_bytes()
    on = [*short, "--ckpt_path", "last"]
    status, errors = mm_fit(config, root, *on, preexec_fn=limit_files)
    assert status == 2, errors
    line = errors.splitlines()[-1]
    assert line.startswith(f"mm fit: {last}: can't be saved (File too large); the checkpoint takes ")
    assert "Traceback" not in errors
    assert last.read_bytes() == before
    assert not [path for path in last.parent.iterdir() if path.suffix == ".tmp"]
    status, errors = mm_fit(config, root, *on)
    assert status == 0, errors
    assert last_checkpoint(root)["global_step"] == 6
    losses = logged(root, last=True)
    assert losses == {step: loss for step, loss in logged(tmp_path / "whole").items() if step >= 2}
    assert_same_end(tmp_path / "whole", root)


@pytest.mark.slow
def test_no_room_for_logs_is_one_line(tmp_path: Path) -> None:
    made_data(tmp_path)
    status, errors = mm_fit(write_config(tmp_path), tmp_path / "run", preexec_fn=limit_logs)
    assert status == 2, errors
    assert errors.splitlines()[-1].startswith(f"mm fit: {tmp_path}/run: logs can't be written (File too large): make")
    assert "Traceback" not in errors


def limit_logs() -> None:
    """Lets the system refuse to write more than 1,000 bytes to a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
