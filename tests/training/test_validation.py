from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from running import fit, made_data, trainer, training

from mm.checkpoints import load_checkpoint
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards
from mm.data.tokenizer import clean_caption
from mm.data.transforms import to_pixels
from mm.errors import DataError, OptionError
from mm.generation import GenerationConfig
from mm.metrics.captioning import score_captions
from mm.metrics.retrieval import retrieval_metrics
from mm.pipeline import VisionLanguagePipeline
from mm.training.language_validation import TextValidation
from mm.training.optimizer import OptimizerSettings
from mm.training.validation import Validation, ValidationRun, draw_captions

WORDS = tiny.tokenizer()
NAMES = list(tiny.COLOURS)[:6]


def pixels() -> torch.Tensor:
    from mm.data.transforms import ImageTransform, to_pixels

    return to_pixels(torch.stack([ImageTransform(32)(tiny.picture(name)) for name in NAMES]))


def collected(keys: list[str], language: str = "en", caption_images: int = 4, **changes: Any) -> ValidationRun:
    run = ValidationRun(tiny.model(WORDS), WORDS, language, GenerationConfig(max_tokens=8), caption_images, pictures=3)
    known: list[dict[str, list[str]]] = [tiny.captions(name) for name in NAMES]
    for number in changes.get("without", ()):
        known[number] = {}
    with torch.inference_mode():
        for start in (0, 2):
            stop = 2 if start == 0 else 6
            run.add(pixels()[start:stop], keys[start:stop], known[start:stop])
    return run


def test_figures_are_those_of_the_pipeline(tmp_path: Path) -> None:
    from mm.checkpoints import load_directory, save_directory

    run = collected(NAMES)
    save_directory(tmp_path, run.model, WORDS, tiny.ARCHITECTURE, "")
    pipeline = VisionLanguagePipeline("tiny", load_directory(tmp_path), torch.device("cpu"))
    pictures = [tiny.picture(name) for name in NAMES]
    texts = [clean_caption(text) for name in NAMES for text in tiny.captions(name)["en"]]
    owner = np.repeat(np.arange(6), 2)
    expected = retrieval_metrics(pipeline.embed_images(pictures), pipeline.embed_text(texts), owner)
    found = pipeline.caption(pictures[:4], config=GenerationConfig(max_tokens=8))
    expected |= score_captions(
        {name: tiny.captions(name)["en"] for name in NAMES[:4]},
        {name: str(caption) for name, caption in zip(NAMES[:4], found, strict=True)},
    )
    assert run.metrics() == pytest.approx(expected, abs=1e-6)


def test_images_without_captions_are_left_out() -> None:
    run, without = collected(NAMES), collected(NAMES, without=(0, 3))
    assert set(without.metrics()) == set(run.metrics())
    assert collected(NAMES, without=range(6)).metrics() == {}


def test_shards_may_use_the_same_keys() -> None:
    assert collected(["same"] * 6).metrics() == collected(NAMES).metrics()


def test_as_many_images_are_captioned_as_asked_for() -> None:
    for count in (0, 1, 3, 6, 9):
        run = collected(NAMES, caption_images=count)
        assert len(run.captions) == min(count, 6) and len(run.images) == 2
        assert len(run.photos) == min(count, 3)
        assert ("CIDEr" in run.metrics()) == (count > 0)


def test_the_picture_shows_photos_and_captions() -> None:
    image = collected(NAMES).picture()
    assert image is not None and image.size == (4 * 224, 224 + 54)
    assert image.getpixel((100, 100)) == tiny.COLOURS[NAMES[0]][0]
    assert collected(NAMES, caption_images=0).picture() is None
    drawn = draw_captions([(torch.zeros(3, 8, 8), "一面红色的墙 " * 30)] * 5)
    assert drawn.size == (4 * 224, 2 * (224 + 54))


