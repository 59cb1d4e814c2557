"""Rows of own data as problems: guessed columns, solutions in answers, conversations, programs."""

import json

import pytest

from pipeline.data.columns import find_columns
from pipeline.data.converters import RowError
from pipeline.data.own_rows import row_converter
from pipeline.grading import grade
from pipeline.records import Problem


def problem(row: dict, **given: str) -> Problem:
    return row_converter(find_columns(given, list(row), "own"))(row)


def parts(row: dict, **given: str) -> tuple[str, str, str]:
    found = problem(row, **given)
    return found.question, found.thought, found.answer


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"problem": "1+1?", "solution": r"So \boxed{2}."}, ("1+1?", r"So \boxed{2}.", "2")),
        ({"problem": "1+1?", "solution": "1+1=2", "answer": "2"}, ("1+1?", "1+1=2", "2")),
        ({"query": "1+1?", "response": "1+1=<<1+1=2>>2\n#### 2"}, ("1+1?", "1+1=2", "2")),
        ({"prompt": "1+1?", "label": 2}, ("1+1?", "", "2")),
        ({"prompt": "1+1?", "completion": "2"}, ("1+1?", "", "2")),
        ({"input": "1+1?", "target": 2.0}, ("1+1?", "", "2")),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, ("Add.\n\n1 1", "", "2")),
        ({"instruction": "Say 2.", "input": "", "output": "2"}, ("Say 2.", "", "2")),
        ({"question": "1?", "answer": "<think>a\nb</think>\n\n2"}, ("1?", "a\nb", "2")),
        ({"question": "1?", "answer": r"<think>a</think>It is \boxed{2}"}, ("1?", "a", "2")),
        ({"question": "1?", "answer": r"$\boxed{\frac12}$"}, ("1?", "", r"\frac12")),
        ({"question": "1?", "rationale": "a", "answer": "b\n#### 2"}, ("1?", "a", "2")),
        ({"question": "1?", "answer": "#### Sum\n1+1=2\n#### 2"}, ("1?", "#### Sum\n1+1=2", "2")),
        ({"query": "1?", "response": "a\n#### 2\nThe answer is: 2"}, ("1?", "a", "2")),
    ],
)
def test_usual_columns_and_solutions_inside_answers(row, expected):
    assert parts(row) == expected


HEADINGS = "Two tips.\n\n#### 1. Sleep\nSleep well.\n\n#### 2. Eat\nEat well."


@pytest.mark.parametrize(
    "answer", [HEADINGS, "#### Sum\nIt is 2.", "int main;\n//########\nend", "##### 5"]
)
def test_a_heading_is_no_mark_of_an_answer(answer):
    talk = [{"role": "user", "content": "Tips?"}, {"role": "assistant", "content": answer}]
    assert parts({"question": "Tips?", "answer": answer}) == ("Tips?", "", answer)
    assert parts({"messages": talk}) == ("Tips?", "", answer)


def test_given_columns_precede_the_usual_names():
    row = {"question": "no", "frage": "1+1?", "answer": "3", "meta": {"gold": "2"}}
    assert parts(row, question="frage", answer="meta.gold") == ("1+1?", "", "2")


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 more?"},
    {"role": "assistant", "content": "<think>2+2=4</think>4"},
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"prompt": TALK[:-1], "completion": TALK[-1:]},
        {"prompt": TALK[:-1], "completion": "<think>2+2=4</think>4"},
        {"prompt": TALK[:-1], "answer": "<think>2+2=4</think>4"},
        *(
            {"messages": [*TALK[:-1], TALK[-1] | {"content": "4", name: "2+2=4"}]}
            for name in ("reasoning_content", "reasoning", "thinking")
        ),
        {
            "conversations": [
                {
                    "from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]),
                    "value": m["content"],
                }
                for m in TALK
            ]
        },
    ],
)
def test_of_a_conversation_the_last_assistant_turn_is_the_answer(row):
    found = problem(row)
    assert (found.question, found.thought, found.answer) == ("And 2 more?", "2+2=4", "4")
    assert found.prompt == TALK[:-1]


def test_the_reasoning_content_of_a_row_is_its_thought():
    row = {"problem": "1+1?", "reasoning_content": "1+1=2", "answer": "2"}
    assert problem(row) == Problem(question="1+1?", thought="1+1=2", answer="2")


