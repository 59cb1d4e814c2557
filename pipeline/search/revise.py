"""Self-correction: a step that does not hold is rewound and sampled anew.

Three judges of a step, each a strategy of its own, so that their results are never mixed up:

    revise       the value head: V falls by more than `fall` over the step
    calculator   a program: a written sum of the step does not come out
    random_cut   a coin: the "revision" of O1-nano, which cuts its thought at random; a baseline

The first way is greedy, what is sampled anew has the temperature of the options. `retries` bounds
the steps taken back in all; when they are spent, the best try of the step stands.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import Branch
from pipeline.grading.arithmetic import equations_hold, equations_in
from pipeline.records import Answer
from pipeline.search.beam import last_words
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.strategy import require_temperature, require_values

# (thinker, question, state before the step, state behind it) -> whether the step may stand
Judge = Callable[[SearchSession, int, Branch, Branch], bool]


def revise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The greedy way, its steps taken back where the value falls sharply."""
    if questions:
        require_values("revise", model)
    return _walk("revise", _value_keeps, model, tokenizer, questions, options)


def calculator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The greedy way, its steps taken back where a sum is false. A program helps: say so."""
    return _walk("calculator", _sums_hold, model, tokenizer, questions, options)


def random_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The greedy way, steps taken back by the toss of a coin."""
    return _walk("random_cut", _coin, model, tokenizer, questions, options)


@dataclass
class _Way:
    """One question's thought so far, and the tries of its next step that were taken back."""

    tip: Branch
    steps: int = 0
    taken_back: int = 0
    tries: list[Branch] = field(default_factory=list)
    open: bool = True


def _walk(
    name: str,
    judge: Judge,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    require_temperature(name, options)
    if not questions:
        return []
    session = SearchSession(model, tokenizer, questions, options, max_paths=1 + options.retries)
    max_paths = [_Way(root) for root in session.roots]
    while asked := [q for q, way in enumerate(max_paths) if way.open]:
        grown = session.steps([_next(q, max_paths[q]) for q in asked])
        for q, branch in zip(asked, grown, strict=True):
            _advance(session, q, max_paths[q], branch, judge)
    return [
        session.answer(
            q, way.tip, rewinds=way.taken_back, own_revisions=own_revisions(session, way.tip)
        )
        for q, way in enumerate(max_paths)
    ]


def _next(q: int, way: _Way) -> ExpandRequest:
    greedy = 0.0 if not way.tries else None
    stream = (2, way.steps, len(way.tries))
    return ExpandRequest(q=q, branch=way.tip, stream=stream, temperature=greedy)


def _advance(
    session: SearchSession, q: int, way: _Way, branch: Branch | None, judge: Judge
) -> None:
    """Take the step, or take it back and leave the tip where it is."""
    if branch is None:  # the budget is kept for the answer
        (way.tip,), way.open = last_words(session, q, way.tries[:1] or [way.tip], 0.0), False
        return
    if not judge(session, q, way.tip, branch):
        way.tries.append(branch)
        if way.taken_back < session.options.retries:
            way.taken_back += 1
            return
        # The first try is the greedy one: without a value head it stands.
        branch = max(way.tries, key=lambda b: b.score) if _valued(way.tries) else way.tries[0]
    way.tip, way.tries, way.steps = branch, [], way.steps + 1
    way.open = not branch.ended and len(branch.ids) < session.budgets[q].path


def own_revisions(session: SearchSession, branch: Branch) -> int:
    """How often the thought writes a sum again with another result: the model's own revisions."""
    results: dict[tuple, set] = {}
    for each in equations_in(session.answer(0, branch).thought):
        results.setdefault((each.operands, each.operators), set()).add(each.result)
    return sum(len(found) - 1 for found in results.values())


def _value_keeps(session: SearchSession, q: int, before: Branch, after: Branch) -> bool:
    return before.score - after.score <= session.options.fall


def _sums_hold(session: SearchSession, q: int, before: Branch, after: Branch) -> bool:
    return equations_hold(session.text(after.ids[len(before.ids) :]))


def _coin(session: SearchSession, q: int, before: Branch, after: Branch) -> bool:
    toss = random.Random(f"{session.options.seed}/{after.ids}")
    return toss.random() < 0.5


def _valued(tries: Sequence[Branch]) -> bool:
    return tries[0].score is not None
