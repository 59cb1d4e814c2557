"""Made-up arithmetic: every sum holds, train and test are apart, the suites are what they say."""

import re
from collections import Counter

import pytest

from pipeline.data.arithmetic_problems import (
    DRILLS,
    KINDS,
    NANO,
    PRACTICE,
    SUITES,
    in_test,
    make_arithmetic_problems,
    suite_problems,
)
from pipeline.data.decomposed import decompose
from pipeline.grading.arithmetic import equations_in
from pipeline.records import Problem

STEP = re.compile(r"^(\d+)([-+*/])(\d+)=(\d+)$")
WORDS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "doubles": 2, "triples": 3}
ALL = {kind: 1.0 for kind in KINDS if kind not in DRILLS}


@pytest.fixture(scope="module")
def train() -> list[Problem]:
    return make_arithmetic_problems(ALL, size=5000, seed=1)


@pytest.fixture(scope="module")
def test() -> list[Problem]:
    return make_arithmetic_problems(ALL, size=5000, seed=2, split="test")


@pytest.fixture(scope="module")
def decomposed() -> list[Problem]:
    return make_arithmetic_problems(ALL, size=5000, seed=1, decomposed_share=1.0)


def steps_of(problem: Problem) -> list[tuple[int, str, int, int]]:
    found = [STEP.match(line) for line in problem.thought.split("\n")]
    assert all(found), problem
    return [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in found]


def holds(a: int, operator: str, b: int, result: int) -> bool:
    # A division is checked by its product, so that a remainder shows.
    return {"+": a + b == result, "-": a - b == result, "*": a * b == result}.get(
        operator, b * result == a
    )


# ---- thoughts ----


@pytest.mark.parametrize("problems", ["train", "test", "decomposed"])
def test_every_step_holds_and_the_last_one_gives_the_answer(request, problems):
    for problem in request.getfixturevalue(problems):
        steps = steps_of(problem)
        assert all(holds(*step) for step in steps), problem
        assert problem.answer == str(steps[-1][3]), problem


def test_every_number_comes_from_the_question_or_from_a_step_before(train):
    for problem in train:
        known = {int(n) for n in re.findall(r"\d+", problem.question)}
        known |= {n for word, n in WORDS.items() if word in problem.question}
        for a, _, b, result in steps_of(problem):
            assert {a, b} <= known, problem
            known.add(result)


def test_a_story_has_as_many_steps_as_its_level_says(train):
    for problem in train:
        if problem.level.startswith("story"):
            assert len(steps_of(problem)) == int(problem.level.removeprefix("story"))


def test_an_expression_is_worth_its_answer(train):
    expressions = [p for p in train if p.level == "expression"]
    for problem in expressions:
        text = problem.question.removeprefix("Compute ")
        assert re.fullmatch(r"[\d()+*/-]+", text)
        assert eval(text) == int(problem.answer), problem
        assert 2 <= len(steps_of(problem)) <= 3


def test_the_four_wordings_of_o1_nano_have_two_digit_numbers():
    wordings = {
        r"Calculate the sum of (\d+) and (\d+)": "+",
        r"Calculate the difference between (\d+) and (\d+)": "-",
        r"Calculate the product of (\d+) and (\d+)": "*",
        r"Calculate the quotient of (\d+) and (\d+)": "/",
    }
    seen = Counter()
    for problem in suite_problems("o1nano", "test"):
        matches = [(re.fullmatch(w, problem.question), op) for w, op in wordings.items()]
        ((match, operator),) = [(match, op) for match, op in matches if match]
        a, b = int(match[1]), int(match[2])
        assert 10 <= a <= 99
        assert (1 if operator == "/" else 10) <= b <= 99
        assert holds(a, operator, b, int(problem.answer))
        seen[operator] += 1
    assert len(seen) == 4 and min(seen.values()) >= 40


def test_rows_of_equations_hold_and_have_loss_on_their_results_alone():
    for problem in make_arithmetic_problems({"practice": 1.0}, size=50, seed=1):
        lines = problem.thought.split("\n")
        assert len(lines) == PRACTICE and all(each.holds for each in equations_in(problem.thought))
        assert lines[-1].startswith(problem.question.split()[-1] + "=")
        assert lines[-1] == f"{problem.question.split()[-1]}={problem.answer}"
        covered = {i for start, end in problem.untrained_spans for i in range(start, end)}
        trained = "".join(c for i, c in enumerate(problem.thought) if i not in covered)
        assert trained == "\n".join(line.split("=")[1] for line in lines)


