"""Small random decoders of every kind, each with what six texts of it are about."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import NamedTuple

import torch
from tiny import decoder
from torch import Tensor, nn

from mm.models import Conditioning, TextTransformer
from mm.models.presets.gpt2 import gpt2
from mm.models.presets.llama import llama
from mm.models.presets.t5 import t5

VOCABULARY, END, FILL = 40, 3, 0
PROMPTS = [[5], [6, 10, 11, 12], [5, 20], [6], [5, 10, 11, 12, 13, 14, 15], [5, 21]]
SIZES = {"vocabulary": VOCABULARY, "width": 32, "heads": 4, "blocks": 2}
SEEN = 24  # width of what cross-attention sees


class Subject(NamedTuple):
    """A decoder, and what texts, those with ``PROMPTS`` among them, are about."""

    model: TextTransformer
    about: Conditioning


def cross(seed: int) -> Subject:
    """Learned positions and cross-attention."""
    model = decoder(VOCABULARY, END, seed)
    return Subject(model, Conditioning(6, model.keys_values(_images())))


def alone(seed: int) -> Subject:
    """Learned positions, about nothing."""
    return Subject(_varied(gpt2(**SIZES, max_tokens=40, tied=False), seed), Conditioning(6))


def prefix(seed: int) -> Subject:
    """Learned positions behind image tokens."""
    return Subject(alone(seed).model, Conditioning(6, prefix=_images(5, 32)))


def grouped(seed: int) -> Subject:
    """Rotary positions and grouped keys and values, about nothing."""
    model = llama(**SIZES, hidden=48, max_tokens=40, key_value_heads=2)
    return Subject(_varied(model, seed), Conditioning(6))


def grouped_prefix(seed: int) -> Subject:
    """Rotary positions and grouped keys and values behind image tokens."""
    return Subject(grouped(seed).model, Conditioning(6, prefix=_images(5, 32)))


def interleaved(seed: int) -> Subject:
    """Gated cross-attention before every other block; each token sees some of the image tokens, or none."""
    model = llama(**SIZES, hidden=48, max_tokens=40, context_width=SEEN, cross="gated", cross_every=2)
    context = _varied(model, seed).keys_values(_images())
    mask = torch.rand(6, 1, 5, 9, generator=torch.Generator().manual_seed(8)) < 0.3
    mask[::2, :, 1] = False
    return Subject(model, Conditioning(6, context._replace(mask=mask)))


def relative(seed: int) -> Subject:
    """A relative bias, and cross-attention to texts of different lengths."""
    model = _varied(
        t5(**SIZES, hidden=48, max_tokens=40, context_width=SEEN, tied=False, scaled=False, buckets=8, furthest=12),
        seed,
    )
    real = torch.arange(9) < torch.tensor([9, 4, 7, 1, 9, 5])[:, None]
    return Subject(model, Conditioning(6, model.keys_values(_images(), real)))


MAKERS = {
    "cross-attention": cross,
    "no conditioning": alone,
    "prefix": prefix,
    "rotary, grouped": grouped,
    "rotary, grouped, prefix": grouped_prefix,
    "gated, interleaved": interleaved,
    "relative bias": relative,
}


@cache
@torch.inference_mode()
def subject(kind: str, seed: int = 0) -> Subject:
    """A decoder of one of ``MAKERS``, whose choices are far from even and whose texts differ in length."""
    return MAKERS[kind](seed)


@cache
@torch.inference_mode()
def disturbed(model: TextTransformer) -> TextTransformer:
    """A decoder that mostly, but not always, chooses as another does."""
    torch.manual_seed(0)
    draft = deepcopy(model)
    for value in draft.parameters():
        value.add_(0.1 * value.std(correction=0) * torch.randn_like(value))
    return draft


def logits(subject: Subject, image: int, tokens: Sequence[int]) -> Tensor:
    """The (T, V) logits behind each token of one text, from a single plain pass over it."""
    about = subject.about.of(torch.tensor([image]))
    with torch.inference_mode():
        hidden = subject.model(torch.tensor([[*tokens]]), context=about.context, prefix=about.prefix)
        return subject.model.logits(hidden)[0]


def likelihood(subject: Subject, image: int, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
    """The (T,) log-probabilities of tokens behind a prompt, from a single plain pass."""
    rows = logits(subject, image, [*prompt, *new])[len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(new)[:, None])[:, 0]


def _images(count: int = 9, width: int = SEEN) -> Tensor:
    return torch.randn(6, count, width, generator=torch.Generator().manual_seed(7))


def _varied(model: TextTransformer, seed: int) -> TextTransformer:
    """Draws weights anew: positions far apart, matrices such that choices differ, and an end that is fairly likely."""
    torch.manual_seed(seed)
    assert model.head is not None
    model.head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    for name, value in model.named_parameters():
        if value.ndim == 1:
            nn.init.normal_(value, mean=float("norm" in name and name.endswith("weight")), std=0.1)
        else:
            nn.init.normal_(value, std=2.5 / value.shape[-1] ** 0.5)
        if "gate" in name and value.ndim == 1:
            nn.init.constant_(value, 0.8)
    if model.positions is not None:
        nn.init.normal_(model.positions, std=1.0)
    model.head.bias.data[END] = 3.0
    return model.eval()
