"""The way from what captions are about to captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm.errors import OptionError
from mm.generation.accepting import STREAMS
from mm.generation.beam import BeamSearch
from mm.generation.compiled import CompiledDecoder, Steps
from mm.generation.config import GenerationConfig
from mm.generation.constrained import ConstrainedBeamSearch
from mm.generation.contrastive import contrast
from mm.generation.decoder import Decoder
from mm.generation.follow import follow, likeliest
from mm.generation.ranking import Rank, best, rank_of
from mm.generation.rules import Rules
from mm.generation.sampling import Sampler, draw
from mm.generation.speculative import Draft, Speculation, SpeculativeDecoding, check_draft
from mm.generation.stopping import StopStrings
from mm.generation.text import Text
from mm.generation.written import Task, Written
from mm.models.text import Conditioning, TextTransformer


class Generated(NamedTuple):
    """One caption.

    Args:
        tokens: ids behind the first token: the prompt's and the generated ones, without the end token.
        log_probabilities: of the generated tokens under the model, no penalty applied; the end token's last, if any.
        ended: whether the caption ended by itself, not at the length limit.
        speculation: how well a draft guessed it; None without one.
    """

    tokens: list[int]
    log_probabilities: list[float]
    ended: bool
    speculation: Speculation | None = None

    @property
    def generated(self) -> int:
        """How many tokens were generated, the end token included."""
        return len(self.log_probabilities)

    @property
    def begun(self) -> int:
        """How many of the tokens are the prompt's."""
        return len(self.tokens) + self.ended - self.generated

    @property
    def score(self) -> float:
        """The sum of their log-probabilities."""
        return sum(self.log_probabilities)


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
    text: Text | None = None,
    seeds: Sequence[int] | None = None,
    rank: Rank | None = None,
    draft: Draft | None = None,
    cached: bool = True,
    steps: Steps | None = None,
) -> list[Generated]:
    """Captions images; gives the best caption of each. ``generate_all`` says what the arguments are."""
    found = generate_all(
        model,
        about,
        prompts,
        config,
        end=end,
        fill=fill,
        never=never,
        text=text,
        seeds=seeds,
        rank=rank,
        draft=draft,
        cached=cached,
        steps=steps,
    )
    return [captions[0] for captions in found]


@torch.inference_mode()
def generate_all(
    model: TextTransformer,
    about: Conditioning,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    end: int,
    fill: int,
    never: Sequence[int] = (),
    text: Text | None = None,
    seeds: Sequence[int] | None = None,
    rank: Rank | None = None,
    draft: Draft | None = None,
    cached: bool = True,
    steps: Steps | None = None,
) -> list[list[Generated]]:
    """Captions images; each image's captions are the same whatever other images are in the batch.

    Args:
        model: the text decoder.
        about: what B captions are about.
        prompts: for each image the tokens that its caption begins with: the language token, then any prompt.
        config: strategy and options.
        end: id of the token that ends a caption.
        fill: id of the padding token.
        never: ids of tokens that are never chosen.
        text: turns tokens into text and phrases into tokens, for the options that are texts; None without those.
        seeds: one for each image, from 0, that its draws depend on; for sampling alone.
        rank: scores the captions found, where the options say ``best_of``; None for what ``rank_by`` says.
        draft: a smaller model that proposes tokens, for greedy search and sampling; None for none.
        cached: keep keys and values between steps.
        steps: compiled steps of the model, which the caption's tokens are read in; a draft does without.

    Returns:
        For each image ``config.captions`` captions, the best first: by ``rank_by`` with ``best_of``, else in the order
        of beam search, or as they were sampled.

    Raises:
        ValueError: the number of prompts or seeds isn't that of the images, a prompt is empty, or an option needs
            ``text``, ``seeds`` or ``rank``.
        OptionError: prompt and ``max_tokens`` together are more than the model has positions for, a phrase has no
            tokens or can't appear, or the draft doesn't go with the model or the options.
    """
    if not prompts and not about.rows:
        return []
    rank = rank_of(config, rank)
    check_draft(draft, model, config, max(map(len, prompts), default=0))
    rows = _rows(config, model) if draft is None else config.draft_tokens + 1
    streams = config.found if draft is None else STREAMS
    noise = _noise(config, seeds, about.rows, streams, model.embedding.weight.device)
    task = _task(
        model,
        about,
        prompts,
        config,
        rows,
        end=end,
        fill=fill,
        never=never,
        text=text,
        noise=noise,
        cached=cached,
        steps=steps if draft is None else None,
    )
    written = Written(about.rows, config.found, config, fill, task.prompts.device)
    if config.way == "beam":
        _beam_search(task, written, text).run()
    elif draft is not None:
        return _guided(SpeculativeDecoding(task, draft, written), prompts)
    else:
        for _ in _steps(task, written):
            pass
    return best(_captions(prompts, written, end), rank, config.captions)


@torch.inference_mode()
def stream(
    model: TextTransformer,
    about: Conditioning,
    prompt: Sequence[int],
    config: GenerationConfig,
    *,
    end: int,
    fill: int,
    never: Sequence[int] = (),
    text: Text | None = None,
    seeds: Sequence[int] | None = None,
    steps: Steps | None = None,
) -> Iterator[int | Generated]:
    """Captions one image, and gives each token behind the prompt as soon as it is certain, the end token apart.

    ``generate_all`` says what the arguments are, ``prompt`` being that of the one image.

    Returns:
        The tokens, to iterate over, and at last the caption.

    Raises:
        OptionError: as there, or several captions are asked for.
    """
    for name in ("captions", "best_of"):
        if (count := getattr(config, name)) > 1:
            raise OptionError(f"{name} {count} can't be streamed, which gives one caption as it is found; leave it out")
    check_draft(None, model, config, len(prompt))
    noise = _noise(config, seeds, 1, 1, model.embedding.weight.device)
    task = _task(
        model,
        about,
        [prompt],
        config,
        _rows(config, model),
        end=end,
        fill=fill,
        never=never,
        text=text,
        noise=noise,
        cached=True,
        steps=steps,
    )
    written = Written(1, 1, config, fill, task.prompts.device)
    certain = _certain(_beam_search(task, written, text)) if config.way == "beam" else _chosen(task, written)
    return _streamed(certain, prompt, written, end)


