"""The way from what captions are about to captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mm.errors import OptionError
from mm.generation.config import GenerationConfig
from mm.generation.decoder import Decoder
from mm.generation.search import beam_search, greedy_search
from mm.models.text import Conditioning, TextTransformer


class Generated(NamedTuple):
    """One caption.

    Args:
        tokens: ids behind the first token: the prompt's and the generated ones, without the end token.
        generated: how many tokens were generated, the end token included.
        score: sum of their log-probabilities.
        ended: whether the caption ended by itself, not at the length limit.
    """

    tokens: list[int]
    generated: int
    score: float
    ended: bool


@torch.inference_mode()
def generate(
    model: TextTransformer,
    about: Conditioning,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    end: int,
    fill: int,
    never: Sequence[int] = (),
    cached: bool = True,
) -> list[Generated]:
    """Captions images; each image's caption is the same whatever other images are in the batch.

    Args:
        model: the text decoder.
        about: what B captions are about.
        prompts: for each image the tokens that its caption begins with: the language token, then any prompt.
        config: strategy and options.
        end: id of the token that ends a caption.
        fill: id of the padding token.
        never: ids of tokens that are never chosen.
        cached: keep keys and values between steps.

    Returns:
        One caption for each image.

    Raises:
        ValueError: the number of prompts isn't that of the images, or a prompt is empty.
        OptionError: prompt and ``max_tokens`` together are more than the model has positions for.
    """
    if len(prompts) != about.rows:
        raise ValueError(f"{len(prompts)} prompts for {about.rows} images")
    if not all(prompts):
        raise ValueError("a prompt has no token: it begins with the language token at least")
    if not prompts:
        return []
    longest = max(map(len, prompts))
    room = model.max_tokens - longest + 1
    if config.max_tokens > room:
        raise OptionError(
            f"max_tokens {config.max_tokens} and a prompt of {longest - 1} tokens are more than the "
            f"{model.max_tokens} tokens of this model; max_tokens can be at most {max(0, room)}"
        )
    device = model.embedding.weight.device
    prompt = torch.tensor([[fill] * (longest - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    padding = torch.arange(longest, device=device)[None, :] >= longest - lengths[:, None]
    decoder = Decoder(model, about, longest + config.max_tokens, cached)
    search = greedy_search if config.beams == 1 else beam_search
    even = all(len(p) == longest for p in prompts)
    barred = torch.tensor(list(never), dtype=torch.int64, device=device)
    found = search(decoder, prompt, None if even else padding, config, end, fill, barred)
    rows = zip(prompts, found.tokens.tolist(), found.scores.tolist(), strict=True)
    captions = []
    for given, tokens, score in rows:
        ended = end in tokens
        new = tokens[: tokens.index(end)] if ended else tokens
        captions.append(Generated([*given[1:], *new], len(new) + ended, score, ended))
    return captions
