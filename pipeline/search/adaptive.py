"""Think longer where the model doubts: depth and number of samples follow the value head and votes.

    depth    a thought may first be as long as the prompt's V leaves doubt, 1 - V of the full
             length; where thoughts were cut, the next round's may be twice as long
    number   rounds of samples, each twice as many, until the answer is sure

It is sure when a sample of the leading answer has a value of `sure_value`, when the rest of n
samples cannot turn the vote, or when the posterior that the leader beats the second is sure
(arXiv:2305.11860): with a and b votes, P(x > 1/2) of Beta(a + 1, b + 1). With a value head the
answer is that of the weighted vote. Without one it is that of the plain vote, sample i is the one
that consensus draws, and with posterior 1 the answer is that of all n samples.
"""

import math
from collections.abc import Sequence
from math import comb

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import Branch
from pipeline.records import Answer
from pipeline.search.consensus import clusters, elect, value_weights
from pipeline.search.options import SearchOptions
from pipeline.search.session import SearchSession
from pipeline.search.strategy import fill, require_temperature, samples_of

LEAST_DEPTH = 1 / 4


def adaptive(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The vote of as many of n samples as it takes. Without a value head, only votes decide."""
    require_temperature("adaptive", options)
    if not questions:
        return []
    session = SearchSession(model, tokenizer, questions, options, max_paths=options.n)
    full = [budget.path for budget in session.budgets]
    for budget, root in zip(session.budgets, session.roots, strict=True):
        budget.path = first_depth(budget.path, root.score)
    groups: list[list[Branch]] = [[] for _ in questions]
    open_, target = set(range(len(questions))), 1
    while open_:
        fill(session, groups, [target if q in open_ else len(g) for q, g in enumerate(groups)])
        for q in sorted(open_):
            if _settled(session, q, groups[q], target):
                open_.discard(q)
            elif any(branch.forced for branch in groups[q]):
                session.budgets[q].path = min(full[q], 2 * session.budgets[q].path)
        target = min(options.n, max(options.first_samples, 2 * target))
    return [_vote(session, q, group) for q, group in enumerate(groups)]


def first_depth(full: int, value: float | None) -> int:
    """The first bound of a thought: the share of doubt of the full one, a quarter at least.

    >>> first_depth(100, None), first_depth(100, 0.4), first_depth(100, 0.99)
    (100, 60, 25)
    """
    if value is None:
        return full
    return max(1, round(full * min(1.0, max(LEAST_DEPTH, 1 - value))))


def decided(votes: Sequence[int], rest: int, posterior: float) -> bool:
    """Whether a vote is over: `votes` by answer, most first, `rest` samples to come.

    >>> decided([3, 1], rest=1, posterior=1.0), decided([3, 1], rest=2, posterior=1.0)
    (True, False)
    >>> decided([4], rest=60, posterior=0.95)  # 1 - 1/32
    True
    """
    if rest <= 0:
        return True
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    return votes[0] - second > rest or leads(votes[0], second) >= posterior > 0


def leads(first: int, second: int) -> float:
    """P(x > 1/2) of x ~ Beta(first + 1, second + 1): a binomial tail, exact.

    >>> leads(0, 0), leads(2, 0)
    (0.5, 0.875)
    """
    n = first + second + 1
    return sum(comb(n, k) for k in range(first + 1)) / 2**n


def _settled(session: SearchSession, q: int, group: list[Branch], target: int) -> bool:
    options = session.options
    if len(group) < target:  # the budget has ended
        return True
    samples = samples_of(session, q, _counted(group))
    done = [sample for sample in samples if sample.finish_reason == "stop"]
    texts, question = [s.text for s in done], session.questions[q]
    if leader := clusters(texts, _weights(session, done), question)[:1]:
        values = [done[i].value for i in leader[0] if done[i].value is not None]
        if max(values, default=-math.inf) >= options.sure_value:
            return True
    votes = [len(v) for v in clusters(texts, question=question)]
    return decided(votes, options.n - len(group), options.posterior)


def _weights(session: SearchSession, samples: Sequence[Answer]) -> list[float] | None:
    """Of a weighted vote where there is a value head; None for a plain one."""
    if not samples or samples[0].value is None:
        return None
    return value_weights(samples, session.options.value_temperature)


def _counted(group: list[Branch]) -> list[Branch]:
    """Thoughts that came to their own end, where there are any: a cut one guesses."""
    return [branch for branch in group if not branch.forced] or group


def _vote(session: SearchSession, q: int, group: list[Branch]) -> Answer:
    samples = samples_of(session, q, _counted(group))
    won = elect(samples, _weights(session, samples), session.questions[q])
    return session.with_total_usage(q, won, samples=len(group))
