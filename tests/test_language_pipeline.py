from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import talking
import tiny
import torch
import transformers
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as Backend
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

import mm
from mm.checkpoints import save_directory
from mm.checkpoints.resolve import load_model
from mm.data.tokenizer import Tokenizer
from mm.errors import CapabilityError, CheckpointError, OptionError
from mm.generation import GenerationConfig
from mm.models import TextParts, build_language
from mm.models.vision_language import SpecialTokens
from mm.pipeline import LanguagePipeline, Pipeline
from mm.search import Gallery

WORDS = ["dog", "cat", "runs", "sits", "on", "grass", "the", "a", "red", "two", "photo", "snow"]
PIECES = [("▁", -3.0), *((f"▁{word}", -2.0 - number / 10) for number, word in enumerate(WORDS))]
PIECES += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,!狗猫"]
TEXTS = ["the dog runs", "a red cat sits on the grass.", "", "two < / s > dogs, 狗!", "photo of snow and stone"]
DECODING = GenerationConfig(min_tokens=0, max_tokens=8, repetition_penalty=2.0)


def random_(model: Any) -> Any:
    """Weights far from those that the reference begins with, in evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.3)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias[0, 2] = -4  # or the first token would be the end
    return model.eval()


def byte_pairs() -> Any:
    """A tokenizer of RoBERTa's kind, which BART has too; white space before a mask belongs to it."""
    learnt = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learnt.train_from_iterator([" ".join(WORDS), *TEXTS], vocab_size=330, special_tokens=special)
    model = json.loads(learnt.to_str())["model"]
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    merges = list(map(tuple, model["merges"]))
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges, mask_token=mask)


