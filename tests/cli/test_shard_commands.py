from contextlib import contextmanager

import pytest


@pytest.fixture
def bars(monkeypatch):
    """What progress bars are told."""
    told = []

    @contextmanager
    def progress(title, unit="images"):
        yield lambda done, total=None: told.append((done, total))

    monkeypatch.setattr("mm.progress.progress", progress)
    return told


def test_progress_counts_up(run, photos, tmp_path, bars):
    (photos / "empty.jpg").write_bytes(b"")
    run("shards", "make", photos, tmp_path / "out")
    assert bars == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    bars.clear()
    run("shards", "check", tmp_path / "out")
    assert bars == [(1, None), (2, None), (3, None), (4, None)]


def test_nothing_usable_is_listed_by_reason(run, run_json, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    status, _, err = run("shards", "make", folder, tmp_path / "out")
    assert status == 1
    assert "no sample was left to write" in err and "Rejected: 2 of 2" in err
    assert "empty file" in err and "not an image" in err
    status, made = run_json("shards", "make", folder, tmp_path / "out")
    assert status == 1
    assert (made["shards"], made["samples"], made["rejected"], len(made["rejections"])) == (0, 0, 2, 2)


def test_rejections_are_listed_when_writing_fails(run, photos, tmp_path, monkeypatch):
    (photos / "a-empty.jpg").write_bytes(b"")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm.data.writing.open_file", full)
    status, _, err = run("shards", "make", photos, tmp_path / "out")
    assert status == 1
    assert "No space left on device" in err and "Rejected: 1 of 1" in err and "empty file" in err


def test_make_check_and_break(run, run_json, photos, tmp_path):
    (photos / "red.txt").write_text("a red wall")
    out = tmp_path / "out"
    status, made = run_json("shards", "make", photos, out, "--prefix", "walls")
    assert status == 0
    assert (made["shards"], made["samples"], made["rejected"]) == (1, 4, 0)
    status, checked = run_json("shards", "check", out)
    assert status == 0
    assert (checked["shards"], checked["samples"], checked["problems"]) == (1, 4, 0)
    shard = out / "walls-000000.tar"
    data = bytearray(shard.read_bytes())
    data[1500] ^= 255
    shard.write_bytes(data)
    status, text, err = run("shards", "check", out)
    assert status == 1
    assert "problems" in text and "walls-000000.tar" in err


def test_make_from_a_table(run_json, photos, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text(
        "image,caption,language\nphotos/red.png,a red wall,en\nphotos/red.png,一面墙,zh\nphotos/no.png,gone,en\n"
    )
    status, made = run_json("shards", "make", table, tmp_path / "out")
    assert status == 1
    assert (made["samples"], made["rejected"]) == (1, 1)
    assert "no.png" in made["rejections"][0]["source"] + made["rejections"][0]["key"]


def test_wrong_use(run, photos, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "table.csv").write_text("image,caption,captions_zh\nphotos/red.png,a red wall,一面墙\n")
    cases = [
        (("shards", "mkae"), "mkae"),
        (("shards", "make", tmp_path / "nowhere", tmp_path / "out"), "nowhere"),
        (("shards", "make", photos, tmp_path / "file" / "out"), "file"),
        (("shards", "check", tmp_path / "nowhere"), "nowhere"),
        (("shards", "check", photos, "--max_pixels", 0), "max_pixels"),
        (("shards", "make", photos, tmp_path / "out", "--max_samples", 0), "max_samples"),
        (("shards", "make", photos, tmp_path / "out", "--max_bytes", -1), "max_bytes"),
        (("shards", "make", tmp_path / "table.csv", tmp_path / "out"), "captions_zh"),
    ]
    for arguments, culprit in cases:
        status, _, err = run(*arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1, err
        assert culprit in err
