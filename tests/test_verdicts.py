"""A verdict depends on the problem and the answer: not on time, load, or earlier calls."""

import json
import math
import os
import random
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import eval.value_trace
import eval.verifier
from eval.bench.verdict_stability import pairs, programs
from eval.run_folder import scores, summary
from eval.samples import _row as samples_row
from pipeline.grading import Verdict, grade, math_comparison, same_answer
from pipeline.grading.math_comparison import ComparisonBudget, grader_stats
from pipeline.grading.programs import grade_program, same_value
from pipeline.grading.worker import Worker
from pipeline.records import Answer, Problem, Usage
from pipeline.rewards import Rubric, brevity, coherence, correctness, step_rewards
from pipeline.sandbox import Limits
from pipeline.verifier.offline import VerifierConfig, draw_samples

needs_proc = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc"
)
ROOT = Path(__file__).parents[1]
# Equal, by a cancellation that only math-verify finds, and too slow for it.
BOMB = Problem(question="", answer=r"((x+z+y)^{12}+1)\frac{(x+y+z)^{12}-1}{x+y+z-1}")
DEFUSED = r"\frac{(x+y+z)^{24}-1}{x+y+z-1}"
DOUBLE = {"judge": "program", "kind": "calls", "function": "f", "inputs": [[2]], "outputs": [4]}
REFERENCE = "def f(x):\n    return 2 * x"
PROGRAM = Problem(question="Double 2.", answer=REFERENCE, check=json.dumps(DOUBLE))
OTHER = "def f(y):\n    return y + y"  # right, and not the text of the expected answer


def child_of_the_worker() -> int:
    assert same_answer(r"\frac{x^2-121}{x-11}", "x+11")
    worker = math_comparison._worker.process.pid
    children = Path(f"/proc/{worker}/task/{worker}/children")
    while not (found := children.read_text().split()):  # the next child is being forked
        time.sleep(0.001)
    return int(found[0])


def while_it_computes(act, text: str, expected: str) -> bool | None:
    """The verdict on a slow comparison, and `act(child)` once its process is running."""
    child, found = child_of_the_worker(), []
    problem = Problem(question="", answer=expected)
    grading = threading.Thread(target=lambda: found.append(grade(problem, text).right))
    grading.start()
    while grading.is_alive() and Path(f"/proc/{child}/stat").read_text().split()[2] != "R":
        time.sleep(0.001)
    act(child)
    grading.join()
    return found[0]


@pytest.fixture
def short_tries(monkeypatch):
    """Tries of a tenth of a second, and every formula goes to the worker."""
    child_of_the_worker()  # starts it
    monkeypatch.setattr(math_comparison, "TRIES", (0.1, 0.2))
    monkeypatch.setattr(math_comparison, "_is_comparable", lambda given, expected: True)
    monkeypatch.setattr(math_comparison, "_remembered", {})


# ---- formulas ----


def slow_equality(a: str, b: str, c: str) -> tuple[str, str]:
    """Two equal formulas that math-verify needs some tenths of a second for."""
    return (
        rf"\frac{{({a}+{b}+{c})^{{12}}-1}}{{{a}+{b}+{c}-1}}",
        rf"(({c}+{b}+{a})^{{6}}+1)\frac{{({a}+{b}+{c})^{{6}}-1}}{{{a}+{b}+{c}-1}}",
    )


