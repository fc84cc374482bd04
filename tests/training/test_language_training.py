from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from lightning.pytorch.loggers import CSVLogger
from running import trainer
from talking import PARTS, RecordedLanguage, fit_texts, talking, text_data, texts, word_tokenizer

from mm.checkpoints import load_checkpoint, save_directory
from mm.checkpoints.resolve import load_model
from mm.checkpoints.starting import start_from_parts
from mm.cli import main
from mm.data.order import Place
from mm.data.texts import NOTHING
from mm.errors import MMError, OptionError
from mm.generation import GenerationConfig, generate
from mm.models import Conditioning, LanguageModel, Parts, TextParts
from mm.pipeline.language import LanguagePipeline
from mm.training.callbacks import AveragedWeights, BestCheckpoint, LastCheckpoint
from mm.training.language import LanguageTraining
from mm.training.language_validation import LanguageRun, TextValidation, predict
from mm.training.optimizer import OptimizerSettings

OBJECTIVES = ["fill", "continue", "translate"]
QUIET: dict[str, Any] = {"callbacks": [], "enable_checkpointing": False}
FOUR = [
    {"en": ["wall of wall of wall"], "zh": ["红色的墙"]},
    {"en": ["all is all is all"], "zh": ["一面蓝色"]},
    {"en": ["black black black"], "zh": ["黄色"]},
    {"en": ["green green green"], "zh": ["绿色的墙"]},
]


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Lightning stops listening to Ctrl-C once it was pressed."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def a_batch(module: LanguageTraining, folder: Path, **options: Any) -> dict[str, Any]:
    data = text_data(folder, **options)
    module.attach(data)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """What any language model predicts for (B, T) texts; where it translates, of themselves."""
    part = model.encoder if model.decoder is None else model.decoder
    context = None
    if model.encoder is not None and model.decoder is not None:
        context = model.about(tokens, torch.ones_like(tokens, dtype=torch.bool)).context
    with torch.inference_mode():
        return part.logits(part(tokens, context=context))


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("learns", OBJECTIVES)
def test_two_steps_of_each_objective(tmp_path: Path, learns: str) -> None:
    module = talking(tmp_path, learns)
    before = {name: value.clone() for name, value in module.model.named_parameters()}
    fit_texts(trainer(tmp_path, max_steps=2, limit_val_batches=0, **QUIET), module, text_data(tmp_path))
    assert module.learns == learns and [step for step, _, _ in module.steps] == [0, 1]
    assert all(math.isfinite(loss) and loss > 3 for _, _, loss in module.steps)
    still = [name for name, value in module.model.named_parameters() if torch.equal(value, before[name])]
    assert not still


@pytest.mark.parametrize("learns", OBJECTIVES)
def test_loss_of_a_batch_is_the_mean_of_its_parts(tmp_path: Path, learns: str) -> None:
    module = talking(tmp_path, learns, smoothing=0.1).eval()
    batch = a_batch(module, tmp_path, captions=2)
    found = module.batch_loss(batch)
    losses, counts = [], []
    for row in range(len(batch["tokens"])):
        part = {name: value[row : row + 1] for name, value in batch.items() if name != "index"}
        for padding, names in (("padding", ("tokens", "targets")), ("source_padding", ("source",))):
            if padding in part:
                length = int(part[padding].sum())
                part |= {name: part[name][:, :length] for name in (padding, *names)}
        losses.append(module.batch_loss(part))
        counts.append(int((part["targets"] != NOTHING).sum()))
    assert len(set(counts)) > 1 or learns == "fill"
    weights = torch.tensor(counts) / sum(counts)
    torch.testing.assert_close(found, (torch.stack(losses) * weights).sum())


def test_a_batch_without_anything_to_predict_costs_nothing(tmp_path: Path) -> None:
    module = talking(tmp_path, "fill")
    batch = a_batch(module, tmp_path)
    batch["targets"] = torch.full_like(batch["targets"], NOTHING)
    loss = module.batch_loss(batch)
    loss.backward()
    assert float(loss.detach()) == 0.0


