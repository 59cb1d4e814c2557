"""One token budget over everything spent on an answer.

A caller reserves what it may need before sampling and books what it used afterwards, so samples,
sequences and corrections that are decoded together never exceed the total.
"""

from dataclasses import dataclass

from pipeline.records import Usage


@dataclass
class TokenBudget:
    """The tokens of one question, in total and, as `path`, from the prompt to one answer.

    >>> budget = TokenBudget(total=10, path=8, prompt_tokens=5)
    >>> budget.reserve(8), budget.reserve(8)
    (8, 2)
    >>> budget.spend(8, reasoning=3, visible=1)
    >>> budget.left, budget.usage.completion_tokens
    (4, 4)
    """

    total: int
    path: int
    prompt_tokens: int
    reasoning: int = 0
    visible: int = 0
    reserved: int = 0

    @property
    def left(self) -> int:
        """Tokens neither spent nor reserved."""
        return self.total - self.reasoning - self.visible - self.reserved

    @property
    def usage(self) -> Usage:
        """Everything spent so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            reasoning_tokens=self.reasoning,
            visible_tokens=self.visible,
        )

    def reserve(self, wanted: int, *, keep: int = 0) -> int:
        """Reserve up to `wanted` tokens, leaving at least `keep`; returns the number reserved."""
        granted = max(0, min(wanted, self.left - keep))
        self.reserved += granted
        return granted

    def spend(self, granted: int, *, reasoning: int, visible: int) -> None:
        """Book the tokens used out of `granted` reserved ones; the others become free."""
        assert reasoning + visible <= granted <= self.reserved, "spent more than reserved"
        self.reserved -= granted
        self.reasoning += reasoning
        self.visible += visible
