"""Step-level beam search: extend several thoughts by one step, keep those of the highest value.

Value-guided search as in arXiv:2505.17373 with one line of thought as a block. Taking the maximum
would select the errors of the value head, so the answer is a vote of all completed thoughts,
weighted by value, and duplicates are removed from the beam.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import PartialSequence
from pipeline.records import Answer
from pipeline.search.consensus import select_by_vote, value_weights
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.strategy import require_temperature, require_values, samples_of


def beam(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The weighted vote of the thoughts completed by a beam of `width` states."""
    require_temperature("beam", options)
    if not questions:
        return []
    require_values("beam", model)
    session = SearchSession(
        model, tokenizer, questions, options, max_paths=options.width * options.branches
    )
    live = [[root] for root in session.roots]
    ended: list[list[PartialSequence]] = [[] for _ in questions]
    depth = 0
    while any(live):
        grown = _grow(session, live, depth)
        for q, states in enumerate(grown):
            # No state got a step: the rest of the budget is for the answer of the best one.
            if live[q] and not states:
                ended[q] = ended[q] or finish_best(session, q, live[q])
                live[q] = []
                continue
            best = sorted(without_duplicates(states), key=lambda b: -b.known_score)[: options.width]
            ended[q] += [b for b in best if b.ended]
            live[q] = [b for b in best if not b.ended]
            if len(ended[q]) >= options.width:
                live[q] = []
        depth += 1
    return [vote_of(session, q, sequences) for q, sequences in enumerate(ended)]


def vote_of(
    session: SearchSession, q: int, ended: Sequence[PartialSequence], **notes: object
) -> Answer:
    """The vote of completed sequences, weighted by value, with the total usage of question q."""
    samples = samples_of(session, q, ended)
    weights = value_weights(samples, session.options.value_temperature)
    won = select_by_vote(samples, weights, session.questions[q])
    return session.with_total_usage(q, won, **notes)


def finish_best(
    session: SearchSession,
    q: int,
    states: Sequence[PartialSequence],
    temperature: float | None = None,
) -> list[PartialSequence]:
    """The open state of the highest score, decoded to its answer with the remaining budget.

    Returns a list of one sequence: the state itself if no tokens are left.
    """
    best = max(states, key=lambda b: b.score or 0.0)
    request = ExpandRequest(q=q, sequence=best, stream=(9,), temperature=temperature)
    (sequence,) = session.finish([request])
    return [best if sequence is None else sequence]


def without_duplicates(states: Sequence[PartialSequence]) -> list[PartialSequence]:
    """The states without those of equal tokens, in order of first occurrence."""
    return list({sequence.ids: sequence for sequence in reversed(states)}.values())[::-1]


def _grow(
    session: SearchSession, live: list[list[PartialSequence]], depth: int
) -> list[list[PartialSequence]]:
    """The states after `branches` steps from each state of each question.

    The root gets as many steps as a full beam together.
    """
    options = session.options
    requests = []
    for q, states in enumerate(live):
        each = options.branches * (options.width if depth == 0 else 1)
        requests += [
            ExpandRequest(q=q, sequence=state, stream=(1, depth, k, i))
            for k, state in enumerate(states)
            for i in range(each)
        ]
    grown: list[list[PartialSequence]] = [[] for _ in live]
    for request, sequence in zip(requests, session.steps(requests), strict=True):
        if sequence is not None:
            grown[request.q].append(sequence)
    return grown
