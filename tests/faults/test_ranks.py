"""Processes that train together on shards of different sizes: none waits for the others, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tiny
from noting import fit_command, noted, run

from mm.data.manifest import Manifest

pytestmark = pytest.mark.slow

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Twenty-three samples in shards of 20 and 3."""
    folder = tiny.shards(tmp_path / "train", 23, per_shard=20)
    assert [shard.nsamples for shard in Manifest.read(folder).shards] == [20, 3]
    return folder


def keys(root: Path, rank: int) -> list[list[str]]:
    return [step["keys"] for step in noted(root, rank)]


def test_uneven_shards_on_two_ranks(tmp_path: Path, train: Path) -> None:
    root = tmp_path / "run"
    done = run(fit_command(tmp_path, root, train, *TWO))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "23 samples, 2 steps of 8 in an epoch; 7 are left over at its end and dropped" in done.stderr
    steps = [one + other for one, other in zip(keys(root, 0), keys(root, 1), strict=True)]
    assert [len(step) for step in steps] == [8] * 4
    for epoch in (steps[:2], steps[2:]):
        assert len({key for step in epoch for key in step}) == 16


def test_an_epoch_is_filled_up_on_two_ranks(tmp_path: Path, train: Path) -> None:
    root = tmp_path / "run"
    done = run(fit_command(tmp_path, root, train, *TWO, "--trainer.max_epochs", "1", "--data.remainder", "pad"))
    assert done.returncode == 0, done.stderr[-3000:]
    seen = Counter(key for rank in (0, 1) for batch in keys(root, rank) for key in batch)
    assert len(seen) == 23 and sum(seen.values()) == 24


def test_what_two_ranks_began_one_goes_on_with(tmp_path: Path, train: Path) -> None:
    """What is left of an epoch doesn't depend on how many ranks began it."""
    root = tmp_path / "run"
    done = run(fit_command(tmp_path, root, train, *TWO, ends_after=1))
    assert done.returncode == 143, done.stderr[-3000:]
    first = {key for rank in (0, 1) for batch in keys(root, rank) for key in batch}
    before = len(keys(root, 0))
    done = run(fit_command(tmp_path, root, train, "--ckpt_path", "last"))
    assert done.returncode == 0, done.stderr[-3000:]
    batches = keys(root, 0)[before:]
    assert len(first) == 8 and [len(batch) for batch in batches] == [4] * (3 + 5)  # 15 are left, and the next 23
    rest = {key for batch in batches[:3] for key in batch}
    assert len(rest) == 12 and not rest & first
    assert len({key for batch in batches[3:] for key in batch}) == 20


def test_ranks_that_see_other_samples_are_told_apart(tmp_path: Path, train: Path) -> None:
    """One rank's copy of the shards is damaged: both end, and say why."""
    other = tiny.shards(tmp_path / "other", 23, per_shard=20)
    shard = sorted(other.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:5000])
    place = tmp_path / "place"
    place.symlink_to(train)
    command = fit_command(tmp_path, tmp_path / "run", place, *TWO)
    source = (
        "import os, runpy, sys; from pathlib import Path; import mm.data.opening as opening\n"
        "find = opening.find_manifest\n"
        f"opening.find_manifest = lambda named, cache: find({str(other)!r} if os.environ.get('LOCAL_RANK') == '1' else "
        "named, cache)\n"
        f"sys.argv[1:] = {command[3:]!r}; from mm.cli import main; sys.exit(main())\n"
    )
    script = tmp_path / "two.py"
    script.write_text(source)
    done = run([command[0], str(script), *command[3:]], timeout=120)
    assert done.returncode != 0
    assert "on rank 1: data.train: damaged shards" in done.stderr, done.stderr[-2000:]
