"""Strategies on completions written by hand: who wins a vote, and what it cost."""

from collections.abc import Callable

import pytest
import torch

from pipeline.answers import same_answer
from pipeline.records import Answer, Rollout, Usage
from pipeline.search import STRATEGIES, SearchOptions, clusters, elect
from pipeline.tags import END_THINK, THINK

GREEDY = SearchOptions(temperature=0.0)


@pytest.fixture
def script(monkeypatch, tokenizer) -> Callable:
    """`calls = script([...], values=...)`: the sampler gives these completions, whoever asks.

    A completion that does not end in "<eos>" was truncated. `calls` collects what was asked.
    """

    def install(completions: list[str], values: list[float] | None = None) -> list[dict]:
        calls = []

        class ScriptedSampler:
            def __init__(self, model, tokenizer, **settings):
                self.settings = settings

            def sample(self, prompt_ids, *, group=1, progress=None):
                calls.append({"prompts": prompt_ids, "group": group, **self.settings})
                return _rollout(tokenizer, prompt_ids, group, completions, values)

        monkeypatch.setattr("pipeline.search.strategy.Sampler", ScriptedSampler)
        return calls

    return install


def _rollout(tokenizer, prompts, group, completions, values) -> Rollout:
    """Rows padded as a real rollout: prompts left, completions right, values at the last token."""
    rows = [_ids(tokenizer, text) for text in completions]
    prompts_B = [p for p in prompts for _ in range(group)]
    P, C = max(map(len, prompts_B)), max(map(len, rows))
    mask_BC = torch.tensor([[t < len(row) for t in range(C)] for row in rows])
    values_BC = torch.zeros(len(rows), C)
    for b, row in enumerate(rows):
        values_BC[b, : len(row)] = 0.0 if values is None else -9.0
        values_BC[b, len(row) - 1] = 0.0 if values is None else values[b]
    return Rollout(
        prompt_ids_BP=torch.tensor([[0] * (P - len(p)) + p for p in prompts_B]),
        mask_prompt_BP=torch.tensor([[t >= P - len(p) for t in range(P)] for p in prompts_B]),
        completion_ids_BC=torch.tensor([row + [0] * (C - len(row)) for row in rows]),
        mask_completion_BC=mask_BC,
        logprobs_BC=torch.zeros(len(rows), C),
        values_BC=values_BC,
        truncated_B=torch.tensor([not text.endswith("<eos>") for text in completions]),
    )


def _ids(tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text.removesuffix("<eos>"), add_special_tokens=False)
    return ids + [tokenizer.eos_token_id] * text.endswith("<eos>")


def _tokens(tokenizer, text: str) -> int:
    return len(_ids(tokenizer, text))


def test_a_completion_is_cut_into_thought_and_answer(script, tokenizer):
    script([f"12+7=19{END_THINK}19<eos>"])
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["What is 12 + 7?"], GREEDY)
    assert (answer.text, answer.thought, answer.finish_reason) == ("19", "12+7=19", "stop")


def test_the_closing_tag_is_reasoning_and_the_end_token_is_visible(script, tokenizer):
    calls = script([f"12+7=19{END_THINK}19<eos>"])
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["What is 12 + 7?"], GREEDY)
    assert answer.usage == Usage(
        prompt_tokens=len(calls[0]["prompts"][0]),
        reasoning_tokens=_tokens(tokenizer, "12+7=19") + 1,
        visible_tokens=_tokens(tokenizer, "19") + 1,
    )


def test_the_prompt_is_counted_without_its_padding(script, tokenizer):
    calls = script([f"1{END_THINK}1<eos>"] * 2)
    answers = STRATEGIES["greedy"](None, tokenizer, ["What is 12 + 7?", "12+7"], GREEDY)
    lengths = [len(prompt) for prompt in calls[0]["prompts"]]
    assert [a.usage.prompt_tokens for a in answers] == lengths
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize("completion", ["12+7=19", "12+7=19<eos>", f"12+7=19{END_THINK}<eos>"])
def test_without_a_visible_answer_nothing_is_said(script, tokenizer, completion):
    script([completion])
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["q"], GREEDY)
    assert (answer.text, answer.thought, answer.finish_reason) == ("", "12+7=19", "length")


