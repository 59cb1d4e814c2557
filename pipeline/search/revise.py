"""Self-correction at inference: steps that fail a check are rewound and sampled again.

Three checks of a step, each a strategy of its own:

    revise       V falls by at most `fall` over the step
    calculator   all equations written in the step are correct, checked by a program
    random_cut   a coin toss: the random cuts of O1-nano's "revision", as a baseline

The first attempt at a step is greedy, further ones have the temperature of the options. `retries`
limits the rewinds of an answer; once they are used up, the best attempt at a step is kept.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import NO_TOKEN
from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import PartialSequence
from pipeline.grading.arithmetic import equations_hold, equations_in
from pipeline.records import Answer
from pipeline.search.beam import finish_best
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.strategy import require_temperature, require_values

# (session, question index, state before the step, state after it) -> whether the step is kept
StepCheck = Callable[[SearchSession, int, PartialSequence, PartialSequence], bool]


def revise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """Greedy decoding with steps rewound when the value falls by more than `options.fall`."""
    if questions:
        require_values("revise", model)
    return _decode_with_checks("revise", _value_holds, model, tokenizer, questions, options)


def calculator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """Greedy decoding with steps rewound when an equation is wrong.

    It uses an external program, which results obtained with it should state.
    """
    return _decode_with_checks("calculator", _equations_hold, model, tokenizer, questions, options)


def random_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """Greedy decoding with steps rewound at random, half of them."""
    return _decode_with_checks("random_cut", _random_check, model, tokenizer, questions, options)


@dataclass
class _Trajectory:
    """The thought of one question so far and the rejected attempts at its next step."""

    sequence: PartialSequence
    steps: int = 0
    rewinds: int = 0
    rejected: list[PartialSequence] = field(default_factory=list)
    open: bool = True


def _decode_with_checks(
    name: str,
    check: StepCheck,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """Decode all questions step by step, rewinding steps that fail the check."""
    require_temperature(name, options)
    if not questions:
        return []
    session = SearchSession(model, tokenizer, questions, options, max_paths=1 + options.retries)
    if session.end_think_id == NO_TOKEN:
        raise ValueError(
            f"{name} checks the steps of a thought, and this model writes no thought: train it "
            "with stages.sft, or take the strategy greedy or consensus"
        )
    trajectories = [_Trajectory(root) for root in session.roots]
    while open_ := [q for q, trajectory in enumerate(trajectories) if trajectory.open]:
        grown = session.steps([_next(q, trajectories[q]) for q in open_])
        for q, sequence in zip(open_, grown, strict=True):
            _advance(session, q, trajectories[q], sequence, check)
    return [_answer(session, q, trajectory) for q, trajectory in enumerate(trajectories)]


def _next(q: int, trajectory: _Trajectory) -> ExpandRequest:
    """The request for the next step: greedy at first, sampled once an attempt was rejected."""
    temperature = None if trajectory.rejected else 0.0
    stream = (2, trajectory.steps, len(trajectory.rejected))
    return ExpandRequest(q=q, sequence=trajectory.sequence, stream=stream, temperature=temperature)


def _advance(
    session: SearchSession,
    q: int,
    trajectory: _Trajectory,
    step: PartialSequence | None,
    check: StepCheck,
) -> None:
    """Append the step, or count a rewind and leave the trajectory as it is."""
    rejected = trajectory.rejected
    if step is None:  # the remaining budget is for the answer
        states = rejected[:1] or [trajectory.sequence]
        (trajectory.sequence,) = finish_best(session, q, states, temperature=0.0)
        trajectory.open = False
        return
    if not check(session, q, trajectory.sequence, step):
        rejected.append(step)
        if trajectory.rewinds < session.options.retries:
            trajectory.rewinds += 1
            return
        # Without scores the first attempt, the greedy one, is kept.
        step = rejected[0] if step.score is None else max(rejected, key=lambda r: r.known_score)
    trajectory.sequence, trajectory.rejected = step, []
    trajectory.steps += 1
    trajectory.open = not step.ended and step.length < session.budgets[q].path


def _answer(session: SearchSession, q: int, trajectory: _Trajectory) -> Answer:
    corrections = count_self_corrections(session, trajectory.sequence)
    return session.answer(
        q, trajectory.sequence, rewinds=trajectory.rewinds, own_revisions=corrections
    )


def count_self_corrections(session: SearchSession, sequence: PartialSequence) -> int:
    """How often the thought repeats an equation with another result."""
    results: dict[tuple, set] = {}
    for each in equations_in(session.answer(0, sequence).thought):
        results.setdefault((each.operands, each.operators), set()).add(each.result)
    return sum(len(found) - 1 for found in results.values())


def _value_holds(
    session: SearchSession, q: int, before: PartialSequence, after: PartialSequence
) -> bool:
    return before.known_score - after.known_score <= session.options.fall


def _equations_hold(
    session: SearchSession, q: int, before: PartialSequence, after: PartialSequence
) -> bool:
    return equations_hold(session.text(after.ids[before.length :]))


def _random_check(
    session: SearchSession, q: int, before: PartialSequence, after: PartialSequence
) -> bool:
    coin = random.Random(f"{session.options.seed}/{session.questions[q]}/{after.ids}")
    return coin.random() < 0.5
