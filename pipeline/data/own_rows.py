"""Rows of the user's own data as Problems, by the roles of `pipeline.data.columns`.

A row that is no problem raises RowError with a short reason, so that reasons can be counted.
"""

import builtins
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from string import ascii_uppercase
from typing import Any, Literal

from pipeline.chat.tags import END_THINK, THINK, split_completion
from pipeline.data import programs
from pipeline.data.columns import Columns, column_parts
from pipeline.data.converters import (
    Row,
    RowError,
    _multiple_choice,
    _problem,
    _text,
    choice_question,
)
from pipeline.data.sft_examples import gsm8k_trace
from pipeline.grading.equivalence import boxed
from pipeline.records import Problem

Cells = Mapping[str, object]  # of a row, by role
Fields = dict[str, Any]  # further fields of the Problem
Integers = Literal["indices", "texts", "either", "from 1"]

# A last line behind ####, as in GSM8K; MetaMath repeats it. Elsewhere #### begins a heading.
_LAST_LINE = re.compile(r"(?<!#)####(?!#)([^\n]*)(?:\n\s*The answer is:[^\n]*)?\s*\Z")
_OWN_LETTER = re.compile(r"\(?([A-Z])(?:\)\s*|[.:]\s+)(?=\S)")
SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant"}  # ShareGPT's


def row_converter(columns: Columns, *, integers: Integers = "either") -> Callable[[Row], Problem]:
    """A function of rows; it raises RowError, with the reason, for a row that is no problem.

    Args:
        integers: what integers among the answers of multiple choice are, see `integers_are`.
    """

    def convert(row: Row) -> Problem:
        cells = {role: _cell(row, column) for role, column in columns.items()}
        rest = {role: _optional(cells, role) for role in ("level", "id")}
        number = _integer(cells.get("answer"))
        if number is not None and cells.get("choices") is not None:
            if integers == "indices":
                cells["answer"] = _letter_at(number)
            elif integers == "texts":
                cells["answer"] = str(cells["answer"])
            elif integers == "from 1":
                raise RowError("answer counts the options from 1; count from 0, or write letters")
        if "text" in cells:
            return Problem(question=_required(cells, "text"), answer="")
        if "messages" in cells or "completion" in cells:
            return _conversation(_turns_of(cells), cells, rest)
        return _question_and_answer(cells, rest)

    return convert


def integers_are(rows: Iterable[Row], columns: Columns) -> Integers:
    """What the answers of multiple-choice rows are, where they are integers, in digits or as such.

    Returns:
        "indices" of the options, from 0, where all rows allow it and not all are texts; "texts" of
        options, where all rows allow that and not all are indices; "from 1" where all rows allow
        only that they are counted so; otherwise "either", and each row is judged alone. Digits, as
        of CSV, are no indices where one of them is the text of an option.

    >>> columns = {"choices": "choices", "answer": "answer"}
    >>> rows = [{"choices": ["1", "0"], "answer": 1}, {"choices": ["Rome", "Oslo"], "answer": 0}]
    >>> integers_are(rows, columns), integers_are(rows[:1], columns)
    ('indices', 'either')
    >>> integers_are([*rows[:1], {"choices": ["2", "3"], "answer": 3}], columns)
    'texts'
    """
    if not {"choices", "answer"} <= columns.keys():
        return "either"
    indices = texts = from_one = True  # every row so far allows it
    for row in rows:
        try:
            choices, answer = _cell(row, columns["choices"]), _cell(row, columns["answer"])
            if choices is None or answer is None:
                continue
            options, labels = _options(_json_cell(choices))
        except RowError:
            continue  # the row is dropped, and its reason counted, when it is converted
        number = -1 if any(labels) else _integer(answer)
        is_text = str(answer) in [option.strip() for option in options]
        counts = number is not None and not (is_text and isinstance(answer, str))
        indices &= counts and number in range(len(options))
        from_one &= counts and number in range(1, len(options) + 1)
        texts &= is_text
    if indices == texts:
        return "from 1" if from_one and not indices else "either"
    return "indices" if indices else "texts"


