"""Step rewards: the check of each equation, the positions of rewards, and padding with steps."""

import random
import time

import pytest

from pipeline.grading.arithmetic import equations_hold, equations_in, numbers_in
from pipeline.records import Problem
from pipeline.rewards import check_steps, coherence, correct_steps, self_correction, step_rewards
from pipeline.rewards.steps import MAX_STEPS

# (12 + 7) * 3 = 57
PROBLEM = Problem(question="Ann has 12 eggs, gets 7 more, then has 3 times as many.", answer="57")
RIGHT = "12+7=19\n19*3=57</think>57"
WRONG = "12+7=18\n18*3=54</think>54"

# Padding that a policy might find: true, false, repeated, unused, circular.
SPAM = [
    "1+1=2",
    "1+1=2\n2+1=3\n3+1=4\n4+1=5",
    "12+7=19\n12+7=19\n12+7=19",
    "7+12=19",
    "12+0=12\n12*1=12",
    "57+0=57",
    "57-1=56\n56+1=57",
    "50+7=57",
    "19*3=57\n19*3=57",
    "3*19=57",
    "12+3=15\n15+7=22",
    "12-7=5\n12*7=84\n7*3=21\n12*3=36",
    "1*1=1\n" * 50,
    "12/3=4\n4*3=12\n12/3=4",
]


def total(problem: Problem, completion: str) -> float:
    return sum(reward for _, reward in step_rewards(problem, completion))


def flags(question: str, thought: str, answer: str = "") -> list[str]:
    names = ("holds", "grounded", "used", "repeated")
    steps = check_steps(question, thought, answer)
    return ["".join(name[0] for name in names if getattr(step, name)) for step in steps]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("12+7=19", True),
        ("12 + 7 = 19", True),
        ("12+7=18", False),
        ("5-8=-3", True),
        ("-3+5=2", True),
        ("6*7=42", True),
        ("6x7=42", True),
        ("6 \N{MULTIPLICATION SIGN} 7 = 42", True),
        (r"6 \times 7 = 42", True),
        ("84/2=42", True),
        ("84\N{DIVISION SIGN}2=42", True),
        ("7/2=3.5", True),
        ("7/2=3", False),
        ("10/3=3.33", False),
        ("5/0=0", False),
        ("0/5=0", True),
        ("1,200+34=1,234", True),
        ("0.1+0.2=0.3", True),
        ("18*.5=9.00", True),
        (".25/.05=5", True),
        ("2-.5=1.6", False),
        ("$5 * 3 = $15", True),
        ("<<48/2=24>>24", True),
        ("2+3*4=14", True),
        ("2+3*4=20", False),
        ("10-4-3=3", True),
        ("20\N{EN DASH}5 = 15", True),
        ("20\N{EN DASH}5+3=18", True),
        ("2\N{DOT OPERATOR}5+3=13", True),
        ("2\N{ASTERISK OPERATOR}5+3=13", True),
        ("6\N{DIVISION SLASH}2+3=6", True),
        ("2 x $5 = $10", True),
        ("a total of 5+3=8", True),
    ],
)
def test_a_step_holds_exactly_or_not_at_all(text, holds):
    (step,) = check_steps("", text)
    assert step.holds is holds


