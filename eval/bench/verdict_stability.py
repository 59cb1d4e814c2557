"""Compare verdicts on an idle and on a busy machine.

python -m eval.bench stability --pairs 2000 --busy 20

Pairs of an answer and an expected answer are generated: formulas, fractions, lists, roots, half of
them correct. `--programs` adds programs. Each pass runs in a process of its own, so that no cache
is shared. Exit code 1 if a verdict differs or is missing.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.grading import grade
from pipeline.records import Problem

Pair = tuple[str, str]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """(answer, expected answer), all different and equal for equal seeds; half of them are wrong.

    >>> len(set(pairs(50))), pairs(2) == pairs(2)
    (50, True)
    """
    rng = random.Random(seed)
    found: dict[Pair, None] = {}
    while len(found) < count:
        family = FAMILIES[len(found) % len(FAMILIES)]
        right, wrong, expected = family(rng)
        found[right if rng.random() < 0.5 else wrong, expected] = None
    return list(found)


def _square_sum(rng: random.Random) -> tuple[str, str, str]:
    a, b, x = rng.randint(1, 30), rng.randint(2, 60), rng.choice("nkmt")
    expected = rf"\frac{{{x}({x}+{a})(2 {x}+{a})}}{{{b}}}"
    right = rf"\frac{{{x}({x}+{a})(2{x}+{a})}}{{{b}}}"
    return right, right.replace(f"+{a})(2", f"+{a + 1})(2"), expected


def _binomial(rng: random.Random) -> tuple[str, str, str]:
    a, b, x = rng.randint(2, 40), rng.randint(2, 40), rng.choice("xyz")
    expected = f"({x}+{a})({x}-{b})"
    middle = f"{a - b:+d}{x}" if a != b else ""
    right = f"{x}^2{middle}-{a * b}"
    return right, f"{x}^2{middle}-{a * b + 1}", expected


def _polynomial(rng: random.Random) -> tuple[str, str, str]:
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    return f"{c}-{b}x-{a}x^2", f"{c}-{b}x+{a}x^2", f"-{a} x^{{2}}-{b} x+{c}"


def _fraction(rng: random.Random) -> tuple[str, str, str]:
    a, b, k = rng.randint(1, 400), rng.randint(2, 400), rng.randint(2, 9)
    return f"{a}/{b}", f"{a}/{b + 1}", rf"\frac{{{a * k}}}{{{b * k}}}"


def _numbers(rng: random.Random) -> tuple[str, str, str]:
    numbers = [rng.randint(1, 999) for _ in range(rng.randint(2, 6))]
    other = [*numbers[:-1], numbers[-1] + 1]
    right, wrong = (", ".join(map(str, n)) for n in (numbers, other))
    return right, wrong, ",".join(map(str, numbers))


def _formulas(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.sample(range(2, 60), 2)
    first, second = f"x^2-{a * a}", f"y^2-{b * b}"
    product, other = f"(y-{b})(y+{b})", f"(x-{a})(x+{a + 1})"
    right, wrong = f"((x-{a})(x+{a}), {product})", f"({other}, {product})"
    return right, wrong, f"({first},{second})"


def _roots(rng: random.Random) -> tuple[str, str, str]:
    a, b, c = rng.randint(2, 30), rng.randint(2, 30), rng.randint(2, 99)
    expected = rf"\frac{{{a}+{b}\sqrt{{{c}}}}}{{2}}"
    right = rf"\frac{{{a}}}{{2}}+\frac{{{b}}}{{2}}\sqrt{{{c}}}"
    return right, right.replace(rf"\sqrt{{{c}}}", rf"\sqrt{{{c + 1}}}"), expected


def _waves(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    right = rf"{a}(1-\cos^2(x))+{b}"
    return right, rf"{a}(1-\cos^2(x))-{b}", rf"{a}\sin^2(x)+{b}"


def _equations(rng: random.Random) -> tuple[str, str, str]:
    a, b, c = (rng.randint(2, 60) for _ in range(3))
    return f"{2 * a}x+{2 * b}y={2 * c}", f"{2 * a}x+{2 * b}y={2 * c + 1}", f"{a}x+{b}y={c}"


Family = Callable[[random.Random], tuple[str, str, str]]
COMMON: tuple[Family, ...] = (_square_sum, _binomial, _polynomial, _fraction, _numbers, _roots)
# A dozen of these takes seconds of processor time.
SLOW: tuple[Family, ...] = (_formulas, _waves, _equations)
FAMILIES = COMMON * 2 + SLOW


def programs(count: int) -> list[tuple[str, str]]:
    """(program, check as JSON): correct, wrong, failing, endless, sleeping and slow ones."""
    bodies = (
        "return x * {k}",
        "return x * {k} + 1",
        "return x / 0",
        "return sum(range(10 ** 6)) * 0 + x * {k}",
        "import time; time.sleep(0.5); return x * {k}",
        "import time; time.sleep(3600)",
        "return 1.5 if x else float('inf')",
        "while True: pass",
    )
    found = []
    for i in range(count):
        test: dict[str, object] = {
            "judge": "program",
            "kind": "calls",
            "function": "f",
            "inputs": [[2], [7]],
        }
        test["outputs"] = [2 * (i + 2), 7 * (i + 2)]
        body = bodies[i % len(bodies)].format(k=i + 2)
        found.append((f"```python\ndef f(x):\n    {body}\n```", json.dumps(test)))
    return found


def grade_all(count: int, program_count: int) -> list[bool | None]:
    """The verdicts of one pass, in order; None for a missing one."""
    problems = [(Problem(question="", answer=expected), text) for text, expected in pairs(count)]
    problems += [
        (Problem(question="", answer="", check=check), text)
        for text, check in programs(program_count)
    ]
    return [grade(problem, text).right for problem, text in problems]


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep `processes` processes computing while the context is open."""
    busy = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Grade in two passes and compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000, help="number of answers")
    parser.add_argument("--programs", type=int, default=0, help="number of programs")
    parser.add_argument("--busy", type=int, default=20, help="busy processes in the second pass")
    parser.add_argument(
        "--one_pass", action="store_true", help="grade in this process and print the verdicts"
    )
    args = parser.parse_args(argv)
    if args.one_pass:
        print(json.dumps(grade_all(args.pairs, args.programs)))
        return 0
    command = [sys.executable, "-m", "eval.bench.verdict_stability", "--one_pass"]
    command += ["--pairs", str(args.pairs), "--programs", str(args.programs)]
    found: list[list[bool | None]] = []
    for busy in (0, args.busy):
        with load(busy):
            begin = time.monotonic()
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(ended.stdout))
        counts = Counter(map(str, found[-1]))
        print(f"{busy} busy: {time.monotonic() - begin:.0f} s, {dict(counts)}", flush=True)
    idle, loaded = found
    differ = [i for i, (a, b) in enumerate(zip(idle, loaded, strict=True)) if a is not b]
    print(f"{len(idle) - len(differ)} of {len(idle)} verdicts are equal")
    for i in differ[:10]:
        print(i, idle[i], loaded[i])
    return int(bool(differ) or None in idle)


if __name__ == "__main__":
    raise SystemExit(main())
