import io
import json
import tarfile

import pytest
from PIL import Image

from mm.data.shards.manifest import Manifest

TASKS = ("captioning", "retrieval")


def png(colour, size=(48, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def without_hashes(shards, *more):
    """Takes the hashes out of a manifest, and adds shards that aren't there."""
    manifest = json.loads((shards / "manifest.json").read_text())
    for entry in manifest["shardlist"]:
        del entry["sha256"]
    manifest["shardlist"] += [{"url": name, "nsamples": 3} for name in more]
    (shards / "manifest.json").write_text(json.dumps(manifest))


def test_captioning(run_json, model, shards, tmp_path):
    output = tmp_path / "captions.jsonl"
    status, figures = run_json("eval", "captioning", "--data", shards, "--model", model, "--output", output)
    assert status == 0
    assert figures["images"] == 4
    assert figures["split"] == Manifest.read(shards).digest[:16]
    assert {"BLEU-4", "ROUGE-L", "CIDEr", "strategy"} <= figures.keys()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[0]["references"] == ["a red wall", "red paint"]


def test_captioning_equals_scoring_by_hand(run_json, model, shards, tmp_path):
    from mm.metrics import score_captions

    output = tmp_path / "captions.jsonl"
    _, figures = run_json(
        "eval", "captioning", "--data", shards, "--model", model, "--output", output, "--language", "zh"
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    expected = score_captions(
        {row["source"]: row["references"] for row in rows}, {row["source"]: row["caption"] for row in rows}, "zh"
    )
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_retrieval_equals_ranking_by_hand(run_json, model, shards):
    import numpy as np

    import mm
    from mm.data.shards.reading import IndexedShards
    from mm.metrics import retrieval_metrics

    status, figures = run_json("eval", "retrieval", "--data", shards, "--model", model, "--batch_size", 3)
    samples = IndexedShards(Manifest.read(shards))
    pipeline = mm.load(model)
    images = pipeline.embed_images([samples[i].image for i in range(4)])
    texts = [text for i in range(4) for text in samples[i].captions["en"]]
    expected = retrieval_metrics(images, pipeline.embed_text(texts), np.repeat(np.arange(4), 2))
    assert status == 0
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert (figures["images"], figures["captions"]) == (4, 8)


def test_rejections_are_counted(run, run_json, model, shards):
    shard = next(shards.glob("*.tar"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    status, figures = run_json("eval", "retrieval", "--data", shards, "--model", model)
    assert status == 1
    assert figures["images"] + figures["rejected"] == 4
    assert figures["rejections"]


def test_missing_captions_are_rejected(run, model, photos, tmp_path):
    (photos / "red.txt").write_text("a red wall")
    run("shards", "make", photos, tmp_path / "out")
    status, _, err = run("eval", "captioning", "--data", tmp_path / "out", "--model", model)
    assert status == 1
    assert "missing caption" in err and "Rejected: 3 of 4" in err
    status, _, err = run("eval", "captioning", "--data", tmp_path / "out", "--model", model, "--language", "zh")
    assert status == 1
    assert "no image with a caption" in err and "Rejected: 4 of 4" in err


@pytest.mark.parametrize("task", TASKS)
def test_nothing_usable_is_listed_by_reason(run, run_json, model, tmp_path, task):
    members = [("a.png", b"not an image"), ("a.txt", b"a wall"), ("b.png", b""), ("b.txt", b"a wall")]
    shard = write_tar(tmp_path / "bad" / "x.tar", [*members, ("c.png", png("red"))])
    status, _, err = run("eval", task, "--data", shard, "--model", model)
    assert status == 1
    assert "no image with a caption" in err and "Rejected: 3 of 3" in err
    assert all(reason in err for reason in ("not an image", "empty file", "missing caption"))
    status, figures = run_json("eval", task, "--data", shard, "--model", model)
    assert status == 1
    assert (figures["images"], figures["rejected"], len(figures["rejections"])) == (0, 3, 3)


@pytest.mark.parametrize("task", TASKS)
def test_bad_samples_among_good_ones(run, run_json, model, tmp_path, task):
    write_tar(
        tmp_path / "data" / "a.tar",
        [
            ("good.png", png("red")),
            ("good.txt", b"a red wall"),
            ("text.png", b"not an image"),
            ("text.txt", b"a wall"),
            ("empty.png", b""),
            ("empty.txt", b"a wall"),
            ("big.png", png("blue", (300, 300))),
            ("big.txt", b"a wall"),
            ("latin.png", png("green")),
            ("latin.txt", b"caf\xe9"),
            ("none.png", png("green")),
        ],
    )
    members = [(f"{n}.{suffix}", content) for n in range(3) for suffix, content in (("png", png("red")), ("txt", b"x"))]
    damaged = write_tar(tmp_path / "data" / "b.tar", members)
    with tarfile.open(damaged) as tar:
        start = tar.getmember("2.png").offset
    data = bytearray(damaged.read_bytes())
    data[start + 150] ^= 255  # in the checksum of the header
    damaged.write_bytes(data)
    shardlist = [{"url": "a.tar", "nsamples": 6}, {"url": "b.tar", "nsamples": 3}]
    manifest = {"__kind__": "wids-shard-index-v1", "shardlist": shardlist}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    arguments = ("eval", task, "--data", tmp_path / "data", "--model", model, "--max_pixels", 50_000)
    status, figures = run_json(*arguments)
    assert status == 1
    assert (figures["images"], figures["rejected"]) == (2, 7)
    assert {rejection["key"]: rejection["reason"] for rejection in figures["rejections"]} == {
        "text": "not an image",
        "empty": "empty file",
        "big": "too many pixels",
        "latin": "caption is not UTF-8",
        "none": "missing caption",
        "": "corrupt tar header",
    }
    status, out, err = run(*arguments)
    assert status == 1
    assert "images" in out and "Rejected: 7 of 9" in err
    assert all(rejection["reason"] in err for rejection in figures["rejections"])


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_shard_without_a_hash_costs_no_figures(run_json, model, shards, task):
    without_hashes(shards, "gone.tar")
    status, figures = run_json("eval", task, "--data", shards, "--model", model)
    assert status == 1
    assert (figures["images"], figures["rejected"], figures["split"]) == (4, 3, None)
    assert {r["reason"] for r in figures["rejections"]} == {"missing shard", "split without a hash"}
    assert all("gone.tar" in rejection["detail"] for rejection in figures["rejections"])


def test_the_hash_does_not_depend_on_the_manifest(run_json, model, shards):
    expected = Manifest.read(shards).digest[:16]
    without_hashes(shards)
    status, figures = run_json("eval", "retrieval", "--data", shards, "--model", model)
    assert (status, figures["split"]) == (0, expected)


def test_captions_that_can_not_be_written_cost_no_figures(run, model, shards, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm.cli.evaluate.write_whole", full)
    output = tmp_path / "captions.jsonl"
    status, out, err = run("eval", "captioning", "--data", shards, "--model", model, "--output", output)
    assert status == 1
    assert "CIDEr" in out and "images" in out
    assert str(output) in err and "No space left" in err and err.count("\n") == 1


def test_every_image_is_scored_though_keys_repeat(run_json, model, shards, tmp_path, monkeypatch):
    from mm.metrics import captioning

    scored, score = [], captioning.score_captions

    def spy(references, candidates, *arguments, **options):
        scored.append(len(candidates))
        return score(references, candidates, *arguments, **options)

    monkeypatch.setattr(captioning, "score_captions", spy)
    members = [("a.png", png("red")), ("a.txt", b"red"), ("b.png", png("blue")), ("b.txt", b"blue")]
    one = write_tar(tmp_path / "more" / "x.tar", members)
    other = write_tar(tmp_path / "more" / "y.tar", [("a.png", png("green")), ("a.txt", b"green")])
    shard, output = next(shards.glob("*.tar")), tmp_path / "captions.jsonl"
    data = (shard, one, other, shard)  # the same shard counts once
    _, figures = run_json("eval", "captioning", "--data", *data, "--model", model, "--output", output)
    assert (figures["images"], figures["rejected"]) == (7, 0)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert scored == [7] == [len(rows)]
    assert [row["references"] for row in rows[4:]] == [["red"], ["blue"], ["green"]]


@pytest.mark.parametrize("task", TASKS)
def test_images_go_through_the_model_together_as_told(run, model, tmp_path, monkeypatch, task):
    from mm.pipeline import VisionLanguagePipeline

    sizes, batches = [], VisionLanguagePipeline._batches

    def spy(self, images, size):
        for pixels in batches(self, images, size):
            sizes.append(len(pixels))
            yield pixels

    monkeypatch.setattr(VisionLanguagePipeline, "_batches", spy)
    members = [
        (f"{n}.{suffix}", content) for n in range(40) for suffix, content in (("png", png("red")), ("txt", b"x"))
    ]
    shard = write_tar(tmp_path / "many" / "x.tar", members)
    options = ("--batch_size", 40, "--max_tokens", 2, "--beams", 1)
    assert run("eval", task, "--data", shard, "--model", model, *options)[0] == 0
    assert sizes == [40]


def test_wrong_use(run, model, shards, tmp_path):
    cases = [
        (("eval", "segmentation", "--data", shards), "segmentation"),
        (("eval", "captioning", "--data", tmp_path / "nowhere"), "nowhere"),
        (("eval", "captioning", "--data", tmp_path / "no-*.tar"), "no-*.tar"),
        (("eval", "captioning", "--data", shards, "--output", tmp_path / "no" / "x"), "no/x"),
        (("eval", "captioning", "--data", shards, "--language", "fr"), "fr"),
        (("eval", "captioning", "--data", shards, "--batch_size", 0), "--batch_size must be at least 1, not 0"),
        (("eval", "retrieval", "--data", shards, "--limit", -1), "--limit must be at least 0, not -1"),
        (("eval", "retrieval", "--data", shards, "--max_pixels", 0), "--max_pixels must be at least 1, not 0"),
        (("eval", "retrieval", "--data", shards, "--output", tmp_path / "x"), "--output doesn't go with retrieval"),
        (("eval", "retrieval", "--data", shards, "--java"), "--java doesn't go with retrieval"),
    ]
    for arguments, culprit in cases:
        status, _, err = run(*arguments, "--model", model)
        assert status == 2, (arguments, err)
        assert err.count("\n") == 1, err
        assert culprit in err
    assert not (tmp_path / "x").exists()


def test_limit(run_json, model, shards):
    assert run_json("eval", "captioning", "--data", shards, "--model", model, "--limit", 2)[1]["images"] == 2
