"""From the tokens of a completion to the pieces of text that a client may see.

Nothing of a thought is ever in a visible piece: a token is visible only behind the END_THINK that
closes the thought, and a thought that is opened again is hidden as well. Joined, the visible pieces
are the same text whether they were streamed or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pipeline.chat.plain import token_id
from pipeline.chat.tags import END_THINK, THINK

REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence is decoded to


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """Further text of an answer; one of the two is usually empty."""

    visible: str = ""
    thought: str = ""


class TextStream:
    """The text of one completion, piece by piece.

    Args:
        in_thought: the completion begins inside a thought.
        stop: texts that end the answer; they are not part of it. Thoughts may contain them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        in_thought: bool,
        stop: Sequence[str] = (),
    ):
        self._think_id, self._end_think_id = (token_id(tokenizer, t) for t in (THINK, END_THINK))
        self._in_thought = in_thought
        self._visible, self._thought = _Decoder(tokenizer), _Decoder(tokenizer)
        self._answer = _Trimmed(stop)
        self._reasoning = _Trimmed(())

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the answer."""
        return self._answer.stopped

    def feed(self, token: int) -> TextDelta:
        """The text that is certain once this token is known."""
        if token == self._think_id:
            self._in_thought = True
        elif token == self._end_think_id:
            self._in_thought = False
        elif self._in_thought:
            return TextDelta(thought=self._reasoning.feed(self._thought.feed(token)))
        else:
            return TextDelta(visible=self._answer.feed(self._visible.feed(token)))
        return TextDelta()

    def finish(self) -> TextDelta:
        """The text that was held back, once the completion has ended."""
        return TextDelta(
            visible=self._answer.finish(self._visible.finish()),
            thought=self._reasoning.finish(self._thought.finish()),
        )


def split_text(stream: TextStream, ids: Sequence[int]) -> tuple[str, str]:
    """(thought, visible text) of a whole completion."""
    deltas = [*map(stream.feed, ids), stream.finish()]
    return "".join(d.thought for d in deltas), "".join(d.visible for d in deltas)


class _Decoder:
    """Text of tokens, as soon as it can no longer change.

    The tokens since the last certain text are decoded together with those that preceded them, as
    some tokenizers drop a space in front of the first token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0  # of the context, and behind the tokens given out

    def feed(self, token: int) -> str:
        self._ids.append(token)
        new = self._new_text()
        if new.endswith(REPLACEMENT):  # a character whose other bytes follow
            return ""
        self._start, self._read = self._read, len(self._ids)
        return new

    def finish(self) -> str:
        new = self._new_text() if self._read < len(self._ids) else ""
        self._read = len(self._ids)
        return new

    def _new_text(self) -> str:
        before = self._text(self._ids[self._start : self._read])
        return self._text(self._ids[self._start :])[len(before) :]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class _Trimmed:
    """Text without white space at its ends, up to the first stop text."""

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(stop)
        self._held = ""
        self._begun = self.stopped = False

    def feed(self, text: str) -> str:
        """What is certain: no stop text can begin in it and it does not end in white space."""
        if self.stopped:
            return ""
        self._held += text
        found = [i for s in self._stop if (i := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found), last=True)
        return self._release(len(self._held) - self._unfinished_stop(), last=False)

    def finish(self, text: str) -> str:
        """The rest of the text."""
        given = self.feed(text)
        return given if self.stopped else given + self._release(len(self._held), last=True)

    def _unfinished_stop(self) -> int:
        """Length of the longest end of the text that a stop text begins with."""
        lengths = [
            n
            for stop in self._stop
            for n in range(1, min(len(stop), len(self._held) + 1))
            if self._held.endswith(stop[:n])
        ]
        return max(lengths, default=0)

    def _release(self, length: int, *, last: bool) -> str:
        certain, rest = self._held[:length], self._held[length:]
        if not self._begun:
            certain = certain.lstrip()
        given = certain.rstrip()
        self._held = "" if last else certain[len(given) :] + rest
        self._begun = self._begun or bool(given)
        return given
