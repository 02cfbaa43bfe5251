"""The text of tokens that arrive one by one, shown as early as it is certain."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""An incomplete character at the end of a text decodes to this."""


class GrowingText:
    """The text after a prompt. It ends at the first stop string, which is not part of it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(text for text in stop if text)
        self._tokens, self._before = list(prompt), decode(prompt)
        self._new: list[int] = []
        self.text = ""
        """All text so far, its last character perhaps incomplete."""
        self.is_stopped = False
        self._shown = 0

    def add(self, token: int) -> str:
        """Add a token; returns the text that is certain and was not returned before.

        What may be the beginning of a stop string or half a character is held back.
        """
        self._new.append(token)
        whole = self._decode([*self._tokens, *self._new])
        # Decoded alone, some tokenizers would drop the leading space.
        self.text = whole[len(self._before) :] if whole.startswith(self._before) else self._decode(self._new)
        found = [place for stop in self._stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True
            return self.rest()
        whole_characters = self.text.rstrip(UNFINISHED)
        certain = len(whole_characters) - self._begun(whole_characters)
        shown, self._shown = self._shown, max(self._shown, certain)
        return self.text[shown : self._shown]

    def rest(self) -> str:
        """The text that was held back; there comes no more."""
        shown, self._shown = self._shown, len(self.text)
        return self.text[shown:]

    def _begun(self, text: str) -> int:
        """Number of characters at the end of a text that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