@pytest.mark.parametrize(
    "text",
    [
        "(2+3)*4=20",
        "2+3=5+1",
        "12=12",
        "x+3=5",
        "2+3",
        "=5",
        "1.2.3+1=2",
        "2+3=5%",
        "2^3+1=9",
        "1" * 20 + "+1=2",
        "2+\n3=5",
        "2 apples + 3 apples = 5 apples",
        # Algebra: x is no multiplication sign before another sign.
        "2x-5=13",
        "so 3x-8=-5",
        "9-3=8x-8",
        "√16+3=7",
        "20% of 50+5=15",
        "half of 20+4=14",
        "7 plus 2+1=10",
        # The result goes on.
        "7/2=3 1/2",
        "17/3 = 5 and 2/3",
        r"7/2=3\frac12",
        "7/2=3 remainder 1",
        r"7\div2=3\text{ remainder }1",
        "7/2=3R1",
        r"7\cdot 720=5,\!040",
        r"20\cdot20=4\cdot100",
        "20*20=8(30+20)",
        "9+1=12_8",
        "5+8=1:00",
        "16,0000/10=16000",
    ],
)
def test_a_part_of_a_longer_equation_is_not_a_step(text):
    assert check_steps("", text) == []


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("2+3=5,5*4=21", [("2+3=5", True), ("5*4=21", False)]),
        ("3+4=7,7+1=8,8+1=9", [("3+4=7", True), ("7+1=8", True), ("8+1=9", True)]),
        ("Step 1 \N{EN DASH} 3+4=7", [("3+4=7", True)]),
        ("Monday \N{EN DASH} 3+4=8", [("3+4=8", False)]),
        ("3+4=8(apples)", [("3+4=8", False)]),
        ("2*5=11 and 1/2 of them", [("2*5=11", False)]),
    ],
)
def test_steps_are_found_beside_commas_labels_and_words(text, steps):
    assert [(text[s.start : s.end], s.holds) for s in check_steps("", text)] == steps


def test_a_step_has_its_position_in_the_thought():
    thought = "So 12 + 7 = 19 eggs.\n1. 19*3=57"
    assert [thought[s.start : s.end] for s in check_steps("", thought)] == [
        "12 + 7 = 19",
        "19*3=57",
    ]
    assert all(s.text == thought[s.start : s.end] for s in check_steps("", thought))


def test_grounded_are_question_numbers_earlier_results_and_their_place_values():
    # 46 is 40 and 6: 46 * 6 by place value; 240 + 36 are earlier results.
    assert flags("46 times 6", "40*6=240\n6*6=36\n240+36=276") == ["hgu", "hgu", "hgu"]
    # 13 is nowhere in the question, and 1+1 is constants only.
    assert flags("46 times 6", "13+6=19") == ["hu"]
    assert flags("46 times 9", "1+1=2") == ["hu"]
    # 276 is 200, 70 and 6: used where all its places are, known where one of them is.
    assert flags("46, 6", "46*6=276\n200+70=270") == ["hg", "hgu"]
    assert flags("46, 6", "46*6=276\n200+70=270\n270+6=276")[0] == "hgu"
    assert flags("46, 6", "46*6=276\n200*2=400\n70+6=76\n400+76=476")[0] == "hgu"
    assert flags("46, 6", "46*6=276\n200/2=100") == ["hg", "hgu"]
    # Words count as numbers, and a hundred is a constant for percentages.
    assert flags("Half of twelve", "12/2=6") == ["hgu"]
    assert flags("35 per cent of 80", "80*35=2800\n2800/100=28") == ["hgu", "hgu"]


def test_a_false_result_is_not_known_to_later_steps():
    # 18 came from a false step, so 18*3 has no ground, true as it is.
    assert flags("12, 7, 3", "12+7=18\n18*3=54") == ["gu", "hu"]


def test_a_step_is_used_where_its_result_leads_to_the_answer():
    thought = "12+7=19\n12*7=84\n84+3=87\n19*3=57"
    assert flags("12, 7, 3", thought, "57") == ["hgu", "hg", "hg", "hgu"]
    # Without an answer the last result stands for it.
    assert flags("12, 7, 3", thought) == flags("12, 7, 3", thought, "57")


def test_an_equation_with_swapped_operands_is_a_repetition():
    assert flags("12, 7", "12+7=19\n7+12=19\n19-7=12\n19-7=12", "12") == [
        "hgu",
        "hgur",
        "hgu",
        "hgur",
    ]
    # A corrected sum is not a repetition.
    assert flags("12, 7", "12+7=18\n12+7=19") == ["g", "hgu"]


def test_a_right_answer_shares_one_among_the_steps_that_lead_to_it():
    # Last characters: "12+7=19" is 0..6, "19*3=57" is 8..14.
    assert step_rewards(PROBLEM, RIGHT) == [(6, 0.5), (14, 0.5)]
    assert RIGHT[6] == "9" and RIGHT[14] == "7"