def test_an_answer_the_budget_cut_is_marked(script, tokenizer):
    script([f"7{END_THINK}12"])
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["q"], GREEDY)
    assert (answer.text, answer.finish_reason) == ("12", "length")


def test_without_thinking_every_token_is_visible(script, tokenizer):
    calls = script(["19<eos>"])
    direct = SearchOptions(think=False)
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["12 + 7"], direct)
    assert (answer.text, answer.thought, answer.usage.reasoning_tokens) == ("19", "", 0)
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    assert end_think_id in calls[0]["prompts"][0]


@pytest.mark.parametrize(
    ("completion", "text"), [(f"{THINK}secret{END_THINK}4<eos>", "4"), (f"{THINK}secret<eos>", "")]
)
def test_a_thought_nobody_asked_for_stays_hidden(script, tokenizer, completion, text):
    script([completion])
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["q"], SearchOptions(think=False))
    assert (answer.text, answer.thought) == (text, "secret")


def test_greedy_samples_at_temperature_zero_whatever_the_options_say(script, tokenizer):
    calls = script([f"{END_THINK}4<eos>"])
    options = SearchOptions(temperature=0.9, seed=5, batch_size=3, max_completion_tokens=11)
    STRATEGIES["greedy"](None, tokenizer, ["q"], options)
    del calls[0]["prompts"]
    expected = {"temperature": 0.0, "seed": 5, "batch_size": 3, "max_new_tokens": 11, "group": 1}
    assert calls == [expected]


def test_a_vote_of_two_questions_is_one_batch(script, tokenizer):
    one, two = f"1{END_THINK}1<eos>", f"2{END_THINK}2<eos>"
    calls = script([one, one, two, two, two, one])
    options = SearchOptions(n=3, temperature=0.8)
    answers = STRATEGIES["consensus"](None, tokenizer, ["a", "b"], options)
    assert [a.text for a in answers] == ["1", "2"]
    assert len(calls) == 1
    assert (calls[0]["group"], calls[0]["temperature"]) == (3, 0.8)


def test_all_samples_of_a_vote_are_billed_and_the_prompt_once(script, tokenizer):
    samples = [f"1+1=2{END_THINK}2<eos>", f"3{END_THINK}3<eos>", "1+1+1+1"]
    calls = script(samples)
    (answer,) = STRATEGIES["consensus"](None, tokenizer, ["q"], SearchOptions(n=3))
    spent = sum(_tokens(tokenizer, sample) for sample in samples)
    assert answer.usage.completion_tokens == spent
    assert answer.usage.prompt_tokens == len(calls[0]["prompts"][0])
    assert answer.usage.visible_tokens == _tokens(tokenizer, "2<eos>") + _tokens(
        tokenizer, "3<eos>"
    )


def test_the_value_is_the_last_one_of_those_who_voted_for_the_winner(script, tokenizer):
    two, three = f"1{END_THINK}2<eos>", f"1{END_THINK}3<eos>"
    script([two, three, two], values=[0.5, 0.9, 0.25])
    (answer,) = STRATEGIES["consensus"](None, tokenizer, ["q"], SearchOptions(n=3))
    assert answer.value == 0.375


def test_without_a_value_head_there_is_no_value(script, tokenizer):
    script([f"1{END_THINK}2<eos>"])
    (answer,) = STRATEGIES["greedy"](None, tokenizer, ["q"], GREEDY)
    assert answer.value is None


def test_the_thought_belongs_to_the_winner():
    votes = [Answer(text=t, thought=f"thought {i}") for i, t in enumerate(["3", "4", "4"])]
    assert elect(votes).thought == "thought 1"


def test_a_tie_goes_to_the_answer_seen_first():
    assert elect([Answer(text=t) for t in ["5", "6", "6", "5"]]).text == "5"
    assert elect([Answer(text=t) for t in ["6", "5", "5", "6"]]).text == "6"


