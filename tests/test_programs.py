"""The verdict on programs, for every kind of test."""

import gzip
import json
import os
from pathlib import Path

import pytest

from pipeline.data.registry import SOURCES
from pipeline.grading import grade
from pipeline.grading.programs import grade_program, same_value
from pipeline.sandbox import Limits
from pipeline.sandbox._confined import decode, encode

MIRROR = Path(os.environ.get("THINKHEAD_DATA") or Path(__file__).parents[2] / "shared" / "data")
GENEROUS = Limits(wall_seconds=60)

STDIO = {"kind": "stdio", "inputs": ["2\n3\n", "5\n1\n"], "outputs": ["5\n6\n", "6\n5\n"]}
REFERENCE = "def f(x):\n    return [x + 1]\n"
ASSERTS = {
    "kind": "asserts",
    "function": "f",
    "setup": REFERENCE,
    "tests": "def check(g):\n    assert g(1) == [2]\n    assert g(41) == [42]\ncheck(candidate)\n",
}
CALLS = {"kind": "calls", "function": "f", "inputs": [[1], [41]], "outputs": [[2], [42]]}

ALWAYS = "class E(list):\n    __eq__ = lambda a, b: True\n    __ne__ = lambda a, b: False\n"
PRINTS = "a = int(input())\nb = int(input())\n"
FORGED_OUTPUT = {
    "nothing": "",
    "first line only": PRINTS + "print(a + b)",
    "an extra line": PRINTS + "print(a + b)\nprint(a * b)\nprint('ok')",
    "all on one line": PRINTS + "print(a + b, a * b)",
    "a marker": "print('PASSED')\nprint('exit code: 0')",
    "leave early": "import sys\nsys.exit(0)",
    "leave hard": "import os\nos._exit(0)",
    "the outputs of the first case": "print(5)\nprint(6)",
    "right, then a crash": PRINTS + "print(a + b)\nprint(a * b)\nraise SystemExit(1)",
    "right and more without end": PRINTS + "print(a + b)\nprint(a * b)\nwhile 1: print()\n",
    "looks for the answer": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and "
    "'outputs' in o: print(o['outputs'][0])",
}
FORGED_VALUE = {
    "nothing": "",
    "always equal": ALWAYS + "def f(x): return E([0])",
    "always equal inside": ALWAYS + "def f(x): return [E()]",
    "an object": "class A:\n    __eq__ = lambda a, b: True\ndef f(x): return A()",
    "leave early": "import os\nos._exit(0)",
    "leave when asked": "def f(x): raise SystemExit(0)",
    "exit when asked": "def f(x): exit()",
    "raise": "def f(x): raise AssertionError('passed')",
    "patch the builtins": "import builtins\nbuiltins.len = lambda x: 0\ndef f(x): return [0]",
    "patch the encoder": "import sys\nm = sys.modules['__main__']\n"
    "m.encode = lambda v: ['list', 2]\ndef f(x): return 0",
    "a verdict for an answer": "import os\ndef f(x):\n    for fd in range(3, 60):\n        try: "
    'os.write(fd, b\'{"verdict": "passed"}\\n\')\n        except OSError: pass\n    return 0',
    "walk the frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for v in list(frame.f_locals.values()):\n            if isinstance(v, dict) and "
    "'tests' in v: return eval(v['tests'])\n        frame = frame.f_back",
    "kill the grader": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return 0",
    "the output of the first case": "def f(x): return [2]",
    "a set without order": "def f(x): return {x + 1}",
    "true for one": "def f(x): return [True] if x == 0 else [x]",
}


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (PRINTS + "print(a + b)\nprint(a * b)", STDIO),
        ("Adding:\n```python\n" + PRINTS + "print(a + b)\nprint(a * b)\n```\n", STDIO),
        (PRINTS + "print(a + b)\nprint(a * b)\nexit()\nprint(0)", STDIO),
        (REFERENCE, ASSERTS),
        ("def f(x):\n    print('a note')\n    return [x - 1 + 2]", ASSERTS),
        (REFERENCE, CALLS),
        ("class Solution:\n    def f(self, x):\n        return (x + 1,)", CALLS),
    ],
)
def test_a_right_program_passes(program, test):
    verdict = grade_program(program, test, GENEROUS)
    assert verdict.passed, verdict.why


def test_a_completion_of_the_body_alone_is_put_behind_its_prompt():
    test = ASSERTS | {"prelude": "def f(x):\n"}
    assert grade_program("    return [x + 1]\n", test, GENEROUS).passed


def test_the_reason_of_a_failure_is_a_word_for_the_log():
    assert grade_program("def f(x): return 0", ASSERTS, GENEROUS).why == "AssertionError"
    assert grade_program("def f(x): return 1 / 0", CALLS, GENEROUS).why == "ZeroDivisionError"
    assert grade_program("print(1)", STDIO, GENEROUS).why == "other output"
    assert grade_program(" ", STDIO, GENEROUS).why == "no program"


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1.5, "a", [1, [2]], (1, (2,)), {1, 2}, {"a": (1,), 2: None}, 1j, b"\x00a"],
)
def test_a_plain_value_is_encoded_and_decoded_unchanged(value):
    made = decode(json.loads(json.dumps(encode(value))), {})
    assert made == value and type(made) is type(value)


def test_a_tuple_stands_for_a_list_and_true_is_not_one():
    assert same_value([(1, 2)], [[1, 2]]) and same_value(0.1 + 0.2, 0.3)
    assert not same_value([True], [1]) and not same_value([1, 2], [1])


def _problems(name: str, split: str, every: int) -> list:
    path = MIRROR / name / f"{split}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} under the data root")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [SOURCES[name].convert(json.loads(line)) for line in list(lines)[::every]]


@pytest.mark.parametrize(
    ("name", "split", "every"),
    [("humaneval", "test", 40), ("mbpp", "test", 120), ("apps_sample", "train", 1)],
)
def test_reference_programs_pass_their_own_tests_and_an_empty_one_does_not(name, split, every):
    for problem in _problems(name, split, every):
        assert grade(problem, f"```python\n{problem.answer}\n```").passed, problem.id
        assert not grade(problem, "pass").passed, problem.id
