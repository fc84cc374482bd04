"""Strings at which a text stops."""

from __future__ import annotations

from collections.abc import Sequence

from mm.errors import OptionError
from mm.generation.text import Text, opening_characters, settled_characters, settled_tokens, shared_characters


class StopStrings:
    """Strings that end a text where the first of them begins.

    A text is what the tokenizer decodes, so without white space at its ends: a stop string of white space is there once
    something else follows it.

    Args:
        stops: the strings, with capital letters and white space as the model's texts have them; none to never stop.
        text: the tokenizer.

    Raises:
        OptionError: a string is empty, or no text that the tokenizer decodes has it.
    """

    def __init__(self, stops: Sequence[str], text: Text) -> None:
        self._stops = tuple(stops)
        self._text = text
        self._longest = max(map(len, self._stops), default=0)
        for stop in self._stops:
            self._check(stop)

    def _check(self, stop: str) -> None:
        """Refuses a stop string that would never stop anything."""
        if not stop:
            raise OptionError(f"stop {stop!r} is empty; give at least one character")
        written: list[str] = []
        for phrase in (stop, f"a{stop}a"):
            try:
                written += self._text.decode(self._text.spellings(phrase))
            except OptionError:  # white space only, or not in the vocabulary
                continue
        if not any(stop in one for one in written):
            instead = f"they have {written[0]!r} for it" if written and stop.strip() else "give another"
            raise OptionError(f"stop {stop!r} is never in the texts of this model; {instead}")

    def ended(self, tokens: Sequence[int], new: int = 1) -> bool:
        """Says whether the last tokens of a text bring a stop string into it.

        Only as many of the tokens are decoded as could matter.

        Args:
            tokens: the T ids that were generated so far.
            new: how many of the last ones weren't asked about before.
        """
        if not self._stops:
            return False
        back = new + self._longest
        while True:
            start = max(0, len(tokens) - back)
            start = settled_tokens(self._text, tokens[:start])
            earlier = tokens[start : max(start, len(tokens) - new)]
            earlier = earlier[: settled_tokens(self._text, earlier)]
            now, before = self._text.decode([tokens[start:], earlier])
            settled = settled_characters(self._text, before)
            if start == 0 or settled - opening_characters(self._text, earlier) >= self._longest:
                return any(now.find(stop, max(0, settled - len(stop) + 1)) >= 0 for stop in self._stops)
            back *= 2

    def find(self, text: str) -> int | None:
        """Finds where the first stop string in a text begins; None where there is none."""
        return min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=None)

    def begun(self, text: str) -> int:
        """Finds where in a text a stop string begins of which the end may follow; the text's length where none does."""
        starts = range(max(0, len(text) - self._longest + 1), len(text))
        whole = (start for start in starts if any(stop.startswith(text[start:]) for stop in self._stops))
        return next(whole, len(text))

    def cut(self, text: str) -> str:
        """Cuts a text where its first stop string begins, and white space before that."""
        place = self.find(text)
        return text if place is None else text[:place].rstrip()

    def end(self, text: str, prompt: str = "") -> tuple[str, bool]:
        """Cuts a text where its first stop string behind the prompt begins, and says whether there is one.

        Args:
            text: the whole text.
            prompt: the text of the tokens it begins with, which may read differently where others follow.
        """
        start = shared_characters(text, prompt)
        return (text[:start] + self.cut(text[start:])).strip(), self.find(text[start:]) is not None

    def decode(
        self, rows: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]] | None = None
    ) -> list[tuple[str, bool]]:
        """Turns rows of tokens into texts, each ended as ``end`` does.

        Args:
            rows: ids of each text, the prompt's included.
            prompts: ids that each of them begins with; None for none.
        """
        texts = self._text.decode(rows)
        begun = [""] * len(texts) if prompts is None else self._text.decode(prompts)
        return [self.end(text, prompt) for text, prompt in zip(texts, begun, strict=True)]
