"""One step of decoding: the logits of next tokens, from both caches or from scratch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.models.text import Conditioning, Layout, TextTransformer


class Decoder:
    """A text decoder in the middle of decoding: it has read a tree of tokens for every image.

    The trunk is the prompt; each of the image's rows is a way from there to a leaf. All rows of an image share what is
    kept of it: the image's keys and values, projected once, and those of tokens in a preallocated cache. Which tokens
    belong to which row is a mask, so a row that goes on from another one copies nothing.

    Args:
        model: the text decoder.
        about: what each of B images' captions are about.
        prompts: (B, T) int64 tokens that captions begin with, padded on the left.
        padding: (B, T) bool, true at real tokens; None where all are.
        capacity: the most tokens that are read for an image, those of its prompt included.
        cached: keep keys and values between steps; without, every step reads the whole tree again, which is slow and
            gives the same logits.
    """

    def __init__(
        self,
        model: TextTransformer,
        about: Conditioning,
        prompts: Tensor,
        padding: Tensor | None,
        capacity: int,
        cached: bool = True,
    ) -> None:
        self.model = model
        self.about = about
        ahead = 0 if about.prefix is None else about.prefix.shape[1]
        self.cache = model.cache(about.rows, ahead + capacity) if cached else None
        self.prompts, self.padding = prompts, padding
        self.hidden: Tensor  # (B, T, D) hidden states of what was read last
        self._keys = prompts[:, :0]  # (B, S) the places of all tokens of the tree
        self._tokens = prompts[:, :0]  # (B, S) those tokens; where nothing is cached
        self._seen: list[Tensor] = []  # for each step, (B, T, S) which tokens the new ones see; where nothing is cached
        self._sees: Tensor | None = None  # (B, K, S) which tokens belong to each row; None where all do
        self._places: Tensor  # (B, K) the place of each row's last token

    def begin(self, rows: int = 1) -> Tensor:
        """Reads the prompts.

        Args:
            rows: K, rows of an image that the next tokens go to.

        Returns:
            (B, V) float32 logits of the token behind each prompt.
        """
        length = self.prompts.shape[1]
        real = torch.ones_like(self.prompts, dtype=torch.bool) if self.padding is None else self.padding
        places = (real.cumsum(1) - 1).clamp_min(0)
        sees = None
        if length > 1:
            causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
            # Padding in front of a text sees itself: kernels differ in what they give for a token that sees nothing.
            sees = causal & (real[:, None] | torch.eye(length, dtype=torch.bool, device=real.device))
        last = self._read(self.prompts, places, sees)[:, -1]
        self._places = places[:, -1:].expand(-1, rows)
        if rows > 1 or self.padding is not None:
            self._sees = real[:, None].expand(-1, rows, -1)
        return self.model.logits(last).float()

    def extend(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        """Puts one token behind each of some rows.

        Args:
            tokens: (B, K) int64.
            parents: (B, K) which of the rows so far each token goes behind; None for one token behind each.

        Returns:
            (B, K, V) float32 logits of the tokens that follow.
        """
        return self._grow(tokens, parents, torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device), 1)

    def chain(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        """Puts several tokens, one behind the other, behind one row of each image; each ends a row from then on.

        Args:
            tokens: (B, T) int64.
            parents: (B, 1) which of the rows so far they go behind; None where there is only one.

        Returns:
            (B, T, V) float32 logits of the token behind each.
        """
        length, device = tokens.shape[1], tokens.device
        if parents is not None:
            parents = parents.expand(-1, length)
        steps = torch.arange(1, length + 1, device=device)
        return self._grow(tokens, parents, torch.ones(length, length, dtype=torch.bool, device=device).tril(), steps)

    def back(self, steps: Tensor) -> None:
        """Goes on from an earlier token of each image's last row, as if those behind it had not been read.

        Args:
            steps: (B,) how many tokens it goes back, fewer than the row has.
        """
        whole = torch.ones_like(self._keys, dtype=torch.bool)[:, None]
        sees = whole if self._sees is None else self._sees[:, -1:]
        behind = sees.flip(2).cumsum(2).flip(2)
        self._sees = sees & (behind > steps[:, None, None])
        self._places = self._sees.sum(2) - 1

    def _grow(self, tokens: Tensor, parents: Tensor | None, own: Tensor, steps: Tensor | int) -> Tensor:
        count = tokens.shape[1]
        if self._sees is None and (parents is not None or count > 1):
            self._sees = torch.ones_like(self._keys, dtype=torch.bool)[:, None]
        places, sees = self._places, self._sees
        if parents is not None and sees is not None:
            places, sees = places.gather(1, parents), _rows(sees, parents)
        # What is proposed behind a caption's end may stand behind the last place that there is; nothing comes of it.
        self._places = (places + steps).expand(-1, count).clamp_max(self.model.max_tokens - 1)
        if sees is not None:
            sees = torch.cat([sees.expand(-1, count, -1), own.expand(len(tokens), -1, -1)], 2)
        self._sees = sees
        return self.model.logits(self._read(tokens, self._places, sees)).float()

    def _read(self, tokens: Tensor, places: Tensor, sees: Tensor | None) -> Tensor:
        self._keys = torch.cat([self._keys, places], 1)
        if self.cache is not None:
            layout = Layout(places, sees, self._keys)
        else:
            self._tokens = torch.cat([self._tokens, tokens], 1)
            size = self._tokens.shape[1]
            self._seen.append(tokens.new_ones(*tokens.shape, size, dtype=torch.bool) if sees is None else sees)
            whole = [F.pad(seen, (0, size - seen.shape[2]), value=False) for seen in self._seen]
            layout = Layout(self._keys, torch.cat(whole, 1), self._keys)
        read = self.model(
            self._tokens if self.cache is None else tokens,
            context=self.about.context,
            prefix=self.about.prefix,
            cache=self.cache,
            layout=layout,
        )
        self.hidden = read[:, -tokens.shape[1] :]
        return self.hidden

    @property
    def tree(self) -> Layout:
        """The places of each row's last token, which tokens belong to each row, and the places of all tokens."""
        return Layout(self._places, self._sees, self._keys)

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only, in that order: those that aren't finished."""
        self.about = self.about.of(images)
        if self.cache is not None:
            self.cache.select(images)
        self._keys, self._places = self._keys[images], self._places[images]
        self._tokens = self._tokens[images]
        self._sees = None if self._sees is None else self._sees[images]
        self._seen = [seen[images] for seen in self._seen]


def _rows(sees: Tensor, rows: Tensor) -> Tensor:
    return sees.gather(1, rows[..., None].expand(-1, -1, sees.shape[2]))
