"""The grader on adversarial answers, from threads and two processes: bounded and right."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.grading import math_comparison, same_answer
from pipeline.grading.math_comparison import BUDGET_SECONDS, grader_stats

ROOT = Path(__file__).parents[1]
EXPECTED = ("42", r"x+\sqrt{7}", "(1,2)", r"\{1,2\}", "B")
SECONDS = 5 * BUDGET_SECONDS  # wall-clock: a call may wait for a processor


def adversarial(rng: random.Random) -> str:
    """One answer of a kind that breaks graders; none of them is right for any of EXPECTED."""
    n = rng.randrange(20, 2000)
    return rng.choice(
        [
            "(" * n + "41" + ")" * n,
            "^".join(["9"] * rng.randrange(3, 40)),
            "9^{" * (n % 50 + 2) + "9" + "}" * (n % 50 + 2),
            f"({n}^{n})!" + "!" * (n % 7),
            "7" * n + "." + "3" * n,
            "1," * n,
            r"\frac{1}{" * n + "2" + "}" * n,
            "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(n % 200 + 5)),
            rf"\binom{{10^{n}}}{{5}}",
            rf"\sum_{{k=1}}^{{10^{n}}}k",
            r"\boxed{" * (n % 90 + 1),
            rf"x+\sqrt{{{n + 8}}}+0^{{{n}}}",
            "\x00" * n + "41",
            rf"\begin{{pmatrix}}{'&'.join('x' * (n % 40 + 2))}\end{{pmatrix}}",
            f"(x+y+z)^{{{n % 64}}}(x-y)^{{{n % 60}}}",
            f"__import__('os').system('exit {n}')",
        ]
    )


def grade_all(seed: int, count: int) -> tuple[int, float]:
    """(answers wrongly rewarded, the longest call in seconds)."""
    rng, wrong, longest = random.Random(seed), 0, 0.0
    for _ in range(count):
        answer, expected = adversarial(rng), rng.choice(EXPECTED)
        begin = time.monotonic()
        wrong += same_answer(answer, expected)
        longest = max(longest, time.monotonic() - begin)
    return wrong, longest


@pytest.fixture(scope="module", autouse=True)
def started():
    same_answer(r"\frac{x^2-1}{x-1}", "x+1")  # starts the worker, outside of the measured time


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_adversarial_answers_are_refused_in_bounded_time(count):
    wrong, longest = grade_all(seed=0, count=count)
    assert wrong == 0
    assert longest < SECONDS


def test_adversarial_answers_in_a_thread_do_not_block_the_main_thread():
    found = {}
    thread = threading.Thread(target=lambda: found.update(result=grade_all(seed=1, count=60)))
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.01)
        ticks += 1
    assert found["result"][0] == 0
    assert ticks > 0


@pytest.mark.slow
def test_two_processes_have_a_worker_each():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_grader_abuse import grade_all\n"
        "print(grade_all(int(sys.argv[1]), 20)[0])\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for seed in (2, 3)
    ]
    assert [rank.communicate()[0].strip() for rank in ranks] == ["0", "0"]


@pytest.mark.slow
def test_fifty_endless_comparisons_do_not_change_fifty_others():
    for n in range(50):
        math_comparison._worker.request(f"9^{{9^{{9^{{{n + 9}}}}}}}", "7", 0.2)
    starts = grader_stats()["starts"]
    right = [same_answer(rf"\frac{{x^2-{n * n}}}{{x-{n}}}", f"x+{n}") for n in range(100, 150)]
    assert right == [True] * 50
    assert grader_stats()["starts"] == starts  # children were replaced, the worker was not