def question_converter(columns: Columns) -> Callable[[Row], Problem]:
    """A function of rows that reads what is asked and no answer; the answer is "".

    A conversation may end in a turn of the assistant, which is left out. Options of a
    multiple-choice question are written below it. Raises RowError for a row without a question.
    """

    def convert(row: Row) -> Problem:
        cells = {role: _cell(row, column) for role, column in columns.items()}
        rest: Fields = {role: _optional(cells, role) for role in ("level", "id")}
        role = next(role for role in ("messages", "question", "prompt") if role in cells)
        asked = _json_cell(cells[role]) if role == "messages" else _text_or_messages(cells[role])
        turns: tuple[tuple[str, str], ...] = ()
        if role == "messages" or isinstance(asked, list):
            messages = _messages(asked, role)
            messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            if not messages or messages[-1]["role"] != "user":
                raise RowError("the last message is not of the user")
            question = messages[-1]["content"].strip()
            turns = tuple((m["role"], m["content"]) for m in messages[:-1])
        else:
            question = _required(cells, role).strip()
        if cells.get("choices") is not None:
            options, _ = _options(_json_cell(cells["choices"]))
            question = choice_question(question, options)
        if not question:
            raise RowError("empty question")
        return Problem(question=question, answer="", turns=turns, **rest)

    return convert


def _question_and_answer(cells: Cells, rest: Fields) -> Problem:
    question = _text_or_messages(cells.get("question"))
    if isinstance(question, list):
        messages = _messages(question, "question")
        return _asked(messages, _required(cells, "answer"), cells, rest)
    return _answered(_required(cells, "question"), cells, rest)


def _answered(question: str, cells: Cells, rest: Fields) -> Problem:
    if cells.get("tests") is not None:
        return _program(question, cells, rest)
    if cells.get("check") not in (None, ""):
        rest["check"] = _check(_required(cells, "check"))
    answer = cells.get("answer")
    if cells.get("choices") is not None:
        options, labels = _options(_json_cell(cells["choices"]))
        letter = _letter(answer, options, labels)
        return _multiple_choice(
            question, options, letter, thought=_optional(cells, "thought"), **rest
        )
    text = _required(cells, "answer")
    # A program may contain "####", and the text of a puzzle a box: only tags divide them.
    whole = "check" in rest and THINK not in text and END_THINK not in text
    thought, answer = ("", text) if whole else split_solution(text)
    return _problem(question, answer, thought=_optional(cells, "thought") or thought, **rest)


def split_solution(text: str) -> tuple[str, str]:
    r"""(thought, answer) of an answer that may hold its solution; the thought is "" if it does not.

    >>> split_solution("2+3=5\n#### 5"), split_solution("So \\boxed{5}."), split_solution("5")
    (('2+3=5', '5'), ('So \\boxed{5}.', '5'), ('', '5'))
    >>> split_solution("<think>2+3=5</think>5")
    ('2+3=5', '5')
    >>> split_solution("#### Sum\nIt is 2+3=5.")  # a heading
    ('', '#### Sum\nIt is 2+3=5.')
    """
    if THINK in text or END_THINK in text:
        parts = split_completion(text.strip())
        if parts is None:
            raise RowError(f"{THINK} and {END_THINK} are not there once each")
        return parts[0], split_solution(parts[1])[1]
    if last := _LAST_LINE.search(text):
        return gsm8k_trace(text[: last.end(1)])
    inside = boxed(text)
    if inside is None or not inside.strip():
        return "", text.strip()
    is_box_alone = text.strip("$. \n") in (f"\\boxed{{{inside}}}", f"\\fbox{{{inside}}}")
    return ("" if is_box_alone else text.strip()), inside.strip()


def _turns_of(cells: Cells) -> list[dict[str, str]]:
    """The messages of a row: its conversation, or its prompt and completion."""
    if "messages" in cells:
        return _messages(_json_cell(cells["messages"]), "messages")
    turns = []
    for role, speaker in (("prompt", "user"), ("completion", "assistant")):
        cell = _text_or_messages(cells[role])
        if isinstance(cell, list):
            turns += _messages(cell, role)
        else:
            turns.append({"role": speaker, "content": _required(cells, role)})
    return turns