def test_a_conversation_of_one_question_is_a_plain_question():
    found = problem({"messages": TALK[1:3]})
    assert found == Problem(question="1+1?", answer="2") and found.prompt == "1+1?"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Sort 3 1 2", "completion": "[1, 2, 3]"}, ("Sort 3 1 2", "[1, 2, 3]")),
        ({"question": "[3, 1, 2]", "answer": "[1, 2, 3]"}, ("[3, 1, 2]", "[1, 2, 3]")),
        ({"question": '["b", "a"]', "answer": "2"}, ('["b", "a"]', "2")),
        ({"prompt": "[]", "completion": "[]"}, ("[]", "[]")),
        ({"prompt": json.dumps(TALK[:-1]), "completion": "4"}, ("And 2 more?", "4")),
    ],
)
def test_only_a_list_of_objects_is_a_list_of_messages(row, expected):
    found = problem(row)
    assert (found.question, found.answer) == expected


@pytest.mark.parametrize("answer", ["B", "(B)", "red", 1])
def test_the_right_option_is_a_letter_a_text_or_an_index_from_zero(answer):
    found = problem({"question": "Colour?", "choices": ["blue", "red"], "answer": answer})
    assert found.answer == "B" and found.choices == ("blue", "red")
    assert found.question == "Colour?\nA) blue\nB) red"


def test_options_may_have_labels_or_be_json_in_a_csv_cell():
    labelled = {"label": ["1", "2"], "text": ["blue", "red"]}
    assert problem({"question": "?", "choices": labelled, "answer": "2"}).answer == "B"
    assert problem({"question": "?", "options": '["blue", "red"]', "answer": "red"}).answer == "B"


def test_tests_are_a_program_check_with_and_without_a_solution():
    row = {"question": "Double x.", "tests": ["assert double(2) == 4"]}
    for more in ({}, {"answer": "def double(x):\n    return x + x"}):
        found = problem(row | more)
        assert grade(found, "```python\ndef double(x):\n    return 2 * x\n```").right
        assert not grade(found, "```python\ndef double(x):\n    return 3 * x\n```").right
    stdio = {"question": "Double.", "tests": {"inputs": ["2\n"], "outputs": ["4\n"]}}
    assert grade(problem(stdio), "```python\nprint(2 * int(input()))\n```").right


def test_a_row_may_name_its_judge():
    check = '{"judge": "program", "kind": "stdio", "inputs": ["1"], "outputs": ["1"]}'
    row = {"question": "Echo.", "answer": "1", "judge": check}
    assert problem(row, check="judge").check == check
    assert problem(row).check == ""
    with pytest.raises(RowError, match="field check is not JSON"):
        problem(row | {"judge": "me"}, check="judge")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "1?", "answer": float("nan")}, "missing field answer"),
        ({"question": "1?", "answer": True}, "field answer is not text"),
        ({"question": "1?", "answer": "<think>never closed"}, "not there once each"),
        ({"messages": []}, "field messages has no messages"),
        ({"messages": TALK[:-1]}, "the last message is not of the assistant"),
        ({"messages": [TALK[0], TALK[2]]}, "the message before the answer is not of the user"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "role tool is not one of"),
        ({"messages": [{"role": "user", "content": None}]}, "a message of field messages"),
        ({"messages": "hello"}, "field messages is not a list of messages"),
        ({"question": "1?", "choices": ["a", "b"], "answer": "c"}, "answer is not among"),
        ({"question": "1?", "choices": [1, 2], "answer": "A"}, "field choices is not a list"),
        (
            {"question": "1?", "choices": [*map(str, range(30))], "answer": "28"},
            "more options than",
        ),
        ({"question": "1?", "tests": [1]}, "field tests is not a list of assert"),
        ({"question": "1?", "tests": ["assert 1"]}, "a test calls no function"),
    ],
)
def test_a_row_that_is_no_problem_has_a_reason(row, reason):
    with pytest.raises(RowError, match=reason):
        problem(row)


def test_data_without_a_question_or_an_answer_is_refused_with_its_columns():
    with pytest.raises(ValueError, match="to have a question; it has: text, answer"):
        find_columns({}, ["text", "answer"], "own")
    with pytest.raises(ValueError, match="to have an answer; it has: question, text"):
        find_columns({}, ["question", "text"], "own")
