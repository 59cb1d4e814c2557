"""One budget over everything spent on an answer.

Whoever samples first holds what it may need, and books what it took: so the sum over samples,
branches and revisions that run side by side never exceeds the total.
"""

from dataclasses import dataclass

from pipeline.records import Usage


@dataclass
class TokenBudget:
    """The tokens of one question. `path` bounds one way from the prompt to an answer.

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
        """What is neither spent nor held."""
        return self.total - self.reasoning - self.visible - self.reserved

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            reasoning_tokens=self.reasoning,
            visible_tokens=self.visible,
        )

    def reserve(self, wanted: int, *, keep: int = 0) -> int:
        """Set aside up to `wanted` tokens, leaving `keep`; how many there were."""
        granted = max(0, min(wanted, self.left - keep))
        self.reserved += granted
        return granted

    def spend(self, granted: int, *, reasoning: int, visible: int) -> None:
        """What of the tokens set aside was spent; the rest is free again."""
        assert reasoning + visible <= granted <= self.reserved, "spent more than was held"
        self.reserved -= granted
        self.reasoning += reasoning
        self.visible += visible
