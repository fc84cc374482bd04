"""Speculative decoding: a smaller model proposes tokens, and the model verifies several of them in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.errors import OptionError
from mm.generation.accepting import Drawn, Likeliest
from mm.generation.config import DEFAULTS, GenerationConfig
from mm.generation.decoder import Decoder
from mm.generation.sampling import Sampler
from mm.generation.written import Task, Written, some_done, worth_leaving
from mm.models.text import Conditioning, TextTransformer


class Draft(NamedTuple):
    """A model that proposes tokens.

    Args:
        model: the text decoder, of the same vocabulary.
        about: what the same images look like to it.
    """

    model: TextTransformer
    about: Conditioning


class Speculation(NamedTuple):
    """How well a draft guessed a caption.

    Args:
        rounds: passes in which its proposals were verified.
        accepted: proposed tokens that came into the caption, in all rounds together.
    """

    rounds: int
    accepted: int


def check_draft(draft: Draft | None, model: TextTransformer, config: GenerationConfig, longest: int) -> None:
    """Refuses a draft that can't propose tokens for a model, and options that don't go with one.

    Args:
        draft: None for none.
        model: what verifies its proposals.
        config: the options.
        longest: tokens of the longest prompt.

    Raises:
        OptionError: the options don't go with it, or the models don't go together.
    """
    if draft is None:
        if config.draft_tokens != DEFAULTS["draft_tokens"]:
            raise OptionError(f"draft_tokens {config.draft_tokens} acts with a draft alone; give a draft model too")
        return
    if config.way not in ("greedy", "sample"):
        raise OptionError(f"draft doesn't act in strategy {config.way}; leave it out, or choose greedy or sample")
    for name in ("captions", "best_of"):
        if (count := getattr(config, name)) > 1:
            raise OptionError(f"draft and {name} {count} can't be combined; leave one out")
    sizes = [one.embedding.num_embeddings for one in (model, draft.model)]
    if sizes[0] != sizes[1]:
        raise OptionError(
            f"draft has a vocabulary of {sizes[1]} tokens, the model one of {sizes[0]}; they must be the same"
        )
    if longest + config.max_tokens - 1 > draft.model.max_tokens:
        raise OptionError(
            f"max_tokens {config.max_tokens} and a prompt of {longest - 1} tokens are more than the "
            f"{draft.model.max_tokens} tokens of the draft model; choose another draft or fewer max_tokens"
        )


class Rows:
    """Rows that grow by different numbers of tokens.

    Args:
        prompts: (B, P) int64, padded on the left.
        padding: (B, P) bool, true at real tokens; None where all are.
        room: the most tokens behind a prompt, proposed ones included.
        fill: id of the padding token.
    """

    def __init__(self, prompts: Tensor, padding: Tensor | None, room: int, fill: int) -> None:
        real = torch.ones_like(prompts, dtype=torch.bool) if padding is None else padding
        self.start, self.fill = prompts.shape[1], fill
        self.tokens = F.pad(prompts, (0, room), value=fill)
        self.real = F.pad(real, (0, room), value=True)
        self.lengths = torch.zeros_like(prompts[:, 0])

    def put(self, tokens: Tensor, ahead: int = 0) -> None:
        """Writes (B, M) tokens behind the rows and ``ahead`` further ones, without counting them."""
        places = self.start + self.lengths[:, None] + ahead + torch.arange(tokens.shape[1], device=tokens.device)
        self.tokens = self.tokens.scatter(1, places, tokens)

    def last(self) -> Tensor:
        """Gives the (B, 1) last token of each."""
        return self.tokens.gather(1, self.start + self.lengths[:, None] - 1)

    def with_ahead(self, first: int, count: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Gives K rows of each image: with ``first`` of the uncounted tokens behind it, with one more, and so on.

        Args:
            first: uncounted tokens of the first of these rows.
            count: K.

        Returns:
            (B, K, T) int64, padded on the left; (B, K, T) bool, true at real tokens; (B, K) int64, tokens behind the
            prompt.
        """
        counts = self.lengths[:, None] + torch.arange(first, first + count, device=self.tokens.device)
        width = self.tokens.shape[1]
        places = torch.arange(width, device=counts.device) - (width - self.start - counts)[..., None]
        inside, places = places >= 0, places.clamp_min(0)
        shape = (-1, count, -1)
        real = self.real[:, None].expand(shape).gather(2, places) & inside
        tokens = self.tokens[:, None].expand(shape).gather(2, places).masked_fill(~real, self.fill)
        return tokens, real, counts

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only."""
        self.tokens, self.real, self.lengths = self.tokens[images], self.real[images], self.lengths[images]


class SpeculativeDecoding:
    """Writes what greedy search or sampling would, with fewer passes of the model.

    In each round the draft proposes M tokens, the model reads them in one pass, and every image keeps those that are
    accepted and one more. Images of a batch then differ in length; refused tokens stay in the caches, seen by none.

    Args:
        task: what to do.
        draft: what proposes tokens.
        written: gets the captions, one of each image.
    """

    def __init__(self, task: Task, draft: Draft, written: Written) -> None:
        config, device = task.config, task.prompts.device
        self.task, self.written, self.config = task, written, config
        self.proposals = config.draft_tokens
        room = task.prompts.shape[1] + (self.proposals + 1) * config.max_tokens
        assert isinstance(task.decoder, Decoder)  # a compiled one doesn't read several tokens behind one another
        self.decoder = task.decoder
        cached = self.decoder.cache is not None
        self.draft = Decoder(draft.model, draft.about, task.prompts, task.rules.real, room, cached)
        self.rule: Likeliest | Drawn = Likeliest() if task.noise is None else Drawn(Sampler(config), task.noise)
        self.rows = Rows(task.prompts, task.rules.real, config.max_tokens + self.proposals + 1, task.fill)
        self.alive = torch.arange(len(task.prompts), device=device)
        self.done = torch.zeros_like(self.alive, dtype=torch.bool)
        self.rounds, self.accepted = torch.zeros_like(self.alive), torch.zeros_like(self.alive)

    def run(self) -> list[Speculation]:
        """Writes until every image is done; says of each how well it was guessed."""
        self.draft.begin()
        accepted = self._verify(self.task.prompts[:, -1:], self.decoder.begin()[:, None])
        unread = self.rows.last()
        for number in range(self.config.max_tokens - 1):  # each round writes a token at least
            left = worth_leaving(self.done) if some_done(self.done, number) else None
            if left is not None:
                if not len(left):
                    break
                self._keep(left)
                unread, accepted = unread[left], accepted[left]
            read = torch.cat([unread[:, -1:], self._propose(unread)], 1)
            self.rounds[self.alive] += ~self.done
            accepted = self._verify(read, self.decoder.chain(read, accepted))
            self.draft.back(self.proposals - accepted[:, 0])
            unread = torch.cat([read.gather(1, accepted), self.rows.last()], 1)
        counts = zip(self.rounds.tolist(), self.accepted.tolist(), strict=True)
        return [Speculation(rounds, accepted) for rounds, accepted in counts]

    def _propose(self, unread: Tensor) -> Tensor:
        """Lets the draft read (B, 1 or 2) tokens and propose (B, M) others behind them."""
        logits = self.draft.chain(unread)[:, -1:]
        parents = torch.full_like(unread[:, :1], unread.shape[1] - 1)
        proposed: list[Tensor] = []
        for ahead in range(self.proposals):
            if proposed:
                logits = self.draft.extend(proposed[-1], parents if ahead == 1 else None)
            rows, real, counts = self.rows.with_ahead(ahead)
            proposed.append(self.rule.propose(self.task.rules(logits, rows, counts, real), counts))
            self.rows.put(proposed[-1], ahead)
        return torch.cat(proposed, 1)

    def _verify(self, read: Tensor, logits: Tensor) -> Tensor:
        """Keeps what the model accepts, and one token more.

        Args:
            read: (B, M + 1) the last token of each row and those proposed behind it; at the beginning none is.
            logits: (B, M + 1, V) of the tokens behind each of these.

        Returns:
            (B, 1) how many proposals are accepted.
        """
        rows, real, counts = self.rows.with_ahead(0, read.shape[1])
        scores = self.task.rules(logits, rows, counts, real)
        tokens, accepted = self.rule.verify(scores, read[:, 1:], counts)
        good = accepted.long().cumprod(1).sum(1)
        taken = self._take(tokens, logits, good)
        self.accepted[self.alive] += torch.minimum(taken, good)
        return good[:, None]

    def _take(self, tokens: Tensor, logits: Tensor, good: Tensor) -> Tensor:
        """Writes new tokens as far as captions don't end.

        Args:
            tokens: (B, M + 1) int64.
            logits: (B, M + 1, V) under the model.
            good: (B,) how many are accepted; the one behind them is taken too.

        Returns:
            (B,) how many are taken.
        """
        rows, places = self.rows, torch.arange(tokens.shape[1], device=tokens.device)
        rows.put(tokens)
        full = rows.lengths[:, None] + places + 1 >= self.config.max_tokens
        ended = (tokens == self.task.end) | full | self._stopped(tokens)
        taken = (places <= good[:, None]) & (ended.cumsum(1) - ended.long() == 0) & ~self.done[:, None]
        count = taken.sum(1)
        gained = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        source = torch.arange(self.config.max_tokens, device=tokens.device) - rows.lengths[:, None]
        new = (source >= 0) & (source < count[:, None])
        source = source.clamp(0, tokens.shape[1] - 1)
        for whole, values in ((self.written.tokens, tokens), (self.written.log_probabilities, gained)):
            whole[self.alive, 0] = torch.where(new, values.gather(1, source), whole[self.alive, 0])
        self.written.lengths[self.alive, 0] += count
        self.done = self.done | (ended & taken).any(1)
        rows.lengths = rows.lengths + count
        return count

    def _stopped(self, tokens: Tensor) -> Tensor:
        """Says of (B, M) new tokens whether a stop string is complete with each."""
        stopped = torch.zeros_like(tokens, dtype=torch.bool)
        if self.task.ended is None:
            return stopped
        written, lengths = self.rows.tokens[:, self.rows.start :].tolist(), self.rows.lengths.tolist()
        found = [
            [self.task.ended(row[: length + ahead + 1]) for ahead in range(tokens.shape[1])]
            for row, length in zip(written, lengths, strict=True)
        ]
        return torch.tensor(found, device=tokens.device)

    def _keep(self, images: Tensor) -> None:
        self.alive, self.done = self.alive[images], self.done[images]
        self.rows.keep(images)
        self.rule.keep(images)
        self.draft.keep(images)
        self.task.keep(images)
