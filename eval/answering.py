"""Answers of one chunk of an evaluation as records."""

import time
from collections.abc import Sequence
from dataclasses import asdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.baseline import LAST_NUMBER, grade_whole_text
from eval.row_types import Record
from pipeline.chat.plain import has_reasoning_tokens
from pipeline.chat.prompts import Question, as_messages
from pipeline.grading import grade
from pipeline.records import Answer, Problem, Usage
from pipeline.search import STRATEGIES, SearchOptions


def answer_chunk(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
    skipped: set[Problem],
    examples: Sequence[dict[str, str]],
) -> list[Record]:
    """Records of one chunk; `skipped` problems, which are too long, have an empty answer.

    The strategy gets the questions, never the expected answers.
    """
    begin = time.perf_counter()
    answered = [p for p in problems if p not in skipped]
    answers = STRATEGIES[strategy](model, tokenizer, questions_of(answered, examples), options)
    seconds = (time.perf_counter() - begin) / len(problems)
    found = dict(zip(answered, answers, strict=True))
    empty = Answer(text="", usage=Usage(), finish_reason="too_long")
    baseline = not has_reasoning_tokens(tokenizer)
    return [_row(problem, found.get(problem, empty), seconds, baseline) for problem in problems]


def questions_of(problems: Sequence[Problem], examples: Sequence[dict[str, str]]) -> list[Question]:
    """Return the questions, each behind the examples if there are any."""
    if not examples:
        return [problem.prompt for problem in problems]
    return [[*examples, *as_messages(problem.prompt)] for problem in problems]


def _row(problem: Problem, answer: Answer, seconds: float, baseline: bool) -> Record:
    verdict = grade_whole_text(problem, answer.text) if baseline else grade(problem, answer.text)
    return {
        "id": problem.id,
        "level": problem.level,
        "question": problem.question,
        "expected": problem.answer,
        "answer": answer.text,
        "correct": verdict.passed,
        "no_verdict": verdict.right is None,
        "check": problem.check,
        "reasoning_tokens": not baseline,
        "last_number": verdict.why == LAST_NUMBER,
        "finish_reason": answer.finish_reason,
        "forced": answer.forced,
        "notes": answer.notes,
        "usage": asdict(answer.usage),
        "value": answer.value,
        "reasoning": answer.thought,
        "seconds": seconds,
    }
