"""One row of every data set, and what must come out of it."""

import pytest

from pipeline.data.converters import RowError
from pipeline.data.programs import STDIN
from pipeline.data.registry import SOURCES

ARC_ROW = {
    "id": "Mercury_1",
    "question": "What is hot?",
    "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}

APPS_ROW = {
    "question": "Twice?",
    "solutions": '["print(2 * int(input()))"]',
    "input_output": '{"inputs": ["1\\n"], "outputs": ["2\\n"]}',
}

# One good row of every data set and what must come out of it: (question, answer, thought).
GOOD_ROWS = {
    "gsm8k": (
        {"question": "3 pens of $400?", "answer": "3*400 = $<<3*400=1200>>1,200\n#### 1,200"},
        ("3 pens of $400?", "1200", "3*400 = $1,200"),
    ),
    "gsm8k_equations": (
        {"question": "3 pens of $400?", "answer": "3*400 = $<<3*400=1200>>1,200\n#### 1,200"},
        ("3 pens of $400?", "1200", "3*400=1200"),
    ),
    "math": (
        {"problem": "Half of 1?", "solution": "It is \\boxed{\\frac{1}{2}}.", "level": "Level 1"},
        ("Half of 1?", "\\frac{1}{2}", "It is \\boxed{\\frac{1}{2}}."),
    ),
    "math500": (
        {
            "problem": "1+1?",
            "solution": "\\boxed{2}",
            "answer": "2",
            "level": 1,
            "unique_id": "t/1",
        },
        ("1+1?", "2", "\\boxed{2}"),
    ),
    "aime24": (
        {"id": 60, "problem": "1+1?", "answer": "002", "solution": "Count."},
        ("1+1?", "002", "Count."),
    ),
    "amc23": ({"question": "20+7?", "answer": 27.0}, ("20+7?", "27", "")),
    "asdiv": (
        {"body": "Ann has 7 apples.", "question": "And 2?", "answer": "9 (red apples)"}
        | {"formula": "7+2=9"},
        ("Ann has 7 apples. And 2?", "9", "7+2=9"),
    ),
    "multiarith": (
        {"question": "7+2-1?", "final_ans": "8", "equation": "X=((7.0+2.0)-1.0)"},
        ("7+2-1?", "8", "(7+2)-1=8"),
    ),
    "mawps": ({"input": "1.5+0.34?", "target": 1.84}, ("1.5+0.34?", "1.84", "")),
    "aqua_rat": (
        {"question": "1+1?", "options": ["A)1", "B)2"], "rationale": "Count.", "correct": "B"},
        ("1+1?\nA) 1\nB) 2", "B", "Count."),
    ),
    "arc_easy": (ARC_ROW, ("What is hot?\nA) ice\nB) fire\nC) snow", "B", "")),
    "arc_challenge": (ARC_ROW, ("What is hot?\nA) ice\nB) fire\nC) snow", "B", "")),
    "commonsense_qa": (ARC_ROW, ("What is hot?\nA) ice\nB) fire\nC) snow", "B", "")),
    "pubmedqa": (
        {"question": "Does it?", "context": {"contexts": ["We saw.", "It did."]}}
        | {"final_decision": "yes", "long_answer": "It does indeed."},
        ("We saw.\nIt did.\n\nDoes it?\nAnswer yes, no or maybe.", "yes", ""),
    ),
    "prosqa": (
        {"question": "Is Al a b or c?", "steps": ["Al is a d.", "Every d is a b."]}
        | {"answer": "Al is a b."},
        ("Is Al a b or c?", "Al is a b.", "Al is a d.\nEvery d is a b."),
    ),
    "knights_knaves": (
        {"quiz": "Who?", "names": ["Al", "Bo"], "solution_text": "Al is a knight.", "index": 4}
        | {"cot_head": "Think.", "cot_repeat_steps": ["Assume Al."], "cot_foot": "Done."},
        ("Who?", "Al is a knight.", "Think.\nAssume Al.\nDone."),
    ),
    "bbh": (
        {"input": "Which?\nOptions:\n(A) x\n(B) y", "target": "(B)", "task": "snarks"},
        ("Which?\nA) x\nB) y", "B", ""),
    ),
    "gpqa_diamond": (
        {"Question": "Spin?", "Correct Answer": "1/2", "Incorrect Answer 1": "0"}
        | {"Incorrect Answer 2": "1", "Incorrect Answer 3": "2"},
        None,  # the order follows from a hash: tested below
    ),
    "bbq": (
        {"context": "Al and Bo met.", "question": "Who lied?", "ans0": "Al", "ans1": "Bo"}
        | {"ans2": "Unknown", "label": 2, "category": "Age", "context_condition": "ambig"},
        ("Al and Bo met.\nWho lied?\nA) Al\nB) Bo\nC) Unknown", "C", ""),
    ),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n"}
        | {"entry_point": "f", "test": "def check(f):\n    assert f(1) == 1"},
        ("Complete this Python function.\n\ndef f(x):", "def f(x):\n    return x", ""),
    ),
    "mbpp": (
        {"task_id": 1, "text": "Give it back.", "code": "def f(x):\r\n    return x"}
        | {"test_list": ["assert f(1) == 1", "assert f(2) == 2"], "test_setup_code": ""},
        (
            "Give it back.\nThe program must pass: assert f(1) == 1",
            "def f(x):\n    return x",
            "",
        ),
    ),
    "apps": (APPS_ROW, (f"Twice?\n\n{STDIN}", "print(2 * int(input()))", "")),
    "apps_sample": (APPS_ROW, (f"Twice?\n\n{STDIN}", "print(2 * int(input()))", "")),
    "codeforces": (
        {"id": "1/A", "description": "Twice?", "official_tests": [{"input": "1", "output": "2"}]},
        (f"Twice?\n\n{STDIN}", "passes 1 tests", ""),
    ),
}