@torch.inference_mode()
def _streamed(
    certain: Iterator[list[int]], prompt: Sequence[int], written: Written, end: int
) -> Iterator[int | Generated]:
    """Gives single tokens of those that are certain, then the others, and the caption."""
    given = 0
    for tokens in certain:
        yield from (token for token in tokens if token != end)
        given += len(tokens)
    caption = _captions([prompt], written, end)[0][0]
    yield from caption.tokens[len(prompt) - 1 + given :]
    yield caption


def _certain(search: BeamSearch) -> Iterator[list[int]]:
    """Searches, and gives the tokens of one image's caption that have become certain."""
    given = 0
    for _ in search.steps():
        certain = search.certain()
        yield certain[given:]
        given = max(given, len(certain))


def _chosen(task: Task, written: Written) -> Iterator[list[int]]:
    """Writes one image's caption, and gives each token of it."""
    for count in _steps(task, written):
        if int(written.lengths[0, 0]) < count:
            break  # it has ended; an accelerator isn't asked at every step
        yield written.tokens[0, 0, count - 1 : count].tolist()


def _guided(decoding: SpeculativeDecoding, prompts: Sequence[Sequence[int]]) -> list[list[Generated]]:
    guessed = decoding.run()
    found = _captions(prompts, decoding.written, decoding.task.end)
    return [[one._replace(speculation=how)] for (one,), how in zip(found, guessed, strict=True)]


def _beam_search(task: Task, written: Written, text: Text | None) -> BeamSearch:
    if task.config.required and text is not None:
        return ConstrainedBeamSearch(task, written, text)
    return BeamSearch(task, written)


def _steps(task: Task, written: Written) -> Iterator[int]:
    """Writes captions token by token; gives how many tokens there are after each step."""
    if task.config.way == "contrastive":
        return contrast(task, written)
    return follow(task, written, Sampler(task.config) if task.config.way == "sample" else likeliest)


def _noise(
    config: GenerationConfig, seeds: Sequence[int] | None, images: int, streams: int, device: torch.device
) -> Tensor | None:
    """Draws what sampling needs; None for the other strategies."""
    if config.way != "sample":
        return None
    if seeds is None or len(seeds) != images:
        raise ValueError(f"{len(seeds or [])} seeds for {images} images; strategy sample needs one for each")
    return draw(seeds, streams, config.max_tokens, device)


def _rows(config: GenerationConfig, model: TextTransformer) -> int:
    """Gives how many tokens of an image are read at a time."""
    candidates = min(config.candidates, model.embedding.num_embeddings)
    return {"beam": config.beams, "contrastive": candidates}.get(config.way, config.found)


def _task(
    model: TextTransformer,
    about: Conditioning,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    rows: int,
    *,
    end: int,
    fill: int,
    never: Sequence[int],
    text: Text | None,
    noise: Tensor | None,
    cached: bool,
    steps: Steps | None,
) -> Task:
    """Makes ready what a strategy needs that reads ``rows`` tokens of an image at a time."""
    if len(prompts) != about.rows:
        raise ValueError(f"{len(prompts)} prompts for {about.rows} images")
    if not all(prompts):
        raise ValueError("a prompt has no token: it begins with the language token at least")
    if text is None and (config.stop or config.forbidden or config.required):
        raise ValueError("stop, forbidden and required are texts: they need text")
    longest = max(map(len, prompts))
    room = model.max_tokens - longest + (config.way != "contrastive")  # which reads the last token, too
    if config.max_tokens > room:
        raise OptionError(
            f"max_tokens {config.max_tokens} and a prompt of {longest - 1} tokens are more than the "
            f"{model.max_tokens} tokens of this model; max_tokens can be at most {max(0, room)}"
        )
    device = model.embedding.weight.device
    prompt = torch.tensor([[fill] * (longest - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    real = torch.arange(longest, device=device)[None, :] >= longest - lengths[:, None]
    padding = None if all(len(p) == longest for p in prompts) else real
    capacity = longest + rows * config.max_tokens
    decoder = Decoder(model, about, prompt, padding, capacity if steps is None else longest, cached)
    reading = decoder if steps is None else CompiledDecoder(steps, decoder, capacity)
    forbidden = [] if text is None else [ids for phrase in config.forbidden for ids in text.spellings(phrase)]
    rules = Rules(config, end=end, never=never, forbidden=forbidden, real=padding, device=device)
    ended = StopStrings(config.stop, text).ended if config.stop and text is not None else None
    return Task(reading, rules, config, end=end, fill=fill, ended=ended, noise=noise)


def _captions(prompts: Sequence[Sequence[int]], written: Written, end: int) -> list[list[Generated]]:
    """Gives what was written as lists."""
    whole = zip(
        prompts,
        written.tokens.tolist(),
        written.log_probabilities.tolist(),
        written.lengths.tolist(),
        strict=True,
    )
    found = []
    for prompt, rows, likelihoods, lengths in whole:
        captions = []
        for row, likely, length in zip(rows, likelihoods, lengths, strict=True):
            ended = row[length - 1] == end
            new = row[: length - ended]
            captions.append(Generated([*prompt[1:], *new], likely[:length], ended))
        found.append(captions)
    return found
