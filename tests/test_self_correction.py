"""Revision traces: where the slip stands, that it is not trained on, and what the checker says."""

import random
import re

import pytest
import torch

from pipeline.chat.tags import END_THINK
from pipeline.data.arithmetic_problems import make_arithmetic_problems
from pipeline.data.self_correction import with_self_correction, with_self_corrections, wrong_number
from pipeline.data.sft_examples import encode_example, thought_and_answer_masks
from pipeline.records import Problem
from pipeline.rewards import check_steps, self_correction

SUM = Problem(question="2*3+1?", thought="2*3=6\n6+1=7", answer="7")


def test_a_revision_is_slip_notice_and_the_step_as_it_was():
    for seed in range(20):
        made = with_self_correction(SUM, random.Random(seed))
        (start, end), lines = made.untrained_spans[0], SUM.thought.splitlines()
        corrupted, notice = made.thought[start:end].rstrip("\n"), made.thought[end:].splitlines()[0]
        assert corrupted not in lines and corrupted.split("=")[0] in notice and "not" in notice
        rest = (made.thought[:start] + made.thought[end:]).replace(notice + "\n", "")
        assert rest == SUM.thought


def test_the_slip_is_false_and_mended_for_the_step_checker():
    made = with_self_correction(SUM, random.Random(3))
    steps = check_steps(SUM.question, made.thought, "7")
    assert [step.holds for step in steps].count(False) == 1
    assert self_correction(SUM, f"{made.thought}</think>7") == 1.0
    assert self_correction(SUM, f"{SUM.thought}</think>7") == 0.0


def test_neither_the_question_nor_the_answer_changes():
    made = with_self_correction(SUM, random.Random(0))
    assert (made.question, made.answer) == (SUM.question, SUM.answer)


@pytest.mark.parametrize("thought", ["", "Think hard.", "x = 5", "so\n" * 9, "1+1=2 " + "x" * 300])
def test_a_thought_without_a_step_to_slip_in_stays(thought):
    problem = Problem(question="?", answer="1", thought=thought)
    assert with_self_correction(problem, random.Random(0)) is problem


@pytest.mark.parametrize("thought", ["-5+7=2", "-4/2=-2", ".20*95 = $19", "1,200/300=4"])
def test_the_denied_sum_is_the_whole_left_side(thought):
    """-5+7=12 could be denied by "5+7 is not 12", which is false."""
    problem = Problem(question="?", thought=thought, answer="1")
    for seed in range(30):
        made = with_self_correction(problem, random.Random(seed))
        denied = re.findall(r"(?:No, |Wait, |: )(.*) is not", made.thought)
        assert denied == [thought.split("=")[0].strip()]


@pytest.mark.parametrize(
    "thought", ["(3)*4+5=17", "2+3=6-1", "40 - 3 - 5 = 31", "40 m - 3 - 5 = 32"]
)
def test_a_part_of_an_equation_and_a_false_equation_are_no_steps(thought):
    problem = Problem(question="?", thought=thought, answer="1")
    assert with_self_correction(problem, random.Random(0)) is problem


def test_a_thought_is_revised_once():
    made = with_self_correction(SUM, random.Random(0))
    assert with_self_correction(made, random.Random(1)) is made


def test_the_share_is_kept_and_the_same_seed_gives_the_same():
    problems = [SUM] * 400
    made = with_self_corrections(problems, share=0.25, seed=1)
    assert 70 <= sum(bool(p.untrained_spans) for p in made) <= 130  # 100, give or take 3 deviations
    assert made == with_self_corrections(problems, share=0.25, seed=1)
    assert with_self_corrections(problems, share=0.0, seed=1) == problems


@pytest.mark.parametrize("right", ["0", "7", "19", "-4", "3.5", "1000"])
def test_a_wrong_number_is_another_number_of_the_same_sign(right):
    for seed in range(50):
        wrong = wrong_number(right, random.Random(seed))
        assert float(wrong) != float(right) and wrong.startswith("-") == right.startswith("-")


def test_the_wrong_step_is_read_but_not_trained_on(tokenizer):
    made = with_self_correction(SUM, random.Random(3))
    example, plain = encode_example(tokenizer, made), encode_example(tokenizer, SUM)
    (start, end) = made.untrained_spans[0]
    trained = [
        i for i, m in zip(example["input_ids"], example["completion_mask"], strict=True) if m
    ]
    shown = made.thought[:start] + made.thought[end:]
    answer = f"{END_THINK}7{tokenizer.eos_token}"
    assert tokenizer.decode(trained).replace(" ", "") == (shown + answer).replace(" ", "")
    assert all(plain["completion_mask"][-3:])


def test_the_hole_of_the_slip_moves_no_token_from_thought_to_answer(tokenizer):
    example = encode_example(tokenizer, with_self_correction(SUM, random.Random(3)))
    ids, mask = (torch.tensor([example[k]]) for k in ("input_ids", "completion_mask"))
    end_think = tokenizer.convert_tokens_to_ids(END_THINK)
    thought, answer = thought_and_answer_masks(ids, mask, end_think)
    assert (thought | answer).equal(mask.bool())
    assert answer.sum() == 2  # 7 and end-of-text


def test_nano_thoughts_can_be_revised():
    problems = make_arithmetic_problems({"story3": 1}, size=30, seed=1)
    made = with_self_corrections(problems, share=1.0, seed=2)
    assert all(p.untrained_spans for p in made)
    assert all(self_correction(p, f"{p.thought}</think>{p.answer}") for p in made)
