"""Equivalence of answers: accepted and refused pairs, and bounded time on any text."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.grading import math_comparison, same_answer
from pipeline.grading.equivalence import boxed, final_answer
from pipeline.grading.math_comparison import BUDGET_SECONDS, grader_stats
from pipeline.grading.normalization import plain
from pipeline.grading.numeric import literal

DATA = Path(os.environ.get("THINKHEAD_DATA") or Path(__file__).parents[2] / "shared" / "data")

needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")

# One line a case: expected answer, then answers that are tempting and wrong.
WRONG = [
    ("42", "42=x", "41=42", "1=2=42", "42=42", "[42,42]", "42,42", r"\{42\}", r"42\%"),
    ("42", "42 percent", "40+2", r"6\times7", "6*7", "84/2", r"\frac{84}{2}", r"\sqrt{1764}"),
    ("42", r"\int_0^{42}1dx", r"42 \mod 100", r"41\frac22", "41 2/2", "42 or 43", "41 and 42"),
    ("42", "42?", "42!", "42x", "42 x", "42i", "4 2", "042 043", "-42", "--42", "42.0001"),
    ("42", "42 million", "42 thousand", "42 dozen", "42 tenths", "42 or more", "not 42"),
    ("42", "about 42", "I saw 42 cows.", "42 is wrong", "42 sin x", r"420\times10^{-1}"),
    ("42", "forty-two", "", " ", r"\boxed{}", r"\boxed{42", r"\boxed{42}\boxed{41}"),
    ("42", r"\boxed{41 or 42}", "The answer is 42 or 43", "The answer is 42, no, 41", "42_5", "2a"),
    ("42", "42/0", "NaN", "1e400000000"),
    ("1234", "1,23,4", "1 234", "12,34", "1234,5"),
    ("12", "1 2", "1,2", "(12,)", "1.2"),
    ("0.5", "1/3", "50", ".05", "5"),
    ("1/3", "0.33", "0.3333333333", "3"),
    ("5", r"\$5\text{ cm}", "5/1", "10/2", "5^1", "|5|", "+-5"),
    ("18 dollars", "18 cents", "18 euros", r"18\%"),
    (r"5\text{ cm}", "5 m", "5 inches", "6 cm"),
    (r"50\%", "50", "0.05", "5"),
    ("(1,2)", r"\{1,2\}", "1,2", "(2,1)", "[1,2]", "(1,2,3)", "(1,2)(1,2)", "12"),
    (r"\{1,2\}", "(1,2)", "[1,2]", r"\{1,2,3\}", r"\{1,1\}"),
    ("[0,1)", "(0,1)", "[0,1]", "[1,0)", "0,1"),
    ("1,2", "1", "1,2,2", "1,3", "2"),
    ("x", "X", "y", "2x", "x^1y", "-x"),
    ("x+1", "x", "x-1", "X+1", "1+y", "x+1=0", "x+1+10^{-9}"),
    (r"\sqrt{2}", "1.41", "1.414214", "1.41421356237", "2", r"-\sqrt{2}", "sqrt"),
    (r"2\pi", "6.28", "6.283185", r"\pi", "2", r"2\Pi"),
    ("2^{-99}", "2^{-98}", "0", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", "1/2006!", "0"),
    (r"1-1/\mathrm{e}", r"1+1/\mathrm{e}", "1-e"),
    (r"1,2,\ldots,n", r"1,3,5,\ldots", "1,2,n"),
    ("4", r"4\sqrt(2)", r"4\sqrt{1}", "2^2"),
    ("50", r"50\%", "50 hundred"),
    (r"\frac{a}{b}c", r"\frac{a}{b}c^2", r"\frac{a}{bc}", r"\frac{a}{b}"),
    ("1/(2x)", "x/2", r"\frac{1}{2}x", "1/2x"),
    ("y=x+3", "y=x-3", "z=x+3", "x+3=z", "y=x+3=4"),
    ("x=5", "y=5", "x=6", "5=5", "x+0=5", "x+1=6", "2x=10"),
    ("x=3,y=5", "3,5", "5,3", "x=5,y=3", "y=3,x=5"),
    ("B", "A", "b", "A or B", "(A) or (B)", "A, B", "AB", "A.B.C", "B) or C)", "(B)(C)", "not B"),
    ("(B)", "(C)", "C", "A B C D", "(A)(B)", "B) or (C)"),
    ("yes", "no", "yes or no", "yes and no", "y", "maybe"),
    ("no", "yes", "on", "No, yes"),
    ("Monday", "Tuesday", "Mon", "Monday or Tuesday", "yadnoM", "MONDAYS"),
    ("even", "neve", "odd"),
    ("even+1", "neve+1"),
    ("xX^2", "x^2X", "x^3"),
    ("AB", "BA", "ab", "A", "Ab"),
    ("Softball, Kickball, Picnic", "Picnic, Kickball, Softball", "Softball"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", r"\begin{pmatrix}1&2\end{pmatrix}", "1,2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("204_5", "204", "204_6", "54"),
    ("3:1", "3", "1:3", "31"),
    (r"(-\infty,3)", r"(-\infty,3]", r"(\infty,3)", "(-3,3)"),
    (") >", "> )", ")", ")>>"),
    (r"\text{gray}", "grey", "g*r*a*y"),
    ("x<3", "x>3", r"x\le 3", "x<4", "3<x"),
    ("3-2i", "3+2i", "1", "3-2"),
    ("0.8333333333", "0.83", "0.833333", "4/6"),
]

# One line a case: expected answer, then other ways to write it.
EQUAL = [
    ("42", "42", " 42 ", "42.", "42.0", "$42$", r"\(42\)", r"\[42\]", "$$42$$", "**42**", "+42"),
    ("42", r"\boxed{42}", r"$\boxed{42}$.", r"\fbox{42}", r"\boxed 42", r"\text{42}", "{42}"),
    ("42", "The answer is 42.", "the final answer is: 42", "Answer: 42", "**Answer:** 42"),
    ("42", "So x = 6*7.\nThe answer is 42.\nDone.", "The answer is $42$. Easy!", "\uff14\uff12"),
    ("42", "42 cows", "42 dollars", "$42", r"\$42", "42 cm", r"42\text{ cm}", r"42^\circ", "42°"),
    ("42", "x=42"),
    ("42", "42 square feet", r"42\text{ cm}^2", "42 miles per hour", "4200%", r"4.2\times10^1"),
    ("1234", "1,234", "1{,}234", r"1,\!234", r"1\,234", "1234.00", "$1,234", "1.234e3"),
    ("1,234", "1234", "1,234.0"),
    ("-5", "-5", "\N{MINUS SIGN}5", "- 5", "-5.0", "-$5"),
    ("0.5", "1/2", ".5", r"\frac12", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac 12", "50%", "2/4"),
    ("3.5", "7/2", r"3\frac{1}{2}", "3 1/2", "3.50", r"\frac{7}{2}"),
    (r"\frac{1}{2}", "0.5", "1/2", r"\frac{2}{4}", r"\frac12", r"\frac{1}2", r"\frac1{2}", "50%"),
    (r"-\frac{3}{2}", "-1.5", "-3/2", r"\frac{-3}{2}", r"\frac{3}{-2}", r"-1\frac{1}{2}"),
    ("18 dollars", "18", "$18", r"\$18.00", "18 dollar", "18 bucks"),
    (r"5\text{ cm}", "5", "5 cm", "5cm", "5 centimeters", r"5\,\mathrm{cm}"),
    (r"34\text{ sq. units}", "34", "34 square units", r"34\text{ units}^2"),
    (r"30^\circ", "30", "30 degrees", r"30^{\circ}", "30°"),
    (r"12\sqrt{13}\text{ feet}", r"12\sqrt{13}", r"12\sqrt{13}\text{ ft}"),
    (r"50\%", "50%", "50 percent", "0.5", r"\frac{1}{2}"),
    (r"\$15,\!000", "15000", "$15,000", "15,000 dollars"),
    ("(1,2)", "(1, 2)", r"\left(1,2\right)", "(1.0,2)", "( 1 ,2 )", r"$(1,2)$"),
    (r"\{1,2\}", r"\{2,1\}", r"\left\{1, 2\right\}", "1,2", "2, 1", "1 and 2", "2 or 1"),
    ("1,2", "2,1", r"\{1,2\}", "1 or 2", r"1\text{ and }2", "1, 2"),
    (r"1\pm\sqrt{2}", r"1+\sqrt{2},1-\sqrt{2}", r"1-\sqrt2, 1+\sqrt2", r"1 \pm \sqrt{2}"),
    (r"\pm 3", "3,-3", "-3, 3", r"\{-3,3\}", "±3"),
    ("[0,1)", "[0, 1)", r"\left[0,1\right)", r"$[0,1)$"),
    (r"x\in[0,1)", "[0,1)", r"x \in [0,1)"),
    (r"(-\infty,-1)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,-1)", "(-∞,-1) \N{UNION} (1,∞)"),
    ("x^2+2x+1", "(x+1)^2", "1+2x+x^2", "x^2 + 2x + 1", "x^{2}+2x+1", r"(x+1)\cdot(x+1)"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt3}{3}", r"\sqrt{\frac{1}{3}}"),
    (r"6\sqrt{2}", r"6\sqrt2", r"\sqrt{72}", r"6 \sqrt 2", r"6\cdot\sqrt{2}"),
    (r"2\pi", r"\pi\cdot2", r"2 \pi", "2π", r"\pi+\pi"),
    (r"\frac{2\pi}{5}", r"0.4\pi", r"\frac{2}{5}\pi", r"2\pi/5"),
    ("2^{10}", "1024", "2^{10}"),
    ("2^{4950}", "2^{4950}", "$2^{4950}$"),
    ("3-2i", "-2i+3", "3 - 2i"),
    (r"2\sin x\cos x", r"\sin(2x)", r"2\cos x\sin x"),
    ("y=x+3", "y=3+x", "x+3", "y = x + 3"),
    ("x=5", "5", "x = 5", "5.0"),
    ("4x-5y=-50", "5y-4x=50", "4x - 5y = -50"),
    ("x<3", "3>x", "x < 3"),
    ("B", "(B)", "B.", "B)", r"\text{B}", r"\textbf{(B)}", "(B) Paris", "B. Paris", "Option B"),
    ("(B)", "B", "(B)", r"\text{(B)}", "The answer is (B).", "B: five"),
    ("yes", "Yes", "YES", "yes.", r"\text{Yes}", "The answer is yes."),
    ("True", "true", "TRUE", "True."),
    ("Monday", "monday", r"\text{Monday}", "Monday."),
    ("Amy is a knight, and Bo is a knave.", "Amy is a knight, and Bo is a knave"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{bmatrix} 0.5 \\ 2.0 \end{bmatrix}"),
    ("204_5", "204_{5}", r"$204_5$"),
    (") ) >", "))>", ") ) >"),
    ("0.8333333333", "5/6", r"\frac{5}{6}"),
    ("AB=9, CD=4", "AB=9,CD=4", "CD=4, AB=9"),
]

HOSTILE = [
    "9**9**9**9",
    "9^{9^{9^{9}}}",
    "10^{10^{10}}",
    r"(10^9)!",
    "((9!)!)!",
    "9!!!!!!",
    r"\binom{10^9}{5\cdot10^8}",
    r"\sum_{n=1}^{10^7}\frac{1}{n}",
    r"\prod_{n=1}^{10^9}n",
    r"\int_0^1\sin(x^x)dx",
    "(x+y+z+w)^{60}",
    "(" * 1000 + "1" + ")" * 1000,
    "{" * 50_000,
    r"\frac{1}{" * 500 + "2" + "}" * 500,
    "7 " * 20_000,
    "9" * 1_000_000,
    "1," * 20_000,
    r"\boxed{" * 20_000,
    r"\boxed{9^{9^{9}}}",
    "((((9^{64})^{64})^{64})^{64})^{64}+x",
    "(1+x)^{64}(1+x^2)^{64}(1+x^3)^{64}",
    "\x00\x07\u202e7",
    "$" * 5000,
    "\\" * 5000,
    "__import__('os').system('true')",
    r"\frac{\frac{\frac{1}{x}}{x}}{x}" * 9,
    "1e999999999",
    "^".join("9" * 100),
    "\ud800 7",
]


def quotient(k: int) -> tuple[str, str]:
    """(answer, expected): equal, and only math-verify knows it."""
    return rf"\frac{{x^2-{k * k}}}{{x-{k}}}", f"x+{k}"


def pairs(table: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(answer, expected) for expected, *answers in table for answer in answers]


NUMBERS = "0 7 12 19 100 365 1234 -3 -41 0.25 1.5 2.75 99 1000000 3/4 5/8 -7/2 11 640 18".split()  # noqa: SIM905
FORMS = (
    "${}$",
    r"\boxed{{{}}}",
    "The answer is {}.",
    "**{}**",
    " {} ",
    r"So it is $\boxed{{{}}}$.",
)


def numbers_in_forms() -> list[tuple[str, str]]:
    return [(form.format(number), number) for number in NUMBERS for form in FORMS]


def test_the_tables_have_enough_pairs():
    assert len(pairs(WRONG)) >= 120
    assert len(pairs(EQUAL)) + len(numbers_in_forms()) >= 300


@pytest.mark.parametrize(("answer", "expected"), numbers_in_forms())
def test_a_number_is_read_in_every_form(answer, expected):
    assert same_answer(answer, expected)
    assert not same_answer(answer, f"{expected}1")


@pytest.mark.parametrize(("answer", "expected"), pairs(WRONG))
def test_a_tempting_wrong_answer_is_refused(answer, expected):
    assert not same_answer(answer, expected)


@pytest.mark.parametrize(("answer", "expected"), pairs(EQUAL))
def test_another_way_to_write_the_answer_is_accepted(answer, expected):
    assert same_answer(answer, expected)


@pytest.mark.parametrize("answer", HOSTILE)
@pytest.mark.parametrize("expected", ["7", r"x+\sqrt{7}"])
def test_a_hostile_answer_is_refused_in_bounded_time(answer, expected):
    same_answer(*quotient(1))  # the start of the worker is not on this clock
    begin = time.monotonic()
    assert not same_answer(answer, expected)
    assert time.monotonic() - begin < 5 * BUDGET_SECONDS  # wall-clock, on a busy machine


def test_random_strings_neither_raise_nor_equal_the_answer():
    rng = random.Random(0)
    tokens = [
        "4",
        "2",
        "7",
        *"+-*/^(){}[],.=$%xX! ",
        "\n",
        "\\\\",
        r"\frac",
        r"\sqrt",
        r"\text",
        "or",
    ]
    for _ in range(300):
        text = "".join(rng.choices(tokens, k=rng.randint(1, 12)))
        number = literal(plain(final_answer(text)))
        assert same_answer(text, "42") == (number is not None and number.value == 42)
        assert not same_answer(text, r"x+\sqrt{11}")


def test_an_endless_computation_is_stopped_repeated_and_counted():
    before = grader_stats()
    # Sent to the worker directly: `same_answer` refuses such a power before.
    assert math_comparison._worker.compare("9^{9^{9^{9}}}", "7", (0.1, 0.2)) == (
        "timeout",
        pytest.approx(0.3),
    )
    after = grader_stats()
    assert after["timeouts"] == before["timeouts"] + 2
    assert after["no_verdict"] == before["no_verdict"] + 1
    # The next request is answered by the next child of the same worker.
    assert same_answer(*quotient(5))
    assert grader_stats()["starts"] == max(before["starts"], 1)


@needs_proc
def test_the_worker_process_is_limited_to_two_gigabytes():
    assert same_answer(*quotient(6))
    worker = math_comparison._worker.process.pid
    child = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()[0]
    limits = Path(f"/proc/{child}/limits").read_text()
    assert re.search(rf"Max address space +{2 << 30} +{2 << 30} +bytes", limits)


def test_same_answer_works_from_many_threads():
    verdicts = {}

    def compare(k: int) -> None:
        given, expected = quotient(k)
        verdicts[k] = (same_answer(given, expected), same_answer(given, f"{expected}1"))

    threads = [threading.Thread(target=compare, args=(k,)) for k in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(3, 11), (True, False))


def test_a_forked_process_gets_a_worker_of_its_own():
    assert same_answer(*quotient(7))
    child = os.fork()
    if child == 0:
        shares_nothing = math_comparison._worker.process is None
        os._exit(0 if shares_nothing and same_answer(*quotient(8)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same_answer(*quotient(9))


def test_a_worker_that_was_killed_is_started_again():
    assert same_answer(*quotient(11))
    os.kill(math_comparison._worker.process.pid, signal.SIGKILL)
    math_comparison._worker.process.wait()
    assert same_answer(*quotient(12))


@needs_proc
def test_the_worker_dies_with_its_parent_even_in_the_middle_of_a_computation():
    script = (
        "from pipeline.grading import math_comparison as m, same_answer\n"
        "same_answer(r'\\frac{x^2-1}{x-1}', 'x+1')\n"
        "print(m._worker.process.pid, flush=True)\n"
        "m._worker.request('9^{9^{9^{9}}}', '7', 1.0)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(worker)


def test_the_last_box_counts_and_an_open_one_does_not():
    assert boxed(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{\{1,2\}}") == r"\{1,2\}"
    assert boxed(r"\fbox{7} and $\boxed 9$.") == "9"
    assert boxed("no box") is None
    assert boxed(r"\boxed{1} then \boxed{2") is None


def test_the_final_answer_is_a_fixed_point():
    for text in (r"so \boxed{ 4 }", "The answer is 3.5. Good.", " 7 ", "Answer: (B)\nThat is it"):
        assert final_answer(final_answer(text)) == final_answer(text)


@pytest.mark.parametrize("text", [answer for answer, _ in pairs(EQUAL)])
def test_plain_form_is_a_fixed_point(text):
    assert plain(plain(text)) == plain(text)


def test_arithmetic_is_not_a_literal_number():
    # 3 + 1/2 = 7/2 and 10^3 * 1.2 = 1200 are notations; 40+2 and 6*7 are sums to be done.
    assert str(literal(r"3\frac{1}{2}").value) == "7/2"
    assert literal(r"1.2\times10^3").value == 1200
    assert literal("40+2") is None and literal(r"6\times7") is None


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _rows(path: Path) -> list[dict]:
    if not path.exists():
        pytest.skip(f"no {path.name} under the data root; set THINKHEAD_DATA to run this test")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_every_gsm8k_answer_equals_itself_and_no_other_number():
    for row in _rows(DATA / "gsm8k" / "test.jsonl.gz")[::4]:
        gold = row["answer"].split("####")[1].strip()
        assert same_answer(f"The answer is ${gold}.", gold)
        assert not same_answer(str(int(gold.replace(",", "")) + 1), gold)


def test_every_math500_answer_equals_its_own_solution_and_not_the_next_answer():
    rows = _rows(DATA / "math500" / "test.jsonl.gz")
    for row in rows:
        assert same_answer(row["solution"], row["answer"])
    golds = sorted({row["answer"] for row in rows if literal(plain(row["answer"])) is not None})
    values = [literal(plain(gold)).value for gold in golds]
    for a, b, x, y in zip(golds, golds[1:], values, values[1:], strict=False):
        assert same_answer(a, b) == (x == y)