def test_unfinished_samples_cast_no_vote():
    cut = [Answer(text="1", finish_reason="length") for _ in range(5)]
    assert elect([*cut, Answer(text="12")]).text == "12"


def test_a_vote_nobody_casts_says_nothing_and_still_costs():
    cut = Answer(text="1", finish_reason="length", usage=Usage(prompt_tokens=3, visible_tokens=2))
    won = elect([cut, cut])
    assert (won.text, won.finish_reason) == ("", "length")
    assert won.usage == Usage(prompt_tokens=3, visible_tokens=4)


def test_votes_count_by_meaning_not_by_spelling():
    votes = [Answer(text=t) for t in ["1,000", "7", "7", "1000", "The answer is 1000.0"]]
    assert same_answer(elect(votes).text, "1000")


def test_a_sum_left_undone_does_not_take_the_votes_for_its_result():
    assert clusters(["40+2", "42", "42"]) == [[1, 2], [0]]


def test_clusters_list_the_largest_first_and_leave_out_the_empty():
    assert clusters(["7", "", "8", "8", "7", "8"]) == [[2, 3, 5], [0, 4]]
    assert clusters(["", ""]) == clusters([]) == []


def test_equal_strings_never_reach_the_judge(monkeypatch):
    asked = []

    def judge(answer: str, expected: str) -> bool:
        asked.append((answer, expected))
        return same_answer(answer, expected)

    monkeypatch.setattr("pipeline.search.consensus.same_answer", judge)
    assert len(clusters(["4"] * 64)[0]) == 64
    assert asked == []
    clusters(["4", "5"] * 32)
    assert asked == [("5", "4")]


def test_more_samples_of_one_answer_never_turn_a_vote():
    votes = [Answer(text=t) for t in ["3", "4", "4"]]
    for _ in range(5):
        votes.append(Answer(text="4"))
        assert elect(votes).text == "4"


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"n": 0}, "n=0 must be a whole number of at least 1"),
        ({"n": 2.7}, "n=2.7 must be a whole number"),
        ({"n": True}, "n=True must be a whole number"),
        ({"batch_size": "64"}, "batch_size='64' must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"temperature": -0.1}, "temperature=-0.1 must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a number"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"think": "no"}, "think='no' must be true or false"),
    ],
)
def test_options_that_make_no_sense_are_refused(bad, rule):
    with pytest.raises(ValueError, match=rule):
        SearchOptions(**bad)


@pytest.mark.parametrize("name", ["greedy", "sample"])
def test_one_sample_is_no_vote(name):
    with pytest.raises(ValueError, match=f"n=4, but {name} gives one sample"):
        STRATEGIES[name](None, None, [], SearchOptions(n=4))


@pytest.mark.parametrize("name", ["sample", "consensus"])
def test_sampling_without_temperature_is_refused(name):
    with pytest.raises(ValueError, match="raise the temperature or take the strategy greedy"):
        STRATEGIES[name](None, None, [], SearchOptions(temperature=0.0))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_questions_get_no_answers(name):
    assert STRATEGIES[name](None, None, [], SearchOptions()) == []


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_real_model_answers_the_same_twice(name, tiny_policy, tokenizer):
    options = SearchOptions(n=3 if name == "consensus" else 1, max_completion_tokens=12, seed=3)
    questions = ["What is 12 + 7?", "Tom has 3 apples and buys 4 more. How many apples?"]
    once, twice = (STRATEGIES[name](tiny_policy, tokenizer, questions, options) for _ in range(2))
    assert once == twice
    for answer in once:
        assert 0 < answer.usage.completion_tokens <= 12 * options.n
        assert answer.value is not None


def test_another_seed_samples_something_else(tiny_policy, tokenizer):
    one, other = (
        SearchOptions(seed=seed, temperature=1.0, max_completion_tokens=12) for seed in (1, 2)
    )
    sample = STRATEGIES["sample"]
    answers = [sample(tiny_policy, tokenizer, ["12 + 7"], options) for options in (one, other)]
    assert answers[0] != answers[1]
