"""Sequences that share prefixes: each holds its last step and points to what came before.

A search tree of 4,096-token thoughts would copy every path into every node otherwise, and its
memory would grow with the square of the length. Tokens and slots of the KV pool are two chains,
since an ended sequence needs its tokens only: the slots of a step are freed as soon as no sequence
can be continued from it.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False, slots=True)
class TokenPath:
    """The tokens of one step with what the policy gave them, behind those of `parent`."""

    parent: "TokenPath | None" = None
    own_ids: tuple[int, ...] = ()
    own_logprobs: tuple[float, ...] = ()  # of the policy at temperature 1
    own_values: tuple[float, ...] = ()  # V before each token; empty without a value head
    length: int = 0  # tokens with those of the parents

    def then(
        self, ids: tuple[int, ...], logprobs: tuple[float, ...], values: tuple[float, ...]
    ) -> "TokenPath":
        """The path with one more step; the parents are shared, not copied."""
        return TokenPath(self, ids, logprobs, values, self.length + len(ids))

    def steps(self) -> "list[TokenPath]":
        """The steps from the first to this one."""
        found: list[TokenPath] = []
        step: TokenPath | None = self
        while step is not None:
            found.append(step)
            step = step.parent
        return found[::-1]


class CachedPath:
    """The slots that hold keys and values of one step's tokens, behind those of `parent`.

    When the last sequence that continues from here is gone, the slots are given back.

    Args:
        free: called once with `slots` when nothing refers to this path any more.
    """

    __slots__ = ("__weakref__", "length", "parent", "slots")

    def __init__(
        self,
        parent: "CachedPath | None",
        slots: torch.Tensor,
        free: Callable[[torch.Tensor], None],
    ):
        self.parent, self.slots = parent, slots
        self.length: int = len(slots) + (0 if parent is None else parent.length)
        weakref.finalize(self, free, slots).atexit = False

    def all_slots(self) -> torch.Tensor:
        """The slots of all tokens of the sequence, in order, (length,) int64 on the CPU."""
        return torch.cat([path.slots for path in self._up()][::-1])

    def _up(self) -> "Iterator[CachedPath]":
        path: CachedPath | None = self
        while path is not None:
            yield path
            path = path.parent


@dataclass(frozen=True, kw_only=True, eq=False)
class PartialSequence:
    """A prompt and the completion generated for it so far.

    `value` is V of the current state while the sequence can be continued, V before the end token
    once it has ended, and None without a value head.
    """

    prompt_tokens: int
    tokens: TokenPath = TokenPath()  # the completion
    value: float | None = None
    score: float | None = None  # what a search ranks by; set by the caller
    closed: bool = False  # the thought is closed; further tokens are visible
    forced: bool = False  # the thought was closed by the budget, not by the model
    ended: bool = False  # the last token is an end token
    cached: CachedPath | None = field(default=None, repr=False)  # None: cannot be continued
    logits_V: torch.Tensor | None = field(default=None, repr=False)  # of the next token

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return self.tokens.length

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the completion, copied from all steps."""
        return tuple(i for step in self.tokens.steps() for i in step.own_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probability of every token under the policy at temperature 1, in nats."""
        return tuple(x for step in self.tokens.steps() for x in step.own_logprobs)

    @property
    def values(self) -> tuple[float, ...]:
        """V before each token; empty without a value head."""
        return tuple(x for step in self.tokens.steps() for x in step.own_values)

    @property
    def known_value(self) -> float:
        """V of a sequence of a policy with a value head."""
        assert self.value is not None
        return self.value

    @property
    def known_score(self) -> float:
        """The score of a sequence that has one, as with a value head every sequence of a search."""
        assert self.score is not None
        return self.score

    @property
    def known_cached(self) -> CachedPath:
        """The cached path of a sequence that can be continued."""
        assert self.cached is not None
        return self.cached