@pytest.mark.parametrize("name", [name for name, (_, expected) in GOOD_ROWS.items() if expected])
def test_a_good_row_becomes_a_problem(name):
    row, expected = GOOD_ROWS[name]
    problem = SOURCES[name].convert(row)
    assert (problem.question, problem.answer, problem.thought) == expected


def test_every_data_set_has_a_good_row_here():
    assert set(GOOD_ROWS) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_without_one_of_its_fields_is_a_problem_or_says_what_is_missing(name):
    row, _ = GOOD_ROWS[name]
    reasons = []
    for gone in row:
        try:
            SOURCES[name].convert({key: row[key] for key in row if key != gone})
        except RowError as error:
            reasons.append(str(error))
    assert reasons
    assert all(reason.startswith("missing field") for reason in reasons)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("value", [None, [], [1], {}, {"text": 1}, "", 3, 0.5, True, float("inf")])
def test_nonsense_in_a_field_raises_nothing_but_row_errors(name, value):
    row, _ = GOOD_ROWS[name]
    for field in row:
        try:
            problem = SOURCES[name].convert(row | {field: value})
        except RowError:
            continue
        assert problem.question and problem.answer


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("asdiv", {"answer": "5 (years old); 15 (years old)"}, "several answers"),
        ("bbh", {"target": "z"}, "answer is not among the options"),
        ("bbh", {"target": "(C)"}, "answer is not among the options"),
        ("bbh", {"input": "Which?\nOptions:\n(A) x"}, "fewer than two options"),
        ("arc_easy", {"answerKey": "E"}, "answer is not among the options"),
        ("arc_easy", {"choices": {"text": ["x"], "label": []}}, "labels do not fit the options"),
        ("aqua_rat", {"options": ["x"] * 27}, "more options than letters"),
        ("commonsense_qa", {"answerKey": ""}, "no answer"),  # the hidden test labels
        ("math", {"solution": "It is \\boxed{}."}, "no answer"),
        ("prosqa", {"steps": "Al is a b."}, "field steps is not a list of texts"),
        ("pubmedqa", {"context": ["We saw."]}, "field context is not a record"),
        ("bbq", {"label": 3}, "answer is not among the options"),
        ("mbpp", {"test_list": ["assert g(1) == 1"]}, "test calls no function of the solution"),
        ("mbpp", {"code": "def f(:"}, "solution or test is not Python"),
        ("mbpp", {"test_list": []}, "no tests"),
        ("apps", {"input_output": "{"}, "field input_output is not valid JSON"),
        ("apps", {"input_output": "9" * 5000}, "field input_output is not valid JSON"),
        ("apps", {"input_output": '{"inputs": [], "outputs": []}'}, "no tests"),
        ("apps", {"solutions": "[]"}, "no answer"),
        ("codeforces", {"official_tests": []}, "missing field official_tests or examples"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_with_its_reason(name, change, reason):
    with pytest.raises(RowError) as caught:
        SOURCES[name].convert(GOOD_ROWS[name][0] | change)
    assert str(caught.value) == reason


def test_pubmedqa_never_shows_the_long_answer():
    assert "indeed" not in str(SOURCES["pubmedqa"].convert(GOOD_ROWS["pubmedqa"][0]))


def test_gpqa_options_stand_in_an_order_that_follows_from_the_text():
    row, _ = GOOD_ROWS["gpqa_diamond"]
    rows = [row | {"Question": f"Spin of particle {i}?"} for i in range(40)]
    swapped = [r | {"Incorrect Answer 1": "2", "Incorrect Answer 3": "0"} for r in rows]
    first = [SOURCES["gpqa_diamond"].convert(r) for r in rows]
    assert first == [SOURCES["gpqa_diamond"].convert(r) for r in swapped]
    assert {p.choices["ABCD".index(p.answer)] for p in first} == {"1/2"}
    assert {p.answer for p in first} == set("ABCD")