def test_a_validation_in_training_logs_figures_and_a_picture(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    module = training(tmp_path)
    logger = CSVLogger(tmp_path / "logs", name="csv")
    fit(trainer(tmp_path, max_epochs=1, logger=logger), module, made_data(tmp_path))
    rows = (Path(logger.log_dir) / "metrics.csv").read_text()
    for name in ("val/BLEU-4", "val/CIDEr", "val/text_to_image_R@10", "val/image_to_text_R@1"):
        assert name in rows
    assert (Path(logger.log_dir) / "pictures/val-000003.png").is_file()


def test_figures_are_all_of_the_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes them out of the model before the end of validation is announced to it."""
    logged: list[dict[str, float]] = []
    metrics = ValidationRun.metrics

    def note(run: ValidationRun) -> dict[str, float]:
        logged.append(metrics(run))
        return logged[-1]

    monkeypatch.setattr(ValidationRun, "metrics", note)
    slow = OptimizerSettings(learning_rate=0.1, warmup=0.0)
    fit(trainer(tmp_path, max_epochs=1), training(tmp_path, optimizer=slow), made_data(tmp_path))
    model = load_checkpoint(tmp_path / "checkpoints/best.ckpt").model
    run = ValidationRun(model, WORDS, "en", GenerationConfig(), 4)
    data = made_data(tmp_path)
    data.attach(WORDS, 32)
    data.setup("validate")
    with torch.inference_mode():
        for batch in data.val_dataloader():
            run.add(to_pixels(batch["pixels"]), batch["keys"], batch["captions"])
    assert logged[0] == pytest.approx(metrics(run))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"validation": Validation(language="fr")}, {}, "validation.language 'fr' is unknown; the tokenizer knows en"),
        ({}, {"max_tokens": 32}, "data.max_tokens 32 must be at most 31"),
        ({"features": "kept"}, {}, "frozen_stages above 0"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    tmp_path: Path, model: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        fit(trainer(tmp_path), training(tmp_path, **model), made_data(tmp_path, **data))


def test_photos_without_captions_in_the_language_are_left_out_and_listed(tmp_path: Path) -> None:
    image = tiny.encode(tiny.picture("red"))
    some = [Sample(name, "made", image, {code: ["一面墙"]}) for name, code in (("a", "en"), ("b", "zh"), ("c", "en"))]
    write_shards(some, tmp_path / "mixed")
    data = made_data(tmp_path, val=str(tmp_path / "mixed"))
    fit(trainer(tmp_path, max_epochs=1), training(tmp_path, validation=Validation(language="zh")), data)
    assert data.ledgers["val"].tally.by_reason() == {"missing caption": 2} and data.ledgers["val"].tally.used == 1
    write_shards(some[:1], tmp_path / "english")
    with pytest.raises(DataError, match=r"data.val: none of the 1 samples .* can be used: missing caption"):
        fit(
            trainer(tmp_path, max_epochs=1),
            training(tmp_path, validation=Validation(language="zh")),
            made_data(tmp_path, val=str(tmp_path / "english")),
        )


def test_something_is_captioned() -> None:
    with pytest.raises(OptionError, match=r"validation.caption_images must be at least 1, not 0"):
        Validation(caption_images=0)


@pytest.mark.parametrize("rank_by", ["match", "similarity"])
def test_captions_are_not_ranked_by_images(rank_by: Any) -> None:
    config = GenerationConfig(beams=2, best_of=2, rank_by=rank_by)
    for kind in (Validation, TextValidation):
        with pytest.raises(OptionError, match=f"validation.generation.rank_by {rank_by} doesn't act in validation"):
            kind(generation=config)
        kind(generation=replace(config, rank_by="consensus"))


def test_captions_are_sampled_and_stopped_as_told_whatever_the_batch() -> None:
    def captions(config: GenerationConfig, size: int) -> list[str]:
        run = ValidationRun(tiny.model(WORDS), WORDS, "en", config, 6)
        with torch.inference_mode():
            for start in range(0, 6, size):
                run.add(pixels()[start : start + size], NAMES[start : start + size], [{}] * size)
        return list(run.captions.values())

    config = GenerationConfig(max_tokens=8, strategy="sample")
    whole = captions(config, 6)
    assert whole == captions(config, 2) != captions(replace(config, seed=1), 6)
    stop = next(letter for text in whole for letter in text if letter.islower() and letter.isascii())
    assert captions(replace(config, stop=stop), 3) == [text.partition(stop)[0].strip() for text in whole]


def test_training_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"set trainer.max_epochs or trainer.max_steps"):
        fit(trainer(tmp_path, max_epochs=-1), training(tmp_path), made_data(tmp_path))
