import json

import pytest

from mm.data.manifest import Manifest


def test_captioning(run_json, model, shards, tmp_path):
    output = tmp_path / "captions.jsonl"
    status, figures = run_json("eval", "captioning", "--data", shards, "--model", model, "--output", output)
    assert status == 0
    assert figures["images"] == 4
    assert figures["split"] == Manifest.read(shards).digest[:16]
    assert {"BLEU-4", "ROUGE-L", "CIDEr", "beams"} <= figures.keys()
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
    from mm.data.shards import IndexedShards
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
    assert "no image with a caption" in err


def test_wrong_use(run, model, shards, tmp_path):
    cases = [
        (("eval", "segmentation", "--data", shards), "segmentation"),
        (("eval", "captioning", "--data", tmp_path / "nowhere"), "nowhere"),
        (("eval", "captioning", "--data", tmp_path / "no-*.tar"), "no-*.tar"),
        (("eval", "captioning", "--data", shards, "--output", tmp_path / "no" / "x"), "no/x"),
        (("eval", "captioning", "--data", shards, "--language", "fr"), "fr"),
    ]
    for arguments, culprit in cases:
        status, _, err = run(*arguments, "--model", model)
        assert status == 2, (arguments, err)
        assert err.count("\n") == 1, err
        assert culprit in err


def test_limit(run_json, model, shards):
    assert run_json("eval", "captioning", "--data", shards, "--model", model, "--limit", 2)[1]["images"] == 2
