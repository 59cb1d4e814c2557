"""Wrong programs that try to obtain a passing verdict, at every level of isolation: none does.

The tests ask for a + b and a * b on two lines (stdout), or for `f(x) == [x + 1]` (values).
"""

import pytest

from pipeline.grading.programs import grade_program
from pipeline.sandbox import Limits
from tests.test_programs import ASSERTS, CALLS, FORGED_OUTPUT, FORGED_VALUE, PRINTS, STDIO
from tests.test_sandbox import LEVEL_NAMES, LEVELS

DESCRIPTORS = (
    "import os\nfor fd in range(64):\n    try: os.write(fd, {text!r})\n    except OSError: pass\n"
)
# Wall-clock time for the slow start on a busy machine.
GENEROUS = Limits(seconds=2, wall_seconds=60)
VERDICT = b'{"verdict": "passed"}\n'
CONFINED = "import sys\nconfined = sys.modules['_confined']\n"

OUTPUT = {
    "the verdict as JSON": """print('{"verdict": "passed"}')\nprint('Verdict(passed=True)')""",
    "the verdict to every descriptor": DESCRIPTORS.format(text=VERDICT),
    "the input again": "import sys\nprint(sys.stdin.read())",
    "both cases at once": "print('5\\n6\\n6\\n5')",
    "right on stderr": PRINTS + "import sys\nprint(a + b, a * b, sep='\\n', file=sys.stderr)",
    "right, then killed": PRINTS
    + "print(a + b, a * b, sep='\\n', flush=True)\nimport signal\nsignal.raise_signal(9)",
    "right by a function that nobody calls": "def main():\n"
    + "    print(int(input()) + int(input()))\nif __name__ == 'tests': main()",
    "look for the answer in every object": "import gc\nfound = [o for o in gc.get_objects() "
    "if isinstance(o, (list, dict)) and '5\\n6\\n' in o]\nprint(found[0] if found else '')",
    "look for the answer in memory": "import ctypes\nprint(*[line for line in (ctypes.string_at("
    "id(__builtins__), 256)).split(b'\\n') if b'5' in line])",
    "read every descriptor": "import os\nfor fd in range(3, 64):\n"
    "    try: print(os.read(fd, 1 << 16).decode())\n    except OSError: pass",
    "read the tests": "import glob\nfor path in glob.glob('/**/test_*', recursive=True)[:9]: "
    "print(open(path).read())",
}
VALUE = {
    "a number that equals all": "class I(int):\n    __eq__ = lambda a, b: True\n"
    "    __hash__ = int.__hash__\ndef f(x): return [I(0)]",
    "a float that equals all": "class F(float):\n    __eq__ = lambda a, b: True\n"
    "    __sub__ = __rsub__ = lambda a, b: 0.0\ndef f(x): return [F(0)]",
    "not a number": "def f(x): return [float('nan')]",
    "infinity": "def f(x): return [float('inf')]",
    "ANY": "from unittest.mock import ANY\ndef f(x): return [ANY]",
    "a type": "def f(x): return [int]",
    "a function": "def f(x): return f",
    "an iterator": "def f(x): return iter([x + 1])",
    "its frames": "import sys\ndef f(x): return sys._getframe(1).f_locals.get('args')",
    "as text": "def f(x): return str([x + 1])",
    "just true": "def f(x): return True",
    "nested too deep": "def f(x):\n    for _ in range(9999): x = [x]\n    return x",
    "a reference to itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "interrupt": "def f(x): raise KeyboardInterrupt",
    "the verdict before any question": DESCRIPTORS.format(text=VERDICT) + "def f(x): return 0",
    "an answer without end": "import os\ndef f(x):\n    for fd in (3, 4, 5, 6, 7, 8):\n"
    "        try:\n            while 1: os.write(fd, b'[' * 65536)\n        except OSError: pass",
    "brackets without end": DESCRIPTORS.format(text=b'{"value": ' + b"[" * 30_000 + b"\n")
    + "def f(x): return 0",
    "what is no value": CONFINED + "confined.encode = lambda v: ['object', 'candidate', ['dict']]\n"
    "def f(x): return 0",
    "an unknown kind of value": CONFINED
    + "confined.encode = lambda v: ['passed']\ndef f(x): return 0",
    "an object of any class": CONFINED + "confined.encode = lambda v: ['list', ['object', 'Any', "
    "['dict', ['__class__', ['type', 'int']]]]]\ndef f(x): return 0",
    "an encoder that knows one answer": CONFINED + "confined.encode = lambda v: ['list', 2]\n"
    "def f(x): return 0",
    "a patched JSON": 'import json\njson.dumps = lambda *a: \'{"verdict": "passed"}\'\n'
    "def f(x): return 0",
    "patched errors": "import builtins\nbuiltins.AssertionError = ValueError\n"
    "builtins.Exception = type('E', (), {})\ndef f(x): return 0",
    "a patched table of modes": CONFINED + "confined.RUN['tests'] = confined.RUN['calls']\n"
    "def f(x): return 0",
    "closed pipes": "import os\ndef f(x): os.closerange(0, 64)",
    "signals to the grader": "import fcntl, os\nr, w = os.pipe()\ndef f(x):\n"
    "    for pid in range(os.getpid() - 9, os.getpid()):\n"
    "        try: fcntl.fcntl(r, fcntl.F_SETOWN, pid)\n        except OSError: pass\n"
    "        os.write(w, b'x')\n    return 0",
    "an exit hook": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): sys.exit(0)",
    "a trace": "import sys\nsys.setprofile(lambda *a: None)\nsys.settrace(lambda *a: None)\n"
    "def f(x): return sys._getframe().f_locals",
}
ALL_OUTPUT, ALL_VALUE = FORGED_OUTPUT | OUTPUT, FORGED_VALUE | VALUE
TESTS = {"asserts": ASSERTS, "calls": CALLS}
OUTPUT_CASES = [(name, level) for name in ALL_OUTPUT for level in LEVEL_NAMES]
VALUE_CASES = [(n, kind, level) for n in ALL_VALUE for kind in TESTS for level in LEVEL_NAMES]


