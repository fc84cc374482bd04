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
    cases = [
        (("shards", "mkae"), "mkae"),
        (("shards", "make", tmp_path / "nowhere", tmp_path / "out"), "nowhere"),
        (("shards", "make", photos, tmp_path / "file" / "out"), "file"),
        (("shards", "check", tmp_path / "nowhere"), "nowhere"),
    ]
    for arguments, culprit in cases:
        status, _, err = run(*arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1, err
        assert culprit in err