def test_rows_of_equations_are_not_broken_into_smaller_steps():
    shares = {"practice": 1.0}
    plain, decomposed = (
        make_arithmetic_problems(shares, size=20, seed=2, decomposed_share=share)
        for share in (0.0, 1.0)
    )
    assert plain == decomposed


def test_practice_is_right_goes_beyond_two_digit_dividends_and_keeps_to_its_side():
    shares = {"product": 1.0, "quotient": 1.0}
    train = make_arithmetic_problems(shares, size=2000, seed=1)
    assert Counter(p.level for p in train) == {"product": 1000, "quotient": 1000}
    dividends = set()
    for problem in train:
        ((a, operator, b, result),) = steps_of(problem)
        assert holds(a, operator, b, result) and problem.answer == str(result)
        assert not in_test((problem.thought,))
        if operator == "/":
            dividends.add(a)
            assert result >= 2 and 2 <= b <= 49
            # What is left behind the tens is of two digits.
            assert a <= 99 or (result % 10 * b <= 99 and result * b <= 999)
    assert min(dividends) < 99 < 900 < max(dividends)
    asked = {p.question for p in suite_problems("o1nano", "test")}
    assert not asked & {p.question for p in train}


def test_training_ends_at_every_multiple_of_a_two_digit_divisor_but_two():
    """A quotient of `tens + ones` is decomposed into the multiples of the divisor up to `ones`."""
    ends = {(b, ones) for b in range(10, 50) for ones in range(2, 99 // b + 1)}
    train = make_arithmetic_problems({"quotient": 1.0}, size=30_000, seed=1)
    seen = {(b, result % 10) for p in train for ((_, _, b, result),) in [steps_of(p)]}
    assert ends - seen == {(20, 2), (32, 2)}  # all of their dividends below 1,000 are test problems
    assert {(12, 7), (12, 8)} <= seen


# ---- decomposed thoughts ----


def test_a_decomposed_thought_takes_smaller_steps_to_the_same_answer(train, decomposed):
    assert [p.question for p in train] == [p.question for p in decomposed]
    assert [p.answer for p in train] == [p.answer for p in decomposed]
    terse = sum(len(steps_of(p)) for p in train)
    assert sum(len(steps_of(p)) for p in decomposed) > 1.2 * terse


def test_every_result_of_the_terse_thought_is_in_the_decomposed_one(train, decomposed):
    for terse, slow in zip(train, decomposed, strict=True):
        results = [result for *_, result in steps_of(slow)]
        for *_, result in steps_of(terse):
            assert result in results, slow
            results = results[results.index(result) + 1 :]


@pytest.mark.parametrize(
    ("leap", "steps"),
    [
        ("54-7=47", ("54-7=47",)),
        ("47+36=83", ("47+30=77", "77+6=83")),
        ("47+32=79", ("47+32=79",)),
        ("9+45=54", ("9+40=49", "49+5=54")),
        ("112-45=67", ("112-40=72", "72-5=67")),
        ("88-65=23", ("88-60=28", "28-5=23")),
        ("85-81=4", ("85-80=5", "5-1=4")),
        ("97-77=20", ("97-70=27", "27-7=20")),
        ("1650+172=1822", ("1650+100=1750", "1750+70=1820", "1820+2=1822")),
        ("28/7=4", ("7*10=70", "28/7=4")),
        (
            "12*13=156",
            ("10*10=100", "10*3=30", "100+30=130", "2*10=20", "130+20=150", "2*3=6", "150+6=156"),
        ),
        ("4*8=32", ("4*8=32",)),
        ("0*8=0", ("0*8=0",)),
        ("84/42=2", ("42*1=42", "84-42=42", "42*2=84", "84-84=0", "84/42=2")),
        (
            "45/15=3",
            (
                "15*1=15",
                "45-10=35",
                "35-5=30",
                "15*2=30",
                "45-30=15",
                "15*3=45",
                "45-45=0",
                "45/15=3",
            ),
        ),
        ("96/4=24", ("4*10=40", "4*20=80", "96-80=16", "16/4=4", "20+4=24")),
        ("96/8=12", ("8*10=80", "96-80=16", "16/8=2", "10+2=12")),
        ("90/3=30", ("3*10=30", "3*30=90", "90-90=0", "90/3=30")),
        ("240/24=10", ("24*10=240", "240-240=0", "240/24=10")),
        ("50/50=1", ("50*1=50", "50-50=0", "50/50=1")),
    ],
)
def test_a_leap_is_cut_by_hand(leap, steps):
    assert decompose((leap,)) == steps


def test_a_share_of_the_thoughts_is_decomposed():
    def draw(decomposed_share: float) -> list[str]:
        shares = {"story4": 1.0}
        problems = make_arithmetic_problems(
            shares, size=2000, seed=3, decomposed_share=decomposed_share
        )
        return [problem.thought for problem in problems]

    terse, mixed, slow = draw(0.0), draw(0.25), draw(1.0)
    rows = [(a, b, c) for a, b, c in zip(terse, mixed, slow, strict=True) if a != c]
    assert len(rows) > 500
    assert all(b in (a, c) for a, b, c in rows)
    assert 0.2 < sum(b == c for _, b, c in rows) / len(rows) < 0.3


# ---- which problems ----


def test_train_and_test_share_no_question_and_no_chain(train, test):
    assert not {p.question for p in train} & {p.question for p in test}
    assert not {p.thought for p in train} & {p.thought for p in test}


def test_a_decomposed_thought_stays_on_the_side_of_its_chain(train, decomposed):
    assert not any(in_test(tuple(p.thought.split("\n"))) for p in train)
    assert {p.source for p in decomposed} == {"nano/train"}


def test_questions_and_ids_of_the_test_split_are_distinct(test):
    assert len({p.question for p in test}) == len({p.id for p in test}) == 5000


def test_hardly_a_question_of_the_train_split_comes_twice(train):
    assert len({p.question for p in train}) > 0.97 * len(train)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_its_size_and_its_kinds_in_equal_shares(name):
    kinds, size = SUITES[name]
    problems = suite_problems(name, "test")
    counts = Counter(p.level for p in problems)
    assert len(problems) == size
    assert counts == dict.fromkeys(kinds, size // len(kinds))
    assert suite_problems(name, "test", limit=7) == problems[:7]
    assert {p.source for p in problems} == {"nano/test"}


def test_shares_are_kept_to_the_last_problem():
    problems = make_arithmetic_problems({"wording": 1, "story1": 2, "story2": 0}, size=100, seed=0)
    assert Counter(p.level for p in problems) == {"wording": 33, "story1": 67}
    assert len({p.level for p in problems[:20]}) == 2  # in random order


def test_the_seed_decides_the_problems():
    def draw(seed: int) -> list[Problem]:
        return make_arithmetic_problems(dict.fromkeys(NANO, 1.0), size=60, seed=seed)

    assert draw(1) == draw(1)
    assert not {p.question for p in draw(1)} & {p.question for p in draw(2)}


def test_the_list_of_a_suite_belongs_to_the_caller():
    suite_problems("o1nano", "test").clear()
    assert len(suite_problems("o1nano", "test")) == 400
    assert suite_problems("o1nano", "test", limit=3) == suite_problems("o1nano", "test")[:3]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("shares", "options", "message"),
    [
        ({"story9": 1}, {}, "kind='story9' is not one of wording, expression, story1"),
        ({"wording": -1}, {}, "share=-1 of kind 'wording' must be at least 0"),
        ({"wording": 0}, {}, "must have at least one above 0"),
        ({}, {}, "must have at least one above 0"),
        ({"wording": 1}, {"split": "dev"}, "split='dev' must be train or test"),
        ({"wording": 1}, {"split": "test", "size": 5000}, "found only .* give a smaller size"),
    ],
)
def test_what_cannot_be_made_is_refused(shares, options, message):
    with pytest.raises(ValueError, match=message):
        make_arithmetic_problems(shares, **{"size": 5, "seed": 0, **options})