def overfitted(folder: Path, learns: str, epochs: int = 200) -> RecordedLanguage:
    """A model that has seen four samples often enough to know them."""
    small = {"preset": "mm", "width": 48, "heads": 2, "blocks": 1, "max_tokens": 64, "dropout": 0.0}
    parts = PARTS[learns]
    parts = TextParts(small if parts.encoder else None, small if parts.decoder else None, parts.share_embedding)
    settings = OptimizerSettings(learning_rate=5e-3, weight_decay=0.0)
    module = talking(folder, learns, architecture=parts, optimizer=settings)
    data = text_data(folder, train=texts(folder / "four", FOUR), val=None)
    fit_texts(trainer(folder, max_epochs=epochs, limit_val_batches=0, **QUIET), module, data)
    module.model.eval()
    return module


@pytest.mark.slow
def test_four_samples_are_filled_in_exactly(tmp_path: Path) -> None:
    module = overfitted(tmp_path, "fill", epochs=500)
    data = text_data(tmp_path, train=str(tmp_path / "four"), val=str(tmp_path / "four"))
    module.attach(data)
    data.setup("fit")
    dataset = data._train
    with torch.inference_mode():
        for epoch in range(1000, 1005):  # masks that training didn't see
            batch = dataset.collate(dataset.__getitems__([Place(epoch, index) for index in range(4)]))
            predicted, targets = predict(module.model, batch)
            assert predicted.argmax(-1).tolist() == targets.tolist()
            assert float(module.batch_loss(batch)) < 0.05


@pytest.mark.slow
def test_four_samples_are_continued_exactly(tmp_path: Path) -> None:
    module = overfitted(tmp_path, "continue")
    words = module.tokenizer
    data = text_data(tmp_path, train=str(tmp_path / "four"), val=None)
    module.attach(data)
    data.setup("fit")
    batch = data._train.collate(data._train.__getitems__([Place(0, index) for index in range(4)]))
    predicted = (batch["targets"] != NOTHING).sum()
    with torch.inference_mode():
        loss = float(module.batch_loss(batch))
    # Which of the four texts it is can't be known before its first token.
    assert loss == pytest.approx(4 * math.log(4) / float(predicted), abs=0.02)
    prompts = [[words.languages["en"], words.encode(known["en"])[0][0]] for known in FOUR]
    decoder = module.model.decoder
    assert decoder is not None
    found = generate(decoder, Conditioning(4), prompts, GenerationConfig(), end=words.end, fill=words.padding)
    assert words.decode([text.tokens for text in found]) == [known["en"][0] for known in FOUR]
    assert all(text.ended for text in found)


@pytest.mark.slow
def test_four_samples_are_translated_exactly(tmp_path: Path) -> None:
    module = overfitted(tmp_path, "translate")
    assert module.steps[-1][2] < 0.02
    run = LanguageRun(module.model, module.tokenizer, "zh", TextValidation())
    data = text_data(tmp_path, train=None, val=str(tmp_path / "four"), val_batch_size=3)
    module.attach(data)
    data.setup("validate")
    with torch.inference_mode():
        for batch in data.val_dataloader():
            run.add(batch)
    assert run.written == [known["zh"][0] for known in FOUR]
    figures = run.metrics()
    assert figures["loss"] < 0.02 and figures["accuracy"] == 1.0
    assert figures["BLEU-1"] == pytest.approx(1.0) and figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert run.report().splitlines()[:3] == [
        "caption: wall of wall of wall",
        "translation: 红色的墙",
        "references: 红色的墙",
    ]


