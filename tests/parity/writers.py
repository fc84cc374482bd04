"""Small random models of transformers that write, mm's of the same weights, and what both of them write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from blips import BEGIN, CLS, SEP, made, seen
from folders import padded, random_, wordpiece
from tiny import Numbers
from torch import Tensor

from mm.checkpoints.resolve import load_model
from mm.generation import GenerationConfig, generate_all
from mm.models import Conditioning, TextTransformer

VOCABULARY, FILL = 60, 0
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": SEP, "pad_token_id": FILL}
SPECIAL |= {"tie_word_embeddings": False}  # tied, random models write the same tokens over and over
LONGEST = 14
ENCODER_DECODER = SPECIAL | {"d_model": 32, "decoder_start_token_id": 1}
T5 = {"d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
BART = {"encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "max_position_embeddings": 24}
BART |= {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}


class Writer(NamedTuple):
    """A model of transformers and mm's of the same weights, about to write.

    Args:
        decoder: mm's text decoder.
        about: what mm's captions are about.
        reference: calls ``generate`` of the reference with (B, T) prompts, the (B, T) mask of their real tokens, the id
            of the end token and other options.
        prompts: of each image or text.
        end: id of the token that ends a caption.
        fill: id of the token that prompts are padded with.
    """

    decoder: TextTransformer
    about: Conditioning
    reference: Callable[..., Any]
    prompts: list[list[int]]
    end: int = SEP
    fill: int = FILL


class Found(NamedTuple):
    """All captions of every image, the best first, their end tokens included, and what beam search ranks them by."""

    tokens: list[list[list[int]]]
    scores: Tensor


def asked(config: GenerationConfig) -> dict[str, Any]:
    """The same options by their names in transformers."""
    phrases = [ids for phrase in config.forbidden for ids in Numbers().spellings(phrase)]
    return {
        "do_sample": False,
        "num_beams": config.beams,
        "num_return_sequences": config.captions,
        "min_new_tokens": config.min_tokens,
        "max_new_tokens": config.max_tokens,
        "length_penalty": config.length_penalty,
        "repetition_penalty": config.repetition_penalty,
        "no_repeat_ngram_size": config.no_repeat_ngram,
        "bad_words_ids": phrases or None,
        "early_stopping": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }


def theirs(writer: Writer, config: GenerationConfig) -> Found:
    """What the reference writes behind the prompts, padded on the left."""
    longest = max(map(len, writer.prompts))
    tokens = torch.tensor([[writer.fill] * (longest - len(prompt)) + prompt for prompt in writer.prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in writer.prompts])
    with torch.inference_mode():
        out = writer.reference(tokens, real, writer.end, **asked(config))
    rows = [row[longest:] for row in out.sequences.tolist()]
    rows = [row[: row.index(writer.end) + 1] if writer.end in row else row for row in rows]
    scores = out.sequences_scores if config.beams > 1 else torch.zeros(len(rows))
    shape = len(writer.prompts), config.captions
    starts = range(0, len(rows), config.captions)
    return Found([rows[start : start + config.captions] for start in starts], scores.view(shape))


def ours(writer: Writer, config: GenerationConfig) -> Found:
    """What mm writes behind the prompts."""
    options: dict[str, Any] = {"end": writer.end, "fill": writer.fill, "text": Numbers()}
    found = generate_all(writer.decoder, writer.about, writer.prompts, config, **options)
    tokens = [
        [[*one.tokens[len(prompt) - 1 :], *([writer.end] * one.ended)] for one in captions]
        for captions, prompt in zip(found, writer.prompts, strict=True)
    ]
    scores = [[one.score / one.generated**config.length_penalty for one in captions] for captions in found]
    return Found(tokens, torch.tensor(scores))


def alone(writer: Writer, number: int) -> Writer:
    """One image or text of a decoder without an encoder."""
    return writer._replace(about=writer.about.of(torch.tensor([number])), prompts=[writer.prompts[number]])


def ending(writer: Writer) -> Writer:
    """Ends captions with the token that makes their lengths differ most, and of several such the latest."""
    free = theirs(writer, GenerationConfig(beams=3, captions=3, max_tokens=LONGEST, min_tokens=LONGEST)).tokens
    rows = [row for captions in free for row in captions]

    def variety(token: int) -> tuple[int, int]:
        lengths = [row.index(token) if token in row else LONGEST for row in rows]
        return len(set(lengths)), sum(lengths)

    return writer._replace(end=max(sorted({token for row in rows for token in row} - {FILL}), key=variety))


def blip(folder: Path, seed: int, prompt: Sequence[int] = ()) -> Writer:
    """Three images captioned by a BLIP, all of them with one prompt."""
    reference = made(folder, "BLIP captioning", seed=seed)
    _vary(reference.model)
    reference.model.save_pretrained(folder)
    pixels, given = seen(reference, 3)
    model = load_model(folder).model
    with torch.inference_mode():
        about = model.about(model.image_tokens(pixels))

    def write(tokens: Tensor, real: Tensor, end: int, **options: Any) -> Any:
        reference.model.config.text_config.sep_token_id = end
        tokens = torch.cat([torch.full_like(tokens[:, :1], CLS), tokens[:, 1:], torch.full_like(tokens[:, :1], SEP)], 1)
        return reference.model.generate(given, tokens, **options)

    return Writer(model.decoder, about, write, [[BEGIN, *prompt]] * 3)


def gpt2(folder: Path, seed: int, prompts: list[list[int]]) -> Writer:
    """A GPT-2 that goes on with texts."""
    numbers = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 24}
    reference = _saved(folder, transformers.GPT2LMHeadModel, transformers.GPT2Config(**SPECIAL, **numbers), seed)

    def write(tokens: Tensor, real: Tensor, end: int, **options: Any) -> Any:
        return reference.generate(tokens, attention_mask=real, eos_token_id=end, pad_token_id=FILL, **options)

    return Writer(load_model(folder).model.decoder, Conditioning(len(prompts)), write, prompts)


def encoder_decoder(folder: Path, seed: int, kind: str) -> Writer:
    """A T5 or a BART that writes about texts."""
    numbers = ENCODER_DECODER | (T5 if kind == "T5" else BART)
    config = getattr(transformers, f"{kind}Config")(**numbers)
    reference = _saved(folder, getattr(transformers, f"{kind}ForConditionalGeneration"), config, seed)
    reference.generation_config.forced_eos_token_id = None
    tokens, real = padded(low=7, high=VOCABULARY)
    model = load_model(folder).model
    with torch.inference_mode():
        about = model.about(tokens, real)

    def write(opening: Tensor, _: Tensor, end: int, **options: Any) -> Any:
        encoded = {"input_ids": tokens, "attention_mask": real.long(), "decoder_input_ids": opening}
        return reference.generate(**encoded, eos_token_id=end, **options)

    return Writer(model.decoder, about, write, [[1]] * 3)


def _saved(folder: Path, kind: Any, config: Any, seed: int) -> Any:
    """Makes a random reference and writes it to a folder, with a tokenizer."""
    reference = random_(kind(config), seed, scale=2.5)
    _vary(reference)
    reference.save_pretrained(folder)
    wordpiece(folder, VOCABULARY)
    return reference


def _vary(model: torch.nn.Module) -> None:
    """Makes positions count for more and biases for less, so that captions vary."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if re.search("wpe|embed_positions|position_embeddings", name):
                value.mul_(2)
            elif name.endswith("bias"):
                value.mul_(0.1)