def word_pieces(**options: Any) -> Any:
    """A tokenizer of BERT's kind."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", ",", "##s", "s"]
    return transformers.BertTokenizer(vocab={name: number for number, name in enumerate(names)}, **options)


def saved(folder: Path, tokenizer: Any, kind: str, config: dict[str, Any], **generation: Any) -> Any:
    """A small random model of the reference, written to a folder with its tokenizer."""
    settings = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **config)
    name = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM", "Bert": "BertForMaskedLM"}.get(
        kind, "RobertaForMaskedLM" if kind == "Roberta" else f"{kind}ForConditionalGeneration"
    )
    model = random_(getattr(transformers, name)(settings))
    for option, value in generation.items():
        setattr(model.generation_config, option, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 14,
    "decoder_start_token_id": 2,
}


def t5(folder: Path) -> tuple[Any, Any]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = transformers.T5Tokenizer(vocab=special + PIECES, extra_ids=3)
    config = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    return saved(folder, tokenizer, "T5", config | {"n_positions": 14}), tokenizer


def bart(folder: Path) -> tuple[Any, Any]:
    tokenizer = byte_pairs()
    return saved(folder, tokenizer, "Bart", BART, forced_bos_token_id=0, forced_eos_token_id=None), tokenizer


def mbart(folder: Path) -> tuple[Any, Any]:
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    codes = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES]
    tokenizer = transformers.MBartTokenizer(vocab=[*special, *PIECES, *codes, ("<mask>", 0.0)])
    zh = tokenizer.convert_tokens_to_ids("zh_CN")
    model = saved(folder, tokenizer, "MBart", BART | {"decoder_start_token_id": zh}, forced_eos_token_id=None)
    return model, tokenizer


def mbart50(folder: Path) -> tuple[Any, Any]:
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    tokenizer = transformers.MBart50Tokenizer(vocab=[*special, *PIECES], src_lang="en_XX")
    return saved(folder, tokenizer, "MBart", BART, forced_eos_token_id=None), tokenizer


TRANSLATORS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "T5": t5,
    "BART": bart,
    "mBART": mbart,
    "mBART-50": mbart50,
}


def loaded(folder: Path) -> LanguagePipeline:
    """A language model, ready to be used."""
    model = mm.load(folder, "cpu")
    assert isinstance(model, LanguagePipeline)
    return model


@pytest.mark.parametrize("row", TRANSLATORS)
def test_the_encoder_reads_what_the_reference_tokenizer_gives(row: str, tmp_path: Path) -> None:
    _, reference = TRANSLATORS[row](tmp_path)
    words = loaded(tmp_path).tokenizer
    sources = {None: None} if "mBART" not in row else {None: None, "en": "en_XX", "zh": "zh_CN"}
    for code, name in sources.items():
        if name is not None:
            reference.src_lang = name
        for limit in (100, 6):
            expected = reference(TEXTS, truncation=True, max_length=limit).input_ids
            assert words.enclose(words.encode(TEXTS), limit, code) == expected


def test_sampled_translations_depend_on_the_text_and_the_seed_alone(tmp_path: Path) -> None:
    bart(tmp_path)
    model, config = loaded(tmp_path), GenerationConfig(strategy="sample", max_tokens=8)
    together = model.translate(TEXTS, config=config, batch_size=2)
    texts = [one.text for one in together]
    assert texts == [one.text for one in model.translate(TEXTS[::-1], config=config)][::-1]
    assert texts == [model.translate(text, config=config)[0].text for text in TEXTS]
    assert texts != [one.text for one in model.translate(TEXTS, config=replace(config, seed=1))]
    for rank_by, capability in (("match", "match"), ("similarity", "embed")):
        with pytest.raises(CapabilityError, match=f"can't {capability} .*models that can: mm-tiny"):
            model.translate(TEXTS, config=replace(config, best_of=2, rank_by=rank_by))


def test_translations_heed_options_that_are_texts(tmp_path: Path) -> None:
    bart(tmp_path)
    model = loaded(tmp_path)
    for text, whole in zip(TEXTS, model.translate(TEXTS, config=DECODING), strict=True):
        (cut,) = model.translate(text, config=replace(DECODING, stop="r"))
        assert cut.text == whole.text[: whole.text.index("r")].strip() and cut.complete
        (without,) = model.translate(text, config=replace(DECODING, forbidden="r"))
        assert "r" not in without.text
        (also,) = model.translate(text, config=replace(DECODING, beams=4, required="snow"))
        assert "snow" in also.text
    assert not all(one.complete for one in model.translate(TEXTS, config=DECODING))


@pytest.mark.parametrize("row", TRANSLATORS)
def test_translations_equal_those_of_the_reference(row: str, tmp_path: Path) -> None:
    reference, words = TRANSLATORS[row](tmp_path)
    model, texts = loaded(tmp_path), TEXTS
    read = words(texts, truncation=True, max_length=14, padding=True, return_tensors="pt")
    to = "zh" if "mBART" in row else None
    forced = {"forced_bos_token_id": words.convert_tokens_to_ids("zh_CN")} if row == "mBART-50" else {}
    extra = 1 if row in ("BART", "mBART-50") else 0
    rows = reference.generate(
        **read, do_sample=False, num_beams=1, max_new_tokens=8 + extra, repetition_penalty=2.0, **forced
    )
    expected = [text.replace("\ufffd", "").strip() for text in words.batch_decode(rows, skip_special_tokens=True)]
    found = model.translate(texts, to=to, config=DECODING)
    assert [str(one) for one in found] == expected
    assert len(set(expected)) > 1
    assert all(one.language == (to or "en") and one.score < 0 for one in found)
    assert [one.whole for one in found] == [len(words(text).input_ids) <= 14 for text in texts]
    assert not all(one.whole for one in found) and any(one.whole for one in found)


@pytest.mark.parametrize("row", ["T5", "mBART"])
@pytest.mark.parametrize("beams", [1, 3])
def test_translations_do_not_depend_on_the_batch(row: str, beams: int, tmp_path: Path) -> None:
    TRANSLATORS[row](tmp_path)
    model = loaded(tmp_path)
    to = "zh" if row == "mBART" else None
    config = GenerationConfig(beams=beams, max_tokens=8, repetition_penalty=1.5)
    together = model.translate(TEXTS, to=to, config=config, batch_size=3)
    apart = [model.translate(text, to=to, config=config)[0] for text in TEXTS]
    for one, other in zip(together, apart, strict=True):
        assert (one.text, one.complete, one.whole) == (other.text, other.complete, other.whole)
        assert one.score == pytest.approx(other.score, abs=1e-5)
    assert model.translate([]) == [] if row == "T5" else model.translate([], to="zh") == []


def test_languages_change_what_is_written_and_read(tmp_path: Path) -> None:
    TRANSLATORS["mBART"](tmp_path)
    model = loaded(tmp_path)
    assert {"en", "zh", "de"} <= set(model.languages) and len(model.languages) == 25
    chinese, german = (model.translate(TEXTS, to=to, config=DECODING) for to in ("zh", "de"))
    assert [one.text for one in chinese] != [one.text for one in german]
    named = model.translate(TEXTS, to="zh", source=["en", None, "de", "zh", "en"], config=DECODING)
    for number, code in enumerate(["en", "en", "de", "zh", "en"]):
        alone = model.translate(TEXTS[number], to="zh", source=code, config=DECODING)[0]
        assert named[number].text == alone.text
    german = model.translate(TEXTS, to="zh", source="de", config=DECODING)
    assert [one.text for one in german] != [one.text for one in chinese]


def test_what_a_text_begins_with_is_not_written(tmp_path: Path) -> None:
    TRANSLATORS["mBART-50"](tmp_path)
    expected = loaded(tmp_path).translate(TEXTS, to="zh", config=DECODING)
    path = tmp_path / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] != "zh_CN"]
    path.write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").unlink()
    model = loaded(tmp_path)
    assert model.tokenizer.decode([model.tokenizer.begin("zh")]) == ["zh_CN"]
    assert model.translate(TEXTS, to="zh", config=DECODING) == expected


def test_languages_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    TRANSLATORS["mBART"](tmp_path / "mbart")
    model = loaded(tmp_path / "mbart")
    with pytest.raises(OptionError, match="doesn't translate into 'xx'; languages: ar, cs"):
        model.translate("a dog", to="xx")
    with pytest.raises(OptionError, match="knows several languages; choose one of ar, cs"):
        model.translate("a dog")
    with pytest.raises(OptionError, match="doesn't know the language 'xx'"):
        model.translate("a dog", to="zh", source="xx")
    with pytest.raises(OptionError, match="2 source languages for 1 texts"):
        model.translate("a dog", to="zh", source=["en", "zh"])
    TRANSLATORS["BART"](tmp_path / "bart")
    with pytest.raises(OptionError, match="doesn't translate into 'zh'; languages: en"):
        loaded(tmp_path / "bart").translate("a dog", to="zh")


def own(folder: Path, learns: str) -> LanguagePipeline:
    """A random language model of mm with a tokenizer of mm."""
    words = tiny.tokenizer()
    torch.manual_seed(0)
    parts = talking.PARTS[learns]
    model = random_(build_language(parts, len(words), SpecialTokens(**words.special)))
    save_directory(folder, model, words, parts, "# random\n")
    return loaded(folder)


def test_models_of_mm_read_texts_as_they_were_trained(tmp_path: Path) -> None:
    model = own(tmp_path, "translate")
    assert model.capabilities == ("translate",) and model.languages == ("en", "zh")
    plain, stopped = model.translate(["a red wall", "  a red\twall. "], to="zh", config=DECODING)
    assert plain == stopped and plain.language == "zh"
    other = model.translate("a red wall", to="en", config=DECODING)[0]
    assert other.text != plain.text
    scores = own(tmp_path / "score", "continue").score(["a red wall", "a red wall."], language="en")
    assert scores[0] == scores[1]


def scorer(folder: Path, kind: str) -> tuple[Any, Any]:
    """A small decoder with its tokenizer."""
    if kind == "GPT2":
        tokenizer, config = byte_pairs(), {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 16}
    else:
        tokenizer = word_pieces()
        config = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 40}
        config["max_position_embeddings"] = 16
    return saved(folder, tokenizer, kind, config | {"bos_token_id": 2, "eos_token_id": 3}), tokenizer


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_scores_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    reference, words = scorer(tmp_path, kind)
    model = loaded(tmp_path)
    texts = ["the dog runs", "a red cat sits on the grass", "snow", "the grass " * 30, ""]
    found = model.score(texts, batch_size=3)
    for text, score in zip(texts, found, strict=True):
        ids = words(text, add_special_tokens=False).input_ids
        counted = ids[:16]
        with torch.inference_mode():
            logits = reference(torch.tensor([[2, *counted[:-1]]])).logits[0]
        chances = [float(row.log_softmax(-1)[token]) for row, token in zip(logits, counted, strict=False)]
        assert (score.tokens, score.whole) == (len(counted), len(ids) <= 16)
        assert score.log_probability == pytest.approx(sum(chances), abs=1e-4)
        assert score.perplexity == pytest.approx(math.exp(-sum(chances) / max(1, len(counted))), rel=1e-4)
        assert model.score(text)[0].log_probability == pytest.approx(score.log_probability, abs=1e-5)
    assert found[3].tokens == 16 and not found[3].whole and found[4].perplexity == 1
    assert model.score([]) == []


def test_the_perplexity_of_an_impossible_text_is_infinite() -> None:
    from mm.pipeline.language import perplexity

    assert perplexity(-1e6, 3) == math.inf and perplexity(0.0, 0) == 1


def filler(folder: Path, kind: str) -> tuple[Any, Any]:
    """A small masked language model with its tokenizer."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 40}
    if kind == "Bert":
        tokenizer = word_pieces()
        return saved(folder, tokenizer, kind, sizes | {"max_position_embeddings": 12}), tokenizer
    tokenizer = byte_pairs()
    config = sizes | {"max_position_embeddings": 14, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return saved(folder, tokenizer, kind, config), tokenizer


def named(tokenizer: Any, number: int) -> str:
    """A token as text; its name where it is none."""
    text = tokenizer.decode([number], skip_special_tokens=True).replace("\ufffd", "").strip()
    return str(text or tokenizer.convert_ids_to_tokens(number))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_masks_are_filled_as_by_the_reference(kind: str, tmp_path: Path) -> None:
    reference, words = filler(tmp_path, kind)
    model, mask = loaded(tmp_path), words.mask_token
    texts = [f"the {mask} runs", f"{mask} {mask}s on{mask}grass.", f"a red cat sits on {mask}", mask]
    found = model.fill(texts, top=3, batch_size=3)
    assert [len(masks) for masks in found] == [1, 3, 1, 1]
    for text, masks in zip(texts, found, strict=True):
        ids = words(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            chances = reference(ids).logits[ids == words.mask_token_id].softmax(-1)
        for row, best in zip(chances, masks, strict=True):
            expected = row.topk(3)
            assert [one.probability for one in best] == pytest.approx(expected.values.tolist(), abs=1e-5)
            for one, number in zip(best, expected.indices.tolist(), strict=True):
                assert one.token == named(words, number)
        assert model.fill(text, top=3)[0][0][0].token == masks[0][0].token
    assert all(one.token for masks in found for best in masks for one in best)
    assert model.fill([]) == []


def test_texts_that_can_not_be_filled_are_refused(tmp_path: Path) -> None:
    filler(tmp_path, "Bert")
    model = loaded(tmp_path)
    with pytest.raises(OptionError, match=r"text 2 of 2 has no \[MASK\] to fill in"):
        model.fill(["a [MASK]", "a dog"])
    with pytest.raises(OptionError, match="text 1 of 1 has a mask behind the 12 tokens"):
        model.fill("a dog " * 6 + "[MASK]")
    with pytest.raises(OptionError, match="top must be between 1 and"):
        model.fill("a [MASK]", top=0)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] != "[MASK]"]
    maskless = Tokenizer.from_json(json.dumps(described), "words", model.tokenizer.special)
    with pytest.raises(CheckpointError, match=r"has no token \[MASK\] or <mask>"):
        maskless.encode_masked(["a [MASK]"])