def resumable(folder: Path, learns: str) -> RecordedLanguage:
    return talking(folder, learns, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("learns", OBJECTIVES)
def test_resumed_training_equals_uninterrupted(tmp_path: Path, learns: str) -> None:
    def callbacks() -> list[Any]:
        return [AveragedWeights(0.5), LastCheckpoint(), BestCheckpoint()]

    expected = resumable(tmp_path, learns)
    fit_texts(trainer(tmp_path / "whole", max_epochs=3, callbacks=callbacks()), expected, text_data(tmp_path))
    assert len(expected.steps) == 9 and len({loss for _, _, loss in expected.steps}) == 9
    first, second = resumable(tmp_path, learns), resumable(tmp_path, learns)

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    first.during = stop  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        fit_texts(trainer(tmp_path / "run", max_epochs=3, callbacks=callbacks()), first, text_data(tmp_path))
    again = trainer(tmp_path / "run", max_epochs=3, callbacks=callbacks())
    fit_texts(again, second, text_data(tmp_path, workers=1), last=True)
    assert first.steps + second.steps == expected.steps
    same_weights(expected, second)
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize("learns", OBJECTIVES)
def test_validation_logs_figures_and_examples(tmp_path: Path, learns: str) -> None:
    options: dict[str, Any] = {"validation": TextValidation(5, GenerationConfig(max_tokens=12))}
    module = talking(tmp_path, learns, **options)
    logger = CSVLogger(tmp_path / "logs", name="csv")
    runner = trainer(tmp_path / "run", max_epochs=1, logger=logger)
    fit_texts(runner, module, text_data(tmp_path))
    figures = runner.callback_metrics
    assert float(figures["val/perplexity"]) == pytest.approx(math.exp(float(figures["val/loss"])), rel=1e-4)
    assert 0 <= float(figures["val/accuracy"]) <= 1
    assert ("val/CIDEr" in figures) == ("val/BLEU-4" in figures) == (learns == "translate")
    kept = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert module.best_figure == ("val/CIDEr" if learns == "translate" else "val/accuracy") and kept["global_step"] == 3
    written = (Path(logger.log_dir) / "examples/val-000003.txt").read_text(encoding="utf-8").split("\n\n")
    fields = {
        "fill": ["caption", "hidden", "filled"],
        "continue": ["caption", "beginning", "continued"],
        "translate": ["caption", "translation", "references"],
    }
    for block in written:
        assert [line.partition(":")[0] for line in block.splitlines()] == fields[learns]
    assert len(written) == (5 if learns == "translate" else 6)


@pytest.mark.parametrize("learns", OBJECTIVES)
def test_figures_do_not_depend_on_the_batches(tmp_path: Path, learns: str) -> None:
    module = talking(tmp_path, learns).eval()
    found = []
    for size in (1, 4, 6):
        data = text_data(tmp_path, val_batch_size=size, captions=2)
        module.attach(data)
        data.setup("validate")
        run = LanguageRun(module.model, module.tokenizer, module.target, TextValidation(7))
        with torch.inference_mode():
            for batch in data.val_dataloader():
                run.add(batch)
        found.append((run.metrics(), run.report()))
    for metrics, report in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-4) and report == found[0][1]


