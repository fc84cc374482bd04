"""Trees of tokens: whatever is read in whatever order, logits are those of plain passes over each row's own tokens."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import FILL, MAKERS, VOCABULARY, logits, subject
from torch import Tensor

from mm.generation.decoder import Decoder

CAPACITY = 80
Rows = list[list[list[int]]]  # the tokens of each row of each image


class Tree:
    """A decoder, and the rows that it should have.

    Args:
        kind: of ``MAKERS``.
        lengths: of the prompts of the first images.
        rows: of each image to begin with.
        data: draws all that is read.
        cached: whether the decoder caches.
    """

    def __init__(self, kind: str, lengths: list[int], rows: int, data: st.DataObject, cached: bool) -> None:
        self.subject, self.data = subject(kind), data
        self.images = list(range(len(lengths)))
        prompts = [self.tokens(length) for length in lengths]
        longest = max(lengths)
        padded = torch.tensor([[FILL] * (longest - len(prompt)) + prompt for prompt in prompts])
        real = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
        about = self.subject.about.of(torch.tensor(self.images))
        padding = None if real.all() else real
        self.decoder = Decoder(self.subject.model, about, padded, padding, CAPACITY, cached)
        with torch.inference_mode():
            first = self.decoder.begin(rows)
        self.rows: Rows = [[prompt] * rows for prompt in prompts]
        self.check(first[:, None].expand(-1, rows, -1))

    def tokens(self, count: int) -> list[int]:
        """Draws tokens."""
        return self.data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=count, max_size=count))

    def parents(self, count: int) -> list[list[int]]:
        """Draws for each image which rows to go on from."""
        some = st.lists(st.integers(0, len(self.rows[0]) - 1), min_size=count, max_size=count)
        return [self.data.draw(some) for _ in self.images]

    def check(self, found: Tensor) -> None:
        """Compares (B, K, V) logits with those of plain passes over the rows."""
        expected = [
            torch.stack([logits(self.subject, image, row)[-1] for row in rows])
            for image, rows in zip(self.images, self.rows, strict=True)
        ]
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-3)

    def extend(self, count: int | None) -> None:
        """Puts one token behind each row, or behind ``count`` drawn ones."""
        parents = None if count is None else self.parents(count)
        new = [self.tokens(count or len(self.rows[0])) for _ in self.images]
        chosen = parents or [list(range(len(self.rows[0]))) for _ in self.images]
        self.rows = [
            [[*rows[parent], token] for parent, token in zip(behind, tokens, strict=True)]
            for rows, behind, tokens in zip(self.rows, chosen, new, strict=True)
        ]
        self.check(self.decoder.extend(torch.tensor(new), None if parents is None else torch.tensor(parents)))

    def chain(self, count: int) -> None:
        """Puts ``count`` tokens behind a drawn row."""
        parents = self.parents(1)
        new = [self.tokens(count) for _ in self.images]
        self.rows = [
            [[*rows[parent], *tokens[: end + 1]] for end in range(count)]
            for rows, (parent,), tokens in zip(self.rows, parents, new, strict=True)
        ]
        self.check(self.decoder.chain(torch.tensor(new), torch.tensor(parents)))

    def keep(self) -> None:
        """Goes on with some of the images, in a drawn order."""
        order = self.data.draw(st.permutations(range(len(self.images))))
        left = order[: self.data.draw(st.integers(1, len(order)))]
        self.decoder.keep(torch.tensor(left))
        self.images, self.rows = [self.images[i] for i in left], [self.rows[i] for i in left]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(MAKERS)),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["extend", "behind", "chain", "keep"]), st.integers(1, 4)), max_size=5),
    st.booleans(),
    st.data(),
)
def test_a_tree_is_its_rows(
    kind: str, lengths: list[int], rows: int, steps: list[tuple[str, int]], cached: bool, data: st.DataObject
) -> None:
    tree = Tree(kind, lengths, rows, data, cached)
    with torch.inference_mode():
        for step, count in steps:
            if step == "keep":
                tree.keep()
            elif step == "chain":
                tree.chain(count)
            else:
                tree.extend(None if step == "extend" else count)
