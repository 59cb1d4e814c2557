"""Step beam: grow several thoughts a step at a time, keep those the value head likes best.

Value-guided search as in arXiv:2505.17373, a block being one line of thought. A maximum over values
is fooled by a critic that is wrong once, so the answer is a vote of every thought that came to an
end, weighed by value, and each kept state comes from a different text.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import Branch
from pipeline.records import Answer
from pipeline.search.consensus import elect, value_weights
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.strategy import require_temperature, require_values, samples_of


def beam(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The vote of the thoughts that a beam of `width` states, `branches` steps each, ends in."""
    require_temperature("beam", options)
    if not questions:
        return []
    require_values("beam", model)
    session = SearchSession(
        model, tokenizer, questions, options, max_paths=options.width * options.branches
    )
    live = [[root] for root in session.roots]
    ended: list[list[Branch]] = [[] for _ in questions]
    depth = 0
    while any(live):
        grown = _grow(session, live, depth)
        for q, states in enumerate(grown):
            # Nothing grew: the budget is kept for the answer of the best state.
            if live[q] and not states:
                ended[q] = ended[q] or last_words(session, q, live[q])
                live[q] = []
                continue
            best = sorted(distinct(states), key=lambda b: -b.score)[: options.width]
            ended[q] += [b for b in best if b.ended]
            live[q] = [b for b in best if not b.ended]
            if len(ended[q]) >= options.width:
                live[q] = []
        depth += 1
    return [decide(session, q, branches) for q, branches in enumerate(ended)]


def decide(session: SearchSession, q: int, ended: Sequence[Branch], **notes) -> Answer:
    """The vote of whole thoughts, weighed by value, with all that its question has cost."""
    samples = samples_of(session, q, ended)
    weights = value_weights(samples, session.options.value_temperature)
    return session.with_total_usage(q, elect(samples, weights, session.questions[q]), **notes)


def last_words(
    session: SearchSession, q: int, states: Sequence[Branch], temperature: float | None = None
) -> list[Branch]:
    """The best of some open states, carried on to its answer with all that is left."""
    best = max(states, key=lambda b: b.score or 0.0)
    request = ExpandRequest(q=q, branch=best, stream=(9,), temperature=temperature)
    (branch,) = session.finish([request])
    return [best if branch is None else branch]


def distinct(states: Sequence[Branch]) -> list[Branch]:
    """The states that differ in what they say, in their order: twins would fill the beam."""
    return list({branch.ids: branch for branch in reversed(states)}.values())[::-1]


def _grow(session: SearchSession, live: list[list[Branch]], depth: int) -> list[list[Branch]]:
    """`branches` steps from every state of every question; the root has as many as a full beam."""
    options = session.options
    requests = []
    for q, states in enumerate(live):
        each = options.branches * (options.width if depth == 0 else 1)
        requests += [
            ExpandRequest(q=q, branch=state, stream=(1, depth, k, i))
            for k, state in enumerate(states)
            for i in range(each)
        ]
    grown: list[list[Branch]] = [[] for _ in live]
    for request, branch in zip(requests, session.steps(requests), strict=True):
        if branch is not None:
            grown[request.q].append(branch)
    return grown