IMAGE = Image.new("RGB", (8, 8))
ASKING: dict[str, Callable[[Pipeline], object]] = {
    "caption": lambda model: model.caption(IMAGE),
    "embed": lambda model: model.embed_images(IMAGE),
    "match": lambda model: model.match(IMAGE, "a dog"),
    "ask": lambda model: model.ask(IMAGE, "how many dogs?"),
    "translate": lambda model: model.translate("a dog"),
    "score": lambda model: model.score("a dog"),
    "fill": lambda model: model.fill("a [MASK]"),
}


@pytest.mark.parametrize("learns", ["translate", "continue", "fill"])
def test_what_a_language_model_lacks_is_said(learns: str, tmp_path: Path) -> None:
    model = own(tmp_path, learns)
    able = {"continue": "score"}.get(learns, learns)
    assert model.capabilities == (able,)
    for capability, call in ASKING.items():
        if capability != able:
            with pytest.raises(CapabilityError, match=rf"can't {capability} \(it can {able}\); models that can: "):
                call(model)
    for call in (lambda: model.embed_text("a dog"), lambda: model.classify(IMAGE, ["dog", "cat"])):
        with pytest.raises(CapabilityError, match="can't embed"):
            call()
    with pytest.raises(CapabilityError, match=f"can't embed .it can {able}."):
        Gallery.open(tmp_path / "gallery", model=str(tmp_path), create=True)
    assert not (tmp_path / "gallery").exists()


def test_a_model_that_sees_lacks_what_is_for_texts(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    save_directory(tmp_path, tiny.model(words), words, tiny.ARCHITECTURE, "")
    model = mm.load(tmp_path, "cpu")
    for capability in ("translate", "score", "fill"):
        with pytest.raises(CapabilityError, match=rf"can't {capability} \(it can caption, embed, match\); models that"):
            ASKING[capability](model)


def test_a_model_directory_of_a_public_checkpoint_translates_alike(tmp_path: Path) -> None:
    TRANSLATORS["mBART"](tmp_path / "hub")
    first = loaded(tmp_path / "hub")
    assert isinstance(first.architecture, TextParts)
    saved = load_model(tmp_path / "hub").model
    save_directory(tmp_path / "own", saved, first.tokenizer, first.architecture, "", family=first.family)
    again = loaded(tmp_path / "own")
    assert again.family == "mBART" and again.languages == first.languages
    texts = (model.translate(TEXTS, to="zh", config=DECODING) for model in (first, again))
    assert next(texts) == next(texts)
