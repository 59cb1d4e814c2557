"""Convert one row of a data set, with the field names of the Hub, to a Problem.

A row that cannot be used raises RowError with a short reason, so that reasons can be counted: "no
answer", "missing field question". No answer is ever guessed.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from pipeline.data.sft_examples import gsm8k_trace
from pipeline.grading import grade
from pipeline.grading.arithmetic import equations_hold
from pipeline.grading.equivalence import boxed
from pipeline.records import Problem

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row cannot be converted to a Problem; the message is the reason."""


def gsm8k(row: Row) -> Problem:
    """GSM8K; the thought has the solution's sentences, one a line, without calculator marks."""
    thought, answer = gsm8k_trace(_text(row, "answer"), style="words")
    return _problem(_text(row, "question"), answer, thought=thought)


def gsm8k_equations(row: Row) -> Problem:
    """GSM8K; the thought has the equations of the calculator marks only, one a line: 48/2=24."""
    thought, answer = gsm8k_trace(_text(row, "answer"), style="equations")
    return _problem(_text(row, "question"), answer, thought=thought)


def competition_math(row: Row) -> Problem:
    r"""MATH: the answer is the last \boxed{} of the solution."""
    solution = _text(row, "solution")
    return _problem(
        _text(row, "problem"),
        boxed(solution) or "",
        thought=solution,
        level=_optional(row, "level"),
        id=_optional(row, "unique_id"),
    )


def answered_math(row: Row) -> Problem:
    """MATH-500, AIME and AMC: the answer is a field; a solution is optional."""
    return _problem(
        _text(row, "problem", "question"),
        _text(row, "answer"),
        thought=_optional(row, "solution"),
        level=_optional(row, "level"),
        id=_optional(row, "unique_id", "id"),
    )


def asdiv(row: Row) -> Problem:
    """ASDiv, without units in brackets: "9 (apples)" is 9.

    The formula is the thought if it is arithmetic and ends in the answer, one step a line.
    """
    answer = _text(row, "answer")
    if ";" in answer:  # "5 (years old); 15 (years old)": the question does not fix their order
        raise RowError("several answers")
    answer = re.sub(r"(?<=\d)\s*\(.*\)$", "", answer.strip())
    steps = [step.strip() for step in _optional(row, "formula").split(";")]
    return _problem(
        f"{_text(row, 'body')} {_text(row, 'question')}",
        answer,
        thought=_arithmetic(steps, answer),
        level=_optional(row, "grade"),
        id=_optional(row, "id"),
    )


def multiarith(row: Row) -> Problem:
    """MultiArith: a question and its final answer.

    The thought is the equation if the row has one: X=((4.0+47.0)-2.0) is (4+47)-2=49.
    """
    answer = _text(row, "final_ans").strip()
    formula = re.sub(r"\.0\b", "", _optional(row, "equation").strip().removeprefix("X="))
    formula = re.sub(r"^\((.*)\)$", r"\1", formula)
    return _problem(
        _text(row, "question"), answer, thought=_arithmetic([f"{formula}={answer}"], answer)
    )


def mawps(row: Row) -> Problem:
    """MAWPS: a question and its answer; the level is the type of the problem."""
    return _problem(_text(row, "input"), _text(row, "target"), level=_optional(row, "type"))


def aqua_rat(row: Row) -> Problem:
    """AQuA-RAT: options are written "A)5 miles"; the rationale is the thought."""
    options = [re.sub(r"^[A-Z]\)\s*", "", option) for option in _texts(row, "options")]
    letter = _text(row, "correct")
    return _multiple_choice(
        _text(row, "question"), options, letter, thought=_optional(row, "rationale")
    )


def labelled_choices(row: Row) -> Problem:
    """ARC and CommonsenseQA; options that ARC labels 1-4 become A-D."""
    choices = _record(row, "choices")
    labels, options = _texts(choices, "label"), _texts(choices, "text")
    if len(labels) != len(options) or len(labels) > len(ascii_uppercase):
        raise RowError("labels do not fit the options")
    key = _text(row, "answerKey").strip()
    if key and key not in labels:
        raise RowError("answer is not among the options")
    letter = ascii_uppercase[labels.index(key)] if key else ""
    return _multiple_choice(_text(row, "question"), options, letter, id=_optional(row, "id"))


def pubmedqa(row: Row) -> Problem:
    """PubMedQA: abstract and question. `long_answer`, the abstract's conclusion, is left out."""
    context = "\n".join(_texts(_record(row, "context"), "contexts"))
    question = f"{context}\n\n{_text(row, 'question')}\nAnswer yes, no or maybe."
    return _problem(question, _text(row, "final_decision"), id=_optional(row, "pubid"))


def prosqa(row: Row) -> Problem:
    """ProsQA; the thought has the deduction steps, one a line."""
    thought = "\n".join(_texts(row, "steps"))
    return _problem(_text(row, "question"), _text(row, "answer"), thought=thought)


