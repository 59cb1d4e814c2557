"""Puzzles of reasoning-gym: thoughts with checked lines, and answers that scorers may get."""

import json

import pytest

from pipeline.data.problems import available_splits, load_problems
from pipeline.data.reasoning_gym_tasks import puzzle_problems
from pipeline.data.reasoning_gym_thoughts import THOUGHTS, check_thought
from pipeline.data.registry import SOURCES
from pipeline.grading import grade
from pipeline.grading.puzzles import EVALUATED, harmless
from pipeline.records import Problem

# A question of every family, a true thought, and the same thought with one false line.
CAESAR = "Decrypt this Caesar cipher text: KHOOR BRX. Provide only the decrypted text"
HAND_MADE = {
    "caesar_cipher": (
        CAESAR,
        {"rotation": 3},
        "shift 1: KHOOR -> JGNNQ\nshift 2: KHOOR -> IFMMP\nshift 3: KHOOR -> HELLO\n"
        "HELLO is a word.\nshift 3: KHOOR -> HELLO\nshift 3: BRX -> YOU",
        ("shift 3: BRX -> YOU", "shift 3: BRX -> YOY"),
    ),
    "emoji_mystery": (
        "Decode: \N{GRINNING FACE}\U000e0138\U000e0159",
        {},
        "U+E0138 -> 72 -> H\nU+E0159 -> 105 -> i",
        ("72 -> H", "72 -> G"),
    ),
    "gcd": (
        "Find the Greatest Common Divisor (GCD) of these numbers: 12, 18. Give only the GCD",
        {},
        "18 = 1 * 12 + 6\n12 = 2 * 6 + 0\nThe last divisor is 6.",
        ("12 = 2 * 6 + 0", "12 = 1 * 6 + 6"),
    ),
    "letter_counting": (
        'How many times does the letter "a" appear in the text: "Ann saw a map"?',
        {},
        "Ann: 1, total 1\nsaw: 1, total 2\na: 1, total 3\nmap: 1, total 4",
        ("a: 1, total 3", "a: 2, total 3"),
    ),
    "spell_backward": (
        "Spell this word backward (example: sun -> nus): tea",
        {},
        "t, then e: et\net, then a: aet",
        ("et, then a: aet", "et, then a: ate"),
    ),
}


def test_every_family_with_a_thought_is_tested_by_hand():
    assert set(HAND_MADE) == set(THOUGHTS)


@pytest.mark.parametrize("task", HAND_MADE)
def test_a_thought_is_the_one_written_by_hand_and_every_line_holds(task):
    question, metadata, thought, _ = HAND_MADE[task]
    assert THOUGHTS[task](question, metadata) == thought
    assert all(check_thought(task, question, thought))


@pytest.mark.parametrize("task", HAND_MADE)
def test_one_false_line_is_found(task):
    question, _, thought, (true, false) = HAND_MADE[task]
    held = check_thought(task, question, thought.replace(true, false))
    assert held.count(False) >= 1 and len(held) == len(thought.splitlines())


@pytest.mark.parametrize("task", HAND_MADE)
@pytest.mark.parametrize("line", ["", "I am sure.", "1 = 1 * 1 + 0", "shift 3: ABC -> XYZ"])
def test_a_line_about_nothing_does_not_hold(task, line):
    assert not any(check_thought(task, HAND_MADE[task][0], f"{line}\n{line}"))


@pytest.mark.parametrize(
    "answer",
    [
        "exit()",
        "__import__('os').system('true')",
        "().__class__",
        "open('/etc/passwd').read()",
        "[x for x in (1,)]",
        "print ('equal')",
        "a.b",
        "f'{1}'",
        "lambda: 1",
        "x if y else z",
    ],
)
def test_an_answer_that_is_more_than_a_value_is_not_passed_to_a_scorer_that_evaluates(answer):
    assert not any(harmless(task, answer) for task in EVALUATED)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("countdown", "94*4 - 61 - 6"),
        ("puzzle24", "(8 - 2) * (3 + 1)"),
        ("simple_integration", "x**2/2 + sin(x) + C"),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]"),
        ("spiral_matrix", "1 2 3 4"),
        ("caesar_cipher", "anything (at all)"),
    ],
)
def test_an_ordinary_answer_is_passed_to_the_scorer(task, answer):
    assert harmless(task, answer)


# ---- with the package ----


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("reasoning_gym", reason="pip install 'thinkhead[puzzles]'")


@pytest.mark.parametrize("task", THOUGHTS)
def test_thoughts_of_the_package_hold_line_by_line_and_lead_to_the_answer(task, package):
    problems = puzzle_problems(task, "train", 25)
    for problem in problems:
        assert problem.thought and all(check_thought(task, problem.question, problem.thought))
    assert all(p.source == f"puzzle:{task}/train" for p in problems)


def test_a_puzzle_is_scored_by_the_package_and_only_the_full_mark_counts(package):
    problem = puzzle_problems("caesar_cipher", "test", 1)[0]
    assert grade(problem, problem.answer).passed
    assert grade(problem, f"\\boxed{{{problem.answer}}}").passed
    # To this the package gives a part of a mark.
    assert grade(problem, f"{problem.answer} OR SO").right is False
    assert not grade(problem, "").passed


def test_another_solution_of_a_puzzle_is_right_too(package):
    problem = puzzle_problems("countdown", "test", 1)[0]
    assert grade(problem, f"0*1 + {problem.answer}").passed is False  # 0 and 1 were not given
    assert grade(problem, f"({problem.answer})").passed


def test_train_and_test_share_no_question(package):
    train = {p.question for p in puzzle_problems("spell_backward", "train", 3000)}
    assert not train & {p.question for p in puzzle_problems("spell_backward", "test")}


def test_the_same_name_gives_the_same_puzzles_and_loads_like_a_data_set(package):
    assert load_problems("puzzle:gcd", "test", limit=3) == puzzle_problems("gcd", "test", 3)
    assert available_splits("puzzle:gcd") == ("train", "test")
    assert "puzzle:gcd" not in SOURCES


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [
        ("gsm_symbolic", "train", "is made of GSM8K test templates"),
        ("composite", "train", "is no task of its own"),
        ("cesar_cipher", "train", "no task 'cesar_cipher': did you mean 'caesar_cipher'"),
        ("gcd", "dev", "split='dev' of puzzle:gcd is not one of train, test"),
    ],
)
def test_a_task_that_cannot_be_had_says_why(task, split, message, package):
    with pytest.raises(ValueError, match=message):
        puzzle_problems(task, split)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"pip install 'thinkhead\[puzzles\]'"):
        puzzle_problems("gcd", "train")


def test_a_check_names_the_puzzle_not_its_answer(package):
    problem = puzzle_problems("gcd", "test", 1)[0]
    assert json.loads(problem.check)["task"] == "gcd" and isinstance(problem, Problem)
    assert "answer" not in problem.check