def test_a_repeated_or_unused_step_has_no_share():
    # Two of the five steps lead to 57: the first and the last. The second repeats the first.
    thought = "12+7=19\n7+12=19\n12*7=84\n1+1=2\n19*3=57"
    rewards = [reward for _, reward in step_rewards(PROBLEM, f"{thought}</think>57")]
    assert rewards == [0.5, -0.05, 0.0, 0.0, 0.5]


def test_the_penalty_of_a_wrong_answer_is_at_its_first_false_step():
    assert step_rewards(PROBLEM, WRONG) == [(6, -1.0), (14, 0.0)]
    twice_wrong = "12+7=18\n18*3=55</think>55"
    assert step_rewards(PROBLEM, twice_wrong) == [(6, -1.0), (14, 0.0)]


def test_the_penalty_of_a_wrong_answer_without_a_false_step_is_at_its_end():
    completion = "12+7=19</think>19"
    assert step_rewards(PROBLEM, completion) == [(6, 0.0), (len(completion) - 1, -1.0)]


@pytest.mark.parametrize("completion", ["", "12+7=19", "57", "</think>", "a</think>b</think>57"])
def test_a_malformed_completion_is_a_wrong_answer(completion):
    assert total(PROBLEM, completion) == -1.0
    assert all(0 <= at < max(len(completion), 1) for at, _ in step_rewards(PROBLEM, completion))


def test_a_false_step_reduces_the_reward_of_a_right_answer_by_a_quarter():
    left_standing = "12+7=18\n7+12=19\n19*3=57</think>57"
    assert step_rewards(PROBLEM, left_standing) == [(6, -0.25), (14, 0.5), (22, 0.5)]
    # Eight false steps cost 1, not 2: right, without any true step, is not below wrong.
    assert total(PROBLEM, "1+1=3\n" * 8 + "</think>57") == pytest.approx(-1.0)


def test_a_corrected_step_changes_no_reward():
    mended = "12+7=18\nNo, 12+7 is not 18.\n12+7=19\n19*3=57</think>57"
    assert [reward for _, reward in step_rewards(PROBLEM, mended)] == [0.0, 0.5, 0.5]
    assert total(PROBLEM, mended) == total(PROBLEM, RIGHT) == 1.0


def test_the_penalty_of_a_wrong_answer_is_not_at_a_corrected_step():
    completion = "12+7=18\n12+7=19\n19*3=56</think>56"
    assert [reward for _, reward in step_rewards(PROBLEM, completion)] == [0.0, 0.0, -1.0]


def test_self_correction_needs_a_false_step_and_a_correction_of_each():
    assert self_correction(PROBLEM, "12+7=18\n12+7=19</think>19") == 1.0
    assert self_correction(PROBLEM, "12+7=18\n12+7=19\n19*3=56</think>56") == 0.0
    assert self_correction(PROBLEM, RIGHT) == 0.0


def test_coherence_is_the_share_of_leading_steps_of_a_right_answer():
    assert coherence(PROBLEM, RIGHT) == 1.0
    assert coherence(PROBLEM, "1+1=2\n" * 2 + RIGHT) == 0.5
    assert coherence(PROBLEM, WRONG) == coherence(PROBLEM, "I know</think>57") == 0.0


@pytest.mark.parametrize("spam", SPAM)
@pytest.mark.parametrize("place", ["before", "after"])
def test_padding_with_steps_never_raises_the_reward(spam, place):
    for completion in (RIGHT, WRONG):
        thought, answer = completion.split("</think>")
        lines = (spam, thought) if place == "before" else (thought, spam)
        spammed = "\n".join(lines) + "</think>" + answer
        assert total(PROBLEM, spammed) <= total(PROBLEM, completion) + 1e-9


@pytest.mark.parametrize("spam", SPAM)
def test_padding_alone_gets_no_more_than_a_wrong_answer(spam):
    assert total(PROBLEM, f"{spam}</think>54") == total(PROBLEM, WRONG)


@pytest.mark.parametrize("guess", ["57+0=57", "57-1=56\n56+1=57", "1+1=2\n2+1=3", "50+7=57"])
def test_steps_without_numbers_of_the_question_get_nothing_for_a_guessed_answer(guess):
    problem = Problem(question="Ann has 12 eggs, then 4 times as many and 9.", answer="57")
    assert total(problem, f"{guess}</think>57") == 0.0