def knights_knaves(row: Row) -> Problem:
    """Knights and knaves; the thought is the search: assumptions, contradictions, backtracking."""
    steps = [_text(row, "cot_head"), *_texts(row, "cot_repeat_steps"), _text(row, "cot_foot")]
    people = len(_texts(row, "names"))
    index = _optional(row, "index")
    return _problem(
        _text(row, "quiz"),
        _text(row, "solution_text"),
        thought="\n".join(step.strip() for step in steps),
        level=f"{people} people",
        id=index and f"{people}-{index}",
    )


def bbh(row: Row) -> Problem:
    """BIG-Bench Hard; options (A), (B) become A), B), tasks without options stay as written."""
    question, target = _text(row, "input"), _text(row, "target")
    task = _text(row, "task", "config")
    stem, _, tail = question.partition("\nOptions:\n")
    options = re.findall(r"^\([A-Z]\) ?(.*)$", tail, re.MULTILINE)
    if not options:
        return _problem(question, target, level=task)
    letter = re.fullmatch(r"\(([A-Z])\)", target.strip())
    if letter is None:  # in three rows the options were split at commas
        raise RowError("answer is not among the options")
    return _multiple_choice(stem, options, letter[1], level=task)


def gpqa(row: Row) -> Problem:
    """GPQA; options are ordered by a hash of the text, the same on every machine."""
    question, correct = _text(row, "Question").strip(), _text(row, "Correct Answer").strip()
    wrong = [_text(row, f"Incorrect Answer {i}").strip() for i in (1, 2, 3)]
    options = sorted([correct, *wrong], key=lambda option: _digest(f"{question}\n{option}"))
    letter = ascii_uppercase[options.index(correct)]
    return _multiple_choice(question, options, letter, id=_optional(row, "Record ID"))


def bbq(row: Row) -> Problem:
    """BBQ: three options, one of them "cannot be known"; the level is category and condition."""
    options = [_text(row, f"ans{i}") for i in range(3)]
    label = _text(row, "label")
    if label not in ("0", "1", "2"):
        raise RowError("answer is not among the options")
    category = _optional(row, "category")
    return _multiple_choice(
        f"{_text(row, 'context')}\n{_text(row, 'question')}",
        options,
        ascii_uppercase[int(label)],
        level=" ".join(filter(None, (category, _optional(row, "context_condition")))),
        id=(category and f"{category}-") + _optional(row, "example_id"),
    )


def _problem(question: str, answer: str, thought: str = "", **rest: Any) -> Problem:
    if not question.strip():
        raise RowError("empty question")
    if not answer.strip():
        raise RowError("no answer")
    question, answer, thought = question.strip(), answer.strip(), thought.strip()
    return Problem(question=question, answer=answer, thought=thought, **rest)


def _arithmetic(steps: Sequence[str], answer: str) -> str:
    """The steps, one a line, if all are true equations and the last ends in the answer; else ""."""
    arithmetic = all(re.fullmatch(r"[-+*/(). \d]+=[. \d]+", step) for step in steps)
    thought = "\n".join(steps)
    if not arithmetic or not equations_hold(thought):
        return ""
    last = steps[-1].rpartition("=")[2]
    return thought if grade(Problem(question="", answer=answer), last).passed else ""


def choice_question(stem: str, options: Sequence[str]) -> str:
    """The question with its options below it, a line each, as A), B) and so on.

    Raises RowError for an empty question, fewer than two options, or an empty one.

    >>> choice_question("Which is a pet?", ["a stone", "a cat"])
    'Which is a pet?\\nA) a stone\\nB) a cat'
    """
    if not stem.strip():
        raise RowError("empty question")
    if len(options) < 2:
        raise RowError("fewer than two options")
    if len(options) > len(ascii_uppercase):
        raise RowError("more options than letters")
    if not all(option.strip() for option in options):
        raise RowError("empty option")
    lines = [f"{a}) {o.strip()}" for a, o in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([stem.strip(), *lines])


def _multiple_choice(stem: str, options: Sequence[str], letter: str, **rest: Any) -> Problem:
    letter, question = letter.strip(), choice_question(stem, options)
    if letter and letter not in set(ascii_uppercase[: len(options)]):
        raise RowError("answer is not among the options")
    choices = tuple(option.strip() for option in options)
    return _problem(question, letter, choices=choices, **rest)


def _text(row: Row, *names: str) -> str:
    """The first of the named fields that is present, as text; a whole float without its ".0"."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            return str(int(value))  # 43.0 means 43
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise RowError(f"field {name} is not text")
    raise RowError(f"missing field {' or '.join(names)}")


def _optional(row: Row, *names: str) -> str:
    return _text({"": "", **row}, *names, "")


def _texts(row: Row, name: str) -> list[str]:
    values = row.get(name)
    if values is None:
        raise RowError(f"missing field {name}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise RowError(f"field {name} is not a list of texts")
    return values


def _record(row: Row, name: str) -> Row:
    value = row.get(name)
    if value is None:
        raise RowError(f"missing field {name}")
    if not isinstance(value, Mapping):
        raise RowError(f"field {name} is not a record")
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