@needs_proc
def test_a_worker_that_gets_no_processor_for_a_while_still_gives_its_verdict():
    def stop(child: int) -> None:
        os.kill(child, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(child, signal.SIGCONT)

    before = grader_stats()
    assert while_it_computes(stop, *slow_equality("x", "y", "z")) is True
    assert grader_stats()["timeouts"] == before["timeouts"]


@needs_proc
def test_a_comparison_whose_worker_is_killed_from_outside_is_repeated():
    before = grader_stats()
    kill = lambda child: os.kill(child, signal.SIGKILL)  # noqa: E731
    assert while_it_computes(kill, *slow_equality("a", "b", "c")) is True
    assert grader_stats()["lost"] == before["lost"] + 1


def test_a_comparison_that_exceeds_its_processor_time_twice_has_no_verdict(short_tries):
    before = grader_stats()
    assert grade(BOMB, DEFUSED) == Verdict(None, "no verdict on a formula")
    after = grader_stats()
    assert after["timeouts"] == before["timeouts"] + 2
    assert after["no_verdict"] == before["no_verdict"] + 1
    assert grade(Problem(question="", answer="x^2-1"), "(x-1)(x+1)").right is True


def test_without_a_verdict_an_answer_that_agrees_elsewhere_is_right(short_tries):
    # In a list without order the first comparison has no verdict, and the whole is equal.
    listed = r"\{9^{9^{9^{9}}}+x, x+1\}"
    assert grade(Problem(question="", answer=listed), listed).right is True


def test_a_remembered_comparison_is_charged_what_it_cost_at_first(monkeypatch):
    monkeypatch.setattr(math_comparison, "_remembered", {})
    first, second = ComparisonBudget(), ComparisonBudget()
    assert first.agree("(x+51)(x-51)", "x^2-2601") and second.agree("(x+51)(x-51)", "x^2-2601")
    assert first.seconds == second.seconds < math_comparison.BUDGET_SECONDS


def test_an_answer_without_budget_left_has_no_verdict_even_where_one_is_remembered(monkeypatch):
    spent = ComparisonBudget()
    assert spent.agree("(x+52)(x-52)", "x^2-2704")
    spent.seconds = 0.0
    with math_comparison.comparisons_without_verdict() as missing:
        assert not spent.agree("(x+52)(x-52)", "x^2-2704")
    assert missing == [("(x+52)(x-52)", "x^2-2704")]


def test_no_verdict_is_missing_in_every_reward_and_never_a_zero(monkeypatch):
    monkeypatch.setattr("pipeline.rewards.functions.grade", lambda problem, text: Verdict(None))
    text, problem = "1+1=2</think>2", Problem(question="1 and 1", answer="2")
    for reward in (correctness, brevity, coherence, step_rewards):
        assert reward(problem, text) is None
    rubric = Rubric({"correctness": 1.0, "well_formed": 0.2, "steps": 0.5})
    assert rubric.total(problem, text) is None and rubric.step_function()(problem, text) is None
    # Also well_formed is None, or TRL would pay the completion as a wrong one.
    for function in rubric.functions().values():
        assert [function(problem, given) for given in (text, "never closed")] == [None, 0.0]
    for function in rubric.trl_functions([problem]):
        assert function([text, "never closed"], problem=[0, 0]) == [None, 0.0]
    (formed,) = Rubric({"well_formed": 1.0}).functions().values()  # needs no verdict
    assert formed(problem, text) == 1.0


# ---- programs and puzzles ----


def test_a_program_that_waits_for_a_processor_is_not_mistaken_for_one_that_sleeps():
    test = DOUBLE | {"outputs": [4]}
    nap = "def f(x):\n    import time\n    time.sleep(0.4)\n    return 2 * x"
    sleeps = nap.replace("0.4", "600")
    assert grade_program(nap, test).right is True
    assert grade_program(sleeps, test, Limits(asleep_seconds=0.3)) == Verdict(False, "asleep")
    starved = Limits(asleep_seconds=600, wall_seconds=0.4)
    assert grade_program(sleeps, test, starved) == Verdict(None, "no verdict")


def test_a_program_without_a_verdict_is_run_once_more(monkeypatch):
    runs = []

    def graded(*args) -> Verdict:
        runs.append(args)
        return Verdict(None, "no verdict") if len(runs) == 1 else Verdict(True)

    monkeypatch.setitem(grade_program.__globals__["_GRADERS"], "calls", graded)
    assert grade_program(OTHER, DOUBLE).right is True and len(runs) == 2


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    """The worker of puzzles on a package of the same shape, whose scorer spins at `spin`."""
    (tmp_path / "reasoning_gym.py").write_text(
        "import time\n__path__ = []\n"
        "class Data:\n"
        "    def __getitem__(self, index):\n"
        "        end = time.process_time() + 0.3\n"
        "        while time.process_time() < end: pass\n"
        "        return {'answer': str([7, 8][index])}\n"
        "    def score_answer(self, answer, entry):\n"
        "        while answer == 'spin': pass\n"
        "        return 1.0 if answer == entry['answer'] else 0.5 / (answer != 'zero')\n"
        "def create_dataset(task, **settings): return Data()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("puzzle_worker", package="reasoning_gym")
    yield lambda answer, index=0: worker.compare(
        json.dumps({"task": "t", "settings": {}, "index": index}), answer, (0.1, 0.2)
    )
    worker.close()


def test_the_time_to_generate_a_puzzle_does_not_count_and_an_endless_scorer_has_no_verdict(scorer):
    assert scorer("7")[0] == "equal" and scorer("8")[0] == "different"
    assert scorer("zero")[0] == "failed"
    assert scorer("spin") == ("timeout", pytest.approx(0.3))
    assert scorer("8", index=1)[0] == "equal"


def test_a_puzzle_that_cannot_be_generated_gives_no_verdict(scorer):
    assert scorer("7", index=9)[0] == "lost"


# ---- a grader never raises ----


def plain_value(rng: random.Random, depth: int = 0):
    """Any value that a program may return or a test may expect."""
    atoms = [
        None, True, False, 0, 1, -1, 10**400, -(10**5000), 1.5, 1e300, -0.0, 5e-324, math.inf,
        -math.inf, math.nan, 1j, complex(math.inf, 0), "", "1", "\ud800", b"\x00",
        frozenset((1, (2,))), int, {1, "a"},
    ]  # fmt: skip
    if depth > 3 or rng.random() < 0.5:
        return rng.choice(atoms)
    inner = [plain_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.choice([list, tuple, lambda values: dict(enumerate(values))])(inner)


def test_any_value_can_be_compared_with_any_other():
    rng = random.Random(0)
    values = [plain_value(rng) for _ in range(400)]
    for value in values:
        assert all(same_value(value, other) in (True, False) for other in rng.sample(values, 40))
        assert same_value(value, value)


def test_values_of_any_depth_can_be_compared():
    deep, other = [1], [2]
    for _ in range(100_000):
        deep, other = [deep], [other]
    assert same_value(deep, deep) and not same_value(deep, other) and not same_value(deep, 1)
    while deep:  # taken apart by hand: the interpreter recurses
        deep, other = deep[0] if isinstance(deep, list) else None, None


@pytest.mark.parametrize("expected", [10**400, -(10**400), [1e300], math.inf, {"a": 10**400}, None])
@pytest.mark.parametrize(
    "value", ["1.5", "float('inf')", "float('nan')", "[1e300 * 10]", "{'a': 1.5}"]
)
def test_a_float_is_not_a_number_that_no_float_can_be(value, expected):
    verdict = grade_program(f"def f(x): return {value}", DOUBLE | {"outputs": [expected]})
    assert verdict.right is (expected == math.inf and value == "float('inf')")


def test_integers_of_thousands_of_digits_can_be_returned():
    test = DOUBLE | {"inputs": [[2000]], "outputs": [math.factorial(2000)]}
    program = "import math\ndef f(x): return math.factorial(x)"
    assert grade_program(program, test).right is True
    assert grade_program(program + " + 1", test).right is False


@pytest.mark.parametrize(
    "check", ["{", "[]", "{}", '{"judge": "program", "kind": "song"}', '{"judge": "puzzle"}', "7"]
)
def test_a_check_that_cannot_be_read_gives_no_verdict(check):
    assert grade(Problem(question="", answer="7", check=check), "x = 7").right is None


def test_an_error_of_the_grader_gives_no_verdict(monkeypatch):
    def broken(text: str, expected: str, question: str) -> bool:
        raise RecursionError

    monkeypatch.setattr("pipeline.grading.grader.same_answer", broken)
    problem = Problem(question="", answer="never seen before")
    assert grade(problem, "another").why == "the grader broke: RecursionError"


def test_a_missing_verdict_is_not_remembered(monkeypatch):
    def broken(text: str, expected: str, question: str) -> bool:
        raise MemoryError

    problem = Problem(question="", answer="graded at the second call")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.grading.grader.same_answer", broken)
        assert grade(problem, problem.answer).right is None
    assert grade(problem, problem.answer).right is True
    starved = [Verdict(None, "no verdict"), Verdict(True)]
    monkeypatch.setattr("pipeline.grading.grader.grade_program", lambda text, test: starved.pop(0))
    assert [grade(PROGRAM, "never seen").right for _ in range(3)] == [None, True, True]


def test_random_text_is_graded_without_raising():
    rng = random.Random(1)
    signs = "09xX+-*/^(){}[],.=$%\\ \n`~#<>|&_:'\"def f()return\ud800\u200b\0"
    for _ in range(300):
        text = "".join(rng.choice(signs) for _ in range(rng.randrange(60)))
        for problem in (BOMB, Problem(question="", answer=text or "1")):
            assert grade(problem, text).right in (True, False, None)


# ---- one grader everywhere ----


def test_only_the_grader_votes_and_text_metrics_compare_strings():
    importing = {
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "stages", "eval")
        for path in (ROOT / folder).rglob("*.py")
        if "same_answer" in path.read_text() and "import" in path.read_text()
        and any("same_answer" in line for line in path.read_text().splitlines() if "import" in line)
    }  # fmt: skip
    # eval.bias asks which option of a BBQ question an answer names, right or wrong.
    text_metrics = ("eval/metrics/", "eval/bench/", "eval/bias.py")
    others = {path for path in importing if not path.startswith(text_metrics)}
    grading = {"pipeline/grading/__init__.py", "pipeline/grading/grader.py"}
    assert others == {"pipeline/search/consensus.py"} | grading


def test_steps_and_the_verifier_are_graded_by_the_check_of_the_problem():
    session = SimpleNamespace(answer=lambda q, branch: Answer(text=OTHER))
    assert eval.verifier._right(session, 0, None, [PROGRAM]) is True
    assert not same_answer(OTHER, PROGRAM.answer)
    assert Rubric({"steps": 1.0}).step_function()(PROGRAM, f"2*2=4</think>{OTHER}") == [(4, 1.0)]
    record = {"question": "", "expected": PROGRAM.answer, "check": PROGRAM.check}
    assert grade(eval.value_trace._problem(record), OTHER).passed


def test_the_samples_of_the_verifier_leave_out_answers_without_a_verdict(
    tiny_policy, tokenizer, monkeypatch
):
    verdicts = iter([True, None, False, None])
    monkeypatch.setattr(
        "pipeline.verifier.offline.grade", lambda problem, text: Verdict(next(verdicts, False))
    )
    config = VerifierConfig(output_dir="x", completions_per_question=4, max_completion_length=4)
    drawn = draw_samples(tiny_policy, tokenizer, [PROGRAM, PROGRAM], config)
    graded = 4 - len(list(verdicts))
    assert len(drawn) == 8 - [True, None, False, None][:graded].count(None)


def test_samples_of_one_final_answer_are_graded_apart_where_the_problem_has_a_check():
    said = [f"```python\n{body}\n```\nThe answer is f." for body in (OTHER, "def f(x): return 1")]
    row = samples_row(PROGRAM, [Answer(text=text) for text in said], 0.0, True)
    assert [s["correct"] for s in row["samples"]] == [True, False]


def test_an_answer_without_a_verdict_counts_in_n_and_is_reported():
    row = {
        "correct": False, "no_verdict": True, "level": "", "reasoning": "", "finish_reason": "stop",
        "usage": vars(Usage()), "seconds": 0.0,
    }  # fmt: skip
    found = scores([row, row | {"correct": True, "no_verdict": False}])
    assert (found["n"], found["no_verdict"], found["accuracy"]) == (2, 1, 0.5)
    said = summary(found | {"suite": "s", "strategy": "greedy"})
    assert said.endswith(", 1 without a verdict")


@pytest.mark.slow
def test_verdicts_under_load_are_those_of_an_idle_machine():
    from eval.bench.verdict_stability import main

    assert main(["--pairs", "300", "--busy", "20", "--programs", "8"]) == 0


def test_the_pairs_of_the_load_test_are_all_different_and_half_of_them_right():
    made = pairs(60)
    assert len(set(made)) == 60
    right = [grade(Problem(question="", answer=expected), text).right for text, expected in made]
    assert None not in right and 15 < sum(right) < 45
    assert len(programs(8)) == 8