def test_rewards_stay_within_one_and_wrong_is_never_above_right():
    rng = random.Random(0)
    numbers = ["12", "7", "3", "19", "57", "1", "18"]
    for _ in range(300):
        lines = [
            f"{rng.choice(numbers)}{rng.choice('+-*/')}{rng.choice(numbers)}={rng.choice(numbers)}"
            for _ in range(rng.randint(0, 8))
        ]
        thought = "\n".join(lines)
        right, wrong = (total(PROBLEM, f"{thought}</think>{n}") for n in ("57", "58"))
        assert wrong == -1.0 <= right <= 1.0 + 1e-9


def test_lines_of_noise_change_no_reward():
    noisy = "Let me think.\n12+7=19 eggs.\nHmm!\nSo 19*3=57</think>57"
    assert [r for _, r in step_rewards(PROBLEM, noisy)] == [0.5, 0.5]


def test_the_share_of_steps_that_hold_is_zero_without_steps():
    assert correct_steps(PROBLEM, RIGHT) == 1.0
    assert correct_steps(PROBLEM, "12+7=19\n19*3=56</think>57") == 0.5
    assert correct_steps(PROBLEM, "no sums</think>57") == 0.0


def test_long_garbage_is_read_in_linear_time():
    for text in ("9" * 200_000, "1+" * 50_000, "1 " * 100_000, "=" * 100_000, "1,234" * 40_000):
        assert list(equations_in(text)) == []


def seconds(function, *arguments) -> float:
    """Seconds of processor time, the least of three."""

    def once() -> float:
        begin = time.process_time()
        function(*arguments)
        return time.process_time() - begin

    return min(once() for _ in range(3))


THOUGHTS = {
    "the same step": lambda k: "1+1=2\n" * k,
    "steps that share nothing": lambda k: "".join(f"{i}+{3 * i}={4 * i}\n" for i in range(k)),
    "steps that lead to each other": lambda k: "".join(f"{i}+1={i + 1}\n" for i in range(k)),
    "false steps": lambda k: "".join(f"{i}+1={i}\n" for i in range(k)),
    "steps that are corrected": lambda k: "12+7=18\n12+7=19\n" * (k // 2),
    "long steps": lambda k: ("1.5*" * 12 + "2=7\n") * (k // 4),
}


@pytest.mark.parametrize("thought", THOUGHTS.values(), ids=THOUGHTS)
def test_step_rewards_take_time_in_proportion_to_the_thought(thought):
    small, large = (f"{thought(k)}</think>{k}" for k in (MAX_STEPS // 16, MAX_STEPS // 4))
    problem = Problem(question="1 and 1", answer=str(MAX_STEPS // 4))
    assert seconds(step_rewards, problem, large) < 10 * seconds(step_rewards, problem, small) + 0.1


NOISE = ["9", "1+", "1 ", "=", "1,234", "1+1 ", "1-", "$1", ".1", "1.1.", "1 + \t", "1x",
         "\\times 1", "1+1=", "2=", "a1+1=2", "(1)", "- 1"]  # fmt: skip


@pytest.mark.parametrize("piece", NOISE)
def test_equations_are_found_in_time_in_proportion_to_the_text(piece):
    def read(characters: int) -> None:
        text = piece * (characters // len(piece))
        list(equations_in(text)), numbers_in(text), equations_hold(text + " " * characters)

    assert seconds(read, 8_000) < 10 * seconds(read, 2_000) + 0.1


def test_steps_beyond_the_limit_change_no_reward():
    plain = step_rewards(PROBLEM, RIGHT)
    padded = RIGHT.replace("</think>", "\n" + "12+7=20\n" * (MAX_STEPS + 50) + "</think>")
    rewards = step_rewards(PROBLEM, padded)
    assert len(rewards) == MAX_STEPS and rewards[:2] == plain
    assert sum(reward for _, reward in rewards) >= -1.0
    late = "1+1=2\n" * MAX_STEPS + "12+7=18</think>18"
    assert step_rewards(PROBLEM, late)[-1] == (len(late) - 1, -1.0)
