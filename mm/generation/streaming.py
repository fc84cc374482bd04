"""Texts in pieces, as tokens come."""

from __future__ import annotations

from mm.generation.stopping import StopStrings
from mm.generation.text import Text, opening_characters, settled_characters, settled_tokens


class Pieces:
    """Turns tokens into text as they come, and gives each part of the text as soon as nothing can change it.

    All pieces together are what ``StopStrings.cut`` leaves of the text of all tokens. The last few tokens are decoded
    again with each new one, for how a token reads can depend on those before it; the cost is linear in the tokens.

    Args:
        text: the tokenizer.
        stops: strings that end the text; None for none.
    """

    def __init__(self, text: Text, stops: StopStrings | None = None) -> None:
        self._text = text
        self._stops = StopStrings((), text) if stops is None else stops
        self._tokens: list[int] = []  # that are decoded again
        self._next = 0  # place in them where the tokens begin that are enough to go on from
        self._read = 0  # characters of their text that were read
        self._kept = ""  # what was read, but not given
        self._stopped = False

    def push(self, token: int) -> str:
        """Takes the next token and gives the text that is certain since, which may be none."""
        if self._stopped:
            return ""
        self._tokens.append(token)
        self._kept += self._settled()
        return self._certain()

    def finish(self) -> str:
        """Gives the rest of the text, when no token follows."""
        if self._stopped:
            return ""
        self._stopped = True
        return self._stops.cut(self._kept + self._text.decode([self._tokens])[0][self._read :])

    def _settled(self) -> str:
        """Reads on in the text, as far as later tokens can't change it."""
        count = settled_tokens(self._text, self._tokens)
        last = self._tokens[self._next : count]
        whole, later = self._text.decode([self._tokens[:count], last])
        settled, enough = settled_characters(self._text, whole), settled_characters(self._text, later)
        new, self._read = whole[self._read : settled], settled
        if enough > opening_characters(self._text, last):
            self._tokens, self._next, self._read = self._tokens[self._next :], count - self._next, enough
        return new

    def _certain(self) -> str:
        """Gives what was read up to white space and stop strings at its end, or whole up to a stop string."""
        begun, stop = self._stops.begun(self._kept), self._stops.find(self._kept)
        if stop is not None and stop <= begun:
            self._stopped, begun = True, stop
        certain = self._kept[:begun].rstrip()
        self._kept = self._kept[len(certain) :]
        return certain
