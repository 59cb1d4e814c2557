"""The process in which math-verify runs; `pipeline.grading.worker_pool` starts it and talks to it.

It imports math-verify once, then forks a child that answers questions. A computation that takes
too long, 9^{9^{9}} say, holds the interpreter lock inside a C loop where no Python code can stop
it; so the child sets a timer whose default action is to end the process, and the next child is
forked in milliseconds. The same timer ends a child whose parent died during a computation.

    in    ["one formula", "another", seconds]             one line of JSON
    out   equal | different | failed, seconds it took     "ready" once at the start
          timeout | lost (killed from outside)

All seconds are processor time, so that a busy machine changes no verdict.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
from contextlib import suppress

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify

MEMORY_BYTES = 2 << 30
DIGITS = 30
TOLERANCE = sympy.Float("1e-20")

# math-verify's own clean-up drops what looks like a unit (\frac{a}{b}c becomes a/b) and the case of
# letters. The texts arrive in plain form, so none of it is needed.
CONVERSION = ConversionConfig(lowercase_symbols=False)


def main(replies: int) -> None:
    """Answer until the input ends: fork a child, replace it whenever its time or memory is up."""
    logging.disable(logging.CRITICAL)
    equal("x^2+2x+1", "(x+1)^2")  # sympy imports half of itself at its first comparison
    equal("x^2=y", "2x^2=2y")
    equal(r"\sin(2x)", r"2\sin x\cos x")
    _say(replies, "ready")
    while True:
        child = os.fork()
        if child == 0:
            _answer_until_the_end(replies)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        _say(replies, {signal.SIGPROF: "timeout", signal.SIGKILL: "lost"}.get(ended_by, "failed"))


def equal(first: str, second: str) -> bool:
    """Whether math-verify finds two LaTeX expressions equal and their values agree to 20 digits.

    math-verify alone rounds to six decimals, where 2^{-98} equals 2^{-99} and 1.414214 a root.
    """
    a, b = (latex2sympy(t, normalization_config=None, conversion_config=CONVERSION)
            for t in (first, second))  # fmt: skip
    # The values first: they settle most differences in a tenth of the time.
    return _values_agree(a, b) and bool(verify(a, b, timeout_seconds=None))


def _answer_until_the_end(replies: int) -> None:
    with suppress(ValueError, OSError):  # not every system lets a process limit its memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in iter(_read_line, b""):
        first, second, seconds = json.loads(line)
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            verdict = "equal" if equal(first, second) else "different"
        except Exception:  # hostile input: whatever it breaks, it is no answer
            verdict = "failed"
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(replies, f"{verdict} {time.process_time() - begin:.4f}")
    os._exit(0)


def _values_agree(a: sympy.Basic, b: sympy.Basic) -> bool:
    """Whether a and b agree to 20 digits with numbers in place of their symbols.

    Of an equation the difference of its sides is taken, which may be any multiple of the other's.
    Intervals and inequalities have no value; there math-verify's word stands.
    """
    if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq):
        one, two = (_value(a, at) / _value(b, at) for at in (0, 1))
        return bool(abs(one - two) <= TOLERANCE * abs(two))
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        one, two = _value(a), _value(b)
        return bool(a == b or abs(one - two) <= TOLERANCE * abs(two))
    return not isinstance(a, sympy.Eq | sympy.Expr) and not isinstance(b, sympy.Eq | sympy.Expr)


def _value(expression: sympy.Basic, at: int = 0) -> sympy.Expr:
    """The value at a point that depends only on `at` and on the names of the symbols."""
    if isinstance(expression, sympy.Eq):
        expression = expression.lhs - expression.rhs
    point = {
        s: sympy.Rational(sum(str(s).encode()) * 997 + 313 * at, 7919 + 104729 * at)
        for s in expression.free_symbols
    }
    # A decimal is exact here: 0.4 pi is 2 pi / 5.
    exact = {f: sympy.Rational(str(f)) for f in expression.atoms(sympy.Float)}
    return expression.xreplace(exact).subs(point).evalf(DIGITS)


def _read_line() -> bytes:
    # Unbuffered: a child that is killed must not take a part of the next question with it.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 4096)
        if not piece:
            return b""
        line += piece
    return line


def _say(replies: int, word: str) -> None:
    os.write(replies, f"{word}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
