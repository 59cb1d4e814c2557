"""Convert rows of programming tasks to Problems whose answer is a program.

`check` has the tests, as JSON for `pipeline.sandbox.grade_program`. The solution of a row is the
answer. It also runs before assert statements, which may use its classes and helper functions.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.converters import Row, RowError, _optional, _problem, _text, _texts
from pipeline.records import Problem

STDIN = "Write a Python program that reads stdin and prints the answer to stdout."


def humaneval(row: Row) -> Problem:
    """HumanEval: a function to complete; its docstring states the task."""
    prompt, function = _text(row, "prompt"), _text(row, "entry_point")
    reference = prompt + _text(row, "canonical_solution")
    check = {
        "kind": "asserts",
        "function": function,
        "setup": reference,
        "tests": f"{_text(row, 'test')}\n\ncheck(candidate)\n",
        # Runs before a completion that is only the body of the function.
        "prelude": prompt,
    }
    question = f"Complete this Python function.\n\n{prompt.strip()}" if prompt.strip() else ""
    return _program(question, reference, check, id=_optional(row, "task_id"))


def mbpp(row: Row) -> Problem:
    """MBPP: a task in one sentence, with the first test, which names the function."""
    code, tests = _text(row, "code").replace("\r", ""), _texts(row, "test_list")
    if not tests:
        raise RowError("no tests")
    setup = f"{code}\n{_optional(row, 'test_setup_code')}\n"
    check = {
        "kind": "asserts",
        "function": _tested_function(code, tests[0]),
        "setup": setup,
        "tests": "\n".join(tests),
    }
    text = _text(row, "text", "prompt").strip()
    question = f"{text}\nThe program must pass: {tests[0]}" if text else ""
    return _program(question, code, check, id=_optional(row, "task_id"))


def apps(row: Row) -> Problem:
    """APPS: tests on stdin and stdout or on a named function; two fields are JSON texts."""
    tests, solutions = _json(row, "input_output"), _json(row, "solutions")
    inputs, outputs = (tests.get(k) if isinstance(tests, dict) else None for k in _IN_OUT)
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise RowError("inputs do not fit the outputs")
    if not inputs:
        raise RowError("no tests")
    if not isinstance(solutions, list) or not all(isinstance(s, str) for s in solutions):
        raise RowError("field solutions is not a list of texts")
    check: dict[str, Any] = {"kind": "stdio", "inputs": inputs, "outputs": outputs}
    if function := tests.get("fn_name"):
        check |= {"kind": "calls", "function": str(function)}
    elif not all(isinstance(text, str) for text in (*inputs, *outputs)):
        check |= {k: [_lines(case) for case in check[k]] for k in _IN_OUT}
    starter = _optional(row, "starter_code").rstrip()
    task = f"Begin with:\n{starter}" if starter else STDIN
    question = _text(row, "question").strip()
    return _program(
        f"{question}\n\n{task}" if question else "",
        solutions[0] if solutions else "",
        check,
        level=_optional(row, "difficulty"),
        id=_optional(row, "problem_id", "id"),
    )


def codeforces(row: Row) -> Problem:
    """open-r1/codeforces: tests are records of input and output; rows have no solution."""
    cases = row.get("official_tests") or row.get("examples")
    if cases is None:
        raise RowError("missing field official_tests or examples")
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise RowError("field official_tests is not a list of records")
    if not cases:
        raise RowError("no tests")
    check = {f"{k}s": [_text(case, k) for case in cases] for k in ("input", "output")}
    parts = [_text(row, "description"), *(_optional(row, f"{k}_format") for k in _IN_OUT_TEXT)]
    if not parts[0].strip():
        raise RowError("empty question")
    question = "\n\n".join(filter(None, (part.strip() for part in parts)))
    answer = f"passes {len(cases)} tests"
    return _program(
        f"{question}\n\n{STDIN}",
        answer,
        {"kind": "stdio", **check},
        level=_optional(row, "rating"),
        id=_optional(row, "id"),
    )


_IN_OUT = ("inputs", "outputs")
_IN_OUT_TEXT = ("input", "output")


def _program(question: str, answer: str, check: Mapping[str, object], **rest: str) -> Problem:
    return _problem(question, answer, check=json.dumps({"judge": "program", **check}), **rest)


def _tested_function(code: str, test: str) -> str:
    """The name of the function of the solution that an assert statement calls."""
    try:
        defined = {n.name for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef)}
        called = [name for name in called_functions(test) if name in defined]
    except (SyntaxError, ValueError, RecursionError):
        raise RowError("solution or test is not Python") from None
    if not called:
        raise RowError("test calls no function of the solution")
    return called[0]


def called_functions(code: str) -> list[str]:
    """The names of the functions that a program calls, methods left out; outer calls come first.

    Raises:
        SyntaxError, ValueError, RecursionError: the text is not Python.

    >>> called_functions("assert sorted(first([3, 1])) == []")
    ['sorted', 'first']
    """
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [function.id for function in calls if isinstance(function, ast.Name)]


def _json(row: Row, name: str) -> Any:
    text = _text(row, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of too many digits
        raise RowError(f"field {name} is not valid JSON") from None


def _lines(case: object) -> str:
    """The text of a test case, which some rows store as a list of lines."""
    return "\n".join(map(str, case)) if isinstance(case, list) else str(case)