def cases(every: list[tuple[str, ...]], step: int) -> list:
    """All cases as parameters; all but one in `step` are slow, so that a default run has each
    forgery once, at alternating levels and kinds of test."""
    unavailable = dict(zip(LEVEL_NAMES, (level.marks for level in LEVELS), strict=True))
    return [
        pytest.param(*case, marks=[*unavailable[case[-1]], *[pytest.mark.slow] * is_slow])
        for i, case in enumerate(every)
        for is_slow in [i % step != i // step % step]
    ]


def test_no_two_forgeries_share_a_name():
    assert len(ALL_OUTPUT) + 2 * len(ALL_VALUE) >= 63
    assert len(ALL_OUTPUT) + len(ALL_VALUE) == sum(
        map(len, (FORGED_OUTPUT, OUTPUT, FORGED_VALUE, VALUE))
    )


@pytest.mark.parametrize(("name", "level"), cases(OUTPUT_CASES, 2))
def test_forged_output_is_refused(name, level):
    assert not grade_program(ALL_OUTPUT[name], STDIO, GENEROUS, level).passed


@pytest.mark.parametrize(("name", "kind", "level"), cases(VALUE_CASES, 4))
def test_a_forged_value_is_refused(name, kind, level):
    assert not grade_program(ALL_VALUE[name], TESTS[kind], GENEROUS, level).passed


@pytest.mark.parametrize("level", LEVELS)
def test_a_right_program_is_accepted_where_forgeries_are_not(level):
    right = PRINTS + "print(a + b)\nprint(a * b)"
    assert grade_program(right, STDIO, GENEROUS, level).passed
    for test in (ASSERTS, CALLS):
        assert grade_program("def f(x): return [x + 1]", test, GENEROUS, level).passed
