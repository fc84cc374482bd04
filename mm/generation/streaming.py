"""Texts in pieces, as tokens come."""

from __future__ import annotations

from mm.generation.stopping import StopStrings
from mm.generation.text import Text, opening_characters, settled_characters, settled_tokens, shared_characters


class Pieces:
    """Turns tokens into text as they come, and gives each part of the text as soon as nothing can change it.

    All pieces together are what ``StopStrings.end`` leaves of the text of all tokens. The last few tokens are decoded
    again with each new one, for how a token reads can depend on those before it; the cost is linear in the tokens.

    Args:
        text: the tokenizer.
        stops: strings that end the text; None for none.
        prompt: what the text begins with; stop strings in it don't end the text.
    """

    def __init__(self, text: Text, stops: StopStrings | None = None, prompt: str = "") -> None:
        self._text = text
        self._stops = StopStrings((), text) if stops is None else stops
        self._tokens: list[int] = []  # that are decoded again
        self._next = 0  # place in them where the tokens begin that are enough to go on from
        self._read = 0  # characters of their text that were read
        self._kept = ""  # what was read, but not given
        self._prompt = prompt  # what is left of it to be read
        self._spared = 0  # characters of what is kept that are the prompt's
        self._stopped = False

    def push(self, token: int) -> str:
        """Takes the next token and gives the text that is certain since, which may be none."""
        if self._stopped:
            return ""
        self._tokens.append(token)
        self._keep(self._settled())
        return self._certain()

    def finish(self) -> str:
        """Gives the rest of the text, when no token follows."""
        if self._stopped:
            return ""
        self._stopped = True
        self._keep(self._text.decode([self._tokens])[0][self._read :])
        return (self._kept[: self._spared] + self._stops.cut(self._kept[self._spared :])).rstrip()

    def _keep(self, new: str) -> None:
        """Takes characters that were read; those of the prompt are counted, as far as the text begins with it."""
        count = shared_characters(self._prompt, new)
        self._kept += new
        self._spared += count
        self._prompt = self._prompt[count:] if count == len(new) else ""

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
        behind = self._kept[self._spared :]
        begun, stop = self._stops.begun(behind), self._stops.find(behind)
        if stop is not None and stop <= begun:
            self._stopped, begun = True, stop
        certain = self._kept[: self._spared + begun].rstrip()
        self._kept, self._spared = self._kept[len(certain) :], max(0, self._spared - len(certain))
        return certain