def _conversation(turns: list[dict[str, str]], cells: Cells, rest: Fields) -> Problem:
    """The problem of a conversation: its last assistant turn is the answer."""
    if turns[-1]["role"] != "assistant":
        raise RowError("the last message is not of the assistant")
    *before, last = turns
    told = {"thought": last["thought"]} if last.get("thought") else {}
    cells = {**cells, "answer": last["content"], **told}
    return _asked(before, last["content"], cells, rest)


def _asked(messages: list[dict[str, str]], answer: str, cells: Cells, rest: Fields) -> Problem:
    """The problem of messages that end in a question of the user."""
    if not messages or messages[-1]["role"] != "user":
        raise RowError("the message before the answer is not of the user")
    *before, last = messages
    turns = tuple((m["role"], m["content"]) for m in before)
    return _answered(last["content"], {**cells, "answer": answer}, rest | {"turns": turns})


def _messages(value: object, role: str) -> list[dict[str, str]]:
    """Messages as [{"role", "content"}], also from ShareGPT's {"from", "value"}."""
    if value is None:
        raise RowError(f"missing field {role}")
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        raise RowError(f"field {role} is not a list of messages")
    if not value:
        raise RowError(f"field {role} has no messages")
    found = []
    for message in value:
        speaker = str(message.get("role", message.get("from")))
        speaker = SPEAKERS.get(speaker, speaker)
        if speaker not in ("system", "user", "assistant"):
            raise RowError(f"role {speaker} is not one of system, user, assistant")
        content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
            content = "\n".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise RowError(f"a message of field {role} is not text")
        names = ("reasoning_content", "reasoning", "thinking")
        given = [message.get(name) for name in names]
        thought = next((text for text in given if isinstance(text, str) and text), "")
        found.append({"role": speaker, "content": content, "thought": thought})
    return found


def _options(value: object) -> tuple[list[str], list[str]]:
    """(texts, labels) of the options; labels are "" where the data has none."""
    labels: Any = None
    if isinstance(value, Mapping):
        labels, value = (
            value.get("label", value.get("labels")),
            value.get("text", value.get("texts")),
        )
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise RowError("field choices is not a list of texts")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(value)):
        raise RowError("labels do not fit the options")
    if len(value) > len(ascii_uppercase):
        raise RowError("more options than letters")
    value = _without_letters(value)
    return value, [str(label) for label in labels or [""] * len(value)]


def _without_letters(options: list[str]) -> list[str]:
    """The options without their own letters, where all have them.

    >>> _without_letters(["A) Rome", "B) Oslo"]), _without_letters(["A. Bell", "C. Babbage"])
    (['Rome', 'Oslo'], ['A. Bell', 'C. Babbage'])
    """
    found = [_OWN_LETTER.match(option.strip()) for option in options]
    if [match and match[1] for match in found] != list(ascii_uppercase[: len(options)]):
        return options
    return [_OWN_LETTER.sub("", option.strip(), count=1) for option in options]


def _letter(answer: object, options: list[str], labels: list[str]) -> str:
    """The letter of the right option, which is given as its label, letter, text or index from 0.

    Raises RowError for an integer that is the text of one option and the index of another, and for
    a letter that is the text of one option and stands before another.
    """
    text = _required({"answer": answer}, "answer").strip()
    letters = ascii_uppercase[: len(options)]
    if text in labels:
        return letters[labels.index(text)]
    texts = [option.strip() for option in options]
    if (letter := text.strip("().")) in list(letters):
        if text in texts and letters[texts.index(text)] != letter:
            raise RowError("answer is the text of one option and the letter of another")
        return letter
    if text not in texts:  # "B) Oslo" where the options were written so
        text = _OWN_LETTER.sub("", text, count=1)
    found = {letters[texts.index(text)]} if text in texts else set()
    if type(answer) is int and 0 <= answer < len(letters):
        found.add(letters[answer])
    if not found:
        raise RowError("answer is not among the options")
    if len(found) > 1:
        raise RowError("answer is the text of one option and the index of another")
    return found.pop()


