"""generate_completion with its bounds, the practices of prompting, the reward for the thought."""

import pytest

from pipeline.chat.prompting import delimited, prompting_advice
from pipeline.records import Problem
from pipeline.rewards.annotated import annotated_thought
from pipeline.rewards.rubric import REWARDS, Rubric
from pipeline.search import generate_completion
from pipeline.search.completion import RESERVED_TOKENS, check_room

QUESTION = "What is 2+3?"


def test_the_two_lists_are_the_completion_and_the_usage_counts_them(planted, tokenizer):
    model = planted({"2+3=5</think>5<eos>": 1.0})
    found = generate_completion(model, tokenizer, QUESTION, max_completion_tokens=32)
    assert (found.thought, found.text, found.finish_reason) == ("2+3=5", "5", "stop")
    assert found.completion_tokens == model.ids("2+3=5</think>5<eos>")
    assert found.reasoning_tokens == model.ids("2+3=5</think>")
    assert found.visible_tokens == model.ids("5<eos>")
    assert (found.usage.reasoning_tokens, found.usage.visible_tokens) == (6, 2)


@pytest.mark.parametrize("most", [1, 3, 6, 7, 8])
def test_thought_and_answer_together_stay_within_their_bound(planted, tokenizer, most):
    model = planted({"2+3=5</think>5<eos>": 1.0})
    found = generate_completion(model, tokenizer, QUESTION, max_completion_tokens=most)
    assert len(found.completion_tokens) == most
    assert found.finish_reason == ("stop" if most == 8 else "length")


def test_a_bound_of_the_thought_leaves_the_rest_to_the_answer(planted, tokenizer):
    model = planted({"2+3=5, so it is 5</think>5<eos>": 1.0, "2+3=</think>5<eos>": 1e-9})
    found = generate_completion(
        model, tokenizer, QUESTION, max_completion_tokens=8, max_reasoning_tokens=5
    )
    assert (found.thought, found.text) == ("2+3=", "5")
    assert len(found.reasoning_tokens) == 5


@pytest.mark.parametrize("most", [1, 2, 5, 20])
def test_a_thought_is_closed_at_its_bound_in_a_longer_completion(planted, tokenizer, most):
    cut = {f"{'a' * k}</think>5<eos>": 1e-9 for k in range(20)}
    model = planted({f"{'a' * 60}</think>7<eos>": 1.0} | cut)
    found = generate_completion(
        model, tokenizer, QUESTION, max_completion_tokens=40, max_reasoning_tokens=most
    )
    assert (found.thought, found.text) == ("a" * (most - 1), "5")
    assert len(found.reasoning_tokens) == found.usage.reasoning_tokens == most


@pytest.mark.parametrize(
    ("think", "completion", "reasoning"),
    [
        (True, ["1+1</think>", "2", "<think>no</think>", "5<eos>"], [0, 2]),
        (False, ["<think>no</think>", "5<eos>"], [0]),
    ],
)
def test_a_thought_that_is_opened_by_the_model_is_not_visible(
    planted, tokenizer, think, completion, reasoning
):
    model = planted({})
    think_id = tokenizer.convert_tokens_to_ids("<think>")
    parts = [
        [think_id] * part.startswith("<think>") + model.ids(part.removeprefix("<think>"))
        for part in completion
    ]
    ids = [i for part in parts for i in part]
    model.completions = {tuple(([] if think else model.ids("</think>")) + ids): 1.0}
    found = generate_completion(model, tokenizer, QUESTION, max_completion_tokens=32, think=think)
    assert found.completion_tokens == ids
    assert found.reasoning_tokens == [i for k in reasoning for i in parts[k]]
    assert len(found.reasoning_tokens) == found.usage.reasoning_tokens
    assert found.visible_tokens == [i for i in ids if i not in found.reasoning_tokens]
    assert len(found.visible_tokens) == found.usage.visible_tokens


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"max_completion_tokens": 0}, "max_completion_tokens=0 must be at least 1"),
        ({"max_completion_tokens": 8, "max_reasoning_tokens": 8}, "so that an answer has room"),
        ({"max_completion_tokens": 100}, "max_completion_tokens=100 does not fit: the question"),
        ({"max_completion_tokens": 8, "reserve": 60}, "reserve=60 does not fit"),
    ],
)
def test_a_bound_that_cannot_be_kept_is_refused(planted, tokenizer, bounds, said):
    model = planted({"2+3=5</think>5<eos>": 1.0}, window=64)
    with pytest.raises(ValueError, match=said):
        generate_completion(model, tokenizer, QUESTION, **bounds)


def test_the_reserve_of_25000_tokens_is_kept_at_its_last_token(planted):
    model = planted({"<eos>": 1.0}, window=131_072)
    check_room(model, 131_072 - RESERVED_TOKENS, 1, RESERVED_TOKENS)
    with pytest.raises(ValueError, match=r"reserve=25000 does not fit.*has room for 24999"):
        check_room(model, 131_073 - RESERVED_TOKENS, 1, RESERVED_TOKENS)


# ---- 5.3 ----


def test_advice_names_what_the_practices_of_prompting_leave_out():
    assert prompting_advice("Let's think about 2+2.")[0].startswith("""leave out "Let's think\"""")
    assert "2,001 words" in prompting_advice("word " * 2001)[0]
    parts = {"letter": "Dear Ann", "reply": "Dear Bob"}
    assert "delimiters" in prompting_advice("Compare.\n\nDear Ann\n\nDear Bob")[0]
    assert prompting_advice(delimited("Compare.", parts)) == []


@pytest.mark.parametrize(("name", "text"), [("a b", ""), ("think", ""), ("a", "x</a>y")])
def test_a_part_that_could_not_be_told_from_the_rest_is_refused(name, text):
    with pytest.raises(ValueError, match="part"):
        delimited("Q", {name: text})


# ---- 4.3.3 ----

SUM = Problem(question="?", answer="10", thought="2+3=5\n5*2=10")
WORDS = Problem(question="?", answer="b", thought="Ann is older.\nSo Bob is younger.")


@pytest.mark.parametrize(
    ("problem", "completion", "value"),
    [
        (SUM, "2+3=5\n5*2=10</think>10", 1.0),
        (SUM, "First 3+2=5.\nThen 2*5=10</think>10", 1.0),
        (SUM, "2+3=5\n2+3=5\n5*2=10\n1+1=2</think>10", 4 / 6),
        (SUM, "2+3=6\n6*2=12</think>12", 0.0),
        (SUM, "no steps</think>10", 0.0),
        (SUM, "2+3=5\n5*2=10", 0.0),
        (WORDS, "ann is  older\nBob is 7</think>b", 0.5),
        (Problem(question="?", answer="1"), "1+0=1</think>1", 0.0),
    ],
)
def test_the_thought_is_compared_with_the_annotated_one_step_by_step(problem, completion, value):
    assert annotated_thought(problem, completion) == pytest.approx(value)


def test_the_comparison_is_a_reward_that_can_be_logged_alone():
    assert "annotated_thought" in REWARDS
    rubric = Rubric({"correctness": 1.0, "annotated_thought": 0.0})
    completion = "2+3=5\n5*2=10</think>10"
    assert rubric.score(SUM, completion) == {"correctness": 1.0, "annotated_thought": 1.0}
    assert rubric.total(SUM, completion) == 1.0
