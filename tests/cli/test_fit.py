import logging
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "vision_language" / "flickr8k.yaml"


def test_print_config_has_every_default(run):
    status, out, _ = run("fit", "--config", CONFIG, "--print_config")
    assert status == 0
    for key in ("architecture:", "losses:", "optimizer:", "captions:", "default_root_dir:", "vision_frozen_epochs: 0"):
        assert key in out


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", str(CONFIG), "--data.batchsize", "3"], "batchsize"),
        (["--config", str(CONFIG), "--model.losses.contrst", "3"], "contrst"),
        (["--config", str(CONFIG), "--data.batch_size", "many"], "batch_size"),
        (["--config", str(CONFIG), "--data.batch_size", "0"], "batch_size"),
        (["--config", str(CONFIG), "--model.optimizer.learning_rate", "-1"], "learning_rate"),
        (["--config", str(CONFIG), "--model.architecture.width", "250"], "width"),
        (["--config", str(CONFIG), "--model.architecture.vision", "no_such_net"], "no_such_net"),
        (["--config", str(CONFIG), "--model.vision_weights", "no/such/file.pth"], "no/such/file.pth"),
        (["--config", str(CONFIG), "--model.tokenizer", "no/tokenizer.json"], "no/tokenizer.json"),
        (["--config", str(CONFIG), "--model.init", "mm-huge", "--model.tokenizer", "null"], "mm-huge"),
        (["--config", str(CONFIG), "--model.init", "mm-tiny"], "model.tokenizer is for a model without model.init"),
        (["--config", str(CONFIG), "--data.captions", "{fr: 1}"], "fr"),
        (["--config", str(CONFIG), "--trainer.default_root_dir", "{file}/runs"], "default_root_dir"),
        (["--config", str(CONFIG), "--data.train", "no/such/shards"], "no/such/shards"),
        (["--config", str(CONFIG), "--data.train", "no/such-*.tar"], "no/such-*.tar"),
        (["--config", str(CONFIG), "--ckpt_path", "no/such.ckpt"], "no/such.ckpt"),
        (["--config", str(CONFIG), "--ckpt_path", "{file}"], "not a training checkpoint"),
        (
            ["--config", str(CONFIG), "--ckpt_path", "best", "--trainer.default_root_dir", "r"],
            "r/checkpoints/best.ckpt",
        ),
    ],
)
def test_wrong_use_names_the_culprit(run, tmp_path, monkeypatch, arguments, culprit):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps an older standard error
    (tmp_path / "file").write_text("")
    small = [] if "--model.vision_weights" in arguments else ["--model.vision_weights", "null"]
    status, _, err = run("fit", *(a.replace("{file}", str(tmp_path / "file")) for a in arguments), *small)
    last = err.splitlines()[-1]
    assert status == 2, err
    assert "Traceback" not in err
    assert last.startswith("mm fit: ")
    assert culprit in last


def test_a_config_that_is_not_yaml(run, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [unclosed")
    status, _, err = run("fit", "--config", path)
    assert status == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_of_an_earlier_run_are_not_overwritten(run, tmp_path, name):
    path = tmp_path / f"run/checkpoints/{name}.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of an earlier run")
    status, _, err = run("fit", "--config", CONFIG, "--trainer.default_root_dir", tmp_path / "run")
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"mm fit: {path} is of an earlier run, and would be overwritten: go on from it with --ckpt")
    assert "--trainer.default_root_dir" in last
    assert path.read_bytes() == b"of an earlier run"


@pytest.mark.parametrize(("option", "value"), [("action", "wait"), ("spike", "0.5")])
def test_a_guard_that_cannot_be(run, tmp_path, option, value):
    arguments = [f"--loss_guard.{option}", value, "--trainer.default_root_dir", tmp_path / "run"]
    status, _, err = run("fit", "--config", CONFIG, "--model.vision_weights", "null", *arguments)
    assert status == 2
    assert f"{option}" in err.splitlines()[-1] and value in err.splitlines()[-1]