def _integer(answer: object) -> int | None:
    """An integer answer, which a CSV cell holds in digits; None for anything else."""
    if isinstance(answer, str):
        return int(answer) if answer.isascii() and answer.isdigit() and len(answer) < 3 else None
    return answer if type(answer) is int else None


def _letter_at(index: int) -> str:
    """The letter of an option; `_multiple_choice` refuses one that the options do not reach."""
    if not 0 <= index < len(ascii_uppercase):
        raise RowError("answer is not among the options")
    return ascii_uppercase[index]


def _program(question: str, cells: Cells, rest: Fields) -> Problem:
    """A programming task: asserts as MBPP's, or {"inputs", "outputs"} as APPS'."""
    tests, code = _json_cell(cells["tests"]), _optional(cells, "answer")
    if isinstance(tests, Mapping):
        row = {"question": question, "input_output": json.dumps(dict(tests))}
        made = programs.apps(row | {"solutions": json.dumps([code or "see the tests"])})
        return _with(made, rest)
    lines = tests.splitlines() if isinstance(tests, str) else tests
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise RowError("field tests is not a list of assert statements")
    lines = [line for line in lines if line.strip()]
    stub = "" if code or not lines else f"def {_called(lines[0])}(*_):\n    pass\n"
    made = programs.mbpp({"text": question, "code": code or stub, "test_list": lines})
    return _with(made, rest if code else rest | {"answer": f"passes {len(lines)} tests"})


def _with(problem: Problem, rest: Fields) -> Problem:
    kept = {name: value for name, value in rest.items() if value}
    return Problem(**(vars(problem) | kept))


def _called(test: str) -> str:
    """The function that an assert statement calls."""
    try:
        called = programs.called_functions(test)
    except (SyntaxError, ValueError, RecursionError):
        raise RowError("a test is not Python") from None
    names = [name for name in called if not hasattr(builtins, name)]
    if not names:
        raise RowError("a test calls no function")
    return names[0]


def _check(text: str) -> str:
    try:
        judge = json.loads(text).get("judge")
    except (ValueError, AttributeError, RecursionError):
        judge = None
    if judge not in ("program", "puzzle"):
        raise RowError('field check is not JSON with "judge": "program" or "puzzle"')
    return text


def _cell(row: Row, column: str) -> object:
    """The cell of a column; joined columns are the texts that are not empty, by blank lines."""
    values = [_inside(row, part) for part in column_parts(column, row)]
    if len(values) == 1:
        return values[0]
    values = [value for value in values if value not in (None, "")]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise RowError(f"field {column} is not text")
    return "\n\n".join(texts)


def _inside(row: Row, path: str) -> object:
    """The cell of a column, or of `column.field` inside its record; None for NaN."""
    value: Any = row
    for name in [path] if path in row else path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _json_cell(value: object) -> object:
    """A list or record that a CSV cell holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # also a number of too many digits
            return value
    return value


def _text_or_messages(value: object) -> object:
    """A list of messages, also one that a CSV cell holds as JSON text; anything else as it is.

    >>> _text_or_messages("[1, 2, 3]"), _text_or_messages('[{"role": "user", "content": "1+1?"}]')
    ('[1, 2, 3]', [{'role': 'user', 'content': '1+1?'}])
    """
    found = _json_cell(value)
    if not isinstance(value, str) or not isinstance(found, list) or not found:
        return value
    return found if all(isinstance(message, Mapping) for message in found) else value


def _required(cells: Cells, role: str) -> str:
    text = _text(cells, role)
    if not text.strip():
        raise RowError("empty question" if role in ("question", "prompt") else f"empty {role}")
    return text


def _optional(cells: Cells, role: str) -> str:
    return _text(cells, role) if cells.get(role) is not None else ""
