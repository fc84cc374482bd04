"""Fine-tuning of public checkpoints by one command: the loss falls, and the result is a model like any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import mm
from mm.cli import main
from mm.models import Parts

ROOT = Path(__file__).parents[2]
WORDS = sorted({word for name in tiny.COLOURS for text in tiny.captions(name)["en"] for word in text.split()})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WIDTHS = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
VISION = WIDTHS | {"image_size": 32, "patch_size": 16}


def saved(folder: Path, model: Any, processor: Any) -> Path:
    """Writes a checkpoint in the hub's layout, with a tokenizer that knows the words of all captions."""
    backend = Backend(models.WordPiece({name: i for i, name in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    ).save_pretrained(folder)
    return folder


def blip(folder: Path, kind: str) -> Path:
    """A small random BLIP."""
    torch.manual_seed(0)
    text = WIDTHS | {
        "vocab_size": len(SPECIAL) + len(WORDS) + 1,
        "bos_token_id": len(SPECIAL) + len(WORDS),
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 40,
        "encoder_hidden_size": 32,
    }
    config = transformers.BlipConfig(
        text_config=text, vision_config=VISION, projection_dim=16, image_text_hidden_size=16
    )
    processor = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    return saved(folder, getattr(transformers, kind)(config), processor)


def clip(folder: Path) -> Path:
    """A small random CLIP."""
    torch.manual_seed(0)
    text = WIDTHS | {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "max_position_embeddings": 40,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "projection_dim": 16,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION | {"projection_dim": 16}, projection_dim=16)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return saved(folder, transformers.CLIPModel(config), processor)


def siglip(folder: Path) -> Path:
    """A small random SigLIP."""
    torch.manual_seed(0)
    text = WIDTHS | {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 24}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return saved(folder, transformers.SiglipModel(config), processor)


def git(folder: Path) -> Path:
    """A small random GIT."""
    torch.manual_seed(0)
    text = WIDTHS | {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "max_position_embeddings": 40,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return saved(folder, transformers.GitForCausalLM(transformers.GitConfig(vision_config=VISION, **text)), processor)


def arguments(folder: Path, config: str, *more: str) -> list[str]:
    """The command of a config, on a few made pictures."""
    for split, count in (("train", 16), ("val", 8)):
        if not (folder / split).exists():
            tiny.shards(folder / split, count)
    small: dict[str, Any] = {
        "config": ROOT / "configs/captioning" / config,
        "data.train": folder / "train",
        "data.val": folder / "val",
        "data.batch_size": 8,
        "data.max_tokens": 20,
        "data.workers": 0,
        "model.optimizer.learning_rate": 4e-3,
        "model.optimizer.vision_scale": 1.0,
        "trainer.max_epochs": 6,
        "trainer.check_val_every_n_epoch": 6,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": folder / "run",
    }
    return [f"--{name}={value}" for name, value in small.items()] + list(more)


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    with (folder / "run/csv/version_0/metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def same_figures(folder: Path, config: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Exports the last weights, and measures them in training and as a model to start from: the same figures."""
    last = folder / "run/checkpoints/last.ckpt"
    assert main(["export", str(last), str(exported), "--precision", "float32"]) == 0
    found = []
    for start in (last, exported):
        capsys.readouterr()
        parts = ["--model.parts=null"] if config == "blip.yaml" else []
        assert main(["validate", *arguments(folder, config, f"--model.init={start}", "--json", *parts)]) == 0
        found.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))
    assert found[0] == found[1]
    return found[0]


def test_a_captioner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = blip(tmp_path / "blip", "BlipForConditionalGeneration")
    assert main(["fit", *arguments(tmp_path, "finetune.yaml", f"--model.init={start}")]) == 0
    fell = losses(tmp_path)
    assert len(fell) == 12 and fell[-1] < fell[0] - 0.7
    figures = same_figures(tmp_path, "finetune.yaml", tmp_path / "mine", capsys)
    assert "val/CIDEr" in figures and "val/text_to_image_R@10" not in figures
    photo = tmp_path / "red.png"
    tiny.picture("red").save(photo)
    before, after = (mm.load(folder) for folder in (start, tmp_path / "mine"))
    assert after.preprocessing == before.preprocessing and after.capabilities == ("caption",)
    assert main(["caption", str(photo), "--model", str(tmp_path / "mine")]) == 0


def test_a_dual_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = clip(tmp_path / "clip")
    assert main(["fit", *arguments(tmp_path, "finetune.yaml", f"--model.init={start}")]) == 0
    assert sum(losses(tmp_path)[-3:]) < sum(losses(tmp_path)[:3])
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    figures = same_figures(tmp_path, "finetune.yaml", tmp_path / "mine", capsys)
    assert "val/text_to_image_R@10" in figures and "val/CIDEr" not in figures
    photo = tmp_path / "photos/red.png"
    photo.parent.mkdir()
    tiny.picture("red").save(photo)
    gallery = str(tmp_path / "my.gallery")
    assert main(["index", str(photo.parent), "--gallery", gallery, "--model", str(tmp_path / "mine")]) == 0
    assert main(["search", "red", "--gallery", gallery]) == 0


def test_a_captioner_with_the_image_in_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = git(tmp_path / "git")
    assert main(["fit", *arguments(tmp_path, "finetune.yaml", f"--model.init={start}")]) == 0
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.7
    assert "val/CIDEr" in same_figures(tmp_path, "finetune.yaml", tmp_path / "mine", capsys)


@pytest.mark.parametrize("family", ["SigLIP", "BLIP"])
def test_retrieval(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "start"
    start = siglip(folder) if family == "SigLIP" else blip(folder, "BlipForImageTextRetrieval")
    assert main(["fit", *arguments(tmp_path, "finetune.yaml", f"--model.init={start}")]) == 0
    assert sum(losses(tmp_path)[-3:]) < sum(losses(tmp_path)[:3])
    figures = same_figures(tmp_path, "finetune.yaml", tmp_path / "mine", capsys)
    assert "val/text_to_image_R@10" in figures and "val/CIDEr" not in figures


def test_the_joint_objective_of_two_blips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = blip(tmp_path / "itm", "BlipForImageTextRetrieval")
    writes = blip(tmp_path / "caption", "BlipForConditionalGeneration")
    parts = {"vision": both, "text_encoder": both, "text_decoder": writes}
    given = [f"--model.parts.{role}={json.dumps({'checkpoint': str(path)})}" for role, path in parts.items()]
    assert main(["fit", *arguments(tmp_path, "blip.yaml", *given)]) == 0
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.7
    figures = same_figures(tmp_path, "blip.yaml", tmp_path / "mine", capsys)
    assert {"val/CIDEr", "val/text_to_image_R@10"} <= figures.keys()
    assert mm.load(tmp_path / "mine").capabilities == ("caption", "embed", "match")


def test_parts_of_a_shared_space_come_along(tmp_path: Path) -> None:
    from mm.checkpoints.resolve import load_model
    from mm.checkpoints.starting import start_from_parts

    both = blip(tmp_path / "itm", "BlipForImageTextRetrieval")
    writes = blip(tmp_path / "caption", "BlipForConditionalGeneration")
    described = Parts(
        vision={"checkpoint": str(both)},
        text_encoder={"checkpoint": str(both)},
        text_decoder={"checkpoint": str(writes)},
    )
    joint, single = start_from_parts(described).model.eval(), load_model(both).model
    pixels, tokens = torch.rand(2, 3, 32, 32), torch.tensor([[5, 6, 7], [8, 9, 10]])
    padding = torch.ones(2, 3, dtype=torch.bool)
    with torch.inference_mode():
        images = single.image_tokens(pixels)
        torch.testing.assert_close(joint.image_embedding(joint.image_tokens(pixels)), single.image_embedding(images))
        torch.testing.assert_close(joint.text_embedding(tokens, padding), single.text_embedding(tokens, padding))
        contexts = [model.encoder.keys_values(images) for model in (joint, single)]
        one, other = (
            model.match_logits(context, tokens, padding)
            for model, context in zip((joint, single), contexts, strict=True)
        )
        torch.testing.assert_close(one, other)
