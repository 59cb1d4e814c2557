"""Adaptive compute: number and length of samples depend on the value head and the votes.

    length   the first limit of a thought is 1 - V(prompt) of the full one; if a thought reached the
             limit, it doubles for the next round
    number   rounds of samples, each doubling the total, until a stopping rule holds

Sampling stops when a sample of the leading answer has a value of at least `sure_value`, when the
remaining of n samples cannot give another answer as many votes as the leader has, or when the
posterior probability that the leader beats the second reaches `posterior` (arXiv:2305.11860): with
a and b votes, P(x > 1/2) for x ~ Beta(a + 1, b + 1). At posterior=1 this last rule never holds.

With a value head the answer is that of the weighted vote, whose weights the last two rules do not
know, so that further samples could still change it. Without one it is that of the majority vote
over the samples that `consensus` draws, and with posterior=1 it equals that of all n samples.
"""

import math
from collections.abc import Sequence
from math import comb

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import PartialSequence
from pipeline.records import Answer
from pipeline.search.consensus import clusters, select_by_vote, value_weights
from pipeline.search.options import SearchOptions
from pipeline.search.session import SearchSession
from pipeline.search.strategy import require_temperature, sample_until, samples_of

MIN_THOUGHT_SHARE = 1 / 4


def adaptive(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The vote of up to n samples, stopped early; without a value head only votes stop it."""
    require_temperature("adaptive", options)
    if not questions:
        return []
    session = SearchSession(model, tokenizer, questions, options, max_paths=options.n)
    full = [budget.path for budget in session.budgets]
    for budget, root in zip(session.budgets, session.roots, strict=True):
        budget.path = initial_thought_limit(budget.path, root.score)
    groups: list[list[PartialSequence]] = [[] for _ in questions]
    open_, target = set(range(len(questions))), 1
    while open_:
        sample_until(
            session, groups, [target if q in open_ else len(g) for q, g in enumerate(groups)]
        )
        for q in sorted(open_):
            if _is_settled(session, q, groups[q], target):
                open_.discard(q)
            elif any(sequence.forced for sequence in groups[q]):
                session.budgets[q].path = min(full[q], 2 * session.budgets[q].path)
        target = min(options.n, max(options.first_samples, 2 * target))
    return [_vote(session, q, group) for q, group in enumerate(groups)]


def initial_thought_limit(full: int, value: float | None) -> int:
    """First limit of a thought in tokens: 1 - value of the full limit, at least a quarter.

    >>> [initial_thought_limit(100, value) for value in (None, 0.4, 0.99)]
    [100, 60, 25]
    """
    if value is None:
        return full
    return max(1, round(full * min(1.0, max(MIN_THOUGHT_SHARE, 1 - value))))


def vote_is_settled(votes: Sequence[int], rest: int, posterior: float) -> bool:
    """Whether no further samples are needed.

    Args:
        votes: number of votes of each answer, in descending order.
        rest: samples still to come.
        posterior: probability of the leader winning that is sufficient.

    >>> [vote_is_settled([3, 1], rest=rest, posterior=1.0) for rest in (1, 2)]
    [True, False]
    >>> vote_is_settled([4], rest=60, posterior=0.95)  # 1 - 1/32
    True
    """
    if rest <= 0:
        return True
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    if votes[0] - second > rest:
        return True
    return posterior < 1 and majority_probability(votes[0], second) >= posterior


def majority_probability(first: int, second: int) -> float:
    """P(x > 1/2) for x ~ Beta(first + 1, second + 1): a binomial tail, summed in integers.

    >>> majority_probability(0, 0), majority_probability(2, 0)
    (0.5, 0.875)
    """
    n = first + second + 1
    return sum(comb(n, k) for k in range(first + 1)) / 2**n


def _is_settled(session: SearchSession, q: int, group: list[PartialSequence], target: int) -> bool:
    """Whether sampling stops for question q, which should have `target` samples by now."""
    options = session.options
    if len(group) < target:  # the token budget is used up
        return True
    samples = _voters(samples_of(session, q, group))
    done = [sample for sample in samples if sample.finish_reason == "stop"]
    texts, question = [s.text for s in done], session.questions[q]
    if leader := clusters(texts, _vote_weights(session, done), question)[:1]:
        values = [value for i in leader[0] if (value := done[i].value) is not None]
        if max(values, default=-math.inf) >= options.sure_value:
            return True
    votes = [len(v) for v in clusters(texts, question=question)]
    return vote_is_settled(votes, options.n - len(group), options.posterior)


def _vote_weights(session: SearchSession, samples: Sequence[Answer]) -> list[float] | None:
    """Weights of the samples by value; None, for a majority vote, without a value head."""
    if not samples or samples[0].value is None:
        return None
    return value_weights(samples, session.options.value_temperature)


def _voters(samples: list[Answer]) -> list[Answer]:
    """The samples that vote: without a value head all, as in `consensus`.

    With one, which shortens thoughts, the finished samples whose thought was not closed by the
    limit, as an answer after a thought that was cut off is unreliable; all, if there are none.
    """
    if samples[0].value is None:
        return samples
    return [s for s in samples if s.finish_reason == "stop" and not s.forced] or samples


def _vote(session: SearchSession, q: int, group: list[PartialSequence]) -> Answer:
    """The winner of the vote of all samples of question q."""
    samples = _voters(samples_of(session, q, group))
    won = select_by_vote(samples, _vote_weights(session, samples), session.questions[q])
    return session.with_total_usage(q, won, samples=len(group))
