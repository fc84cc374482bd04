"""Processes that train together on shards of different sizes: none waits for the others, and nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny
import yaml
from fitting import command, environment, mm_fit, write_config

from mm.data.shards.manifest import Manifest

pytestmark = pytest.mark.slow

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
NO_VALIDATION = ("--data.val", "null", "--trainer.max_epochs", "2")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Twenty-three samples in shards of 20 and 3."""
    folder = tiny.shards(tmp_path / "train", 23, per_shard=20)
    assert [shard.nsamples for shard in Manifest.read(folder).shards] == [20, 3]
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def config(folder: Path, root: Path, ends_after: int | None = None) -> Path:
    """A config that notes its steps, and that a SIGTERM may end."""
    callbacks = [{"class_path": "fitting.NotedSteps", "init_args": {"folder": str(root)}}]
    if ends_after is not None:
        ending = {"hook": "on_train_batch_end", "step": ends_after, "number": int(signal.SIGTERM)}
        callbacks.append({"class_path": "fitting.SignalAt", "init_args": ending})
    path = write_config(folder, *callbacks)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = [one for one in document["trainer"]["callbacks"] if not one["class_path"].endswith("BestCheckpoint")]
    document["trainer"]["callbacks"] = kept  # without validation there is no best one
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def keys(root: Path, rank: int) -> list[list[str]]:
    """The samples of each step on a rank."""
    return [json.loads(line) for line in (root / f"steps-{rank}.jsonl").read_text().splitlines()]


def test_uneven_shards_on_two_ranks(tmp_path: Path, root: Path, train: Path) -> None:
    status, said = mm_fit(config(tmp_path, root), root, *TWO, *NO_VALIDATION)
    assert status == 0, said[-3000:]
    assert "23 samples, 2 steps of 8 in an epoch; 7 are left over at its end and dropped" in said
    steps = [one + other for one, other in zip(keys(root, 0), keys(root, 1), strict=True)]
    assert [len(step) for step in steps] == [8] * 4
    for epoch in (steps[:2], steps[2:]):
        assert len({key for step in epoch for key in step}) == 16


def test_an_epoch_is_filled_up_on_two_ranks_and_another_number_goes_on_with_it(
    tmp_path: Path, root: Path, train: Path
) -> None:
    """What is left of an epoch doesn't depend on how many ranks began it."""
    status, said = mm_fit(config(tmp_path, root, ends_after=1), root, *TWO, *NO_VALIDATION)
    assert status == 143, said[-3000:]
    first = {key for rank in (0, 1) for batch in keys(root, rank) for key in batch}
    assert len(keys(root, 0)) == len(keys(root, 1)) == 1 and len(first) == 8
    one = (*NO_VALIDATION, "--data.remainder", "pad", "--ckpt_path", "last")
    status, said = mm_fit(config(tmp_path, root), root, *one)
    assert status == 0, said[-3000:]
    batches = keys(root, 0)[1:]
    assert [len(batch) for batch in batches] == [4] * (4 + 6)  # 15 are left, and the next 23
    rest = Counter(key for batch in batches[:4] for key in batch)
    assert len(rest) == 15 + 1 and len(rest.keys() & first) == 1  # the last batch is filled up with the epoch's first
    assert len({key for batch in batches[4:] for key in batch}) == 23


def test_ranks_that_see_other_samples_are_told_apart(tmp_path: Path, root: Path, train: Path) -> None:
    """One rank's copy of the shards is damaged: both end, and say why."""
    other = tiny.shards(tmp_path / "other", 23, per_shard=20)
    shard = sorted(other.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:5000])
    arguments = command(config(tmp_path, root), root, *TWO, *NO_VALIDATION)[3:]
    script = tmp_path / "two.py"
    script.write_text(
        "import os, sys\n"
        "from mm.data import shard_data\n"
        "find = shard_data.find_manifest\n"
        "second = os.environ.get('LOCAL_RANK') == '1'\n"
        f"shard_data.find_manifest = lambda named, *rest: find({str(other)!r} if second else named, *rest)\n"
        "from mm.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = [sys.executable, str(script), *arguments]
    done = subprocess.run(run, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "on rank 1: data.train: damaged shards" in done.stderr