@pytest.mark.parametrize("learns", OBJECTIVES)
def test_checkpoints_are_exported_and_load_with_the_same_logits(
    tmp_path: Path, learns: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = talking(tmp_path, learns)
    runner = trainer(tmp_path, max_epochs=1, callbacks=[LastCheckpoint()], limit_val_batches=0)
    fit_texts(runner, module, text_data(tmp_path))
    module.eval()
    path = tmp_path / "checkpoints/last.ckpt"
    assert main(["export", str(path), str(tmp_path / "model"), "--precision", "float32"]) == 0
    assert module.model.capabilities[0] in capsys.readouterr().out
    able = {"fill": "can fill masked words in", "continue": "says how likely texts are", "translate": "into en and zh"}
    assert able[learns] in (tmp_path / "model/README.md").read_text(encoding="utf-8")
    (tokens,) = [torch.tensor(module.tokenizer.encode(["a red wall"]))]
    expected = logits(module.model, tokens)
    for loaded in (load_checkpoint(path), load_model(path), load_model(tmp_path / "model")):
        assert isinstance(loaded.model, LanguageModel) and loaded.architecture == module.architecture
        assert loaded.tokenizer.languages == {"en": 4, "zh": 5}
        torch.testing.assert_close(logits(loaded.model, tokens), expected)


def test_an_encoder_becomes_a_text_tower(tmp_path: Path) -> None:
    module = talking(tmp_path, "fill")
    save_directory(tmp_path / "model", module.model, module.tokenizer, module.architecture, "")
    vision = {"preset": "timm", "name": "test_vit", "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    parts = Parts(vision=vision, text_encoder={"checkpoint": str(tmp_path / "model")}, embedding_width=16)
    model = start_from_parts(parts).model
    assert model.capabilities == ("embed", "match")
    assert module.model.encoder is not None
    assert torch.equal(model.text_encoder.embedding.weight, module.model.encoder.embedding.weight)


def bert_folder(folder: Path) -> str:
    """A small random BERT of the reference library."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=19,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=24,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    word_tokenizer(folder)
    return str(folder)


def t5_folder(folder: Path) -> str:
    """A small random T5 of the reference library, whose tokenizer knows English and Chinese."""
    torch.manual_seed(0)
    words = tiny.tokenizer()
    config = transformers.T5Config(
        vocab_size=len(words),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=words.padding,
        eos_token_id=words.end,
        decoder_start_token_id=words.padding,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(words.to_json(), encoding="utf-8")
    return str(folder)


def test_masked_training_starts_from_bert(tmp_path: Path) -> None:
    module = RecordedLanguage(init=bert_folder(tmp_path / "bert"))
    begun = load_model(tmp_path / "bert")
    same_weights(begun.model, module.model)
    batch = a_batch(module, tmp_path, max_tokens=24)
    assert batch["tokens"][:, 0].eq(2).all()
    assert all(batch["tokens"][row][real][-1] == 3 for row, real in enumerate(batch["padding"]))
    assert (batch["tokens"] == 4).any()
    runner = trainer(tmp_path, max_steps=2, callbacks=[LastCheckpoint()], limit_val_batches=0)
    fit_texts(runner, module, text_data(tmp_path, max_tokens=24))
    module.eval()
    loaded = load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert loaded.family == "BERT" and loaded.tokenizer.mask == 4
    tokens = torch.arange(2, 12)[None]
    torch.testing.assert_close(logits(loaded.model, tokens), logits(module.model, tokens))
    assert not torch.allclose(logits(begun.model, tokens), logits(module.model, tokens))


@pytest.mark.slow
def test_translation_starts_from_t5_into_a_language_that_it_did_not_write(tmp_path: Path) -> None:
    settings = OptimizerSettings(learning_rate=1e-2, weight_decay=0.0)
    options: dict[str, Any] = {"init": t5_folder(tmp_path / "t5"), "target": "zh", "optimizer": settings}
    module = RecordedLanguage(**options)
    assert module.tokenizer.languages == {"zh": module.tokenizer.padding}
    assert module.model.special.languages == {"zh": module.tokenizer.padding}
    data = text_data(tmp_path, train=texts(tmp_path / "four", FOUR), val=str(tmp_path / "four"), val_batch_size=4)
    fit_texts(trainer(tmp_path, max_epochs=120, check_val_every_n_epoch=120), module, data)
    assert main(["export", str(tmp_path / "checkpoints/best.ckpt"), str(tmp_path / "model")]) == 0
    loaded = load_model(tmp_path / "model")
    assert loaded.tokenizer.languages == {"zh": module.tokenizer.padding}
    translator = LanguagePipeline("model", loaded, torch.device("cpu"))
    found = translator.translate([known["en"][0] for known in FOUR])
    assert [str(one) for one in found] == [known["zh"][0] for known in FOUR]
    assert all(one.complete and one.language == "zh" for one in found)


def test_a_decoder_of_one_language_learns_others(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=32, n_head=4, n_layer=1, n_positions=64, bos_token_id=4, eos_token_id=words.end
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2/tokenizer.json").write_text(words.to_json(), encoding="utf-8")
    module = RecordedLanguage(init=str(tmp_path / "gpt2"), source=["en", "zh"])
    assert module.learns == "continue" and module.tokenizer.languages == {"en": 4, "zh": 4}
    batch = a_batch(module, tmp_path)
    assert batch["tokens"][:, 0].eq(4).all() and len(batch["texts"]) == 8


@pytest.mark.parametrize(
    ("learns", "options", "message"),
    [
        ("fill", {"seed": -1}, "model.seed must be at least 0"),
        ("fill", {"smoothing": 1.0}, "model.smoothing must be at least 0 and below 1, not 1.0"),
        ("fill", {"source": []}, "model.source is empty"),
        ("fill", {"tokenizer": "mm-tiny"}, "no mask token.*'mm tokenizer' makes one"),
        ("fill", {"target": "zh"}, "model.target 'zh' needs a model that translates"),
        ("fill", {"architecture": None}, "nothing to train: set model.init to a model, or model.architecture"),
        ("fill", {"init": "mm-tiny", "tokenizer": None}, "model.init mm-tiny sees images"),
        ("fill", {"init": "mm-tiny", "tokenizer": "mm-tiny"}, "model.tokenizer is for a model without model.init"),
        ("fill", {"tokenizer": "nowhere.json"}, "nowhere.json: can't be read"),
        ("continue", {"source": "fr"}, "model.source: language 'fr' is unknown; the tokenizer knows en, zh"),
        ("translate", {"target": "fr"}, "model.target: language 'fr' is unknown; the tokenizer knows en, zh"),
        ("translate", {"target": None}, "model.target isn't set: the language to write; the tokenizer knows en, zh"),
        ("translate", {"target": "en"}, "model.target 'en' is model.source too"),
    ],
)
def test_options_that_do_not_fit_are_said_at_once(
    tmp_path: Path, learns: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MMError, match=message):
        talking(tmp_path, learns, **options)


@pytest.mark.parametrize(
    ("learns", "data", "generation", "message"),
    [
        ("fill", {"max_tokens": 65}, {}, "data.max_tokens 65 must be at most 64"),
        ("continue", {}, {"max_tokens": 46}, "generation.max_tokens 46 must be at most 45"),
        ("translate", {}, {"max_tokens": 65}, "generation.max_tokens 65 must be at most 64"),
    ],
)
def test_lengths_that_do_not_fit_are_said_before_data_is_read(
    tmp_path: Path, learns: str, data: dict[str, Any], generation: dict[str, Any], message: str
) -> None:
    module = talking(tmp_path, learns, validation=TextValidation(1, GenerationConfig(**generation)))
    with pytest.raises(OptionError, match=message):
        module.attach(text_data(tmp_path, **data))


@pytest.mark.parametrize("learns", ["continue", "translate"])
def test_texts_are_sampled_and_stopped_as_told_whatever_the_batch(tmp_path: Path, learns: str) -> None:
    module = talking(tmp_path, learns)
    data = text_data(tmp_path)
    module.attach(data)

    def written(size: int, **options: Any) -> list[str]:
        config = GenerationConfig(strategy="sample", max_tokens=8, **options)
        run = LanguageRun(module.model.eval(), module.tokenizer, module.target, TextValidation(6, config))
        data.val_batch_size = size
        data.setup("validate")
        with torch.inference_mode():
            for batch in data.val_dataloader():
                run.add(batch)
        return [example["translation" if learns == "translate" else "continued"] for example in run.examples]

    whole = written(4)
    assert whole == written(1) != written(4, seed=1)
    stop = next(letter for letter in reversed(whole[0]) if letter.islower() and letter.isascii())
    stopped = written(4, stop=stop)
    assert stopped != whole and all(text.startswith(cut) for text, cut in zip(whole, stopped, strict=True))


def test_something_is_translated() -> None:
    with pytest.raises(OptionError, match=r"validation.translations must be at least 1, not 0"):
        TextValidation(translations=0)


def test_checkpoints_of_other_models_are_told_apart(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}
    talking(tmp_path, "fill").on_save_checkpoint(kept)
    module = talking(tmp_path, "fill", architecture=TextParts(encoder=PARTS["fill"].encoder | {"dropout": 0.3}))
    module.check_same(kept["mm"], "here")
    wider = talking(tmp_path, "fill", architecture=TextParts(encoder=PARTS["fill"].encoder | {"width": 64}))
    with pytest.raises(MMError, match=r"here: is of another model .*: encoder.width 32 instead of 64$"):
        wider.check_same(kept["mm"], "here")
    with pytest.raises(MMError, match=r"decoder.blocks unknown instead of 1, .* share_embedding False instead of"):
        talking(tmp_path, "translate").check_same(kept["mm"], "here")
